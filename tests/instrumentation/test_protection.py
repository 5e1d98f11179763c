"""`protect`: the policies of a protected call around engines whose callers know nothing of them."""

from __future__ import annotations

import asyncio
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from support.servers import DEADLINE_SECONDS, wait_until
from support.stores import PROFILE, Store, instrumented

from llmkg_otel import OperationConfig, ProductionConfig, ProductionSystem
from llmkg_otel.engine.profiles import Method, Profile
from llmkg_otel.errors import (
    CircuitOpenError,
    ConfigurationError,
    OperationTimeoutError,
    OverloadedError,
    RateLimitedError,
)
from llmkg_otel.instrumentation.defaults import completed, unlimited

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from llmkg_otel.testing import CapturedTelemetry


def failing(times: int, error: type[Exception] = ConnectionError) -> Callable[[], None]:
    """Return work that fails so many times, counted in `left`."""
    left = [times]

    def work() -> None:
        if left[0] > 0:
            left[0] -= 1
            raise error("not now")

    return work


def made_of(**sections: Any) -> ProductionConfig:
    """Return a configuration, its sections given as a file would give them."""
    return ProductionConfig(**sections)


def calls(telemetry: CapturedTelemetry) -> dict[str, int]:
    """Return how many protected calls of each operation have ended, by name and error type."""
    counted: dict[str, int] = {}
    for attributes, point in telemetry.metric("llmkg.operation.duration").items():
        values = dict(attributes)
        kind = f":{values['error.type']}" if "error.type" in values else ""
        assert isinstance(point, tuple)
        counted[f"{values['llmkg.operation.name']}{kind}"] = point[0]
    return counted


async def test_a_read_is_tried_again_async_sync_and_from_its_first_item() -> None:
    with instrumented(protect=True) as telemetry:
        assert await Store(failing(2)).afetch("k") == ["k"]
        assert Store(failing(1)).fetch("k") == ["k"]
        assert list(Store(failing(1)).scan(2)) == [0, 1]
        assert [n async for n in Store(failing(1)).ascan(2)] == [0, 1]
        assert calls(telemetry) == {"store_fetch": 2, "store_scan": 1, "store_ascan": 1}
        attempts = [
            dict(span.attributes or {}).get("llmkg.operation.attempts") for span in telemetry.spans("fetch")
        ]
        assert attempts == [3, 2]
        assert len(telemetry.spans("llmkg.attempt")) == 5


async def test_a_function_that_returns_an_awaitable_is_protected_where_its_profile_says_async() -> None:
    methods = {"coroutine": Method(kind="async", write=False)}
    with instrumented(Profile(name="store", classes=PROFILE.classes, methods=methods), protect=True):
        assert await Store(failing(2)).coroutine("k") == ["k"]
    with instrumented(protect=True), pytest.raises(ConnectionError):
        await Store(failing(2)).coroutine("k")


async def test_a_write_is_not_tried_again_unless_it_is_idempotent_or_configured() -> None:
    again = {"store_again": {"retry": {"max_retries": 1, "base_delay_ms": 0, "max_delay_ms": 0}}}
    problem = "not now"
    with instrumented(protect=True), pytest.raises(ConnectionError, match=problem):
        Store(failing(1)).again("k")
    harmless = Profile(name="store", classes=PROFILE.classes, methods={"again": Method(idempotent=True)})
    with instrumented(harmless, protect=True):
        assert Store(failing(1)).again("k") == ["k"]
    with instrumented(protect=True, operations=again):
        assert Store(failing(1)).again("k") == ["k"]


async def test_a_failing_engine_opens_its_circuit_for_async_and_sync_alike() -> None:
    with instrumented(
        protect=True, circuit_breaker={"failure_threshold": 2}, retry={"max_retries": 0}
    ) as telemetry:
        store = Store(failing(9))
        for _ in range(2):
            with pytest.raises(ConnectionError):
                await store.afetch("k")
        with pytest.raises(CircuitOpenError):
            store.fetch("k")
        assert list(Store().scan(1)) == [0]
        assert calls(telemetry) == {
            "store_fetch:ConnectionError": 2,
            "store_fetch:circuit_open": 1,
            "store_scan": 1,
        }
        refused = telemetry.spans("fetch")[-1]
        assert (refused.attributes or {})["error.type"] == "circuit_open"
        assert len(refused.links) == 1
        states = telemetry.metric("llmkg.circuit_breaker.status")
        assert states[(("name", "store_fetch"), ("state", "open"))] == 1


