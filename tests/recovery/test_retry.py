from __future__ import annotations

import asyncio
from collections import Counter
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkg_otel.call import Call
from llmkg_otel.config import RetryConfig
from llmkg_otel.errors import CircuitOpenError, InvalidInputError, OperationTimeoutError
from llmkg_otel.events import Event, RetryScheduled
from llmkg_otel.recovery.budget import RetryBudget
from llmkg_otel.recovery.retry import Retry
from llmkg_otel.testing import FakeClock

NO_JITTER = RetryConfig(jitter_factor=0)  # waits 0.1, 0.2, 0.4 seconds
DOWN = ConnectionError("down")
CIRCUIT_OPEN = CircuitOpenError("refused before the engine", operation="search", scope="circuit_breaker")
INNER_CIRCUIT_OPEN = CircuitOpenError("from within the engine", operation="model", scope="circuit_breaker")


class TimedCall(Call):
    """A call whose deadline is on the fake clock."""

    def __init__(self, clock: FakeClock, timeout: float) -> None:
        super().__init__("search", timeout)
        self.clock = clock
        self.deadline = clock() + timeout

    def remaining(self) -> float:
        return self.deadline - self.clock()


class World:
    """One retry policy on a fake clock, and attempts that end as a test says."""

    def __init__(
        self, *, sync: bool, config: RetryConfig = NO_JITTER, idempotent: bool = False, timeout: float = 60.0
    ) -> None:
        self.sync = sync
        self.clock = FakeClock()
        self.call = TimedCall(self.clock, timeout)
        self.budget = RetryBudget(lambda: 0)
        self.events: list[Event] = []
        self.usage_seen: list[int] = []
        self.retry = self.policy(config, idempotent=idempotent)

    def policy(self, config: RetryConfig, **options: Any) -> Retry:
        usual = {"sleep": self.clock.sleep, "sleep_sync": self.clock.sleep_sync, "random": lambda: 0.5}
        return Retry("search", config, budget=self.budget, observer=self, **usual | options)

    def on_event(self, event: Event) -> None:
        self.events.append(event)

    def resume(self, failure: Exception, *then: object, final: tuple[type[Exception], ...] = ()) -> Any:
        """Go on after a failed attempt with attempts that return, or raise, what is given."""
        ends = iter(then)
        self.call.attempts = 1

        def attempt() -> object:
            self.usage_seen.append(self.budget.usage)
            end = next(ends)
            self.call.attempts += end is not CIRCUIT_OPEN
            if isinstance(end, BaseException):
                raise end
            return end

        async def attempt_async() -> object:
            return attempt()

        if self.sync:
            return self.retry.resume_sync(self.call, failure, attempt, final)
        return asyncio.run(self.retry.resume(self.call, failure, attempt_async, final))

    def ended(self, outcome: str | None, *, attempts: int) -> bool:
        """Say whether exactly this outcome was counted, and nothing is left behind."""
        expected = Counter() if outcome is None else Counter({outcome: 1})
        return (self.retry.calls, len(self.usage_seen), self.budget.usage) == (expected, attempts, 0)


@pytest.fixture(params=["async", "sync"])
def sync(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "sync")


def raised(world: World, *ends: Exception, final: tuple[type[Exception], ...] = ()) -> BaseException:
    with pytest.raises(Exception) as caught:
        world.resume(*ends, final=final)
    return caught.value


def test_a_call_that_recovers_returns_what_its_last_attempt_did(sync: bool) -> None:
    world = World(sync=sync)
    assert world.resume(DOWN, ValueError("still"), "found") == "found"
    assert world.ended("recovered", attempts=2)
    assert world.clock.slept == [0.1, 0.2]
    assert world.events == [
        RetryScheduled("search", 1, 0.1, "ConnectionError"),
        RetryScheduled("search", 2, 0.2, "ValueError"),
    ]


