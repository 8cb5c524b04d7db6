"""The tools of a server for LangChain: `python examples/with_langchain.py [server URL]`. Run it twice.

Hand them to an agent: `create_agent(model, tools)`.

Ran with langchain-mcp-adapters 0.3.2, which needs mcp 1.x.
"""

from __future__ import annotations

import asyncio
import sys

from langchain_mcp_adapters.client import MultiServerMCPClient

from mcp_oauth.io.httpx import OAuth

SERVER = "https://mcp.notion.com/mcp"


async def main(server_url: str) -> None:
    server = {"transport": "streamable_http", "url": server_url, "auth": OAuth(server_url)}
    tools = await MultiServerMCPClient({"example": server}).get_tools()
    for tool in tools:
        print(tool.name)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:2] or [SERVER]))
