from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from llmkg_otel.demo import run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.timeout(120)
def test_the_demo_balances_its_books_and_prints_nothing_but_json(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = run.run_demo(duration=9.0, as_json=True, keep=False)
    summary = json.loads(capsys.readouterr().out)
    assert [check for check in summary["checks"] if not check["holds"]] == []
    assert code == 0
    assert summary["refusals"]["rate_limited"] > 0
    assert summary["retries"]["recovered"] > 0
    assert summary["shutdown"]["operations"]["drained"] > 0
    assert {change["state"] for change in summary["breaker_transitions"]} >= {"open", "half_open", "closed"}


def test_a_server_that_fails_makes_the_demo_fail_with_its_last_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit('no such engine')")
    monkeypatch.setattr("llmkg_otel.demo.process.COMMAND", (str(broken),))
    monkeypatch.setattr(run, "real_facts", list)
    assert run.run_demo(duration=1.0, as_json=True, keep=False) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "no such engine" in printed.err
