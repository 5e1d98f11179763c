"""Stores shared by many processes, opened by the URIs of the `limits` library, and never waited for long."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from limits.aio.storage import Storage as AsyncStorage
from limits.errors import ConfigurationError as LimitsConfigurationError
from limits.storage import Storage, storage_from_string

from llmkg_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["STORE_SECONDS", "clients_of", "open_async_storage", "open_storage"]

STORE_SECONDS = 0.05
"""How long one exchange with a shared store may take, connecting included, before it counts as down."""


def open_storage(uri: str, key_prefix: str, seconds: float = STORE_SECONDS) -> Storage:
    """Return the storage that a URI of `limits` names, for threads; it waits `seconds` for each answer.

    Nothing is connected yet, except to a cluster, whose client asks for its nodes at once and raises
    what it raises when none answers.

    redis://, rediss://, redis+unix://, redis+cluster://, redis+sentinel://, and the same with valkey.
    Raises ConfigurationError for any other URI, and for a client library that is missing.
    """
    opened = _open(uri, uri, key_prefix, seconds)
    assert isinstance(opened, Storage)  # noqa: S101 - the URI says so
    return opened


def open_async_storage(uri: str, key_prefix: str) -> AsyncStorage:
    """Do the same for coroutines of one event loop."""
    opened = _open(f"async+{uri}", uri, key_prefix, STORE_SECONDS, implementation="redispy")
    assert isinstance(opened, AsyncStorage)  # noqa: S101 - the URI says so
    return opened


def clients_of(client: Any) -> Sequence[Any]:
    """Return what is to be closed: a client, and those that ask sentinels where its server is.

    Closing the first closes none of the others.
    """
    pool = getattr(client, "connection_pool", None)  # a cluster's client has none
    return [client, *getattr(getattr(pool, "sentinel_manager", None), "sentinels", ())]


def _open(uri: str, shown: str, key_prefix: str, seconds: float, **options: Any) -> Storage | AsyncStorage:
    scheme = shown.partition("://")[0]
    if not scheme.startswith(("redis", "valkey")):
        raise ConfigurationError(f"storage_uri: {scheme}:// is not a store that can be shared: use redis://")
    try:
        return storage_from_string(uri, key_prefix=key_prefix, **_impatient(scheme, seconds), **options)
    except (ImportError, LimitsConfigurationError):
        library = "valkey" if scheme.startswith("valkey") else "redis"
        raise ConfigurationError(
            f"storage_uri: {scheme}:// needs a client: pip install 'llmkg-otel[{library}]'"
        ) from None
    except ValueError:  # its message may quote a part of the password
        raise ConfigurationError(
            f"storage_uri: not a {scheme}:// URI; in a password / is %2F, @ is %40, # is %23"
        ) from None


def _impatient(scheme: str, seconds: float) -> Mapping[str, Any]:
    """Return client options for so many seconds: on a hung server the defaults block for 5 to 25 s."""
    library = "valkey" if scheme.startswith("valkey") else "redis"
    backoff, retry = import_module(f"{library}.backoff"), import_module(f"{library}.retry")
    options = {
        "socket_timeout": seconds,
        "socket_connect_timeout": seconds,
        "retry": retry.Retry(backoff.NoBackoff(), 0),
    }
    if scheme.endswith("+sentinel"):  # the clients of the sentinels take none of the others
        options["sentinel_kwargs"] = dict(options)
    return options
