"""What is not evaluated exactly is refused when it is compiled, naming the part."""

import math
import subprocess
import sys
import threading

import pytest

from llmkg_otel.alerting.promql import EvaluationError, Expression
from llmkg_otel.alerting.samples import SampleStore
from llmkg_otel.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("limitk(2, a)", "not supported: experimental aggregation limitk, in limitk(2, a"),
        ("limit_ratio(0.5, a)", "not supported: experimental aggregation limit_ratio"),
        (
            "1 + sum(mad_over_time(a[5m]))",
            "not supported: experimental function mad_over_time, in mad_over_time(a",
        ),
        ("ts_of_max_over_time(a[5m])", "not supported: experimental function ts_of_max_over_time"),
        ("double_exponential_smoothing(a[5m], 0.5, 0.5)", "not supported: experimental function double_exp"),
        ("sort_by_label(a, 'b')", "not supported: experimental function sort_by_label"),
        ("info(a)", "not supported: experimental function info"),
        ("histogram_count(a)", "not supported: function histogram_count of native histograms"),
        ("a + fill(0) b", "not supported: fill"),
        ("'text'", "a rule needs a number or an instant vector"),
        ("a[1h:5m]", "a rule needs a number or an instant vector"),
        ("max_over_time(a[300d:1ms])", "the subquery has more than 2,000,000 steps: a"),
        ("max_over_time(a[5m:0.0001])", "the subquery has more than 2,000,000 steps"),
        ("rate(a[300y])", "a duration is out of range, in a"),
        ("a offset -300y", "a duration is out of range"),
        ("a @ 1e30", "the time after @ is out of bounds, in a"),
        ("a @ 253402300800", "the time after @ is out of bounds"),
        ("a @ -10", "not supported: a time before 1970 after @, in a @ -10"),
        ("max_over_time(a[1h:5m] @ - 10)", "not supported: a time before 1970 after @"),
        ("label_replace(a, 'b', '$1', 'c', '(')", "regular expression '('"),
        ("label_replace(a, '', '$1', 'c', '.*')", "a label's name cannot be empty"),
        ("label_join(a, 'b', ',', '')", "a label's name cannot be empty"),
        ("a > 9e999", "a number is out of range: 9e999"),
        ('a{b="\\xff"}', "not supported: a text that is not UTF-8"),
        ("count_values('', a)", "a label's name cannot be empty"),
        ('{a="x" or b="y"}', "matchers joined with or are not PromQL"),
        ("a[5m]", "a rule needs a number or an instant vector"),
        ("nope(a)", "unknown function"),
        ("sum(a", "unclosed"),
        ('a{b=~"("}', "illegal regex"),
        ('a{b=~"a++"}', "regular expression"),
        ("rate(a)", "expected type matrix"),
        ("1 > 2", "BOOL"),
        ("", "not valid PromQL"),
    ],
)
def test_a_refusal_names_what_is_wrong(text: str, reason: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Expression(text)
    assert reason in str(caught.value)


def test_a_panic_of_the_parser_is_a_refusal_and_no_other_base_exception_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class PanicException(BaseException):
        pass

    raised: BaseException = PanicException("attempt to subtract with overflow")

    def parse(_: str) -> object:
        raise raised

    monkeypatch.setattr("promql_parser.parse", parse)
    with pytest.raises(ConfigurationError, match="the parser cannot read up: attempt to subtract"):
        Expression("up")
    raised = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        Expression("up")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(" * 151 + "a" + ")" * 151, "nested deeper than 150"),
        ("-" * 100_000 + "a", "characters"),
        ("-" * 60_000 + "a", "more than 500 operators"),
        ("a" + "+a" * 1000, "more than 500 operators"),
        ("a" + " or a" * 1000, "more than 500 operators"),
        ("a" + "==a" * 1000, "more than 500 operators"),
        ("a" + "^a" * 400, "more than 200 levels"),
    ],
)
def test_an_expression_that_would_end_the_process_is_measured_before_it_is_parsed(
    text: str, reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        Expression(text)


def test_brackets_and_operators_inside_texts_do_not_count() -> None:
    Expression("job:1e999:rate5m > 1")
    text = "sum(a{b='" + "((([[[" * 200 + "', c=\"" + "+-*/" * 200 + '\\"", d!=`}}}`}) # ' + "(" * 300
    Expression(text)


def test_a_raw_text_may_have_backslashes() -> None:
    store = SampleStore(3600, 10)
    store.append(0.0, [("a", {"b": "1"}, 1.0), ("a", {"b": "x"}, 2.0), ("a", {"b": '\\"é'}, 3.0)])
    assert [value for _, value in Expression(r"a{b=~`\d`} # `").evaluate(store, 0.0)] == [1.0]
    assert [value for _, value in Expression(r"""a{b=`\"é`}""").evaluate(store, 0.0)] == [3.0]


def test_the_deepest_accepted_expression_is_evaluated_on_a_small_thread() -> None:
    text = "(" * 140 + "1" + "+1" * 50 + ")" * 140
    found = []
    source = SampleStore(60, 1)
    thread = threading.Thread(target=lambda: found.append(Expression(text).evaluate(source, 0.0)))
    thread.start()
    thread.join()
    assert found == [[((), 51.0)]]


def test_an_expression_says_how_far_it_looks_back() -> None:
    looks = {
        "1": 0,
        "time() > bool 3": 0,
        "a": 300,
        "a offset 1h": 3900,
        "a offset -1h": 0,
        "rate(a[10m])": 600,
        "rate(a[10m] offset 1d) / b": 87000,
        "a and on () quantile_over_time(scalar(c offset 2h), b[1h])": 7500,
        "topk(scalar(a offset 1h), b)": 3900,
        "vector(scalar(a))": 300,
        "clamp_min(a, scalar(b offset 10m))": 900,
        "max_over_time(rate(a[5m])[1h:])": 3900,
        "max_over_time((a offset 10m)[1h:1m] offset 1h)": 8100,
        "a @ start()": 300,
        "rate(a[10m] @ end() offset 10m)": 1200,
        "a @ 10 + b": math.inf,
    }
    assert {text: Expression(text).lookback_seconds for text in looks} == looks


def test_a_clash_of_label_sets_is_an_evaluation_error() -> None:
    store = SampleStore(3600, 10)
    store.append(0.0, [("a", {"x": "1"}, 1.0), ("b", {"x": "1"}, 2.0), ("a", {"x": "2"}, 3.0)])
    for text, reason in (
        ('abs({__name__=~"a|b"})', "same labelset"),
        ("a + on () b", "many-to-one matching must be explicit"),
        ("b + on () a", "many-to-many matching not allowed"),
        ("topk(1e30, a)", "overflows"),
    ):
        with pytest.raises(EvaluationError, match=reason):
            Expression(text).evaluate(store, 0.0)


def test_importing_the_alerting_rooms_does_not_load_the_parser() -> None:
    code = (
        "import sys; import llmkg_otel.alerting.evaluator, llmkg_otel.alerting.loop; "
        "sys.exit('promql_parser' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
