"""The house rules, held by reading the imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import llmkg_otel

PACKAGE = Path(llmkg_otel.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
POLICIES = ("recovery", "limiting", "health", "shutdown", "alerting")
KNOWS_OPENTELEMETRY = ("telemetry", "testing", "server", "instrumentation", "demo")
OUTERMOST = ("server", "cli", "demo")


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Return every module a file imports, those for type checking left out: they bind nobody at run time."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def ours(path: Path) -> set[str]:
    """Return the rooms of ours that a file imports from."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("llmkg_otel.")}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_some_rooms_know_opentelemetry(path: Path) -> None:
    knows = any(name.split(".")[0] == "opentelemetry" for name in imports(path))
    assert not knows or room(path) in KNOWS_OPENTELEMETRY


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nobody_imports_what_is_further_out(path: Path) -> None:
    here = room(path)
    if here in OUTERMOST or path == PACKAGE / "__init__.py":
        return
    assert not ours(path) & {*OUTERMOST}
    if here in POLICIES:
        assert not ours(path) & {"system", "pipeline", "telemetry", "operation", "status"}
    if here in ("pipeline", "operation", "call", "events", "config", "errors"):
        assert not ours(path) & {"system", "telemetry", "status"}


def test_the_core_needs_no_server_extra() -> None:
    extras = {"fastmcp", "mcp", "mcp_types", "starlette", "uvicorn", "rich", "countryinfo", "airportsdata"}
    for path in FILES:
        if room(path) not in ("server", "demo"):
            assert not {name.split(".")[0] for name in imports(path)} & extras, path


def test_modules_can_be_read_in_one_sitting() -> None:
    assert {str(path): lines for path in FILES if (lines := len(path.read_text().splitlines())) > 400} == {}


def test_public_names_are_these() -> None:
    assert llmkg_otel.__all__ == [
        "AlertingConfig",
        "CircuitBreakerConfig",
        "EmbeddedKnowledgeEngine",
        "HealthCheckConfig",
        "HealthStatus",
        "KnowledgeEngine",
        "LLMKGInstrumentor",
        "MonitoringConfig",
        "OperationConfig",
        "ProductionConfig",
        "ProductionSystem",
        "RateLimitConfig",
        "ResourceLimits",
        "RetryConfig",
        "ShutdownConfig",
        "ShutdownReport",
        "SystemHealthReport",
        "create_production_system",
    ]
    assert all(hasattr(llmkg_otel, name) for name in llmkg_otel.__all__)
