"""Configuration files: which one, and what is in it."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from llmkg_otel.alerting.rule_yaml import Field, read_yaml
from llmkg_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FILE_VARIABLE", "default_file", "read_default_file", "read_file"]

FILE_VARIABLE = "LLMKG_CONFIG"
"""Names the file to read where no other is given; the one `LLMKG_*` variable that is no option."""


def default_file() -> Path | None:
    """Return the file that `LLMKG_CONFIG` names; None when it is unset or empty."""
    named = os.environ.get(FILE_VARIABLE)
    return Path(named) if named else None


def read_default_file() -> dict[str, Any]:
    """Parse the default file, nothing if there is none; a ConfigurationError names the variable too."""
    file = default_file()
    try:
        return {} if file is None else read_file(file)
    except ConfigurationError as error:
        raise ConfigurationError(f"{FILE_VARIABLE}: {error}") from None


def read_file(path: Path) -> dict[str, Any]:
    """Parse a YAML or TOML file into a mapping; raise ConfigurationError that names the file."""
    readers: dict[str, Callable[[str], Any]] = {
        ".yaml": yaml.safe_load,
        ".yml": yaml.safe_load,
        ".toml": tomllib.loads,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ConfigurationError(f"{path}: a configuration file ends in .yaml, .yml or .toml")
    try:
        text = path.read_text(encoding="utf-8")
        content = reader(text)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None
    except Exception as error:  # noqa: BLE001 - PyYAML raises all sorts over a value it cannot make
        raise ConfigurationError(f"{path}: cannot be parsed: {_parse_problem(error)}") from None
    if reader is yaml.safe_load and (root := read_yaml(text, str(path))) is not None:
        _refuse_duplicates(root)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path}: holds a {type(content).__name__}, not a mapping of options")
    if strange := [key for key in content if not isinstance(key, str)]:
        raise ConfigurationError(f"{path}: {strange[0]!r} is not a name of an option")
    return content


def _refuse_duplicates(field: Field, inside: frozenset[int] = frozenset()) -> None:
    """Raise ConfigurationError for a key given twice, of which YAML would silently keep the last."""
    if id(field.node) in inside:
        field.fail("an alias stands inside of what it stands for")
    if isinstance(field.node, yaml.MappingNode):
        inner = list(field.mapping("a section", None).values())
    else:
        inner = field.sequence("a list") if isinstance(field.node, yaml.SequenceNode) else []
    for each in inner:
        _refuse_duplicates(each, inside | {id(field.node)})


def _parse_problem(error: Exception) -> str:
    """Say what is wrong and where, and quote nothing: it may be a secret."""
    if isinstance(error, tomllib.TOMLDecodeError | UnicodeDecodeError | yaml.reader.ReaderError):
        return str(error)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        what = re.sub(r"(['\"]).*\1", "...", error.problem or "not valid YAML")
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {what}"
    return f"a value is not what it looks like ({type(error).__name__})"
