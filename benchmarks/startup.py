"""Measure how soon `llmkg-otel serve` is ready, and its memory: `python benchmarks/startup.py` (about 90 s).

Time is from starting the installed command on an empty engine file to the first 200 of /readyz; memory
is read once the server has been quiet for some seconds. Compiled files are used, from a directory that the
first start fills; that start is shown apart. Beside it, what cannot be cut: an interpreter that
imports FastMCP and uvicorn, and the least FastMCP server, to its first answer to anything.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil
from _measure import aligned, machine, verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

READY_AT_MOST = 2.0
MEMORY_AT_MOST = 120.0
PATIENCE = 60.0

LEAST_SERVER = """
import sys, uvicorn
from fastmcp import FastMCP
server = FastMCP("least")
@server.tool
def nothing() -> int: return 1
app = server.http_app(path="/mcp", stateless_http=True, json_response=True)
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_config=None, access_log=False)
"""


class Memory(NamedTuple):
    """MB: resident, and resident with shared pages shared out among those who share them."""

    rss: float
    pss: float


class Run(NamedTuple):
    """Seconds until the first answer, CPU seconds until then, and the memory afterwards."""

    seconds: float
    cpu: float
    memory: Memory


def spare_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def environment(directory: Path) -> dict[str, str]:
    """Return ours, less what would set the server up or keep Python from using compiled files."""
    dropped = ("OTEL_", "LLMKG_", "PYTHONDONTWRITEBYTECODE")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
    return kept | {
        "PYTHONPYCACHEPREFIX": str(directory / "pycache"),
        "LLMKG_SHUTDOWN__LAME_DUCK_SECONDS": "0",
    }


@contextlib.contextmanager
def running(
    command: Sequence[str], settings: Mapping[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command until the end of the block, then end it: with SIGTERM, and after 10 s with SIGKILL."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=settings)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(port: int, path: str, *, any_status: bool) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200 or any_status
    except OSError:
        return False
    finally:
        connection.close()


def time_to_answer(command: Sequence[str], port: int, path: str, quiet: float, directory: Path) -> Run:
    log = directory / f"{port}.log"
    start = time.perf_counter()
    with running(command, environment(directory), log) as process:
        while not answers(port, path, any_status=path == "/"):
            if process.poll() is not None or time.perf_counter() - start > PATIENCE:
                raise RuntimeError(f"{command[0]} did not answer: {log.read_text()[-2000:]}")
            time.sleep(0.005)
        seconds = time.perf_counter() - start
        times = psutil.Process(process.pid).cpu_times()
        time.sleep(quiet)
        return Run(seconds, times.user + times.system, memory_of(process.pid))


def memory_of(pid: int) -> Memory:
    info = psutil.Process(pid).memory_full_info()
    return Memory(info.rss / 1e6, info.pss / 1e6)


def serve(directory: Path, quiet: float) -> Run:
    port, ops_port = spare_ports(2)
    command = [
        str(Path(sys.executable).with_name("llmkg-otel")),
        *("serve", "--engine-path", str(directory / f"{port}.db")),
        *("--port", str(port), "--ops-port", str(ops_port)),
    ]
    return time_to_answer(command, ops_port, "/readyz", quiet, directory)


def least_server(directory: Path, quiet: float) -> Run:
    port = spare_ports(1)[0]
    return time_to_answer([sys.executable, "-c", LEAST_SERVER, str(port)], port, "/", quiet, directory)


def imports(directory: Path) -> Run:
    """Return what an interpreter costs that imports what every FastMCP server needs, and does nothing."""
    code = "import sys, uvicorn; from fastmcp import FastMCP; print(flush=True); sys.stdin.read()"
    pipe = subprocess.PIPE
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=pipe, stdout=pipe, env=environment(directory)
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        seconds = time.perf_counter() - start
        times = psutil.Process(process.pid).cpu_times()
        return Run(seconds, times.user + times.system, memory_of(process.pid))


def row(name: str, runs: Sequence[Run]) -> list[str]:
    seconds = [run.seconds for run in runs]
    values = (
        min(seconds),
        statistics.median(seconds),
        max(seconds),
        statistics.median(run.cpu for run in runs),
    )
    memory = (statistics.median(run.memory[i] for run in runs) for i in (0, 1))
    return [name, *(f"{value:.2f}" for value in values), *(f"{value:.0f}" for value in memory)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="starts of each (5)")
    parser.add_argument("--quiet", type=float, default=5.0, help="seconds of quiet before memory is read (5)")
    options = parser.parse_args()
    print(f"{machine()}; {options.runs} starts each, memory after {options.quiet:g} s of quiet\n")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        first = serve(directory, 0.0)
        ours = [serve(directory, options.quiet) for _ in range(options.runs)]
        least = [least_server(directory, 1.0) for _ in range(options.runs)]
        floor = [imports(directory) for _ in range(options.runs)]
    head = ["", "min s", "median s", "max s", "CPU s", "RSS MB", "PSS MB"]
    rows = [head, row("import FastMCP, uvicorn", floor), row("least FastMCP server", least)]
    rows += [row("llmkg-otel serve", ours), row("  first start, compiling", [first])]
    print(aligned(rows), end="\n\n")
    ready = statistics.median(run.seconds for run in ours)
    memory = statistics.median(run.memory.rss for run in ours)
    print(verdict("ready, median", ready, READY_AT_MOST, at_most=True, unit=" s"))
    print(verdict("idle RSS, median", memory, MEMORY_AT_MOST, at_most=True, unit=" MB"))


if __name__ == "__main__":
    main()
