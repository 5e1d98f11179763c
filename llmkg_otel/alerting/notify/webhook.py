"""A generic webhook: the JSON that Alertmanager's webhook receiver sends, version "4"."""

from __future__ import annotations

import hashlib
from functools import reduce
from typing import TYPE_CHECKING, Any

from llmkg_otel.alerting.notify.http import post
from llmkg_otel.alerting.notify.message import instant

if TYPE_CHECKING:
    from llmkg_otel.alerting.notify.message import Message, Notice
    from llmkg_otel.config import NotifyConfig

__all__ = ["Webhook"]


class Webhook:
    """Posts to the url as it is."""

    def __init__(self, config: NotifyConfig) -> None:
        self._config = config
        self._url = config.url.get_secret_value()

    def send(self, message: Message, now: float) -> None:  # noqa: ARG002 - the times are the alerts' own
        """Send the group as one document. Source: Alertmanager `notify/webhook`, `template.Data`."""
        group = ", ".join(f'{name}="{value}"' for name, value in message.key)
        document = {
            "version": "4",
            "groupKey": f"{{}}:{{{group}}}",
            "truncatedAlerts": 0,
            "status": "firing" if message.firing else "resolved",
            "receiver": message.channel,
            "groupLabels": dict(message.key),
            "commonLabels": _common([dict(notice.labels) for notice in message.notices]),
            "commonAnnotations": _common([dict(notice.annotations) for notice in message.notices]),
            "externalURL": "",
            "alerts": [_alert(notice) for notice in message.notices],
        }
        post(self._url, self._config, document)


def _common(maps: list[dict[str, str]]) -> dict[str, str]:
    return reduce(lambda left, right: dict(left.items() & right.items()), maps)


def _alert(notice: Notice) -> dict[str, Any]:
    return {
        "status": "firing" if notice.ends_at is None else "resolved",
        "labels": dict(notice.labels),
        "annotations": dict(notice.annotations),
        "startsAt": instant(notice.starts_at),
        "endsAt": "0001-01-01T00:00:00Z" if notice.ends_at is None else instant(notice.ends_at),
        "generatorURL": notice.generator_url,
        "fingerprint": hashlib.sha256(repr(notice.labels).encode()).hexdigest()[:16],
    }