@pytest.mark.parametrize(
    ("outcome", "config", "ends"),
    [
        ("exhausted", {"max_retries": 0}, [DOWN]),
        ("exhausted", {"max_retries": 2}, [ValueError("1"), ValueError("2"), ValueError("3")]),
        ("not_retryable", {}, [InvalidInputError("what?")]),
        ("not_retryable", {}, [TimeoutError()]),
        ("not_retryable", {}, [DOWN, INNER_CIRCUIT_OPEN]),
        ("deadline", {}, [DOWN, OperationTimeoutError("search", "deadline", 60)]),
        ("deadline", {"base_delay_ms": 60_000, "max_delay_ms": 60_000}, [DOWN]),
        ("deadline", {"base_delay_ms": 40_000, "max_delay_ms": 40_000}, [DOWN, ValueError("late")]),
    ],
)
def test_a_call_that_gives_up_raises_its_last_failure_itself_and_is_counted_once(
    outcome: str, config: dict[str, Any], ends: list[Exception], sync: bool
) -> None:
    world = World(sync=sync, config=RetryConfig(jitter_factor=0, **config))
    assert raised(world, *ends) is ends[-1]
    assert world.ended(outcome, attempts=len(ends) - 1)
    assert len(world.events) == len(ends) - 1


def test_a_circuit_that_opens_between_attempts_leaves_the_engines_last_failure_itself(sync: bool) -> None:
    world, last = World(sync=sync), ValueError("last")
    assert raised(world, DOWN, last, CIRCUIT_OPEN) is last
    assert world.ended("not_retryable", attempts=2)


def test_the_engines_last_failure_keeps_its_own_cause_and_context(sync: bool) -> None:
    last, cause, context = ValueError("last"), OSError("cause"), KeyError("context")
    last.__cause__, last.__context__ = cause, context
    assert raised(World(sync=sync), last, CIRCUIT_OPEN) is last
    assert (last.__cause__, last.__context__) == (cause, context)


def test_the_callers_mistakes_are_final_at_every_attempt(sync: bool) -> None:
    first, later = World(sync=sync), World(sync=sync)
    mistake = KeyError("no such id")
    assert raised(first, mistake, final=(LookupError,)) is mistake
    assert first.ended("not_retryable", attempts=0)
    assert raised(later, DOWN, mistake, final=(LookupError,)) is mistake
    assert later.ended("not_retryable", attempts=1)


def test_a_retry_starts_if_its_wait_ends_just_before_the_deadline(sync: bool) -> None:
    assert World(sync=sync, timeout=0.101).resume(DOWN, "in time") == "in time"


def test_a_spent_budget_makes_the_first_failure_final(sync: bool) -> None:
    world = World(sync=sync)
    while world.budget.try_acquire():
        pass
    assert raised(world, DOWN) is DOWN
    assert world.retry.calls == {"budget_exhausted": 1}
    assert world.usage_seen == []
    assert world.budget.usage == world.budget.limit


def test_a_call_takes_one_place_of_the_budget_for_all_its_retries(sync: bool) -> None:
    world = World(sync=sync)
    assert world.resume(DOWN, DOWN, DOWN, "found") == "found"
    assert world.usage_seen == [1, 1, 1]


def test_a_call_within_a_call_makes_one_attempt_so_that_retries_do_not_multiply(sync: bool) -> None:
    world = World(sync=sync)
    world.call.parent = Call("outer", 60.0)
    assert raised(world, DOWN) is DOWN
    assert world.ended("not_retryable", attempts=0)


@pytest.mark.parametrize(("asked", "waited"), [(7, 7.0), (0.05, 0.1), (-1, 0.1), (float("nan"), 0.1)])
def test_a_service_is_left_alone_for_as_long_as_it_asked_and_never_less_than_the_back_off(
    asked: float, waited: float, sync: bool
) -> None:
    world = World(sync=sync)
    busy = ConnectionError("busy")
    busy.retry_after = asked  # type: ignore[attr-defined] # as HTTP clients' errors have it
    assert world.resume(busy, "found") == "found"
    assert world.clock.slept == [waited]


def test_callers_that_were_asked_to_wait_alike_wait_no_less_and_do_not_come_back_together() -> None:
    busy = ConnectionError("busy")
    busy.retry_after = 60  # type: ignore[attr-defined]
    spread = RetryConfig(jitter_factor=0.5)
    retry = World(sync=True).policy(spread, idempotent=False, random=Random(7).random)
    waits = sorted(retry.wait_seconds(1, busy) for _ in range(1000))
    assert 60 <= waits[0] < 61
    assert 89 < waits[-1] <= 90
    assert max(later - earlier for earlier, later in pairwise(waits)) < 0.5


