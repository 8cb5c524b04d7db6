"""The client command of the official conformance suite: `python tests/conformance/client.py SERVER_URL`.

It uses what any program has: an `OAuth` of one of the drivers as the `auth` of an HTTP client, and a callable that
plays the browser. `MCP_OAUTH_STACK` chooses the driver: httpx, httpx2, httpx2-sync.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any, TypedDict

import httpx
import httpx2

import mcp_oauth.io.httpx
import mcp_oauth.io.httpx2
from mcp_oauth.sansio.plan import ClientMetadataDocument, Dynamic, PreRegistered
from mcp_oauth.store.memory import MemoryStore

VERSION = os.environ.get("MCP_CONFORMANCE_PROTOCOL_VERSION", "2026-07-28")
CONTEXT: dict[str, str] = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT") or "{}")
STATELESS = VERSION >= "2026-07-28"


class Message(TypedDict):
    headers: dict[str, str]
    json: dict[str, Any]


def browser(url: str) -> str:
    """Play the person: the suite's authorization endpoint redirects at once."""
    return str(httpx2.get(url, follow_redirects=False).headers["location"])


def options() -> dict[str, Any]:
    clients: list[Any] = [ClientMetadataDocument("https://conformance-test.local/client-metadata.json")]
    if "client_id" in CONTEXT:
        clients = [PreRegistered(CONTEXT["client_id"], CONTEXT.get("client_secret"), issuer=CONTEXT.get("issuer"))]
    return {
        "store": MemoryStore(),
        "client": [*clients, Dynamic()],
        "user": browser,
        "legacy_2025_03_26": VERSION == "2025-03-26",
    }


def message(number: int | None, method: str, params: dict[str, Any] | None = None) -> Message:
    headers = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
    body: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
    if number is not None:
        body["id"] = number
    params = dict(params or {})
    if STATELESS:
        headers["MCP-Protocol-Version"] = VERSION
        params["_meta"] = {
            "io.modelcontextprotocol/protocolVersion": VERSION,
            "io.modelcontextprotocol/clientCapabilities": {},
        }
    return {"headers": headers, "json": body | ({"params": params} if params else {})}


def session() -> list[Message]:
    client = {"protocolVersion": VERSION, "capabilities": {}, "clientInfo": {"name": "mcp_oauth", "version": "0"}}
    opening = [message(1, "initialize", client), message(None, "notifications/initialized")]
    calls = [message(2, "tools/list"), message(3, "tools/call", {"name": "test-tool", "arguments": {}})]
    return calls if STATELESS else opening + calls


async def run_async(stack: Any, url: str, oauth: Any) -> None:
    async with stack.AsyncClient(auth=oauth, timeout=20) as client:
        for each in session():
            (await client.post(url, **each)).raise_for_status()


def run_sync(stack: Any, url: str, oauth: Any) -> None:
    with stack.Client(auth=oauth, timeout=20) as client:
        for each in session():
            client.post(url, **each).raise_for_status()


def main(url: str) -> None:
    match os.environ.get("MCP_OAUTH_STACK", "httpx2"):
        case "httpx":
            asyncio.run(run_async(httpx, url, mcp_oauth.io.httpx.OAuth(url, **options())))
        case "httpx2":
            asyncio.run(run_async(httpx2, url, mcp_oauth.io.httpx2.OAuth(url, **options())))
        case "httpx2-sync":
            run_sync(httpx2, url, mcp_oauth.io.httpx2.OAuth(url, **options()))
        case other:
            raise SystemExit(f"MCP_OAUTH_STACK={other}: no such driver")


if __name__ == "__main__":
    main(sys.argv[1])
