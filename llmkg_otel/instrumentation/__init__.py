"""Auto-instrumentation: telemetry, and if wanted protection, for engines whose callers change no code."""

from llmkg_otel.instrumentation.instrumentor import LLMKGInstrumentor

__all__ = ["LLMKGInstrumentor"]
