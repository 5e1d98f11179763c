"""The known profiles fit the versions that are installed; CI's are the newest supported ones."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest
from engines_versions import SUPPORTED
from support.engines_table import HEADER, rows
from support.engines_venv import BIN, ROOT, needs_engines

from llmkg_otel.engine.profiles import PROFILES, Profile
from llmkg_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

SCRIPT = ROOT / "tests" / "engines_versions.py"


def look(python: str, engines: Sequence[str]) -> str:
    done = subprocess.run(
        [python, SCRIPT, "--here", *engines],
        env={**os.environ, "PYTHONPATH": str(ROOT), "GRAPHITI_TELEMETRY_ENABLED": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_profiles_of_rdflib_and_neo4j_fit_what_is_installed() -> None:
    told = look(sys.executable, ["rdflib", "neo4j"])
    assert told.splitlines() == [f"{each} {version(each)}: fits" for each in ("rdflib", "neo4j")]


@needs_engines
def test_the_profiles_of_the_engines_fit_what_is_installed() -> None:
    assert look(str(BIN / "python"), ["lightrag", "graphiti"]).count(": fits") == 2


def test_the_documentation_has_a_row_for_each_method_that_is_protected_and_the_versions() -> None:
    page = (ROOT / "docs" / "engines.md").read_text()
    assert "\n".join([HEADER, *rows()]) in page
    assert all(f"| {oldest} to {newest} |" in page for _, oldest, newest in SUPPORTED.values())


def test_operations_have_one_name_each_in_an_engine() -> None:
    for profile in PROFILES:
        names = [how.operation or method for method, how in profile.methods.items()]
        assert len(set(names)) == len(names), profile.name


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "Acme"}, r"name = 'Acme': String should match pattern"),
        ({"classes": ()}, "classes = .*at least 1 item"),
        ({"classes": ("acme.Memory",)}, r"classes\.0 = 'acme\.Memory'"),
        ({"methods": {"recall": {"kind": "eager"}}}, r"methods\.recall\.kind = 'eager'"),
        ({"methods": {"recall": {"idempotnt": True}}}, r"unknown option; did you mean idempotent\?"),
        ({"system": ""}, "system = ''"),
    ],
)
def test_a_profile_with_a_mistake_is_an_error_that_names_it(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Profile(**{"name": "acme", "classes": ("acme:Memory",), **wrong})
