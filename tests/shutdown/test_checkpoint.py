"""Saving checkpoints: whole or not there, the last few kept, and a failure told and survived."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from hashlib import sha256
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest
from support.checkpoints import Saving, embedded, names
from support.engines import StubEngine
from support.time import settle

from llmkg_otel.config import CheckpointConfig, ProductionConfig
from llmkg_otel.engine.embedded import EmbeddedKnowledgeEngine
from llmkg_otel.engine.protocol import Fact
from llmkg_otel.errors import ConfigurationError
from llmkg_otel.events import CheckpointEnded
from llmkg_otel.shutdown.checkpoint import config_fingerprint
from llmkg_otel.shutdown.manifest import CheckpointError, checkpoints_in, verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from llmkg_otel.system import ProductionSystem
    from llmkg_otel.testing import CapturedTelemetry

    MakeSystem = Callable[..., ProductionSystem]


class Backups(StubEngine):
    """Backs up a few bytes, or does what the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0
        self.error: Exception | None = None
        self.hangs = False

    async def backup(self, dest: Path) -> None:
        self.made += 1
        dest.write_bytes(b"half a")  # noqa: ASYNC240 - a few bytes
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        dest.write_bytes(b"whole %d" % self.made)  # noqa: ASYNC240


async def test_a_checkpoint_is_the_engines_data_and_a_manifest_that_tells_about_it(tmp_path: Path) -> None:
    async with embedded(tmp_path) as engine:
        saving = Saving(engine, tmp_path / "saved")
        saved = await saving.checkpoints.save()
    assert names(saved.parent) == ["checkpoint-00000001"]
    assert names(saved) == ["data", "manifest.json"]
    manifest = verify(saved)
    assert manifest.sha256 == sha256((saved / "data").read_bytes()).hexdigest()
    assert (manifest.engine, manifest.schema_version) == ("sqlite", 1)
    assert manifest.counts == {"facts": 2, "passages": 0, "nodes": 4}
    assert manifest.library_version == version("llmkg-otel")
    assert manifest.config_fingerprint == config_fingerprint(saving.config)
    async with EmbeddedKnowledgeEngine(saved / "data") as copy:
        assert [fact.subject for fact in await copy.find_facts()] == ["Paris", "Rome"]


def test_the_fingerprint_changes_with_an_option_and_tells_no_secret() -> None:
    one, two = (config_fingerprint(ProductionConfig(auth_tokens={"ann": word * 16})) for word in "ab")
    assert one == two
    assert one != config_fingerprint(
        ProductionConfig(auth_tokens={"ann": "a" * 16}, retry={"max_retries": 9})
    )


async def test_the_last_few_are_kept_and_numbers_go_on(tmp_path: Path) -> None:
    saving = Saving(Backups(), tmp_path / "saved", keep=2)
    for _ in range(4):
        await saving.checkpoints.save()
    assert names(saving.directory) == ["checkpoint-00000003", "checkpoint-00000004"]
    again = Saving(Backups(), tmp_path / "saved", keep=1)
    await again.checkpoints.save()
    assert names(saving.directory) == ["checkpoint-00000005"]


async def test_one_is_saved_at_every_interval_until_the_last(tmp_path: Path) -> None:
    engine = Backups()
    saving = Saving(engine, tmp_path, interval_seconds=60)
    saving.checkpoints.start()
    for expected in (1, 2):
        await saving.time.advance(60)
        await asyncio.wait_for(until(lambda: len(saving.seen) == expected), 5)  # noqa: B023
        await settle()
    await saving.checkpoints.save_last()
    assert engine.made == 3
    await saving.time.advance(1000)
    assert engine.made == 3


async def test_without_an_interval_only_the_last_is_saved(tmp_path: Path) -> None:
    saving = Saving(Backups(), tmp_path, interval_seconds=None)
    saving.checkpoints.start()
    await saving.time.advance(1e6)
    assert saving.checkpoints.failing is None
    await saving.checkpoints.save_last()
    assert names(tmp_path) == ["checkpoint-00000001"]


