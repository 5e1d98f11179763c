"""The standard `OTEL_*` variables, looked at before OpenTelemetry reads them.

Left to itself the SDK raises whatever `int()` says, or logs a traceback and takes its default, or finds out
at the first export. Nothing of OpenTelemetry is imported here: some variables are read when it is.
"""

from __future__ import annotations

import os
import re
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from llmkg_otel.errors import ConfigurationError
from llmkg_otel.telemetry.secret_text import redact_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["check_before_import", "check_signals"]

LIMITS = (
    *(f"OTEL_{of}ATTRIBUTE_COUNT_LIMIT" for of in ("", "SPAN_", "EVENT_", "LINK_", "LOGRECORD_")),
    *(f"OTEL_{of}ATTRIBUTE_VALUE_LENGTH_LIMIT" for of in ("", "SPAN_", "LOGRECORD_")),
    *("OTEL_SPAN_EVENT_COUNT_LIMIT", "OTEL_SPAN_LINK_COUNT_LIMIT"),
)
QUEUES = {"traces": "OTEL_BSP", "logs": "OTEL_BLRP"}
DEFAULT_QUEUE_SIZE, DEFAULT_BATCH_SIZE = 2048, 512
"""The SDK's own, which one of the two is held against where only the other is set."""
RATIOS = ("traceidratio", "parentbased_traceidratio")
PROTOCOLS = ("grpc", "http/protobuf")
GRPC_TARGET = re.compile(r"(\[[\da-fA-F:.]+\]|[\w.-]+):\d+|(dns|unix|unix-abstract|ipv4|ipv6|xds):.+")


class _Rule(NamedTuple):
    """What the values of some variables must be."""

    variables: Iterable[str]
    allowed: str
    accepts: Callable[[str], bool]
    takes_blank: bool = True
    """Whether the SDK reads blank as not set; it fails on a few."""


def check_before_import() -> None:
    """Raise ConfigurationError for a variable that `import opentelemetry` would stumble over."""
    _hold(_Rule(LIMITS, "a whole number from 0 up, or blank: no limit", _is_limit))
    _hold_to_installed("OTEL_PROPAGATORS", "opentelemetry_propagator", "none")
    _hold_to_installed("OTEL_PYTHON_CONTEXT", "opentelemetry_context")


def check_signals(signals: Iterable[str]) -> None:
    """Raise ConfigurationError for a variable that the providers of these signals could not be set up with.

    The error names the variable, its value and what is right. What the SDK takes with a warning, and without
    doing something else than was asked for, is left to it.
    """
    check_before_import()
    _hold_to_installed("OTEL_EXPERIMENTAL_RESOURCE_DETECTORS", "opentelemetry_resource_detector", "*")
    for signal in signals:
        exporters = f"OTEL_{signal.upper()}_EXPORTER"
        names = [] if _text(exporters).lower() in ("", "none") else _listed(_text(exporters))
        if names:
            _hold_to_installed(exporters, f"opentelemetry_{signal}_exporter", "none")
        _hold(*_rules(signal, exports=bool(names)))
        if signal in QUEUES and names:
            _check_batch(QUEUES[signal])
        if transports := {_transport(name, signal) for name in names if name.startswith("otlp")}:
            _hold(*_otlp_rules(signal, transports))


def _hold(*rules: _Rule) -> None:
    for rule in rules:
        for variable in rule.variables:
            value = os.environ.get(variable)
            if value is None or (rule.takes_blank and not value.strip()):
                continue
            if not rule.accepts(value):
                raise ConfigurationError(f"{variable} = {redact_text(value)!r}: must be {rule.allowed}")


def _hold_to_installed(variable: str, group: str, also: str = "") -> None:
    """Hold every name in a comma-separated list to the entry points of a group; blank is not set."""
    if _text(variable):
        known = {each.name for each in entry_points(group=group)} | {also} - {""}
        allowed = f"one that is installed: {', '.join(sorted(known))}"
        _hold(_Rule((variable,), allowed, lambda value: {*_listed(value)} <= known or value.lower() == also))


