"""The system as its users hold it: decorator, configuration, life cycle, reports."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, assert_type

import pytest
from support.calls import asynchronous, exits, in_a_thread, in_the_calling_thread
from support.engines import StubEngine

from llmkg_otel.config import (
    AlertingConfig,
    CircuitBreakerConfig,
    HealthCheckConfig,
    OperationConfig,
    RateLimitRule,
    RetryConfig,
)
from llmkg_otel.errors import ConfigurationError, InvalidInputError, ShuttingDownError
from llmkg_otel.health.status import CheckResult, HealthStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from support.calls import Path

    from llmkg_otel.system import ProductionSystem
    from llmkg_otel.testing import CapturedTelemetry

    MakeSystem = Callable[..., ProductionSystem]


async def find(text: str, *, limit: int = 10) -> list[str]:
    """Find."""
    return [text] * limit


async def test_the_decorator_keeps_name_signature_and_types(system: ProductionSystem) -> None:
    def count(text: str) -> int:
        return len(text)

    found, counted = system.protected("find")(find), system.protected("count")(count)
    assert inspect.signature(found) == inspect.signature(find)
    assert (found.__name__, found.__doc__) == ("find", "Find.")
    assert inspect.iscoroutinefunction(found)
    assert not inspect.iscoroutinefunction(counted)
    assert assert_type(await found("x", limit=2), list[str]) == ["x", "x"]
    assert assert_type(counted("abc"), int) == 3


async def test_results_keep_their_types_on_every_way_in(system: ProductionSystem) -> None:
    async def none() -> None:
        """Return nothing."""

    run, run_sync = system.execute_protected_operation, system.execute_protected_operation_sync
    assert assert_type(await run("op", lambda: find("x", limit=1)), list[str]) == ["x"]
    assert assert_type(await run("op", lambda: 42), int) == 42
    assert assert_type(run_sync("op", lambda: "text"), str) == "text"
    await run("op", none)


async def test_a_method_can_be_decorated_in_its_class(system: ProductionSystem) -> None:
    class Reader:
        def __init__(self, prefix: str) -> None:
            self.prefix = prefix

        @system.protected("read")
        async def read(self, key: str) -> str:
            return self.prefix + key

    assert await Reader("a").read("b") == "ab"


def test_generators_are_refused_because_their_work_is_done_by_who_consumes_them(
    system: ProductionSystem,
) -> None:
    def generate() -> Iterator[int]:
        yield 1

    async def generate_async() -> AsyncIterator[int]:
        yield 1

    for generator in (generate, generate_async):
        with pytest.raises(ConfigurationError, match="is a generator: protect what consumes it"):
            system.protected("op")(generator)


class Awaited:
    """A callable object whose call is a coroutine."""

    async def __call__(self) -> str:
        return threading.current_thread().name


def makes_a_coroutine() -> Any:
    return Awaited()()


@pytest.mark.parametrize(
    ("operation", "on_the_loop"),
    [
        (Awaited(), True),
        (Awaited().__call__, True),
        (functools.partial(Awaited().__call__), True),
        (makes_a_coroutine, True),
        (lambda: threading.current_thread().name, False),
    ],
)
async def test_async_code_runs_on_the_loop_and_sync_code_in_a_thread(
    operation: Callable[[], Any], on_the_loop: bool, system: ProductionSystem
) -> None:
    ran_in = await system.execute_protected_operation("op", operation)
    assert (ran_in == threading.current_thread().name) == on_the_loop


def test_calls_may_come_from_many_threads(system: ProductionSystem, telemetry: CapturedTelemetry) -> None:
    def call(number: int) -> int:
        return system.execute_protected_operation_sync("op", lambda: number)

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(call, range(150))) == list(range(150))
    assert [point[0] for point in telemetry.metric("llmkg.operation.duration").values()] == [150]  # type: ignore[index]
    assert len(system.calls) == 0


def test_an_operation_without_a_name_is_refused(system: ProductionSystem) -> None:
    with pytest.raises(InvalidInputError, match="text of 1 to 100"):
        system.execute_protected_operation_sync("", lambda: None)


async def test_configuring_an_operation_keeps_what_it_has_gathered(system: ProductionSystem) -> None:
    slow = RateLimitRule(requests_per_second=1e-3, burst_capacity=2)
    config = OperationConfig(max_concurrent=2, rate_limit=slow)
    system.configure_operation("op", config)
    for _ in range(2):
        await asynchronous(system, lambda: None)
    op = system.operations.named("op")
    op.breaker.failed(op.breaker.admit_sync(), ConnectionError())
    op.breaker.force_open()
    assert op.bulkhead is not None
    assert op.bulkhead.try_acquire()
    changed = config.model_copy(update={"max_concurrent": 5, "timeout": 1.5, "idempotent": True})
    system.configure_operation("op", changed)
    assert system.operations.named("op") is op
    assert (op.bulkhead.limit, op.bulkhead.usage) == (5, 1)
    assert (op.timeout, op.retry.idempotent) == (1.5, True)
    assert (op.breaker.state, op.breaker.calls["success"], op.breaker.consecutive_failures) == (
        "forced_open",
        2,
        1,
    )
    (limiter,) = op.levels.anonymous.limiters[1:]
    assert limiter.take(0.0) > 0  # the tokens that are gone stay gone


@pytest.mark.parametrize("path", [asynchronous, in_a_thread, in_the_calling_thread])
async def test_errors_blamed_on_the_caller_are_not_retried_and_open_no_circuit(
    path: Path, make_system: MakeSystem
) -> None:
    system = make_system(circuit_breaker=CircuitBreakerConfig(failure_threshold=1))
    system.blame_caller_for(LookupError)
    for error in (KeyError(), InvalidInputError(), IndexError()):
        with pytest.raises(type(error)):
            await path(system, exits(error))
    op = system.operations.named("op")
    assert op.breaker.calls == {"success": 0, "failure": 0, "ignored": 3, "rejected": 0}
    assert dict(op.retry.calls) == {"not_retryable": 3}


async def test_a_timeout_is_repeated_only_where_that_is_harmless(make_system: MakeSystem) -> None:
    once = RetryConfig(max_retries=1, base_delay_ms=0, max_delay_ms=0)
    brief = CircuitBreakerConfig(timeout=0.01)
    policies = OperationConfig(retry=once, circuit_breaker=brief)
    repeatable = policies.model_copy(update={"idempotent": True})
    system = make_system(operations={"write": policies, "read": repeatable})
    reached = []

    async def hangs(name: str) -> None:
        reached.append(name)
        await asyncio.Event().wait()

    for name in ("write", "read"):
        with pytest.raises(TimeoutError):
            await system.execute_protected_operation(name, functools.partial(hangs, name))
    assert reached == ["write", "read", "read"]


async def test_a_system_starts_once_and_shuts_down_once(system: ProductionSystem) -> None:
    async with system:
        assert system.lifecycle.state == "serving"
        with pytest.raises(ConfigurationError, match="serving: it can be started only once"):
            await system.start()
        both = await asyncio.gather(system.shutdown(), system.shutdown())
        assert both[0] is both[1]
    assert await system.shutdown() is both[0]
    assert both[0].clean
    assert system.closed
    assert system.engine.closed == 1
    with pytest.raises(ConfigurationError, match="stopped: it can be started only once"):
        await system.start()


async def test_a_system_that_never_started_shuts_down_too(system: ProductionSystem) -> None:
    report = await system.shutdown()
    assert (report.clean, system.engine.closed) == (True, 1)


async def test_handlers_run_in_reverse_order_and_the_engine_closes_last(make_system: MakeSystem) -> None:
    order: list[str] = []

    class Engine:
        async def aclose(self) -> None:
            order.append("engine")

    system = make_system(Engine())
    system.register_shutdown_handler("first", lambda: order.append("first"))
    system.register_shutdown_handler("second", lambda: order.append("second"))
    async with system:
        pass
    assert order == ["second", "first", "engine"]


async def test_after_the_shutdown_calls_are_refused_and_live_values_fall_silent(
    system: ProductionSystem, telemetry: CapturedTelemetry
) -> None:
    async with system:
        await asynchronous(system, lambda: None)
        assert telemetry.metric("llmkg.permit.limit") != {}
    assert telemetry.metric("llmkg.permit.limit") == {}
    for path in (asynchronous, in_a_thread, in_the_calling_thread):
        with pytest.raises(ShuttingDownError):
            await path(system, lambda: None)


async def test_a_forced_shutdown_waits_for_no_call(make_system: MakeSystem) -> None:
    system = make_system(shutdown={"lame_duck_seconds": 50, "graceful_timeout_seconds": 50})
    await system.start()
    call = asyncio.create_task(system.execute_protected_operation("op", asyncio.Event().wait))
    await asyncio.sleep(0)
    ending = asyncio.create_task(system.shutdown())
    await asyncio.sleep(0)
    system.force_shutdown()
    report = await asyncio.wait_for(ending, 20)
    assert [cancelled.name for cancelled in report.cancelled] == ["op"]
    assert call.cancelled()
    assert report.operations == {"drained": 0, "cancelled": 1, "refused": 0}


async def test_a_failing_engine_does_not_stop_the_start_but_readiness_tells(
    make_system: MakeSystem,
) -> None:
    class Engine:
        async def ping(self) -> None:
            raise ConnectionError("no route")

    system = make_system(Engine(), health={"failure_threshold": 1})
    async with system:
        probes = system.probe_results()
        assert {name: result.ok for name, result in probes.items()} == {
            "liveness": True,
            "readiness": False,
            "startup": False,
        }
        assert probes["readiness"].reasons == ("engine: fail: ConnectionError: no route",)


async def test_a_component_that_gets_slower_raises_an_alert_before_it_fails(make_system: MakeSystem) -> None:
    system = make_system(
        alerting=AlertingConfig(default_rules=True),
        health=HealthCheckConfig(check_interval_seconds=1000),
    )
    now = 0.0

    async def slower_each_time() -> None:
        nonlocal now
        now += 0.1 * 1.2 ** len(system.health.history("index"))

    system.register_health_check("index", slower_each_time)
    system.health._clock = lambda: now
    for _ in range(10):
        await system.health.run_once()
    for at in (0.0, 30.0, 60.0):
        system.alerts._loop._clock = functools.partial(float, at)
        system.alerts._loop.run_once()
    firing = {alert for (alert, _), state in system.alerts.states().items() if state == "firing"}
    assert firing == {"LlmkgHealthDegrading"}
    assert system.health.components()[-1].status is HealthStatus.HEALTHY
    await system.shutdown()


async def test_the_health_report_has_every_component_and_is_json(system: ProductionSystem) -> None:
    disk = CheckResult(HealthStatus.WARNING, "90 % full", {"free": 0.1})
    system.register_health_check("disk", lambda: disk, essential=False)
    async with system:
        report = await system.get_health_report()
    assert (report.status, report.lifecycle, report.version) == ("warn", "serving", version("llmkg-otel"))
    names = [component.name for component in report.components]
    assert names == [
        *("engine", "resources", "event_loop", "circuit_breakers", "telemetry", "alert_rules"),
        "disk",
    ]
    body = json.loads(json.dumps(report.to_health_json(), allow_nan=False))
    assert body["checks"]["disk"][0]["output"] == "90 % full"
    assert system.read_health_report().lifecycle == "stopped"


def test_the_log_level_is_that_of_the_configuration(
    make_system: MakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_system(monitoring={"log_level": "error"})
    assert logging.getLogger("llmkg_otel").level == logging.ERROR


def test_uptime_grows(system: ProductionSystem) -> None:
    earlier = system.uptime
    assert 0 < earlier < system.uptime


def test_an_operation_past_the_bound_cannot_be_configured_in_everybodys_name(
    system: ProductionSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmkg_otel.operation.MAX_OPERATIONS", 1)
    system.configure_operation("first", OperationConfig(timeout=1))
    system.configure_operation("first", OperationConfig(timeout=2))
    with pytest.raises(ConfigurationError, match="'second': 1 operations exist already"):
        system.configure_operation("second", OperationConfig(timeout=3))


async def test_a_shutdown_that_overtakes_the_start_wins(system: ProductionSystem) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow_check() -> None:
        begun.set()
        await go_on.wait()

    system.register_health_check("slow", slow_check)
    starting = asyncio.create_task(system.start())
    await begun.wait()
    stopping = asyncio.create_task(system.shutdown())
    for _ in range(5):
        await asyncio.sleep(0)
    assert system.lifecycle.state != "starting"
    go_on.set()
    await starting
    await stopping
    assert system.lifecycle.state == "stopped"


def assert_all_end(before: set[threading.Thread]) -> None:
    """Hold every thread but those to ending by itself: it may have been left at work, not for ever."""
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive(), thread


async def test_a_start_that_fails_half_way_is_cleaned_up(make_system: MakeSystem) -> None:
    engine = StubEngine()
    system = make_system(engine)

    async def fails() -> None:
        raise OSError("no heartbeat today")

    system.heartbeat.start = fails  # type: ignore[method-assign]
    before = set(threading.enumerate())
    with pytest.raises(OSError, match="no heartbeat"):
        async with system:
            pass
    assert (system.closed, engine.closed) == (True, 1)
    assert_all_end(before)


async def test_a_start_that_is_cancelled_is_cleaned_up(make_system: MakeSystem) -> None:
    pinged = asyncio.Event()

    class Slow(StubEngine):
        async def ping(self) -> None:
            pinged.set()
            await asyncio.Event().wait()

    engine = Slow()
    system = make_system(engine)

    async def use() -> None:
        async with system:
            pass

    before = set(threading.enumerate())
    task = asyncio.create_task(use())
    await pinged.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (system.closed, engine.closed) == (True, 1)
    assert_all_end(before)
