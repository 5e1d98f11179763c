"""Every telemetry name this layer emits, with kind, unit and attributes: the contract as data.

Code takes its names from here; the documentation table is generated from `INSTRUMENTS`; tests hold
what is emitted, the alert rules and the dashboards to it. Attribute values come from closed sets where
one is listed; None means a set that configuration or code bounds (operation names, rule names).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from llmkg_otel._buckets import DURATION_BUCKETS

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["DURATION_BUCKETS", "INSTRUMENTS", "METER_NAME", "SCHEMA_URL", "Instrument"]

METER_NAME = "llmkg_otel"
SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"

Kind = Literal["Histogram", "Counter", "ObservableCounter", "ObservableUpDownCounter"]
Values = tuple[str, ...] | None

# Attributes
OPERATION_NAME = "llmkg.operation.name"
ERROR_TYPE = "error.type"
CORRELATION_ID = "llmkg.correlation.id"
ATTEMPTS = "llmkg.operation.attempts"
REJECTION_SCOPE = "llmkg.rejection.scope"
RETRY_AFTER = "llmkg.rejection.retry_after"
FALLBACK_NAME = "llmkg.fallback.name"
FALLBACK_REASON = "llmkg.fallback.reason"
DB_SYSTEM = "db.system.name"
DB_OPERATION = "db.operation.name"
DB_QUERY_TEXT = "db.query.text"
DB_RETURNED_ROWS = "db.response.returned_rows"
CONNECTION_POOL = "db.client.connection.pool.name"
CONNECTION_STATE = "db.client.connection.state"
MCP_METHOD = "mcp.method.name"
TOOL_NAME = "gen_ai.tool.name"
OTHER = "_OTHER"

# Closed sets
BREAKER_STATES = ("closed", "open", "half_open", "forced_open", "disabled")
BREAKER_STORAGE_STATES = ("primary", "slow", "fallback")
BREAKER_OUTCOMES = ("success", "failure", "ignored", "rejected")
RETRY_OUTCOMES = ("first_try", "recovered", "exhausted", "not_retryable", "budget_exhausted", "deadline")
RATE_LIMIT_RESULTS = ("acquired", "rejected", "failed_open", "failed_closed")
RATE_LIMIT_STORE_STATES = ("primary", "fallback", "unavailable")
RATE_LIMIT_POLICIES = ("global", "operation", "user")
SHEDDING_DECISIONS = ("accepted", "shed", "would_shed")
SHEDDING_REASONS = ("none", "queue_full", "waited", "made_room", "limit")
CRITICALITIES = ("critical", "default", "sheddable")
RESOURCES = ("memory", "cpu", "connections")
CONNECTION_STATES = ("idle", "used")
HEALTH_STATES = ("pass", "warn", "fail", "unknown")
TRENDS = ("improving", "stable", "degrading", "flapping", "unknown")
PROBES = ("liveness", "readiness", "startup")
PROBE_STATES = ("ok", "failing")
LIFECYCLE_STATES = (
    "starting",
    "serving",
    "lame_duck",
    "draining",
    "checkpointing",
    "cleaning_up",
    "flushing",
    "stopped",
)
SHUTDOWN_OUTCOMES = ("drained", "cancelled", "refused")
LOG_DESTINATIONS = ("stderr", "otlp")
ALERT_STATES = ("inactive", "pending", "firing", "unknown")

# Events (log records with an event name)
BREAKER_STATE_CHANGED = "llmkg.circuit_breaker.state_changed"
RETRY_SCHEDULED = "llmkg.retry.scheduled"
LOAD_SHEDDING_LIMIT_CHANGED = "llmkg.load_shedding.limit_changed"
TIME_LIMIT_IGNORED = "llmkg.operation.time_limit_ignored"
FALLBACK_FAILED = "llmkg.fallback.failed"
RATE_LIMIT_REJECTED = "llmkg.rate_limit.rejected"
HEALTH_STATE_CHANGED = "llmkg.health.state_changed"
LOOP_BLOCKED = "llmkg.event_loop.blocked"
SHUTDOWN_STARTED = "llmkg.shutdown.started"
SHUTDOWN_COMPLETED = "llmkg.shutdown.completed"
ALERT_FIRED = "llmkg.alert.fired"
ALERT_RESOLVED = "llmkg.alert.resolved"

# Spans
ATTEMPT_SPAN = "llmkg.attempt"
SHUTDOWN_SPAN = "llmkg.shutdown"
CHECKPOINT_SPAN = "llmkg.checkpoint"

# Events of spans; a retry's is named as its log record
PERMIT_WAITED = "llmkg.permit.waited"
CONNECTION_WAITED = "llmkg.connection.waited"


@dataclass(frozen=True, slots=True)
class Instrument:
    """One metric: its name, kind, UCUM unit, what it measures, and its attributes with their values."""

    name: str
    kind: Kind
    unit: str
    description: str
    attributes: Mapping[str, Values]


def _duration(name: str, description: str, attributes: Mapping[str, Values]) -> Instrument:
    return Instrument(name, "Histogram", "s", description, attributes)


def _state(name: str, description: str, attributes: Mapping[str, Values]) -> Instrument:
    return Instrument(name, "ObservableUpDownCounter", "1", description, attributes)


def _live(name: str, unit: str, description: str, attributes: Mapping[str, Values]) -> Instrument:
    return Instrument(name, "ObservableUpDownCounter", unit, description, attributes)


OPERATION_DURATION = _duration(
    "llmkg.operation.duration",
    "Protected calls, refused and cancelled ones included.",
    {OPERATION_NAME: None, ERROR_TYPE: None, FALLBACK_NAME: None},
)
ATTEMPT_DURATION = _duration(
    "llmkg.attempt.duration",
    "Attempts at the engine, without waits of ours; only with monitoring.enable_performance_tracking.",
    {OPERATION_NAME: None, ERROR_TYPE: None},
)
OPERATION_ACTIVE = _live(
    "llmkg.operation.active", "{operation}", "Protected calls in flight.", {OPERATION_NAME: None}
)
OPERATION_ABANDONED = _live(
    "llmkg.operation.abandoned",
    "{thread}",
    "Threads of sync operations whose calls were given up; each keeps its permits until it ends.",
    {OPERATION_NAME: None},
)
BREAKER_STATUS = _state(
    "llmkg.circuit_breaker.status",
    "1 for the state the breaker is in, 0 for the others.",
    {"name": None, "state": BREAKER_STATES},
)
BREAKER_CALLS = Instrument(
    "llmkg.circuit_breaker.calls",
    "ObservableCounter",
    "{call}",
    "Attempts by what the breaker made of them; ignored ones count neither way.",
    {"name": None, "outcome": BREAKER_OUTCOMES},
)
BREAKER_TRANSITIONS = Instrument(
    "llmkg.circuit_breaker.transitions",
    "Counter",
    "{transition}",
    "Changes of a breaker's state.",
    {"name": None, "state": BREAKER_STATES, "previous_state": BREAKER_STATES},
)
BREAKER_STORAGE_STATUS = _state(
    "llmkg.circuit_breaker.storage.status",
    "1 for primary while the store of shared circuits answers, for slow if it did too late, else fallback;"
    " absent if none is shared.",
    {"state": BREAKER_STORAGE_STATES},
)
RETRY_CALLS = Instrument(
    "llmkg.retry.calls",
    "ObservableCounter",
    "{call}",
    "Calls that reached the engine, by how retrying ended.",
    {"name": None, "outcome": RETRY_OUTCOMES},
)
RETRY_ATTEMPTS = Instrument(
    "llmkg.retry.attempts", "Counter", "{attempt}", "Second and later attempts.", {"name": None}
)
RETRY_DELAY = _duration("llmkg.retry.delay", "Waits before a retry.", {"name": None})
RETRY_BUDGET_USAGE = _live("llmkg.retry.budget.usage", "{retry}", "Retries in progress.", {})
RETRY_BUDGET_LIMIT = _live(
    "llmkg.retry.budget.limit", "{retry}", "Retries that may be in progress, given the calls in flight.", {}
)
RATE_LIMIT_REQUESTS = Instrument(
    "llmkg.rate_limit.requests",
    "ObservableCounter",
    "{request}",
    "Decisions of the rate limits.",
    {"policy": RATE_LIMIT_POLICIES, "result": RATE_LIMIT_RESULTS},
)
RATE_LIMIT_STORAGE_STATUS = _state(
    "llmkg.rate_limit.storage.status",
    "1 for how the shared store of the rate limits is: it decides, local buckets do, or nothing counts.",
    {"state": RATE_LIMIT_STORE_STATES},
)
LOAD_SHEDDING_REQUESTS = Instrument(
    "llmkg.load_shedding.requests",
    "ObservableCounter",
    "{request}",
    "Decisions of load shedding, unless it is off.",
    {"decision": SHEDDING_DECISIONS, "reason": SHEDDING_REASONS, "criticality": CRITICALITIES},
)
LOAD_SHEDDING_LIMIT = _live(
    "llmkg.load_shedding.limit",
    "{permit}",
    "Calls at once that the engine takes well, as load shedding has found out.",
    {},
)
PERMIT_LIMIT = _live("llmkg.permit.limit", "{permit}", "Permits that exist.", {"pool": None})
PERMIT_USAGE = _live("llmkg.permit.usage", "{permit}", "Permits in use.", {"pool": None})
PERMIT_PENDING = _live(
    "llmkg.permit.pending_requests", "{request}", "Calls waiting for a permit.", {"pool": None}
)
PERMIT_WAIT_TIME = _duration(
    "llmkg.permit.wait_time", "Waits for a permit, of calls that had to wait.", {"pool": None}
)
RESOURCE_LIMIT = _live(
    "llmkg.resource.limit",
    "1",
    "Limits: memory in bytes, cpu as a fraction of 1, connections.",
    {"name": RESOURCES},
)
RESOURCE_USAGE = _live(
    "llmkg.resource.usage",
    "1",
    "Use: memory in bytes, cpu as a fraction of 1, connections.",
    {"name": RESOURCES},
)
HEALTH_STATUS = _state(
    "llmkg.health.status",
    "1 for the status the component has, 0 for the others.",
    {"component": None, "state": HEALTH_STATES},
)
HEALTH_TREND = _state(
    "llmkg.health.trend",
    "1 for where the component's health is going, by its last 20 checks, 0 for the others.",
    {"component": None, "state": TRENDS},
)
HEALTH_CHECK_DURATION = _duration(
    "llmkg.health.check.duration", "Health checks.", {"component": None, ERROR_TYPE: None}
)
HEALTH_CHECK_AGE = _live(
    "llmkg.health.check.age", "s", "Seconds since a component's last check ended.", {"component": None}
)
PROBE_STATUS = _state(
    "llmkg.probe.status",
    "1 for what the probe would answer now, 0 for the other.",
    {"probe": PROBES, "state": PROBE_STATES},
)
LIFECYCLE_STATUS = _state(
    "llmkg.lifecycle.status", "1 for where the system is in its life.", {"state": LIFECYCLE_STATES}
)
SHUTDOWN_PHASE_DURATION = _duration(
    "llmkg.shutdown.phase.duration", "Phases of the shutdown.", {"phase": LIFECYCLE_STATES}
)
SHUTDOWN_OPERATIONS = Instrument(
    "llmkg.shutdown.operations",
    "Counter",
    "{operation}",
    "Calls that met the shutdown, by what became of them.",
    {"outcome": SHUTDOWN_OUTCOMES},
)
ALERT_STATUS = _state(
    "llmkg.alert.status",
    "1 for the state the alert rule is in, 0 for the others.",
    {"alert": None, "severity": None, "state": ALERT_STATES},
)
ALERT_EVALUATION_DURATION = _duration(
    "llmkg.alert.evaluation.duration", "Evaluations of all alert rules.", {}
)
ALERT_NOTIFICATIONS = Instrument(
    "llmkg.alert.notifications",
    "Counter",
    "{notification}",
    "Messages about alerts, by channel; with an error type, those that did not arrive after retries.",
    {"channel": None, ERROR_TYPE: None},
)
HOOK_ERRORS = Instrument(
    "llmkg.telemetry.hook.errors",
    "Counter",
    "{error}",
    "Errors inside telemetry itself, kept away from the call.",
    {"hook": None, ERROR_TYPE: None},
)
LOGS_DROPPED = Instrument(
    "llmkg.telemetry.logs.dropped",
    "ObservableCounter",
    "{record}",
    "Log records that a full queue has lost, by where they should have gone.",
    {"destination": LOG_DESTINATIONS},
)
MCP_OPERATION_DURATION = _duration(
    "mcp.server.operation.duration",
    "MCP requests as the server sees them (MCP semantic conventions).",
    {MCP_METHOD: None, TOOL_NAME: None, ERROR_TYPE: None},
)
DB_OPERATION_DURATION = _duration(
    "db.client.operation.duration",
    "Engine operations (database semantic conventions).",
    {DB_SYSTEM: None, DB_OPERATION: None, ERROR_TYPE: None},
)
_POOL = {CONNECTION_POOL: None}
CONNECTION_COUNT = _live(
    "db.client.connection.count",
    "{connection}",
    "Connections of a pool, by whether they are lent (database semantic conventions).",
    {CONNECTION_POOL: None, CONNECTION_STATE: CONNECTION_STATES},
)
CONNECTION_MAX = _live("db.client.connection.max", "{connection}", "Connections a pool may have.", _POOL)
CONNECTION_PENDING = _live(
    "db.client.connection.pending_requests", "{request}", "Calls waiting for a connection.", _POOL
)
CONNECTION_TIMEOUTS = Instrument(
    "db.client.connection.timeouts",
    "Counter",
    "{timeout}",
    "Waits for a connection that were in vain.",
    _POOL,
)
CONNECTION_CREATE_TIME = _duration("db.client.connection.create_time", "Making a connection.", _POOL)
CONNECTION_WAIT_TIME = _duration(
    "db.client.connection.wait_time", "Waits for a connection, of calls that had to wait.", _POOL
)
CONNECTION_USE_TIME = _duration("db.client.connection.use_time", "Times that connections were lent.", _POOL)

INSTRUMENTS: tuple[Instrument, ...] = tuple(
    value for value in list(globals().values()) if isinstance(value, Instrument)
)
"""All of them, in the order of the documentation table."""
