"""Numbers and texts as Go prints them: `%v`, `%.4g`, printf, and Prometheus' humanize functions."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

__all__ = [
    "FUNCTIONS",
    "TemplateError",
    "go_exponent",
    "go_float",
    "go_quote",
    "go_value",
    "unsupported_verb",
]

_VERB = re.compile(r"%(?P<flags>[-+ 0]*)(?P<width>\d+)?(?:\.(?P<precision>\d+))?(?P<verb>.?)", re.DOTALL)
_TITLE_WORD = re.compile(r"([\d_]*)([^\W\d_])(\w*(?:['.:\u2019]\w+)*)")
_DECIMAL = re.compile(
    r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|[+-]?inf(?:inity)?|nan", re.ASCII | re.IGNORECASE
)
_HEXADECIMAL = re.compile(r"[+-]?0x(?:[\da-f]+\.?[\da-f]*|\.[\da-f]+)p[+-]?\d+", re.ASCII | re.IGNORECASE)
_SEPARATOR = re.compile(r"(?<=\d)_(?=\d)", re.ASCII)
_HEX_SEPARATOR = re.compile(r"(?<=[\da-fx])_(?=[\da-f])", re.ASCII | re.IGNORECASE)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SMALL = "munpfazy"
_QUOTED = {
    "\a": r"\a",
    "\b": r"\b",
    "\f": r"\f",
    "\n": r"\n",
    "\r": r"\r",
    "\t": r"\t",
    "\v": r"\v",
    '"': r"\"",
    "\\": r"\\",
}
_WIDEST = 100  # a width of a billion would be a text of a billion spaces


class TemplateError(Exception):
    """A function cannot take this argument; stays inside templates."""


def go_float(value: float) -> str:
    """Return a float as `%v`: the shortest digits that give it back, with an exponent from 1e+06 up."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{value:+}".replace("inf", "Inf")
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    point = len(digits) + int(exponent) - 1
    text = "".join(map(str, digits))
    minus = "-" if sign else ""
    if value == 0:
        return f"{minus}0"
    if point < -4 or point >= 6:
        mantissa = text[0] + ("." + text[1:] if len(text) > 1 else "")
        return f"{minus}{mantissa}e{point:+03d}"
    return f"{minus}{Decimal((0, digits, int(exponent))):f}"


def go_exponent(value: float) -> str:
    """Return a float as strconv's format E prints it: `3E-01`, with as few digits as give it back."""
    if not math.isfinite(value):
        return go_float(value)
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    text = "".join(map(str, digits))
    mantissa = text[0] + ("." + text[1:] if len(text) > 1 else "")
    power = len(digits) - 1 + int(exponent) if value else 0
    return f"{'-' if sign else ''}{mantissa}E{power:+03d}"


def go_quote(text: str) -> str:
    """Return a text as `%q` prints it."""
    return '"' + "".join(map(_quoted, text)) + '"'


def _quoted(character: str) -> str:
    if character in _QUOTED:
        return _QUOTED[character]
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def go_value(value: object) -> str:
    """Return what `{{ value }}` prints: texts as they are, numbers and label maps as `%v`."""
    if isinstance(value, float):
        return go_float(value)
    if isinstance(value, Mapping):
        return f"map[{' '.join(f'{key}:{value[key]}' for key in sorted(value))}]"
    return str(value)


def _four_digits(value: float) -> str:
    """Return `%.4g`."""
    if not math.isfinite(value):
        return go_float(value)
    return f"{value:.4g}"


def _number(value: Any) -> float:
    """Return what strconv.ParseFloat reads: decimals, hexadecimals with an exponent, Inf and NaN."""
    if isinstance(value, float | int):
        return float(value)
    text = value if isinstance(value, str) else ""
    hexadecimal = "x" in text.lower()
    plain = (_HEX_SEPARATOR if hexadecimal else _SEPARATOR).sub("", text)
    if (_HEXADECIMAL if hexadecimal else _DECIMAL).fullmatch(plain) is None:
        raise TemplateError(f"cannot read {go_value(value)!r} as a number")
    try:
        number = float.fromhex(plain) if hexadecimal else float(plain)
    except OverflowError:
        number = math.inf
    if math.isinf(number) and "i" not in plain.lower():
        raise TemplateError(f"the number {text} is out of range")
    return number


