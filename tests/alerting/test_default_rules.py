"""The rules that ship: valid for Prometheus, on metrics that exist, firing and quiet when they should."""

from __future__ import annotations

import contextlib
import re
import subprocess
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import promql_parser
import pytest
import yaml
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry
from support.prometheus import Promtool, Vector, vector_of

from llmkg_otel.alerting.promql import Expression
from llmkg_otel.alerting.rules import AlertRule, RecordingRule, load_default_rules
from llmkg_otel.alerting.unit_test_file import load_unit_tests
from llmkg_otel.alerting.unit_tests import run_unit_tests
from llmkg_otel.errors import LlmkgOtelError
from llmkg_otel.limiting.resources import ResourceUsage
from llmkg_otel.telemetry.semconv import INSTRUMENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llmkg_otel.system import ProductionSystem
    from llmkg_otel.testing import CapturedTelemetry

ROOT = Path(__file__).parents[2]
FILE = ROOT / "llmkg_otel" / "alerting" / "default_rules.yaml"
GROUPS = load_default_rules().groups
RULES = [rule for group in GROUPS for rule in group.rules if isinstance(rule, AlertRule)]
TEST_FILES = sorted((ROOT / "tests" / "alerting" / "rules").glob("llmkg_*.yaml"))
"""Unit tests in promtool's format, a file for each alert."""
INTERVAL = 59
TESTS = [test for file in TEST_FILES for test in yaml.safe_load(file.read_text())["tests"]]


def test_every_default_rule_has_unit_tests_of_both_kinds() -> None:
    kinds = {(test["alert_rule_test"][0]["alertname"], test["name"].split()[0]) for test in TESTS}
    assert kinds == {(rule.name, kind) for rule in RULES for kind in ("fires", "is")}
    for test in TESTS:
        [asked] = test["alert_rule_test"]
        assert bool(asked["exp_alerts"]) is test["name"].startswith("fires ")


@pytest.mark.parametrize("file", TEST_FILES, ids=lambda file: file.stem)
def test_a_default_rule_fires_and_is_quiet_as_its_unit_tests_say(file: Path) -> None:
    assert run_unit_tests(load_unit_tests(file)) == []


@pytest.mark.parametrize("file", TEST_FILES, ids=lambda file: file.stem)
def test_promtool_agrees_with_the_unit_tests_of_a_default_rule(promtool: Promtool, file: Path) -> None:
    command = [promtool.path, "test", "rules", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "SUCCESS" in done.stdout + done.stderr) == (0, True), done.stdout + done.stderr


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_what_a_default_rule_tells_is_complete(rule: AlertRule) -> None:
    annotations = {name: template.text for name, template in rule.annotations}
    assert set(annotations) == {"summary", "description", "runbook_url"}
    assert rule.severity in ("critical", "warning")
    file, _, anchor = annotations["runbook_url"].partition("#")
    headings = re.findall(r"^## (.+)$", (ROOT / file).read_text(), re.MULTILINE)
    assert anchor in {heading.lower().replace(" ", "-") for heading in headings}
    # Every label that a text names is on the alert.
    named = set(re.findall(r"\$labels\.(\w+)", " ".join(annotations.values())))
    alerts = [
        a
        for t in TESTS
        for case in t["alert_rule_test"]
        for a in case["exp_alerts"]
        if case["alertname"] == rule.name
    ]
    assert alerts
    assert all(named <= set(alert["exp_labels"]) for alert in alerts)


def test_promtool_accepts_the_default_rules(promtool: Promtool) -> None:
    command = [promtool.path, "check", "rules", str(FILE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{sum(len(group.rules) for group in GROUPS)} rules found" in done.stdout + done.stderr


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


@pytest.mark.parametrize(
    "rule", [rule for group in GROUPS for rule in group.rules], ids=lambda rule: rule.name
)
def test_every_metric_label_and_value_in_a_default_rule_exists(
    exposed: Any, rule: AlertRule | RecordingRule
) -> None:
    selectors: list[Any] = []
    grouped: set[str] = set()

    def visit(node: Any) -> bool:
        kind = type(node).__name__
        if kind in ("VectorSelector", "MatrixSelector"):
            selectors.append(node if kind == "VectorSelector" else node.vector_selector)
        if kind == "AggregateExpr":
            grouped.update(() if node.modifier is None else node.modifier.labels)
        return True

    promql_parser.walk(promql_parser.parse(rule.expression.text), visit)
    assert selectors
    for selector in selectors:
        if selector.name is None:  # whatever the SDK marks: see the test of a real overflow
            assert [each.name for each in selector.matchers.matchers] == ["otel_metric_overflow"]
            continue
        assert selector.name in exposed
        labels = exposed[selector.name]
        for matcher in selector.matchers.matchers:
            assert matcher.name in labels, (selector.name, matcher.name)
            if labels[matcher.name] is not None:
                assert set(matcher.value.split("|")) <= set(labels[matcher.name])
    made = set(re.findall(r'label_replace\(.*?, "(\w+)", "', rule.expression.text, re.DOTALL))
    labels = {label for selector in selectors for label in exposed.get(selector.name, ())}
    assert grouped <= labels | made


def test_an_attribute_with_more_values_than_the_sdk_keeps_apart_fires_an_alert(
    telemetry: CapturedTelemetry, make_system: Callable[..., ProductionSystem]
) -> None:
    system = make_system(alerting={"default_rules": True})
    counter = telemetry.meter_provider.get_meter("application").create_counter("tokens")
    for number in range(2001):
        counter.add(1, {"user": str(number)})
    system.alerts._loop.run_once()
    active = system.alerts.describe()["active"]
    assert [(each["alert"], each["labels"]["metric"]) for each in active] == [
        ("LlmkgCardinalityOverflow", "tokens")
    ]


async def test_the_names_of_the_first_description_have_values_in_a_real_run(
    make_system: Callable[..., ProductionSystem],
) -> None:
    system = make_system(
        alerting={"default_rules": True},
        rate_limiting={"requests_per_second": 1e-3, "burst_capacity": 5},
        retry={"max_retries": 0},
    )

    async def call(operation: Callable[[], object]) -> None:
        with contextlib.suppress(OSError, LlmkgOtelError):
            await system.execute_protected_operation("op", operation)

    def fails() -> None:
        raise OSError

    await system.health.run_once()
    system.resources.observe(ResourceUsage(memory=1_000_000_000))
    for at in (1000.0, 1060.0):
        system.alerts._loop._clock = partial(float, at)
        for operation in (fails, lambda: None, lambda: None):
            await call(operation)
        system.alerts._loop.run_once()

    def values(name: str) -> Vector:
        return vector_of(Expression(name).evaluate(system.alerts._evaluator._store, 1060.0))

    [(calls, rate)] = values("error_recovery:success_rate").items()
    denied = {dict(labels)["policy"]: n for labels, n in values("rate_limiting:denied_requests").items()}
    [(_, percent)] = values("system_metrics:memory_usage_percent").items()
    statuses = values("health:components:status")
    assert dict(calls)["llmkg_operation_name"] == "op"
    assert rate == pytest.approx(0.5)  # a refusal was not there before, so it is no increase yet
    assert denied == {"global": 1.0, "operation": 0.0, "user": 0.0}
    assert percent == 50.0
    shown = {dict(labels)["component"]: (dict(labels)["state"], value) for labels, value in statuses.items()}
    assert shown["engine"] == ("pass", 1.0)
    assert set(shown) == {component.name for component in system.health.components()}
    await system.shutdown()
