"""A program of one's own under the real `opentelemetry-instrument`, configured by the environment alone."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from support.servers import DEADLINE_SECONDS, SCRIPTS

from llmkg_otel.testing import OtlpReceiver

if TYPE_CHECKING:
    from pathlib import Path

MEMORY = """
import asyncio

class Memory:
    broken = 0

    async def recall(self, what):
        await asyncio.sleep(0)
        if self.broken:
            self.broken -= 1
            raise ConnectionError("no memory of " + what)
        return f"all about {what}"

    def forget(self):
        if self.broken:
            self.broken -= 1
            raise ConnectionError("cannot forget")
"""
APP = """
import asyncio, sys
from acme_memory import Memory

memory = Memory()
memory.broken = 2
try:
    print(asyncio.run(memory.recall("Ada")))
    memory.forget()
except ConnectionError as error:
    print(error)
"""


def run(tmp_path: Path, app: str = APP, **environment: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "acme_memory.py").write_text(MEMORY)
    (tmp_path / "app.py").write_text(app)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "LLMKG_"))}
    silent = {f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")}
    path = {"PATH": f"{SCRIPTS}:{os.environ['PATH']}"}
    return subprocess.run(
        [SCRIPTS / "opentelemetry-instrument", "python", tmp_path / "app.py"],
        env=clean | silent | path | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_SECONDS,
        cwd="/",
    )


RETRY = {
    "LLMKG_INSTRUMENT": "acme_memory:Memory",
    "LLMKG_PROTECT": "true",
    "LLMKG_RETRY__BASE_DELAY_MS": "0",
    "LLMKG_RETRY__MAX_DELAY_MS": "0",
}


def test_a_class_beside_the_program_is_told_of_by_name_alone(tmp_path: Path) -> None:
    with OtlpReceiver() as receiver:
        done = run(tmp_path, LLMKG_INSTRUMENT="acme_memory:Memory", **receiver.environment())
        [recalled] = receiver.spans(scope="llmkg_otel", kind="CLIENT")
    assert done.stdout == "no memory of Ada\n", done.stderr
    assert (recalled.name, recalled.attributes["db.system.name"]) == ("recall", "memory")
    assert recalled.attributes["error.type"] == "ConnectionError"
    assert "Ada" not in str(recalled)


def test_retries_come_from_the_environment_and_only_where_they_are_said_to_be_harmless(
    tmp_path: Path,
) -> None:
    assert run(tmp_path, **RETRY).stdout == "no memory of Ada\n"
    harmless = {"LLMKG_OPERATIONS__MEMORY_RECALL__IDEMPOTENT": "true"}
    with OtlpReceiver() as receiver:
        done = run(tmp_path, **RETRY, **harmless, **receiver.environment())
        events = receiver.logs("llmkg.retry.scheduled")
        states = receiver.metric("llmkg.lifecycle.status")
    assert done.stdout == "all about Ada\n", done.stderr
    assert len(events) == 2
    assert ("state", "flushing") in {each for key, point in states.items() if point.value for each in key}


def test_a_file_names_profiles_and_policies(tmp_path: Path) -> None:
    (tmp_path / "llmkg.yaml").write_text("""
protect: true
instrumentation:
  profiles:
    - name: memory
      classes: ["acme_memory:Memory"]
      system: acme
      methods:
        recall: {write: false, timeout_seconds: 5, text: what}
  capture_text: true
retry: {base_delay_ms: 0, max_delay_ms: 0, max_retries: 1}
""")
    with OtlpReceiver() as receiver:
        done = run(tmp_path, LLMKG_CONFIG=str(tmp_path / "llmkg.yaml"), **receiver.environment())
        [recalled] = receiver.spans(scope="llmkg_otel", kind="CLIENT")
    assert done.stdout == "no memory of Ada\n", done.stderr
    assert recalled.attributes["db.system.name"] == "acme"
    assert recalled.attributes["db.query.text"] == "Ada"
    assert recalled.attributes["llmkg.operation.attempts"] == 2


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("other=acme_memry:Memory", "no module acme_memry; did you mean acme_memory?"),
        ("acme_memory:Memry", "did you mean Memory?"),
    ],
)
def test_a_misspelt_class_is_told_in_words_and_the_others_and_the_program_go_on(
    tmp_path: Path, named: str, message: str
) -> None:
    targets = {"LLMKG_INSTRUMENT": f"{named},acme_memory:Memory"}
    harmless = {"LLMKG_OPERATIONS__MEMORY_RECALL__IDEMPOTENT": "true"}
    done = run(tmp_path, **RETRY | targets | harmless)
    assert done.stdout == "all about Ada\n", done.stderr
    assert done.stderr.count(message) == 1


@pytest.mark.parametrize(
    "variable",
    [
        {"LLMKG_OPERATIONS__MEMORY_RECALLALL__IDEMPOTENT": "true"},
        {"LLMKG_OPERATIONS": '{"memory_recallAll": {"idempotent": true}}'},
    ],
)
def test_an_operation_with_capitals_in_its_name_is_configured_by_variables(
    tmp_path: Path, variable: dict[str, str]
) -> None:
    app = """
from acme_memory import Memory
class Memories(Memory):
    def recallAll(self):
        if self.broken:
            self.broken -= 1
            raise ConnectionError("not now")
        return "all"
"""
    (tmp_path / "acme_memories.py").write_text(app)
    use = "from acme_memories import Memories\nmine = Memories()\nmine.broken = 2\nprint(mine.recallAll())"
    targets = {"LLMKG_INSTRUMENT": "memory=acme_memories:Memories"}
    with OtlpReceiver() as receiver:
        done = run(tmp_path, use, **RETRY | targets | variable, **receiver.environment())
        names = {dict(each)["name"] for each in receiver.metric("llmkg.circuit_breaker.status")}
    assert done.stdout == "all\n", done.stderr
    assert names & {"memory_recallall", "memory_recallAll"} == {"memory_recallAll"}


def test_a_process_ends_in_time_though_a_thread_of_it_never_comes_back(tmp_path: Path) -> None:
    app = """
import threading, time
import acme_memory
acme_memory.Memory.forget.__wrapped__
memory = acme_memory.Memory()
acme_memory.Memory.broken = property(lambda self: entered.set() or time.sleep(1000))
entered = threading.Event()
threading.Thread(target=memory.forget, daemon=True).start()
entered.wait()
print("over")
"""
    done = run(tmp_path, app, **RETRY)
    assert (done.returncode, done.stdout) == (0, "over\n"), done.stderr


def test_the_programs_own_exit_handlers_may_still_call_the_engine(tmp_path: Path) -> None:
    app = """
import asyncio, atexit
from acme_memory import Memory

atexit.register(lambda: print(asyncio.run(Memory().recall("the end"))))
print(asyncio.run(Memory().recall("the beginning")))
"""
    done = run(tmp_path, app, **RETRY)
    assert done.stdout == "all about the beginning\nall about the end\n", done.stderr
    assert done.stderr == ""


def test_a_class_that_the_set_up_itself_calls_may_be_protected(tmp_path: Path) -> None:
    app = "import threading\nthreading.Thread(target=print, args=('over',)).start()"
    done = run(tmp_path, app, **RETRY | {"LLMKG_INSTRUMENT": "threading:Thread"})
    assert (done.returncode, done.stdout) == (0, "over\n"), done.stderr
