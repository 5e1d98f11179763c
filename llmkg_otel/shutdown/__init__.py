"""Graceful shutdown: calls in flight, phases, clean-up handlers, signals."""
