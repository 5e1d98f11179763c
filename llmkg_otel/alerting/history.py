"""What became of alerts, the newest last: bounded, and replaced whole, so that a reader needs no lock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from llmkg_otel.alerting.promql import Labels  # noqa: TC001 - pydantic reads the annotation

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmkg_otel.alerting.alert_state import Change

__all__ = ["HISTORY_LENGTH", "AlertHistory", "HistoryEntry"]

HISTORY_LENGTH = 200


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """An alert became `state` at `at` (seconds since the epoch); "inactive" ended before it had fired."""

    at: float
    alert: str
    state: Literal["pending", "firing", "resolved", "inactive"]
    value: float
    labels: Labels


class AlertHistory:
    """The last 200 changes. Written on one thread, read on any."""

    def __init__(self) -> None:
        self.entries: tuple[HistoryEntry, ...] = ()

    def add(self, changes: Iterable[Change], now: float) -> None:
        """Note what changed at `now`."""
        self.extend(
            HistoryEntry(now, change.alert.alert, change.state, change.alert.value, change.alert.labels)
            for change in changes
        )

    def extend(self, entries: Iterable[HistoryEntry]) -> None:
        """Add entries; the oldest go."""
        self.entries = (*self.entries, *entries)[-HISTORY_LENGTH:]
