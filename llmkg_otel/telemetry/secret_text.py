"""Secrets in text, told by the name they stand after and by how they look."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Any

import re2

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["REDACTED", "is_secret_name", "redact_text"]

REDACTED = "[redacted]"

_TELLING = (
    r"(?:(?:pass(?:word|wd|phrase|code)|pwd|secret|credential|signature|session[-_. ]?id"
    r"|(?:j|php)sess(?:ion)?id"
    r"|(?:api|access|private|account|signing|encryption|secret|master|shared|service|admin|auth|app|deploy"
    r"|storage|subscription|integration|session|ssh|functions)[-_. ]?key)s?"
    r"|(?:auth|access|refresh|bearer)[-_. ]?token)"
)
_END = r"(?:(?:\d|[-_.]\w|(?-i:[A-Z][a-z\d]))[\w.-]*)?(?:\[\w*\])*"
"""What a name has behind the word that tells: `_PROD`, `1`, `Confirmation`, `[0]`; `secretary` is none."""
_SURE = rf"(?:{_TELLING}{_END}|(?:auth|access|refresh|api|bearer|id|session)[-_. ]?tokens|token)"
"""No end to `token`: `token_count` and `token_budget` are about those of models."""

_MATTERS = (
    *("age", "length", "len", "size", "count", "counts", "policy", "name", "names", "type", "types"),
    *("version", "path", "paths", "file", "files", "dir", "ref", "refs", "ttl", "expiry", "expires"),
    *("expired", "at", "required", "enabled", "missing", "invalid", "found", "mismatch", "match", "error"),
    *("errors", "exception", "provider", "manager", "rotation"),
)
_SUFFIXES = r"(?:pyi?|go|java|jsx?|tsx?|rb|rs|cc?|cpp|h|cs|kt|php|json|ya?ml|toml|txt|md|html|pem|log)"
_ABOUT = (
    rf"{_TELLING}(?:[\w.-]*(?:[-_.](?:{'|'.join(_MATTERS)})|[-_]expires[-_]in|\.{_SUFFIXES})"
    rf"|\w*(?-i:(?:{'|'.join(word.capitalize() for word in _MATTERS)})))"
)
"""Names of what is about a secret: `password_age`, `secretKeyRef`, and `credentials.py` in a traceback."""
_SHORT = r"(?:(?:\b|_)(?:pass|auth|sid|sig)|(?-i:[a-z](?:Pass|Auth|Sid|Sig)))"
"""Names that are everyday words too: none of secrets in `first pass: parsing` and `["pass", "fail"]`."""
_HEADERS = r"(?:authorization|cookies?)"

_QUOTED = (
    r"""[bru]?(?:"(?:[^"\\]|\\+.)*"?|'(?:[^'\\]|\\+.)*'?"""
    r"""|\\+"(?:[^"\\]|\\[^"\\]|\\\\+.)*|\\+'(?:[^'\\]|\\[^'\\]|\\\\+.)*)"""
)
"""A string of Python or JSON, or one inside another, up to its own quote; of an open one all that follows."""
_IS = (
    r"""(?:\\*["']\s*,\s*(?:\\*["'][\w.-]+\\*["']\s*(?:=>|:)\s*)?"""
    r"""|\\*["']?\s*(?:=>?|:)\s*|\\*["']?\s+value\\*["']?\s*[=:]\s*)"""
)
"""What stands between name and value: `=`, `:`, `": "`, the `', '` of a pair, or `', 'value': `."""
_OPENING = r"[\[({]"
_FLAG = r"""(?:^|[\s'"(\[,])--?(?:[\w.-]*[-_.])?"""
_AFTER_FLAG = r"""(?:\\*["']\s*,\s*|\s+)"""
_NAMED = (
    rf"(?:{_SURE}{_IS}"
    rf"""|{_SHORT}(?:\s?=\s?|\\*["']\s*(?:=>|:)\s*)|_(?:pass|auth)\s*:\s*"""
    rf"|{_FLAG}(?:{_SURE}|pass|auth){_AFTER_FLAG})"
)
_PASSED_OVER = rf"(?:{_ABOUT}{_IS}|{_FLAG}{_ABOUT}{_AFTER_FLAG})"
_VALUE = rf"({_QUOTED}|{_OPENING}|(?:(?:bearer|basic|token|digest|apikey)\s+)?[^\s&]+)"
_UP_TO_AT = (
    r"""(?:[^\d\s"'<>\\][^\s"'<>]*|\d{1,5}[^\d\s/?#"'<>,;)\]}\\@][^\s"'<>]*|\d{6}[^\s"'<>]*|\d*"""
    r"|[^\d\s/?#][^\s/?#]*)@"
)
"""A URL's password: up to the last `@` of the word, whatever is in it, unless it begins as a port does."""
_USER = r"""[^\s:/@?#"'<>{},\\]*"""

