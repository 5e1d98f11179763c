"""What recovery makes of engines that hide their cancellation, and of other odd answers."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from llmkg_otel.config import CircuitBreakerConfig, OperationConfig, RetryConfig
from llmkg_otel.recovery.failures import retry_after_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmkg_otel.system import ProductionSystem

    MakeSystem = Callable[..., ProductionSystem]

RETRIES = RetryConfig(max_retries=3, base_delay_ms=0, max_delay_ms=0)


class Converting:
    """A driver that hangs, and whose `except BaseException` makes one error of all."""

    def __init__(self) -> None:
        self.calls = 0
        self.entered = asyncio.Event()

    async def __call__(self) -> None:
        self.calls += 1
        self.entered.set()
        try:
            await asyncio.Event().wait()
        except BaseException as error:
            raise RuntimeError("connection lost") from error


@pytest.mark.parametrize(("idempotent", "calls"), [(False, 1), (True, 4)])
async def test_what_our_timer_cut_short_is_repeated_only_if_that_is_safe(
    make_system: MakeSystem, *, idempotent: bool, calls: int
) -> None:
    system = make_system(retry=RETRIES, circuit_breaker=CircuitBreakerConfig(timeout=0.02))
    system.configure_operation("op", OperationConfig(idempotent=idempotent))
    engine = Converting()
    with pytest.raises(RuntimeError, match="connection lost"):
        await system.execute_protected_operation("op", engine)
    assert engine.calls == calls


async def test_a_cancelled_call_is_neither_repeated_nor_answered_nor_held_against_the_engine(
    make_system: MakeSystem,
) -> None:
    system = make_system(retry=RETRIES, circuit_breaker=CircuitBreakerConfig(failure_threshold=1))
    system.configure_operation("op", OperationConfig(idempotent=True))
    engine = Converting()
    call = asyncio.create_task(
        system.execute_protected_operation("op", engine, fallbacks={"rung": lambda: None})
    )
    await engine.entered.wait()
    call.cancel()
    with pytest.raises(RuntimeError, match="connection lost"):
        await call
    assert engine.calls == 1
    assert system.circuit_breaker("op").state == "closed"


async def test_a_rung_that_hangs_leaves_the_next_one_its_time(make_system: MakeSystem) -> None:
    system = make_system(circuit_breaker=CircuitBreakerConfig(timeout=0.02))

    async def fails() -> str:
        raise ConnectionError

    async def hangs() -> str:
        await asyncio.Event().wait()
        return "never"

    async def refuse() -> str:
        return "later"

    ladder = {"full_text": hangs, "refuse": refuse}
    assert await system.execute_protected_operation("op", fails, fallbacks=ladder) == "later"


@pytest.mark.parametrize("percent", [7, 14, 28, 55, 56])
def test_a_share_of_failures_that_binary_cannot_hold_opens_at_exactly_that_share(
    make_system: MakeSystem, percent: int
) -> None:
    system = make_system(
        retry=RetryConfig(max_retries=0),
        circuit_breaker=CircuitBreakerConfig(
            failure_threshold=1000,
            failure_rate_threshold=percent / 100,
            sliding_window_calls=100,
            minimum_calls=100,
        ),
    )

    def fails() -> None:
        raise ConnectionError

    for number in range(100):
        with suppress(ConnectionError):
            system.execute_protected_operation_sync("op", fails if number >= 100 - percent else lambda: None)
    assert system.circuit_breaker("op").state == "open"


class RaisingError(Exception):
    @property
    def retry_after(self) -> float:
        raise ValueError


class AskingError(Exception):
    def __init__(self, after: object) -> None:
        self.retry_after = after


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (AskingError(0.5), 0.5),
        (AskingError(timedelta(seconds=2)), 2),
        (AskingError(True), 0),
        (AskingError("Wed, 21 Oct 2026 07:28:00 GMT"), 0),
        (RaisingError(), 0),
    ],
    ids=["number", "timedelta", "bool", "text", "raising"],
)
def test_a_wish_is_a_number_of_seconds_or_a_timedelta(error: Exception, seconds: float) -> None:
    assert retry_after_seconds(error) == seconds
