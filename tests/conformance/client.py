"""The client command of the official conformance suite: `python tests/conformance/client.py SERVER_URL`.

It uses what any program has: an `OAuth` of one of the drivers as the `auth` of an HTTP client, and a callable that
plays the browser. `MCP_OAUTH_STACK` chooses the driver, one of `STACKS`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, TypedDict

import anyio
import httpx2

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


# --- The stacks -------------------------------------------------------------------------------------------------------


async def httpx_async(stack: str, url: str, oauth: Any) -> None:
    async with import_module(stack).AsyncClient(auth=oauth, timeout=20) as client:
        for each in session():
            (await client.post(url, **each)).raise_for_status()


def httpx_sync(stack: str, url: str, oauth: Any) -> None:
    with import_module(stack).Client(auth=oauth, timeout=20) as client:
        for each in session():
            client.post(url, **each).raise_for_status()


async def aiohttp_async(stack: str, url: str, oauth: Any) -> None:
    async with import_module(stack).ClientSession(middlewares=(oauth,), raise_for_status=True) as client:
        for each in session():
            async with client.post(url, **each):
                pass


def requests_sync(stack: str, url: str, oauth: Any) -> None:
    with import_module(stack).Session() as client:
        for each in session():
            client.post(url, auth=oauth, timeout=20, **each).raise_for_status()


async def anyio_async(stack: str, url: str, oauth: Any) -> None:
    async with import_module(f"mcp_oauth.io.{stack}").Client(oauth) as client:
        for each in session():
            response = await client.request("POST", url, headers=each["headers"].items(), json=each["json"])
            assert response.status < 400, response.status


def in_loop(backend: str, run: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: anyio.run(partial(run, *args), backend=backend)


STACKS: dict[str, tuple[str, Callable[[str, str, Any], Any]]] = {
    "httpx": ("httpx", in_loop("asyncio", httpx_async)),
    "httpx2": ("httpx2", in_loop("asyncio", httpx_async)),
    "httpx2-sync": ("httpx2", httpx_sync),
    "aiohttp": ("aiohttp", in_loop("asyncio", aiohttp_async)),
    "requests": ("requests", requests_sync),
    "anyio-asyncio": ("anyio", in_loop("asyncio", anyio_async)),
    "anyio-trio": ("anyio", in_loop("trio", anyio_async)),
}


def main(url: str) -> None:
    name = os.environ.get("MCP_OAUTH_STACK", "httpx2")
    if name not in STACKS:
        raise SystemExit(f"MCP_OAUTH_STACK={name}: no such driver")
    stack, run = STACKS[name]
    oauth = import_module(f"mcp_oauth.io.{stack}").OAuth(url, **options())
    run(stack, url, oauth)


if __name__ == "__main__":
    main(sys.argv[1])
