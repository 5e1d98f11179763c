"""A small OTLP receiver on loopback, over HTTP or gRPC, for exact checks of what a process exports."""

from __future__ import annotations

import gzip
import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Literal, Self

from llmkg_otel.testing.records import (
    Attributes,
    LogEntry,
    Point,
    SpanRecord,
    decode_logs,
    decode_points,
    decode_spans,
)

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["OtlpReceiver"]

_LONGEST_BODY = 64 * 1024 * 1024


class OtlpReceiver:
    """Receives traces, metrics and logs, and keeps them in memory.

    A context manager: listens on 127.0.0.1, on `port` or a spare one (0), from construction to `close()`,
    in daemon threads. Every method may be called from any thread. `max_records` bounds spans, log records and
    series each: the oldest span or record goes first, a new series is refused; `dropped` counts both.
    `keep` decides which spans are kept; None keeps all. Of a metric only the latest point per (name,
    attributes, service.instance.id) is kept, so senders should use cumulative temporality, the SDK's default.
    """

    def __init__(
        self,
        *,
        protocol: Literal["http", "grpc"] = "http",
        port: int = 0,
        max_records: int = 100_000,
        keep: Callable[[SpanRecord], bool] | None = None,
    ) -> None:
        self._changed = threading.Condition()
        self._keep = keep
        self._spans: deque[SpanRecord] = deque(maxlen=max_records)
        self._logs: deque[LogEntry] = deque(maxlen=max_records)
        self._points: dict[str, dict[tuple[str, Attributes], Point]] = {}
        self._max_records = max_records
        self.dropped = 0
        self.exports: Counter[str] = Counter()
        """How many exports have arrived, of "traces", "metrics" and "logs"."""
        self._protocol = protocol
        listen = _listen_http if protocol == "http" else _listen_grpc
        self.port, self._stop = listen(self._take, port)

    @property
    def endpoint(self) -> str:
        """The value for `OTEL_EXPORTER_OTLP_ENDPOINT`."""
        return f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        """Return the standard variables that make a process export all three signals to here."""
        return {
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_METRICS_EXPORTER": "otlp",
            "OTEL_LOGS_EXPORTER": "otlp",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc" if self._protocol == "grpc" else "http/protobuf",
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint,
        }

    def spans(
        self, name: str | None = None, *, scope: str | None = None, kind: str | None = None
    ) -> list[SpanRecord]:
        """Return the spans kept, in order of arrival; None matches any name, scope or kind."""
        with self._changed:
            spans = list(self._spans)
        return [
            span
            for span in spans
            if name in (None, span.name) and scope in (None, span.scope) and kind in (None, span.kind)
        ]

    def metric(self, name: str, *, instance: str | None = None) -> dict[Attributes, Point]:
        """Return the latest point of each series of a metric, by its attributes.

        `instance` is the service.instance.id of a process; None takes all, of the same series any.
        """
        with self._changed:
            points = self._points.get(name, {}).items()
            return {attributes: point for (who, attributes), point in points if instance in (None, who)}

    def instances(self) -> set[str]:
        """Return the service.instance.id of every process that has sent metrics; "" is one without."""
        with self._changed:
            return {who for series in self._points.values() for who, _ in series}

    def metric_names(self) -> set[str]:
        """Return the names of all metrics received."""
        with self._changed:
            return set(self._points)

    def logs(self, event: str | None = None) -> list[LogEntry]:
        """Return the log records kept; with `event`, only those with this event name."""
        with self._changed:
            return [entry for entry in self._logs if event in (None, entry.event)]

    def wait_until(self, condition: Callable[[Self], object], timeout: float = 5.0) -> bool:
        """Wait at most `timeout` seconds until `condition(self)` holds; return whether it does.

        It is asked again after each export that arrives, so a test needs no sleep.
        """
        with self._changed:
            return bool(self._changed.wait_for(lambda: condition(self), timeout))

    def close(self) -> None:
        """Stop listening; what was received stays readable. Closing twice does nothing."""
        self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take(self, signal: str, body: bytes) -> None:
        """Decode one export outside the lock, then keep it; raises for a body that is not protobuf."""
        if signal == "traces":
            spans = [span for span in decode_spans(body) if self._keep is None or self._keep(span)]
            with self._changed:
                self.exports[signal] += 1
                self._append(self._spans, spans)
        elif signal == "logs":
            entries = list(decode_logs(body))
            with self._changed:
                self.exports[signal] += 1
                self._append(self._logs, entries)
        else:
            points = list(decode_points(body))
            with self._changed:
                self.exports[signal] += 1
                self._update(points)

    def _append(self, kept: deque[Any], new: list[Any]) -> None:
        self.dropped += max(0, len(kept) + len(new) - self._max_records)
        kept.extend(new)
        self._changed.notify_all()

    def _update(self, points: list[tuple[str, str, Attributes, Point]]) -> None:
        room = self._max_records - sum(map(len, self._points.values()))
        for instance, name, attributes, point in points:
            series = self._points.setdefault(name, {})
            if (instance, attributes) not in series:
                if room <= 0:
                    self.dropped += 1
                    continue
                room -= 1
            series[instance, attributes] = point
        self._changed.notify_all()


Take = Callable[[str, bytes], None]
Listening = tuple[int, Callable[[], None]]
"""The port, and what stops listening."""


def _listen_http(take: Take, port: int) -> Listening:
    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status = self._export()
            self.send_response(status)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _export(self) -> int:
            signal = self.path.removeprefix("/v1/")
            if signal not in {"traces", "metrics", "logs"}:
                return 404
            if self.headers.get("Content-Type") != "application/x-protobuf":
                return 415
            length = int(self.headers.get("Content-Length", 0))
            if length > _LONGEST_BODY:
                return 413
            body = self.rfile.read(length)
            zipped = self.headers.get("Content-Encoding") == "gzip"
            try:
                take(signal, gzip.decompress(body) if zipped else body)
            except Exception:  # noqa: BLE001 - whatever is wrong with a body, the answer is the same
                return 400
            return 200

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Stay quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Endpoint)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="otlp-receiver", daemon=True)
    thread.start()

    def stop() -> None:
        server.shutdown()
        thread.join()
        server.server_close()

    return server.server_port, stop


_GRPC_METHODS = {
    f"/opentelemetry.proto.collector.{package}.v1.{service}/Export": signal
    for package, service, signal in (
        ("trace", "TraceService", "traces"),
        ("metrics", "MetricsService", "metrics"),
        ("logs", "LogsService", "logs"),
    )
}


def _listen_grpc(take: Take, port: int) -> Listening:
    import grpc  # type: ignore[import-untyped, unused-ignore]  # noqa: PLC0415 - HTTP must not need it

    class Endpoint(grpc.GenericRpcHandler):  # type: ignore[misc] # grpcio has no types
        def service(self, details: Any) -> Any:
            signal = _GRPC_METHODS.get(details.method)
            if signal is None:
                return None

            def export(body: bytes, _context: Any) -> bytes:
                take(signal, body)
                return b""

            return grpc.unary_unary_rpc_method_handler(export)  # raw bytes: no (de)serializer

    pool = ThreadPoolExecutor(2, "otlp-receiver")
    server = grpc.server(pool, handlers=[Endpoint()])
    bound: int = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()

    def stop() -> None:
        server.stop(grace=1.0).wait()
        pool.shutdown()

    return bound, stop
