"""The driver that needs no HTTP library: h11 on anyio's streams, for asyncio and trio.

async with Client(OAuth("https://mcp.example.com/mcp")) as client:
    response = await client.request("POST", "/mcp", json=...)
    async with client.stream("GET", "/mcp", headers=[("accept", "text/event-stream")]) as events:
        async for chunk in events.body: ...
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import urljoin

import anyio
import msgspec

from mcp_oauth.io import http11
from mcp_oauth.io.http11 import Broken, Connect, Connections, ExchangeError, NotSent, RequestBody
from mcp_oauth.io.oauth import BaseOAuth
from mcp_oauth.io.options import Options, insist
from mcp_oauth.io.plug import Heard, is_short, send_authorized_async
from mcp_oauth.io.sending import NOT_CODED, Body, Sender, UnreadableError, sender
from mcp_oauth.sansio.messages import Headers, Response, header, header_values
from mcp_oauth.sansio.steps import Send

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Broken", "Client", "ExchangeError", "NotSent", "OAuth"]

RequestHeaders = Mapping[str, str] | Iterable[tuple[str, str]]
MOST_BYTES = 1 << 26
"""The longest body that `Client.request` reads unless told otherwise."""


class AnyioOptions(Options, total=False):
    """The options of this `OAuth`: what lies beneath its connections and its `Client`'s."""

    connect: Connect
    """Makes the streams beneath TLS: async (host, port) -> `anyio.abc.ByteStream`."""
    ssl_context: ssl.SSLContext | None
    """None: the system's authorities, or those of SSL_CERT_FILE."""
    proxy: str | None
    """The URL of an HTTP proxy; None: what the environment says."""


class OAuth(BaseOAuth):
    """Tokens for one MCP server, as one account, for a `Client`."""

    def __init__(self, server_url: str, **options: Unpack[AnyioOptions]) -> None:
        """See `Options` and `AnyioOptions`. Raises `ConfigurationError`."""
        self._connect = options.pop("connect", anyio.connect_tcp)
        self._ssl_context = options.pop("ssl_context", None)
        insist("ssl_context", self._ssl_context, ssl.SSLContext | None, "an ssl.SSLContext: TLS is always verified")
        self._proxy = options.pop("proxy", None)
        super().__init__(server_url, **cast("Options", options))

    def connections(self) -> Connections:
        """New connections, for one event loop."""
        return Connections(connect=self._connect, ssl_context=self._ssl_context, proxy=self._proxy)

    def open_sender(self) -> AbstractAsyncContextManager[Sender]:
        """See `sending.sender`."""
        return sender(self.connections, _exchange, _unsent)


async def _exchange(connections: Connections, effect: Send) -> Response:
    request = effect.request
    headers = (*request.headers, NOT_CODED)
    try:
        # Who cannot be connected to has certainly not seen the request, so that ends before the deadline.
        async with connections.stream(
            request.method, request.url, headers, request.body or b"", connect_seconds=effect.seconds / 2
        ) as answer:
            return await _read(answer, effect.max_bytes)
    except Broken as error:
        raise UnreadableError(str(error)) from error


async def _read(answer: http11.Response, most: int) -> Response:
    body = Body(header(answer.headers, "content-encoding"), most)
    async for chunk in answer.body:
        body.add(chunk)
    return Response(answer.status, answer.headers, body.whole())


def _unsent(error: Exception) -> str | None:
    return str(error) if isinstance(error, NotSent) else None


class _Opened(NamedTuple):
    """An answer, and what ends it."""

    answer: http11.Response
    ends: AsyncExitStack


class Client:
    """Requests to one MCP server, and to other places without the token. For one event loop, and any number of tasks.

    As an async context manager it keeps connections for the next request; outside of that each has one of its own.
    It follows no redirect, keeps no cookie and sets no deadline: `anyio.fail_after` does.
    """

    def __init__(self, oauth: OAuth) -> None:
        self._oauth = oauth
        self._connections: Connections | None = None

    async def __aenter__(self) -> Client:
        self._connections = await self._oauth.connections().__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        connections, self._connections = self._connections, None
        if connections is not None:
            await connections.__aexit__(kind, error, trace)

    async def request(
        self,
        method: str,
        url: str = "",
        *,
        headers: RequestHeaders = (),
        body: RequestBody = b"",
        json: Any = None,
        max_bytes: int = MOST_BYTES,
    ) -> Response:
        """Send a request and read its answer, with its content coding undone.

        `url` may be relative to the server's. `json` is a body too. An async iterable of bytes cannot be sent again:
        where that is needed, it raises.

        Raises `OAuthError`; `NotSent` and `Broken` for what came between; `UnreadableError` for a body that is longer
        than `max_bytes`.
        """
        sent = _fields(headers)
        if json is not None:
            body, sent = msgspec.json.encode(json), (*_without(sent, ["content-type"]), ("content-type", JSON))
        async with self.stream(method, url, headers=sent, body=body) as answer:
            return await _read(answer, max_bytes)

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        url: str = "",
        *,
        headers: RequestHeaders = (),
        body: RequestBody = b"",
    ) -> AsyncGenerator[http11.Response]:
        """Send a request, and read its answer as it comes: `async for chunk in answer.body`. Raises like `request`."""
        where, sent = urljoin(self._oauth.server_url, url), _fields(headers)
        async with AsyncExitStack() as closing:
            connections = await closing.enter_async_context(self._kept())

            async def send(credential: Headers) -> _Opened:
                carried = (*_without(sent, [name for name, _ in credential]), *credential)
                async with AsyncExitStack() as ends:
                    answer = await ends.enter_async_context(connections.stream(method, where, carried, body))
                    return _Opened(answer, ends.pop_all())

            opened = await send_authorized_async(
                self._oauth, where, send, _heard, _drop, replayable=isinstance(body, bytes)
            )
            async with opened.ends:
                yield opened.answer

    def _kept(self) -> AbstractAsyncContextManager[Connections]:
        """The connections of this client, or some for one request."""
        return self._oauth.connections() if self._connections is None else nullcontext(self._connections)


JSON = "application/json"


def _fields(headers: RequestHeaders) -> Headers:
    if isinstance(headers, Mapping):
        return tuple(cast("Mapping[str, str]", headers).items())
    return tuple(headers)


def _without(headers: Headers, names: Iterable[str]) -> Headers:
    dropped = {name.lower() for name in names}
    return tuple(each for each in headers if each[0].lower() not in dropped)


def _heard(opened: _Opened) -> Heard:
    return opened.answer.status, header_values(opened.answer.headers, "www-authenticate")


async def _drop(opened: _Opened) -> None:
    """Read a short answer to its end, so that its connection can be used again."""
    async with opened.ends:
        if is_short(header(opened.answer.headers, "content-length")):
            with suppress(ExchangeError, anyio.ClosedResourceError):
                async for _ in opened.answer.body:
                    pass
