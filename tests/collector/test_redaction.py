"""Secrets that other libraries put into telemetry do not leave the agent; all else does, as it was."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.instrumentation.logging.handler import LoggingHandler
from opentelemetry.trace import Status, StatusCode
from support.sending import arrived, sending

from llmkg_otel.testing import OtlpReceiver

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.collector import Collector

pytestmark = pytest.mark.timeout(900)

PLANTED = "planted7f3a"
JWT = f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI{PLANTED}.c2lnbmF0dXJl{PLANTED}"
KEYS = (
    "password",
    "db.password",
    "http.request.header.authorization",
    "http.request.header.cookie",
    "api_key",
    "x-api-key",
    "aws.secret_access_key",
    "client_secret",
    "credentials",
    "access_token",
    "token",
    "user.session-token",
)
VALUES = (
    f"Bearer {PLANTED}",
    f"Authorization: Basic {PLANTED}==",
    JWT,
    f"sk-{PLANTED}{PLANTED}",
    f"redis://user:{PLANTED}@host:6379/0",
    f"connect failed: password={PLANTED} host=db",
    f"-----BEGIN RSA PRIVATE KEY-----\n{PLANTED}\n-----END RSA PRIVATE KEY-----",
    f'{{"api_key": "{PLANTED}"}}',
)
HARMLESS = {
    "gen_ai.usage.input_tokens": 12,
    "gen_ai.token.type": "input",
    "llmkg.operation.name": "steady",
    "error.type": "ConnectionError",
    "url.full": "https://example.org/a?b=c",
    "max_tokens": 100,
    "key": "subject",
    "primary_keys": ("a", "b"),
    "tokenizer": "bpe",
}


def test_planted_secrets_do_not_leave_the_agent_and_nothing_else_is_touched(
    collect: Callable[..., Collector],
) -> None:
    secret: dict[str, Any] = dict.fromkeys(KEYS, PLANTED)
    secret |= {f"value.{index}": value for index, value in enumerate(VALUES)}
    secret["process.command_args"] = ("serve", f"--password={PLANTED}")
    with OtlpReceiver(protocol="grpc") as backend:
        agent = collect("agent.yaml", COLLECTOR_UPSTREAM=backend.endpoint)
        with sending(agent, "grpc") as sender:
            with sender.tracer.start_as_current_span("leaky", attributes=secret | HARMLESS) as span:
                span.add_event("exception", {"exception.message": VALUES[5], "exception.type": "E"})
                span.set_status(Status(StatusCode.ERROR, VALUES[5]))
                _log(sender)
            for value in VALUES[:6]:
                with sender.tracer.start_as_current_span("status") as span:
                    span.set_status(Status(StatusCode.ERROR, value))
            sender.meter_provider.get_meter("m").create_counter("leaky").add(1, secret)
            sender.flush()
            assert PLANTED in str(sender.spans())
            assert arrived(sender, backend)
            assert backend.wait_until(lambda b: b.metric("leaky"))
            (span,) = backend.spans("leaky")
            told = [*backend.spans(), *backend.logs(), backend.metric("leaky")]
            assert not [each for each in told if PLANTED in str(each)]
            assert {key: span.attributes[key] for key in HARMLESS} == HARMLESS
            assert span.attributes["value.4"] == "redis****host:6379/0"
            assert span.events == (
                ("exception", {"exception.message": "connect failed: **** host=db", "exception.type": "E"}),
            )


def _log(sender: Any) -> None:
    logger = logging.getLogger("leaky")
    logger.propagate = False
    handler = LoggingHandler(logger_provider=sender.telemetry.logger_provider)
    logger.addHandler(handler)
    for value in VALUES:
        logger.error("%s", value, extra={"api_key": PLANTED})
    logger.removeHandler(handler)
