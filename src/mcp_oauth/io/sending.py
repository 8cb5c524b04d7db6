"""What the senders of all stacks share: a client of their own, limits, codings, deadlines, and what failures mean.

A driver says how to make a client, how to exchange one request for a response, and which of its stack's exceptions mean
that the server has certainly not seen the request. It opens `sender` or, where its stack blocks, `blocking_sender`.
"""

from __future__ import annotations

import socket
import threading
import time
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from types import TracebackType
from typing import Protocol, TypeVar

import anyio

from mcp_oauth.io.ports import Answer
from mcp_oauth.sansio.messages import Response
from mcp_oauth.sansio.steps import Send, SendFailed
from mcp_oauth.sansio.uris import split

Sender = Callable[[Send], Awaitable[Answer]]
BlockingSender = Callable[[Send], Answer]
Unsent = Callable[[Exception], "str | None"]
"""What to say of an exception that proves that the server has not seen the request (RULES 4.9); None: it may have."""

C = TypeVar("C")

NOT_CODED = ("accept-encoding", "identity")
"""Sent with every request. Who codes the answer all the same is decoded under the same limit."""


class UnreadableError(Exception):
    """A body that is too long, or in a coding that is broken or not known."""

    BROKEN = "the body's content coding is broken"


# --- Bodies -----------------------------------------------------------------------------------------------------------


class Body:
    """A body as it comes in: decoded, and given up at its limit."""

    def __init__(self, coding: str | None, most: int) -> None:
        """`coding` is the Content-Encoding, `most` the bytes that it may have decoded. Raises `UnreadableError`."""
        self._most = most
        self._body = bytearray()
        self._inflate = _inflater((coding or "").strip().lower())
        self._under_way = False
        """Something has come that is coded, and its end has not."""

    def add(self, chunk: bytes) -> None:
        """Take what came. Raises `UnreadableError`."""
        left = self._most - len(self._body)
        data = chunk if self._inflate is None else self._decoded(self._inflate, chunk, left + 1)
        if len(data) > left:
            raise UnreadableError(f"the body is longer than {self._most} bytes")
        self._body += data

    def _decoded(self, inflate: zlib._Decompress, chunk: bytes, most: int) -> bytes:
        try:
            data = inflate.decompress(chunk, most)
        except zlib.error:
            raise UnreadableError(UnreadableError.BROKEN) from None
        if inflate.unused_data:  # where all that follows the end would pile up
            raise UnreadableError(UnreadableError.BROKEN)
        self._under_way = not inflate.eof and (self._under_way or bool(chunk))
        return data

    def whole(self) -> bytes:
        """All of it. Raises `UnreadableError` for a coded body that was cut: half a form looks like a form."""
        if self._under_way:
            raise UnreadableError(UnreadableError.BROKEN)
        return bytes(self._body)


def _inflater(coding: str) -> zlib._Decompress | None:
    match coding:
        case "" | "identity":
            return None
        case "gzip" | "x-gzip":
            return zlib.decompressobj(zlib.MAX_WBITS | 16)
        case "deflate":
            return zlib.decompressobj(zlib.MAX_WBITS)
        case _:
            raise UnreadableError("the body has a content coding that was not asked for")


# --- In an event loop -------------------------------------------------------------------------------------------------


@asynccontextmanager
async def sender(
    client: Callable[[], AbstractAsyncContextManager[C]],
    exchange: Callable[[C, Send], Awaitable[Response]],
    unsent: Unsent,
) -> AsyncGenerator[Sender]:
    """How OAuth traffic is sent for one run of a machine; the client is made when there is something to send."""
    async with AsyncExitStack() as opened:
        clients: list[C] = []

        async def send(effect: Send) -> Answer:
            if not clients:
                try:
                    clients.append(await opened.enter_async_context(client()))
                except Exception as error:
                    return _no_client(error)
            answer: Answer = _too_late(effect)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_end_after, tasks.cancel_scope, effect.seconds)
                try:
                    answer = await exchange(clients[0], effect)
                except Exception as error:
                    answer = _failed(error, unsent)
                tasks.cancel_scope.cancel()
            return answer

        yield send


async def _end_after(scope: anyio.CancelScope, seconds: float) -> None:
    """Cancel after `seconds`, in two parts: a process that was stopped for longer first reads what has come."""
    for part in (0.9, 0.1):
        await anyio.sleep(part * seconds)
    scope.cancel()


def _no_client(error: Exception) -> SendFailed:
    """A factory of the caller's, a proxy that cannot be."""
    return SendFailed(f"no HTTP client: {type(error).__name__}", may_have_arrived=False)


