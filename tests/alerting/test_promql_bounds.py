"""What an expression may cost is bounded, and what is refused says why."""

import threading
import time

import pytest
from support.prometheus import store_of

from llmkg_otel.alerting.promql import EvaluationError, Expression, SharedResults, evaluation
from llmkg_otel.alerting.promql.relabel import _LONGEST_VALUE
from llmkg_otel.alerting.samples import SampleStore
from llmkg_otel.errors import ConfigurationError


def refused(text: str, store: SampleStore, at: float = 600.0, step: float = 60.0) -> str:
    with pytest.raises(EvaluationError) as caught:
        Expression(text).evaluate(store, at, step_seconds=step)
    return str(caught.value)


def test_a_subquery_of_a_billion_steps_is_refused_before_its_first_step() -> None:
    started = time.perf_counter()
    for text in ("max_over_time(a[280y:])", "max_over_time(max_over_time(a[1d:])[1d:])"):
        assert "more than 2,000,000 samples and steps" in refused(text, SampleStore(60, 1), step=0.001)
    assert time.perf_counter() - started < 5


def test_the_deepest_subquery_that_is_accepted_fits_on_the_stack() -> None:
    text = "max_over_time(" * 98 + "a[2m:1m]" + ")[2m:1m]" * 97 + ")"
    found = []
    store = store_of([("a", "1x10")], 60)
    thread = threading.Thread(target=lambda: found.append(Expression(text).evaluate(store, 600.0)))
    thread.start()
    thread.join()
    assert found == [[((), 1.0)]]
    with pytest.raises(ConfigurationError, match="more than 200 levels"):
        Expression(f"max_over_time(max_over_time(({text})[2m:1m])[2m:1m])")


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "timestamp(a)",
        "count_over_time(a[1h])",
        "a + a",
        "max_over_time(a[10m:1m])",
        "vector(scalar(absent(none) + sum(max_over_time(a[1h:1m] offset 5m))))",
    ],
)
def test_samples_are_counted_wherever_they_are_read(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of([(f'a{{n="{n}"}}', "1x10") for n in range(10)], 60)
    monkeypatch.setattr(evaluation, "MAX_SAMPLES", 9)
    compiled = Expression(text)
    with pytest.raises(EvaluationError, match="more than 9 samples and steps"):
        compiled.evaluate(store, 600.0)
    monkeypatch.undo()
    assert compiled.evaluate(store, 600.0)


def test_a_window_of_too_many_points_is_not_even_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of([("a", "1x10")], 60)
    monkeypatch.setattr("llmkg_otel.alerting.samples.MAX_SAMPLES", 5)
    assert "a selector would read more than 5 samples" in refused("rate(a[10m])", store)


def test_labels_do_not_grow_beyond_their_bound() -> None:
    store = SampleStore(60, 1)
    text = "vector(1)"
    for _ in range(30):
        text = f"label_replace({text}, 'x', '${{1}}${{1}}yy', 'x', '(.*)')"
    assert f"at most {_LONGEST_VALUE:,}" in refused(text, store)
    text = f"label_join(label_replace(vector(1), 'x', '{'y' * 9000}', '', ''), 'x', '', 'x', 'x')"
    assert "label x would have 18,000 characters" in refused(text, store)


def test_a_series_may_not_become_another_one_in_another_step_of_a_subquery() -> None:
    store = store_of([('a{n="0"}', "1 stale"), ('b{n="0"}', "_x4 1x6")], 60)
    for form in ("last_over_time(rate({}[2m])[10m:1m])", "sum_over_time((-{})[10m:1m])"):
        assert "same labelset" in refused(
            form.format('{__name__=~"a|b"}'),
            store_of([('a{n="0"}', "1 2 3 stale"), ('b{n="0"}', "_x5 1 2 3 4 5")], 60),
        )
    # Functions that Prometheus evaluates step by step join them.
    [sample] = Expression('sum_over_time(abs({__name__=~"a|b"})[10m:1m])').evaluate(store, 600.0)
    assert (sample.labels, sample.value) == ((("n", "0"),), 7.0)


def test_expressions_that_share_results_have_the_answers_they_have_alone() -> None:
    store = store_of([(f'a{{n="{n}"}}', f"{n}+{n}x10") for n in range(10)], 60)
    texts = [
        *('{n="1"}', 'None{n="1"}'),
        *(
            "sum(rate(a[5m]))",
            "sum(rate(a[5m])) * 2",
            "sum(rate(a[5m] offset 1m))",
            "sum by (n) (rate(a[5m]))",
        ),
        *(
            "sum without (n) (rate(a[5m]))",
            "avg(rate(a[5m]))",
            "sum(rate(a{n='1'}[5m]))",
            "sum(rate(a{n!='1'}[5m]))",
        ),
        *(
            "a",
            "a @ 60",
            "a offset 1m",
            "timestamp(a)",
            "sum(a)",
            "topk(1, a)",
            "topk(2, a)",
            "quantile(0.5, a)",
        ),
        *("quantile(0.6, a)", "max_over_time(a[5m:1m])", "max_over_time(a[5m:])", "max_over_time(a[5m:2m])"),
        *("count_values('n', a)", "count_values('m', a)", "label_replace(a, 'x', '$1', 'n', '(.)')"),
        *("label_replace(a, 'x', '$1$1', 'n', '(.)')", "round(a, 2)", "round(a, 5)", "clamp_min(a, 1)"),
        *(
            "sum(a == bool 1)",
            "sum(a == 1)",
            "sum(a + on (n) a)",
            "sum(a + ignoring (n) group_left () (a > 5))",
        ),
    ]
    alone = [_answer(text, store) for text in texts]
    for shared in (SharedResults(), SharedResults(frozenset({"other"}))):
        for _ in range(2):
            assert [_answer(text, store, shared) for text in texts] == alone
        assert len(shared.vectors) > 10


def _answer(text: str, store: SampleStore, shared: SharedResults | None = None) -> object:
    try:
        return Expression(text).evaluate(store, 600.0, shared=shared)
    except EvaluationError as error:
        return str(error)
