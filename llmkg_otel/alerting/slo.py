"""Objectives compiled to multi-window, multi-burn-rate rules, in the format of every other rule file.

A burn rate of 1 spends the error budget, 1 - objective, exactly over the window of the objective. Source:
Google's Site Reliability Workbook, chapter 5, alert 6: for 30 days its shares of the budget are the factors
14.4, 6, 3 and 1; for another window they are scaled, to 1 at least.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from llmkg_otel.alerting.export import groups_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from llmkg_otel._config_slo import SloConfig

__all__ = ["slo_rules", "slo_warnings"]

DURATION = "llmkg_operation_duration_seconds"
NOT_COUNTED = "cancelled|invalid_input|rate_limited"
"""Failures by the caller's own doing. What this layer refuses to save the engine is a failure."""
HOUR, DAY = 3600, 86_400
NEEDED = (
    f"; all alerts need {3 * DAY} s of monitoring.metric_retention_seconds and of max_metric_points x "
    "alert_check_interval_seconds"
)


class _Pair(NamedTuple):
    """An alert fires when both windows burn: the long one is sure, the short one lets it end soon."""

    long: str
    short: str
    seconds: int
    budget: float  # the share of it that is spent in the long window when the alert fires

    def factor(self, slo: SloConfig) -> float:
        return max(1.0, self.budget * slo.window_days * DAY / self.seconds)

    def reachable(self, slo: SloConfig) -> bool:
        """Whether a total failure burns that fast."""
        return self.factor(slo) * _error_budget(slo) < 1


ALERTS = {
    "LlmkgSloBurnsFast": (_Pair("1h", "5m", HOUR, 0.02), _Pair("6h", "30m", 6 * HOUR, 0.05)),
    "LlmkgSloBurnsSlowly": (_Pair("1d", "2h", DAY, 0.1), _Pair("3d", "6h", 3 * DAY, 0.1)),
}
TOLD = {
    "LlmkgSloBurnsFast": (
        "critical",
        "slo-burns-fast",
        "spends its error budget fast: {{ $value | humanizePercentage }} of the calls are bad",
    ),
    "LlmkgSloBurnsSlowly": (
        "warning",
        "slo-burns-slowly",
        "will not keep its objective: {{ $value | humanizePercentage }} of the calls are bad",
    ),
}


def slo_rules(slos: Mapping[str, SloConfig], *, within_seconds: float | None = None) -> str:
    """Return a Prometheus rule file for these objectives, by their names.

    `within_seconds` leaves out what looks back further (None: nothing), since an answer from part of a
    window would be a wrong one; `slo_warnings` tells what that is. Records, for each objective and window,
    `slo:error_ratio:rate1h`, `slo:failures:increase1h` and `slo:error_budget:remaining` (1: all of it).
    """
    named = {n: s if s.operation else s.model_copy(update={"operation": n}) for n, s in slos.items()}
    return groups_text([group for name, slo in named.items() for group in _groups(name, slo, within_seconds)])


def slo_warnings(slos: Mapping[str, SloConfig], within_seconds: float | None) -> Iterator[str]:
    """Give a sentence for each objective of which something cannot be evaluated."""
    for name, slo in slos.items():
        for alert, pairs in ALERTS.items():
            if not any(pair.reachable(slo) for pair in pairs):
                yield f"slos.{name}: no {alert}: at {slo.objective:g} a total failure does not burn so fast"
        longest = slo.window_days * DAY
        if within_seconds is not None and within_seconds < longest:
            left_out = [p.long for pairs in ALERTS.values() for p in pairs if p.seconds > within_seconds]
            windows = ", ".join([*left_out, f"{slo.window_days}d"])
            told = (
                f"slos.{name}: evaluated by Prometheus only (`llmkg-otel rules export`), over {windows}: "
                f"here samples are kept for {within_seconds:g} s"
            )
            yield told + (NEEDED if left_out else "")


def _groups(name: str, slo: SloConfig, within_seconds: float | None) -> Iterator[dict[str, Any]]:
    rules = list(_rules(name, slo, within_seconds))
    if rules:
        yield {"name": f"llmkg-slo-{name}", "rules": rules}
    days = slo.window_days
    if within_seconds is None or days * DAY <= within_seconds:
        ratio = _error_ratio(slo, f"{days}d")
        remaining = _recorded(
            name, "slo:error_budget:remaining", f"1 - (\n{ratio}\n) / {_error_budget(slo):.10g}"
        )
        yield {"name": f"llmkg-slo-{name}-budget", "interval": "5m", "rules": [remaining]}


