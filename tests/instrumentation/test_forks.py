"""Calls of an instrumented engine go on in forks of its process, protected, whatever the parent has done."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
from support.processes import run
from support.stores import Store, instrumented

from llmkg_otel.errors import RateLimitedError
from llmkg_otel.testing import OtlpReceiver

if TYPE_CHECKING:
    from collections.abc import Callable

PROGRAM = """
import os, sys
sys.path.insert(0, {tests!r})
from support.stores import PROFILE, QUICK, Store
from llmkg_otel import LLMKGInstrumentor

once = {{"operations": {{"store_fetch": {{"rate_limit": "1/hour"}}}}}}
config = ProductionConfig(protect=True, instrumentation={{"profiles": [PROFILE]}}, **QUICK, **once)
LLMKGInstrumentor().instrument(config=config)

def call(key):
    try:
        return Store().fetch(key)
    except Exception as error:
        return type(error).__name__

def in_fork():
    if (child := os.fork()) == 0:
        print(call("child"), call("child"), flush=True)
        trace.get_tracer_provider().force_flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""
TESTS = os.path.dirname(os.path.dirname(__file__))  # noqa: PTH120
MINE = "['child'] RateLimitedError"


AFTER_A_CALL = 'print(call("parent"), flush=True)\nin_fork()\nin_fork()\n'


def test_a_fork_protects_its_calls_by_itself_though_its_parent_has_set_up_the_providers() -> None:
    done = run(PROGRAM.format(tests=TESTS) + AFTER_A_CALL)
    assert done.stdout.splitlines() == ["['parent']", MINE, MINE]
    assert done.stderr.count("its metrics are not exported") == 2  # once in each fork


def test_spans_of_a_fork_are_exported_and_its_metrics_are_not_mixed_with_its_parents() -> None:
    with OtlpReceiver() as receiver:
        run(PROGRAM.format(tests=TESTS) + AFTER_A_CALL, **receiver.environment())
        fetched = [span for span in receiver.spans("fetch") if "error.type" not in span.attributes]
        durations = receiver.metric("llmkg.operation.duration")
    assert len(fetched) == 3  # the very first is among them: the providers are there before it
    assert sum(point.count for point in durations.values()) == 1


def test_a_fork_of_a_process_that_has_made_no_call_is_like_any_process() -> None:
    done = run(PROGRAM.format(tests=TESTS) + "in_fork()\nprint(call('parent'))\n")
    assert done.stdout.splitlines() == [MINE, "['parent']"]
    assert "exported" not in done.stderr


def answer_of_fork(work: Callable[[], list[str]]) -> list[str]:
    """Run work in a fork of this process and return what it returns."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.write(write, "\n".join(work()).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read().decode().split("\n")
    os.waitpid(child, 0)
    return answer


def fetched(store: Store) -> str:
    try:
        return str(store.fetch("k"))
    except RateLimitedError:
        return "limited"


LIMIT: dict[str, Any] = {"protect": True, "operations": {"store_fetch": {"rate_limit": "1/hour"}}}


def test_with_providers_that_were_given_a_fork_makes_a_system_of_its_own() -> None:
    def work() -> list[str]:
        answers = [fetched(Store()) for _ in range(2)]
        return answers + [each.name for each in threading.enumerate() if each.name == "llmkg-protection"]

    with instrumented(**LIMIT):
        Store().fetch("k")
        assert answer_of_fork(work) == ["['k']", "limited", "llmkg-protection"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Python 3.12: of forks where there are threads
def test_calls_of_a_fork_that_was_made_within_a_call_are_calls_by_themselves() -> None:
    answers: list[str] = []

    def fork() -> None:
        answers.extend(answer_of_fork(lambda: [fetched(Store()) for _ in range(2)]))

    with instrumented(**LIMIT):
        Store(fork).fetch("k")
    assert answers == ["['k']", "limited"]