_SERVICE_KEYS = (
    r"sk-[\w-]*[A-Za-z0-9]{16}[\w-]*|sk-lf-[a-f0-9-]{36}|(?:sk|rk|pk)_(?:live|test)_\w{10,}|whsec_[\w+/=]{20,}"
    r"|(?:xai|pplx|nvapi|csk|tvly)-[\w-]*[A-Za-z0-9]{16}[\w-]*|lsv2_[a-z]{2}_\w{20,}|jina_[\w-]{40,}"
    r"|(?:hf|gsk|npm|r8|fw|glsa|ntn|figd|sbp|tgp_v1)_[A-Za-z0-9]{20,}\w*"
    r"|gh[oprsu]_[A-Za-z0-9]{20,}|github_pat_\w{22,}|gl(?:pat|ptt|dt|rt|cbt|ft|soat|agent|oas)-[\w.-]{20,}"
    r"|xox[a-z](?:\.xox[a-z])?-[\w-]{10,}|xapp-\d-[\w-]{10,}|\d{8,10}:AA[\w-]{30,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,}|ya29\.[\w-]{20,}|GOCSPX-[\w-]{20,}|1//0[\w-]{30,}"
    r"|pypi-AgE[\w-]{40,}|SG\.[\w-]{16,}\.[\w-]{16,}|do[opr]_v1_[a-f0-9]{40,}|dapi[a-f0-9]{32}"
    r"|hv[sb]\.[\w-]{20,}|AT[AC]TT3[\w=-]{20,}|NRAK-[A-Z0-9]{20,}|lin_api_\w{30,}|shp(?:at|ss|ca|pa)_\w{30,}"
    r"|AGE-SECRET-KEY-1[A-Z0-9]{40,}|eyJ[\w-]{5,}\.[\w-]{5,}(?:\.[\w-]*)*"
)
"""Prefix, alphabet and least length of each: `sk_search_results_by_name` is none."""
_CAPABILITIES = (
    r"(?:hooks\.slack\.com/(?:services|workflows|triggers)|discord(?:app)?\.com/api/webhooks/\d+"
    r"|webhook\.office\.com/webhookb2)/|api\.telegram\.org/bot"
)
"""Addresses that whoever knows may write to."""

_MARKS = ("bearer", "basic", "-----begin", "hook", "telegram.org", "?code=", "&code=", ";code=")
_PARTS_OF_NAMES = ("pass", "pwd", "secret", "cred", "sig", "sess", "sid", "key", "token", "auth", "cookie")
_ANY_NAME = rf"(?:{_TELLING}[\w.\[\]-]{{0,40}}|{_SURE}|{_HEADERS}|pass|auth|sid|sig|routing[-_]?key|[?&;]key)"
_NAME_AND_SIGN = re.compile(rf"""{_ANY_NAME}(?:["'\\=:>&]|\s+(?:[=:]|value))|{_TELLING}[\w.\[\]-]{{41}}""")
_NAME = re.compile(rf"""{_ANY_NAME}["'\\=:>&\s]|{_TELLING}[\w.\[\]-]{{41}}""")
_LEAST_KEY = 14
"""Characters of the shortest key of a service, with its prefix."""
_PREFIXES = (
    *("sk-", "k_live_", "k_test_", "whsec_", "xai-", "pplx-", "nvapi-", "csk-", "tvly-"),
    *("lsv2_", "jina_", "hf_", "gsk_", "npm_", "r8_", "fw_", "glsa_", "ntn_"),
    *("figd_", "sbp_", "tgp_v1_", "github_pat_", "gl", "gh", "xox", "xapp-", ":AA"),
    *("AKIA", "ASIA", "AIza", "ya29.", "GOCSPX-", "1//0", "pypi-", "SG.", "_v1_"),
    *("dapi", "hvs.", "hvb.", "TT3", "NRAK-", "lin_api_", "shp", "AGE-SECRET", "eyJ"),
)


def _is_suspect(text: str) -> bool:
    """Say whether there may be a secret, without RE2: most texts end here.

    Its binding lets go of the interpreter's lock for each search. A burst of lines would do so every 50
    us, and a thread that waits for the lock be woken each time, too late, and never reach the switch
    interval after which it is given: event loops were measured to stand still for 0.1 to 0.4 s.
    """
    lower = text.casefold()  # as RE2 does, to which a long s is an s
    if any(part in lower for part in _PARTS_OF_NAMES):
        flags_or_tags = "-" in lower or "<" in lower or "&lt;" in lower
        if (_NAME if flags_or_tags else _NAME_AND_SIGN).search(lower):
            return True
    if any(mark in lower for mark in _MARKS) or ("://" in lower and "@" in lower):
        return True
    words = " ".join([word for word in text.split() if len(word) >= _LEAST_KEY])
    return bool(words) and any(prefix in words for prefix in _PREFIXES)


_KEY_BLOCK = "[A-Z ]*PRIVATE KEY(?: BLOCK)?"
_SAYS_NOTHING = frozenset(("", "null", "none", "nil", "true", "false", "undefined"))
_BARE = "\"'`,;.)]}>\\"
_BRACKETS = re.compile(rf"(?s){_QUOTED}|[\[({{]|([\])}}])")


