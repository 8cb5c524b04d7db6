"""The official SDK, with its HTTP client logged in: `python examples/with_mcp_sdk.py [server URL]`. Run it twice.

Ran with mcp 2.3.0. For mcp 1.x: httpx for httpx2, `mcp_oauth.io.httpx` for `mcp_oauth.io.httpx2`, and `ClientSession`.
"""

from __future__ import annotations

import asyncio
import sys

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from mcp_oauth.io.httpx2 import OAuth

SERVER = "https://mcp.notion.com/mcp"


async def main(server_url: str) -> None:
    timeout = httpx2.Timeout(30, read=300)  # an answer may take its time
    async with (
        httpx2.AsyncClient(auth=OAuth(server_url), timeout=timeout) as http,
        Client(streamable_http_client(server_url, http_client=http)) as client,
    ):
        for tool in (await client.list_tools()).tools:
            print(tool.name)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:2] or [SERVER]))
