"""httpx and httpx2: sync, on asyncio, on trio."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from importlib import import_module
from typing import Any

from tests.io.contract.ways import (
    CONTENT,
    NO_TLS,
    PAYLOAD,
    Answer,
    AsyncWay,
    Authority,
    Call,
    Caller,
    SyncWay,
    Way,
    agenerated,
    generated,
)
from tests.io.servers import PATIENCE


class Httpx(Way):
    """What is alike in all six."""

    replayable = ("none", "bytes", "json", "form")
    once = ("multipart", "generator")

    def __init__(self, stack: str, *, http2: bool = False) -> None:
        self.stack = stack
        self.http2 = http2
        self.library: Any = import_module(stack)

    @property
    def driver(self) -> Any:
        return import_module(f"mcp_oauth.io.{self.stack}").OAuth

    def beneath(self, used: Callable[[], object]) -> dict[str, Any]:
        def make() -> Any:
            transport = self.library.AsyncHTTPTransport()
            send = transport.handle_async_request

            async def handle(request: Any) -> Any:
                used()
                return await send(request)

            transport.handle_async_request = handle
            return transport

        return {"transport": make}

    def unmakeable(self, make: Callable[[], Any]) -> dict[str, Any]:
        return {"transport": make}

    def trusting(self, authority: Authority) -> dict[str, Any]:
        if self.http2:
            return {"transport": partial(self.library.AsyncHTTPTransport, verify=authority.context, http2=True)}
        return {"verify": authority.context}

    def _client(self, caller: Caller, hook: Any) -> dict[str, Any]:
        options: dict[str, Any] = {"headers": caller.headers, "cookies": caller.cookies, "timeout": PATIENCE}
        options |= {
            "auth": caller.auth,
            "http2": self.http2,
            "verify": caller.authority.context if caller.authority else NO_TLS,
        }
        return options | ({"event_hooks": {"request": [hook]}} if caller.touched else {})

    def _request(self, call: Call) -> dict[str, Any]:
        made: dict[str, Any] = {"headers": call.headers, "follow_redirects": call.follow} | self._body(call.body)
        return made | ({"auth": call.auth} if call.auth is not None else {})

    def _body(self, kind: str) -> dict[str, Any]:
        match kind:
            case "bytes":
                return {"content": CONTENT}
            case "json":
                return {"json": PAYLOAD}
            case "form":
                return {"data": PAYLOAD}
            case "multipart":
                return {"files": {"file": ("name", io.BytesIO(CONTENT))}}
            case "generator":
                return {"content": agenerated() if isinstance(self, AsyncWay) else generated()}
        return {}

    def naive(self, token: str) -> Any:
        def flow(request: Any) -> Generator[Any, Any, None]:
            request.headers["authorization"] = token
            yield request

        auth = self.library.Auth()
        auth.auth_flow = flow
        return auth

    def residue(self, oauth: Any, url: str) -> Sequence[object]:
        with self.library.Client(timeout=PATIENCE, verify=NO_TLS) as client:
            request = self.library.Request("GET", url)
            response = client.send(request, auth=oauth)
            assert response.status_code == 200
            headers = response.request.headers
            unpickled = pickle.loads(pickle.dumps(response))
        kept = [request.headers, copy.copy(headers), unpickled.request.headers]
        return [response, response.request, headers, unpickled, *(dict(each.items()) for each in kept)]


def answer(response: Any, body: bytes) -> Answer:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(response.status_code, str(response.url), headers, body)


class HttpxSync(Httpx, SyncWay):
    @contextmanager
    def open(self, caller: Caller) -> Generator[Any]:
        def hook(request: Any) -> None:
            assert caller.touched
            caller.touched(str(request.url))

        with self.library.Client(**self._client(caller, hook)) as client:
            yield client

    def send(self, client: Any, call: Call) -> Answer:
        if call.on_chunk is None:
            response = client.request(call.method, call.url, **self._request(call))
            return answer(response, response.content)
        with client.stream(call.method, call.url, **self._request(call)) as response:
            for chunk in response.iter_bytes():
                call.on_chunk(chunk)
            return answer(response, b"")


class HttpxAsync(Httpx, AsyncWay):
    def __init__(self, stack: str, mode: str, *, http2: bool = False) -> None:
        super().__init__(stack, http2=http2)
        self.mode = mode

    @asynccontextmanager
    async def open(self, caller: Caller) -> AsyncGenerator[Any]:
        async def hook(request: Any) -> None:
            assert caller.touched
            caller.touched(str(request.url))

        async with self.library.AsyncClient(**self._client(caller, hook)) as client:
            yield client

    async def send(self, client: Any, call: Call) -> Answer:
        if call.on_chunk is None:
            response = await client.request(call.method, call.url, **self._request(call))
            return answer(response, response.content)
        async with client.stream(call.method, call.url, **self._request(call)) as response:
            async for chunk in response.aiter_bytes():
                call.on_chunk(chunk)
            return answer(response, b"")


WAYS: tuple[Way, ...] = tuple(
    HttpxSync(stack) if mode == "sync" else HttpxAsync(stack, mode)
    for stack in ("httpx", "httpx2")
    for mode in ("sync", "asyncio", "trio")
)
