"""The driver for httpx: sync and async clients, asyncio and trio.

async with httpx.AsyncClient(auth=OAuth("https://mcp.example.com/mcp")) as client:
    response = await client.post("https://mcp.example.com/mcp", json=...)
"""

from __future__ import annotations

from typing import Any, cast

import httpx

from mcp_oauth.io.httpx_like import Hop, HttpxPlug, Stack


class _Request(Hop, httpx.Request):
    """The caller's request with a credential."""


class OAuth(HttpxPlug, httpx.Auth):
    """The `auth` of an `httpx` client or request: tokens for one MCP server, as one account.

    It acts only at the origin of the server URL; requests to other places pass it untouched.
    """

    _stack = cast("Stack", cast("Any", httpx))
    _hop = _Request


__all__ = ["OAuth"]
