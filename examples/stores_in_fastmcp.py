"""FastMCP's own login, its tokens in our encrypted files: `python examples/stores_in_fastmcp.py [server URL]`.

Any other store does as well: `KeyringStore()`, `VaultStore(...)`, `RedisStore(...)`. Run it twice.

Ran with fastmcp 4.1.2 and py-key-value-aio 0.4.6.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from fastmcp import Client
from fastmcp.client.auth import OAuth

from mcp_oauth import EncryptedFileStore
from mcp_oauth.adapters.key_value import KeyValue

SERVER = "https://mcp.notion.com/mcp"
FOLDER = Path.home() / ".stores_in_fastmcp"


async def main(server_url: str) -> None:
    auth = OAuth(token_storage=KeyValue(EncryptedFileStore(FOLDER)))
    async with Client(server_url, auth=auth) as client:
        for tool in await client.list_tools():
            print(tool.name)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:2] or [SERVER]))
