"""Our own client, on asyncio and on trio. It follows no redirects, and its auth is the client's."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio

from mcp_oauth.io.anyio import Client, OAuth
from tests.io.contract.ways import CONTENT, PAYLOAD, Answer, AsyncWay, Authority, Call, Caller, Way, agenerated


class Anyio(AsyncWay):
    stack = "anyio"
    levels = ("client",)
    follows = False
    replayable = ("none", "bytes", "json")
    once = ("generator",)

    def __init__(self, mode: str) -> None:
        self.mode = mode

    @property
    def driver(self) -> Any:
        return OAuth

    def beneath(self, used: Callable[[], object]) -> dict[str, Any]:
        async def connect(host: str, port: int) -> anyio.abc.ByteStream:
            used()
            return await anyio.connect_tcp(host, port)

        return {"connect": connect}

    def unmakeable(self, make: Callable[[], Any]) -> dict[str, Any]:
        async def connect(host: str, port: int) -> Any:
            return make()

        return {"connect": connect}

    def trusting(self, authority: Authority) -> dict[str, Any]:
        return {"ssl_context": authority.context}

    @asynccontextmanager
    async def open(self, caller: Caller) -> AsyncGenerator[Any]:
        cookies = [("cookie", f"{name}={value}") for name, value in caller.cookies.items()]
        async with Client(caller.auth) as client:
            yield client, [*caller.headers.items(), *cookies]

    async def send(self, client: Any, call: Call) -> Answer:
        client, headers = client
        request = {"headers": [*headers, *call.headers.items()]} | _body(call.body)
        if call.on_chunk is None:
            response = await client.request(call.method, call.url, **request)
            return Answer(response.status, call.url, _lowered(response.headers), response.body)
        async with client.stream(call.method, call.url, **request) as response:
            async for chunk in response.body:
                call.on_chunk(chunk)
            return Answer(response.status, call.url, _lowered(response.headers), b"")

    def residue(self, oauth: Any, url: str) -> Sequence[object]:
        async def main() -> Sequence[object]:
            headers = [("x-mine", "1")]
            async with Client(oauth) as client:
                response = await client.request("GET", url, headers=headers)
                async with client.stream("GET", url) as streamed:
                    return [client, response, streamed, headers]

        return anyio.run(main, backend=self.mode)


def _lowered(headers: Sequence[tuple[str, str]]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers}


def _body(kind: str) -> dict[str, Any]:
    match kind:
        case "bytes":
            return {"body": CONTENT}
        case "json":
            return {"json": PAYLOAD}
        case "generator":
            return {"body": agenerated()}
    return {}


WAYS: tuple[Way, ...] = (Anyio("asyncio"), Anyio("trio"))
