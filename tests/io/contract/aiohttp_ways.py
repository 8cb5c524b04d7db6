"""aiohttp, on asyncio."""

from __future__ import annotations

import io
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import anyio

from mcp_oauth.io.aiohttp import OAuth
from tests.io.contract.ways import CONTENT, PAYLOAD, Answer, AsyncWay, Authority, Call, Caller, Way, agenerated
from tests.io.servers import PATIENCE


class Aiohttp(AsyncWay):
    stack = "aiohttp"
    mode = "asyncio"
    replayable = ("none", "bytes", "json", "form", "multipart", "file")
    once = ("generator",)

    @property
    def driver(self) -> Any:
        return OAuth

    def beneath(self, used: Callable[[], object]) -> dict[str, Any]:
        class Connector(aiohttp.TCPConnector):
            async def connect(self, *args: Any, **options: Any) -> Any:
                used()
                return await super().connect(*args, **options)

        return {"connector": Connector}

    def unmakeable(self, make: Callable[[], Any]) -> dict[str, Any]:
        return {"connector": make}

    def trusting(self, authority: Authority) -> dict[str, Any]:
        return {"ssl": authority.context}

    @asynccontextmanager
    async def open(self, caller: Caller) -> AsyncGenerator[Any]:
        async def hook(session: object, context: object, params: aiohttp.TraceRequestStartParams) -> None:
            assert caller.touched
            caller.touched(str(params.url))

        trace = aiohttp.TraceConfig()
        trace.on_request_start.append(hook)
        async with aiohttp.ClientSession(
            middlewares=(caller.auth,) if caller.auth else (),
            headers=caller.headers,
            cookies=caller.cookies,
            cookie_jar=aiohttp.CookieJar(unsafe=True),  # cookies of IP addresses
            trace_configs=[trace] if caller.touched else [],
            connector=aiohttp.TCPConnector(ssl=caller.authority.context if caller.authority else True),
            timeout=aiohttp.ClientTimeout(total=PATIENCE),
            trust_env=caller.environment,
        ) as session:
            yield session

    async def send(self, client: Any, call: Call) -> Answer:
        request = {"headers": call.headers, "allow_redirects": call.follow} | _body(call.body)
        if call.auth is not None:
            request["middlewares"] = (call.auth,)
        async with client.request(call.method, call.url, **request) as response:
            if call.on_chunk is not None:
                async for chunk in response.content.iter_any():
                    call.on_chunk(chunk)
            headers = {name.lower(): value for name, value in response.headers.items()}
            body = b"" if call.on_chunk is not None else await response.read()
            return Answer(response.status, str(response.url), headers, body)

    def naive(self, token: str) -> Any:
        async def middleware(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> Any:
            request.headers["authorization"] = token
            return await handler(request)

        return middleware

    def residue(self, oauth: Any, url: str) -> Sequence[object]:
        async def main() -> Sequence[object]:
            async with aiohttp.ClientSession(middlewares=(oauth,)) as session, session.get(url) as response:
                info = response.request_info
            error = aiohttp.ClientResponseError(info, response.history)
            return [response, error, error.args, info, info.headers, info.headers.copy(), response.history]

        return anyio.run(main)


def _body(kind: str) -> dict[str, Any]:
    match kind:
        case "bytes":
            return {"data": CONTENT}
        case "json":
            return {"json": PAYLOAD}
        case "form":
            return {"data": PAYLOAD}
        case "multipart":
            form = aiohttp.FormData()
            form.add_field("file", io.BytesIO(CONTENT), filename="name")
            return {"data": form}
        case "file":
            return {"data": io.BytesIO(CONTENT)}
        case "generator":
            return {"data": agenerated()}
    return {}


WAYS: tuple[Way, ...] = (Aiohttp(),)
