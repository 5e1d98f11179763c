"""promtool as a fixture, and an observer that keeps what it is told."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from support import promtool3 as cache
from support.monitoring import Alertmanager, alertmanager
from support.prometheus import Promtool, Recorder
from support.receiver import Receiver, receiving


@pytest.fixture(params=["2.42", "3.5"])
def promtool(tmp_path: Path, request: pytest.FixtureRequest) -> Promtool:
    """Debian's promtool, and one of the version that is the reference."""
    path = shutil.which("promtool") if request.param == "2.42" else cache.find()
    if path is None and request.param == "2.42":
        pytest.skip("promtool, of Debian's package prometheus, is not installed")
    return Promtool(path or _skip_3(), tmp_path)


def _skip_3() -> NoReturn:
    """Skip; where Go could have built it, `not installed` makes that a failure in CI."""
    state = "not installed" if shutil.which("go") else "not here, nor Go, which builds it"
    pytest.skip(f"promtool 3.5 is {state}: see tests/support/promtool3.py")


@pytest.fixture
def promtool3(tmp_path_factory: pytest.TempPathFactory) -> Promtool:
    return Promtool(cache.find() or _skip_3(), tmp_path_factory.mktemp("promtool"))


@pytest.fixture
def reference(tmp_path_factory: pytest.TempPathFactory) -> Promtool:
    """promtool 3.5, which generated tests need; Debian's 2.42 where it was not built."""
    path = cache.find() or shutil.which("promtool")
    if path is None:
        pytest.skip("promtool is not installed")
    return Promtool(path, tmp_path_factory.mktemp("promtool"))


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Somebody to be told of alerts."""
    with receiving() as server:
        yield server


@pytest.fixture
def manager(tmp_path: Path, receiver: Receiver) -> Iterator[Alertmanager]:
    """An Alertmanager that tells the receiver; it is not started yet."""
    daemon = alertmanager(tmp_path / "alertmanager", receiver.url)
    yield daemon
    daemon.kill()
