"""Code in a process of its own: the global providers can be set once in a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from textwrap import dedent
from typing import Any

PREAMBLE = """
import asyncio, json, logging, threading, time
from opentelemetry import _logs, metrics, trace
import llmkg_otel
from llmkg_otel import ProductionConfig, ShutdownConfig, create_production_system

def told(**facts):
    print(json.dumps(facts))

def names():
    return [type(p).__name__ for p in (trace.get_tracer_provider(), metrics.get_meter_provider())]

def make(flush=2):
    shutdown = ShutdownConfig(lame_duck_seconds=0, flush_timeout_seconds=flush)
    return create_production_system(object(), ProductionConfig(shutdown=shutdown))

async def use(system):
    async with system:
        await system.execute_protected_operation("op", lambda: logging.getLogger("engine").warning("hello"))
        return system.get_prometheus_metrics()
"""
SILENT = {f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")}

SPAN = '"name": "llmkg.shutdown"'
"""A span on the console by its own name; "op" is an attribute of metrics too."""


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code after the preamble, warnings as errors; it must end well."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "LLMKG_"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PREAMBLE + dedent(code)],
        env=clean | SILENT | environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done


def facts(code: str, **environment: str) -> Any:
    """Run code and return what it `told`, which must be all that is on its stdout."""
    return json.loads(run(code, **environment).stdout)
