"""A tool called over the stateless wire of the older revisions of MCP, by clients that trust what they are told."""

from __future__ import annotations

import importlib
import ssl
from typing import Any

import anyio

from tests.integration.program import Answer

HEADERS = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-11-25"}
MESSAGE = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "whoami", "arguments": {}}}


def whoami(stack: str, auth: Any, url: str, *, verify: ssl.SSLContext | None = None) -> Answer:
    """The answer of the tool on a stack of `program.STACKS`; `auth` as its clients take it."""
    library, way = stack.split("-")
    stacks = importlib.import_module(library)
    options: dict[str, Any] = {"auth": auth, "trust_env": False, "timeout": 30}
    if verify is not None:
        options["verify"] = verify
    if way != "sync":
        answer: Answer = anyio.run(_awhoami, stacks, options, url, backend=way)
        return answer
    with stacks.Client(**options) as client:
        return _answer(client.post(url, headers=HEADERS, json=MESSAGE))


async def _awhoami(stacks: Any, options: dict[str, Any], url: str) -> Answer:
    async with stacks.AsyncClient(**options) as client:
        return _answer(await client.post(url, headers=HEADERS, json=MESSAGE))


def _answer(response: Any) -> Answer:
    return Answer(response.status_code, response.text)
