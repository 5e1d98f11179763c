from __future__ import annotations

import asyncio
import json
import threading
from typing import TYPE_CHECKING, get_args

import pytest
from support.time import Seen, Time, settle

from llmkg_otel.call import Call
from llmkg_otel.config import ShutdownConfig
from llmkg_otel.events import LifecycleChanged, ShutdownPhaseEnded
from llmkg_otel.shutdown.calls import ActiveCalls
from llmkg_otel.shutdown.report import CancelledCall, PhaseReport, ShutdownReport
from llmkg_otel.shutdown.sequence import Drainable, Lifecycle, LifecycleState, Save, ShutdownSequence
from llmkg_otel.telemetry import semconv

if TYPE_CHECKING:
    from collections.abc import Mapping

PHASES = ["lame_duck", "draining", "cleaning_up", "flushing"]


class Calls:
    """Calls in flight, as many as the test says."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.accepting = True
        self.idle = asyncio.Event()
        self.counts: Mapping[str, int] = {"drained": 0, "cancelled": 0, "refused": 0}

    def stop_accepting(self) -> None:
        self.accepting = False

    async def wait_idle(self, timeout: float) -> bool:  # noqa: ASYNC109
        assert timeout > 0
        if self.names:
            await self.idle.wait()
        return True

    def finish(self) -> None:
        self.counts = {"drained": len(self.names), "cancelled": 0, "refused": 0}
        self.names.clear()
        self.idle.set()

    def cancel_remaining(self) -> list[CancelledCall]:
        cancelled = [CancelledCall(name, 2.5) for name in self.names]
        self.counts = {"drained": 0, "cancelled": len(cancelled), "refused": 0}
        self.names.clear()
        self.idle.set()
        return cancelled


class World:
    """A shutdown of 5 s lame duck, 30 s drain, 10 s per handler and 5 s flush."""

    def __init__(self, calls: Drainable | None = None, lame_duck: float = 5.0) -> None:
        self.time = Time()
        self.seen = Seen()
        self.lifecycle = Lifecycle(self.seen)
        self.lifecycle.advance("serving")
        self.calls = Calls() if calls is None else calls
        self.flushed: list[float] = []
        self.flush_error: str | None = None
        self.sequence = ShutdownSequence(
            ShutdownConfig(lame_duck_seconds=lame_duck),
            self.seen,
            self.lifecycle,
            self.calls,
            self._flush,
            clock=self.time.clock,
            sleep=self.time.sleep,
        )

    async def _flush(self, timeout: float) -> str | None:  # noqa: ASYNC109
        self.flushed.append(timeout)
        return self.flush_error

    def begin(self) -> asyncio.Task[ShutdownReport]:
        return asyncio.create_task(self.sequence.run())


def outcomes(report: ShutdownReport) -> dict[str, tuple[str, str | None]]:
    """The phases that did not end well."""
    return {each.name: (each.outcome, each.error) for each in report.phases if each.outcome != "ok"}


async def hang() -> None:
    await asyncio.Event().wait()


def test_the_lifecycle_has_the_states_of_the_telemetry_contract() -> None:
    assert get_args(LifecycleState) == semconv.LIFECYCLE_STATES


def test_the_lifecycle_reports_each_move_and_staying_is_none() -> None:
    seen = Seen()
    lifecycle = Lifecycle(seen)
    lifecycle.advance("serving")
    lifecycle.advance("serving")
    lifecycle.advance("stopped")
    assert seen == [LifecycleChanged("starting", "serving"), LifecycleChanged("serving", "stopped")]


def test_the_lifecycle_refuses_to_go_back() -> None:
    lifecycle = Lifecycle(Seen())
    lifecycle.advance("draining")
    with pytest.raises(ValueError, match="only moves forward, not from draining to serving"):
        lifecycle.advance("serving")
    assert lifecycle.state == "draining"


async def test_the_phases_run_in_order_each_timed_and_reported() -> None:
    calls = Calls("search")
    world = World(calls)
    running = world.begin()
    await world.time.advance(4.9)
    assert (world.lifecycle.state, calls.accepting) == ("lame_duck", True)
    await world.time.advance(0.1)
    assert (world.lifecycle.state, calls.accepting) == ("draining", False)
    world.time.now += 3
    calls.finish()
    report = await running
    assert world.lifecycle.state == "stopped"
    assert world.flushed == [5.0]
    assert report.total_duration == pytest.approx(8)
    assert [(each.name, each.outcome, each.error) for each in report.phases] == [
        (phase, "ok", None) for phase in PHASES
    ]
    assert [each.seconds for each in report.phases] == pytest.approx([5, 3, 0, 0])
    assert report.operations == {"drained": 1, "cancelled": 0, "refused": 0}
    assert report.clean
    changes = [event.state for event in world.seen if isinstance(event, LifecycleChanged)]
    ended = [event.phase for event in world.seen if isinstance(event, ShutdownPhaseEnded)]
    assert (changes[1:], ended) == ([*PHASES, "stopped"], PHASES)


async def test_without_a_lame_duck_nothing_waits() -> None:
    report = await World(lame_duck=0).sequence.run()
    assert (report.total_duration, report.clean) == (0.0, True)


async def test_calls_that_outlast_the_drain_are_cancelled_and_named() -> None:
    world = World(Calls("search", "store_facts"), lame_duck=0)
    running = world.begin()
    await world.time.advance(30)
    report = await running
    assert report.cancelled == (CancelledCall("search", 2.5), CancelledCall("store_facts", 2.5))
    assert outcomes(report) == {"draining": ("timed_out", "calls cancelled: 2 (after 30 s)")}
    assert report.operations == {"drained": 0, "cancelled": 2, "refused": 0}
    assert not report.clean


async def test_cancelled_calls_have_ended_before_their_resources_are_cleaned_up() -> None:
    calls = ActiveCalls()
    world = World(calls, lame_duck=0)
    order = []

    async def slow_call() -> None:
        call = Call("search", 60)
        call.task = asyncio.current_task()
        calls.enter(call)
        try:
            await hang()
        finally:
            await asyncio.sleep(0)
            order.append("call ended")
            calls.leave(call)

    async def close() -> None:
        order.append("engine closed")

    in_flight = asyncio.create_task(slow_call())
    world.sequence.register("engine", close)
    running = world.begin()
    await world.time.advance(30)
    report = await running
    assert order == ["call ended", "engine closed"]
    assert [call.name for call in report.cancelled] == ["search"]
    assert report.operations == {"drained": 0, "cancelled": 1, "refused": 0}
    assert in_flight.cancelled()


async def test_a_tracker_that_keeps_the_deadline_itself_is_believed() -> None:
    class Punctual(Calls):
        async def wait_idle(self, timeout: float) -> bool:  # noqa: ASYNC109
            return timeout < 0

    report = await World(Punctual("search"), lame_duck=0).sequence.run()
    assert outcomes(report) == {"draining": ("timed_out", "calls cancelled: 1 (after 30 s)")}


async def test_a_drain_that_raises_is_reported_and_the_calls_are_cancelled_all_the_same() -> None:
    class Broken(Calls):
        async def wait_idle(self, timeout: float) -> bool:  # noqa: ASYNC109
            raise OSError(f"no idea, after {timeout:g} s")

    report = await World(Broken("search"), lame_duck=0).sequence.run()
    assert outcomes(report) == {"draining": ("failed", "OSError: no idea, after 30 s")}
    assert len(report.cancelled) == 1


async def test_a_phase_that_cannot_even_begin_does_not_stop_the_rest() -> None:
    class Broken(Calls):
        def stop_accepting(self) -> None:
            raise OSError("locked")

    world = World(Broken(), lame_duck=0)
    report = await world.sequence.run()
    assert outcomes(report) == {"draining": ("failed", "OSError: locked")}
    assert (world.flushed, world.lifecycle.state) == ([5.0], "stopped")


async def test_handlers_run_one_by_one_in_reverse_order_of_registration() -> None:
    world, order = World(lame_duck=0), []

    async def engine() -> None:
        order.append("engine begins")
        await asyncio.sleep(0)
        order.append("engine ends")

    world.sequence.register("files", lambda: order.append("files"))
    world.sequence.register("engine", engine)
    world.sequence.register("pool", lambda: order.append("pool"))
    world.sequence.register("lambda", engine)
    assert (await world.sequence.run()).clean
    assert order == ["engine begins", "engine ends", "pool", "engine begins", "engine ends", "files"]


async def test_handlers_that_fail_or_hang_are_named_and_the_others_still_run() -> None:
    world, order = World(lame_duck=0), []
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def hangs() -> None:
        begun.set()
        try:
            await hang()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def fails() -> None:
        raise OSError("disk")

    async def cancels_itself() -> None:
        raise asyncio.CancelledError

    def exits() -> None:
        raise SystemExit(1)

    world.sequence.register("last", lambda: order.append("last"))
    world.sequence.register("hangs", hangs, timeout=3)
    world.sequence.register("fails", fails)
    world.sequence.register("cancels", cancels_itself)
    world.sequence.register("exits", exits)
    running = world.begin()
    await begun.wait()
    await world.time.advance(3)
    report = await running
    assert order == ["last"]
    assert cancelled.is_set()
    assert report.phases[2] == PhaseReport(
        "cleaning_up",
        3.0,
        "failed",
        "exits: RuntimeError: SystemExit: 1; cancels: cancelled from inside; fails: OSError: disk;"
        " hangs: not done within 3 s",
    )


async def test_a_sync_handler_that_hangs_is_left_on_a_daemon_thread() -> None:
    world, release = World(lame_duck=0), threading.Event()
    world.sequence.register("pool", release.wait)
    running = world.begin()
    await world.time.advance(10)
    report = await running
    assert outcomes(report) == {"cleaning_up": ("timed_out", "pool: not done within 10 s")}
    (thread,) = (each for each in threading.enumerate() if each.name == "llmkg-cleanup-pool")
    assert thread.daemon
    release.set()
    thread.join()


async def test_a_handler_registered_by_a_handler_still_runs() -> None:
    world, order = World(lame_duck=0), []
    world.sequence.register("outer", lambda: world.sequence.register("inner", lambda: order.append("inner")))
    await world.sequence.run()
    assert order == ["inner"]


@pytest.mark.parametrize("error", [None, "collector unreachable"])
async def test_the_flush_says_what_went_wrong(error: str | None) -> None:
    world = World(lame_duck=0)
    world.flush_error = error
    report = await world.sequence.run()
    assert outcomes(report) == ({"flushing": ("failed", error)} if error else {})


async def test_a_flush_that_hangs_is_cut_at_its_timeout_forced_or_not() -> None:
    world = World(lame_duck=0)
    world.sequence._flush = lambda _: hang()
    running = world.begin()
    await settle()
    world.sequence.force()
    await world.time.advance(4.9)
    assert not running.done()
    await world.time.advance(0.1)
    assert outcomes(await running) == {"flushing": ("timed_out", "not done within 5 s")}


async def test_force_ends_the_lame_duck_at_once() -> None:
    world = World()
    running = world.begin()
    await world.time.advance(1)
    world.sequence.force()
    report = await running
    assert (report.total_duration, report.clean) == (1.0, True)


async def test_force_ends_the_drain_at_once_and_cancels_what_is_in_flight() -> None:
    world = World(Calls("search"), lame_duck=0)
    running = world.begin()
    await world.time.advance(1)
    world.sequence.force()
    report = await running
    assert outcomes(report) == {"draining": ("timed_out", "calls cancelled: 1 (forced)")}
    assert report.total_duration == 1.0


async def test_force_from_the_beginning_waits_for_nothing_but_begins_every_handler() -> None:
    world, begun = World(Calls("search")), []
    release = threading.Event()

    async def async_handler() -> None:
        begun.append("async")
        await hang()

    def sync_handler() -> None:
        begun.append("sync")
        release.wait()

    world.sequence.register("sync", sync_handler)
    world.sequence.register("async", async_handler)
    world.sequence.force()
    report = await world.sequence.run()
    release.set()
    for thread in threading.enumerate():
        if thread.name.startswith("llmkg-cleanup"):
            thread.join()
    assert begun == ["async", "sync"]
    assert outcomes(report)["cleaning_up"] == ("timed_out", "async: forced; sync: forced")
    assert (report.total_duration, world.flushed) == (0.0, [5.0])


async def test_the_state_is_saved_after_the_drain_and_before_the_clean_up() -> None:
    world, order = World(lame_duck=0), []

    async def save() -> None:
        order.append(("saved", world.lifecycle.state))

    world.sequence._save = Save(save, 8)
    world.sequence.register("engine", lambda: order.append(("closed", world.lifecycle.state)))
    report = await world.sequence.run()
    assert order == [("saved", "checkpointing"), ("closed", "cleaning_up")]
    assert [each.name for each in report.phases] == [*PHASES[:2], "checkpointing", *PHASES[2:]]
    assert report.clean


@pytest.mark.parametrize(("forced", "outcome"), [(False, "not done within 8 s"), (True, "forced")])
async def test_a_save_that_hangs_is_cut_at_its_timeout_or_when_forced(forced: bool, outcome: str) -> None:
    world, order = World(lame_duck=0), []
    world.sequence._save = Save(hang, 8)
    world.sequence.register("engine", lambda: order.append("closed"))
    running = world.begin()
    await settle()
    if forced:
        world.sequence.force()
    await world.time.advance(8)
    report = await running
    assert outcomes(report) == {"checkpointing": ("timed_out", outcome)}
    assert order == ["closed"]


async def test_two_runs_get_one_shutdown_and_the_same_report() -> None:
    world, times = World(), []
    world.sequence.register("engine", lambda: times.append(1))
    first, second = world.begin(), world.begin()
    await world.time.advance(5)
    assert await first is await second
    assert await world.sequence.run() is await first
    assert times == [1]


async def test_a_cancelled_caller_does_not_stop_the_shutdown() -> None:
    world = World()
    first, second = world.begin(), world.begin()
    await settle()
    first.cancel()
    await world.time.advance(5)
    assert (await second).clean
    assert first.cancelled()


def test_the_report_is_plain_data() -> None:
    report = ShutdownReport(
        1.5,
        (PhaseReport("draining", 1.5, "timed_out", "calls cancelled: 1 (forced)"),),
        {"drained": 2, "cancelled": 1, "refused": 3},
        (CancelledCall("search", 0.5),),
    )
    assert json.loads(json.dumps(report.to_dict())) == {
        "clean": False,
        "total_duration": 1.5,
        "phases": [
            {
                "name": "draining",
                "seconds": 1.5,
                "outcome": "timed_out",
                "error": "calls cancelled: 1 (forced)",
            }
        ],
        "operations": {"drained": 2, "cancelled": 1, "refused": 3},
        "cancelled": [{"name": "search", "age": 0.5}],
    }
