"""The standard `OTEL_*` variables: resource, exporters, samplers and log handlers are what they say."""

from __future__ import annotations

import json

import pytest
from support.processes import SILENT, SPAN, facts, run

RESOURCE = """
    make()
    told(**trace.get_tracer_provider().resource.attributes)
"""


def test_the_resource_describes_this_service_by_default() -> None:
    found = facts(RESOURCE)
    assert found["service.name"] == "llmkg"
    assert found["service.version"]
    assert len(found["service.instance.id"]) == 36


@pytest.mark.parametrize(
    "environment",
    [
        {"OTEL_SERVICE_NAME": "theirs"},
        {"OTEL_RESOURCE_ATTRIBUTES": "service.name=theirs,service.instance.id=pod-1,team=graphs"},
    ],
    ids=lambda environment: next(iter(environment)),
)
def test_the_resource_that_the_environment_describes_wins(environment: dict[str, str]) -> None:
    found = facts(RESOURCE, **environment)
    assert found["service.name"] == "theirs"
    if "OTEL_RESOURCE_ATTRIBUTES" in environment:
        assert (found["service.instance.id"], found["team"]) == ("pod-1", "graphs")


def test_exporters_are_those_of_the_standard_variables_and_stdout_stays_the_programs_own() -> None:
    done = run("asyncio.run(use(make()))", **dict.fromkeys(SILENT, "console"))
    for expected in (SPAN, '"llmkg.operation.duration"', '"hello"'):
        assert expected in done.stderr
    assert done.stdout == ""


def test_the_sampler_and_the_ids_are_those_of_the_standard_variables() -> None:
    code = """
        make()
        told(sampler=trace.get_tracer_provider().sampler.get_description())
    """
    variables = {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"}
    assert facts(code, **variables) == {"sampler": "TraceIdRatioBased{0.25}"}


SAMPLED = """
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context
    from opentelemetry import context
    from llmkg_otel.telemetry.log_lines import call_ids
    system, exporter = make(), InMemorySpanExporter()
    trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))
    seen = []
    def work():
        seen.append([trace.get_current_span().is_recording(), call_ids().get("correlation_id")])
    for parent in (None, 1, 0):
        token = None
        if parent is not None:
            remote = SpanContext(5, 6, is_remote=True, trace_flags=TraceFlags(parent))
            token = context.attach(set_span_in_context(NonRecordingSpan(remote)))
        system.execute_protected_operation_sync("op", work)
        token and context.detach(token)
    told(recording=[each[0] for each in seen], correlated=[len(each[1] or "") for each in seen],
         spans=len(exporter.get_finished_spans()),
         calls=system.telemetry.collected.collect().total("llmkg_operation_duration_seconds_count"),
         exemplars=system.telemetry.collected.expose("application/openmetrics-text")[1].count(b" # {"))
"""


@pytest.mark.parametrize(("ratio", "recorded"), [("0.0", [False, True, False]), ("1.0", [True, True, False])])
def test_the_ratio_decides_on_roots_and_the_parent_on_the_rest_and_every_call_is_measured(
    ratio: str, recorded: list[bool]
) -> None:
    variables = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": ratio}
    found = facts(SAMPLED, **variables)
    assert found["recording"] == recorded
    assert found["spans"] == sum(recorded)
    assert found["calls"] == 3  # sampled or not
    assert found["correlated"] == [32, 32, 32]
    assert found["exemplars"] in (1, sum(recorded))  # those of sampled calls; one bucket has one


def test_the_prometheus_exporter_starts_no_server_and_the_others_stay() -> None:
    code = """
        import socket
        asyncio.run(use(make()))
        with socket.socket() as probe:
            told(refused=probe.connect_ex(("localhost", 9464)) != 0)
    """
    done = run(code, OTEL_METRICS_EXPORTER="prometheus, console")
    assert json.loads(done.stdout) == {"refused": True}
    assert done.stderr.count("OTEL_METRICS_EXPORTER: prometheus is left out") == 1
    assert '"llmkg.operation.duration"' in done.stderr


REFUSED = """
    from llmkg_otel.errors import ConfigurationError
    try:
        make()
    except ConfigurationError as error:
        told(problem=str(error), names=names())
"""


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        (
            "OTEL_TRACES_EXPORTER",
            "nobodys",
            "OTEL_TRACES_EXPORTER = 'nobodys': must be one that is installed",
        ),
        (
            "OTEL_METRICS_EXPORTER",
            "otlp",
            "OTEL_EXPORTER_OTLP_PROTOCOL = 'pigeon': must be one of grpc, http",
        ),
        ("OTEL_CONFIG_FILE", "otel.yaml", "opentelemetry-configuration is not installed"),
    ],
)
def test_variables_that_cannot_be_followed_are_refused_before_anything_is_set(
    variable: str, value: str, said: str
) -> None:
    found = facts(REFUSED, OTEL_EXPORTER_OTLP_PROTOCOL="pigeon", **{variable: value})
    assert variable in found["problem"] or "PROTOCOL" in found["problem"]
    assert said in found["problem"]
    assert found["names"] == ["ProxyTracerProvider", "_ProxyMeterProvider"]


OTHER_HANDLERS = """
import warnings
from opentelemetry.instrumentation.logging import LoggingInstrumentor
from opentelemetry.sdk._logs import LoggingHandler

def nobodys():
    pass

def the_sdks():
    warnings.simplefilter("ignore")  # it is deprecated
    logging.root.addHandler(LoggingHandler())

def the_instrumentations():
    LoggingInstrumentor().instrument()
"""


@pytest.mark.parametrize("order", ["{handler}(); system = make()", "system = make(); {handler}()"])
@pytest.mark.parametrize(
    ("handler", "auto"), [("nobodys", "true"), ("the_sdks", "true"), ("the_instrumentations", "false")]
)
def test_a_record_is_exported_once_whoever_else_has_a_handler(handler: str, order: str, auto: str) -> None:
    code = OTHER_HANDLERS + order.format(handler=handler) + "\nasyncio.run(use(system))"
    variables = {"OTEL_PYTHON_LOGGING_AUTO_INSTRUMENTATION_ENABLED": auto}
    done = run(code, OTEL_LOGS_EXPORTER="console", **variables)
    assert done.stderr.count('"body": "hello"') == 1


def test_what_opentelemetry_logs_of_itself_is_not_exported() -> None:
    code = """
        system = make()
        logging.getLogger("opentelemetry.exporter").error("could not export")
        system.telemetry.close(2)
    """
    assert '"body"' not in run(code, OTEL_LOGS_EXPORTER="console").stderr


def test_without_an_exporter_logs_get_no_handler() -> None:
    assert facts("make(); told(handlers=len(logging.root.handlers))") == {"handlers": 0}
