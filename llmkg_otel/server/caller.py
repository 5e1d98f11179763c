"""Who calls: what per-user limits tell callers apart by. Never the MCP session, which a client can renew."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, TypeAlias

from fastmcp.server.dependencies import get_access_token, get_http_request

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["caller", "client_address", "is_address"]

_ADDRESS = "address "

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


def caller(trusted_proxies: Sequence[Network]) -> str | None:
    """Return the authenticated subject of the present request, else its client's address, else None.

    The two are marked, so that nobody can take a subject's name as an address. Of an IPv6 address only
    the network (/64) counts: its owner has all the 2**64 addresses in it. None: not over HTTP.
    """
    if (token := get_access_token()) is not None:
        return f"subject {token.subject or token.client_id}"
    try:
        request = get_http_request()
    except RuntimeError:
        return None
    if request.client is None:
        return None
    address = client_address(request.client.host, request.headers.getlist("x-forwarded-for"), trusted_proxies)
    return _ADDRESS + address


def is_address(who: str) -> bool:
    """Say whether what `caller` returned is an address: many may be behind it."""
    return who.startswith(_ADDRESS)


def client_address(peer: str, forwarded: Iterable[str], trusted_proxies: Sequence[Network]) -> str:
    """Return the address next to the right-most hop that is trusted; the peer's own if it is not.

    `forwarded` are the X-Forwarded-For headers in their order. Each proxy appends the address it was
    called from, so what an untrusted caller wrote itself stands to the left of its own address, and is
    not believed. What is no address ends the search.
    """
    client = peer
    hops = [hop.strip() for header in forwarded for hop in header.split(",")]
    while hops and _is_trusted(client, trusted_proxies) and _parsed(hops[-1]) is not None:
        client = hops.pop()
    address = _parsed(client)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return client if address is None else str(address)


def _is_trusted(address: str, networks: Sequence[Network]) -> bool:
    parsed = _parsed(address)
    return parsed is not None and any(parsed in network for network in networks)


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return an address without brackets, port or zone; an IPv4 address in IPv6 clothes as what it is."""
    host = address.rpartition(":")[0] if address.count(":") == 1 or "]:" in address else address
    try:
        parsed = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
    return getattr(parsed, "ipv4_mapped", None) or parsed
