"""What is told: notices of alerts, and the message that carries a group of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from llmkg_otel.errors import LlmkgOtelError

__all__ = ["DeliveryError", "Message", "Notice", "Target", "instant"]

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Notice:
    """One alert; `ends_at` None while it fires. Times are seconds since the epoch."""

    labels: Labels
    annotations: Labels
    starts_at: float
    ends_at: float | None
    generator_url: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """The alerts of a group that fire, or were resolved since it was last told. `key` is its labels."""

    channel: str
    key: Labels
    notices: tuple[Notice, ...]

    @property
    def firing(self) -> bool:
        """Whether any of them still fires."""
        return any(notice.ends_at is None for notice in self.notices)


class DeliveryError(LlmkgOtelError):
    """A message did not arrive; `kind` goes to error.type, `retryable` says whether it may the next time."""

    reason = "delivery"

    def __init__(self, kind: str, *, retryable: bool, retry_after: float | None = None) -> None:
        super().__init__(kind)
        self.kind = kind
        self.retryable = retryable
        self.retry_after = retry_after


class Target(Protocol):
    """A back end: sends one message, blocking, on its channel's own thread."""

    def send(self, message: Message, now: float) -> None:
        """Send it within the configured timeout; raise DeliveryError when it did not arrive."""
        ...


def instant(seconds: float) -> str:
    """Return a time in RFC 3339, as Alertmanager reads and writes it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
