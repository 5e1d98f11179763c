"""Who may call, and who may operate; and the rule that nothing is served openly by accident."""

from __future__ import annotations

import hashlib
import ipaddress
from typing import TYPE_CHECKING

from fastmcp.server.auth import AccessToken, TokenVerifier, require_scopes
from fastmcp.server.auth.providers.jwt import JWTVerifier

from llmkg_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastmcp.server.auth import AuthCheck, AuthProvider
    from pydantic import SecretStr

    from llmkg_otel.config import ProductionConfig

__all__ = ["TokenTable", "authentication", "is_loopback", "operators_only", "refuse_open_server"]

OPERATOR_SCOPE = "llmkg:operator"
"""What a JSON Web Token's `scope` holds if its owner may operate; the operator token has it too."""


class TokenTable(TokenVerifier):
    """Knows callers by token; the name beside the token is the authenticated subject.

    The operator token's subject is "operator", its scope OPERATOR_SCOPE; no other has one. Tokens are
    kept and looked up as SHA-256 digests, so how long a look-up takes tells nothing of them.
    """

    def __init__(self, tokens: Mapping[str, SecretStr], operator: SecretStr | None = None) -> None:
        super().__init__()
        self._names = {_digest(token.get_secret_value()): name for name, token in tokens.items()}
        self._operator = None if operator is None else _digest(operator.get_secret_value())

    async def verify_token(self, token: str) -> AccessToken | None:
        """Return who the token belongs to, or None."""
        digest = _digest(token)
        if digest == self._operator:
            return _access(token, "operator", [OPERATOR_SCOPE])
        name = self._names.get(digest)
        return None if name is None else _access(token, name, [])


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _access(token: str, subject: str, scopes: list[str]) -> AccessToken:
    return AccessToken(token=token, client_id=subject, subject=subject, scopes=scopes)


def authentication(config: ProductionConfig) -> AuthProvider | None:
    """Return what tells who a caller is; None if anybody may call.

    Raises ConfigurationError for JSON Web Tokens beside a token table, or without an audience.
    """
    server = config.server
    if server.jwks_uri is None:
        return TokenTable(config.auth_tokens, server.operator_token) if config.auth_tokens else None
    if config.auth_tokens:
        raise ConfigurationError(
            f"server.jwks_uri = {server.jwks_uri!r} beside auth_tokens: only one can tell who calls:"
            " unset the other"
        )
    if server.audience is None:
        raise ConfigurationError(
            "server.audience = None beside server.jwks_uri: a token made for another service would be taken:"
            " set server.audience"
        )
    return JWTVerifier(jwks_uri=server.jwks_uri, issuer=server.issuer, audience=server.audience)


def operators_only(config: ProductionConfig) -> AuthCheck | None:
    """Return the check of a tool that is for operators where others can reach it; None on loopback."""
    return None if is_loopback(config.server.host) else require_scopes(OPERATOR_SCOPE)


def is_loopback(host: str) -> bool:
    """Say whether an address can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refuse_open_server(config: ProductionConfig, *, guarded: bool) -> None:
    """Raise ConfigurationError if MCP would be served to other machines without authentication."""
    if guarded or config.server.insecure or is_loopback(config.server.host):
        return
    raise ConfigurationError(
        f"server.host = {config.server.host!r}: serving MCP beyond loopback needs authentication:"
        " set LLMKG_AUTH_TOKENS (name=token,...) or server.jwks_uri, give a server of your own its `auth`,"
        " or say --insecure"
    )
