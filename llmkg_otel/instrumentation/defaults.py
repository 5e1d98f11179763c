"""What holds for engines whose callers know nothing of this layer, where the configuration says nothing."""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmkg_otel.config import OperationConfig, ProductionConfig
    from llmkg_otel.engine.profiles import Method, Profile

__all__ = ["completed", "unlimited"]

PATIENCE_SECONDS = 3600.0
"""What a call may take of which neither profile nor configuration says anything."""

_WIDE_OPEN = {
    "rate_limiting": {"requests_per_second": 1e9, "burst_capacity": 10**9},
    "resources": {
        "max_memory_bytes": 10**15,
        "max_cpu_percent": 1e6,
        "max_concurrent_operations": 10**6,
        "max_database_connections": 10**6,
    },
}

_log = logging.getLogger(__name__)


def unlimited(config: ProductionConfig) -> ProductionConfig:
    """Return a configuration whose limits are those that somebody has set.

    The defaults are for a server. A program that loads a million triples in a loop, on all of its CPU,
    must not be refused a call because somebody asked for retries. At exit nobody is left to be sent
    elsewhere, so there is no lame duck.
    """
    changes: dict[str, Any] = {"shutdown": config.shutdown.model_copy(update={"lame_duck_seconds": 0.0})}
    for name, values in _WIDE_OPEN.items():
        section = getattr(config, name)
        said = section.model_fields_set
        if name == "rate_limiting" and said & values.keys():
            continue  # a rate and its burst go together
        unsaid = {option: value for option, value in values.items() if option not in said}
        changes[name] = section.model_copy(update=unsaid)
    return config.model_copy(update=changes)


def completed(
    given: OperationConfig, config: ProductionConfig, profile: Profile, how: Method
) -> OperationConfig:
    """Return an operation's configuration, with what it leaves open taken from the profile.

    A call that is no read is tried again only if that is harmless; the caller's own mistakes are neither
    tried again nor held against the engine; an attempt may take all of the call's time.
    """
    idempotent = given.idempotent if "idempotent" in given.model_fields_set else how.repeatable
    mistakes = {"excluded_exceptions": _exceptions(profile.caller_errors)}
    timeout = given.timeout or _timeout(config, how)
    changes: dict[str, Any] = {"idempotent": idempotent, "timeout": timeout}
    if given.circuit_breaker is None:
        patience = {} if "timeout" in config.circuit_breaker.model_fields_set else {"timeout": timeout}
        changes["circuit_breaker"] = _with(config.circuit_breaker, mistakes | patience)
    if given.retry is None:
        changes["retry"] = _with(config.retry, mistakes | ({} if idempotent else {"max_retries": 0}))
    return given.model_copy(update=changes)


def _timeout(config: ProductionConfig, how: Method) -> float:
    if "operation_timeout_seconds" in config.resources.model_fields_set:
        return config.resources.operation_timeout_seconds
    return how.timeout_seconds or PATIENCE_SECONDS


def _with(section: Any, changes: dict[str, Any]) -> Any:
    excluded = (*section.excluded_exceptions, *changes["excluded_exceptions"])
    return section.model_copy(update=changes | {"excluded_exceptions": excluded})


def _exceptions(names: tuple[str, ...]) -> tuple[type[Exception], ...]:
    """Return the exceptions of these names; what this version of an engine does not have is left out."""
    found = []
    for name in names:
        module, _, attribute = name.rpartition(".")
        try:
            found.append(getattr(importlib.import_module(module), attribute))
        except (ImportError, AttributeError):
            _log.debug("there is no %s", name)
    return tuple(found)
