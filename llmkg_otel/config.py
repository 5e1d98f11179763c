"""Every option of the system, as one tree: defaults, then a file, then `LLMKG_*`, then arguments.

Read once, validated when built, frozen afterwards. Names and units are the seed document's
(`base_delay_ms`, `operation_timeout_seconds`); `recovery_timeout` and `timeout` are seconds or a
timedelta; whatever is new says its unit in its name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from llmkg_otel._config_instrumentation import InstrumentationConfig, Targets
from llmkg_otel._config_notify import NotifyConfig
from llmkg_otel._config_rates import RateLimitConfig, RateLimitRule, RateLimitRules
from llmkg_otel._config_slo import SloConfig, Slos
from llmkg_otel._config_sources import CheckedModelMeta, Section, file_source, ordered_sources
from llmkg_otel._config_types import (
    Count,
    ExceptionTypes,
    Fraction,
    Milliseconds,
    Networks,
    Number,
    OperationName,
    Pause,
    Port,
    Seconds,
    Share,
    StorageUri,
    TokenPairs,
    Whole,
    WindowSize,
)

__all__ = [
    "AlertingConfig",
    "CheckpointConfig",
    "CircuitBreakerConfig",
    "CircuitSharingConfig",
    "EngineConfig",
    "HealthCheckConfig",
    "InstrumentationConfig",
    "LoadSheddingConfig",
    "MonitoringConfig",
    "NotifyConfig",
    "OperationConfig",
    "ProductionConfig",
    "RateLimitConfig",
    "RateLimitRule",
    "ResourceLimits",
    "RetryConfig",
    "Section",
    "ServerConfig",
    "ShutdownConfig",
    "SloConfig",
]


class RetryConfig(Section):
    """How often, and how patiently, a failed operation is tried again.

    The delay before retry n (n = 1, 2, ...) is drawn evenly from [(1 - jitter_factor) * d, d] with
    d = min(max_delay_ms, base_delay_ms * backoff_multiplier ** (n - 1)). A jitter_factor of 1 is AWS's
    "full jitter". `max_retries` counts retries, not attempts: 0 means one attempt. Failures of
    `retryable_exceptions` are tried again, less those of `excluded_exceptions`: classes, or their names
    ("ConnectionError", "httpx.TransportError"); subclasses count. A failure that carries a `retry_after`
    (seconds) is waited out, and up to `jitter_factor` of it more, so that callers do not return as one.
    """

    max_retries: Whole = Field(default=3, ge=0, le=100)
    base_delay_ms: Milliseconds = 100.0
    max_delay_ms: Milliseconds = 5000.0
    backoff_multiplier: Number = Field(default=2.0, ge=1, allow_inf_nan=False)
    jitter_factor: Fraction = 0.1
    retryable_exceptions: ExceptionTypes = Field(default_factory=lambda: (Exception,))
    excluded_exceptions: ExceptionTypes = ()

    @model_validator(mode="after")
    def _max_is_not_below_base(self) -> Self:
        if self.max_delay_ms < self.base_delay_ms:
            raise ValueError(f"max_delay_ms must be at least base_delay_ms ({self.base_delay_ms:g})")
        return self


class CircuitBreakerConfig(Section):
    """When an operation's circuit opens, and how it closes again.

    `failure_threshold` consecutive failures open it. So do `failure_rate_threshold` and
    `slow_call_rate_threshold` (fractions, 0 to 1; None: not looked at) of the attempts in a sliding
    window, the last `sliding_window_calls` or those of the last `sliding_window_seconds`, once it holds
    `minimum_calls`. An attempt is slow if it took `slow_call_seconds` or longer, whatever its outcome.

    After `recovery_timeout` (seconds) the circuit is half open: at most `half_open_max_probes` calls
    are let through (None: as many as `success_threshold`); so many successes close it, and one failure
    opens it again. `timeout` (seconds) bounds each attempt and counts as a failure. Exceptions of
    `excluded_exceptions`, classes or their names, are neither success nor failure.
    """

    enabled: bool = True
    failure_threshold: Count = 5
    failure_rate_threshold: Share | None = None
    slow_call_rate_threshold: Share | None = None
    slow_call_seconds: Seconds = 5.0
    sliding_window_calls: WindowSize | None = None
    sliding_window_seconds: Annotated[Seconds, Field(ge=1e-3, le=86_400)] | None = None
    minimum_calls: Count = 10
    recovery_timeout: Seconds = 60.0
    success_threshold: Count = 3
    timeout: Seconds = 10.0
    half_open_max_probes: Count | None = None
    excluded_exceptions: ExceptionTypes = ()

    @model_validator(mode="after")
    def _thresholds_can_be_met(self) -> Self:
        probes = self.half_open_max_probes
        if probes is not None and self.success_threshold > probes:
            raise ValueError(f"success_threshold must be at most half_open_max_probes ({probes})")
        if self.sliding_window_calls is not None and self.sliding_window_seconds is not None:
            raise ValueError("sliding_window_calls and sliding_window_seconds exclude each other")
        if self.sliding_window_seconds is None and self.minimum_calls > self.window_calls:
            raise ValueError(f"minimum_calls must be at most sliding_window_calls ({self.window_calls})")
        if self.slow_call_rate_threshold is not None and self.slow_call_seconds >= self.timeout:
            raise ValueError(f"slow_call_seconds must be below timeout ({self.timeout:g})")
        return self

    @property
    def window_calls(self) -> int:
        """Attempts in the window when it is counted in attempts."""
        return self.sliding_window_calls or 100

    @property
    def probes(self) -> int:
        """Calls that a half-open circuit lets through."""
        return self.half_open_max_probes or self.success_threshold


class CircuitSharingConfig(Section):
    """Where the processes of a fleet share their circuits (None: each has its own).

    `storage_uri` names a Redis or Valkey in the `limits` library's notation: redis://, rediss://,
    redis+unix://, redis+cluster://, redis+sentinel://, or the same with valkey. Processes with the same
    `key_prefix` share the circuits of the same name.
    """

    storage_uri: StorageUri | None = None
    # A bounded repetition in the pattern, which Rust would write out 100 times, took 10 MB and 50 ms.
    key_prefix: str = Field(default="llmkg", pattern=r"^[\w.:-]+$", max_length=100)


class ResourceLimits(Section):
    """What the process may use before new calls are refused.

    `max_memory_bytes`, `max_cpu_percent` (of the CPUs this process may use, 0 to 100) and
    `max_database_connections` (TCP connections that this process has opened to others) are compared with
    samples taken off the request path. A container's own limits count where they are smaller.
    `max_queue_wait_seconds` bounds the wait for a permit, and
    `max_queued_operations` how many may wait. `operation_timeout_seconds` is a call's total deadline.
    """

    max_memory_bytes: Count = 2_000_000_000
    max_cpu_percent: Number = Field(default=80.0, gt=0, le=100)
    max_concurrent_operations: Count = 1000
    max_database_connections: Count = 100
    max_queued_operations: Whole = Field(default=1000, ge=0)
    max_queue_wait_seconds: Seconds = 1.0
    max_request_size_bytes: Count = 10_000_000
    max_response_size_bytes: Count = 50_000_000
    operation_timeout_seconds: Seconds = 30.0


class LoadSheddingConfig(Section):
    """Whether calls are refused when more come than the engine takes well, and which ones first.

    In mode "on" the calls at once follow the engine's slowdown, between `min_concurrent_operations` and
    the resources' `max_concurrent_operations`; "shadow" only counts what it would refuse. Once calls have
    waited for permits without a pause for `queue_interval_seconds`, the newest go first, and all but
    critical ones wait `queue_target_seconds` at most. The more critical go before the less.
    """

    mode: Literal["off", "shadow", "on"] = "off"
    min_concurrent_operations: Count = 4
    queue_interval_seconds: Seconds = 0.1
    queue_target_seconds: Seconds = 0.02


class MonitoringConfig(Section):
    """Logs, and the collected points that status and alerts read.

    `log_level` "debug" adds each call's start and end. `max_log_entries` recent log records are kept for
    /logs. `redact_secrets` hides passwords, tokens and keys in log records on every way out.
    `enable_performance_tracking` measures each attempt as well, at the price of one more histogram a call.
    `metric_retention_seconds` and `max_metric_points` (per series) bound what alert rules can look back on.
    """

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        BeforeValidator(lambda v: v.lower() if isinstance(v, str) else v),
    ] = "info"
    max_log_entries: Count = 10_000
    redact_secrets: bool = True
    enable_performance_tracking: bool = False
    enable_alerting: bool = True
    alert_check_interval_seconds: Seconds = 30.0
    max_metric_points: Count = 1000
    metric_retention_seconds: Seconds = 3600.0


class AlertingConfig(Section):
    """Which Prometheus rule files are evaluated in process, beside the built-in rules, and who is told.

    `notify` names the places. `trace_link` is a link to a trace, with `{trace_id}` in it (None: the id is
    told without one), and `external_url` a Prometheus that has the same metrics: an alert links to its
    expression there. Active alerts and their history are kept in `state_file` (None: a restart forgets
    them), one file a process.
    """

    default_rules: bool = True
    rule_files: tuple[Path, ...] = ()
    notify: dict[str, NotifyConfig] = Field(default_factory=dict)
    trace_link: str | None = Field(default=None, pattern=r"^https?://.*\{trace_id\}")
    external_url: str | None = Field(default=None, pattern=r"^https?://[^/\s]")
    state_file: Path | None = None


class HealthCheckConfig(Section):
    """How often components are checked, how long a check may take, how many failures make a fail.

    Each component keeps its last `history_size` checks. Less than `min_free_disk_bytes` under the engine's
    file is a warning.
    """

    check_interval_seconds: Seconds = 10.0
    check_timeout_seconds: Seconds = 2.0
    failure_threshold: Count = 3
    history_size: Count = 100
    min_free_disk_bytes: Whole = Field(default=500_000_000, ge=0)


class ShutdownConfig(Section):
    """How long each phase of a graceful shutdown may take.

    For `lame_duck_seconds` readiness fails while everything is still served, so that load balancers
    turn away first. Then calls in flight get `graceful_timeout_seconds`, clean-up handlers
    `cleanup_timeout_seconds` each, and telemetry `flush_timeout_seconds`.

    `termination_grace_period_seconds` is what the orchestrator gives between SIGTERM and SIGKILL. A
    shutdown that has not ended by then is cut short while there is still time for the flush; a start
    warns when the phases together take longer. `llmkg-otel config grace` tells how long they take.
    """

    lame_duck_seconds: Pause = 5.0
    graceful_timeout_seconds: Seconds = 30.0
    cleanup_timeout_seconds: Seconds = 10.0
    flush_timeout_seconds: Seconds = 5.0
    termination_grace_period_seconds: Seconds = 60.0


class CheckpointConfig(Section):
    """Where the engine's state is saved (None: nowhere), how often, and how many checkpoints are kept.

    A checkpoint is saved every `interval_seconds` (None: never) and at shutdown. One that is not done
    after `timeout_seconds` is given up, which health reports and which stops nothing.
    """

    directory: Path | None = None
    interval_seconds: Seconds | None = 900.0
    keep: Count = 3
    timeout_seconds: Seconds = 8.0


class OperationConfig(Section):
    """One operation's own policies; None takes the system's default.

    `timeout` is the total deadline (seconds) over all attempts. `idempotent` says that repeating the
    operation after an unknown outcome (a timeout) is harmless: only then is a timeout retried.
    `criticality` is how much its calls matter to load shedding, unless a caller says otherwise.
    `fallbacks` is the ladder of the MCP tool of this name, in order: "cached_answer" (what the same caller
    got for the same arguments), or what the tool offers ("full_text" of hybrid_search and ask_question).
    """

    rate_limit: RateLimitRules | None = None
    retry: RetryConfig | None = None
    circuit_breaker: CircuitBreakerConfig | None = None
    timeout: Seconds | None = None
    max_concurrent: Count | None = None
    idempotent: bool = False
    criticality: Literal["critical", "default", "sheddable"] = "default"
    fallbacks: tuple[str, ...] = ()


class EngineConfig(Section):
    """Where `llmkg-otel serve` keeps the embedded engine's file, and how many nodes it may hold."""

    path: Path = Path("llmkg.db")
    max_nodes: Count = 1_000_000


