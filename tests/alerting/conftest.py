"""promtool as a fixture, and an observer that keeps what it is told."""

import shutil
from pathlib import Path

import pytest
from support.prometheus import Promtool, Recorder


@pytest.fixture
def promtool(tmp_path: Path) -> Promtool:
    path = shutil.which("promtool")
    if path is None:
        pytest.skip("promtool (Debian package prometheus) is not installed")
    return Promtool(path, tmp_path)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()
