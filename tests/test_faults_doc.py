"""The fault table names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def test_every_fault_has_a_test_that_exists() -> None:
    lines = (REPOSITORY / "docs" / "faults.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ")][1:]
    named = [re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row) for row in rows]
    assert len(rows) > 15
    assert [row for row, tests in zip(rows, named, strict=True) if len(tests) != 1] == []
    for ((path, name),) in named:
        body = ast.parse((REPOSITORY / path).read_text()).body
        assert name in {getattr(node, "name", None) for node in body}, f"{path}::{name}"