class ServerConfig(Section):
    """Addresses of the MCP server and of the operators' port, and who may call.

    `jwks_uri` (with `audience`, which it needs, and `issuer`) verifies JSON Web Tokens; `auth_tokens` on
    the root is the simple alternative, not both. Over stdio the operators' port is bound only where
    `ops_port` is set. `operator_token` opens /status when the operators' port is not on loopback, and
    beside `auth_tokens` the operators' MCP tools when `host` is not; a JSON Web Token does that by the
    scope `llmkg:operator`. A fallback to a cached answer takes one that is `cached_answer_seconds` old at
    most. `grpc_health_port`, on `ops_host`, serves grpc.health.v1 (None: off; needs the extra grpc-health).
    Callers without a token are told apart by address: the peer's, or, if that is in `trusted_proxies`
    (networks like "10.0.0.0/8"), the right-most of X-Forwarded-For that is not.
    """

    host: str = "127.0.0.1"
    port: Port = 8000
    path: str = Field(default="/mcp", pattern=r"^/[\w./-]*$")
    ops_host: str = "127.0.0.1"
    ops_port: Port = 9464
    grpc_health_port: Port | None = None
    trusted_proxies: Networks = ()
    jwks_uri: str | None = Field(default=None, pattern=r"^https?://")
    issuer: str | None = None
    audience: str | None = None
    cached_answer_seconds: Seconds = 300.0
    operator_token: SecretStr | None = Field(default=None, min_length=16)
    insecure: bool = False


