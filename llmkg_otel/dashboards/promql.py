"""PromQL of the contract's instruments, so that a query cannot name what does not exist.

Every selector is bound to the dashboards' variables: `$instance`, and `$operation` where the metric tells
operations apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmkg_otel.dashboards.model import Panel, Query
from llmkg_otel.telemetry import semconv
from llmkg_otel.telemetry.table import prometheus_name

if TYPE_CHECKING:
    from llmkg_otel.telemetry.semconv import Instrument

__all__ = [
    "NOT_REFUSED",
    "REFUSED",
    "failures",
    "quantile",
    "rate",
    "ratio",
    "select",
    "state_panel",
    "total",
]

_REFUSALS = ("circuit_open", "draining", "permit_timeout", "rate_limited", "resource_exhausted", "shed")
_CALLERS = ("cancelled", "invalid_input")
REFUSED = f'=~"{"|".join(_REFUSALS)}"'
"""Matches error.type of calls that never reached the engine."""
NOT_REFUSED = f'!="",error_type!~"{"|".join(_REFUSALS)}"'
"""Matches that of all other calls that did not succeed."""
FAILED = f'!="",error_type!~"{"|".join(sorted((*_CALLERS, *_REFUSALS)))}"'
"""Matches that of calls that the engine failed: not what the caller gave up or asked wrongly."""

_BY_OPERATION = {semconv.BREAKER_STATUS.name.rsplit(".", 1)[0], "llmkg.retry"}
WINDOW = "$__rate_interval"


def select(instrument: Instrument, suffix: str = "", **matchers: str) -> str:
    """Return a selector; a matcher's value may begin with its operator, else it is `=`.

    `suffix` is `_bucket`, `_count` or `_sum` of a histogram.
    """
    labels = {"instance": '=~"$instance"'}
    operation = semconv.OPERATION_NAME.replace(".", "_")
    if semconv.OPERATION_NAME in instrument.attributes:
        labels[operation] = '=~"$operation"'
    elif "name" in instrument.attributes and instrument.name.startswith(tuple(_BY_OPERATION)):
        labels["name"] = '=~"$operation"'
    for label, value in matchers.items():
        labels[label] = value if value.startswith(("=", "!")) else f'="{value}"'
    inner = ",".join(f"{label}{value}" for label, value in labels.items())
    return f"{prometheus_name(instrument)}{suffix}{{{inner}}}"


def rate(instrument: Instrument, by: str, suffix: str = "", window: str = WINDOW, **matchers: str) -> str:
    """Return how often a second, by labels; of a histogram with suffix `_count`."""
    return f"sum by ({by}) (rate({select(instrument, suffix, **matchers)}[{window}]))"


def total(instrument: Instrument, by: str, **matchers: str) -> str:
    """Return the sum of live values, by labels."""
    return f"sum by ({by}) ({select(instrument, **matchers)})"


def quantile(share: float, instrument: Instrument, by: str, **matchers: str) -> str:
    """Return a quantile of a histogram, in its unit, by labels."""
    return f"histogram_quantile({share}, {rate(instrument, f'le, {by}', '_bucket', **matchers)})"


def ratio(part: str, whole: str) -> str:
    """Return a share of a whole that may be nothing: then it is 0, not NaN."""
    return f"{part} / ({whole} > 0) or {whole} * 0"


def failures(by: str, window: str = WINDOW) -> str:
    """Return failed calls a second, for which the engine or its deadline is to blame: no refusals.

    The same choice as the alert LlmkgHighErrorRate makes. 0 where calls were made and none has failed.
    """
    calls = rate(semconv.OPERATION_DURATION, by, "_count", window)
    failed = rate(semconv.OPERATION_DURATION, by, "_count", window, error_type=FAILED)
    return f"({failed} or {calls} * 0)"


def _state(instrument: Instrument, by: str) -> str:
    """Return which state holds, as its index among the instrument's states, by labels."""
    each = (
        f"({select(instrument, state=state)} == 1) * {index}"
        for index, state in enumerate(_states(instrument))
    )
    return f"max by ({by}) ({' or '.join(each)})"


def state_panel(
    title: str,
    description: str,
    instrument: Instrument,
    by: str,
    legend: str,
    *,
    width: int = 8,
    quiet: str = "",
) -> Panel:
    """Return a panel that shows when each series of an instrument was in which of its states."""
    query = Query(_state(instrument, by), legend, quiet=quiet)
    return Panel(title, description, (query,), kind="states", width=width, states=_states(instrument))


def _states(instrument: Instrument) -> tuple[str, ...]:
    values = instrument.attributes["state"]
    assert values is not None  # noqa: S101 - a state comes from a closed set
    return values