async def test_a_backup_that_fails_is_told_leaves_nothing_and_the_next_one_is_made(tmp_path: Path) -> None:
    engine = Backups()
    saving = Saving(engine, tmp_path)
    whole = await saving.checkpoints.save()
    engine.error = OSError("the disk is gone")
    with pytest.raises(OSError, match="the disk is gone"):
        await saving.checkpoints.save()
    assert names(tmp_path) == [whole.name]
    verify(whole)
    failing = saving.checkpoints.failing
    assert failing == "the last save failed: OSError: the disk is gone"
    engine.error = None
    await saving.checkpoints.save()
    assert saving.checkpoints.failing is None
    ended = [event for event in saving.seen if isinstance(event, CheckpointEnded)]
    assert [(each.name, each.error) for each in ended] == [
        ("checkpoint-00000001", None),
        (None, "OSError: the disk is gone"),
        ("checkpoint-00000002", None),
    ]


async def test_a_backup_that_hangs_is_given_up_and_the_schedule_goes_on(tmp_path: Path) -> None:
    engine = Backups()
    engine.hangs = True
    saving = Saving(engine, tmp_path, interval_seconds=60, timeout_seconds=0.05)
    saving.checkpoints.start()
    await saving.time.advance(60)
    await asyncio.wait_for(until(lambda: saving.checkpoints.failing), 5)
    assert saving.checkpoints.failing == "the last save failed: not done within 0.05 s"
    await settle()
    assert names(tmp_path) == []
    engine.hangs = False
    await saving.time.advance(60)
    await asyncio.wait_for(until(lambda: checkpoints_in(tmp_path)), 5)
    await saving.checkpoints.save_last()


async def test_a_save_given_up_while_it_is_sealed_leaves_a_whole_one_or_none(tmp_path: Path) -> None:
    sealing, go_on = threading.Event(), threading.Event()

    class Asked(Backups):
        @property
        def schema_version(self) -> int:
            sealing.set()
            go_on.wait(5)
            return 1

    saving = asyncio.create_task(Saving(Asked(), tmp_path).checkpoints.save())
    await asyncio.to_thread(sealing.wait, 5)
    saving.cancel()
    await settle()
    go_on.set()
    await asyncio.wait({saving})
    assert names(tmp_path) == ["checkpoint-00000001"]
    verify(tmp_path / "checkpoint-00000001")


async def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    saving = Saving(Backups(), tmp_path / "file" / "saved")
    with pytest.raises(NotADirectoryError):
        await saving.checkpoints.save()
    assert "NotADirectoryError" in (saving.checkpoints.failing or "")


async def test_a_backup_that_leaves_no_file_is_no_checkpoint(tmp_path: Path) -> None:
    engine = Backups()
    engine.backup = lambda _dest: asyncio.sleep(0)  # type: ignore[method-assign, assignment]
    with pytest.raises(CheckpointError, match="left no file"):
        await Saving(engine, tmp_path).checkpoints.save()
    assert names(tmp_path) == []


async def test_saves_that_do_not_come_are_a_reason_to_worry(tmp_path: Path) -> None:
    saving = Saving(Backups(), tmp_path, interval_seconds=60, timeout_seconds=5)
    saving.time.now += 125
    assert saving.checkpoints.failing is None
    saving.time.now += 1
    assert saving.checkpoints.failing == "nothing was saved for 126 s"


async def test_what_a_dead_process_left_is_swept_and_what_a_living_one_makes_is_not(tmp_path: Path) -> None:
    remains = tmp_path / ".partial-of-the-dead"
    remains.mkdir()
    (remains / "data").write_bytes(b"half")
    living = Backups()
    living.hangs = True
    other = asyncio.create_task(Saving(living, tmp_path).checkpoints.save())
    await asyncio.wait_for(until(lambda: living.made), 5)
    assert not remains.exists()
    await Saving(Backups(), tmp_path).checkpoints.save()
    assert [name.startswith(".partial-") for name in names(tmp_path)] == [True, False]
    other.cancel()
    await asyncio.wait({other})
    assert names(tmp_path) == ["checkpoint-00000001"]


def test_a_directory_for_an_engine_without_backup_is_a_wrong_configuration(
    make_system: MakeSystem, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=r"checkpoint\.directory: StubEngine has no backup"):
        make_system(checkpoint={"directory": tmp_path})


async def test_a_shutdown_saves_between_the_drain_and_the_clean_up(
    make_system: MakeSystem, telemetry: CapturedTelemetry, tmp_path: Path
) -> None:
    engine = Backups()
    system = make_system(engine, checkpoint={"directory": tmp_path})
    async with system:
        pass
    report = await system.shutdown()
    assert report.clean
    assert [phase.name for phase in report.phases][1:4] == ["draining", "checkpointing", "cleaning_up"]
    assert len(checkpoints_in(tmp_path)) == 1
    (shutdown,) = telemetry.spans("llmkg.shutdown")
    children = [span.name for span in telemetry.spans() if span.parent == shutdown.context]
    assert children[2:4] == ["llmkg.checkpoint", "llmkg.shutdown.checkpointing"]


