"""Whom a per-user limit counts: who has proved a name, else where the call comes from."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

import pytest
from fastmcp.server.auth import AccessToken
from starlette.requests import Request

from llmkg_otel.server import caller as module
from llmkg_otel.server.caller import caller, client_address

if TYPE_CHECKING:
    from collections.abc import Callable

TRUSTED = tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "fd00::/8")))


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("203.0.113.9", [], "203.0.113.9"),
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),  # who is not trusted is not believed
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["1.1.1.1, 198.51.100.1"], "198.51.100.1"),  # what the caller wrote itself
        ("10.0.0.1", ["1.1.1.1", "198.51.100.1, 10.2.2.2"], "198.51.100.1"),  # two headers, two proxies
        ("10.0.0.1", ["10.9.9.9, 10.2.2.2"], "10.9.9.9"),  # from inside
        ("10.0.0.1", ["1.1.1.1, unknown"], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1:4711"], "198.51.100.1"),
        ("fd00::1", ["[2001:db8:1:2:3:4:5:6]:4711"], "2001:db8:1:2::/64"),
        ("::ffff:10.0.0.1", ["2001:db8:1:2:ffff::"], "2001:db8:1:2::/64"),
        ("fe80::1%eth0", [], "fe80::/64"),
        ("testclient", ["198.51.100.1"], "testclient"),
    ],
)
def test_an_address_is_the_right_most_that_no_trusted_proxy_has(
    peer: str, forwarded: list[str], expected: str
) -> None:
    assert client_address(peer, forwarded, TRUSTED) == expected


def test_without_trusted_proxies_nobody_is_believed() -> None:
    assert client_address("127.0.0.1", ["198.51.100.1"], ()) == "127.0.0.1"


@pytest.fixture
def request_is(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def arrange(*, token: AccessToken | None = None, client: Any = None, session: str = "s1") -> None:
        headers = [(b"mcp-session-id", session.encode()), (b"x-forwarded-for", b"198.51.100.1")]
        request = Request({"type": "http", "headers": headers, "client": client})
        monkeypatch.setattr(module, "get_access_token", lambda: token)
        monkeypatch.setattr(module, "get_http_request", lambda: request)

    return arrange


def test_who_is_authenticated_counts_by_name_wherever_the_call_comes_from(
    request_is: Callable[..., None],
) -> None:
    for number in range(3):
        token = AccessToken(token="t", client_id="app", subject="alice", scopes=[])
        request_is(token=token, client=(f"203.0.113.{number}", 1), session=f"s{number}")
        assert caller(TRUSTED) == "subject alice"
    request_is(token=AccessToken(token="t", client_id="app", scopes=[]))
    assert caller(TRUSTED) == "subject app"


def test_a_new_session_is_no_new_caller(request_is: Callable[..., None]) -> None:
    callers = set()
    for number in range(3):
        request_is(client=("203.0.113.9", number), session=f"s{number}")
        callers.add(caller(()))
    request_is(client=("10.0.0.1", 1))
    assert (callers, caller(TRUSTED)) == ({"address 203.0.113.9"}, "address 198.51.100.1")


def test_without_an_address_or_without_http_nobody_is_told_apart(request_is: Callable[..., None]) -> None:
    request_is()
    assert caller(TRUSTED) is None
