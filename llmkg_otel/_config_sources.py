"""Where configuration comes from, and how a wrong value is told: the plumbing under config.py."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError
from pydantic._internal._model_construction import ModelMetaclass
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource

from llmkg_otel._config_files import FILE_VARIABLE, default_file, read_default_file, read_file
from llmkg_otel._config_types import RULE, RULES
from llmkg_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

__all__ = ["CheckedModelMeta", "Section", "describe", "file_source", "ordered_sources", "parse_rate"]

_PREFIX = "LLMKG_"
_RATES = frozenset({"rate_limiting", "per_user", "rate_limit"})
"""Options that hold a rate, which may be written in words."""
_SECRETS = ("token", "secret", "storage_uri", "url", "authorization")
"""Parts of the names of options that hold secrets: no value of one is shown, nor one that holds one."""


class CheckedModelMeta(ModelMetaclass):
    """Turns pydantic's report into one ConfigurationError when a model is built by a caller.

    pydantic builds nested models without calling the class, so a nested error keeps its full path.
    """

    def __call__(cls, /, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - a metaclass's self is a class
        try:
            return super().__call__(*args, **kwargs)
        except ValidationError as error:
            raise ConfigurationError(_explain(error, cls)) from None


class Section(BaseModel, metaclass=CheckedModelMeta):
    """A frozen group of options; building one with a bad value raises ConfigurationError."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def _explain(error: ValidationError, model: type) -> str:
    lines = [_explain_one(dict(item), model) for item in error.errors(include_url=False)]
    return "\n".join(lines)


def _explain_one(item: dict[str, Any], model: type) -> str:
    item["loc"] = tuple(part for part in item["loc"] if part not in (RULE, RULES))
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
    text = repr(value)
    hidden = any(name in str(part) for part in (*loc, text) for name in _SECRETS)
    if hidden or isinstance(value, SecretStr):
        return "(hidden)"
    return text if len(text) <= 80 else text[:77] + "..."


def _fields_at(model: type, loc: tuple[int | str, ...]) -> list[str]:
    """Return the names of the options of the section that a path leads to."""
    here: Any = model
    for part in loc:
        if isinstance(part, int):
            continue  # a list's own type has been passed through already
        of_section = hasattr(here, "model_fields")  # else a mapping of sections, and the part is a name in it
        here = here.model_fields[part].annotation if of_section else get_args(here)[-1]
        here = here if get_origin(here) is dict else _section_of(here)
    return list(getattr(here, "model_fields", {}))


def _section_of(annotation: Any) -> Any:
    """Return the section in an option's type: itself, or one of a union, a tuple or a mapping."""
    if hasattr(annotation, "model_fields"):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_of(part))), None)


def parse_rate(text: str) -> dict[str, Any]:
    """Return the options that "100/second" or "600 per 5 minutes" stands for; raise ValueError."""
    from limits import parse_many  # noqa: PLC0415 - a tenth of the start-up time, and rarely needed

    try:
        (item,) = parse_many(text)
        return {"requests_per_second": item.amount / item.get_expiry(), "burst_capacity": item.amount}
    except (ValueError, OverflowError):
        raise ValueError('a rate is written like "100/second" or "600 per 5 minutes"') from None


def _spelled_out(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Replace rates in words by their options, so that a stronger source can change just one of them."""
    return {key: _spelled_out_one(key, value) for key, value in tree.items()}


def _spelled_out_one(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return _spelled_out(value)
    if key in _RATES and isinstance(value, str):
        with suppress(ValueError):  # the model will say what is wrong with it
            return parse_rate(value)
    return value


class _Environment(EnvSettingsSource):
    """Reads `LLMKG_*`. What is not JSON stays text, for the model to understand or to refuse by path."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value

    def __call__(self) -> dict[str, Any]:
        return _spelled_out(super().__call__())


class _Tree(PydanticBaseSettingsSource):
    """A tree that is there already: a file's content, or the arguments."""

    def __init__(self, settings: type[BaseSettings], tree: dict[str, Any]) -> None:
        super().__init__(settings)
        self._tree = tree

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        return self._tree.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return self._tree


def ordered_sources(
    settings: type[BaseSettings], arguments: Mapping[str, Any]
) -> tuple[PydanticBaseSettingsSource, ...]:
    """Return arguments, environment and file, from the strongest to the weakest."""
    _check_environment(settings)
    file = file_source.content
    return _Tree(settings, _spelled_out(arguments)), _Environment(settings), _Tree(settings, file)


def _check_environment(settings: type[BaseSettings]) -> None:
    """Refuse `LLMKG_*` variables that name no option: a typo must not be silence."""
    options = {name.upper() for name in settings.model_fields}
    problems = []
    for variable in os.environ:
        name = variable.upper().removeprefix(_PREFIX).split("__")[0]
        if variable == FILE_VARIABLE or name in options or not variable.upper().startswith(_PREFIX):
            continue
        near = difflib.get_close_matches(name, {*options, FILE_VARIABLE.removeprefix(_PREFIX)}, n=1)
        hint = f"; did you mean {_PREFIX}{near[0]}?" if near else ""
        problems.append(f"{variable}: unknown environment variable{hint}")
    if problems:
        raise ConfigurationError("\n".join(problems))


class _FileSource:
    """Hands the file that `load()` reads to the settings class that is being built in this context."""

    def __init__(self) -> None:
        self._content: ContextVar[dict[str, Any]] = ContextVar("llmkg_config_file")

    @contextmanager
    def reading(self, file: Path | str | None) -> Iterator[None]:
        content = read_default_file() if file is None else read_file(Path(file))
        token = self._content.set(_spelled_out(content))
        try:
            yield
        finally:
            self._content.reset(token)

    @property
    def content(self) -> dict[str, Any]:
        return self._content.get({})


file_source = _FileSource()


def describe(
    config: BaseSettings, file: Path | None, arguments: Mapping[str, Any]
) -> list[tuple[str, str, str]]:
    """Return (path, effective value, where it came from) for every option of what `load` made of these.

    Secrets are hidden. `file` None stands for the one that `LLMKG_CONFIG` names, as it does for `load`.
    """
    file = file or default_file()
    sources = [
        ("argument", set(_leaves(_spelled_out(arguments)))),
        ("environment", set(_leaves(_Environment(type(config))()))),
        (f"file {file}", set(_leaves(_spelled_out(read_file(file)))) if file is not None else set()),
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
