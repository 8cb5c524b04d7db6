"""The driver for httpx2: sync and async clients, asyncio and trio.

async with httpx2.AsyncClient(auth=OAuth("https://mcp.example.com/mcp")) as client:
    response = await client.post("https://mcp.example.com/mcp", json=...)
"""

from __future__ import annotations

from typing import Any, cast

import httpx2

from mcp_oauth.io.httpx_like import Hop, HttpxPlug, Stack


class _Request(Hop, httpx2.Request):
    """The caller's request with a credential."""


class OAuth(HttpxPlug, httpx2.Auth):
    """The `auth` of an `httpx2` client or request: tokens for one MCP server, as one account.

    It acts only at the origin of the server URL; requests to other places pass it untouched.
    """

    _stack = cast("Stack", cast("Any", httpx2))
    _hop = _Request


__all__ = ["OAuth"]
