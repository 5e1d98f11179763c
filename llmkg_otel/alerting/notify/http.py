"""One POST of JSON, and what its failure means. The address and the header may be secrets: never told."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from functools import cache
from http.client import HTTPException
from typing import TYPE_CHECKING, Any

from llmkg_otel.alerting.notify.message import DeliveryError

if TYPE_CHECKING:
    from llmkg_otel.config import NotifyConfig

__all__ = ["post"]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Makes a redirect a failure: followed, the POST would become a GET that takes the header elsewhere."""

    def redirect_request(self, *_args: Any) -> None:
        """Follow nothing."""


@cache
def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_NoRedirect)


def post(url: str, config: NotifyConfig, body: Any) -> None:
    """Send it; 429 and 5xx, a time-out and a broken connection may be tried again. Raises DeliveryError.

    What cannot be sent at all (ValueError, whose text may quote the address or the header) may not.
    """
    headers = {"Content-Type": "application/json", "User-Agent": "llmkg-otel"}
    if config.authorization is not None:
        headers["Authorization"] = config.authorization.get_secret_value()
    try:
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310 - the config's
        with _opener().open(request, timeout=config.timeout_seconds):
            return
    except urllib.error.HTTPError as error:
        with error:
            raise DeliveryError(
                str(error.code),
                retryable=error.code == 429 or error.code >= 500,
                retry_after=_seconds(error.headers.get("Retry-After")),
            ) from None
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)  # what urllib has wrapped
        kind = type(reason if isinstance(reason, Exception) else error).__name__
        raise DeliveryError(kind, retryable=True) from None
    except ValueError as error:
        raise DeliveryError(type(error).__name__, retryable=False) from None


def _seconds(text: str | None) -> float | None:
    return float(text) if text is not None and re.fullmatch(r"\d{1,9}", text) else None
