"""Secrets in log records, told by the key they stand under and by how they look."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import re2

__all__ = ["REDACTED", "is_secret_name", "redact", "redact_text"]

REDACTED = "[redacted]"
DEPTH = 6
"""Containers in containers that are looked into; what is deeper is read as text."""

_NAMES = (
    r"(?:(?:pass(?:word|wd|phrase|code)|pwd|secret|credential|signature"
    r"|(?:api|access|private|account|signing|encryption|secret)[-_. ]?key)s?|auth[-_]?tokens|token)"
)
_HEADERS = r"(?:authorization|cookie)"
_QUOTED = (
    r"""[bru]?(?:"(?:[^"\\]|\\+.)*"?|'(?:[^'\\]|\\+.)*'?"""
    r"""|\\+"(?:[^"\\]|\\[^"\\]|\\\\+.)*|\\+'(?:[^'\\]|\\[^'\\]|\\\\+.)*)"""
)
"""A string of Python or JSON, or one inside another, up to its own quote; of an open one all that follows."""
_IS = r"""(?:\\*["']\s*,|\\*["']?\s*(?:=>?|:))\s*"""
"""What stands between name and value: `=`, `:`, `": "`, and the `', '` of a pair."""

_SERVICE_KEYS = (
    r"\b(?:(?:sk|rk|pk)[-_][\w-]{16,}|gh[oprsu]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|xox[a-z]-[\w-]{10,}|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,}|(?:hf|npm)_\w{16,})"
)
_PATTERNS = (
    (r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\z)", REDACTED),
    (r"(://[^\s:/@?#]*:)[^\s/?#]+@", rf"\1{REDACTED}@"),
    (rf"(?is)({_HEADERS}{_IS})(?:{_QUOTED}|[^\r\n]+)", rf"\1{REDACTED}"),
    (rf"(?is)({_NAMES}{_IS})(?:{_QUOTED}|(?:(?:bearer|basic|token)\s+)?[^\s&]+)", rf"\1{REDACTED}"),
    (r"(?i)\b(bearer\s+)[\w.~+/=-]{8,}", rf"\1{REDACTED}"),
    (r"\beyJ[\w-]{5,}\.[\w-]{5,}(?:\.[\w-]*)*", REDACTED),
    (_SERVICE_KEYS, REDACTED),
)
_COMPILED = [(re2.compile(pattern), told) for pattern, told in _PATTERNS]
_ANY = re2.compile("|".join(f"(?:{pattern})" for pattern, _ in _PATTERNS))
_SECRET_NAME = re2.compile(rf"(?i)(?:{_NAMES}|{_HEADERS})$")


def redact_text(text: str) -> str:
    """Return text with `[redacted]` for passwords in URLs, values of secret names, bearer tokens, JSON Web
    Tokens, private keys and the keys of well-known services.

    Takes time in proportion to the text, whatever it is: the expressions are RE2's. Rather hides a word
    too many: `invalid token: x` hides x. A secret that neither looks like one nor stands after a name is
    not seen. Lone surrogates, which no exporter could write, come back as escapes.
    """  # noqa: D205
    try:
        if _ANY.search(text) is None:
            return text
    except UnicodeEncodeError:
        return redact_text(text.encode("utf-8", "backslashreplace").decode())
    for pattern, told in _COMPILED:
        text = pattern.sub(told, text)
    return text


def is_secret_name(name: str) -> bool:
    """Say whether what stands under this name is a secret: `apiKey`, `db.password`, but not `max_tokens`."""
    return _SECRET_NAME.search(name) is not None


def redact(value: object, depth: int = 0) -> Any:
    """Return a value as JSON can have it, its texts redacted, and the values of secret names too.

    Numbers, None and booleans stay; what JSON does not know, or what is too deep, is told as text.
    """
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth < DEPTH:
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return dict(_pair(key, each, depth) for key, each in value.items())
        if isinstance(value, list | tuple):
            if len(value) == 2 and isinstance(value[0], str):  # a header
                return list(_pair(value[0], value[1], depth))
            return [redact(each, depth + 1) for each in value]
    return redact_text(value if isinstance(value, str) else str(value))


def _pair(name: str, value: object, depth: int) -> tuple[str, Any]:
    """Redact a value by its name, too; flags and None tell nothing."""
    name = redact_text(name)
    if is_secret_name(name) and value is not None and not isinstance(value, bool):
        return name, REDACTED
    return name, redact(value, depth + 1)
