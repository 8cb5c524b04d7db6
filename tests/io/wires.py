"""Servers and proxies on real loopback sockets that say exactly the bytes they are told, and see exactly what comes."""

from __future__ import annotations

import select
import socket
import ssl
import threading
import types
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any, NamedTuple

import anyio
import pytest
import trustme

from mcp_oauth.io.http11 import Connections, ExchangeError
from tests.io.servers import PATIENCE

EACH_LOOP = pytest.mark.parametrize("backend", ["asyncio", "trio"])
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Peer:
    """The server's side of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._read = b""

    def head(self) -> bytes:
        """The next request's head, or what came of it before the end."""
        while b"\r\n\r\n" not in self._read and (data := self.sock.recv(65536)):
            self._read += data
        head, end, self._read = self._read.partition(b"\r\n\r\n")
        return head + end

    def body(self, length: int) -> bytes:
        """That many bytes, or what came of them before the end."""
        while len(self._read) < length and (data := self.sock.recv(65536)):
            self._read += data
        body, self._read = self._read[:length], self._read[length:]
        return body

    def say(self, *parts: bytes) -> None:
        for part in parts:
            self.sock.sendall(part)

    def rest(self) -> bytes:
        """All that comes until the client closes."""
        with suppress(ConnectionError, ssl.SSLError):
            while data := self.sock.recv(65536):
                self._read += data
        return self._read


Script = Callable[[Peer], object]


class Wire:
    """A server whose every connection is one run of a script."""

    def __init__(self, listener: socket.socket, script: Script, tls: ssl.SSLContext | None) -> None:
        self._listener, self._script, self._tls = listener, script, tls
        host, port = listener.getsockname()[:2]
        self.port = port
        self.origin = f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
        self.threads: list[threading.Thread] = []

    @property
    def connections(self) -> int:
        """How many there have been."""
        return len(self.threads)

    def serve(self) -> None:
        with suppress(OSError):
            while True:
                accepted = self._listener.accept()[0]
                self.threads.append(threading.Thread(target=self._run, args=(accepted,)))
                self.threads[-1].start()

    def _run(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE)
        with sock, suppress(OSError):
            if self._tls is None:
                self._script(Peer(sock))
                return
            with self._tls.wrap_socket(sock, server_side=True) as secured:
                self._script(Peer(secured))

    def settle(self) -> None:
        """Wait for all scripts to end: those that read the `rest` end when the client has closed."""
        for thread in self.threads:
            thread.join(PATIENCE / 2)
            assert not thread.is_alive(), "a connection was left open"


@contextmanager
def wire(script: Script, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> Generator[Wire]:
    """A server on a free port of loopback. At the end all its connections must have been closed."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family, backlog=128) as listener:
        server = Wire(listener, script, tls)
        accepting = threading.Thread(target=server.serve)
        accepting.start()
        try:
            yield server
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            server.settle()


def answering(*answers: bytes) -> Script:
    """One answer for each request of a connection, then the end of it."""

    def script(peer: Peer) -> None:
        for answer in answers:
            peer.head()
            peer.say(answer)

    return script


def staying(answer: bytes) -> Script:
    """The same answer to all requests, for as long as the client keeps the connection."""

    def script(peer: Peer) -> None:
        while peer.head():
            peer.say(answer)

    return script


class Trust(NamedTuple):
    """A certificate authority of our own: a server's side and a client's."""

    server: ssl.SSLContext
    client: ssl.SSLContext


def trust(*names: str) -> Trust:
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.create_default_context()
    authority.issue_cert(*names).configure_cert(server)
    authority.configure_trust(client)
    return Trust(server, client)


def tunnelling(heads: list[bytes], port: int | None = None) -> Script:
    """A CONNECT proxy; whatever name it is asked for, it goes to `port` of loopback."""

    def script(peer: Peer) -> None:
        heads.append(peer.head())
        if not heads[-1]:
            return
        with socket.create_connection(("127.0.0.1", port or 0), timeout=PATIENCE) as there:
            peer.say(b"HTTP/1.1 200 Connection established\r\n\r\n")
            _forward(peer.sock, there)

    return script


def _forward(*ends: socket.socket) -> None:
    """Until one of the two is done. In one thread: two may not use one TLS connection at once."""
    with suppress(OSError):
        while ready := _buffered(ends) or select.select(ends, [], [], PATIENCE)[0]:
            for end in ready:
                if not (data := end.recv(65536)):
                    return
                ends[end is ends[0]].sendall(data)


def _buffered(ends: Iterable[socket.socket]) -> list[socket.socket]:
    """Those with data that TLS has read already."""
    return [end for end in ends if isinstance(end, ssl.SSLSocket) and end.pending()]


# --- The client's side ------------------------------------------------------------------------------------------------


class Got(NamedTuple):
    """A whole answer."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


async def get(
    pool: Connections,
    method: str,
    url: str,
    headers: Iterable[tuple[str, str]] = (),
    body: bytes | AsyncIterable[bytes] = b"",
    **options: Any,
) -> Got:
    async with pool.stream(method, url, headers, body, **options) as response:
        return Got(response.status, response.headers, b"".join([piece async for piece in response.body]))


def ask(
    backend: str,
    method: str,
    url: str,
    headers: Iterable[tuple[str, str]] = (),
    body: bytes | AsyncIterable[bytes] = b"",
    *,
    connect_seconds: float | None = None,
    **options: Any,
) -> Got | ExchangeError:
    """One request by connections of its own, and what comes of it."""

    async def main() -> Got | ExchangeError:
        async with Connections(**options) as pool:
            try:
                return await get(pool, method, url, headers, body, connect_seconds=connect_seconds)
            except ExchangeError as error:
                return error

    answer: Got | ExchangeError = run(backend, main)
    return answer


def run(backend: str, main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    async def bounded() -> Any:
        with anyio.fail_after(PATIENCE):
            return await main()

    return anyio.run(bounded, backend=backend)


@types.coroutine
def interrupted(work: Coroutine[Any, Any, Any], at: int, interrupt: Callable[[], object]) -> Generator[Any, Any, bool]:
    """Await `work`, with an interruption where it suspends for the `at`th time; whether it came so far."""
    resume: Callable[[Any], Any] = work.send
    value: Any = None
    for step in count(1):
        try:
            suspended = resume(value)
        except StopIteration:
            return step > at
        if step == at:
            interrupt()
        try:
            value = yield suspended
            resume = work.send
        except BaseException as error:
            value, resume = error, work.throw
    raise AssertionError


def pieces(*all_of_them: bytes) -> AsyncIterable[bytes]:
    async def generate() -> AsyncIterator[bytes]:
        for piece in all_of_them:
            await anyio.lowlevel.checkpoint()
            yield piece

    return generate()


def endless(piece: bytes = bytes(65536)) -> AsyncIterable[bytes]:
    async def generate() -> AsyncIterator[bytes]:
        while True:
            yield piece

    return generate()


def one_by_one(data: bytes) -> Iterator[bytes]:
    """Each byte."""
    return (data[at : at + 1] for at in range(len(data)))
