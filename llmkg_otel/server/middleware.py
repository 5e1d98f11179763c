"""FastMCP middleware that puts a ProductionSystem around every tool call of a server."""

from __future__ import annotations

import math
import time
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import mcp_types
from fastmcp.exceptions import NotFoundError, ToolError, ValidationError
from fastmcp.server.dependencies import get_http_request
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.telemetry import suppress_fastmcp_telemetry
from fastmcp.tools.base import ToolResult
from mcp.shared.exceptions import MCPError
from opentelemetry.trace import Span, format_trace_id, get_current_span
from pydantic_core import to_json

from llmkg_otel.call import is_correlation_id
from llmkg_otel.errors import (
    InvalidInputError,
    LlmkgOtelError,
    ResourceExhaustedError,
    ResponseTooLargeError,
    error_type,
)
from llmkg_otel.limiting.waiting import CRITICALITIES
from llmkg_otel.operation import OTHER
from llmkg_otel.server.answers import CACHED_ANSWER, Answers, size_of
from llmkg_otel.server.caller import caller
from llmkg_otel.telemetry import semconv
from llmkg_otel.telemetry.instruments import histogram

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmkg_otel.limiting.waiting import Criticality
    from llmkg_otel.system import ProductionSystem

__all__ = ["CORRELATION_KEY", "CRITICALITY_KEY", "FALLBACK_KEY", "TIMEOUT_KEY", "ProductionMiddleware"]

CORRELATION_KEY = "llmkg/correlation-id"
"""The key of a request's and an answer's `_meta`; over HTTP, the header `x-correlation-id` too."""

TIMEOUT_KEY = "llmkg/timeout-ms"
"""The key of a request's `_meta` that says how long its caller will wait, in milliseconds from now."""

LONGEST_MILLISECONDS = 1e12
"""More than any operation's own deadline; and an int may be too large for a float."""

CRITICALITY_KEY = "llmkg/criticality"
"""The key of a request's `_meta` that says how much it matters: critical, default or sheddable."""

FALLBACK_KEY = "llmkg/fallback"
"""The key of an answer's `_meta` that names the rung which gave it, when the engine could not."""

_CALLERS_MISTAKES = (NotFoundError, ValidationError, ToolError, MCPError)
"""What a tool, or MCP itself, says to the caller is not a failure of the engine."""


class ProductionMiddleware(Middleware):
    """Protects and measures the tool calls of any FastMCP server.

    The tool's name is the operation's. Per-user limits count the authenticated subject, else the
    client's address. A refusal or failure becomes a tool result with `isError` whose structured content an
    agent can read: code, reason, scope, limit, retry_after_ms; never a stack trace. Tools named in
    `unprotected` are measured but always let through: those that tell how the system is. `rungs` are what
    the ladders of `operations.{tool}.fallbacks` may use besides cached_answer: for each tool, by the
    rung's name, the arguments that it changes.

    FastMCP's span of the request is enriched with the call's outcome. Its own marks are kept off the
    attempts inside, or a call that recovered on its second attempt would end as an error.
    """

    def __init__(
        self,
        system: ProductionSystem,
        *,
        unprotected: frozenset[str] = frozenset(),
        rungs: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
    ) -> None:
        self._system = system
        self._answers = Answers(system.config, rungs or {})
        self._unprotected = unprotected
        self._known_tools: set[str] = set()
        self._duration = histogram(system.telemetry.meter(), semconv.MCP_OPERATION_DURATION)
        system.blame_caller_for(*_CALLERS_MISTAKES)

    async def __call__(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        """Measure every request; protect it if it calls a tool."""
        if context.type != "request":
            return await call_next(context)
        attributes = {semconv.MCP_METHOD: context.method or OTHER}
        started = time.monotonic()
        try:
            if context.method == "tools/call":
                return await self._call_tool(context, call_next, attributes)
            return await call_next(context)
        except BaseException as error:
            attributes[semconv.ERROR_TYPE] = error_type(error)
            raise
        finally:
            self._duration.record(time.monotonic() - started, attributes)

    async def _call_tool(
        self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any], attributes: dict[str, str]
    ) -> ToolResult:
        name = context.message.name
        attributes[semconv.TOOL_NAME] = name if await self._is_known(name, context) else OTHER
        if attributes[semconv.TOOL_NAME] == OTHER or name in self._unprotected:
            return cast("ToolResult", await call_next(context))
        span = get_current_span()
        span.update_name(f"tools/call {name}")
        span.set_attribute(semconv.TOOL_NAME, name)
        correlation = _correlation_of(context)
        try:
            result = await self._protect(name, context, call_next, correlation)
        except MCPError:
            raise
        except Exception as error:  # noqa: BLE001 - every failure is told to the agent in one shape
            attributes[semconv.ERROR_TYPE] = error_type(error)
            result = _error_result(error)
        if told := correlation or _trace_id(span):
            result.meta = {**(result.meta or {}), CORRELATION_KEY: told}
        return result

    async def _protect(
        self,
        name: str,
        context: MiddlewareContext[Any],
        call_next: CallNext[Any, Any],
        correlation: str | None,
    ) -> ToolResult:
        arguments, answers = context.message.arguments, self._answers
        user = caller(self._system.config.server.trusted_proxies)

        async def call(context: MiddlewareContext[Any]) -> ToolResult:
            try:
                with suppress_fastmcp_telemetry():
                    return self._checked(await call_next(context))
            except ToolError as wrapped:
                # FastMCP wraps what a tool raises; the policies decide by what was raised. A ToolError of
                # the tool's own is its word to the caller, whatever it was raised from.
                if _is_fastmcps(wrapped) and isinstance(wrapped.__cause__, Exception):
                    raise wrapped.__cause__ from None
                raise

        async def attempt() -> ToolResult:
            self._check_request(name, arguments)
            result = await call(context)
            answers.keep(name, user, arguments, result)
            return result

        async def fallback(rung: str) -> ToolResult:
            if rung == CACHED_ANSWER:
                answer = answers.kept(name, user, arguments)
            else:
                changed = {"arguments": answers.arguments(name, rung, arguments)}
                answer = await call(context.copy(message=context.message.model_copy(update=changed)))
            return ToolResult(
                content=answer.content,
                structured_content=answer.structured_content,
                meta={**(answer.meta or {}), FALLBACK_KEY: rung},
            )

        return await self._system.execute_protected_operation(
            name,
            attempt,
            user_id=user,
            correlation_id=correlation,
            timeout_seconds=_allowed_seconds(context),
            criticality=_criticality(context),
            fallbacks={rung: partial(fallback, rung) for rung in answers.ladder(name, user)},
            enrich_current_span=True,
        )

    def _check_request(self, operation: str, arguments: object) -> None:
        size, limit = size_of(arguments), self._system.config.resources.max_request_size_bytes
        if size > limit:
            raise ResourceExhaustedError(
                f"{operation}: the request has {size} bytes, {limit} are allowed",
                operation=operation,
                scope="request_size",
                limit=f"{limit} bytes",
            )

    def _checked(self, result: ToolResult) -> ToolResult:
        size = size_of(result.content, result.structured_content)
        limit = self._system.config.resources.max_response_size_bytes
        if size > limit:
            raise ResponseTooLargeError(f"the answer has {size} bytes, {limit} are allowed: ask for less")
        return result

    async def _is_known(self, name: str, context: MiddlewareContext[Any]) -> bool:
        """Say whether the server has such a tool, so that callers cannot invent metric series."""
        if name in self._known_tools:
            return True
        server = context.fastmcp_context.fastmcp if context.fastmcp_context else None
        tool = None if server is None else await server.get_tool(name)
        if tool is None:
            return False
        if tool.auth is None:  # else it depends on who calls
            self._known_tools.add(name)
        return True


