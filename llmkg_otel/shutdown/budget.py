"""How long a shutdown may take, and whether that fits what the orchestrator gives it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmkg_otel.config import ProductionConfig

__all__ = ["UNWIND_SECONDS", "longest_shutdown", "misfit", "patience", "shutdown_deadline"]

UNWIND_SECONDS = 1.0
"""How long cancelled calls may take to end before their resources are cleaned up."""

EXIT_SECONDS = 1.0
"""What Python is left with for its own end (0.1 to 0.3 s here)."""


def longest_shutdown(config: ProductionConfig) -> float:
    """Return the seconds from the first signal to the end of the process, if every phase takes all its time.

    Clean-up counts once, however many handlers there are: handlers that outlast this are cut short.
    """
    phases = config.shutdown
    saving = 0.0 if config.checkpoint.directory is None else config.checkpoint.timeout_seconds
    waiting = phases.lame_duck_seconds + phases.graceful_timeout_seconds + UNWIND_SECONDS
    return waiting + saving + phases.cleanup_timeout_seconds + phases.flush_timeout_seconds + EXIT_SECONDS


def shutdown_deadline(config: ProductionConfig) -> float:
    """Return the seconds after which the process has ended, come what may."""
    return min(longest_shutdown(config), config.shutdown.termination_grace_period_seconds)


def patience(config: ProductionConfig) -> float:
    """Return the seconds after which the shutdown must wait for nothing more, so that the flush fits too."""
    return max(0.0, shutdown_deadline(config) - config.shutdown.flush_timeout_seconds - EXIT_SECONDS)


def misfit(config: ProductionConfig) -> str | None:
    """Return a warning if the phases can take longer than the orchestrator waits, else None."""
    longest, grace = longest_shutdown(config), config.shutdown.termination_grace_period_seconds
    if longest <= grace:
        return None
    return (
        f"a shutdown can take {longest:g} s, and shutdown.termination_grace_period_seconds is {grace:g}:"
        " what is not done by then is cut short; give it more time, or its phases less"
    )
