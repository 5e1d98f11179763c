"""The gateway keeps each trace that tells something; the shards send each trace to one gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from opentelemetry.trace import Status, StatusCode
from support.sending import Sender, by_id, sending, work
from support.servers import wait_until

from llmkg_otel.testing import OtlpReceiver

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.collector import Collector

pytestmark = pytest.mark.timeout(900)


async def test_every_failed_refused_retried_or_slow_call_is_kept_and_a_share_of_the_rest(
    collect: Callable[..., Collector],
) -> None:
    with OtlpReceiver() as backend:
        gateway = collect(
            "gateway.yaml",
            COLLECTOR_UPSTREAM=backend.endpoint,
            COLLECTOR_KEEP_PERCENT="20",
            COLLECTOR_SLOW_MS="200",
        )
        agent = collect("agent.yaml", COLLECTOR_UPSTREAM=gateway.grpc)
        with sending(agent, "grpc") as sender:
            await work(sender)
            dull(sender, 400)
            slow(sender)
            sender.flush()
            sent = by_id(sender.spans())
            told = {each.trace_id for each in sent.values() if tells(each)}
            decided = "otelcol_processor_tail_sampling_global_count_traces_sampled_total"
            traces = {each.trace_id for each in sent.values()}
            wait_until(lambda: gateway.own(decided) == len(traces), "a decision on every trace")
            kept = {trace for trace in told if trace}
            assert backend.wait_until(lambda b: {s.trace_id for s in b.spans()} >= kept, 20)
            arrived = by_id(backend.spans())
    assert {each.attributes.get("error.type") for each in arrived.values()} >= {
        "ConnectionError",
        "circuit_open",
    }
    assert any(span.name == "slow" for span in arrived.values())
    assert any(span.name == "llmkg.attempt" for span in arrived.values())
    assert arrived == {  # a trace is kept whole or not at all
        key: span for key, span in sent.items() if span.trace_id in {s.trace_id for s in arrived.values()}
    }
    share = sum(span.name == "dull" for span in arrived.values()) / 400
    assert 0.1 < share < 0.3


def tells(span: object) -> bool:
    attributes = span.attributes  # type: ignore[attr-defined]
    return (
        span.status == "ERROR"  # type: ignore[attr-defined]
        or "error.type" in attributes
        or attributes.get("llmkg.operation.attempts", 1) > 1
        or span.name in {"slow", "llmkg.shutdown"}  # type: ignore[attr-defined]
    )


def dull(sender: Sender, count: int) -> None:
    for _ in range(count):
        with sender.tracer.start_as_current_span("dull"):
            pass


def slow(sender: Sender) -> None:
    span = sender.tracer.start_span("slow", start_time=1_000_000_000)
    span.end(end_time=1_500_000_000)


def test_a_trace_goes_to_one_gateway_and_a_gateway_that_is_away_loses_nothing(
    collect: Callable[..., Collector],
) -> None:
    with OtlpReceiver(protocol="grpc") as first:
        second = OtlpReceiver(protocol="grpc")
        second.close()
        agent = collect(
            "agent.yaml",
            "sharded.yaml",
            COLLECTOR_UPSTREAM="127.0.0.1:1",
            COLLECTOR_UPSTREAM_0=first.endpoint,
            COLLECTOR_UPSTREAM_1=second.endpoint,
        )
        with sending(agent, "http") as sender:
            for number in range(100):
                with sender.tracer.start_as_current_span("parent") as parent:
                    parent.set_status(Status(StatusCode.OK))
                    with sender.tracer.start_as_current_span("child", attributes={"number": number}):
                        pass
            sender.flush()
            sent = by_id(sender.spans())
            with OtlpReceiver(protocol="grpc", port=second.port) as back:
                assert first.wait_until(lambda b: len(by_id(b.spans()) | by_id(back.spans())) == 200, 30) or (
                    back.wait_until(lambda b: len(by_id(b.spans()) | by_id(first.spans())) == 200, 30)
                )
                low, high = by_id(first.spans()), by_id(back.spans())
    assert low | high == sent
    assert {span.trace_id[-1] for span in low.values()} <= set("01234567")
    assert {span.trace_id[-1] for span in high.values()} <= set("89abcdef")
    assert low
    assert high
