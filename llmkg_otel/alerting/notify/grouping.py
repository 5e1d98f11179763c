"""Which groups of alerts are due to be told: pure, no clock, no thread.

Source: Alertmanager `dispatch/dispatch.go` (group wait, group interval) and `notify/notify.go`,
DedupStage.needsUpdate (what is new, what is resolved, the repeat interval).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmkg_otel.alerting.notify.message import Labels, Notice
    from llmkg_otel.config import NotifyConfig

__all__ = ["Grouping"]


@dataclass(slots=True)
class _Group:
    due: float
    alerts: dict[Labels, Notice] = field(default_factory=dict)
    told: frozenset[Labels] = frozenset()
    told_at: float | None = None


class Grouping:
    """The alerts of one channel by group; at most `max_alerts`, so that it is bounded. One thread at a time.

    Times are seconds on any one clock. A channel that was away gets the present state, not a backlog.
    """

    def __init__(self, config: NotifyConfig) -> None:
        self._config = config
        self._groups: dict[Labels, _Group] = {}

    def update(self, firing: Iterable[Notice], now: float) -> int:
        """Take what fires now; what fired before is resolved. Return how many did not find room."""
        present = {notice.labels: notice for notice in firing}
        for group in self._groups.values():
            for labels, notice in group.alerts.items():
                if (current := present.pop(labels, None)) is not None:
                    group.alerts[labels] = current
                elif notice.ends_at is None:
                    group.alerts[labels] = replace(notice, ends_at=now)
        room = self._config.max_alerts - sum(len(group.alerts) for group in self._groups.values())
        left_out = max(0, len(present) - room)
        for labels, notice in list(present.items())[: max(0, room)]:
            key = tuple(pair for pair in labels if pair[0] in self._config.labels)
            group = self._groups.setdefault(key, _Group(now + self._config.wait_seconds))
            group.alerts[labels] = notice
        return left_out

    def next_due(self) -> float | None:
        """Return when the next group is looked at; None when there is none."""
        return min((group.due for group in self._groups.values()), default=None)

    def take(self, now: float, *, waiting: bool = False) -> list[tuple[Labels, tuple[Notice, ...]]]:
        """Return the groups that must be told now (`waiting`: also those whose time has not come).

        Each is due again after the group interval.
        """
        taken = []
        for key, group in list(self._groups.items()):
            if waiting or group.due <= now:
                group.due = now + self._config.interval_seconds
                if (notices := self._news(group, now)) is not None:
                    taken.append((key, notices))
                elif not any(notice.ends_at is None for notice in group.alerts.values()):
                    del self._groups[key]
        return taken

    def delivered(self, key: Labels, notices: tuple[Notice, ...], now: float) -> None:
        """Note that a message arrived; the resolved alerts in it are forgotten."""
        group = self._groups[key]
        group.told, group.told_at = frozenset(n.labels for n in notices if n.ends_at is None), now
        for notice in notices:
            current = group.alerts.get(notice.labels)
            if notice.ends_at is not None and current is not None and current.ends_at is not None:
                del group.alerts[notice.labels]

    def _news(self, group: _Group, now: float) -> tuple[Notice, ...] | None:
        """Return the notices to tell: firing ones, and those resolved that were told; None: nothing new."""
        firing = [notice for notice in group.alerts.values() if notice.ends_at is None]
        over = [n for n in group.alerts.values() if n.ends_at is not None and n.labels in group.told]
        if not self._config.send_resolved:
            over = []
        for labels in [n.labels for n in group.alerts.values() if n.ends_at is not None and n not in over]:
            del group.alerts[labels]
        new = any(notice.labels not in group.told for notice in firing)
        repeat = group.told_at is None or now - group.told_at >= self._config.repeat_seconds
        return (*firing, *over) if new or over or (firing and repeat) else None
