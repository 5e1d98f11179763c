from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from llmkg_otel.cli import main
from llmkg_otel.config import ProductionConfig
from llmkg_otel.shutdown.budget import longest_shutdown, misfit, patience, shutdown_deadline

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from llmkg_otel.system import ProductionSystem
    from llmkg_otel.testing import CapturedTelemetry


def test_the_defaults_fit_the_default_grace_period_with_and_without_checkpoints(tmp_path: Path) -> None:
    without, with_them = ProductionConfig(), ProductionConfig(checkpoint={"directory": tmp_path})
    assert (longest_shutdown(without), longest_shutdown(with_them)) == (52, 60)
    assert misfit(without) is misfit(with_them) is None


def test_the_deadline_is_the_grace_period_where_the_phases_do_not_fit_it() -> None:
    config = ProductionConfig(shutdown={"termination_grace_period_seconds": 30})
    assert (shutdown_deadline(config), patience(config)) == (30, 24)
    assert shutdown_deadline(ProductionConfig()) == 52
    assert patience(ProductionConfig(shutdown={"termination_grace_period_seconds": 3})) == 0


async def test_a_start_warns_when_the_phases_do_not_fit(
    make_system: Callable[..., ProductionSystem], telemetry: CapturedTelemetry
) -> None:
    async with make_system(
        shutdown={"lame_duck_seconds": 0, "termination_grace_period_seconds": 30}
    ) as system:
        system.force_shutdown()
    (warning,) = [
        str(each.log_record.body) for each in telemetry.logs() if each.log_record.severity_text == "WARN"
    ]
    assert "a shutdown can take 47 s, and shutdown.termination_grace_period_seconds is 30" in warning


@pytest.mark.parametrize(("options", "seconds"), [((), "60"), (("--pre-stop", "5"), "65")])
def test_the_grace_period_that_a_pod_needs_can_be_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], seconds: str
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("checkpoint: {directory: /data/checkpoints}\n")
    assert main(["config", "grace", "--config", str(file), *options]) == 0
    assert capsys.readouterr().out == f"{seconds}\n"


async def test_a_shutdown_that_outlasts_its_grace_period_forces_itself_and_still_flushes(
    make_system: Callable[..., ProductionSystem],
) -> None:
    hanging = asyncio.Event()
    system = make_system(
        shutdown={
            "lame_duck_seconds": 0,
            "cleanup_timeout_seconds": 100,
            "flush_timeout_seconds": 2,
            "termination_grace_period_seconds": 3.05,
        }
    )
    for name in ("one", "two"):
        system.register_shutdown_handler(name, hanging.wait)
    async with system:
        pass
    report = await system.shutdown()
    outcomes = {phase.name: (phase.outcome, phase.error) for phase in report.phases}
    words = "the shutdown's time was up"
    assert outcomes["cleaning_up"] == ("timed_out", f"two: {words}; one: {words}")
    assert outcomes["flushing"] == ("ok", None)
    assert report.total_duration < 3.05
