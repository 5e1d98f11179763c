"""FastMCP middleware that puts a ProductionSystem around every tool call of a server."""

from __future__ import annotations

import time
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
from llmkg_otel.errors import LlmkgOtelError, ResourceExhaustedError, ResponseTooLargeError, error_type
from llmkg_otel.operation import OTHER
from llmkg_otel.server.caller import caller
from llmkg_otel.telemetry import semconv
from llmkg_otel.telemetry.instruments import histogram

if TYPE_CHECKING:
    from llmkg_otel.system import ProductionSystem

__all__ = ["CORRELATION_KEY", "ProductionMiddleware"]

CORRELATION_KEY = "llmkg/correlation-id"
"""The key of a request's and an answer's `_meta`; over HTTP, the header `x-correlation-id` too."""

_CALLERS_MISTAKES = (NotFoundError, ValidationError, ToolError)
"""A ToolError that wraps nothing is a tool's word to its caller, not a failure of the engine."""


class ProductionMiddleware(Middleware):
    """Protects and measures the tool calls of any FastMCP server.

    The tool's name is the operation's. Per-user limits count the authenticated subject, else the
    client's address. A refusal or failure becomes a tool result with `isError` whose structured content an
    agent can read: code, reason, scope, limit, retry_after_ms; never a stack trace. Tools named in
    `unprotected` are measured but always let through: those that tell how the system is.

    FastMCP's span of the request is enriched with the call's outcome. Its own marks are kept off the
    attempts inside, or a call that recovered on its second attempt would end as an error.
    """

    def __init__(self, system: ProductionSystem, *, unprotected: frozenset[str] = frozenset()) -> None:
        self._system = system
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
        async def attempt() -> ToolResult:
            self._check_request(name, context.message.arguments)
            try:
                with suppress_fastmcp_telemetry():
                    return self._checked(await call_next(context))
            except ToolError as wrapped:
                # FastMCP wraps what a tool raises; the policies decide by what was raised.
                if isinstance(wrapped.__cause__, Exception):
                    raise wrapped.__cause__ from None
                raise

        return await self._system.execute_protected_operation(
            name,
            attempt,
            user_id=caller(self._system.config.server.trusted_proxies),
            correlation_id=correlation,
            enrich_current_span=True,
        )

    def _check_request(self, operation: str, arguments: object) -> None:
        size, limit = _size(arguments), self._system.config.resources.max_request_size_bytes
        if size > limit:
            raise ResourceExhaustedError(
                f"{operation}: the request has {size} bytes, {limit} are allowed",
                operation=operation,
                scope="request_size",
                limit=f"{limit} bytes",
            )

    def _checked(self, result: ToolResult) -> ToolResult:
        size = _size(result.content, result.structured_content)
        limit = self._system.config.resources.max_response_size_bytes
        if size > limit:
            raise ResponseTooLargeError(f"the answer has {size} bytes, {limit} are allowed: ask for less")
        return result

    async def _is_known(self, name: str, context: MiddlewareContext[Any]) -> bool:
        """Say whether the server has such a tool, so that callers cannot invent metric series."""
        if name in self._known_tools:
            return True
        server = context.fastmcp_context.fastmcp if context.fastmcp_context else None
        if server is None or await server.get_tool(name) is None:
            return False
        self._known_tools.add(name)
        return True


def _size(*parts: object) -> int:
    return sum(len(to_json(part)) for part in parts if part)


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


def _correlation_of(context: MiddlewareContext[Any]) -> str | None:
    """Return the correlation id of the caller if it sent one and it is well formed."""
    request = context.fastmcp_context.request_context if context.fastmcp_context else None
    meta = request.meta if request is not None else None
    given = meta.get(CORRELATION_KEY) if isinstance(meta, dict) else None
    if given is None:
        try:
            given = get_http_request().headers.get("x-correlation-id")
        except RuntimeError:
            return None
    return given if isinstance(given, str) and is_correlation_id(given) else None


def _trace_id(span: Span) -> str | None:
    context = span.get_span_context()
    return format_trace_id(context.trace_id) if context.is_valid else None
