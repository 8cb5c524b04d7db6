"""A real MCP server that asks for a login, and the authorization server that it trusts, both of the official SDK.

    python -m examples.server --token-lifetime 60

It listens on 127.0.0.1, on a port of its own choice, and says where: one line `READY {"mcp": URL, "issuer": URL}`.
"""

from __future__ import annotations

import argparse
import json
import socket
from collections.abc import Callable, Sequence

import uvicorn
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.settings import AuthSettings, ClientRegistrationOptions, RevocationOptions
from mcp.server.mcpserver import MCPServer
from pydantic import AnyHttpUrl
from starlette.applications import Starlette

from examples.server.authorization import Authority

SCOPES = ("mcp:tools",)


def application(origin: str, token_lifetime: int, scopes: Sequence[str] = SCOPES) -> Starlette:
    """The ASGI application of both servers. `token_lifetime` is that of an access token, in seconds."""
    authority = Authority(origin, token_lifetime)
    server = MCPServer(
        "demo",
        auth_server_provider=authority,
        auth=AuthSettings(
            issuer_url=AnyHttpUrl(origin),
            resource_server_url=AnyHttpUrl(f"{origin}/mcp"),
            required_scopes=[*scopes],
            client_registration_options=ClientRegistrationOptions(enabled=True, valid_scopes=[*scopes]),
            revocation_options=RevocationOptions(enabled=True),
            validate_token_resource=True,
        ),
        log_level="WARNING",
    )
    server.custom_route("/consent", methods=["GET"])(authority.consent_page)
    server.custom_route("/consent", methods=["POST"])(authority.consent_answer)

    @server.tool()
    def echo(text: str) -> str:
        """Say it again."""
        return text

    @server.tool()
    def whoami() -> str:
        """Say who is logged in."""
        token = get_access_token()
        return token.subject if token and token.subject else "nobody"

    return server.streamable_http_app()


def main() -> None:
    parser = argparse.ArgumentParser(description="An OAuth-protected MCP server for the demo and the tests")
    parser.add_argument("--token-lifetime", type=int, default=3600, help="of an access token, in seconds")
    arguments = parser.parse_args()
    serve(lambda origin: application(origin, arguments.token_lifetime))


def serve(make: Callable[[str], Starlette]) -> None:
    """Serve what `make` makes for an origin, on a free port of loopback, and say where."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        origin = f"http://127.0.0.1:{listener.getsockname()[1]}"
        app = make(origin)
        print("READY", json.dumps({"mcp": f"{origin}/mcp", "issuer": origin}), flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)).run(sockets=[listener])


if __name__ == "__main__":
    main()
