"""Callers who prove who they are: by bearer token, or by a JSON Web Token of an issuer on loopback."""

from __future__ import annotations

import json
import threading
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import httpx2
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from fastmcp.server.auth.providers.jwt import RSAKeyPair
from jwt.algorithms import RSAAlgorithm
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@asynccontextmanager
async def with_token(url: str, token: str, mode: str = "auto") -> AsyncIterator[Client]:
    async with (
        httpx2.AsyncClient(headers={"authorization": f"Bearer {token}"}) as http,
        Client(streamable_http_client(url, http_client=http), mode=mode) as client,
    ):
        yield client


class Issuer:
    """Makes JSON Web Tokens whose keys `jwks_uri` serves; `environment` has a server trust them."""

    def __init__(self) -> None:
        self._key = RSAKeyPair.generate()
        public = load_pem_public_key(self._key.public_key.encode())
        assert isinstance(public, RSAPublicKey)
        self.keys = json.dumps({"keys": [{**json.loads(RSAAlgorithm.to_jwk(public)), "kid": "one"}]})
        self.environment: dict[str, str] = {}

    def token(self, subject: str, audience: str = "llmkg", scopes: list[str] | None = None) -> str:
        return self._key.create_token(subject, "https://issuer.example", audience, scopes, kid="one")


@contextmanager
def issuing() -> Iterator[Issuer]:
    issuer = Issuer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(issuer.keys.encode())

        def log_message(self, *_arguments: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        issuer.environment = {
            "LLMKG_SERVER__JWKS_URI": f"http://127.0.0.1:{server.server_port}/jwks",
            "LLMKG_SERVER__ISSUER": "https://issuer.example",
            "LLMKG_SERVER__AUDIENCE": "llmkg",
        }
        yield issuer
        server.shutdown()