def _named(text: str) -> str:
    """Hide what stands after a secret's name: a word, a string, or all of a bracket."""
    parts: list[str] = []
    end = 0
    for match in _AFTER_NAMES.finditer(text):
        first, last = match.span(2)
        if first < 0:  # what is about a secret is passed over, and what follows is looked at
            continue
        if match.start() < end:  # inside what is hidden already
            end = max(end, last)
            continue
        value = match[2]
        if _says_nothing(value, after=match[1]):
            continue
        parts += text[end:first], REDACTED
        end = _closed(text, first) if value in ("[", "(", "{") else last
    return "".join((*parts, text[end:])) if parts else text


def _says_nothing(value: str, after: str) -> bool:
    """Say whether a value is none: `null`, `true`, nothing, or the next flag of a command line."""
    if value.startswith("-") and after[-1:].isspace() and not after.rstrip().endswith(("=", ":", ">", ",")):
        return True
    return value.strip(_BARE).lower() in _SAYS_NOTHING


def _closed(text: str, start: int) -> int:
    """Return where the bracket at start has closed; the end of the text if it does not."""
    depth = 0
    for match in _BRACKETS.finditer(text, start):
        if match[1]:
            depth -= 1
        elif match[0] in ("[", "(", "{"):
            depth += 1
        if depth == 0:
            return match.end()
    return len(text)


def _header(match: Any) -> str:
    name, value = match[1], match[2]
    return match[0] if value.startswith(REDACTED) or _says_nothing(value, name) else f"{name}{REDACTED}"


def _bearer(match: Any) -> str:
    """Tell `Bearer abc123...` from `bearer authentication`."""
    token = match[2]
    return match[0] if len(token) < 24 and token.isalpha() and token.islower() else f"{match[1]}{REDACTED}"


def _basic(match: Any) -> str:
    """Tell `Basic dXNlcjpwYXNz` from `basic authentication`: it is `user:password` in base64."""
    try:
        known = b":" in base64.b64decode(match[2] + "=" * (-len(match[2]) % 4))
    except ValueError:
        known = False
    return f"{match[1]}{REDACTED}" if known else match[0]


_STEPS: tuple[tuple[str, str | Callable[[Any], str]], ...] = (
    (rf"(?s)-----BEGIN {_KEY_BLOCK}-----.*?(?:-----END {_KEY_BLOCK}-----|\z)", REDACTED),
    (rf"((?:https?|wss?|git)://){_USER}(?::{_UP_TO_AT}|@)", rf"\1{REDACTED}@"),
    (rf"(://{_USER}:){_UP_TO_AT}", rf"\1{REDACTED}@"),
    (rf"({_CAPABILITIES})[^\s\"'<>]+", rf"\1{REDACTED}"),
    (r"([?&;](?:code|key)=)[\w%.~+/=-]{20,}", rf"\1{REDACTED}"),
    (rf"""(?i)(routing[-_]?key{_IS}\\*["']?)[a-z0-9]{{32}}\b""", rf"\1{REDACTED}"),
    (
        rf"(?is)((?:<|&lt;)(?:\w+:)?[\w.-]*?(?:{_SURE}|pass)(?:\s[^<>]*)?(?:>|&gt;))(?:<!\[CDATA\[.*?\]\]>|[^<&]+)",
        rf"\1{REDACTED}",
    ),
    (rf"(?is)({_HEADERS}{_IS})({_QUOTED}|[^\r\n]+)", _header),
    (r"(?i)\b(bearer\s+)([\w.~+/=-]{8,})", _bearer),
    (r"(?i)\b(basic\s+)([a-z0-9+/]{6,}={0,2})", _basic),
    (rf"\b(?:{_SERVICE_KEYS})", REDACTED),
)
_COMPILED = [(re2.compile(pattern), told) for pattern, told in _STEPS]
_AFTER_NAMES = re2.compile(rf"(?is){_PASSED_OVER}|({_NAMED}){_VALUE}")
_ANY = re2.compile("|".join(f"(?:{each.pattern})" for each in (_AFTER_NAMES, *(p for p, _ in _COMPILED))))
_SECRET_NAME = re2.compile(rf"(?i)(?:{_SURE}|{_HEADERS}|{_SHORT})$")
_NAME_ABOUT = re2.compile(rf"(?i){_ABOUT}$")


def redact_text(text: str) -> str:
    """Return text with `[redacted]` for values of secret names, passwords and tokens in URLs, credentials of
    headers, JSON Web Tokens, private keys and the keys of well-known services.

    Takes time in proportion to the text, whatever it is: the expressions are RE2's. Rather hides a word
    too many: `invalid token: x` hides x. A secret that neither looks like one nor stands after a name is
    not seen.
    """  # noqa: D205
    if not _is_suspect(text):
        return text
    try:
        if _ANY.search(text) is None:
            return text
    except UnicodeEncodeError:  # a lone surrogate
        return redact_text(text.encode("utf-8", "backslashreplace").decode())
    for pattern, told in _COMPILED:
        text = pattern.sub(told, text)
    return _named(text)


def is_secret_name(name: str) -> bool:
    """Say whether what stands under this name is a secret: `apiKey`, `password_2`, not `max_tokens`."""
    return _SECRET_NAME.search(name) is not None and _NAME_ABOUT.search(name) is None
