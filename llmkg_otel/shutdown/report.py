"""What a shutdown did, phase by phase, and what became of the calls that met it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CancelledCall", "Outcome", "PhaseReport", "ShutdownReport"]

Outcome = Literal["ok", "timed_out", "failed"]


class CancelledCall(NamedTuple):
    """A call that was still in flight when the drain ended: its operation, and its age in seconds."""

    name: str
    age: float


@dataclass(frozen=True, slots=True)
class PhaseReport:
    """One phase: the seconds it took, how it ended, and what went wrong in it, if anything did."""

    name: str
    seconds: float
    outcome: Outcome = "ok"
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ShutdownReport:
    """The whole shutdown. `total_duration` is in seconds; `operations` has drained, cancelled, refused."""

    total_duration: float
    phases: tuple[PhaseReport, ...]
    operations: Mapping[str, int]
    cancelled: tuple[CancelledCall, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether every phase ended well and no call was cut short."""
        return not self.cancelled and all(phase.outcome == "ok" for phase in self.phases)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data, for a log record or JSON."""
        return {
            "clean": self.clean,
            "total_duration": self.total_duration,
            "phases": [asdict(phase) for phase in self.phases],
            "operations": dict(self.operations),
            "cancelled": [call._asdict() for call in self.cancelled],
        }