async def test_a_shutdown_goes_on_when_the_last_checkpoint_hangs(
    make_system: MakeSystem, telemetry: CapturedTelemetry, tmp_path: Path
) -> None:
    engine = Backups()
    engine.hangs = True
    system = make_system(engine, checkpoint=CheckpointConfig(directory=tmp_path, timeout_seconds=0.05))
    async with system:
        pass
    report = await system.shutdown()
    assert not report.clean
    assert {phase.name for phase in report.phases if phase.outcome != "ok"} == {"checkpointing"}
    assert engine.closed == 1
    assert "no checkpoint saved: " in " ".join(str(each.log_record.body) for each in telemetry.logs())


async def test_a_checkpoint_that_keeps_failing_is_a_warning_of_health(
    make_system: MakeSystem, tmp_path: Path
) -> None:
    engine = Backups()
    engine.error = OSError("no space")
    system = make_system(engine, checkpoint={"directory": tmp_path})
    assert system.checkpoints is not None
    with pytest.raises(OSError, match="no space"):
        await system.checkpoints.save()
    components = {each.name: each for each in await system.health.run_once()}
    assert components["checkpoints"].status == "warn"
    assert components["checkpoints"].message == "the last save failed: OSError: no space"
    assert "age_seconds" in components["checkpoints"].data
    assert system.probes.readiness().reasons == ("lifecycle: starting",)


@contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    """Mount a file system of 1 MB."""
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(path)], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("a file system cannot be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


FILLER = [Fact(f"subject {number} {'x' * 200}", "p", "o") for number in range(2000)]


async def test_a_full_disk_is_told_and_the_old_checkpoints_stay_whole(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        async with embedded(tmp_path) as engine:
            saving = Saving(engine, disk)
            whole = await saving.checkpoints.save()
            await engine.store_facts(FILLER)
            with pytest.raises(Exception, match="full"):
                await saving.checkpoints.save()
            assert names(disk) == [whole.name]
            assert verify(whole).counts["facts"] == 2
            assert "full" in (saving.checkpoints.failing or "")


def test_a_file_that_may_not_grow_leaves_nothing_behind(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands in for a full disk where nothing can be mounted."""
    child = f"""
import asyncio, resource, signal
from pathlib import Path
from support.checkpoints import Saving, embedded, names
from llmkg_otel.engine.protocol import Fact

async def main():
    path = Path({str(tmp_path)!r})
    async with embedded(path) as engine:
        saving = Saving(engine, path / "saved")
        await saving.checkpoints.save()
        await engine.store_facts([Fact("s" * 200 + str(n), "p", "o") for n in range(5000)])
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
        try:
            await saving.checkpoints.save()
        except Exception as error:
            print(type(error).__name__, saving.checkpoints.failing, names(path / "saved"))

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", child],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert "the last save failed" in done.stdout, done.stderr
    assert done.stdout.endswith("['checkpoint-00000001']\n")


async def until(condition: Callable[[], Any]) -> None:
    while not condition():  # noqa: ASYNC110 - it happens in a thread
        await asyncio.sleep(0.002)


@pytest.mark.parametrize("keep_bytes", [0, 1, 100, -1])
async def test_a_truncated_manifest_is_told(tmp_path: Path, keep_bytes: int) -> None:
    saved = await Saving(Backups(), tmp_path).checkpoints.save()
    manifest = saved / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().rstrip()[:keep_bytes])
    with pytest.raises(CheckpointError, match=r"manifest\.json cannot be read"):
        verify(saved)


async def test_a_manifest_of_a_later_release_is_told(tmp_path: Path) -> None:
    saved = await Saving(Backups(), tmp_path).checkpoints.save()
    manifest = saved / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"manifest_version": 2}))
    with pytest.raises(CheckpointError, match="manifest_version Input should be 1"):
        verify(saved)


@pytest.mark.parametrize("position", [0, 3, -1])
async def test_any_changed_byte_of_the_data_is_found(tmp_path: Path, position: int) -> None:
    saved = await Saving(Backups(), tmp_path).checkpoints.save()
    data = bytearray((saved / "data").read_bytes())
    data[position] ^= 1
    (saved / "data").write_bytes(data)
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        verify(saved)
