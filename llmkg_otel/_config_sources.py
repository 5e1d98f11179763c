"""Where configuration comes from, and how a wrong value is told: the plumbing under config.py."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, SecretStr, ValidationError
from pydantic._internal._model_construction import ModelMetaclass
from pydantic_settings import BaseSettings, EnvSettingsSource, InitSettingsSource
from pydantic_settings.exceptions import SettingsError

from llmkg_otel.errors import ConfigurationError

__all__ = ["CheckedModelMeta", "check_environment", "describe", "file_source"]

_PREFIX = "LLMKG_"
_NOT_CONFIG = frozenset({"LLMKG_CONFIG", "LLMKG_INSTRUMENT", "LLMKG_PROTECT"})
"""Variables of ours that are not part of the tree."""


class CheckedModelMeta(ModelMetaclass):
    """Turns pydantic's report into one ConfigurationError when a model is built by a caller.

    pydantic builds nested models without calling the class, so a nested error keeps its full path.
    """

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - a metaclass's self is a class
        try:
            return super().__call__(*args, **kwargs)
        except ValidationError as error:
            raise ConfigurationError(_explain(error, cls)) from None
        except SettingsError as error:
            raise ConfigurationError(f"{error}: {error.__cause__}") from None


def _explain(error: ValidationError, model: type) -> str:
    lines = [_explain_one(dict(item), model) for item in error.errors(include_url=False)]
    return "\n".join(lines)


def _explain_one(item: dict[str, Any], model: type) -> str:
    path = ".".join(str(part) for part in item["loc"]) or model.__name__
    if item["type"] == "extra_forbidden":
        known = _fields_at(model, item["loc"][:-1])
        near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(sorted(known))}"
        return f"{path}: unknown option; {hint}"
    allowed = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if isinstance(item["input"], Mapping | BaseModel):
        return f"{path}: {allowed}"
    return f"{path} = {_shown(item['loc'], item['input'])}: {allowed}"


def _shown(loc: tuple[int | str, ...], value: object) -> str:
    if any("token" in str(part) for part in loc) or isinstance(value, SecretStr):
        return "(hidden)"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _fields_at(model: type, loc: tuple[int | str, ...]) -> list[str]:
    """Return the names of the options of the section that a path leads to."""
    here: Any = model
    for part in loc:
        field = getattr(here, "model_fields", {}).get(part)
        here = field.annotation if field is not None else here
        here = next((a for a in get_args(here) if hasattr(a, "model_fields")), here)
    return list(getattr(here, "model_fields", {}))


def check_environment(settings: type[BaseSettings]) -> None:
    """Refuse an `LLMKG_*` variable that names no option: a typo must not be silence."""
    known = {_PREFIX + name.upper() for name in settings.model_fields}
    for variable in os.environ:
        name = variable.upper()
        if name.startswith(_PREFIX) and name.split("__")[0] not in known and name not in _NOT_CONFIG:
            near = difflib.get_close_matches(name.split("__")[0], known | _NOT_CONFIG, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigurationError(f"{variable}: unknown environment variable{hint}")


class _FileSource:
    """Hands the file named to `load()` to the settings class that is being built in this context."""

    def __init__(self) -> None:
        self._content: ContextVar[dict[str, Any]] = ContextVar("llmkg_config_file")

    @contextmanager
    def reading(self, file: Path | str | None) -> Iterator[None]:
        token = self._content.set(read_file(Path(file)) if file is not None else {})
        try:
            yield
        finally:
            self._content.reset(token)

    def source(self, settings: type[BaseSettings]) -> InitSettingsSource:
        return InitSettingsSource(settings, self._content.get({}))


file_source = _FileSource()


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
        content = reader(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be parsed: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path}: holds a {type(content).__name__}, not a mapping of options")
    return content


def describe(
    config: BaseSettings, file: Path | None, arguments: Mapping[str, Any]
) -> list[tuple[str, str, str]]:
    """Return (path, effective value, where it came from) for every option, secrets hidden."""
    sources = [
        ("argument", set(_leaves(arguments))),
        ("environment", set(_leaves(EnvSettingsSource(type(config))()))),
        (f"file {file}", set(_leaves(read_file(file))) if file is not None else set()),
    ]
    rows = []
    for path, value in _leaves(config.model_dump(mode="json")).items():
        origin = next((name for name, paths in sources if _covers(paths, path)), "default")
        rows.append((path, str(value), origin))
    return rows


def _covers(paths: set[str], path: str) -> bool:
    return any(path == p or path.startswith(p + ".") or p.startswith(path + ".") for p in paths)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= _leaves(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
