"""The HTTP/1.1 client: what it sends, what it understands, and what it says when something is wrong."""

from __future__ import annotations

import gzip
import hashlib
import socket
import threading
import tracemalloc
from collections.abc import AsyncIterable
from typing import Any

import pytest

from mcp_oauth.io.http11 import Broken, Connections, NotSent
from tests.io.servers import PATIENCE
from tests.io.wires import EACH_LOOP, OK, Got, Peer, answering, ask, endless, get, one_by_one, pieces, run, wire

pytestmark = EACH_LOOP


# --- What is sent -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "sent"),
    [
        ("GET", "", (), b"", b"GET / HTTP/1.1\r\nHost: HOST\r\n\r\n"),
        ("GET", "/a%2Fb?c=d&e", (), b"", b"GET /a%2Fb?c=d&e HTTP/1.1\r\nHost: HOST\r\n\r\n"),
        ("GET", "/a#fragment", (), b"", b"GET /a HTTP/1.1\r\nHost: HOST\r\n\r\n"),
        ("GET", "?", (), b"", b"GET /? HTTP/1.1\r\nHost: HOST\r\n\r\n"),
        ("DELETE", "/", (), b"", b"DELETE / HTTP/1.1\r\nHost: HOST\r\n\r\n"),
        ("POST", "/", (), b"", b"POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 0\r\n\r\n"),
        ("POST", "/", (), b"body", b"POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 4\r\n\r\nbody"),
        (
            "GET",
            "/",
            (("B", "1"), ("host", "other.example"), ("a", "2"), ("B", "3")),
            b"",
            b"GET / HTTP/1.1\r\nhost: other.example\r\nB: 1\r\na: 2\r\nB: 3\r\n\r\n",
        ),
        (
            "POST",
            "/",
            (),
            (b"bo", b"", b"dy"),
            b"POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n",
        ),
        (
            "POST",
            "/",
            (("content-length", "4"),),
            (b"bo", b"dy"),
            b"POST / HTTP/1.1\r\nHost: HOST\r\ncontent-length: 4\r\n\r\nbody",
        ),
    ],
    ids=[
        "RFC9112-3.2.1-root",
        "RFC9112-3.2.1-byte-for-byte",
        "RFC9110-4.2.5-no-fragment",
        "empty-query",
        "RFC9110-8.6-no-body",
        "RFC9110-8.6-empty-body",
        "RFC9112-6.2-length",
        "RFC9112-3.2-host-first-order-kept",
        "RFC9112-7.1-chunked",
        "RFC9112-6.2-length-given",
    ],
)
def test_a_request_as_it_is_sent(
    backend: str, method: str, path: str, headers: Any, body: bytes | tuple[bytes, ...], sent: bytes
) -> None:
    """Nothing is added but what HTTP demands: no user agent, no accept, no connection."""
    seen: list[bytes] = []

    def script(peer: Peer) -> None:
        peer.say(OK.replace(b"OK\r\n", b"OK\r\nconnection: close\r\n"))
        seen.append(peer.rest())

    with wire(script) as server:
        content = body if isinstance(body, bytes) else pieces(*body)
        answer = ask(backend, method, server.origin + path, headers, content)
    assert isinstance(answer, Got)
    assert seen == [sent.replace(b"HOST", server.origin.removeprefix("http://").encode())]


