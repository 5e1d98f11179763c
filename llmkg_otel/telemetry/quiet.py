"""Requests that no instrumentation of an HTTP client may describe: their addresses are secrets."""

from opentelemetry.instrumentation.utils import suppress_http_instrumentation as quietly

__all__ = ["quietly"]
