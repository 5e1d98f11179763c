"""Generated rules on generated series: pending and firing at the same instants as in promtool.

Many more: `python tests/alerting/test_alerts_generated.py FIRST_SEED SEEDS` prints every difference.
"""

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.prometheus import (
    Difference,
    Promtool,
    Recorder,
    differences,
    labels_of,
    print_differences,
    values_of,
    vector_of,
)
from support.promql_generator import Generator

from llmkg_otel.alerting.evaluator import AlertEvaluator
from llmkg_otel.alerting.promql import Expression
from llmkg_otel.alerting.rules import load_rules
from llmkg_otel.alerting.samples import SampleStore

STEPS = 40
QUERIES = ("ALERTS", "ALERTS_FOR_STATE", '{__name__=~"recorded.*"}')
CONDITIONS = (
    *("g > 5", "g < 0", "t == t", "g > on (job) group_left t", "rate(c_total[2m]) > 0.5", "absent(i)"),
    *("changes(g[3m]) > 2", "max_over_time(g[2m]) > 10", "recorded_0 > 2", "count by (job) (ALERTS) > 1"),
    *("sum by (job) (recorded_1) > 0", "max_over_time(count(g > 3)[3m:]) > 2", "resets(c_total[5m]) > 0"),
    *("g > 0 unless on (job) t > 5", "absent_over_time(g{instance='1'}[2m])", "vector(1) > bool 0"),
)


def rules(generator: Generator, interval: int) -> str:
    """Return a rule file of alerts, and of recorded metrics that alerts before and after them read."""
    listed: list[dict[str, object]] = []
    for number in range(8):
        alert: dict[str, object] = {"alert": f"A{number}", "expr": generator.one(*CONDITIONS)}
        for field in ("for", "keep_firing_for"):
            alert[field] = generator.one(
                "0s", "0s", "1m", "90s", "2m", "5m", f"{interval}s", f"{interval * 2}s"
            )
        if generator.random.random() < 0.3:
            alert["labels"] = {"level": generator.one("page", "{{ $value }}", "{{ $labels.job }}", "")}
        listed.append(alert)
    for number in range(2):
        recorded: dict[str, object] = {
            "record": f"recorded_{number}",
            "expr": generator.one("g * 2", "sum by (job) (t)", "rate(g[2m])"),
        }
        listed.insert(generator.random.randrange(len(listed)), recorded)
    groups = [{"name": "one", "rules": listed[:5]}, {"name": "two", "rules": listed[5:]}]
    return yaml.safe_dump({"groups": groups}, width=1000)


def compare(promtool: Promtool, seed: int) -> tuple[list[Difference], int]:
    """Return where the series that a seed's rules write differ, and at how many instants there are alerts."""
    generator = Generator(seed)
    interval = 59 if promtool.is_version_2 else generator.random.choice((15, 30, 59, 60))
    series, text = generator.series(), rules(generator, interval)
    questions = [(query, step * interval) for step in range(STEPS) for query in QUERIES]
    theirs = promtool.vectors(series, interval, questions, text)

    store = SampleStore(1e6, 1000)
    evaluator = AlertEvaluator(
        load_rules(promtool.directory / "rules.yaml").groups, store, Recorder(), interval_seconds=interval
    )
    ours = []
    points = [(name, values_of(values)) for name, values in series]
    for step in range(STEPS):
        at = float(step * interval)
        for name, values in points:
            if step < len(values) and (value := values[step]) is not None:
                named = dict(labels_of(name))
                sample = [(named.pop("__name__"), named, value)] if isinstance(value, float) else []
                store.append(at, sample, source=name)
        evaluator.evaluate(at)
        assert not evaluator.errors()
        ours += [vector_of(query.evaluate(store, at)) for query in map(Expression, QUERIES)]
    return differences(questions, theirs, ours), sum(map(bool, theirs[:: len(QUERIES)]))


@given(seed=st.integers(min_value=0, max_value=10**9))
@settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_generated_rules_are_pending_and_firing_when_they_are_in_promtool(
    reference: Promtool, seed: int
) -> None:
    differences, instants = compare(reference, seed)
    assert differences == []
    assert instants > STEPS / 4


if __name__ == "__main__":
    print_differences(compare)