@pytest.mark.parametrize(
    ("method", "url", "headers", "body", "reason"),
    [
        ("GET", "ftp://h/?CANARY", (), b"", "ftp://h/ is not a well-formed http(s) URL"),
        ("GET", "http://u:CANARY@h/", (), b"", "http://h/ is not a well-formed http(s) URL"),
        ("CONNECT", "{}", (), b"", "a tunnel is no request: this client makes its own"),
        ("GE T", "{}", (), b"", "the request's method or headers are not what HTTP allows"),
        ("GET", "{}", (("a", "CANARY\n"),), b"", "the request's method or headers are not what HTTP allows"),
        ("GET", "{}", (("a", "CANARYé"),), b"", "the request's method or headers are not what HTTP allows"),
        (
            "POST",
            "{}",
            (("content-length", "3"),),
            b"CANARY",
            "the request's body is not as long as its content-length",
        ),
        (
            "POST",
            "{}",
            (("content-length", "9"),),
            b"CANARY",
            "the request's body is not as long as its content-length",
        ),
        (
            "POST",
            "{}",
            (("Content-Length", "6"), ("transfer-encoding", "chunked")),
            b"CANARY",
            "a request has a content-length or a transfer-encoding, not both",
        ),
        ("POST", "{}", (("Host", "a"), ("host", "CANARY")), b"", "the request's method or headers are not what HTTP"),
    ],
    ids=[
        "scheme",
        "userinfo",
        "tunnel",
        "method",
        "RFC9112-11.1-newline",
        "non-ascii",
        "too-long",
        "too-short",
        "RFC9112-6.2-two-framings",
        "RFC9112-3.2-two-hosts",
    ],
)
def test_RULES_4_9_a_request_that_cannot_be_is_not_sent(
    backend: str, method: str, url: str, headers: Any, body: bytes, reason: str
) -> None:
    seen: list[bytes] = []
    with wire(lambda peer: seen.append(peer.rest())) as server:
        error = ask(backend, method, url.format(server.origin), headers, body)
    assert type(error) is NotSent
    assert str(error).startswith(reason)
    assert b"".join(seen) == b""


# --- What comes back --------------------------------------------------------------------------------------------------

