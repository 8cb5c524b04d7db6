"""`examples/stores_in_mcp_sdk.py` as it is written for SDK 1.x; run in the environment `mcp1`.

Its names are typed `Any`, since whoever checks the types has SDK 2.x.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
from mcp import ClientSession
from mcp.client.auth import OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import OAuthClientMetadata

from mcp_oauth import EncryptedFileStore
from mcp_oauth.adapters.mcp_sdk import TokenStorage

provider: Any = OAuthClientProvider
connected: Any = streamable_http_client

FOLDER = Path.home() / ".stores_in_mcp_sdk"


async def show(url: str) -> None:
    print(f"Open {url}", flush=True)


async def pasted() -> tuple[str, str | None]:
    address = await asyncio.to_thread(input)
    answer = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
    return answer["code"], answer.get("state")


async def main(server_url: str) -> None:
    metadata = OAuthClientMetadata.model_validate({"redirect_uris": ["http://127.0.0.1:1/callback"]})
    storage = TokenStorage(EncryptedFileStore(FOLDER), server_url)
    auth = provider(server_url, metadata, storage, show, pasted)
    async with (
        httpx.AsyncClient(auth=auth, timeout=30) as http,
        connected(server_url, http_client=http) as (read, write, *_),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        for tool in (await session.list_tools()).tools:
            print(tool.name)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
