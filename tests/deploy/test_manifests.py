"""What deploy/ says is well formed, agrees with itself, and starts the server that it means."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import pytest
import yaml
from support.operator_types import objection
from support.redis import started_redis
from support.servers import SCRIPTS, Servers, http_get

from llmkg_otel.cli import main
from llmkg_otel.config import ProductionConfig
from llmkg_otel.shutdown.budget import longest_shutdown, misfit
from llmkg_otel.testing import OtlpReceiver

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.redis import RedisServer
    from support.servers import RunningServer

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


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    server = started_redis()
    yield server
    server.kill()


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


@pytest.mark.timeout(600)
def test_the_service_monitor_is_what_the_prometheus_operator_takes(manifests: dict[str, Any]) -> None:
    assert objection("ServiceMonitor", yaml.safe_dump(manifests["ServiceMonitor"])) == ""


@pytest.mark.timeout(600)
def test_the_default_rules_come_as_a_rule_that_the_prometheus_operator_takes() -> None:
    made = run(str(DEPLOY / "kubernetes" / "rules.sh"))
    rules = yaml.safe_load((REPOSITORY / "llmkg_otel" / "alerting" / "default_rules.yaml").read_text())
    assert yaml.safe_load(made)["spec"] == rules
    assert objection("PrometheusRule", made) == ""
    assert "unknown field" in objection("PrometheusRule", made.replace("expr:", "expression:"))


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        ({"intervall": "15s"}, 'unknown field "intervall"'),
        ({"interval": {"seconds": 15}}, "cannot unmarshal object"),
    ],
)
def test_a_mistake_in_a_service_monitor_would_be_seen(
    manifests: dict[str, Any], mistake: dict[str, Any], told: str
) -> None:
    monitor = copy.deepcopy(manifests["ServiceMonitor"])
    monitor["spec"]["endpoints"][0] |= mistake
    assert told in objection("ServiceMonitor", yaml.safe_dump(monitor))


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
    schema = ("--builtin-schema", "vendor.compose-spec")
    run(sys.executable, "-m", "check_jsonschema", *schema, str(COMPOSE / "compose.yaml"))
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


def test_haproxy_takes_its_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCP_BIND", "127.0.0.1:8080")
    for number in (1, 2, 3):
        monkeypatch.setenv(f"MCP_{number}", f"127.0.0.1:800{number}")
        monkeypatch.setenv(f"OPS_{number}", f"900{number}")
    run("haproxy", "-c", "-f", str(DEPLOY / "haproxy" / "haproxy.cfg"))


def test_nginx_takes_its_example_in_the_place_it_is_for(tmp_path: Path) -> None:
    example = (DEPLOY / "nginx" / "llmkg.conf").read_text()
    (tmp_path / "llmkg.conf").write_text(re.sub(r"llmkg-\d:8000", "127.0.0.1:8000", example))
    around = f"pid {tmp_path}/pid; error_log stderr; events {{}} http {{ include {tmp_path}/llmkg.conf; }}"
    (tmp_path / "nginx.conf").write_text(around)
    run("nginx", "-t", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"))


def test_the_image_starts_with_the_compose_services_environment(
    servers: Servers, redis: RedisServer, compose: Any, tmp_path: Path
) -> None:
    environment = _image_environment() | compose["services"]["server"]["environment"]
    with OtlpReceiver() as collector:
        elsewhere = {
            "redis://redis:6379/0": redis.uri,
            "http://collector:4318": collector.endpoint,
            "${LLMKG_AUTH_TOKENS:?name=token pairs, who may call}": "ann=token-of-ann",
        }
        here = {name: elsewhere.pop(value, value) for name, value in environment.items()}
        assert not elsewhere
        server = servers.start(
            env={name: value.replace("/data", str(tmp_path)) for name, value in here.items()}
        )
        checks = _checks(server)
        assert {"circuit_sharing", "checkpoints", "telemetry", "engine"} <= checks.keys()
        assert set(checks.values()) == {"pass"}
        assert server.terminate() == 0
        assert collector.spans()
        assert collector.logs("llmkg.shutdown.started")
        assert not collector.metric_names()
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def _checks(server: RunningServer) -> dict[str, str]:
    report = json.loads(http_get(server.ops_url.replace("0.0.0.0", "127.0.0.1") + "/healthz").body)
    return {name: check["status"] for name, (check,) in report["checks"].items()}


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
