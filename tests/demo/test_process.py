from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest

from llmkg_otel.config import ProductionConfig
from llmkg_otel.demo import process
from llmkg_otel.demo.process import ServerFailedError, ServerProcess, configuration, fetch
from llmkg_otel.testing import OtlpReceiver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

STAND_IN = """
import json, os, signal, sys, threading, yaml
from http.server import BaseHTTPRequestHandler, HTTPServer

class Ready(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/readyz" else 404)
        self.end_headers()

config = yaml.safe_load(open(sys.argv[1]))
server = HTTPServer(("127.0.0.1", config["server"]["ops_port"]), Ready)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever()
json.dump({"environment": dict(os.environ)}, open(sys.argv[2], "w"))
"""
FAILING = "import sys; print('no such engine'); sys.exit(3)"
REPORTLESS = STAND_IN.rsplit("\n", 2)[0]


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    return configuration(tmp_path, {"visitor": "a-token-of-some-length"})


@pytest.fixture
async def server(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    config: dict[str, Any],
) -> AsyncIterator[ServerProcess]:
    script = tmp_path / "standin.py"
    script.write_text(getattr(request, "param", STAND_IN))
    monkeypatch.setattr(process, "COMMAND", (str(script),))
    server = ServerProcess(tmp_path, config)
    yield server
    await server.close()


def test_the_configuration_is_one_that_the_server_accepts(tmp_path: Path, config: dict[str, Any]) -> None:
    loaded = ProductionConfig(**config)
    assert loaded.engine.path == tmp_path / "knowledge.db"
    assert loaded.server.port != loaded.server.ops_port
    assert list(loaded.auth_tokens) == ["visitor"]


async def test_a_server_is_started_signalled_and_its_report_read(server: ServerProcess) -> None:
    with OtlpReceiver() as receiver:
        await server.start(receiver)
        assert await fetch(f"{server.ops_url}/readyz") == ""
        assert await fetch(f"{server.ops_url}/nothing") is None
        server.send(signal.SIGTERM)
        report = await server.ended()
        assert report["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"] == receiver.endpoint
    server.send(signal.SIGTERM)  # it has ended: nothing happens


async def test_the_server_does_not_inherit_settings_meant_for_something_else(
    server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    monkeypatch.setenv("LLMKG_SERVER__PORT", "1")
    with OtlpReceiver() as receiver:
        await server.start(receiver)
    server.send(signal.SIGTERM)
    report = await server.ended()
    assert {"OTEL_TRACES_SAMPLER", "LLMKG_SERVER__PORT"}.isdisjoint(report["environment"])


@pytest.mark.parametrize("server", [FAILING], indirect=True)
async def test_a_server_that_fails_to_start_is_reported_with_its_last_words(server: ServerProcess) -> None:
    with OtlpReceiver() as receiver, pytest.raises(ServerFailedError, match="code 3\nno such engine"):
        await server.start(receiver)


@pytest.mark.parametrize("server", [REPORTLESS], indirect=True)
async def test_a_server_that_leaves_no_report_has_failed(server: ServerProcess) -> None:
    with OtlpReceiver() as receiver:
        await server.start(receiver)
    server.send(signal.SIGTERM)
    with pytest.raises(ServerFailedError, match="code 0"):
        await server.ended()


async def test_the_tokens_are_readable_by_their_owner_alone(server: ServerProcess, tmp_path: Path) -> None:
    assert (tmp_path / "config.yaml").stat().st_mode & 0o077 == 0


async def test_closing_ends_a_server_that_still_runs(server: ServerProcess) -> None:
    with OtlpReceiver() as receiver:
        await server.start(receiver)
    await server.close()
    assert await fetch(f"{server.ops_url}/readyz") is None
