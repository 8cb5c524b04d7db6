"""The loopback listener of one login (RFC 8252 section 7.3; RULES 6.1, 6.2).

    the browser                          the listener
    GET /start/<nonce>               ->  a cookie that marks this browser, and 303 to the authorization URL
    ... the person logs in ...
    GET /callback/...?code=&state=   ->  cookie and state are ours: the URL goes to the flight,
                                         the browser by 303 to a URL without the code
    GET /done/<nonce>                ->  what the person is told; the end

`Callback` decides and does no I/O; `serve` moves the bytes. Any other request gets a neutral answer and changes
nothing, so neither a prefetch nor another program nor a web page can end the wait or slip a code in. What the
redirect says (`iss`, `error`, `code`, duplicates) is for the core to judge: the URL is handed on as it came.

Nothing of a request is shown, and nothing is logged.
"""

from __future__ import annotations

import errno
import secrets
import socket
import sys
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import ExitStack, suppress
from http import HTTPStatus
from typing import NamedTuple

import anyio
import h11
from anyio.abc import SocketStream, TaskGroup

from mcp_oauth.io.pages import FAILURE, NO_PAGE_POLICY, NOT_OURS, SUCCESS, TWO_BROWSERS, Page
from mcp_oauth.sansio.uris import origin, query_params, split

LOOPBACK = {"127.0.0.1": ("127.0.0.1",), "[::1]": ("::1",), "localhost": ("127.0.0.1", "::1")}
"""The hosts of a redirect URI that can be listened on, and the addresses that a browser may take them for."""

_ATTEMPTS = 20
_BACKLOG = 128
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
_RETRY = 0.1

