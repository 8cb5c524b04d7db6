"""The client of FastMCP, logged in: `python examples/with_fastmcp.py [server URL]`. Run it twice.

Ran with fastmcp 4.1.2.
"""

from __future__ import annotations

import asyncio
import sys

from fastmcp import Client

from mcp_oauth.io.httpx2 import OAuth

SERVER = "https://mcp.notion.com/mcp"


async def main(server_url: str) -> None:
    async with Client(server_url, auth=OAuth(server_url)) as client:
        for tool in await client.list_tools():
            print(tool.name)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:2] or [SERVER]))
