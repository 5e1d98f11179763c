"""Slack, PagerDuty, mail and a hundred more, by Apprise's URLs. Needs the extra `notify`."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import TYPE_CHECKING

from llmkg_otel.alerting.notify.message import DeliveryError
from llmkg_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from llmkg_otel.alerting.notify.message import Message, Notice
    from llmkg_otel.config import NotifyConfig

__all__ = ["AppriseTarget"]


_sending: ContextVar[bool] = ContextVar("sending", default=False)


def _of_others(_record: logging.LogRecord) -> bool:
    """Drop what urllib3 logs of our requests at level debug: many a service's address is its password."""
    return not _sending.get()


class AppriseTarget:
    """Sends a title and a text through one Apprise URL. Its time-outs are in the URL (`?cto=4&rto=4`)."""

    def __init__(self, config: NotifyConfig) -> None:
        try:
            import apprise  # noqa: PLC0415 - an extra
        except ImportError:
            raise ConfigurationError(
                "alerting.notify: kind apprise needs: pip install 'llmkg-otel[notify]'"
            ) from None
        logging.getLogger("apprise").setLevel(logging.CRITICAL)  # its log quotes addresses
        logging.getLogger("urllib3.connectionpool").addFilter(_of_others)
        self._apprise = apprise.Apprise()
        if not self._apprise.add(config.url.get_secret_value()):
            raise ConfigurationError("alerting.notify: the url is none that Apprise knows")

    def send(self, message: Message, now: float) -> None:  # noqa: ARG002
        """Send it; Apprise says only whether it arrived, so any failure may be tried again."""
        firing = sum(notice.ends_at is None for notice in message.notices)
        name = " ".join(value for _, value in message.key) or "alerts"
        title = f"[FIRING:{firing}] {name}" if firing else f"[RESOLVED] {name}"
        body = "\n".join(_line(notice) for notice in message.notices)
        kind = "failure" if firing else "success"
        sending = _sending.set(True)
        try:
            arrived = self._apprise.notify(body=body, title=title, notify_type=kind)
        finally:
            _sending.reset(sending)
        if not arrived:
            raise DeliveryError("apprise", retryable=True)


def _line(notice: Notice) -> str:
    told = dict(notice.annotations)
    state = "firing" if notice.ends_at is None else "resolved"
    parts = [dict(notice.labels).get("alertname", ""), state, *(f"{k}: {v}" for k, v in told.items())]
    return "\n  ".join([" ".join(parts[:2]), *parts[2:]])