def test_a_service_that_asks_for_more_than_the_deadline_is_not_called_again(sync: bool) -> None:
    world = World(sync=sync)
    busy = ConnectionError("busy")
    busy.retry_after = 61  # type: ignore[attr-defined]
    assert raised(world, busy) is busy
    assert world.ended("deadline", attempts=0)


def test_a_timeout_is_retried_only_if_repeating_is_harmless(sync: bool) -> None:
    late = OperationTimeoutError("search", "attempt", 1)
    assert World(sync=sync, idempotent=True).resume(late, "found") == "found"
    assert raised(World(sync=sync, idempotent=False), late) is late


@pytest.mark.parametrize("kind", [asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_exit_during_an_attempt_passes_through_uncounted(kind: type[BaseException], sync: bool) -> None:
    world = World(sync=sync)
    leave = kind()
    with pytest.raises(kind) as caught:
        world.resume(DOWN, leave, "never")
    assert caught.value is leave or not sync  # asyncio.run makes a CancelledError of its own
    assert world.ended(None, attempts=1)


@pytest.mark.parametrize("kind", [asyncio.CancelledError, KeyboardInterrupt])
def test_an_exit_during_the_wait_passes_through_and_gives_the_budget_back(
    kind: type[BaseException], sync: bool
) -> None:
    def interrupt(_seconds: float) -> None:
        raise kind

    async def interrupt_async(_seconds: float) -> None:
        interrupt(_seconds)

    world = World(sync=sync)
    world.retry = world.policy(NO_JITTER, idempotent=False, sleep=interrupt_async, sleep_sync=interrupt)
    with pytest.raises(kind):
        world.resume(DOWN, "never")
    assert world.ended(None, attempts=0)


@pytest.mark.parametrize("during", ["wait", "attempt"])
async def test_a_cancelled_task_stops_retrying_at_once(during: str) -> None:
    reached = asyncio.Event()

    async def hang(_seconds: float = 0) -> None:
        reached.set()
        await asyncio.Event().wait()

    world = World(sync=False)
    if during == "wait":
        world.retry = world.policy(NO_JITTER, idempotent=False, sleep=hang)
    task = asyncio.ensure_future(world.retry.resume(world.call, DOWN, hang))
    await reached.wait()
    assert world.budget.usage == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.ended(None, attempts=0)
    assert task.cancelled()


def test_a_new_policy_counts_on_and_holds_for_calls_that_fail_from_then_on(sync: bool) -> None:
    world = World(sync=sync)
    assert raised(world, TimeoutError()) is not None
    world.retry.configure(RetryConfig(max_retries=1, jitter_factor=0), idempotent=True)
    assert raised(world, TimeoutError(), DOWN) is DOWN
    assert world.retry.calls == {"not_retryable": 1, "exhausted": 1}


def test_the_first_attempt_is_the_callers_business_and_never_run_again(sync: bool) -> None:
    world = World(sync=sync, config=RetryConfig(max_retries=0))
    with pytest.raises(ConnectionError):
        world.resume(DOWN, "would be a second attempt")
    assert world.usage_seen == []


ENDS = st.sampled_from(
    [DOWN, OperationTimeoutError("search", "attempt", 1), InvalidInputError("no"), CIRCUIT_OPEN, "found"]
)
FIRST = ENDS.filter(lambda end: isinstance(end, Exception))


@given(FIRST, st.lists(ENDS, min_size=5), st.integers(0, 4), st.booleans(), st.floats(0.05, 2))
def test_async_and_sync_calls_fare_alike(
    first: Any, then: list[Any], retries: int, idempotent: bool, timeout: float
) -> None:
    fates = []
    for sync in (True, False):
        config = RetryConfig(max_retries=retries, jitter_factor=0.5)
        world = World(sync=sync, config=config, idempotent=idempotent, timeout=timeout)
        try:
            fate = world.resume(first, *then)
        except Exception as failure:  # noqa: BLE001 - it is compared
            fate = failure
        fates.append(
            (fate, world.clock.slept, world.events, world.retry.calls, world.usage_seen, world.budget.usage)
        )
    assert fates[0] == fates[1]