def test_a_returned_failure_is_tried_again_and_opens_the_circuit_but_is_what_the_caller_gets() -> None:
    with instrumented(protect=True, circuit_breaker={"failure_threshold": 4}) as telemetry:
        assert Store().status() == {"status": "failure", "why": "no model"}
        with pytest.raises(CircuitOpenError):
            Store().status()
        assert calls(telemetry) == {"store_status:failure_returned": 1, "store_status:circuit_open": 1}


async def test_the_callers_own_mistakes_are_neither_tried_again_nor_held_against_the_engine() -> None:
    profile = PROFILE.model_copy(
        update={"caller_errors": ("builtins.ValueError", "gone.Away", "builtins.Gone")}
    )
    with instrumented(profile, protect=True, circuit_breaker={"failure_threshold": 1}) as telemetry:
        store = Store(failing(2, ValueError))
        for _ in range(2):
            with pytest.raises(ValueError, match="not now"):
                await store.afetch("k")
        assert store.fetch("k") == ["k"]
        assert telemetry.spans("llmkg.attempt") == []


async def test_rates_and_permits_are_those_configured_for_the_operation() -> None:
    operations = {"store_scan": {"rate_limit": "1/hour"}, "store_fetch": {"max_concurrent": 1}}
    patience = {"max_queue_wait_seconds": 0.01}
    with instrumented(protect=True, operations=operations, resources=patience) as telemetry:
        assert list(Store().scan(1)) == [0]
        with pytest.raises(RateLimitedError):
            list(Store().scan(1))
        outer = Store()

        def work() -> None:
            with pytest.raises(OverloadedError):
                in_a_thread(lambda: Store().fetch("inner"))

        outer.work = work
        assert await outer.afetch("k") == ["k"]
        ended = {
            "store_scan": 1,
            "store_scan:rate_limited": 1,
            "store_fetch": 1,
            "store_fetch:permit_timeout": 1,
        }
        assert calls(telemetry) == ended


