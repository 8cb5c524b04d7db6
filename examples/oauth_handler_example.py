"""Tokens by name, kept and renewed: `python examples/oauth_handler_example.py [server URL]`. Run it twice."""

from __future__ import annotations

import asyncio
import sys

from mcp_oauth import OAuthHandler

NAME = "example"
SERVER = "https://mcp.notion.com/mcp"


async def main(server_url: str) -> None:
    handler = OAuthHandler()
    print(f"Tokens are kept in {handler.token_manager.backend_name}")

    known = handler.token_manager.has_valid_tokens(NAME)
    print("There is a token from before" if known else "A browser will open")
    tokens = await handler.ensure_authenticated_mcp(NAME, server_url)
    print(f"Logged in, for {tokens.expires_in} seconds; expired: {tokens.is_expired()}")

    again = await handler.ensure_authenticated_mcp(NAME, server_url)
    print(f"Asked once more, the token is the same: {again.access_token == tokens.access_token}")

    headers = await handler.prepare_headers_for_mcp_server(NAME, server_url, extra_headers={"X-Example": "1"})
    print(f"Headers for any HTTP library: {', '.join(headers)}")

    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    accept = {"Accept": "application/json, text/event-stream"}
    response = await handler.authenticated_request(NAME, server_url, server_url, "POST", json=ping, headers=accept)
    print(f"The server answers HTTP {response.status_code}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:2] or [SERVER]))
