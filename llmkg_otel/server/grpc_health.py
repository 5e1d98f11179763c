"""grpc.health.v1 for callers that speak gRPC: the same answers as the HTTP probes, on threads of its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from llmkg_otel._threads import Periodic
from llmkg_otel.health.status import HealthStatus

if TYPE_CHECKING:
    from llmkg_otel.system import ProductionSystem

__all__ = ["GrpcHealthServer", "serving_statuses"]

REFRESH_SECONDS = 0.25
STOP_SECONDS = 1.0
THREADS = 4

Status = health_pb2.HealthCheckResponse.ServingStatus


def serving_statuses(system: ProductionSystem) -> dict[str, int]:
    """Return the status of each service: "" is the whole, and every component has its name.

    The whole is SERVING exactly when /readyz is 200. A component is SERVING on pass and warn, NOT_SERVING on
    fail, UNKNOWN until it was checked. Once the lame duck has begun, all are NOT_SERVING.
    Source: grpc.health.v1, "The server should use an empty string as the key for overall health".
    """
    if system.lifecycle.state not in ("starting", "serving"):
        names = [each.name for each in system.health.components()]
        return dict.fromkeys(["", *names], Status.Value("NOT_SERVING"))
    ready = "SERVING" if system.probes.readiness().ok else "NOT_SERVING"
    components = {each.name: _BY_STATUS[each.status] for each in system.health.components()}
    return {name: Status.Value(status) for name, status in (components | {"": ready}).items()}


_BY_STATUS = {
    HealthStatus.HEALTHY: "SERVING",
    HealthStatus.WARNING: "SERVING",
    HealthStatus.CRITICAL: "NOT_SERVING",
    HealthStatus.UNKNOWN: "UNKNOWN",
}


class _Servicer(health.HealthServicer):  # type: ignore[misc] # grpcio-health-checking has no types
    """Answers Check from the system itself; Watch is sent what changed, a quarter of a second later at most.

    What the base class keeps is what it has told its watchers last. Its Watch holds no thread.
    """

    def __init__(self, system: ProductionSystem) -> None:
        super().__init__()
        self._system = system
        self._told: dict[str, int] = {}
        self.refresh()

    def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - the service's own name
        self.refresh()
        return super().Check(request, context)

    def refresh(self) -> None:
        with self._lock:
            statuses = serving_statuses(self._system)
            gone = dict.fromkeys(self._told.keys() - statuses.keys(), Status.Value("SERVICE_UNKNOWN"))
            for service, status in (statuses | gone).items():
                if self._told.get(service) != status:
                    self.set(service, status)
            for service in gone:
                del self._server_status[service]
            self._told = statuses


class GrpcHealthServer:
    """Serves grpc.health.v1.Health, Check and Watch, on `server.grpc_health_port` of the operators' host.

    Without TLS, like the operators' port. Binds when built, serves while entered, on threads of its own:
    the main loop has no part in an answer. Raises OSError that names the address if it is taken.
    """

    def __init__(self, system: ProductionSystem) -> None:
        server = system.config.server
        self._servicer = _Servicer(system)
        self._pool = ThreadPoolExecutor(THREADS, "llmkg-grpc-health")
        # Without the option a second server would share the port without a word.
        self._server = grpc.server(self._pool, options=[("grpc.so_reuseport", 0)])
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, self._server)
        host = f"[{server.ops_host}]" if ":" in server.ops_host else server.ops_host
        asked = f"{host}:{server.grpc_health_port or 0}"
        try:
            port = self._server.add_insecure_port(asked)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {asked} for gRPC: {error}") from None
        self.address = f"{host}:{port}"
        self._refreshing = Periodic(self._servicer.refresh, REFRESH_SECONDS, "llmkg-grpc-refresh")

    def __enter__(self) -> Self:
        self._server.start()
        self._refreshing.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._refreshing.stop()
        self._server.stop(STOP_SECONDS).wait()
        self._pool.shutdown()