def _rules(signal: str, *, exports: bool) -> Iterator[_Rule]:
    if signal == "traces":
        _hold_to_installed("OTEL_TRACES_SAMPLER", "opentelemetry_traces_sampler")
        _hold_to_installed("OTEL_PYTHON_ID_GENERATOR", "opentelemetry_id_generator")
        if _text("OTEL_TRACES_SAMPLER") in RATIOS:
            yield _Rule(("OTEL_TRACES_SAMPLER_ARG",), "a number from 0 to 1", lambda v: _within(v, 0, 1))
    elif signal == "metrics":
        filters = _one_of("OTEL_METRICS_EXEMPLAR_FILTER", "trace_based", "always_on", "always_off")
        yield filters._replace(takes_blank=False)
        times = ("OTEL_METRIC_EXPORT_INTERVAL", "OTEL_METRIC_EXPORT_TIMEOUT")
        if exports:
            yield _Rule(times, "milliseconds, more than 0", _is_positive)
    if signal in QUEUES and exports:
        sizes = ("MAX_QUEUE_SIZE", "MAX_EXPORT_BATCH_SIZE", "SCHEDULE_DELAY", "EXPORT_TIMEOUT")
        yield _Rule([f"{QUEUES[signal]}_{each}" for each in sizes], "a whole number above 0", _is_count)


def _check_batch(prefix: str) -> None:
    queue = int(_text(f"{prefix}_MAX_QUEUE_SIZE") or DEFAULT_QUEUE_SIZE)
    batch = int(_text(f"{prefix}_MAX_EXPORT_BATCH_SIZE") or DEFAULT_BATCH_SIZE)
    if batch > queue:
        raise ConfigurationError(
            f"{prefix}_MAX_EXPORT_BATCH_SIZE = {batch}: must be at most"
            f" {prefix}_MAX_QUEUE_SIZE, which is {queue} (not set, they are"
            f" {DEFAULT_BATCH_SIZE} and {DEFAULT_QUEUE_SIZE})"
        )


def _otlp_rules(signal: str, transports: set[str]) -> Iterator[_Rule]:
    def both(what: str) -> tuple[str, str]:
        return f"OTEL_EXPORTER_OTLP_{what}", f"OTEL_EXPORTER_OTLP_{signal.upper()}_{what}"

    yield _Rule(both("TIMEOUT"), "seconds, more than 0", _is_positive, takes_blank=False)
    if "grpc" in transports:
        yield _Rule(both("COMPRESSION"), "gzip, or not set, with gRPC", _is_gzip, takes_blank=False)
        target = "http://HOST:PORT, https://HOST:PORT or HOST:PORT"
        yield _Rule(both("ENDPOINT"), target, _is_grpc_target, takes_blank=False)
    if "http/protobuf" in transports:
        yield _Rule(both("COMPRESSION"), "gzip, deflate or none", _compresses)
        yield _Rule(both("ENDPOINT"), "a URL: http:// or https:// and a host", _is_http_url)
    for file in ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE"):
        yield _Rule(both(file), "a file that can be read", lambda v: os.access(v, os.R_OK))
    if signal == "metrics":
        prefix = "OTEL_EXPORTER_OTLP_METRICS_"
        yield _one_of(f"{prefix}TEMPORALITY_PREFERENCE", "cumulative", "delta", "lowmemory")
        kinds = ("explicit_bucket_histogram", "base2_exponential_bucket_histogram")
        yield _one_of(f"{prefix}DEFAULT_HISTOGRAM_AGGREGATION", *kinds)


def _transport(exporter: str, signal: str) -> str:
    """Return the protocol of an OTLP exporter; of the one called `otlp`, what the variables say."""
    if exporter != "otlp":
        return "http/protobuf" if exporter.endswith("http") else "grpc"
    variables = (f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    variable = next((each for each in variables if os.environ.get(each)), variables[1])
    _hold(_one_of(variable, *PROTOCOLS))
    return _text(variable) or "grpc"


def _one_of(variable: str, *values: str) -> _Rule:
    return _Rule((variable,), f"one of {', '.join(values)}", lambda value: value.strip().lower() in values)


def _listed(value: str) -> list[str]:
    return [name.strip() for name in value.split(",")]


def _text(variable: str) -> str:
    return os.environ.get(variable, "").strip()


def _compresses(value: str) -> bool:
    return value.strip().lower() in ("gzip", "deflate", "none")


def _is_gzip(value: str) -> bool:
    return value.strip().lower() == "gzip"


def _is_limit(value: str) -> bool:
    return value.strip() == "0" or _is_count(value)


def _is_count(value: str) -> bool:
    try:
        return int(value) > 0
    except ValueError:
        return False


def _is_positive(value: str) -> bool:
    return _within(value, 0, float("inf")) and float(value) != 0


def _within(value: str, least: float, most: float) -> bool:
    try:
        return least <= float(value) <= most
    except ValueError:
        return False


def _is_http_url(value: str) -> bool:
    try:
        url = urlsplit(value)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        return False


def _is_grpc_target(value: str) -> bool:
    return _is_http_url(value) or GRPC_TARGET.fullmatch(value) is not None