def _humanize(value: Any) -> str:
    number = _number(value)
    if number == 0 or not math.isfinite(number):
        return _four_digits(number)
    if abs(number) >= 1:
        return _scaled(number, 1000.0, ("k", "M", "G", "T", "P", "E", "Z", "Y"))
    return _shrunk(number)


def _scaled(number: float, step: float, prefixes: tuple[str, ...]) -> str:
    chosen = ""
    for prefix in prefixes:
        if abs(number) < step:
            break
        chosen = prefix
        number /= step
    return _four_digits(number) + chosen


def _shrunk(number: float) -> str:
    chosen = ""
    for prefix in _SMALL:
        if abs(number) >= 1:
            break
        chosen = prefix
        number *= 1000
    return _four_digits(number) + chosen


def _humanize1024(value: Any) -> str:
    number = _number(value)
    if abs(number) <= 1 or not math.isfinite(number):
        return _four_digits(number)
    return _scaled(number, 1024.0, ("ki", "Mi", "Gi", "Ti", "Pi", "Ei", "Zi", "Yi"))


def _humanize_percentage(value: Any) -> str:
    return f"{_four_digits(_number(value) * 100)}%"


def _humanize_duration(value: Any) -> str:
    number = _number(value)
    if not math.isfinite(number):
        return _four_digits(number)
    if abs(number) < 1:
        return f"{_shrunk(number) if number else _four_digits(number)}s"
    sign = "-" if number < 0 else ""
    if abs(number) >= 2.0**63:
        return f"{sign}-106751991167300d -15h -30m -8s"  # Go's int64 overflows
    minutes, seconds = divmod(int(abs(number)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [f"{days}d", f"{hours}h", f"{minutes}m", f"{seconds}s"]
    first = next((index for index, count in enumerate((days, hours, minutes)) if count), None)
    return f"{sign}{_four_digits(abs(number))}s" if first is None else sign + " ".join(parts[first:])


def _humanize_timestamp(value: Any) -> str:
    number = _number(value)
    if not math.isfinite(number):
        return _four_digits(number)
    if abs(number * 1e9) >= 2.0**63:
        raise TemplateError(f"{go_float(number)} is no time that 64 bits of nanoseconds can hold")
    milliseconds = abs(int(number * 1e9)) // 10**6
    at = _EPOCH + timedelta(milliseconds=milliseconds if number >= 0 else -milliseconds)
    fraction = f"{at.microsecond // 1000:03d}".rstrip("0")
    return f"{at:%Y-%m-%d %H:%M:%S}{'.' + fraction if fraction else ''} +0000 UTC"


def _printf(form: Any, *values: Any) -> str:
    """Format as Go's Sprintf: %v of anything, %s of a text, %d of an integer, %f %e %g of a float.

    A verb that does not suit its argument prints Go's own complaint, `%!d(float64=1.5)`.
    """
    remaining = list(values)

    def convert(found: re.Match[str]) -> str:
        if found["verb"] == "%":
            return "%"
        if not remaining:
            return f"%!{found['verb']}(MISSING)"
        return _convert(found, remaining.pop(0))

    text = _VERB.sub(convert, _text(form))
    extra = ", ".join(f"{_go_type(value)}={go_value(value)}" for value in remaining)
    return f"{text}%!(EXTRA {extra})" if extra else text


def unsupported_verb(form: str) -> str | None:
    """Return the first conversion in a printf format that is not written exactly here, None when all are."""
    for found in _VERB.finditer(form):
        verb, precision = found["verb"], found["precision"]
        plain = precision is None and set(found["flags"]) <= {"-"}
        wide = max(int(found["width"] or 0), int(precision or 0)) > _WIDEST
        exact = not wide and (
            verb in ("f", "e", "%")
            or (verb == "g" and (precision is not None or plain))
            or (verb == "d" and precision is None)
            or (verb in ("v", "s") and plain)
        )
        if not exact:
            return found.group()
    return None


def _convert(found: re.Match[str], value: Any) -> str:
    if isinstance(value, dict):
        pairs = (f"{_convert(found, key)}:{_convert(found, value[key])}" for key in sorted(value))
        return f"map[{' '.join(pairs)}]"
    flags, verb, precision = found["flags"], found["verb"], found["precision"]
    width = found["width"] or ""
    if isinstance(value, float) and verb in ("f", "e", "g", "v"):
        if not math.isfinite(value):
            return f"%{flags.replace('0', '').replace('+', '')}{width}s" % _signed(value, flags)
        if precision is None and verb in ("g", "v"):
            return f"%{flags}{width}s" % go_float(value)
        return f"%{flags}{width}{'.' + precision if precision else ''}{verb.replace('v', 'g')}" % value
    if verb in _VERBS.get(_go_type(value), "v") and precision is None:
        return f"%{flags}{width}{'d' if isinstance(value, int) else 's'}" % _printable(value)
    return f"%!{verb}({_go_type(value)}={_complained(found, value)})"


def _complained(found: re.Match[str], value: float | str) -> str:
    """Return a value as Go prints it in its complaint: by %v, with the width and precision of the verb."""
    flags, width, precision = found["flags"], int(found["width"] or 0), found["precision"]
    sign, zeros = "", "0" in flags and "-" not in flags
    if isinstance(value, str):
        text = value if precision is None else value[: int(precision)]
    elif not math.isfinite(value):
        text, zeros = _signed(value, flags), False
    else:
        sign = "-" if math.copysign(1, value) < 0 else "+" if "+" in flags else " " if " " in flags else ""
        verb = "d" if isinstance(value, int) else "g"
        text = go_value(abs(value)) if precision is None else f"%.{precision}{verb}" % abs(value)
        zeros = zeros and not (verb == "d" and precision is not None)
    if zeros:
        text = text.rjust(width - len(sign), "0")
    return (sign + text).ljust(width) if "-" in flags else (sign + text).rjust(width)


def _signed(value: float, flags: str) -> str:
    """Return an infinity or NaN under a sign flag: a space stands for the plus that is not written."""
    text = go_float(value)
    if "+" in flags:
        return "+NaN" if math.isnan(value) else text
    return " " + text.removeprefix("+") if " " in flags and value != -math.inf else text


_VERBS = {"string": "sv", "int": "dv"}


def _printable(value: Any) -> object:
    return value if isinstance(value, int) else go_value(value)


def _go_type(value: object) -> str:
    for kind, name in ((str, "string"), (float, "float64"), (int, "int")):
        if isinstance(value, kind):
            return name
    return "map[string]string"


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TemplateError(f"{go_value(value)} is no text")
    return value


def _title(value: Any) -> str:
    """Put each word's first letter in upper case and leave the rest."""
    return _TITLE_WORD.sub(lambda word: word[1] + word[2].title() + word[3], _text(value))


def _to_upper(value: Any) -> str:
    """Map letter by letter, as Go does: what would be several letters stays, or is a letter of title case."""

    def upper(letter: str) -> str:
        return next((each for each in (letter.upper(), letter.title()) if len(each) == 1), letter)

    return "".join(map(upper, _text(value)))


def _to_lower(value: Any) -> str:
    return "".join(letter.lower()[0] for letter in _text(value))


FUNCTIONS: dict[str, tuple[Callable[..., str], int | None]] = {
    "humanize": (_humanize, 1),
    "humanize1024": (_humanize1024, 1),
    "humanizeDuration": (_humanize_duration, 1),
    "humanizePercentage": (_humanize_percentage, 1),
    "humanizeTimestamp": (_humanize_timestamp, 1),
    "printf": (_printf, None),
    "title": (_title, 1),
    "toLower": (_to_lower, 1),
    "toUpper": (_to_upper, 1),
}
"""Each function and how many arguments it takes; None is at least one."""