def _error_result(error: Exception) -> ToolResult:
    """Return the error as an agent reads it. Our messages name rules and limits; others only their class.

    A tool's own ToolError is meant for the caller, and so is a complaint about arguments.
    """
    if isinstance(error, LlmkgOtelError):
        told = error.to_dict()
    elif isinstance(error, ValidationError):
        told = {"code": "invalid_input", "message": str(error)}
    elif isinstance(error, ToolError | NotFoundError):
        told = {"code": "tool_error", "message": str(error)}
    else:
        told = {"code": "engine_error", "message": f"the engine failed: {type(error).__name__}"}
    content = [mcp_types.TextContent(type="text", text=to_json(told).decode())]
    return ToolResult(content=content, structured_content=told, is_error=True)


def _is_fastmcps(error: ToolError) -> bool:
    """Say whether FastMCP made this of another exception: it names the tool, and nothing else does so."""
    return str(error).startswith("Error calling tool ")


def _meta(context: MiddlewareContext[Any]) -> Mapping[str, Any]:
    request = context.fastmcp_context.request_context if context.fastmcp_context else None
    meta = request.meta if request is not None else None
    return meta if isinstance(meta, dict) else {}


def _allowed_seconds(context: MiddlewareContext[Any]) -> float | None:
    """Return how long the caller will wait, if it says so; raise InvalidInputError for what is no time."""
    given = _meta(context).get(TIMEOUT_KEY)
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < math.inf:
        raise InvalidInputError(f"_meta {TIMEOUT_KEY!r} should be a number of milliseconds above 0")
    return min(given, LONGEST_MILLISECONDS) / 1000


def _criticality(context: MiddlewareContext[Any]) -> Criticality | None:
    given = _meta(context).get(CRITICALITY_KEY)
    if given is not None and given not in CRITICALITIES:
        raise InvalidInputError(f"_meta {CRITICALITY_KEY!r} should be one of {', '.join(CRITICALITIES)}")
    return cast("Criticality | None", given)


def _correlation_of(context: MiddlewareContext[Any]) -> str | None:
    """Return the correlation id of the caller if it sent one and it is well formed."""
    given = _meta(context).get(CORRELATION_KEY)
    if given is None:
        try:
            given = get_http_request().headers.get("x-correlation-id")
        except RuntimeError:
            return None
    return given if is_correlation_id(given) else None


def _trace_id(span: Span) -> str | None:
    context = span.get_span_context()
    return format_trace_id(context.trace_id) if context.is_valid else None
