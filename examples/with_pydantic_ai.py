"""An agent of pydantic-ai with the tools of a server: `python examples/with_pydantic_ai.py [server URL]`. Run it twice.

Its model is pydantic-ai's `TestModel`, which needs no key and calls every tool once with made-up arguments, so mind
which server you give it. Put your own model there: `Agent("anthropic:claude-sonnet-4-5", toolsets=...)`.

Ran with pydantic-ai-slim 2.68.0.
"""

from __future__ import annotations

import asyncio
import sys

from pydantic_ai import Agent
from pydantic_ai.mcp import MCPToolset
from pydantic_ai.models.test import TestModel

from mcp_oauth.io.httpx2 import OAuth

SERVER = "http://127.0.0.1:8000/mcp"


async def main(server_url: str) -> None:
    agent = Agent(TestModel(), toolsets=[MCPToolset(server_url, auth=OAuth(server_url))])
    result = await agent.run("Who am I?")
    print(result.output)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:2] or [SERVER]))
