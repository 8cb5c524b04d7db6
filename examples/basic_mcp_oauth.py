"""A login step by step: `python examples/basic_mcp_oauth.py [server URL]`. Nothing is stored."""

from __future__ import annotations

import asyncio
import sys

from mcp_oauth import MCPOAuthClient

SERVER = "https://mcp.notion.com/mcp"


async def main(server_url: str) -> None:
    client = MCPOAuthClient(server_url, redirect_uri="http://127.0.0.1/callback")

    print(f"1. Discover how to log in at {server_url}")
    await client.discover_authorization_server()
    print(f"   people allow at   {client.authorization_url}")
    print(f"   tokens come from  {client.token_url}")
    print(f"   scopes            {client.scopes_supported}")

    print("2. Register this program")
    client_info = await client.register_client(client_name="mcp_oauth example")
    print(f"   client id         {client_info['client_id']}")

    print("3. Ask a person, in a browser, and exchange the code")
    tokens = await client.authorize()
    print(f"   a token with the scopes {tokens.scope}, for {tokens.expires_in} seconds")

    if tokens.refresh_token:
        print("4. Renew it")
        tokens = await client.refresh_token(tokens.refresh_token)
        print(f"   another token, for {tokens.expires_in} seconds")

    print("5. Give it back")
    await client.revoke_token(tokens.refresh_token or tokens.access_token)
    print("   revoked")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:2] or [SERVER]))
