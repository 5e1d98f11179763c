"""The rules that ship: valid for Prometheus, on metrics that exist, firing and quiet when they should."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry
from support.prometheus import Promtool, Recorder, agree, labels_of, store_of, values_of, vector_of

from llmkg_otel.alerting.evaluator import AlertEvaluator
from llmkg_otel.alerting.promql import Expression
from llmkg_otel.alerting.rules import AlertRule, load_default_rules
from llmkg_otel.alerting.samples import SampleStore
from llmkg_otel.telemetry.semconv import INSTRUMENTS

ROOT = Path(__file__).parents[2]
FILE = ROOT / "llmkg_otel" / "alerting" / "default_rules.yaml"
RULES = [rule for group in load_default_rules().groups for rule in group.rules if isinstance(rule, AlertRule)]
INTERVAL = 59
STEPS = 24
OPERATION = 'llmkg_operation_name="search"'
COUNT = "llmkg_operation_duration_seconds_count{" + OPERATION
BUCKET = "llmkg_operation_duration_seconds_bucket{" + OPERATION
REJECTED = 'llmkg_rate_limit_requests_total{policy="user",result="rejected"}'
ACQUIRED = 'llmkg_rate_limit_requests_total{policy="user",result="acquired"}'
POOL = '{pool="operations"}'

FIRING = {
    "LlmkgHighErrorRate": [(f"{COUNT}}}", "0+90x30"), (f'{COUNT},error_type="TimeoutError"}}', "0+10x30")],
    "LlmkgHighLatency": [
        (f'{BUCKET},le="{bound}"}}', f"0+{step}x30")
        for bound, step in (("5", 90), ("10", 100), ("+Inf", 100))
    ],
    "LlmkgCircuitBreakerOpen": [
        ('llmkg_circuit_breaker_status{name="search",state="open"}', "0 1x10 0 1x20"),
        ('llmkg_circuit_breaker_status{name="search",state="half_open"}', "0 0x10 1 0x20"),
    ],
    "LlmkgRetryBudgetSpent": [
        ('llmkg_retry_calls_total{name="search",outcome="budget_exhausted"}', "0+1x30"),
    ],
    "LlmkgRateLimitStorm": [(REJECTED, "0+120x30"), (ACQUIRED, "0+120x30")],
    "LlmkgPermitsExhausted": [
        (f"llmkg_permit_usage{POOL}", "10x30"),
        (f"llmkg_permit_limit{POOL}", "10x30"),
        (f"llmkg_permit_pending_requests{POOL}", "3x30"),
    ],
    "LlmkgMemoryHigh": [
        ('llmkg_resource_usage{name="memory"}', "1.9e9x30"),
        ('llmkg_resource_limit{name="memory"}', "2e9x30"),
    ],
    "LlmkgHealthFail": [('llmkg_health_status{component="engine",state="fail"}', "0 1x30")],
    "LlmkgHealthWarn": [('llmkg_health_status{component="engine",state="warn"}', "0 1x30")],
    "LlmkgHealthDegrading": [
        ('llmkg_health_trend{component="engine",state="degrading"}', "0 1x8 0x20"),
        ('llmkg_health_trend{component="engine",state="flapping"}', "0 0x8 1x20"),
    ],
    "LlmkgAlertEvaluationFailing": [
        ('llmkg_alert_status{alert="LlmkgMemoryHigh",severity="warning",state="unknown"}', "0 1x30"),
    ],
    "LlmkgTelemetryHookErrors": [
        ('llmkg_telemetry_hook_errors_total{hook="on_event",error_type="KeyError"}', "0 1 2x30"),
    ],
}
"""For each alert, series on which it fires by the last step."""

QUIET = {
    "LlmkgHighErrorRate": [
        [(f"{COUNT}}}", "0+100x30"), (f'{COUNT},error_type="TimeoutError"}}', "0+4x30")],
        [(f"{COUNT}}}", "0+1x30"), (f'{COUNT},error_type="TimeoutError"}}', "0+1x30")],  # too few calls
        [(f"{COUNT}}}", "0+100x30"), (f'{COUNT},error_type="rate_limited"}}', "0+100x30")],
        [(f"{COUNT}}}", "0+100x30"), (f'{COUNT},error_type="TimeoutError"}}', "0 90x30")],  # one burst
    ],
    "LlmkgHighLatency": [
        [
            (f'{BUCKET},le="{bound}"}}', f"0+{step}x30")
            for bound, step in (("5", 100), ("10", 100), ("+Inf", 100))
        ],
        [(f'{BUCKET},error_type="E",le="{bound}"}}', "0+9x30") for bound in ("10", "+Inf")],
        [(f'{BUCKET},le="{bound}"}}', "5x30") for bound in ("5", "10", "+Inf")],  # no traffic: NaN
    ],
    "LlmkgCircuitBreakerOpen": [
        [('llmkg_circuit_breaker_status{name="search",state="closed"}', "1x30")],
        [('llmkg_circuit_breaker_status{name="search",state="open"}', "0 1 0 1 0x30")],
    ],
    "LlmkgRetryBudgetSpent": [
        [('llmkg_retry_calls_total{name="search",outcome="recovered"}', "0+9x30")],
        [('llmkg_retry_calls_total{name="search",outcome="budget_exhausted"}', "7x30")],
    ],
    "LlmkgRateLimitStorm": [
        [(REJECTED, "0+120x30"), (ACQUIRED, "0+1200x30")],  # a tenth
        [(REJECTED, "0+30x30"), (ACQUIRED, "0+1x30")],  # half a call a second
    ],
    "LlmkgPermitsExhausted": [
        [
            (f"llmkg_permit_usage{POOL}", "10x30"),
            (f"llmkg_permit_limit{POOL}", "10x30"),
            (f"llmkg_permit_pending_requests{POOL}", "0x30"),
        ],
        [
            (f"llmkg_permit_usage{POOL}", "9x30"),
            (f"llmkg_permit_limit{POOL}", "10x30"),
            (f"llmkg_permit_pending_requests{POOL}", "3x30"),
        ],
    ],
    "LlmkgMemoryHigh": [
        [
            ('llmkg_resource_usage{name="memory"}', "1.7e9x30"),
            ('llmkg_resource_limit{name="memory"}', "2e9x30"),
            ('llmkg_resource_usage{name="cpu"}', "0.99x30"),
            ('llmkg_resource_limit{name="cpu"}', "1x30"),
        ],
    ],
    "LlmkgHealthFail": [[('llmkg_health_status{component="engine",state="fail"}', "0x10 1 0x20")]],
    "LlmkgHealthWarn": [[('llmkg_health_status{component="engine",state="warn"}', "1x8 0 1x8 0 1x8")]],
    "LlmkgHealthDegrading": [
        [('llmkg_health_trend{component="engine",state="improving"}', "1x30")],
        [('llmkg_health_trend{component="engine",state="degrading"}', "0 1 0 1 0x30")],
    ],
    "LlmkgAlertEvaluationFailing": [
        [('llmkg_alert_status{alert="A",severity="warning",state="unknown"}', "0x20 1x3")],
        [('llmkg_alert_status{alert="A",severity="warning",state="firing"}', "1x30")],
    ],
    "LlmkgTelemetryHookErrors": [
        [('llmkg_telemetry_hook_errors_total{hook="on_event",error_type="KeyError"}', "3x30")],
    ],
}
"""For each alert, series on which it never fires."""

SCENARIOS = [
    *((name, series, True) for name, series in FIRING.items()),
    *((name, series, False) for name, quiet in QUIET.items() for series in quiet),
]


def test_every_default_rule_has_a_scenario_of_each_kind() -> None:
    assert {rule.name for rule in RULES} == set(FIRING) == set(QUIET)


def run_here(series: list[tuple[str, str]], recorder: Recorder) -> SampleStore:
    """Feed the series step by step, evaluate all default rules at each, and return the store."""
    store = SampleStore(3600, 1000)
    evaluator = AlertEvaluator(load_default_rules().groups, store, recorder)
    points = [(text, values_of(values)) for text, values in series]
    for step in range(STEPS + 1):
        at = float(step * INTERVAL)
        collection: list[tuple[str, dict[str, str], float]] = []
        for text, values in points:
            labels = dict(labels_of(text))
            value = values[step]
            assert isinstance(value, float)
            collection.append((labels.pop("__name__"), labels, value))
        store.append(at, collection)
        evaluator.evaluate(at)
        assert evaluator.errors() == ()
    return store


@pytest.mark.parametrize(("name", "series", "fires"), SCENARIOS)
def test_a_default_rule_fires_and_stays_quiet(
    recorder: Recorder, name: str, series: list[tuple[str, str]], fires: bool
) -> None:
    run_here(series, recorder)
    fired = {event.alert for event in recorder.events if event.firing}
    assert fired == ({name} if fires else set())


@pytest.mark.parametrize(("name", "series", "fires"), SCENARIOS)
def test_a_default_rule_is_as_here_in_promtool(
    promtool: Promtool, recorder: Recorder, name: str, series: list[tuple[str, str]], fires: bool
) -> None:
    query, last = Expression("ALERTS"), STEPS * INTERVAL
    [theirs] = promtool.vectors(series, INTERVAL, [(query.text, last)], FILE.read_text())
    assert agree(theirs, vector_of(query.evaluate(run_here(series, recorder), last)))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_what_a_default_rule_tells_is_complete(rule: AlertRule) -> None:
    annotations = {name: template.text for name, template in rule.annotations}
    assert set(annotations) == {"summary", "description", "runbook_url"}
    assert rule.severity in ("critical", "warning")
    file, _, anchor = annotations["runbook_url"].partition("#")
    headings = re.findall(r"^## (.+)$", (ROOT / file).read_text(), re.MULTILINE)
    assert anchor in {heading.lower().replace(" ", "-") for heading in headings}
    # Every label that a text names is on the samples that the expression yields.
    labels = {pair[0] for pair in _alert_labels(rule.name)}
    named = set(re.findall(r"\$labels\.(\w+)", " ".join(annotations.values())))
    assert named <= labels


def _alert_labels(name: str) -> tuple[tuple[str, str], ...]:
    [rule] = [rule for rule in RULES if rule.name == name]
    vectors = (
        rule.expression.evaluate(store_of(FIRING[name], INTERVAL), float(step * INTERVAL))
        for step in range(STEPS)
    )
    labels: tuple[tuple[str, str], ...] = next(vector[0].labels for vector in vectors if vector)
    return labels


def test_promtool_accepts_the_default_rules(promtool: Promtool) -> None:
    command = [promtool.path, "check", "rules", str(FILE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(RULES)} rules found" in done.stdout + done.stderr


@pytest.fixture(scope="module")
def exposed() -> Iterator[dict[str, dict[str, tuple[str, ...] | None]]]:
    """Every metric name that the real Prometheus exporter makes of semconv, with labels and their values."""
    registry = CollectorRegistry()
    reader = PrometheusMetricReader(registry=registry)
    provider = MeterProvider([reader], shutdown_on_exit=False)
    meter = provider.get_meter("test")
    kept: list[object] = []
    for instrument in INSTRUMENTS:
        attributes = dict.fromkeys(instrument.attributes, "x")

        def observe(_: CallbackOptions, attributes: dict[str, str] = attributes) -> list[Observation]:
            return [Observation(1, attributes)]

        match instrument.kind:
            case "Histogram":
                meter.create_histogram(instrument.name, instrument.unit).record(1, attributes)
            case "Counter":
                meter.create_counter(instrument.name, instrument.unit).add(1, attributes)
            case "ObservableCounter":
                kept.append(meter.create_observable_counter(instrument.name, [observe], instrument.unit))
            case "ObservableUpDownCounter":
                kept.append(
                    meter.create_observable_up_down_counter(instrument.name, [observe], instrument.unit)
                )
    values = {
        name.replace(".", "_"): allowed
        for instrument in INSTRUMENTS
        for name, allowed in instrument.attributes.items()
    }
    found: dict[str, dict[str, tuple[str, ...] | None]] = {}
    prefixes = {instrument.name.replace(".", "_"): instrument for instrument in INSTRUMENTS}
    for family in registry.collect():
        for sample in family.samples:
            own = [prefix for prefix in prefixes if sample.name.startswith(prefix)]
            if own:
                allowed = prefixes[max(own, key=len)].attributes
                found[sample.name] = {label: allowed.get(label, values.get(label)) for label in sample.labels}
    yield found
    provider.shutdown()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_every_metric_label_and_value_in_a_default_rule_exists(exposed: Any, rule: AlertRule) -> None:
    selectors: list[Any] = []
    grouped: set[str] = set()

    def visit(node: Any) -> bool:
        kind = type(node).__name__
        if kind in ("VectorSelector", "MatrixSelector"):
            selectors.append(node if kind == "VectorSelector" else node.vector_selector)
        if kind == "AggregateExpr":
            grouped.update(node.modifier.labels)
        return True

    promql_parser.walk(promql_parser.parse(rule.expression.text), visit)
    assert selectors
    for selector in selectors:
        assert selector.name in exposed
        labels = exposed[selector.name]
        for matcher in selector.matchers.matchers:
            assert matcher.name in labels, (selector.name, matcher.name)
            if labels[matcher.name] is not None:
                assert set(matcher.value.split("|")) <= set(labels[matcher.name])
    assert grouped <= {label for selector in selectors for label in exposed[selector.name]}
