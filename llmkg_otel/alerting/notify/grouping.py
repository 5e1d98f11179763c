"""Which groups of alerts are due to be told: pure, no clock, no thread.

Source: Alertmanager `dispatch/dispatch.go` (group wait, group interval) and `notify/notify.go`,
DedupStage.needsUpdate (what is new, what is resolved, the repeat interval).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from llmkg_otel.alerting.notify.message import Labels, Notice
    from llmkg_otel.config import NotifyConfig

__all__ = ["Grouping"]


@dataclass(slots=True)
class _Group:
    due: float
    alerts: dict[Labels, Notice] = field(default_factory=dict)
    told: frozenset[Labels] = frozenset()
    told_at: float | None = None
    tries: int = 0
    refusals: int = 0
    error: str | None = None


class Grouping:
    """The alerts of one channel by group; at most `max_alerts`, so that it is bounded. One thread at a time.

    Times are seconds on any one clock that is never set back. Nothing is repeated when the last `update` is
    older than `stale_after`. A channel that was away gets the present state, not a backlog.
    """

    def __init__(self, config: NotifyConfig, stale_after: float = float("inf")) -> None:
        self._config = config
        self._stale_after = stale_after
        self._updated_at = 0.0
        self._groups: dict[Labels, _Group] = {}

    @property
    def errors(self) -> frozenset[str]:
        """The error.type of each group whose last message did not arrive."""
        return frozenset(group.error for group in self._groups.values() if group.error is not None)

    def update(self, firing: Iterable[Notice], now: float, ended_at: float | None = None) -> int:
        """Take what fires now; what fired before is resolved, at `ended_at` seconds since the epoch.

        Return how many found no room: critical ones have it first, then each alertname as much as another.
        """
        self._updated_at = now
        ended_at = now if ended_at is None else ended_at
        present = {notice.labels: notice for notice in firing}
        for group in self._groups.values():
            for labels, notice in group.alerts.items():
                if (current := present.pop(labels, None)) is not None:
                    group.alerts[labels] = current
                elif notice.ends_at is None:
                    group.alerts[labels] = replace(notice, ends_at=ended_at)
        held = [labels for group in self._groups.values() for labels in group.alerts]
        left_out = _least_important([*held, *present], self._config.max_alerts)
        for group in self._groups.values():
            for labels in left_out & group.alerts.keys():
                del group.alerts[labels]
        for labels in [labels for labels in present if labels not in left_out]:
            key = tuple(pair for pair in labels if pair[0] in self._config.labels)
            group = self._groups.setdefault(key, _Group(now + self._config.wait_seconds))
            group.alerts[labels] = present[labels]
        return len(left_out)

    def next_due(self) -> float | None:
        """Return when the next group is looked at; None when there is none."""
        return min((group.due for group in self._groups.values()), default=None)

    def next_group(self, now: float, *, waiting: bool = False, but: Collection[Labels] = ()) -> Labels | None:
        """Return the group to look at now (`waiting`: also one whose time has not come), none of `but`.

        One that fails comes after those that do not.
        """
        due = [
            (group.tries + group.refusals, group.due, key)
            for key, group in self._groups.items()
            if (waiting or group.due <= now) and key not in but
        ]
        return min(due)[2] if due else None

    def take(self, key: Labels, now: float) -> tuple[Notice, ...] | None:
        """Return what must be told of the group now; None: nothing. It is due again after its interval."""
        group = self._groups[key]
        group.due = now + self._config.interval_seconds
        notices = self._news(group, now)
        if notices is None and not any(notice.ends_at is None for notice in group.alerts.values()):
            del self._groups[key]
        return notices

    def delivered(self, key: Labels, notices: tuple[Notice, ...], now: float) -> None:
        """Note that a message arrived; the resolved alerts in it are forgotten."""
        group = self._groups[key]
        group.told, group.told_at = frozenset(n.labels for n in notices if n.ends_at is None), now
        group.tries, group.refusals, group.error = 0, 0, None
        for notice in notices:
            current = group.alerts.get(notice.labels)
            if notice.ends_at is not None and current is not None and current.ends_at is not None:
                del group.alerts[notice.labels]

    def try_again(self, key: Labels, due: float) -> None:
        """Note that a message failed and is tried again at `due`, with what is true by then."""
        group = self._groups[key]
        group.due, group.tries = due, group.tries + 1

    def tries(self, key: Labels) -> int:
        """Return how often the group's message has been tried again."""
        return self._groups[key].tries

    def given_up(self, key: Labels, error: str, now: float, *, refused: bool) -> None:
        """Note that a message did not arrive; one refused for good waits longer each time, to a repeat."""
        group = self._groups[key]
        group.tries, group.error = 0, error
        if refused:
            wait = self._config.interval_seconds * 2.0 ** min(group.refusals, 60)
            longest = max(self._config.interval_seconds, self._config.repeat_seconds)
            group.due, group.refusals = now + min(wait, longest), group.refusals + 1

    def _news(self, group: _Group, now: float) -> tuple[Notice, ...] | None:
        """Return the notices to tell: firing ones, and those resolved that were told; None: nothing new."""
        firing = [notice for notice in group.alerts.values() if notice.ends_at is None]
        over = [n for n in group.alerts.values() if n.ends_at is not None and n.labels in group.told]
        if not self._config.send_resolved:
            over = []
        for labels in [n.labels for n in group.alerts.values() if n.ends_at is not None and n not in over]:
            del group.alerts[labels]
        new = any(notice.labels not in group.told for notice in firing)
        known = now - self._updated_at <= self._stale_after
        repeat = known and (group.told_at is None or now - group.told_at >= self._config.repeat_seconds)
        return (*firing, *over) if new or over or (firing and repeat) else None


def _least_important(alerts: list[Labels], room: int) -> frozenset[Labels]:
    """Return those beyond `room`, of alerts in their order."""
    if len(alerts) <= room:
        return frozenset()
    seen: Counter[str] = Counter()
    ranked: list[tuple[bool, int, int]] = []
    for position, labels in enumerate(alerts):
        named = dict(labels)
        name = named.get("alertname", "")
        ranked.append((named.get("severity") != "critical", seen[name], position))
        seen[name] += 1
    return frozenset(alerts[position] for *_, position in sorted(ranked)[room:])