_SECURITY = (
    ("Cache-Control", "no-store"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
    ("Connection", "close"),
)
_NAVIGATION = ((b"sec-fetch-mode", b"navigate"), (b"sec-fetch-dest", b"document"))
# The second is Chrome's old name and Safari's, the third Firefox's old one.
_SPECULATION = (b"sec-purpose", b"purpose", b"x-purpose", b"x-moz")


class UserError(Exception):
    """The person or the user agent is not to be had. The message names the cause and the cure, and no secret."""


class Limits(NamedTuple):
    """What one listener gives to whoever connects."""

    head: int = 16 * 1024
    """Bytes of a request's head; a longer one is dropped."""
    seconds: float = 10.0
    """How long a connection may live."""
    connections: int = 64
    """How many at once; for one more the oldest is dropped, so that idle ones cannot keep the browser out."""
    closing: float = 1.0
    """Seconds for the browser to close a connection that was answered."""
    farewell: float = 2.0
    """Seconds for the browser to fetch the last page, counted from the redirect."""


LIMITS = Limits()


class Reply(NamedTuple):
    """What a request is answered."""

    status: HTTPStatus
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""
    last: bool = False
    """The login is over for the browser once it has this."""


class Callback:
    """What the listener of one login answers, and the redirect that it waits for."""

    def __init__(self, redirect_uri: str, success: Page = SUCCESS, failure: Page = FAILURE) -> None:
        """`redirect_uri` is http, on loopback and with its port; the pages are for its two ends."""
        parts = split(redirect_uri)
        if parts is None:
            raise ValueError("not an absolute http(s) URL")
        self.redirect_uri = redirect_uri
        self.redirected: Future[str] = Future()
        """The whole redirect URL; or fails with `UserError`. Whoever settles it first wins."""
        self._origin = origin(redirect_uri)
        self._path = parts.path or "/"
        self._start = f"/start/{secrets.token_urlsafe(32)}"
        self._done = f"/done/{secrets.token_urlsafe(32)}"
        # Cookies know no ports: another login's must not overwrite ours.
        self._cookie = (f"mcp-oauth-{parts.port}", secrets.token_urlsafe(32))
        self._success, self._failure = success, failure
        self._end = failure
        self._awaited: tuple[str, str] | None = None
        self._opened = False

    @property
    def start_url(self) -> str:
        """What to open in a browser instead of the authorization URL. On the redirect's own host: the cookie's."""
        return self._origin + self._start

    def expect(self, url: str, state: str) -> None:
        """From now on send the browser to the authorization URL `url` and await the redirect with `state`."""
        self._awaited = (url, state)

    def fail(self, reason: str) -> None:
        """End the wait with a `UserError`, unless the redirect came first."""
        with suppress(InvalidStateError):
            self.redirected.set_exception(UserError(reason))

    def answer(self, request: h11.Request) -> Reply:
        """What the sender of this request gets."""
        refused = self._refused(request)
        if refused is not None:
            return _plain(refused)
        target = request.target.decode("ascii")
        path = target.partition("?")[0]
        if _same(path, self._start) and self._awaited is not None:
            return self._sent_off(request, self._awaited[0])
        if path == self._path and self._awaited is not None:
            return self._came_back(request, target, self._awaited[1])
        if _same(path, self._done):
            return _html(HTTPStatus.OK, self._end, self._set_cookie("; Max-Age=0"))._replace(last=True)
        return _plain(HTTPStatus.NOT_FOUND)

    def _refused(self, request: h11.Request) -> HTTPStatus | None:
        """Why this is no navigation of a browser to us, whatever the path."""
        if request.method != b"GET":
            return HTTPStatus.METHOD_NOT_ALLOWED
        if [host.lower() for host in _values(request, b"host")] != [self._origin.partition("//")[2].encode()]:
            return HTTPStatus.MISDIRECTED_REQUEST
        if any(value != wanted for name, wanted in _NAVIGATION for value in _values(request, name)):
            return HTTPStatus.FORBIDDEN
        if any(_values(request, name) for name in _SPECULATION):
            return HTTPStatus.SERVICE_UNAVAILABLE
        return None

    def _sent_off(self, request: h11.Request, url: str) -> Reply:
        """To the authorization server, for one browser only.

        The start URL stands in the browser's process arguments, where other local users can read it. If one of them
        was faster, he would log us in as himself: two browsers end the login.
        """
        if self._opened and not self._is_our_browser(request):
            self.fail("two browsers opened the login's link; start the login again")
            return _html(HTTPStatus.GONE, TWO_BROWSERS)
        self._opened = True
        return _see_other(url, self._set_cookie())

    def _came_back(self, request: h11.Request, target: str, state: str) -> Reply:
        """From the authorization server: the first redirect is taken, its repetitions see the same page."""
        params = query_params(self._origin + target)
        ours = any(_same(value, state) for name, value in params if name == "state")
        if not (ours and self._is_our_browser(request)):
            return _html(HTTPStatus.BAD_REQUEST, NOT_OURS)
        if not self.redirected.done():
            names = {name for name, _ in params}
            self._end = self._success if "code" in names and "error" not in names else self._failure
            with suppress(InvalidStateError):
                self.redirected.set_result(self._origin + target)
        return _see_other(self._done)

    def _is_our_browser(self, request: h11.Request) -> bool:
        pairs = b";".join(_values(request, b"cookie")).decode("latin-1").split(";")
        ours = "=".join(self._cookie)
        return any(_same(pair.strip(), ours) for pair in pairs)

    def _set_cookie(self, attributes: str = "") -> tuple[str, str]:
        return ("Set-Cookie", f"{'='.join(self._cookie)}; Path=/; HttpOnly; SameSite=Lax{attributes}")


def _values(request: h11.Request, name: bytes) -> list[bytes]:
    return [value for key, value in request.headers if key == name]


def _same(given: str, secret: str) -> bool:
    return secrets.compare_digest(given.encode("utf-8", "surrogatepass"), secret.encode())


def _plain(status: HTTPStatus) -> Reply:
    allow = (("Allow", "GET"),) if status is HTTPStatus.METHOD_NOT_ALLOWED else ()
    headers = (("Content-Type", "text/plain; charset=utf-8"), ("Content-Security-Policy", NO_PAGE_POLICY), *allow)
    return Reply(status, headers, f"{status.phrase}\n".encode())


def _html(status: HTTPStatus, page: Page, *headers: tuple[str, str]) -> Reply:
    kind = ("Content-Type", "text/html; charset=utf-8")
    return Reply(status, (kind, ("Content-Security-Policy", page.policy), *headers), page.html)


def _see_other(location: str, *headers: tuple[str, str]) -> Reply:
    return Reply(HTTPStatus.SEE_OTHER, (("Location", location), ("Content-Security-Policy", NO_PAGE_POLICY), *headers))


# --- Sockets and bytes ------------------------------------------------------------------------------------------------


def bind(host: str, port: int | None = None) -> list[socket.socket]:
    """Sockets that listen on one port, on every address of a `LOOPBACK` host; `port` None: any free one.

    A port that is busy on one of them is not taken on the other: whoever holds it would get the browser's redirect.
    Only where the machine has no IPv6, `localhost` is 127.0.0.1 alone. Raises OSError.
    """
    attempts = 1 if port else _ATTEMPTS
    while True:
        attempts -= 1
        try:
            return _bind_all(LOOPBACK[host], port or 0)
        except OSError:
            if not attempts:
                raise


def _bind_all(addresses: Sequence[str], port: int) -> list[socket.socket]:
    with ExitStack() as opened:
        sockets: list[socket.socket] = []
        for address in addresses:
            try:
                sockets.append(opened.enter_context(_listening(address, port)))
            except OSError as error:
                if not sockets or error.errno not in _NO_IPV6:
                    raise
            port = sockets[0].getsockname()[1]
        opened.pop_all()
        return sockets


def _listening(address: str, port: int) -> socket.socket:
    with ExitStack() as opened:
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        opened.enter_context(sock)
        if sys.platform == "win32":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            # Here it lets nobody share a port that is listened on; it only forgives what the last login's connections
            # left behind (TIME_WAIT), without which a fixed port would be busy for a minute.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setblocking(False)
        sock.bind((address, port))
        sock.listen(_BACKLOG)
        opened.pop_all()
        return sock


async def serve(callback: Callback, sockets: Sequence[socket.socket], limits: Limits = LIMITS) -> None:
    """Serve one login on listening sockets, which stay the caller's to close.

    Returns when the browser has its last page, or `farewell` seconds after the wait ended, whichever is first;
    ends at once when cancelled.
    """
    async with anyio.create_task_group() as group:
        server = _Server(callback, limits, group)
        for sock in sockets:
            group.start_soon(server.accept, sock)


class _Server:
    def __init__(self, callback: Callback, limits: Limits, group: TaskGroup) -> None:
        self._callback = callback
        self._limits = limits
        self._group = group
        self._visits: dict[anyio.CancelScope, None] = {}  # the oldest first

    async def accept(self, listening: socket.socket) -> None:
        # Not by asyncio's sock_accept: cancelled in the wrong moment, it loses a connection without closing it.
        while True:
            try:
                await anyio.wait_readable(listening)
                connection, _ = listening.accept()
            except OSError:  # gone already, or no file descriptor is left
                await anyio.sleep(_RETRY)
            else:
                connection.setblocking(False)
                self._group.start_soon(self._visit, connection)

    async def _visit(self, connection: socket.socket) -> None:
        while len(self._visits) >= self._limits.connections:
            oldest = next(iter(self._visits))
            del self._visits[oldest]
            oldest.cancel()
        with anyio.move_on_after(self._limits.seconds) as scope, connection:
            self._visits[scope] = None
            # Garbage, TLS and broken connections get no answer.
            with suppress(h11.RemoteProtocolError, anyio.EndOfStream, anyio.BrokenResourceError):
                async with await _stream(connection) as stream:
                    await self._converse(stream)
        self._visits.pop(scope, None)

    async def _converse(self, stream: SocketStream) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.head - 1)
        request = await self._request(stream, connection)
        reply = self._callback.answer(request)
        if self._callback.redirected.done():
            end = anyio.current_time() + self._limits.farewell
            self._group.cancel_scope.deadline = min(end, self._group.cancel_scope.deadline)
        await stream.send(_encoded(connection, reply, has_body=request.method != b"HEAD"))
        await self._closed_by_peer(stream)
        if reply.last:
            self._group.cancel_scope.cancel()

    async def _request(self, stream: SocketStream, connection: h11.Connection) -> h11.Request:
        left = self._limits.head  # with the last of these bytes h11 finds an incomplete head too long
        while not isinstance(event := connection.next_event(), h11.Request):
            data = await stream.receive(left)
            left -= len(data)
            connection.receive_data(data)
        return event

    async def _closed_by_peer(self, stream: SocketStream) -> None:
        """Let the browser close first: what it may still send would reset the connection, and the answer with it."""
        with anyio.move_on_after(self._limits.closing), suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            while True:
                await stream.receive()


async def _stream(connection: socket.socket) -> SocketStream:
    try:
        return await SocketStream.from_socket(connection)
    except (OSError, ValueError) as error:  # the peer is gone already
        raise anyio.BrokenResourceError from error


def _encoded(connection: h11.Connection, reply: Reply, *, has_body: bool) -> bytes:
    headers = [*_SECURITY, *reply.headers, ("Content-Length", str(len(reply.body)))]
    events = (
        h11.Response(status_code=reply.status, reason=reply.status.phrase.encode(), headers=headers),
        h11.Data(data=reply.body if has_body else b""),
        h11.EndOfMessage(),
    )
    return b"".join(connection.send(event) or b"" for event in events)
