"""What deploy/ says is well formed, agrees with itself, and starts the server that it means."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import pytest
import yaml
from support.servers import SCRIPTS, Servers, http_get

from llmkg_otel.cli import main
from llmkg_otel.config import ProductionConfig
from llmkg_otel.shutdown.budget import longest_shutdown, misfit

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
CONFIG = DEPLOY / "kubernetes" / "config.yaml"
COMPOSE = DEPLOY / "compose"
COLLECTOR = REPOSITORY / "collector"
OPERATORS = {"ServiceMonitor"}  # kinds that Kubernetes itself does not know


def run(*command: str) -> str:
    """Run a linter or a generator; fail with what it says."""
    program = shutil.which(command[0]) or shutil.which(command[0], path=SCRIPTS)
    if program is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def manifests() -> dict[str, Any]:
    return {
        each["kind"]: each for each in yaml.safe_load_all(run("kubectl", "kustomize", str(CONFIG.parent)))
    }


@pytest.fixture(scope="module")
def pod(manifests: dict[str, Any]) -> Any:
    return manifests["Deployment"]["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def compose() -> Any:
    return yaml.safe_load((COMPOSE / "compose.yaml").read_text())


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    running = Servers(tmp_path)
    yield running
    running.kill_remaining()


def test_the_manifests_are_what_kubernetes_takes(manifests: dict[str, Any]) -> None:
    assert set(manifests) == OPERATORS | {
        *(
            "ConfigMap",
            "Deployment",
            "NetworkPolicy",
            "PersistentVolumeClaim",
            "PodDisruptionBudget",
            "Service",
        )
    }
    for kind in set(manifests) - OPERATORS:
        kubernetes_validate.validate(manifests[kind], "1.34", strict=True)


def test_labels_ports_and_volumes_meet(manifests: dict[str, Any], pod: Any) -> None:
    labels = manifests["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    service = manifests["Service"]
    for selector in (
        manifests["Deployment"]["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        manifests["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels
    monitor = manifests["ServiceMonitor"]["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (container,) = pod["containers"]
    ports = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} == ports
    assert {endpoint["port"] for endpoint in monitor["endpoints"]} <= {
        p["name"] for p in service["spec"]["ports"]
    }
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }


def test_the_grace_period_is_what_the_configuration_needs(
    pod: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    sleep = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert main(["config", "grace", "--config", str(CONFIG), "--pre-stop", str(sleep)]) == 0
    assert int(capsys.readouterr().out) == pod["terminationGracePeriodSeconds"]
    config = ProductionConfig.load(CONFIG)
    assert misfit(config) is None
    assert config.shutdown.termination_grace_period_seconds + sleep == pod["terminationGracePeriodSeconds"]


def test_memory_is_refused_before_the_container_is_killed(pod: Any) -> None:
    limit = int(pod["containers"][0]["resources"]["limits"]["memory"].removesuffix("Gi")) * 2**30
    assert ProductionConfig.load(CONFIG).resources.max_memory_bytes < 0.8 * limit


def test_the_pod_has_no_more_rights_than_it_needs(pod: Any) -> None:
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_server_starts_with_the_deployments_configuration_and_answers_its_probes(
    servers: Servers, pod: Any, tmp_path: Path
) -> None:
    (container,) = pod["containers"]
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG.read_text().replace("/data/", f"{tmp_path}/"))
    server = servers.start(
        *("--config", str(file)),
        env={
            "LLMKG_AUTH_TOKENS": "ann=token-of-ann",
            "LLMKG_SERVER__OPERATOR_TOKEN": "token-of-the-operators",
            "LLMKG_SHUTDOWN__LAME_DUCK_SECONDS": "0",
        },
    )
    local = server.ops_url.replace("0.0.0.0", "127.0.0.1")
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert http_get(local + container[probe]["httpGet"]["path"]).status == 200
    assert http_get(f"{local}/status").status == 401
    assert server.terminate() == 0
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_the_compose_file_is_what_compose_takes(compose: Any) -> None:
    run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE / "compose.yaml"))
    assert set(compose["services"]) == {
        *("server", "collector", "gateway", "jaeger", "prometheus", "alertmanager", "grafana", "redis")
    }
    for service in compose["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert source in compose["volumes"] or (COMPOSE / source).exists()


def test_the_compose_services_environment_is_a_configuration_that_fits_its_grace_period(
    compose: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = compose["services"]["server"]
    for name, value in (_image_environment() | server["environment"]).items():
        if name.startswith("LLMKG_"):
            monkeypatch.setenv(name, re.sub(r"\$\{.*\}", "ann=token-of-ann", value))
    config = ProductionConfig.load()
    assert longest_shutdown(config) <= float(server["stop_grace_period"].removesuffix("s"))
    assert config.server.host == config.server.ops_host == "0.0.0.0"


def test_prometheus_and_alertmanager_take_their_files() -> None:
    assert "SUCCESS" in run("promtool", "check", "config", str(COLLECTOR / "prometheus.yaml"))
    assert "SUCCESS" in run("amtool", "check-config", str(COLLECTOR / "alertmanager.yaml"))


def test_the_dockerfile_is_linted_and_ends_in_the_same_entry_point(pod: Any) -> None:
    run("hadolint", str(DEPLOY / "Dockerfile"))
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    assert lines[-2:] == ['ENTRYPOINT ["llmkg-otel"]', 'CMD ["serve"]']
    assert f"USER {pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" in lines
    for line in lines:
        if line.startswith("COPY") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (REPOSITORY / source).exists()
                assert f"!{source}" in (REPOSITORY / ".dockerignore").read_text().splitlines()


def test_the_health_check_of_the_image_tells_a_live_server_from_a_dead_one(servers: Servers) -> None:
    (check,) = re.findall(r'CMD (\["python".*\])', (DEPLOY / "Dockerfile").read_text())
    command = json.loads(check)
    server = servers.start()
    here = [part.replace("http://127.0.0.1:9464", server.ops_url) for part in command]
    assert subprocess.run(here, check=False).returncode == 0
    server.terminate()
    assert subprocess.run(here, check=False, capture_output=True).returncode != 0


def _image_environment() -> dict[str, str]:
    return dict(re.findall(r"(LLMKG_\w+)=(\S+)", (DEPLOY / "Dockerfile").read_text()))
