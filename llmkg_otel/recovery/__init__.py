"""Error recovery: circuit breaker, retry with back-off, retry budget."""
