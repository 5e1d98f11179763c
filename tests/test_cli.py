from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from llmkg_otel.cli import main
from llmkg_otel.doctor import version_skew

if TYPE_CHECKING:
    from pathlib import Path


def test_config_show_tells_each_value_and_where_it_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[retry]\nmax_retries = 7\n")
    monkeypatch.setenv("LLMKG_MONITORING__LOG_LEVEL", "Debug")
    monkeypatch.setenv("LLMKG_AUTH_TOKENS", "ann=a-secret-token")
    assert main(["config", "show", "--config", str(file)]) == 0
    shown = capsys.readouterr().out
    assert f"retry.max_retries = 7  (file {file})\n" in shown
    assert "monitoring.log_level = debug  (environment)\n" in shown
    assert "retry.base_delay_ms = 100.0  (default)\n" in shown
    assert "a-secret-token" not in shown


def test_config_schema_is_a_json_schema_of_every_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert {"monitoring", "rate_limiting", "resources", "operations"} <= set(schema["properties"])


def test_a_wrong_option_ends_with_status_two_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLMKG_RETRY__MAX_RETRIES", "many")
    assert main(["config", "show"]) == 2
    assert "retry.max_retries = 'many'" in capsys.readouterr().err


def test_the_doctor_finds_this_environment_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert "FAIL" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("installed", "ok"),
    [
        ({"opentelemetry-api": "1.45.2", "opentelemetry-sdk": "1.45.0"}, True),
        ({"opentelemetry-api": "1.45.2", "opentelemetry-sdk": "1.44.1"}, False),
        ({}, False),
    ],
)
def test_packages_of_different_releases_are_a_skew(installed: dict[str, str], ok: bool) -> None:
    stable, beta = version_skew({**installed, "opentelemetry-distro": "0.66b2", "rich": "15.0"})
    assert stable.ok is ok
    assert beta.ok


def test_a_skew_of_the_beta_packages_names_them() -> None:
    installed = {"opentelemetry-api": "1.45.2", "opentelemetry-distro": "0.66b2"}
    _, beta = version_skew({**installed, "opentelemetry-instrumentation": "0.65b0"})
    assert not beta.ok
    assert "0.65: opentelemetry-instrumentation" in beta.detail
