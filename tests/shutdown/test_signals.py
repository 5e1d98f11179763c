from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
from contextvars import ContextVar

import pytest

from llmkg_otel._threads import in_daemon_thread
from llmkg_otel.shutdown.signals import shutdown_signals


def python(program: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True
    )


async def test_the_first_signal_of_either_kind_begins_and_each_later_one_forces() -> None:
    seen: asyncio.Queue[str] = asyncio.Queue()
    at_once = []
    with shutdown_signals(
        lambda: seen.put_nowait("first"), lambda: seen.put_nowait("again"), lambda: at_once.append(1)
    ):
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), each)
        assert at_once == [1]  # the loop has not had a turn
        assert [await seen.get() for _ in range(3)] == ["first", "again", "again"]


async def test_the_handlers_that_were_there_are_put_back_even_after_an_error() -> None:
    def handlers() -> list[object]:
        return [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]

    def fail() -> None:
        with shutdown_signals(print, print):
            assert not set(handlers()) & set(before)
            raise ZeroDivisionError

    before = handlers()
    with pytest.raises(ZeroDivisionError):
        fail()
    assert handlers() == before


def test_outside_the_main_thread_it_says_what_to_do() -> None:
    async def install() -> None:
        with shutdown_signals(print, print):
            pass

    future = in_daemon_thread(lambda: asyncio.run(install()), "loop")
    with pytest.raises(RuntimeError, match="main thread only; run the loop there"):
        future.result()


def test_a_second_signal_forces_a_shutdown_that_would_have_waited_an_hour() -> None:
    process = python(
        """
        import asyncio
        from llmkg_otel.config import ShutdownConfig
        from llmkg_otel.shutdown.calls import ActiveCalls
        from llmkg_otel.shutdown.sequence import Lifecycle, ShutdownSequence
        from llmkg_otel.shutdown.signals import shutdown_signals

        class Printer:
            def on_event(self, event):
                print(getattr(event, "state", ""), flush=True)

        async def flush(timeout):
            return None

        async def main():
            lifecycle = Lifecycle(Printer())
            config = ShutdownConfig(lame_duck_seconds=3600)
            sequence = ShutdownSequence(config, Printer(), lifecycle, ActiveCalls(), flush)
            begun = asyncio.Event()
            with shutdown_signals(begun.set, sequence.force):
                lifecycle.advance("serving")
                await begun.wait()
                report = await sequence.run()
            print("clean" if report.clean else report)

        asyncio.run(main())
        """
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "serving\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "lame_duck\n"
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read().split()
    assert (process.returncode, rest[-2:]) == (0, ["stopped", "clean"])


def test_a_thread_that_hangs_does_not_keep_the_process_alive() -> None:
    process = python(
        """
        import asyncio, threading
        from llmkg_otel._threads import in_daemon_thread

        async def main():
            future = asyncio.wrap_future(in_daemon_thread(threading.Event().wait, "hangs"))
            await asyncio.wait({future}, timeout=0.01)
            print(future.done())

        asyncio.run(main())
        """
    )
    output, _ = process.communicate(timeout=30)
    assert (process.returncode, output) == (0, "False\n")


def test_a_thread_sees_the_context_of_its_caller_and_answers() -> None:
    caller = ContextVar("caller", default="nobody")
    caller.set("test")
    future = in_daemon_thread(lambda: (caller.get(), threading.current_thread().name), "named")
    assert future.result() == ("test", "named")


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), StopIteration()])
def test_what_a_loop_cannot_take_from_a_future_arrives_as_a_runtime_error(error: BaseException) -> None:
    def raise_it() -> None:
        raise error

    with pytest.raises(RuntimeError, match=type(error).__name__):
        in_daemon_thread(raise_it, "exits").result()


def test_an_error_arrives_as_the_same_object() -> None:
    error = OSError("disk")

    def raise_it() -> None:
        raise error

    assert in_daemon_thread(raise_it, "fails").exception() is error
