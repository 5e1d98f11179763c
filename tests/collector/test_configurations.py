"""What the configurations say: the Collector takes them, needs all of its components, and knows our names."""

from __future__ import annotations

import os
import re
import subprocess
from typing import Any

import pytest
import yaml
from support.collector import CONFIGURATIONS, REPOSITORY

from llmkg_otel.telemetry import semconv
from llmkg_otel.telemetry.semconv import DURATION_BUCKETS
from llmkg_otel.telemetry.table import SPANS

pytestmark = pytest.mark.timeout(900)

COMPOSE = REPOSITORY / "deploy" / "compose"
SETS = {
    "agent": (CONFIGURATIONS / "agent.yaml",),
    "sharded agent": (CONFIGURATIONS / "agent.yaml", CONFIGURATIONS / "sharded.yaml"),
    "gateway": (CONFIGURATIONS / "gateway.yaml",),
    "gateway of compose": (CONFIGURATIONS / "gateway.yaml", COMPOSE / "gateway.yaml"),
}
FILES = sorted({path for paths in SETS.values() for path in paths})
LOADED: dict[str, Any] = {
    path.name if path.parent == CONFIGURATIONS else "here": yaml.safe_load(path.read_text()) for path in FILES
}
UNLISTED = {"otlp_grpc", "otlp_http"}
"""`components` of 0.149 leaves out what also has an older name."""
KINDS = ("receivers", "processors", "exporters", "connectors", "extensions")


@pytest.mark.parametrize("name", SETS)
def test_the_collector_takes_a_configuration(name: str, binary: str, tmp_path: Any) -> None:
    configurations = [part for path in SETS[name] for part in ("--config", str(path))]
    done = subprocess.run(
        [binary, "validate", *configurations],
        env={**os.environ, "COLLECTOR_STORAGE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_distribution_has_what_the_configurations_use_and_nothing_else(binary: str) -> None:
    done = subprocess.run([binary, "components"], capture_output=True, text=True, check=True)
    built = yaml.safe_load(done.stdout)
    manifest = yaml.safe_load((CONFIGURATIONS / "builder.yaml").read_text())
    for kind in KINDS:
        used = {key.partition("/")[0] for each in LOADED.values() for key in each.get(kind) or {}}
        listed = {component["name"] for component in built[kind]}
        assert listed == used - UNLISTED
        assert len(manifest[kind]) == len(used)


def test_the_manifest_is_of_one_version() -> None:
    manifest = (CONFIGURATIONS / "builder.yaml").read_text()
    version = yaml.safe_load(manifest)["dist"]["version"]
    assert set(re.findall(r"gomod: \S+ v(0\.\S+)", manifest)) == {version}
    images = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
    for service in ("collector", "gateway"):
        assert images[service]["image"].endswith(f":{version}")


def test_what_is_acknowledged_is_on_disk_and_never_given_up() -> None:
    exporters = [
        exporter
        for each in LOADED.values()
        for name, exporter in (each.get("exporters") or {}).items()
        if name.startswith("otlp")
    ]
    assert len(exporters) == 4
    for exporter in exporters:
        assert exporter["sending_queue"]["storage"] == "file_storage"
        assert exporter["retry_on_failure"]["max_elapsed_time"] == 0
    assert not [each for each in LOADED.values() if "batch" in (each.get("processors") or {})]


def test_the_gateway_asks_for_attributes_and_spans_of_the_contract() -> None:
    (conditions,) = [
        policy["ottl_condition"]["span"]
        for policy in LOADED["gateway.yaml"]["processors"]["tail_sampling"]["policies"]
        if policy["type"] == "ottl_condition"
    ]
    text = " ".join(conditions)
    attributes = set(re.findall(r'attributes\["([^"]+)"\]', text))
    assert attributes == {semconv.ERROR_TYPE, semconv.ATTEMPTS, semconv.FALLBACK_NAME}
    assert attributes <= {name for span in SPANS for name in span.attributes}
    assert set(re.findall(r'name == "([^"]+)"', text)) == {semconv.SHUTDOWN_SPAN}


def test_metrics_of_spans_have_the_contracts_buckets_and_attributes() -> None:
    settings = LOADED["agent.yaml"]["connectors"]["spanmetrics"]
    units = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
    bounds = [re.fullmatch(r"(\d+)(us|ms|s)", each) for each in settings["histogram"]["explicit"]["buckets"]]
    assert [float(m[1]) * units[m[2]] for m in bounds if m] == pytest.approx(list(DURATION_BUCKETS))
    assert [each["name"] for each in settings["dimensions"]] == [semconv.ERROR_TYPE]


def test_every_variable_of_a_configuration_has_a_default_and_is_documented() -> None:
    documented = (REPOSITORY / "docs" / "collector.md").read_text()
    for path in FILES:
        for name, default in re.findall(r"\$\{env:(\w+)(:-[^}]*)?\}", path.read_text()):
            assert default, name
            assert f"`{name}`" in documented
