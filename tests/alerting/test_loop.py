import logging
from itertools import chain, repeat
from threading import Event
from typing import TYPE_CHECKING, Any

import pytest
from support.servers import wait_until

from llmkg_otel.alerting.loop import AlertLoop
from llmkg_otel.alerting.samples import SampleStore

if TYPE_CHECKING:
    from collections.abc import Iterator

Points = list[tuple[str, dict[str, str], float]]


class Evaluated:
    """Stands in for the evaluator: notes when it was asked."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.twice = Event()

    def evaluate(self, now: float) -> None:
        self.times.append(now)
        if len(self.times) >= 2:
            self.twice.set()


def make(collect: Any, interval: float = 30.0, **options: Any) -> tuple[AlertLoop, Any, SampleStore]:
    evaluator: Any = Evaluated()
    store = SampleStore(3600, 100)
    return AlertLoop(evaluator, store, collect, interval, **options), evaluator, store


def test_a_round_collects_keeps_and_evaluates_at_one_instant() -> None:
    took: list[float] = []
    loop, evaluator, store = make(lambda: [("m", {}, 1.0)], clock=lambda: 42.0, on_evaluated=took.append)
    loop.run_once()
    assert evaluator.times == [42.0]
    assert store.instant("m", (), 42.0) == [((("__name__", "m"),), 1.0)]
    assert len(took) == 1
    assert took[0] >= 0


def test_a_collection_that_fails_makes_the_series_stale_and_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    results: list[Points | Exception] = [[("m", {}, 1.0)], OSError("no"), OSError("no"), [("m", {}, 2.0)]]
    now = iter((0.0, 30.0, 60.0, 90.0))

    def collect() -> Points:
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    loop, evaluator, store = make(collect, clock=lambda: next(now))
    loop.run_once()
    with caplog.at_level(logging.WARNING):
        loop.run_once()
        loop.run_once()
    assert repr(loop.collect_error) == "OSError('no')"
    assert store.instant("m", (), 60.0) == []
    assert len(caplog.records) == 1
    loop.run_once()
    assert loop.collect_error is None
    assert len(store.instant("m", (), 90.0)) == 1
    assert evaluator.times == [0.0, 30.0, 60.0, 90.0]


def test_the_thread_goes_on_after_an_error_and_stops_promptly(caplog: pytest.LogCaptureFixture) -> None:
    times: Iterator[float | Exception] = chain([1.0, RuntimeError("once")], repeat(2.0))

    def clock() -> float:
        time = next(times)
        if isinstance(time, Exception):
            raise time
        return time

    loop, evaluator, _ = make(list, interval=0.001, clock=clock)
    with caplog.at_level(logging.ERROR):
        loop.start()
        assert evaluator.twice.wait(10)
        assert loop.stop(10)
    assert evaluator.times[:2] == [1.0, 2.0]


def test_evaluations_are_whole_intervals_apart_unless_the_clock_is_set() -> None:
    now = iter((1000.0, 1030.4, 1059.7, 1094.0, 5000.0))
    loop, _, _ = make(list, clock=lambda: next(now))
    instants = [loop._instant(None)]
    for _ in range(4):
        instants.append(loop._instant(instants[-1] + 30.0))
    assert instants == [1000.0, 1030.0, 1060.0, 1094.0, 5000.0]


def test_stop_does_not_wait_for_the_interval_nor_for_a_collection_that_hangs() -> None:
    waiting, collected = Event(), Event()

    def evaluated(_: float) -> None:
        collected.set()

    loop, _, _ = make(list, interval=3600.0, on_evaluated=evaluated)
    loop.start()
    assert collected.wait(10)
    assert loop.stop(10)

    entered = Event()

    def hang() -> Points:
        entered.set()
        waiting.wait(30)
        return []

    hung, _, _ = make(hang)
    hung.start()
    assert entered.wait(10)
    assert not hung.stop(0.01)
    waiting.set()
    assert hung.stop(10)


def test_a_collection_that_hangs_is_told_after_three_intervals_and_until_it_is_over() -> None:
    release, entered, now = Event(), Event(), [1000.0]

    def hang() -> Points:
        entered.set()
        release.wait(30)
        return []

    evaluated = Event()
    loop, _, _ = make(hang, monotonic=lambda: now[0], on_evaluated=lambda _: evaluated.set())
    loop.start()
    assert entered.wait(10)
    for now[0], stalled in ((1090.0, None), (1091.0, 91.0), (4600.0, 3600.0)):
        assert loop.stalled_seconds == stalled
    release.set()
    assert evaluated.wait(10)
    wait_until(lambda: loop.stalled_seconds is None, "an evaluation that has ended")
    now[0] += 91
    assert loop.stalled_seconds == 91.0
    assert loop.stop(10)
    assert loop.stalled_seconds is None


def test_what_ended_an_evaluation_is_kept_until_one_comes_to_its_end() -> None:
    failing = Event()
    failing.set()

    def evaluated(_: float) -> None:
        if failing.is_set():
            raise RuntimeError("no room")

    loop, _, _ = make(list, interval=0.001, on_evaluated=evaluated)
    loop.start()
    wait_until(lambda: repr(loop.error) == "RuntimeError('no room')", "an error")
    failing.clear()
    wait_until(lambda: loop.error is None, "an evaluation without an error")
    assert loop.stop(10)


def test_a_loop_that_was_never_started_can_be_stopped() -> None:
    loop, evaluator, _ = make(list)
    assert loop.stop()
    assert evaluator.times == []