def _too_late(effect: Send) -> SendFailed:
    return SendFailed(f"no answer within {effect.seconds:.0f} seconds", may_have_arrived=True)


def _failed(error: Exception, unsent: Unsent) -> SendFailed:
    said = unsent(error)
    if said is not None:
        return SendFailed(said, may_have_arrived=False)
    # Any other, also what a layer of the caller's raises: the token may be spent. Its text may quote the message.
    return SendFailed(str(error) if isinstance(error, UnreadableError) else type(error).__name__, may_have_arrived=True)


_UNTRUSTED = (18, 19, 20, 21)
"""OpenSSL's X509_V_ERR_*, as `ssl.SSLCertVerificationError` has them: self-signed, in the chain too; no issuer."""


def ca_hint(error: BaseException, option: str) -> str:
    """The cure, if it is a certificate that nobody vouches for who is trusted; `option` is how to name who does."""
    cause: BaseException | None = error
    while cause is not None:
        if getattr(cause, "verify_code", None) in _UNTRUSTED:
            return f"; if it is signed by an authority of your own, name that: {option}"
        cause = cause.__cause__ or cause.__context__
    return ""


# --- In a thread ------------------------------------------------------------------------------------------------------


class HasFileno(Protocol):
    """A socket, or what wraps one: TLS, TLS within TLS."""

    def fileno(self) -> int:
        """Its descriptor."""
        ...


class Deadline:
    """The end of one exchange of a stack that blocks: its sockets are shut down then, whatever they wait for."""

    def __init__(self, seconds: float) -> None:
        self.cut = False
        """They have been shut down, which looks like an end of what the server sent."""
        self._seconds = seconds
        self._end = time.monotonic() + seconds
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._over = threading.Event()

    @property
    def passed(self) -> bool:
        """It has come."""
        return time.monotonic() >= self._end

    def left(self) -> float:
        """Seconds until then, for the stack's own timeouts: never 0, which means none to some."""
        return max(self._end - time.monotonic(), 0.001)

    def watch(self, connection: HasFileno) -> None:
        """End this connection too. Raises `TimeoutError` where the end has come: nothing is sent any more."""
        with self._lock:
            if self.passed:
                raise TimeoutError("the deadline has passed")
            # A second handle: TLS takes the socket away from its first owner, who may close it meanwhile. Its family
            # is all the same to `shutdown`.
            self._sockets.append(socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM))

    def _cut(self) -> None:
        """At the end, in two parts: a process that was stopped for longer first reads what has come."""
        if any(self._over.wait(part * self._seconds) for part in (0.9, 0.1)):
            return
        with self._lock:
            self.cut = True
            for connection in self._sockets:
                with suppress(OSError):  # it was closed by the peer
                    connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Deadline:
        with suppress(RuntimeError):  # the interpreter ends and starts no thread: `left` must do
            threading.Thread(target=self._cut, name="mcp-oauth deadline", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._over.set()
        with self._lock:
            while self._sockets:
                self._sockets.pop().close()


@contextmanager
def blocking_sender(
    client: Callable[[], AbstractContextManager[C]],
    exchange: Callable[[C, Send, Deadline], Response],
    unsent: Unsent,
) -> Generator[BlockingSender]:
    """The same for a stack that blocks. `exchange` makes its sockets known to the `Deadline`."""
    with ExitStack() as opened:
        clients: list[C] = []

        def send(effect: Send) -> Answer:
            if not clients:
                try:
                    clients.append(opened.enter_context(client()))
                except Exception as error:
                    return _no_client(error)
            with Deadline(effect.seconds) as deadline:
                try:
                    response = exchange(clients[0], effect, deadline)
                except Exception as error:
                    failed = _failed(error, unsent)
                    return _too_late(effect) if deadline.passed and failed.may_have_arrived else failed
                if response.status < 200:  # what http.client takes for the last one
                    return SendFailed("an interim response", may_have_arrived=True)
                return _too_late(effect) if deadline.cut else response

        yield send


# --- Proxies ----------------------------------------------------------------------------------------------------------


def environment_proxy(url: str) -> str | None:
    """The proxy that the environment names for a URL, by HTTPS_PROXY, ALL_PROXY and NO_PROXY or the system's settings.

    For https only: plain http is for loopback (RULES 1.3), and a proxy would read the tokens on it, if it found the way
    at all.
    """
    from urllib.request import getproxies, proxy_bypass  # late: it imports much

    parts = split(url)
    if parts is None or parts.scheme != "https" or proxy_bypass(parts.host.strip("[]")):
        return None
    proxies = getproxies()
    proxy = proxies.get("https") or proxies.get("all")
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy
