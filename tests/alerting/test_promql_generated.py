"""Generated series and expressions of all that is supported: the vectors of promtool 3.5, or nearly of 2.42.

Many more: `python tests/alerting/test_promql_generated.py FIRST_SEED SEEDS` prints every difference.
"""

import re

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.prometheus import Difference, Promtool, answer, differences, print_differences, store_of
from support.promql_generator import Generator

EXPRESSIONS = 250
NOT_IN_2 = re.compile(r"histogram_fraction|atan2|a-b|(^|[ (])-?5m([ ,)]|$)")
CHANGED_SINCE_2 = 0.02
"""Share of the expressions whose answer is another one in 2.42: parameters of topk, NaN, zero crossings."""


def compare(promtool: Promtool, seed: int) -> tuple[list[Difference], int]:
    """Return where a seed's expressions have other answers here, and how many have a vector to compare."""
    generator = Generator(seed)
    interval = generator.random.choice((15, 30, 59, 60, 61))
    times: tuple[int, ...] = (0, 59, 600, 601, 1003, 1239, 1888, interval * 10)
    if promtool.is_version_2:  # its ranges include their left edge: no sample and no step may be there
        interval, times = 59, (45, 601, 1007, 1237, 1891)
    series = generator.series()
    questions = [
        (generator.expression(generator.random.choice((1, 2, 2, 3, 3, 4))), generator.random.choice(times))
        for _ in range(EXPRESSIONS)
    ]
    if promtool.is_version_2:
        questions = [asked for asked in questions if not NOT_IN_2.search(asked[0])]
    store = store_of(series, interval)
    theirs = promtool.vectors(series, interval, questions)
    ours = [answer(text, store, at, interval) for text, at in questions]
    told = sum(bool(vector) and not isinstance(vector, str) for vector in theirs)
    return differences(questions, theirs, ours), told


@given(seed=st.integers(min_value=0, max_value=10**9))
@settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_generated_expressions_have_the_same_vectors_as_in_promtool(reference: Promtool, seed: int) -> None:
    differences, vectors = compare(reference, seed)
    assert len(differences) <= CHANGED_SINCE_2 * EXPRESSIONS * reference.is_version_2, differences
    assert vectors > EXPRESSIONS / 4  # the generator must not degenerate into errors and empty vectors


if __name__ == "__main__":
    print_differences(compare)
