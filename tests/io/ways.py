"""What the tests of httpx and httpx2 alone share: each with all that runs it, and a body that is watched.

The contract of all stacks has ways of its own: `tests.io.contract.ways`.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import anyio
import httpx
import httpx2

import mcp_oauth.io.httpx
import mcp_oauth.io.httpx2
from mcp_oauth.store.memory import MemoryStore
from tests.io.servers import PATIENCE, Reply, Seen, World

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Trusts nobody, and is there at once: what the clients here really reach is http on loopback."""
DRIVERS: dict[ModuleType, Any] = {httpx: mcp_oauth.io.httpx.OAuth, httpx2: mcp_oauth.io.httpx2.OAuth}


@dataclass(frozen=True)
class Way:
    """A stack, and what runs it."""

    stack: Any
    mode: str

    def oauth(self, url: str, world: World | None = None, **options: Any) -> Any:
        """OAuth traffic goes straight into `world`, or to real servers."""
        transport = None if world is None else partial(self.mock, world)
        login = world.login if world else None
        return DRIVERS[self.stack](url, **{"store": MemoryStore(), "transport": transport, "user": login} | options)

    def mock(self, world: Callable[[Seen], Reply]) -> Any:
        def handler(request: Any) -> Any:
            headers = {name.lower(): request.headers[name] for name in request.headers}
            reply = world(Seen(request.method, str(request.url), headers, request.content))
            return self.stack.Response(reply.status, headers=list(reply.headers), content=reply.body)

        return self.stack.MockTransport(handler)

    def run(self, use: Callable[[Any], Any], ause: Callable[[Any], Any], **options: Any) -> Any:
        """Have a client, sync or async, and use it."""
        options.setdefault("verify", NO_TLS)

        async def arun() -> Any:
            async with self.stack.AsyncClient(timeout=PATIENCE, **options) as client:
                return await ause(client)

        if self.mode != "sync":
            return anyio.run(arun, backend=self.mode)
        with self.stack.Client(timeout=PATIENCE, **options) as client:
            return use(client)

    def request(self, method: str, url: str, *, each: Any = None, options: Any = None, **request: Any) -> Any:
        """One request; `each` is its own auth."""
        if each is not None:
            request["auth"] = each

        async def ause(client: Any) -> Any:
            return await client.request(method, url, **request)

        return self.run(lambda client: client.request(method, url, **request), ause, **(options or {}))


WAYS = [Way(stack, mode) for stack in (httpx, httpx2) for mode in ("sync", "asyncio", "trio")]
REDIRECTS = [301, 302, 303, 307, 308]


class Trickle(httpx.SyncByteStream, httpx.AsyncByteStream, httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """A body that says when it is read and closed."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.chunks, self.read, self.closed = chunks, 0, False

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self.chunks:
            self.read += 1
            yield chunk

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            self.read += 1
            yield chunk

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.closed = True


def endless() -> Iterator[bytes]:
    while True:
        yield b"x" * 100
