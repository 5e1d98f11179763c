"""What the README shows is run as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llmkg_otel.cli import main
from llmkg_otel.telemetry.semconv import INSTRUMENTS

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("guide", "recovery", "alerting", "engines")),
]
EXAMPLES = [
    pytest.param(code, id=f"{page.name}-{number}")
    for page in PAGES
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL), 1)
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_every_example_runs(code: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "LLMKG_SHUTDOWN__LAME_DUCK_SECONDS": "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr


def test_the_first_example_is_at_most_twelve_lines() -> None:
    first = re.findall(r"```python\n(.*?)```", PAGES[0].read_text(), re.DOTALL)[0]
    assert len([line for line in first.splitlines() if line.strip()]) <= 12


def test_every_metric_and_alert_that_the_readme_names_exists() -> None:
    text = PAGES[0].read_text()
    known = {instrument.name.replace(".", "_") for instrument in INSTRUMENTS}
    named = set(re.findall(r"\bllmkg_[a-z_]+", text)) - {"llmkg_otel"}
    assert {name for name in named if not any(name.startswith(metric) for metric in known)} == set()
    rules = yaml.safe_load((ROOT / "llmkg_otel" / "alerting" / "default_rules.yaml").read_text())
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule}
    mentioned = set(re.findall(r"\bLlmkg\w+", text))
    assert mentioned
    assert mentioned <= alerts


def test_every_command_that_the_pages_show_exists(capsys: pytest.CaptureFixture[str]) -> None:
    shown = {match for page in PAGES for match in re.findall(r"llmkg-otel ([a-z]+)", page.read_text())}
    assert shown
    for command in shown:
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
    capsys.readouterr()


def test_every_link_between_the_pages_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([\w./-]+)\)", page.read_text()):
            assert (page.parent / target).exists(), target
