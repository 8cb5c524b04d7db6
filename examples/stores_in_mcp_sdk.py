"""The official SDK's own login, its tokens in our encrypted files: `python examples/stores_in_mcp_sdk.py [server URL]`.

Any other store does as well: `KeyringStore()`, `VaultStore(...)`, `RedisStore(...)`. Run it twice.

Ran with mcp 2.3.0. `TokenStorage` is the same for mcp 1.x.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx2
from mcp import Client
from mcp.client.auth import OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import AuthorizationCodeResult, OAuthClientMetadata

from mcp_oauth import EncryptedFileStore
from mcp_oauth.adapters.mcp_sdk import TokenStorage

SERVER = "https://mcp.notion.com/mcp"
FOLDER = Path.home() / ".stores_in_mcp_sdk"


async def show(url: str) -> None:
    print(f"Open {url}\nThe browser ends at an address that it cannot show. Paste that here:", flush=True)


async def pasted() -> AuthorizationCodeResult:
    address = await asyncio.to_thread(input)
    answer = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
    return AuthorizationCodeResult(code=answer["code"], state=answer.get("state"), iss=answer.get("iss"))


async def main(server_url: str) -> None:
    metadata = OAuthClientMetadata.model_validate({"redirect_uris": ["http://127.0.0.1:1/callback"]})
    storage = TokenStorage(EncryptedFileStore(FOLDER), server_url)
    auth = OAuthClientProvider(server_url, metadata, storage, show, pasted)
    async with (
        httpx2.AsyncClient(auth=auth, timeout=httpx2.Timeout(30, read=300)) as http,
        Client(streamable_http_client(server_url, http_client=http)) as client,
    ):
        for tool in (await client.list_tools()).tools:
            print(tool.name)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:2] or [SERVER]))