class ProductionConfig(BaseSettings, metaclass=CheckedModelMeta):
    """The whole configuration. The constructor reads the environment, and `load()` a file as well.

    Environment: `LLMKG_` and the field's path joined with `__`, for example
    `LLMKG_RATE_LIMITING__REQUESTS_PER_SECOND=50`. `LLMKG_AUTH_TOKENS` holds name=token pairs. For
    auto-instrumentation, `LLMKG_INSTRUMENT` names further classes ("pkg.module:Class", comma separated),
    and `LLMKG_PROTECT=true` protects the calls of all that are instrumented.
    Raises ConfigurationError that lists every wrong field with its path, value and what is allowed.
    """

    model_config = SettingsConfigDict(
        env_prefix="LLMKG_", env_nested_delimiter="__", frozen=True, extra="forbid", validate_default=True
    )

    monitoring: MonitoringConfig = MonitoringConfig()
    rate_limiting: RateLimitConfig = RateLimitConfig()
    resources: ResourceLimits = ResourceLimits()
    load_shedding: LoadSheddingConfig = LoadSheddingConfig()
    retry: RetryConfig = RetryConfig()
    circuit_breaker: CircuitBreakerConfig = CircuitBreakerConfig()
    circuit_sharing: CircuitSharingConfig = CircuitSharingConfig()
    health: HealthCheckConfig = HealthCheckConfig()
    shutdown: ShutdownConfig = ShutdownConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    alerting: AlertingConfig = AlertingConfig()
    server: ServerConfig = ServerConfig()
    engine: EngineConfig = EngineConfig()
    operations: dict[OperationName, OperationConfig] = Field(default_factory=dict)
    slos: Slos = Field(default_factory=dict)
    instrumentation: InstrumentationConfig = InstrumentationConfig()
    instrument: Targets = ()
    protect: bool = False
    auth_tokens: TokenPairs = Field(default_factory=dict)

    @classmethod
    def load(cls, file: Path | str | None = None, **arguments: Any) -> Self:
        """Read a YAML or TOML file (by its suffix), the environment, and the arguments, in that order.

        `file` None takes the one that the variable `LLMKG_CONFIG` names, if it is set. Raises
        ConfigurationError, also for a file that cannot be read.
        """
        with file_source.reading(file):
            return cls(**arguments)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - fixed by pydantic-settings
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources from the strongest to the weakest."""
        return ordered_sources(settings_cls, init_settings())
