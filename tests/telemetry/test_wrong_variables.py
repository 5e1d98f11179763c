"""An `OTEL_*` variable that cannot be followed is named, with what is right, before anything is set."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support.processes import facts, run

import llmkg_otel
from llmkg_otel.errors import ConfigurationError
from llmkg_otel.telemetry.variables import check_signals

if TYPE_CHECKING:
    from pathlib import Path

EXPORTING = {f"OTEL_{signal}_EXPORTER": "otlp" for signal in ("TRACES", "METRICS", "LOGS")}
HTTP = "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"
WRONG = {
    "OTEL_TRACES_EXPORTER=nobodys": "console, none, otlp",
    "OTEL_METRICS_EXPORTER=otlp,nobodys": "console, none, otlp",
    "OTEL_LOGS_EXPORTER=Otlp": "console, none, otlp",
    "OTEL_EXPORTER_OTLP_PROTOCOL=http/json": "grpc, http/protobuf",
    "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL=pigeon": "grpc, http/protobuf",
    "OTEL_EXPORTER_OTLP_ENDPOINT=nonsense": "http://HOST:PORT",
    "OTEL_EXPORTER_OTLP_ENDPOINT=": "http://HOST:PORT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://[::1": "http://HOST:PORT",
    f"OTEL_EXPORTER_OTLP_ENDPOINT=collector:4318 {HTTP}": "a URL",
    f"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT=http://:4318 {HTTP}": "a URL",
    f"OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:http {HTTP}": "a URL",
    "OTEL_EXPORTER_OTLP_TIMEOUT=x": "seconds",
    "OTEL_EXPORTER_OTLP_TIMEOUT=": "seconds",
    f"OTEL_EXPORTER_OTLP_METRICS_TIMEOUT=-1 {HTTP}": "seconds",
    "OTEL_EXPORTER_OTLP_TIMEOUT=nan": "seconds",
    "OTEL_EXPORTER_OTLP_COMPRESSION=zip": "gzip",
    f"OTEL_EXPORTER_OTLP_LOGS_COMPRESSION=zip {HTTP}": "gzip, deflate or none",
    "OTEL_EXPORTER_OTLP_CERTIFICATE=/nowhere/ca.pem": "a file",
    f"OTEL_EXPORTER_OTLP_METRICS_CLIENT_KEY=/nowhere/key.pem {HTTP}": "a file",
    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE=sometimes": "cumulative",
    "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION=x": "explicit_bucket_histogram",
    "OTEL_BSP_MAX_QUEUE_SIZE=abc": "a whole number above 0",
    "OTEL_EXPORTER_OTLP_COMPRESSION=": "gzip",
    "OTEL_METRICS_EXEMPLAR_FILTER=": "trace_based",
    "OTEL_BSP_SCHEDULE_DELAY=-1": "a whole number above 0",
    "OTEL_BSP_EXPORT_TIMEOUT=1.5": "a whole number above 0",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE=4096": "at most OTEL_BSP_MAX_QUEUE_SIZE, which is 2048",
    "OTEL_BLRP_MAX_QUEUE_SIZE=0": "a whole number above 0",
    "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE=16 OTEL_BLRP_MAX_QUEUE_SIZE=8": "which is 8",
    "OTEL_METRIC_EXPORT_INTERVAL=0": "milliseconds",
    "OTEL_METRIC_EXPORT_TIMEOUT=soon": "milliseconds",
    "OTEL_METRICS_EXEMPLAR_FILTER=some": "trace_based, always_on, always_off",
    "OTEL_TRACES_SAMPLER=nope": "parentbased_traceidratio",
    "OTEL_TRACES_SAMPLER_ARG=2 OTEL_TRACES_SAMPLER=traceidratio": "from 0 to 1",
    "OTEL_TRACES_SAMPLER_ARG=half OTEL_TRACES_SAMPLER=parentbased_traceidratio": "from 0 to 1",
    "OTEL_PYTHON_ID_GENERATOR=nobodys": "random",
    "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS=host,nobodys": "host, os",
    "OTEL_SPAN_LINK_COUNT_LIMIT=-1": "from 0 up, or blank",
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT=x": "from 0 up, or blank",
    "OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT=none": "from 0 up, or blank",
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT=abc": "from 0 up, or blank",
    "OTEL_PROPAGATORS=tracecontext,nobodys": "baggage, none, tracecontext",
    "OTEL_PYTHON_CONTEXT=nobodys": "contextvars_context",
}
"""Settings, of which the first is wrong, and what the error has to say of right ones."""
AT_IMPORT = ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT=abc", "OTEL_PROPAGATORS=nobodys", "OTEL_PYTHON_CONTEXT=nobodys")


def settings(text: str) -> dict[str, str]:
    return dict(each.split("=", 1) for each in text.split(" "))


def test_each_is_named_with_its_value_and_what_is_right_and_nothing_is_set() -> None:
    tried = {text: settings(text) for text in WRONG}
    code = f"""
        import os
        from llmkg_otel.errors import ConfigurationError
        said, tried, before = {{}}, {tried!r}, dict(os.environ)
        for text, variables in tried.items():
            os.environ.update(variables)
            try:
                make()
            except ConfigurationError as error:
                said[text] = str(error)
            os.environ.clear()
            os.environ.update(before)
        told(said=said, names=names(), threads=threading.active_count())
    """
    found = facts(code, **EXPORTING)
    assert found["said"].keys() == WRONG.keys()
    for text, said in found["said"].items():
        variable, _, value = text.split(" ")[0].partition("=")
        assert said.startswith((f"{variable} = {value!r}: must be ", f"{variable} = {value}: must be ")), said
        assert WRONG[text] in said
    assert found["names"] == ["ProxyTracerProvider", "_ProxyMeterProvider"]
    assert found["threads"] == 1


@pytest.mark.parametrize(
    "text",
    [
        "OTEL_EXPORTER_OTLP_ENDPOINT=collector:4317 OTEL_EXPORTER_OTLP_INSECURE=true",
        f"OTEL_EXPORTER_OTLP_ENDPOINT=https://u:p@[::1]:4318/otlp OTEL_EXPORTER_OTLP_COMPRESSION=none {HTTP}",
        f"OTEL_EXPORTER_OTLP_ENDPOINT= OTEL_EXPORTER_OTLP_COMPRESSION= {HTTP}",
        "OTEL_PROPAGATORS=None",
        "OTEL_SPAN_LINK_COUNT_LIMIT= OTEL_PROPAGATORS=none OTEL_EXPERIMENTAL_RESOURCE_DETECTORS=host,*",
        "OTEL_TRACES_SAMPLER=always_off OTEL_TRACES_SAMPLER_ARG=x OTEL_BSP_MAX_QUEUE_SIZE=512",
        "OTEL_METRICS_EXPORTER=none OTEL_METRIC_EXPORT_INTERVAL=0 OTEL_EXPORTER_OTLP_METRICS_PROTOCOL=x",
        f"OTEL_EXPORTER_OTLP_TIMEOUT=0.5 OTEL_METRIC_EXPORT_INTERVAL=inf OTEL_TRACES_EXPORTER= {HTTP}",
    ],
)
def test_what_opentelemetry_takes_is_taken_without_a_word(text: str) -> None:
    code = "make(); told(names=names()); import os; sys = __import__('sys'); sys.stdout.flush(); os._exit(0)"
    done = run(code, **EXPORTING | settings(text))
    assert "TracerProvider" in done.stdout
    assert done.stderr == ""


BLANK = (
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_TRACES_SAMPLER_ARG",
    "OTEL_METRIC_EXPORT_INTERVAL",
    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE",
)


@pytest.mark.parametrize("variable", BLANK)
def test_blank_is_not_set_where_the_sdk_takes_its_default_then(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Helm's values are often blank."""
    for name, value in (EXPORTING | {"OTEL_TRACES_SAMPLER": "traceidratio", variable: "x"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=variable):
        check_signals(("traces", "metrics", "logs"))
    monkeypatch.setenv(variable, "")
    check_signals(("traces", "metrics", "logs"))


def test_a_secret_in_an_endpoint_is_not_told() -> None:
    code = """
        from llmkg_otel.errors import ConfigurationError
        try:
            make()
        except ConfigurationError as error:
            told(said=str(error))
    """
    said = facts(code, **EXPORTING, OTEL_EXPORTER_OTLP_ENDPOINT="ftp://u:hunter2-planted@backend")["said"]
    assert "ftp://u:[redacted]@backend" in said


def test_what_only_an_exporter_knows_to_be_wrong_is_told_in_its_words_with_the_variables_that_are_set() -> (
    None
):
    code = """
        from llmkg_otel.errors import ConfigurationError
        try:
            make()
        except ConfigurationError as error:
            told(said=str(error))
    """
    variable = "OTEL_PYTHON_EXPORTER_OTLP_GRPC_CREDENTIAL_PROVIDER"
    more = {variable: "nobodys", "OTEL_EXPORTER_OTLP_ENDPOINT": "https://localhost:1"}
    said = facts(code, **EXPORTING, **more)["said"]
    assert said.startswith("OpenTelemetry cannot be set up from OTEL_EXPORTER_OTLP_ENDPOINT, ")
    assert variable in said
    assert "Requested component 'nobodys' not found" in said


@pytest.mark.parametrize("text", ["OTEL_BSP_MAX_QUEUE_SIZE=abc", "OTEL_EXPORTER_OTLP_TIMEOUT=x", *AT_IMPORT])
def test_the_command_ends_with_status_two_and_one_line(text: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; from llmkg_otel.cli import main; sys.exit(main())", "serve"]
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "LLMKG_"))}
    done = subprocess.run(
        [*command, "--port", "0", "--ops-port", "0", "--engine-path", str(tmp_path / "kb.db")],
        env=clean | EXPORTING | settings(text) | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"llmkg-otel: {text.partition('=')[0]} = ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("text", AT_IMPORT)
def test_the_library_names_what_opentelemetrys_import_would_fail_on(text: str) -> None:
    code = """
        import subprocess, sys
        told(error=subprocess.run([sys.executable, "-c", "from llmkg_otel import ProductionSystem"], env={
            **__import__("os").environ, **%r}, capture_output=True, text=True).stderr.splitlines()[-1])
    """
    error = facts(code % settings(text))["error"]
    assert error.startswith(f"llmkg_otel.errors.ConfigurationError: {text.partition('=')[0]} = ")


def test_the_command_line_is_there_before_opentelemetry_is_and_so_are_the_public_names() -> None:
    script = "import sys, llmkg_otel as o, llmkg_otel.cli; print('opentelemetry' in sys.modules, *dir(o))"
    code = f"""
        import subprocess, sys
        told(said=subprocess.check_output([sys.executable, "-c", {script!r}], text=True).split())
    """
    imported, *names = facts(code)["said"]
    assert imported == "False"
    assert set(names) >= set(llmkg_otel.__all__)