def in_a_thread(work: Callable[[], object]) -> None:
    """Run work in a thread, where no call is around it, and raise what it raises."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()


async def test_an_operation_gets_the_time_its_profile_says_unless_the_configuration_says_otherwise() -> None:
    methods = {"hang": Method(write=True, timeout_seconds=0.02)}
    profile = Profile(name="slow", classes=("support.stores:Store",), methods=methods)
    with instrumented(profile, protect=True), pytest.raises(OperationTimeoutError) as late:
        await Store().hang()
    assert late.value.seconds == 0.02
    with (
        instrumented(profile, protect=True, operations={"slow_hang": {"timeout": 0.03}}),
        pytest.raises(OperationTimeoutError) as later,
    ):
        await Store().hang()
    assert later.value.seconds == 0.03


async def test_a_call_inside_a_protected_call_of_the_programs_own_is_not_protected_again() -> None:
    with instrumented(protect=True, operations={"store_fetch": {"rate_limit": "1/hour"}}) as telemetry:
        system = ProductionSystem(
            None,
            made_of(shutdown={"lame_duck_seconds": 0}),
            tracer_provider=telemetry.tracer_provider,
            meter_provider=telemetry.meter_provider,
        )
        store = Store()
        for _ in range(2):
            assert await system.execute_protected_operation("mine", lambda: store.fetch("k")) == ["k"]
            assert await system.execute_protected_operation("mine", lambda: store.afetch("k")) == ["k"]
        assert calls(telemetry) == {"mine": 4}
        assert len(telemetry.spans("fetch")) == 4


def test_calls_come_from_many_threads_and_loops_and_all_are_counted() -> None:
    problems: list[BaseException] = []

    def work() -> None:
        async def main() -> None:
            store = Store()
            await asyncio.gather(*(store.afetch("k") for _ in range(20)))

        try:
            asyncio.run(main())
            for _ in range(20):
                Store().fetch("k")
        except BaseException as problem:  # noqa: BLE001
            problems.append(problem)

    narrow, patient = {"store_fetch": {"max_concurrent": 2}}, {"max_queue_wait_seconds": 30}
    with instrumented(protect=True, operations=narrow, resources=patient) as telemetry:
        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert problems == []
        assert calls(telemetry) == {"store_fetch": 240}
        assert telemetry.metric("llmkg.permit.usage")[(("pool", "store_fetch"),)] == 0


def test_the_system_begins_with_the_first_call_and_ends_with_uninstrumenting() -> None:
    def running() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name == "llmkg-protection"]

    with instrumented(protect=True) as telemetry:
        wait_until(lambda: not running(), "the end of those of other tests")
        Store().fetch("k")
        assert running() == ["llmkg-protection"]
        state = "llmkg.lifecycle.status"
        serving = (("state", "serving"),)
        wait_until(lambda: telemetry.metric(state).get(serving) == 1, "serving")
    wait_until(lambda: not running(), "the end of the thread")


def test_an_engine_that_protects_itself_is_only_told_of() -> None:
    profile = PROFILE.model_copy(update={"protect": False})
    with instrumented(profile, protect=True) as telemetry:
        with pytest.raises(ConnectionError):
            Store(failing(1)).fetch("k")
        assert [span.name for span in telemetry.spans()] == ["fetch"]
        assert calls(telemetry) == {}


def test_what_is_configured_for_an_operation_holds_and_the_rest_is_its_profiles() -> None:
    config = made_of(retry={"max_retries": 7}, circuit_breaker={"failure_threshold": 9})
    read = completed(OperationConfig(), config, PROFILE, Method(write=False, timeout_seconds=60))
    write = completed(OperationConfig(), config, PROFILE, Method())
    said = completed(OperationConfig(idempotent=True, timeout=5), config, PROFILE, Method(timeout_seconds=60))
    assert [each.idempotent for each in (read, write, said)] == [True, False, True]
    assert [each.retry.max_retries for each in (read, write, said) if each.retry] == [7, 0, 7]
    assert [each.timeout for each in (read, write, said)] == [60, 3600, 5]
    breakers = [each.circuit_breaker for each in (read, write, said) if each.circuit_breaker]
    assert [(each.timeout, each.failure_threshold) for each in breakers] == [(60, 9), (3600, 9), (5, 9)]


def test_time_limits_for_all_hold_where_they_are_set() -> None:
    config = made_of(resources={"operation_timeout_seconds": 20}, circuit_breaker={"timeout": 4})
    made = completed(OperationConfig(), config, PROFILE, Method(timeout_seconds=60))
    assert made.circuit_breaker is not None
    assert (made.timeout, made.circuit_breaker.timeout) == (20, 4)


def test_only_limits_that_somebody_has_set_refuse_a_call() -> None:
    given: dict[str, Any] = {"rate_limiting": {"per_user": "5/second"}, "resources": {"max_memory_bytes": 7}}
    config = unlimited(made_of(**given))
    assert (config.rate_limiting.requests_per_second, config.resources.max_memory_bytes) == (1e9, 7)
    assert config.rate_limiting.per_user == made_of(**given).rate_limiting.per_user
    limited = unlimited(made_of(rate_limiting={"requests_per_second": 5}))
    assert (limited.rate_limiting.requests_per_second, limited.rate_limiting.burst) == (5, 200)
    with instrumented(protect=True) as telemetry:
        store = Store()
        for _ in range(1000):
            store.fetch("k")
        assert calls(telemetry) == {"store_fetch": 1000}


async def test_uninstrumenting_cuts_no_call_short() -> None:
    released, store = threading.Event(), Store()
    started = threading.Event()

    def work() -> None:
        started.set()
        released.wait()

    store.work = work
    with instrumented(protect=True, shutdown={"lame_duck_seconds": 0, "graceful_timeout_seconds": 0.01}):
        late = asyncio.create_task(asyncio.to_thread(lambda: store.fetch("k")))
        await asyncio.to_thread(started.wait)
    assert Store().fetch("other") == ["other"]
    released.set()
    assert await late == ["k"]


def test_a_loop_that_is_not_asyncios_runs_async_calls_unprotected_and_a_warning_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def drive(coroutine: Any) -> Any:
        """Run a coroutine that never waits, as another library's loop would."""
        with pytest.raises(StopIteration) as ended:
            coroutine.send(None)
        return ended.value.value

    async def rows() -> list[int]:
        return [number async for number in Store().ascan(2)]

    with instrumented(protect=True) as telemetry:
        assert [drive(Store().afetch("k")) for _ in range(2)] == [["k"]] * 2
        assert drive(rows()) == [0, 1]
        with pytest.raises(ConnectionError):
            Store(failing(1)).afetch("k").send(None)
        assert Store(failing(1)).fetch("k") == ["k"]
        assert calls(telemetry) == {"store_fetch": 1}
        assert len(telemetry.spans("fetch")) == 4
    assert caplog.text.count("async calls outside of asyncio's tasks") == 1


