"""Whether telemetry itself arrives: hooks, the SDK's queues and exporters, the scrape, the Collector."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmkg_otel.dashboards.model import Board, Panel, Query, Row
from llmkg_otel.dashboards.promql import rate, select
from llmkg_otel.telemetry import semconv

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FOREIGN", "SELF_MONITORING"]

_SDK = ("instance", "otel_component_name", "error_type")
_COLLECTOR = ("instance",)
FOREIGN: Mapping[str, tuple[str, ...]] = {
    "up": ("instance", "job"),
    "scrape_duration_seconds": ("instance", "job"),
    "scrape_samples_scraped": ("instance", "job"),
    "otel_sdk_processor_span_queue_size": _SDK,
    "otel_sdk_processor_log_queue_size": _SDK,
    "otel_sdk_processor_span_processed_total": _SDK,
    "otel_sdk_processor_log_processed_total": _SDK,
    "otel_sdk_exporter_span_exported_total": _SDK,
    "otel_sdk_exporter_log_exported_total": _SDK,
    **dict.fromkeys(
        (
            f"otelcol_receiver_{what}_{signal}_total"
            for what in ("accepted", "refused")
            for signal in ("spans", "log_records", "metric_points")
        ),
        (*_COLLECTOR, "receiver", "transport"),
    ),
    **dict.fromkeys(
        (
            f"otelcol_exporter_{what}_{signal}_total"
            for what in ("send_failed", "enqueue_failed")
            for signal in ("spans", "log_records", "metric_points")
        ),
        (*_COLLECTOR, "exporter"),
    ),
    "otelcol_exporter_queue_size": (*_COLLECTOR, "exporter", "data_type"),
    "otelcol_exporter_queue_capacity": (*_COLLECTOR, "exporter", "data_type"),
    "otelcol_process_memory_rss_bytes": _COLLECTOR,
    "otelcol_processor_tail_sampling_global_count_traces_sampled_total": (*_COLLECTOR, "decision"),
    "otelcol_processor_tail_sampling_sampling_trace_dropped_too_early_total": _COLLECTOR,
}
"""Metrics that Prometheus, the OpenTelemetry SDK (1.45) and the Collector (0.149) make, with the labels that
queries use: those are their contract, not ours."""

_OPT_IN = "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED is not set, or nothing is lost"
_AGENT = "no Collector is scraped, or it refuses and loses nothing"
_GATEWAY = "no gateway is scraped"
LOST = ((None, "transparent"), (0.001, "red"))


def _rates(
    names: tuple[str, ...], by: str, quiet: str, matchers: str = "", *, end: str = ""
) -> tuple[Query, ...]:
    legend = " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    return tuple(
        Query(
            f"sum by ({by}) (rate({name}{{{matchers}}}[$__rate_interval]))",
            f"{_signal(name)}{end} {legend}",
            quiet=quiet,
        )
        for name in names
    )


def _outcomes(
    names: Mapping[str, tuple[str, ...]], by: str, quiet: str, matchers: str = ""
) -> tuple[Query, ...]:
    """Return the rates of metrics by what became of what they count, which the legend tells."""
    return tuple(
        query for end, each in names.items() for query in _rates(each, by, quiet, matchers, end=f" {end}")
    )


def _signal(name: str) -> str:
    return next(word for word in ("span", "log", "metric") if f"_{word}" in name)


def _collector(stem: str) -> tuple[str, ...]:
    return tuple(f"otelcol_{stem}_{signal}_total" for signal in ("spans", "log_records", "metric_points"))


def _sdk(stem: str) -> tuple[str, ...]:
    return tuple(f"otel_sdk_{part}_total" for part in (stem.format("span"), stem.format("log")))


HERE = Row(
    "In the process",
    (
        Panel(
            "Errors in telemetry hooks",
            "Errors inside telemetry in the last 5 minutes, kept away from the calls: spans, metrics or logs "
            "are missing.",
            (
                Query(
                    f"sum by (hook, error_type) (increase({select(semconv.HOOK_ERRORS)}[5m]))",
                    "{{hook}} {{error_type}}",
                    quiet="no hook has ever failed",
                ),
            ),
            width=6,
            thresholds=LOST,
        ),
        Panel(
            "Log records lost",
            "Log records a second that a full queue has lost, by where they should have gone. "
            "LlmkgTelemetryDropped fires on them.",
            (
                Query(
                    rate(semconv.LOGS_DROPPED, "instance, destination"),
                    "{{destination}} {{instance}}",
                ),
            ),
            unit="cps",
            width=6,
            thresholds=LOST,
        ),
        Panel(
            "Queued for export",
            "Spans and log records that wait in the SDK's queues; at 2048 new ones are dropped. Only with "
            "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED=true.",
            tuple(
                Query(
                    f'sum by (instance) (otel_sdk_processor_{signal}_queue_size{{instance=~"$instance"}})',
                    f"{signal} {{{{instance}}}}",
                    quiet=_OPT_IN,
                )
                for signal in ("span", "log")
            ),
            width=6,
            thresholds=((None, "transparent"), (2048, "red")),
        ),
        Panel(
            "Dropped or not exported",
            "Spans and log records a second that a full queue dropped or an exporter gave up. Only with "
            "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED=true.",
            _outcomes(
                {
                    "dropped": _sdk("processor_{}_processed"),
                    "not exported": _sdk("exporter_{}_exported"),
                },
                "instance, error_type",
                _OPT_IN,
                'instance=~"$instance",error_type!=""',
            ),
            unit="cps",
            width=6,
            thresholds=LOST,
        ),
        Panel(
            "Scrapes",
            "1 while Prometheus reaches the target; what is 0 has no data on any other dashboard.",
            (Query("min by (job, instance) (up)", "{{job}} {{instance}}"),),
            width=6,
            thresholds=((None, "red"), (1, "transparent")),
            maximum=1,
        ),
        Panel(
            "Scrape durations",
            "Seconds a scrape takes; near its timeout, points go missing.",
            (
                Query(
                    "max by (job, instance) (scrape_duration_seconds)",
                    "{{job}} {{instance}}",
                ),
            ),
            unit="s",
            width=6,
        ),
        Panel(
            "Samples a scrape",
            "Series that each target has: steady growth is a label without bounds.",
            (
                Query(
                    "max by (job, instance) (scrape_samples_scraped)",
                    "{{job}} {{instance}}",
                ),
            ),
            width=6,
        ),
        Panel(
            "Bytes of the Collector",
            "Resident memory of each Collector; its memory limiter refuses at 80 % of the container.",
            (
                Query(
                    "sum by (job, instance) (otelcol_process_memory_rss_bytes)",
                    "{{job}} {{instance}}",
                    quiet=_AGENT,
                ),
            ),
            unit="bytes",
            width=6,
        ),
    ),
)

COLLECTORS = Row(
    "Collectors",
    (
        Panel(
            "Accepted",
            "Spans, log records and points a second that the Collectors took.",
            _rates(_collector("receiver_accepted"), "instance, transport", _AGENT),
            unit="cps",
        ),
        Panel(
            "Refused",
            "What the Collectors sent back, a second: the senders try again, until their queues are full.",
            _rates(_collector("receiver_refused"), "instance, transport", _AGENT),
            unit="cps",
            thresholds=LOST,
        ),
        Panel(
            "Lost",
            "What the Collectors could neither send nor keep, a second.",
            _outcomes(
                {
                    "not sent": _collector("exporter_send_failed"),
                    "not queued": _collector("exporter_enqueue_failed"),
                },
                "instance, exporter",
                _AGENT,
            ),
            unit="cps",
            thresholds=LOST,
        ),
        Panel(
            "Queues on disk",
            "Bytes that wait, as a share of what may: growth means that the next hop is away or slow.",
            (
                Query(
                    "sum by (instance, exporter, data_type) (otelcol_exporter_queue_size)"
                    " / sum by (instance, exporter, data_type) (otelcol_exporter_queue_capacity)",
                    "{{instance}} {{exporter}} {{data_type}}",
                    quiet=_AGENT,
                ),
            ),
            unit="percentunit",
            thresholds=((None, "transparent"), (0.5, "orange"), (0.9, "red")),
        ),
        Panel(
            "Traces kept and left out",
            "Traces a second by the gateways' decision.",
            (
                Query(
                    "sum by (decision) (rate("
                    "otelcol_processor_tail_sampling_global_count_traces_sampled_total[$__rate_interval]))",
                    "{{decision}}",
                    quiet=_GATEWAY,
                ),
            ),
            unit="cps",
            stacked=True,
        ),
        Panel(
            "Traces dropped undecided",
            "Traces a second that left memory before their decision: raise num_traces, or add a gateway.",
            (
                Query(
                    "sum by (instance) (rate("
                    "otelcol_processor_tail_sampling_sampling_trace_dropped_too_early_total[$__rate_interval]))",
                    "{{instance}}",
                    quiet=_GATEWAY,
                ),
            ),
            unit="cps",
            thresholds=LOST,
        ),
    ),
)

SELF_MONITORING = Board(
    uid="llmkg-telemetry",
    title="llmkg / Telemetry",
    description="Whether telemetry arrives: hooks, queues, exporters, scrapes and Collectors.",
    rows=(HERE, COLLECTORS),
    by_operation=False,
)
