"""The options of a place that alerts are told to."""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from llmkg_otel._config_sources import Section
from llmkg_otel._config_types import Count, EnvironmentSecret, Pause, Seconds, Whole

__all__ = ["NotifyConfig"]


class NotifyConfig(Section):
    """A place that alerts are told to: an Alertmanager, a webhook (its JSON), or one of Apprise's services.

    `url` and `authorization` (the whole header, "Bearer ...") may hold `${NAME}`, which the environment
    replaces; white space around them is dropped, and neither is ever shown. A group is the alerts with the
    same `group_by` labels. It is told `group_wait_seconds` after its first alert, then when an alert is new
    or resolved, every `group_interval_seconds` at most, and again while it fires every
    `repeat_interval_seconds`. For an Alertmanager, which groups by itself, None is no group, no wait and a
    repeat each minute; else it is alertname, 30 s, 5 min and 4 h. At most `max_alerts` are held at once.
    """

    kind: Literal["alertmanager", "webhook", "apprise"] = "alertmanager"
    url: EnvironmentSecret = SecretStr("http://127.0.0.1:9093")
    authorization: EnvironmentSecret | None = None
    send_resolved: bool = True
    group_by: tuple[str, ...] | None = None
    group_wait_seconds: Pause | None = None
    group_interval_seconds: Seconds | None = None
    repeat_interval_seconds: Seconds | None = None
    timeout_seconds: Seconds = 5.0
    max_retries: Whole = Field(default=5, ge=0, le=100)
    max_alerts: Count = 1000

    @field_validator("url", "authorization")
    @classmethod
    def _can_be_sent(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        """Drop the newline with which a secret's file ends; refuse, unquoted, what no request can carry."""
        if value is None:
            return None
        text = value.get_secret_value().strip()
        if not text or not text.isprintable():
            raise ValueError("should be text without control characters")
        if info.field_name == "authorization" and not text.isascii():
            raise ValueError("should be ASCII, as a header is")
        if info.field_name == "url" and info.data.get("kind") != "apprise":
            _check_address(text)
        return SecretStr(text)

    @field_validator("group_by")
    @classmethod
    def _names_labels(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and "..." in value:
            raise ValueError('"..." (all labels) is not supported: name the labels')
        return value

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that make a group."""
        default = () if self.kind == "alertmanager" else ("alertname",)
        return default if self.group_by is None else self.group_by

    @property
    def wait_seconds(self) -> float:
        """From a group's first alert to its first message."""
        default = 0.0 if self.kind == "alertmanager" else 30.0
        return default if self.group_wait_seconds is None else self.group_wait_seconds

    @property
    def interval_seconds(self) -> float:
        """Between two looks at a group."""
        return self.group_interval_seconds or (1.0 if self.kind == "alertmanager" else 300.0)

    @property
    def repeat_seconds(self) -> float:
        """Between two messages when nothing changes."""
        return self.repeat_interval_seconds or (60.0 if self.kind == "alertmanager" else 14_400.0)


def _check_address(url: str) -> None:
    """Raise ValueError, which quotes nothing, unless an HTTP client can use it."""
    found = re.match(r"https?://(?P<host>[^/?#\s]+)", url)
    if found is None:
        raise ValueError("should begin with http:// or https://")
    if "@" in found["host"]:
        raise ValueError("should have no user and password: set authorization")
    if " " in url or not url.isascii():
        raise ValueError("should be ASCII without spaces: write others as %XX")
    try:
        usable = bool(urlsplit(url).hostname) and urlsplit(url).port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("should have a host and a port that can be used")