def test_where_no_system_can_be_made_calls_run_unprotected_and_a_warning_says_why_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConfigurationError("OTEL_METRICS_EXPORTER: there is no otpl")

    monkeypatch.setattr("llmkg_otel.instrumentation.protection.ProductionSystem", refuse)
    with instrumented(protect=True) as telemetry:
        assert [Store().fetch("k") for _ in range(2)] == [["k"]] * 2
        assert len(telemetry.spans("fetch")) == 2
    assert caplog.text.count("calls run unprotected, since no system can be made: OTEL_METRICS_EXPORTER") == 1


def set_up_with(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], object]) -> None:
    """Let something happen while the process's system is made, as handlers and exporters do."""

    def made(*args: Any, **kwargs: Any) -> ProductionSystem:
        meanwhile()
        return ProductionSystem(*args, **kwargs)

    monkeypatch.setattr("llmkg_otel.instrumentation.protection.ProductionSystem", made)


def ends(work: Callable[[], object]) -> bool:
    """Say whether something ends, in a thread of its own that may hang for ever."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(DEADLINE_SECONDS)
    return not thread.is_alive()


def doing(thread: threading.Thread) -> str | None:
    """Return the name of the function that a thread is in."""
    frame = sys._current_frames().get(thread.ident or 0)
    return None if frame is None else frame.f_code.co_name


def test_a_call_made_by_the_set_up_of_the_system_itself_runs_unprotected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows: list[object] = []
    set_up_with(monkeypatch, lambda: rows.append(Store().fetch("inner")))
    with instrumented(protect=True) as telemetry:
        assert ends(lambda: rows.append(Store(failing(1)).fetch("outer")))
        assert rows == [["inner"], ["outer"]]
        assert calls(telemetry) == {"store_fetch": 1}


def test_a_thread_that_the_set_up_waits_for_is_kept_waiting_once_for_a_limited_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llmkg_otel.instrumentation.protection.START_SECONDS", 0.05)
    rows: list[object] = []

    def meanwhile() -> None:
        for name in ("first", "second"):
            assert ends(lambda name=name: rows.append(Store().fetch(name)))  # type: ignore[misc]

    set_up_with(monkeypatch, meanwhile)
    with instrumented(protect=True) as telemetry:
        assert ends(lambda: rows.append(Store().fetch("outer")))
        assert rows == [["first"], ["second"], ["outer"]]
        assert calls(telemetry) == {"store_fetch": 1}


def test_calls_of_other_threads_wait_for_the_system_and_go_through_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = threading.Thread(target=lambda: Store(failing(1)).fetch("k"), daemon=True)

    def meanwhile() -> None:
        other.start()
        wait_until(lambda: doing(other) == "wait", "a call that waits")

    set_up_with(monkeypatch, meanwhile)
    with instrumented(protect=True) as telemetry:
        assert ends(lambda: Store().fetch("k"))
        other.join(DEADLINE_SECONDS)
        assert calls(telemetry) == {"store_fetch": 2}


def test_an_engine_that_the_set_up_imports_has_its_own_policies(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "acme_exporter.py").write_text("class Sender:\n    def send(self, work): return work()\n")
    monkeypatch.syspath_prepend(tmp_path)
    set_up_with(monkeypatch, lambda: __import__("acme_exporter"))
    sender = Profile(
        name="sender", classes=("acme_exporter:Sender",), methods={"send": Method(idempotent=True)}
    )
    with instrumented(PROFILE, sender, protect=True) as telemetry:
        assert ends(lambda: Store().fetch("k"))
        assert sys.modules["acme_exporter"].Sender().send(failing(1)) is None
        assert calls(telemetry) == {"store_fetch": 1, "sender_send": 1}