def _rules(name: str, slo: SloConfig, within_seconds: float | None) -> Iterator[dict[str, Any]]:
    alerts = {
        alert: [
            pair
            for pair in pairs
            if pair.reachable(slo) and (within_seconds is None or pair.seconds <= within_seconds)
        ]
        for alert, pairs in ALERTS.items()
    }
    used = [pair for pairs in alerts.values() for pair in pairs]
    for window in dict.fromkeys(window for pair in used for window in (pair.short, pair.long)):
        yield _recorded(name, f"slo:error_ratio:rate{window}", _error_ratio(slo, window))
    for pair in used:
        failures = _failures(slo, "increase", pair.long)
        yield _recorded(name, f"slo:failures:increase{pair.long}", failures)
    for alert, pairs in alerts.items():
        if pairs:
            yield _alert(name, slo, alert, pairs)


def _recorded(name: str, record: str, expr: str) -> dict[str, Any]:
    return {"record": record, "expr": f"{expr}\n", "labels": {"slo": name}}


def _alert(name: str, slo: SloConfig, alert: str, pairs: list[_Pair]) -> dict[str, Any]:
    severity, heading, told = TOLD[alert]
    what = "success" if slo.latency_seconds is None else f"success within {slo.latency_seconds:g} s"
    aim = (
        f"{what} of {100 * slo.objective:.10g} % of the calls of {slo.operation} over {slo.window_days} days"
    )
    return {
        "alert": alert,
        "expr": "or\n".join(_burns(name, slo, pair) for pair in pairs),
        "labels": {"slo": name, "severity": severity},
        "annotations": {
            "summary": f"{name} {told}",
            "description": f"The objective is {_literal(aim)}. See slo:error_budget:remaining.",
            "runbook_url": f"docs/runbook.md#{heading}",
        },
    }


def _burns(name: str, slo: SloConfig, pair: _Pair) -> str:
    limit = f"{pair.factor(slo):.10g} * {_error_budget(slo):.10g}"
    selector = f'{{slo="{name}"}}'
    return (
        f"(\n  slo:error_ratio:rate{pair.long}{selector} > {limit}\n"
        f"  and slo:error_ratio:rate{pair.short}{selector} > {limit}\n"
        f"  and slo:failures:increase{pair.long}{selector} >= {slo.minimum_failures}\n)\n"
    )


def _error_budget(slo: SloConfig) -> float:
    return 1 - slo.objective


def _error_ratio(slo: SloConfig, window: str) -> str:
    return f"(\n{_failures(slo, 'rate', window)}\n)\n/\n{_calls(slo, 'rate', window)}"


def _failures(slo: SloConfig, function: str, window: str) -> str:
    """Return how many failed; of latency, all if there is no bucket: a View without it must not be quiet."""
    calls = _calls(slo, function, window)
    if slo.latency_seconds is None:
        failed = _sum(slo, function, "_count", f'error_type!="",error_type!~"{NOT_COUNTED}"', window)
        return f"{failed}\nor\n0 * {calls}"
    bound = f"{slo.latency_seconds:g}"
    # The Collector writes 1, prometheus_client 1.0.
    le = f'le=~"{bound}|{bound}[.]0"' if slo.latency_seconds.is_integer() else f'le="{bound}"'
    fast = _sum(slo, function, "_bucket", f'error_type="",{le}', window)
    return f"{calls}\n-\n(\n{fast}\nor\n0 * {calls}\n)"


def _calls(slo: SloConfig, function: str, window: str) -> str:
    counted = f'error_type!~"{NOT_COUNTED}"' if slo.latency_seconds is None else 'error_type=""'
    return _sum(slo, function, "_count", counted, window)


def _sum(slo: SloConfig, function: str, suffix: str, matchers: str, window: str) -> str:
    operation = json.dumps(slo.operation, ensure_ascii=False)
    selector = f"{DURATION}{suffix}{{llmkg_operation_name={operation},{matchers}}}[{window}]"
    return f"sum by (llmkg_operation_name) ({function}({selector}))"


def _literal(text: str) -> str:
    """Keep a text from being read as a template."""
    return text.replace("{{", "{ {")
