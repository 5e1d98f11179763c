"""Every option of the configuration, walked from its JSON schema, and values that each must refuse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from llmkg_otel.config import ProductionConfig
from llmkg_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SCHEMA = ProductionConfig.model_json_schema()
OPERATION = "retry"  # an operation may be called like an option


def _leaves(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each option's path and what the schema says of its value."""
    either = schema.get("anyOf", ())
    for part in (schema, *either, *(each for one in either for each in one.get("oneOf", ()))):
        if "$ref" in part:
            yield from _leaves(SCHEMA["$defs"][part["$ref"].rpartition("/")[2]], path)
            return
    if "properties" in schema:
        for name, option in schema["properties"].items():
            yield from _leaves(option, f"{path}.{name}".removeprefix("."))
    elif "additionalProperties" in schema:
        yield from _leaves(schema["additionalProperties"], f"{path}.{OPERATION}")
    else:
        yield path, next((part for part in schema.get("anyOf", ()) if part["type"] != "null"), schema)


LEAVES = dict(_leaves(SCHEMA))


def _bad_values(schema: dict[str, Any]) -> Iterator[tuple[Any, str]]:
    """Yield values just outside of what an option allows, and how its rule must be told."""
    for key, step, rule in [
        ("minimum", -1, "greater than or equal to"),
        ("exclusiveMinimum", 0, "greater than"),
        ("maximum", 1, "less than or equal to"),
    ]:
        if key in schema:
            bound = f"{schema[key]:.9f}".rstrip("0").rstrip(".")
            yield schema[key] + step, f"should be {rule} {bound}"
    if schema["type"] == "number":
        yield from ((float(text), "should be") for text in ("nan", "inf", "-inf"))
    if "minLength" in schema:
        yield "x" * (schema["minLength"] - 1), f"should have at least {schema['minLength']}"
    if "pattern" in schema:
        yield "no match", "should match pattern"
    if "enum" in schema:
        *most, last = map(repr, schema["enum"])
        yield "loud", f"should be {', '.join(most)} or {last}"
    wrong = {"boolean": "perhaps", "integer": 2.5, "number": "soon", "string": 5, "array": 5}
    yield wrong[schema["type"]], "is not a valid path" if schema.get("format") == "path" else "should be"


BAD = [(path, value, rule) for path, schema in LEAVES.items() for value, rule in _bad_values(schema)]
"""(path, value, part of the message): at least one for each option."""


def nest(path: str, value: Any) -> dict[str, Any]:
    """Return `{"a": {"b": value}}` for "a.b", and what must be given beside it."""
    first, _, rest = path.partition(".")
    if first == "slos" and not rest.endswith(".objective"):
        return merge({"slos": {OPERATION: {"objective": 0.99}}}, {first: nest(rest, value)})
    return {first: nest(rest, value) if rest else value}


def merge(tree: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return both trees in one; `other` wins."""
    return tree | {
        key: merge(tree.get(key, {}), value) if isinstance(value, dict) else value
        for key, value in other.items()
    }


def read(config: ProductionConfig, path: str) -> Any:
    """Return the option at a path."""
    value: Any = config
    for part in path.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


def variable(path: str) -> str:
    """Return the environment variable of an option."""
    return "LLMKG_" + path.replace(".", "__").upper()


def problem(file: Path | None = None, **arguments: Any) -> str:
    """Load a configuration that cannot be; return what the error says."""
    with pytest.raises(ConfigurationError) as caught:
        ProductionConfig.load(file, **arguments)
    return str(caught.value)
