"""Programs on real engines, which live in a virtual environment of their own: `make engines`."""

from __future__ import annotations

import json
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
APPS = ROOT / "tests" / "instrumentation" / "apps"
BIN = Path(os.environ.get("TEST_ENGINES_VENV", ROOT / ".venv-engines")).absolute() / "bin"

needs_engines = pytest.mark.skipif(
    not (BIN / "python").exists(), reason="the engines are not installed (make engines)"
)

QUICK = {"LLMKG_RETRY__BASE_DELAY_MS": "0", "LLMKG_RETRY__MAX_DELAY_MS": "0"}


def run(app: str, environment: dict[str, str] | None = None) -> Any:
    """Run a program, `app` with its arguments, and return the JSON it prints.

    With an environment it runs under `opentelemetry-instrument`, exporting nothing unless that says so.
    """
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "LLMKG_"))}
    silent = {f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")}
    path = {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    name, *arguments = app.split()
    instrument = [] if environment is None else [str(BIN / "opentelemetry-instrument")]
    done = subprocess.run(
        [*instrument, str(BIN / "python"), str(APPS / name), *arguments],
        env=clean | silent | path | (environment or {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@cache
def bare(app: str) -> Any:
    """Return what a program prints without any layer."""
    return run(app)
