"""A sliding window holds what a plain list of all attempts says it should."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkg_otel.config import CircuitBreakerConfig
from llmkg_otel.recovery.window import CountWindow, TimeWindow, make_window

PART = 0.5
"""Seconds: binary fractions, so that the model's arithmetic is exact."""
ATTEMPTS = st.lists(
    st.tuples(st.integers(0, 12).map(lambda eighths: eighths / 8), st.booleans(), st.booleans()), max_size=80
)


def sums(attempts: list[tuple[bool, bool]]) -> tuple[int, int, int]:
    return len(attempts), sum(failed for failed, _ in attempts), sum(slow for _, slow in attempts)


@given(st.integers(1, 20), ATTEMPTS)
def test_a_window_of_calls_holds_the_latest_of_them(
    calls: int, attempts: list[tuple[float, bool, bool]]
) -> None:
    window = CountWindow(calls)
    seen: list[tuple[bool, bool]] = []
    for wait, failed, slow in attempts:
        window.record(wait, failed=failed, slow=slow)
        seen.append((failed, slow))
        assert (window.total, window.failed, window.slow) == sums(seen[-calls:])


@given(st.integers(0, 10**9), ATTEMPTS, st.booleans())
def test_a_window_of_time_holds_the_parts_that_are_not_too_old_whether_or_not_anything_comes(
    start: int, attempts: list[tuple[float, bool, bool]], clears: bool
) -> None:
    window, now = TimeWindow(10 * PART), float(start)
    seen: list[tuple[float, bool, bool]] = []

    def expected() -> tuple[int, int, int]:
        oldest = now // PART - 9
        return sums([(failed, slow) for at, failed, slow in seen if at // PART >= oldest])

    for number, (wait, failed, slow) in enumerate(attempts):
        now += wait * 2
        window.forget(now)
        assert (window.total, window.failed, window.slow) == expected()
        if clears and number == len(attempts) // 2:
            window.clear()
            seen.clear()
        window.record(now, failed=failed, slow=slow)
        seen.append((now, failed, slow))
        assert (window.total, window.failed, window.slow) == expected()


@given(st.floats(1e-3, 86_400), st.floats(0, 1e6), st.lists(st.floats(0, 2), min_size=1, max_size=50))
def test_a_window_of_time_covers_from_nine_tenths_of_it_to_all_of_it(
    seconds: float, now: float, waits: list[float]
) -> None:
    window, times = TimeWindow(seconds), []
    for wait in waits:
        now += wait * seconds
        window.record(now, failed=True, slow=False)
        times.append(now)
        certainly = [at for at in times if now - at < seconds * 0.8999]
        at_most = [at for at in times if now - at < seconds * 1.0001 + 1e-6]
        assert len(certainly) <= window.failed == window.total <= len(at_most)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, type(None)),
        ({"failure_rate_threshold": 0.5}, CountWindow),
        ({"slow_call_rate_threshold": 0.5, "sliding_window_seconds": 60}, TimeWindow),
    ],
)
def test_a_window_is_kept_only_for_rates_that_somebody_asked_for(
    options: dict[str, float], kind: type[object]
) -> None:
    assert type(make_window(CircuitBreakerConfig.model_validate(options))) is kind
