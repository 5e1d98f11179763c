from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar
from typing import Any

import pytest
from support.time import Seen, Time, settle

from llmkg_otel._threads import in_daemon_thread
from llmkg_otel.config import HealthCheckConfig
from llmkg_otel.errors import ConfigurationError
from llmkg_otel.events import HealthChanged, HealthChecked
from llmkg_otel.health.monitor import Check, HealthMonitor
from llmkg_otel.health.status import CheckResult, ComponentHealth, HealthStatus, Trend

PASS, WARN, FAIL, UNKNOWN = (
    HealthStatus.HEALTHY,
    HealthStatus.WARNING,
    HealthStatus.CRITICAL,
    HealthStatus.UNKNOWN,
)


class World:
    def __init__(self, random: float = 0.5, **config: float) -> None:
        self.time = Time()
        self.seen = Seen()
        self.monitor = HealthMonitor(
            HealthCheckConfig.model_validate(config),
            self.seen,
            self.time.clock,
            lambda: random,
            wall=lambda: 1_700_000_000.0,
            sleep=self.time.sleep,
        )

    async def find(self, check: Check) -> ComponentHealth:
        """Register one check, run it, and return what was found."""
        self.monitor.register("engine", check)
        return (await self.monitor.run_once())[0]


class Hanging:
    """An async check that hangs until released, and counts how often it was called."""

    def __init__(self) -> None:
        self.calls = 0
        self.cancelled = 0
        self.release = asyncio.Event()

    async def check(self) -> None:
        self.calls += 1
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


async def refused() -> None:
    raise ConnectionError("refused")


def blocked_by(release: threading.Event) -> Check:
    def check() -> None:
        release.wait()

    return check


def health_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "llmkg-health"]


def test_a_component_is_unknown_until_it_was_checked() -> None:
    world = World()
    world.monitor.register("engine", refused, essential=False)
    assert world.monitor.components() == (ComponentHealth("engine", essential=False),)


async def test_a_finding_is_kept_with_its_times_and_data() -> None:
    world = World()

    async def check() -> CheckResult:
        world.time.now += 0.25
        return CheckResult(WARN, "nearly full", {"free_bytes": 12})

    await world.find(check)
    world.time.now += 7
    assert world.monitor.components() == (
        ComponentHealth(
            "engine",
            essential=True,
            status=WARN,
            message="nearly full",
            checked_at=1_700_000_000.0,
            age=7.0,
            duration=0.25,
            data={"free_bytes": 12},
        ),
    )
    assert world.seen == [
        HealthChecked("engine", 0.25),
        HealthChanged("engine", "unknown", "warn", "nearly full"),
    ]


async def test_a_check_that_raises_warns_with_its_words_until_the_threshold_and_then_fails() -> None:
    world = World(failure_threshold=2)
    assert (await world.find(refused)).status is WARN
    (health,) = await world.monitor.run_once()
    assert (health.status, health.message) == (FAIL, "ConnectionError: refused")
    assert health.consecutive_failures == 2
    failed = HealthChecked("engine", 0.0, "ConnectionError")
    assert world.seen == [
        failed,
        HealthChanged("engine", "unknown", "warn", "ConnectionError: refused"),
        failed,
        HealthChanged("engine", "warn", "fail", "ConnectionError: refused"),
    ]


@pytest.mark.parametrize("answer", [FAIL, CheckResult(FAIL, "no space")])
async def test_a_check_that_answers_fail_is_a_failure_without_a_class(answer: HealthStatus) -> None:
    world = World()
    assert (await world.find(lambda: answer)).consecutive_failures == 1
    assert world.seen[0] == HealthChecked("engine", 0.0, "_OTHER")


async def test_an_answer_of_another_kind_is_a_failure() -> None:
    health = await World().find(lambda: "fine")  # type: ignore[arg-type,return-value]
    assert health.message == "TypeError: a check returns None, a HealthStatus or a CheckResult, not str"


async def test_an_unchanged_status_is_not_reported_as_a_change() -> None:
    world = World()
    await world.find(lambda: None)
    await world.monitor.run_once()
    assert [type(event) for event in world.seen] == [HealthChecked, HealthChanged, HealthChecked]


async def test_a_check_that_hangs_is_cancelled_at_its_timeout_and_asked_again() -> None:
    world, hanging = World(check_timeout_seconds=2), Hanging()
    world.monitor.register("engine", hanging.check)
    for calls in (1, 2):
        round_ = asyncio.create_task(world.monitor.run_once())
        await world.time.advance(2)
        (health,) = await round_
        assert (health.message, health.duration) == ("TimeoutError: no answer within 2 s", 2.0)
        assert (hanging.calls, hanging.cancelled) == (calls, calls)


