"""FastMCP's server with an authorization server of its own. Run by the interpreter of the environment `fastmcp`.

Without UPSTREAM in the environment it is the one in memory, which asks no person: who opens the authorization URL is
sent straight back with a code. Else it is FastMCP's proxy, which asks for consent and passes the login on to the
authorization server at that URL.
"""

from __future__ import annotations

import os
from typing import Any

import httpx2
from fastmcp import FastMCP
from fastmcp.server.auth import OAuthProxy
from fastmcp.server.auth.auth import ClientRegistrationOptions, RevocationOptions
from fastmcp.server.auth.providers.in_memory import InMemoryOAuthProvider
from fastmcp.server.auth.providers.introspection import IntrospectionTokenVerifier
from fastmcp.server.dependencies import get_access_token
from key_value.aio.stores.memory import MemoryStore

from tests.servers.asgi import serve

SCOPES = ["mcp:tools"]
UPSTREAM_SCOPES = ["openid", "offline_access"]


def in_memory(origin: str) -> InMemoryOAuthProvider:
    """An authorization server that keeps all in memory."""
    return InMemoryOAuthProvider(
        base_url=origin,
        required_scopes=SCOPES,
        client_registration_options=ClientRegistrationOptions(enabled=True, valid_scopes=SCOPES),
        revocation_options=RevocationOptions(enabled=True),
    )


def proxy(origin: str, upstream: str) -> OAuthProxy:
    """One that has its people log in upstream, where it is a client itself."""
    metadata = httpx2.get(f"{upstream}/.well-known/oauth-authorization-server", trust_env=False).json()
    document = {
        "redirect_uris": [f"{origin}/auth/callback"],
        "grant_types": ["authorization_code", "refresh_token"],
        "scope": " ".join(UPSTREAM_SCOPES),
    }
    client = httpx2.post(metadata["registration_endpoint"], json=document, trust_env=False).json()
    return OAuthProxy(
        upstream_authorization_endpoint=metadata["authorization_endpoint"],
        upstream_token_endpoint=metadata["token_endpoint"],
        upstream_revocation_endpoint=metadata["revocation_endpoint"],
        upstream_client_id=client["client_id"],
        upstream_client_secret=client["client_secret"],
        token_verifier=IntrospectionTokenVerifier(
            introspection_url=metadata["introspection_endpoint"],
            client_id=client["client_id"],
            client_secret=client["client_secret"],
            required_scopes=["openid"],
        ),
        base_url=origin,
        valid_scopes=UPSTREAM_SCOPES,
        forward_resource=False,
        extra_authorize_params={"prompt": "consent"},
        client_storage=MemoryStore(),
        jwt_signing_key="for loopback tests only",
    )


def application(origin: str) -> Any:
    """The ASGI application."""
    upstream = os.environ.get("UPSTREAM")
    server = FastMCP("protected", auth=proxy(origin, upstream) if upstream else in_memory(origin))
    server.tool(whoami)
    return server.http_app(stateless_http=True)


def whoami() -> str:
    """The person, where one logged in; else the client."""
    token = get_access_token()
    if token is None:
        return "nobody"
    return f"client {token.client_id} of {token.claims.get('sub', 'nobody')}"


if __name__ == "__main__":
    serve(application)