ZIPPED = gzip.compress(b"hello")
ANSWERS = {
    "RFC9112-6.2-length": ("GET", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", 200, b"hello"),
    "RFC9112-7.1-chunked": (
        "GET",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\na: trailer\r\n\r\n",
        200,
        b"hello",
    ),
    "RFC9112-6.3-until-closed": ("GET", b"HTTP/1.1 200 OK\r\n\r\nhello", 200, b"hello"),
    "RFC9112-6.3-http-1.0": ("GET", b"HTTP/1.0 200 OK\r\ncontent-type: a\r\n\r\nhello", 200, b"hello"),
    "RFC9110-9.3.2-head": ("HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", 200, b""),
    "RFC9110-15.3.5-204": ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
    "RFC9110-15.4.5-304": ("GET", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", 304, b""),
    "RFC9110-15.2-1xx-skipped": (
        "GET",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        200,
        b"hello",
    ),
    "RULES-1.4-redirect-not-followed": (
        "GET",
        b"HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n",
        302,
        b"",
    ),
    "gzip-untouched": (
        "GET",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n%b" % (len(ZIPPED), ZIPPED),
        200,
        ZIPPED,
    ),
    "no-reason": ("GET", b"HTTP/1.1 200\r\ncontent-length: 0\r\n\r\n", 200, b""),
}


@pytest.mark.parametrize("slowly", [False, True], ids=["at-once", "byte-by-byte"])
@pytest.mark.parametrize(("method", "answer", "status", "body"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_is_read(backend: str, method: str, answer: bytes, status: int, body: bytes, slowly: bool) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.say(*(one_by_one(answer) if slowly else (answer,)))

    with wire(script) as server:
        got = ask(backend, method, server.origin)
    assert isinstance(got, Got), got
    assert (got.status, got.body) == (status, body)


def test_headers_keep_their_order_and_come_in_lower_case(backend: str) -> None:
    head = b"HTTP/1.1 200 OK\r\nB: 1\r\nSet-Cookie: a\r\na: \xe9\r\nSet-Cookie: b\r\nContent-Length: 0\r\n\r\n"
    with wire(answering(head)) as server:
        got = ask(backend, "GET", server.origin)
    assert isinstance(got, Got)
    assert got.headers == (
        ("b", "1"),
        ("set-cookie", "a"),
        ("a", "é"),
        ("set-cookie", "b"),
        ("content-length", "0"),
    )


CLOSED = "the server closed the connection without an answer"
CUT = "the server closed the connection within its answer"
NONSENSE = "the answer is not HTTP/1.1"
BROKEN = {
    "nothing": (b"", CLOSED),
    "cut-status": (b"HTTP/1.1 200 CANARY", CUT),
    "cut-head": (b"HTTP/1.1 200 OK\r\nx: CANARY\r\n", CUT),
    "cut-after-1xx": (b"HTTP/1.1 100 Continue\r\n\r\n", CUT),
    "RFC9112-8-cut-length": (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nCANARY", CUT),
    "RFC9112-8-cut-chunk": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nCANARY", CUT),
    "RFC9112-8-cut-before-last-chunk": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n6\r\nCANARY\r\n", CUT),
    "not-http": (b"SSH-2.0-CANARY\r\n\r\n", NONSENSE),
    "http-2": (b"HTTP/2 200 CANARY\r\n\r\n", NONSENSE),
    "no-end-of-line": (b"CANARY" * 20_000, "the head of the answer is longer than 65536 bytes"),
    "header-bomb": (
        b"HTTP/1.1 200 OK\r\n" + b"x: CANARY\r\n" * 20_000,
        "the head of the answer is longer than 65536 bytes",
    ),
    "nul-in-header": (b"HTTP/1.1 200 OK\r\nx: \x00CANARY\r\n\r\n", NONSENSE),
    "RFC9112-5.2-space-before-colon": (b"HTTP/1.1 200 OK\r\nx : CANARY\r\n\r\n", NONSENSE),
    "RFC9112-6.3-two-lengths": (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nCANARY", NONSENSE),
    "RFC9112-6.1-unknown-coding": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: CANARY\r\n\r\n", NONSENSE),
    "bad-chunk": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nCANARY\r\n", NONSENSE),
    "RFC9110-7.8-unasked-switch": (b"HTTP/1.1 101 CANARY\r\n\r\n", NONSENSE),
}


@pytest.mark.parametrize(("answer", "reason"), BROKEN.values(), ids=BROKEN)
def test_RULES_4_9_a_broken_answer_is_told_and_not_quoted(backend: str, answer: bytes, reason: str) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.say(answer)

    with wire(script) as server:
        error = ask(backend, "GET", server.origin)
    assert type(error) is Broken
    assert str(error) == reason


def test_RFC9110_7_8_a_switch_of_protocols_is_refused_even_if_asked_for(backend: str) -> None:
    switch = b"HTTP/1.1 101 Switching\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"
    with wire(answering(switch)) as server:
        error = ask(backend, "GET", server.origin, (("upgrade", "websocket"), ("connection", "upgrade")))
    assert type(error) is Broken
    assert "switched to another protocol" in str(error)


def test_an_answer_shows_its_status_alone(backend: str) -> None:
    async def main(origin: str) -> str:
        async with Connections() as pool, pool.stream("GET", origin) as response:
            return repr(response)

    with wire(answering(b"HTTP/1.1 200 OK\r\nset-cookie: CANARY\r\ncontent-length: 6\r\n\r\nCANARY")) as server:
        assert run(backend, lambda: main(server.origin)) == "Response(status=200)"


# --- Streams ----------------------------------------------------------------------------------------------------------


def test_a_piece_is_there_while_the_server_still_writes(backend: str) -> None:
    first_was_read = threading.Event()

    def script(peer: Peer) -> None:
        peer.head()
        peer.say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        assert first_was_read.wait(PATIENCE)
        peer.say(b"6\r\nsecond\r\n0\r\n\r\n")

    async def main(origin: str) -> list[bytes]:
        seen: list[bytes] = []
        async with Connections() as pool, pool.stream("GET", origin) as response:
            async for piece in response.body:
                seen.append(piece)
                first_was_read.set()
        return seen

    with wire(script) as server:
        assert run(backend, lambda: main(server.origin)) == [b"first", b"second"]


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_a_body_of_64_MB_passes_through_little_memory(backend: str, chunked: bool) -> None:
    piece = bytes(1 << 16)

    def script(peer: Peer) -> None:
        peer.head()
        framing = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % (1024 * len(piece))
        peer.say(b"HTTP/1.1 200 OK\r\n", framing, b"\r\n\r\n")
        for _ in range(1024):
            peer.say(*((b"10000\r\n", piece, b"\r\n") if chunked else (piece,)))
        peer.say(b"0\r\n\r\n" if chunked else b"")

    async def main(origin: str) -> tuple[int, int]:
        total = 0
        async with Connections() as pool, pool.stream("GET", origin) as response:
            tracemalloc.start()
            async for part in response.body:
                total += len(part)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return total, peak

    with wire(script) as server:
        total, peak = run(backend, lambda: main(server.origin))
    assert total == 64 << 20
    assert peak < 4 << 20


@pytest.mark.parametrize("kind", ["bytes", "iterable"])
def test_a_long_request_body_arrives_as_it_is(backend: str, kind: str) -> None:
    content = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(1 << 18))
    seen: list[bytes] = []

    def script(peer: Peer) -> None:
        peer.head()
        seen.append(peer.body(len(content)))
        peer.say(OK)

    with wire(script) as server:
        body: bytes | AsyncIterable[bytes] = content if kind == "bytes" else pieces(content[:1], content[1:])
        got = ask(backend, "POST", server.origin, (("content-length", str(len(content))),), body)
    assert isinstance(got, Got)
    assert hashlib.sha256(seen[0]).digest() == hashlib.sha256(content).digest()


@pytest.mark.parametrize("lingers", [False, True], ids=["server-reads-no-more", "RFC9112-9.6-server-closes"])
def test_RFC9112_9_5_an_early_refusal_ends_the_request_body(backend: str, lingers: bool) -> None:
    """Even one without end."""
    answered = threading.Event()

    def script(peer: Peer) -> None:
        peer.head()
        peer.say(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
        if lingers:
            peer.sock.shutdown(socket.SHUT_WR)
            peer.rest()
        assert answered.wait(PATIENCE)

    async def main(origin: str) -> int:
        async with Connections() as pool:
            got = await get(pool, "POST", origin, (), endless())
            answered.set()
            return got.status

    with wire(script) as server:
        assert run(backend, lambda: main(server.origin)) == 413


def test_an_early_success_does_not_end_the_request_body(backend: str) -> None:
    seen: list[bytes] = []

    def script(peer: Peer) -> None:
        peer.head()
        peer.say(OK)
        seen.append(peer.body(1 << 22))

    with wire(script) as server:
        got = ask(backend, "POST", server.origin, (("content-length", str(1 << 22)),), bytes(1 << 22))
    assert isinstance(got, Got)
    assert len(seen[0]) == 1 << 22


class Countdown:
    """An async iterator that is no generator."""

    def __init__(self, pieces: int) -> None:
        self.pieces = pieces

    def __aiter__(self) -> Countdown:
        return self

    async def __anext__(self) -> bytes:
        if not self.pieces:
            raise StopAsyncIteration
        self.pieces -= 1
        return b"x"


def test_a_request_body_may_be_any_async_iterable(backend: str) -> None:
    seen: list[bytes] = []

    def script(peer: Peer) -> None:
        peer.head()
        seen.append(peer.body(3))
        peer.say(OK)

    with wire(script) as server:
        got = ask(backend, "PUT", server.origin, (("content-length", "3"),), Countdown(3))
    assert isinstance(got, Got)
    assert seen == [b"xxx"]


def test_what_a_request_body_raises_is_raised_as_it_is(backend: str) -> None:
    class OwnError(BaseException):
        pass

    ended: list[bool] = []

    async def body() -> Any:
        try:
            yield b"some"
            raise OwnError
        finally:
            ended.append(True)

    with wire(Peer.rest) as server, pytest.raises(OwnError):
        ask(backend, "POST", server.origin, (), body())
    assert ended == [True]


@pytest.mark.parametrize("said", [3, 9], ids=["too-long", "too-short"])
def test_RULES_4_9_a_request_body_of_another_length_than_it_said_may_have_arrived(backend: str, said: int) -> None:
    with wire(Peer.rest) as server:
        error = ask(backend, "POST", server.origin, (("content-length", str(said)),), pieces(b"some", b"more"[:1]))
    assert type(error) is Broken
    assert str(error) == "the request's body is not as long as its content-length says"


def test_a_request_body_is_closed_when_the_server_goes_away(backend: str) -> None:
    ended: list[bool] = []

    async def body() -> Any:
        try:
            while True:
                yield bytes(65536)
        finally:
            ended.append(True)

    with wire(Peer.head) as server:
        error = ask(backend, "POST", server.origin, (), body())
    assert type(error) is Broken
    assert ended == [True]