async def test_a_check_that_will_not_be_cancelled_is_not_asked_again_before_it_ends() -> None:
    world, release, calls = World(), asyncio.Event(), 0

    async def stubborn() -> None:
        nonlocal calls
        calls += 1
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    world.monitor.register("engine", stubborn)
    round_ = asyncio.create_task(world.monitor.run_once())
    await world.time.advance(2)
    await round_
    (health,) = await world.monitor.run_once()
    assert (calls, health.message) == (1, "TimeoutError: an earlier check is still running, past its timeout")
    release.set()
    await settle()
    (health,) = await world.monitor.run_once()
    assert (calls, health.status) == (2, PASS)


async def test_a_sync_check_that_hangs_keeps_one_thread_and_no_more() -> None:
    world, release = World(), threading.Event()
    world.monitor.register("disk", blocked_by(release))
    round_ = asyncio.create_task(world.monitor.run_once())
    await world.time.advance(2)
    (health,) = await round_
    assert health.message == "TimeoutError: no answer within 2 s"
    for _ in range(3):
        (health,) = await world.monitor.run_once()
        assert "still running" in health.message
        assert len(health_threads()) == 1
    assert health_threads()[0].daemon
    release.set()
    for thread in health_threads():
        thread.join()
    assert (await world.monitor.run_once())[0].status is PASS


async def test_a_sync_check_blocks_its_thread_but_not_the_loop() -> None:
    world, released_by_loop = World(), threading.Event()
    caller = ContextVar("caller", default="nobody")
    caller.set("test")

    def check() -> CheckResult:
        released_by_loop.wait()
        return CheckResult(PASS, f"{caller.get()} in {threading.current_thread().name}")

    world.monitor.register("disk", check)
    round_ = asyncio.create_task(world.monitor.run_once())
    await settle()
    released_by_loop.set()  # only a loop that runs gets here
    (health,) = await round_
    assert health.message == "test in llmkg-health"


async def test_a_lambda_around_an_async_check_is_awaited() -> None:
    assert (await World().find(refused)).message == "ConnectionError: refused"


@pytest.mark.parametrize(
    "exit_", [SystemExit(3), KeyboardInterrupt(), StopIteration(), asyncio.CancelledError()]
)
async def test_a_sync_check_cannot_end_the_process_or_hang_the_round(exit_: BaseException) -> None:
    def check() -> None:
        raise exit_

    health = await World().find(check)
    assert health.message.startswith(f"RuntimeError: {type(exit_).__name__}")


async def test_a_check_that_is_cancelled_from_inside_is_a_failure() -> None:
    async def check() -> None:
        raise asyncio.CancelledError

    assert (await World().find(check)).message == "RuntimeError: the check was cancelled from inside"


async def test_fifty_checks_run_at_the_same_time() -> None:
    world, barrier = World(), asyncio.Barrier(50)

    async def check() -> None:
        await barrier.wait()  # passes only when all fifty are here

    for number in range(50):
        world.monitor.register(f"component-{number}", check)
    assert {each.status for each in await world.monitor.run_once()} == {PASS}


async def test_a_check_in_progress_is_joined_and_outlives_a_cancelled_caller() -> None:
    world, hanging = World(), Hanging()
    world.monitor.register("engine", hanging.check)
    first, second = (asyncio.create_task(world.monitor.run_once()) for _ in range(2))
    await settle()
    first.cancel()
    await settle()
    hanging.release.set()
    assert (await second)[0].status is PASS
    assert hanging.calls == 1


async def test_each_component_is_checked_at_once_and_then_at_its_own_period_with_jitter() -> None:
    world = World(random=1.0, check_interval_seconds=10)
    asked: list[tuple[str, float]] = []

    async def slow() -> None:
        asked.append(("slow", world.time.now))

    async def fast() -> None:
        asked.append(("fast", world.time.now))

    world.monitor.register("slow", slow)
    world.monitor.register("fast", fast, interval=1)
    await world.monitor.start()
    await world.monitor.start()
    for _ in range(10):
        await world.time.advance(1.1 + 1e-6)
    await world.monitor.stop()
    assert [at for name, at in asked if name == "slow"] == pytest.approx([100, 111])
    assert [at for name, at in asked if name == "fast"] == pytest.approx([100 + 1.1 * n for n in range(11)])


