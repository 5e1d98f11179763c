"""What an exception says may quote the caller's data: it reaches no telemetry, whatever the level."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from support.calls import asynchronous, exits, in_a_thread, in_the_calling_thread

from llmkg_otel.errors import InvalidInputError, error_type
from llmkg_otel.telemetry.logs import JsonLogs

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.calls import Path

    from llmkg_otel.system import ProductionSystem
    from llmkg_otel.testing import CapturedTelemetry

SECRET = "4111-1111-1111-1111"


@pytest.mark.parametrize("error", [InvalidInputError, ConnectionError, KeyError])
@pytest.mark.parametrize("path", [asynchronous, in_a_thread, in_the_calling_thread])
async def test_the_words_of_an_error_stay_out_of_spans_metrics_and_logs(
    path: Path,
    error: type[Exception],
    make_system: Callable[..., ProductionSystem],
    telemetry: CapturedTelemetry,
) -> None:
    system = make_system(monitoring={"log_level": "debug"}, circuit_breaker={"failure_threshold": 1})
    raised = error(f"no such card: {SECRET}")
    lines = io.StringIO()
    with JsonLogs("debug", lines):
        async with system:
            with pytest.raises(error) as caught:
                await path(system, exits(raised))
    assert caught.value is raised  # the caller is told
    (span,) = telemetry.spans("op")
    kind = error_type(raised)
    assert span.status.description == kind
    assert span.attributes is not None
    assert span.attributes["error.type"] == kind
    signals: list[Any] = [*telemetry.spans(), *telemetry.logs(), *telemetry.metrics().values()]
    told = [each.to_json() for each in signals]
    assert any(kind in each for each in told)
    assert "op started" in lines.getvalue()
    assert not [each for each in (*told, lines.getvalue()) if SECRET in each]
