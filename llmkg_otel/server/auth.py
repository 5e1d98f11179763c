"""Who may call: a table of bearer tokens, and the rule that nothing is served openly by accident."""

from __future__ import annotations

import hashlib
import ipaddress
from typing import TYPE_CHECKING

from fastmcp.server.auth import AccessToken, TokenVerifier

from llmkg_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import SecretStr

    from llmkg_otel.config import ProductionConfig

__all__ = ["TokenTable", "is_loopback", "refuse_open_server"]


class TokenTable(TokenVerifier):
    """Knows callers by token; the name beside the token is the authenticated subject.

    Tokens are kept and looked up as SHA-256 digests, so how long a look-up takes tells nothing of them.
    """

    def __init__(self, tokens: Mapping[str, SecretStr]) -> None:
        super().__init__()
        self._names = {_digest(token.get_secret_value()): name for name, token in tokens.items()}

    async def verify_token(self, token: str) -> AccessToken | None:
        """Return who the token belongs to, or None."""
        name = self._names.get(_digest(token))
        return None if name is None else AccessToken(token=token, client_id=name, subject=name, scopes=[])


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def is_loopback(host: str) -> bool:
    """Say whether an address can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refuse_open_server(config: ProductionConfig) -> None:
    """Raise ConfigurationError if MCP would be served to other machines without authentication."""
    guarded = bool(config.auth_tokens) or config.server.jwks_uri is not None
    if guarded or config.server.insecure or is_loopback(config.server.host):
        return
    raise ConfigurationError(
        f"server.host = {config.server.host!r}: serving MCP beyond loopback needs authentication:"
        " set LLMKG_AUTH_TOKENS (name=token,...) or server.jwks_uri, or say --insecure"
    )
