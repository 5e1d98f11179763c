"""One error tree, one shape: the same facts for a Python caller, an agent and an HTTP client."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar, Literal

__all__ = [
    "CircuitOpenError",
    "ConfigurationError",
    "EngineCancelledError",
    "FailureReturnedError",
    "InvalidInputError",
    "LlmkgOtelError",
    "LoadShedError",
    "OperationTimeoutError",
    "OverloadedError",
    "RateLimitedError",
    "RejectedError",
    "ResourceExhaustedError",
    "ResponseTooLargeError",
    "ShuttingDownError",
    "error_type",
]


class LlmkgOtelError(Exception):
    """Root of every error that this layer raises itself; the engine's own pass through untouched."""

    reason: ClassVar[str] = "_OTHER"
    """The value of `error.type`, from a closed set (TELEMETRY contract)."""

    blames_engine: ClassVar[bool] = False
    """Whether it tells of a failing engine, as the engine's own exceptions do: breakers count only those."""

    def to_dict(self) -> dict[str, Any]:
        """Return the error as every transport carries it: MCP error data and problem+json."""
        return {"code": self.reason, "message": str(self)}


class RejectedError(LlmkgOtelError):
    """The call was refused before it reached the engine: trying again later is safe.

    Attributes: `operation`, the operation's name; `scope`, what refused it (a rule, a pool, a
    resource, a breaker); `limit`, the limit that was met, as text, or None; `retry_after`, seconds after
    which it makes sense to try again: exact for rate limits and circuits, a hint where nobody can know,
    None where trying again will not help.
    """

    def __init__(
        self,
        message: str,
        *,
        operation: str,
        scope: str,
        limit: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.operation = operation
        self.scope = scope
        self.limit = limit
        self.retry_after = retry_after

    def to_dict(self) -> dict[str, Any]:
        """Add scope, limit and `retry_after_ms` (integer, rounded up) to the common shape."""
        after = self.retry_after
        return super().to_dict() | {
            "reason": self.reason,
            "operation": self.operation,
            "scope": self.scope,
            "limit": self.limit,
            "retry_after_ms": None if after is None else -int(-after * 1000 // 1),
        }


class RateLimitedError(RejectedError):
    """A rate limit (global, of the operation, or of the user) is spent."""

    reason = "rate_limited"


class ResourceExhaustedError(RejectedError):
    """Memory, CPU, or a size limit leaves no room for this call."""

    reason = "resource_exhausted"


class OverloadedError(RejectedError):
    """No permit could be had in time, or too many calls wait for one already."""

    reason = "permit_timeout"


class LoadShedError(OverloadedError):
    """More calls came than the engine can take, and this one was among those that were not let in."""

    reason = "shed"


class CircuitOpenError(RejectedError):
    """The operation's circuit breaker is open after repeated failures."""

    reason = "circuit_open"


class ShuttingDownError(RejectedError):
    """The system is draining and takes no new calls; another instance should."""

    reason = "draining"


class OperationTimeoutError(LlmkgOtelError, TimeoutError):
    """The operation ran out of time; its outcome is unknown to the caller.

    Attributes: `operation`; `kind`, "deadline" (the total time) or "attempt" (one attempt's time);
    `seconds`, the time that was allowed.
    """

    reason = "deadline_exceeded"
    blames_engine = True

    def __init__(self, operation: str, kind: Literal["deadline", "attempt"], seconds: float) -> None:
        what = "its total deadline" if kind == "deadline" else "the time allowed for one attempt"
        super().__init__(f"{operation} did not finish within {what} of {seconds:g} s")
        self.operation = operation
        self.kind = kind
        self.seconds = seconds

    def to_dict(self) -> dict[str, Any]:
        """Add which time ran out to the common shape."""
        return super().to_dict() | {
            "reason": self.reason,
            "operation": self.operation,
            "scope": self.kind,
            "limit": f"{self.seconds:g}s",
            "retry_after_ms": None,
        }


class EngineCancelledError(LlmkgOtelError):
    """The operation was cancelled from within, while nobody had cancelled its caller; outcome unknown.

    asyncio says both with CancelledError. Passed on, it would end the caller's task as if that had been
    cancelled, and a TaskGroup would take no note of it; the engine's own is this error's `__cause__`.
    """

    reason = "engine_cancelled"
    blames_engine = True

    def __init__(self, operation: str) -> None:
        super().__init__(f"{operation} was cancelled from within; nobody had cancelled its caller")
        self.operation = operation


class ConfigurationError(LlmkgOtelError, ValueError):
    """A configured value cannot work; the message names the field, the value and what is allowed."""

    reason = "configuration"


class InvalidInputError(LlmkgOtelError, ValueError):
    """The caller's argument is wrong: never retried, and never held against the engine."""

    reason = "invalid_input"


class FailureReturnedError(LlmkgOtelError):
    """An engine returned what stands for a failure (`Method.failures`); its callers get that, not this.

    Attribute: `result`, what it returned.
    """

    reason = "failure_returned"
    blames_engine = True

    def __init__(self, operation: str, result: object) -> None:
        super().__init__(f"{operation} returned what stands for a failure")
        self.result = result


class ResponseTooLargeError(LlmkgOtelError):
    """The operation was carried out, but its answer is larger than may be sent: ask for less."""

    reason = "response_too_large"


def error_type(error: BaseException) -> str:
    """Return the `error.type` of an exception: our reason, "cancelled", or the class's name.

    Source: OpenTelemetry semantic conventions, `error.type`: predictable and of low cardinality.
    """
    if isinstance(error, LlmkgOtelError):
        return error.reason
    if isinstance(error, asyncio.CancelledError):
        return "cancelled"
    return type(error).__qualname__