async def test_a_component_registered_while_it_runs_is_checked_and_one_unregistered_is_not() -> None:
    world, hanging = World(), Hanging()
    await world.monitor.start()
    world.monitor.register("engine", hanging.check)
    await settle()
    assert hanging.calls == 1
    world.monitor.unregister("engine")
    world.monitor.unregister("nobody")
    await settle()
    assert (hanging.cancelled, world.monitor.components(), world.seen) == (1, (), [])
    await world.monitor.stop()


async def test_a_check_cancelled_because_the_monitor_stops_cleans_up_and_counts_neither_way() -> None:
    world, cleaned = World(), asyncio.Event()

    async def check() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.set()

    world.monitor.register("engine", check)
    await world.monitor.start()
    await settle()
    await world.monitor.stop()
    assert cleaned.is_set()
    assert world.monitor.components()[0].status is UNKNOWN
    assert world.seen == []


async def test_stopping_does_not_wait_for_ever_and_starting_again_works() -> None:
    world, release = World(check_timeout_seconds=2), threading.Event()
    stubborn = asyncio.Event()

    async def check() -> None:
        while not stubborn.is_set():
            try:
                await stubborn.wait()
            except asyncio.CancelledError:
                continue

    world.monitor.register("engine", check)
    world.monitor.register("disk", blocked_by(release))
    await world.monitor.start()
    await settle()
    stopping = asyncio.create_task(world.monitor.stop())
    await world.time.advance(2)
    await stopping
    release.set()
    for thread in health_threads():
        thread.join()
    stubborn.set()
    await settle()
    await world.monitor.start()
    assert {each.status for each in await world.monitor.run_once()} == {PASS}
    await world.monitor.stop()


async def test_a_result_nobody_renews_goes_stale_as_it_is_read() -> None:
    world = World(check_interval_seconds=10)
    await world.find(lambda: None)
    statuses = []
    for _ in range(3):
        world.time.now += 25
        statuses.append(world.monitor.components()[0].status)
    assert statuses == [PASS, WARN, FAIL]


async def test_the_history_is_bounded_and_gives_the_trend() -> None:
    world, failing = World(history_size=6), False

    async def check() -> HealthStatus:
        return FAIL if failing else PASS

    await world.find(check)
    for number in range(8):
        failing = number > 3
        await world.monitor.run_once()
    history = world.monitor.history("engine")
    assert [each.status for each in history] == [PASS, PASS, FAIL, FAIL, FAIL, FAIL]
    assert world.monitor.components()[0].trend is Trend.DEGRADING


async def test_two_threads_read_while_components_come_and_go() -> None:
    world, done = World(), threading.Event()

    def read() -> None:
        while not done.is_set():
            for health in world.monitor.components():
                assert (health.status is PASS) == (health.checked_at is not None)

    async def check() -> None:
        await asyncio.sleep(0)

    readers = [in_daemon_thread(read, "reader") for _ in range(2)]
    for number in range(200):
        world.monitor.register(f"component-{number}", check)
        await world.monitor.run_once()
        if number >= 5:
            world.monitor.unregister(f"component-{number - 5}")
    done.set()
    for reader in readers:
        reader.result()
    assert len(world.monitor.components()) == 5


def test_a_name_in_use_is_refused_and_free_again_once_unregistered() -> None:
    monitor = World().monitor
    monitor.register("engine", refused)
    with pytest.raises(ConfigurationError, match="'engine': the name is in use"):
        monitor.register("engine", refused)
    monitor.unregister("engine")
    monitor.register("engine", refused)


@pytest.mark.parametrize("option", ["interval", "timeout"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 1e10, "10"])
def test_seconds_that_cannot_work_are_refused_by_name(option: str, value: Any) -> None:
    monitor = World().monitor
    with pytest.raises(ConfigurationError, match=f"'cache': {option} = {value!r}: should be seconds above 0"):
        monitor.register("cache", refused, **{option: value})
    assert monitor.components() == ()


@pytest.mark.parametrize(
    ("name", "check", "told"),
    [
        ("", refused, "the name should be text that is not empty"),
        (5, refused, "the name should be text that is not empty"),
        ("cache", None, "None should be a function"),
        ("cache", HealthStatus.HEALTHY, "should be a function"),
    ],
)
def test_a_name_or_a_check_that_is_none_is_refused(name: Any, check: Any, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        World().monitor.register(name, check)


async def test_each_component_has_its_own_timeout() -> None:
    world, hanging = World(check_timeout_seconds=100), Hanging()
    world.monitor.register("engine", hanging.check, timeout=3)
    round_ = asyncio.create_task(world.monitor.run_once())
    await world.time.advance(3)
    assert (await round_)[0].message == "TimeoutError: no answer within 3 s"
