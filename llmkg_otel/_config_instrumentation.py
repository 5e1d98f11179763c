"""The options of auto-instrumentation: whose methods are told of, and what is told."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator
from pydantic_settings import NoDecode

from llmkg_otel._config_sources import Section
from llmkg_otel.engine.profiles import NAME, Profile, check_target

__all__ = ["InstrumentationConfig", "Targets"]


def _targets(value: object) -> object:
    """Split "pkg.module:Class,pkg.module:Other"."""
    return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value


def _named(text: str) -> str:
    name, equals, named = text.rpartition("=")
    if equals and not re.fullmatch(NAME, name):
        raise ValueError('a name before "=" has small ASCII letters, digits and "_", 63 at most')
    check_target(named)
    return text


Targets = Annotated[tuple[Annotated[str, AfterValidator(_named)], ...], NoDecode, BeforeValidator(_targets)]
"""Classes, each as "pkg.module:Class" or, with a name of its own, as "name=pkg.module:Class"."""


class InstrumentationConfig(Section):
    """Engines beside the known ones, and whether the text of queries goes on spans.

    `profiles` come before the built-in ones for the same class. `capture_text` puts a query's text on its
    span, as `db.query.text`; without it no argument and no result is recorded.
    """

    profiles: tuple[Profile, ...] = ()
    capture_text: bool = False
