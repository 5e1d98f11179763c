"""A span processor that calls a function, which may fail, with each span that ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.sdk.trace import SpanProcessor

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.trace import ReadableSpan

__all__ = ["SpanEnds"]


class SpanEnds(SpanProcessor):
    def __init__(self, on_end: Callable[[ReadableSpan], object]) -> None:
        self._on_end = on_end

    def on_end(self, span: ReadableSpan) -> None:
        self._on_end(span)
