"""Telling people: a channel per place that alerts go to, each a small file behind one protocol."""

from __future__ import annotations

from contextlib import nullcontext
from math import inf
from typing import TYPE_CHECKING

from llmkg_otel.alerting.notify.alertmanager import Alertmanager
from llmkg_otel.alerting.notify.apprise import AppriseTarget
from llmkg_otel.alerting.notify.channel import Channel
from llmkg_otel.alerting.notify.webhook import Webhook

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from llmkg_otel.alerting.notify.message import Target
    from llmkg_otel.config import NotifyConfig

__all__ = ["Channel", "make_channels"]

_TARGETS: dict[str, Callable[[NotifyConfig], Target]] = {
    "alertmanager": Alertmanager,
    "webhook": Webhook,
    "apprise": AppriseTarget,
}


def make_channels(
    configs: Mapping[str, NotifyConfig],
    told: Callable[[str, str | None], None],
    quietly: Callable[[], AbstractContextManager[object]] = nullcontext,
    stale_after: float = inf,
) -> list[Channel]:
    """Return a channel for each section of `alerting.notify`, not yet started.

    `told` hears of each message: the channel, and the error.type (None: it arrived). `quietly`
    keeps others from describing the requests, whose addresses are secrets. Nothing is repeated when the last
    evaluation is more than `stale_after` seconds ago. Raises ConfigurationError for an
    address that Apprise does not know, or when its package is missing.
    """
    return [
        Channel(name, config, _TARGETS[config.kind](config), told, quietly=quietly, stale_after=stale_after)
        for name, config in configs.items()
    ]
