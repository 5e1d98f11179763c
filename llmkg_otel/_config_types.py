"""The types of options: numbers with their bounds, and values that are written as text."""

from __future__ import annotations

import builtins
import importlib
import ipaddress
import os
import re
from datetime import timedelta
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    PlainSerializer,
    SecretStr,
    Tag,
    WithJsonSchema,
)
from pydantic_settings import NoDecode

__all__ = [
    "Count",
    "EnvironmentSecret",
    "ExceptionTypes",
    "Fraction",
    "Milliseconds",
    "Networks",
    "Number",
    "OperationName",
    "Pause",
    "Port",
    "RuleOrRules",
    "Seconds",
    "Share",
    "StorageUri",
    "TokenPairs",
    "Whole",
    "WindowSize",
    "operation_name",
]


def _number(value: object) -> object:
    """Refuse true and false, which YAML also makes of yes and no, and pydantic 1 and 0 of."""
    if isinstance(value, bool):
        raise ValueError("should be a number")  # noqa: TRY004 - pydantic takes only this for its report
    return value


def _seconds(value: object) -> object:
    return value.total_seconds() if isinstance(value, timedelta) else _number(value)


Number = Annotated[float, BeforeValidator(_number)]
Whole = Annotated[int, BeforeValidator(_number)]
Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=1e9, allow_inf_nan=False)]
"""30 years at most: threads cannot wait for ever longer times."""
Pause = Annotated[float, BeforeValidator(_seconds), Field(ge=0, le=1e9, allow_inf_nan=False)]
"""Seconds that may be none."""
Milliseconds = Annotated[Number, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
Count = Annotated[Whole, Field(ge=1, le=10**15)]
Share = Annotated[Number, Field(gt=0, le=1)]
WindowSize = Annotated[Whole, Field(ge=1, le=100_000)]
Port = Annotated[Whole, Field(ge=0, le=65535)]


MAX_NAME = 100


def operation_name(name: object) -> str:
    """Return a name that may stand for an operation in telemetry and on screens; else raise ValueError."""
    if not (isinstance(name, str) and 0 < len(name) <= MAX_NAME and name.isprintable()):
        raise ValueError(f"an operation's name is text of 1 to {MAX_NAME} printable characters")
    return name


OperationName = Annotated[str, AfterValidator(operation_name)]


def _exception_type(value: object) -> object:
    """Return the class that a name like "ValueError" or "httpx.TransportError" stands for."""
    if not isinstance(value, str):
        return value
    module, _, name = value.rpartition(".")
    try:
        found: Any = getattr(importlib.import_module(module) if module else builtins, name)
    except (ImportError, AttributeError, TypeError, ValueError):
        raise ValueError(f"{value!r} names no exception that can be imported") from None
    return found


def _exception_types(value: object) -> object:
    if isinstance(value, str):
        value = [name.strip() for name in value.split(",") if name.strip()]
    return tuple(_exception_type(each) for each in value) if isinstance(value, list | tuple) else value


def _exception_name(kind: type[Exception]) -> str:
    builtin = kind.__module__ == "builtins"
    return kind.__qualname__ if builtin else f"{kind.__module__}.{kind.__qualname__}"


ExceptionTypes = Annotated[
    tuple[type[Exception], ...],
    BeforeValidator(_exception_types),
    PlainSerializer(lambda kinds: [_exception_name(kind) for kind in kinds]),
    WithJsonSchema({"type": "array", "items": {"type": "string"}}),
]


def _token_pairs(value: object) -> object:
    """Read "name=token,name=token"; a mapping passes through."""
    if not isinstance(value, str):
        return value
    pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
    if any(not name.strip() or not token.strip() for name, _, token in pairs):
        raise ValueError("tokens are written name=token,name=token")
    names = [name.strip() for name, _, _ in pairs]
    if len(set(names)) != len(names):
        raise ValueError("each name may have one token")
    return {name.strip(): token.strip() for name, _, token in pairs}


_STORES = re.compile(r"(redis|valkey)(s|\+unix|\+cluster|\+sentinel)?://.")


def _names_a_store(uri: SecretStr) -> SecretStr:
    if _STORES.match(uri.get_secret_value()) is None:
        raise ValueError("should be a URI like redis://host:6379/0 or valkey://host:6379/0")
    return uri


StorageUri = Annotated[SecretStr, AfterValidator(_names_a_store)]
"""Where a store is that processes share, in the notation of the `limits` library; it may hold a password."""


def _from_environment(value: object) -> object:
    """Replace each `${NAME}`."""
    if not isinstance(value, str):
        return value
    names = re.findall(r"\$\{(\w+)\}", value)
    if missing := [name for name in names if name not in os.environ]:
        raise ValueError(f"the environment has no variable {missing[0]}")
    return re.sub(r"\$\{(\w+)\}", lambda found: os.environ[found[1]], value)


EnvironmentSecret = Annotated[SecretStr, BeforeValidator(_from_environment)]
"""A secret that the environment may hold: "Bearer ${PAGER_TOKEN}"."""

TokenPairs = Annotated[dict[str, SecretStr], NoDecode, BeforeValidator(_token_pairs)]


def _networks(value: object) -> object:
    if isinstance(value, str):
        value = [text.strip() for text in value.split(",") if text.strip()]
    if not isinstance(value, list | tuple):
        return value
    try:
        return tuple(ipaddress.ip_network(str(network)) for network in value)
    except ValueError as error:
        raise ValueError(f'should be networks like "10.0.0.0/8": {error}') from None


Networks = Annotated[
    tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...],
    NoDecode,
    BeforeValidator(_networks),
    PlainSerializer(lambda networks: [str(network) for network in networks]),
    WithJsonSchema({"type": "array", "items": {"type": "string"}}),
]


RULE, RULES = "<rule>", "<rules>"
"""Which of the two a value was read as; no part of an option's path."""

Rule = TypeVar("Rule", bound=BaseModel)
RuleOrRules = Annotated[
    Annotated[Rule, Tag(RULE)] | Annotated[tuple[Rule, ...], Tag(RULES)],
    Discriminator(lambda value: RULES if isinstance(value, list | tuple) else RULE),
]
