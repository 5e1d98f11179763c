"""What a test of code on this layer needs: a clock, captured telemetry, and an OTLP receiver.

`captured_telemetry()` gives providers to pass to the code under test, and compares what came out in
memory; `OtlpReceiver` listens for what a whole process exports, its `environment()` is for the child.
"""

from llmkg_otel.testing.captured import CapturedTelemetry, captured_telemetry
from llmkg_otel.testing.clock import FakeClock
from llmkg_otel.testing.receiver import OtlpReceiver
from llmkg_otel.testing.records import LogEntry, Point, SpanRecord, attributes_key

__all__ = [
    "CapturedTelemetry",
    "FakeClock",
    "LogEntry",
    "OtlpReceiver",
    "Point",
    "SpanRecord",
    "attributes_key",
    "captured_telemetry",
]
