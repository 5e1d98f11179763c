"""Alertmanager's API v2: it groups, repeats and silences, so it is told every alert, again and again.

Source: Alertmanager `api/v2/openapi.yaml`; Prometheus `rules/manager.go`, SendAlerts: an alert that is not
told again within four resend delays ends by itself, as it must when this process dies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmkg_otel.alerting.notify.http import post
from llmkg_otel.alerting.notify.message import instant

if TYPE_CHECKING:
    from llmkg_otel.alerting.notify.message import Message, Notice
    from llmkg_otel.config import NotifyConfig

__all__ = ["Alertmanager"]


class Alertmanager:
    """Posts to `{url}/api/v2/alerts`."""

    def __init__(self, config: NotifyConfig) -> None:
        self._config = config
        self._url = config.url.get_secret_value().rstrip("/") + "/api/v2/alerts"

    def send(self, message: Message, now: float) -> None:
        """Send every alert of the message with the time at which it ends unless it is told again."""
        lasts = 4 * self._config.repeat_seconds
        post(self._url, self._config, [_alert(notice, now + lasts) for notice in message.notices])


def _alert(notice: Notice, expires: float) -> dict[str, Any]:
    alert = {
        "labels": dict(notice.labels),
        "annotations": dict(notice.annotations),
        "startsAt": instant(notice.starts_at),
        "endsAt": instant(expires if notice.ends_at is None else notice.ends_at),
    }
    return alert | ({"generatorURL": notice.generator_url} if notice.generator_url else {})
