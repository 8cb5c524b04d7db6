"""Connections kept for the next request. As many as there are requests at a time; of the idle ones a few."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import NamedTuple

import anyio
import h11

from mcp_oauth.io.http11.connection import Body, Connection, Response
from mcp_oauth.io.http11.dialing import Connect, dial
from mcp_oauth.io.http11.errors import Broken, NotSent
from mcp_oauth.io.http11.proxy import Proxy, read_proxy
from mcp_oauth.io.http11.request import RequestBody, h11_request
from mcp_oauth.io.sending import environment_proxy
from mcp_oauth.sansio import uris
from mcp_oauth.sansio.messages import Headers

MOST_IDLE = 10
"""Idle connections kept for each origin."""

IDLE_SECONDS = 4.0
"""How long they are kept. uvicorn and Node close theirs after 5: a request that meets the end cannot be repeated."""

# The methods that ask for nothing to be done (RFC 9110 section 9.2.1), so that asking twice is once.
_SAFE = ("GET", "HEAD", "OPTIONS")


_Answered = tuple[Connection, h11.Response]


class _Idle(NamedTuple):
    connection: Connection
    until: float


class Connections:
    """An HTTP/1.1 client for one event loop; an async context manager, which closes what is idle at its end."""

    def __init__(
        self,
        *,
        connect: Connect = anyio.connect_tcp,
        ssl_context: ssl.SSLContext | None = None,
        proxy: str | None = None,
    ) -> None:
        """None stands for `default_context` and for the proxy that the environment names, for https only.

        `connect` makes the streams beneath TLS. `proxy` is a URL, with user:password@ if need be; it is read when
        there is something to send.
        """
        self._connect = connect
        self._context = ssl_context
        self._proxy = proxy
        self._idle: dict[str, list[_Idle]] = {}
        self._closed = False

    async def __aenter__(self) -> Connections:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._closed = True
        for connection in self._taken_out(lambda _: []):
            await connection.aclose()

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        url: str,
        headers: Iterable[tuple[str, str]] = (),
        body: RequestBody = b"",
        *,
        connect_seconds: float | None = None,
    ) -> AsyncGenerator[Response]:
        """Send one request; inside the context its answer can be read.

        An iterable body goes in chunks, unless `headers` has a content-length; one that the server does not want to
        its end is not sent to its end. `connect_seconds` limits the way to the server, TLS included.

        A connection whose answer was read to its end is used again. If it turns out to be closed by the server, a
        safe request is sent once more on a new one; any other fails (RULES 4.9).

        Raises `NotSent`, `Broken`, and what the body raises.
        """
        if self._closed:
            raise anyio.ClosedResourceError
        parts = uris.split(url)
        if parts is None:
            raise NotSent(f"{uris.without_query(url)} is not a well-formed http(s) URL")
        origin = uris.origin(url)
        proxy = None if self._proxy is None else read_proxy(self._proxy)
        request = h11_request(method, origin, parts, tuple(headers), body, proxy)
        repeatable = method in _SAFE and isinstance(body, bytes)
        answered = await self._ask_idle(origin, request, body, repeatable)
        if answered is None:
            answered = await _asked(await self._connected(url, parts, proxy, connect_seconds), request, body)
        connection, head = answered
        received = Body(connection)
        try:
            yield Response(head.status_code, _headers(head), received)
        finally:
            received.detach()
            await self._keep(origin, connection)

    async def _ask_idle(
        self, origin: str, request: h11.Request, body: RequestBody, repeatable: bool
    ) -> _Answered | None:
        """Ask on an idle connection; None where there is none, or it turned out to be closed and nothing is lost."""
        connection = await self._take(origin)
        if connection is None:
            return None
        try:
            return await _asked(connection, request, body)
        except Broken:
            if connection.heard or not repeatable:
                raise
            return None

    async def _connected(self, url: str, parts: uris.Url, proxy: Proxy | None, seconds: float | None) -> Connection:
        if proxy is None and (named := environment_proxy(url)):
            proxy = read_proxy(named)
        try:
            with anyio.fail_after(seconds):
                return Connection(await dial(parts, self._connect, self._context, proxy))
        except TimeoutError:
            raise NotSent(f"no connection to {parts.host} port {parts.port} within {seconds} seconds") from None

    # --- Idle connections -----------------------------------------------------------------------------------------

    async def _take(self, origin: str) -> Connection | None:
        """The connection that was used last, if one can be used again."""
        idle = self._idle.get(origin, [])
        while idle:
            connection, until = idle.pop()
            if anyio.current_time() < until and connection.quiet:
                return connection
            await connection.aclose()
        return None

    async def _keep(self, origin: str, connection: Connection) -> None:
        if self._closed or not connection.finish():
            await connection.aclose()
            return
        now = anyio.current_time()
        self._idle.setdefault(origin, []).append(_Idle(connection, now + IDLE_SECONDS))
        for surplus in self._taken_out(lambda idle: [one for one in idle[-MOST_IDLE:] if now < one.until]):
            await surplus.aclose()

    def _taken_out(self, keep: Callable[[list[_Idle]], list[_Idle]]) -> list[Connection]:
        """All connections but those to `keep` of each origin. At once: other tasks take theirs from the same lists."""
        out: list[Connection] = []
        for origin, idle in tuple(self._idle.items()):
            kept = keep(idle)
            out += [one.connection for one in idle if one not in kept]
            idle[:] = kept
            if not kept:
                del self._idle[origin]
        return out


async def _asked(connection: Connection, request: h11.Request, body: RequestBody) -> _Answered:
    """The head of the answer, or a closed connection."""
    try:
        return connection, await connection.exchange(request, body)
    except BaseException:
        await connection.aclose()
        raise


def _headers(head: h11.Response) -> Headers:
    return tuple((name.decode("ascii"), value.decode("latin-1")) for name, value in head.headers)
