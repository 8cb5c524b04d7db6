"""The HTTP/1.1 client: which connections are used again, what is asked twice, and that none is left open."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from itertools import count
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream
from anyio.streams.stapled import StapledByteStream

from mcp_oauth.io.http11 import Broken, Connections
from mcp_oauth.io.http11.readable import readable
from tests.io.servers import PATIENCE
from tests.io.wires import (
    EACH_LOOP,
    OK,
    Peer,
    Wire,
    answering,
    get,
    interrupted,
    pieces,
    run,
    staying,
    trust,
    tunnelling,
    wire,
)

pytestmark = EACH_LOOP

# --- Used again, or not -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "connections"),
    [
        (OK, 1),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 1),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 1),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok", 3),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", 3),
        (OK + b"HTTP/1.1 200 surplus\r\ncontent-length: 0\r\n\r\n", 3),
    ],
    ids=["length", "chunked", "204", "RFC9112-9.6-close", "http-1.0", "more-than-was-asked-for"],
)
def test_a_connection_is_used_again_after_a_whole_answer(backend: str, answer: bytes, connections: int) -> None:
    async def main(url: str) -> None:
        async with Connections() as pool:
            for _ in range(3):
                await get(pool, "POST", url, (), b"x")

    with wire(staying_with_bodies(answer)) as server:
        run(backend, lambda: main(server.origin))
    assert server.connections == connections


def test_a_connection_with_tls_is_used_again(backend: str) -> None:
    ours = trust("127.0.0.1")

    async def main(url: str) -> None:
        async with Connections(ssl_context=ours.client) as pool:
            for _ in range(3):
                await get(pool, "GET", url)

    with wire(staying(OK), tls=ours.server) as server:
        run(backend, lambda: main(server.origin))
    assert server.connections == 1


def staying_with_bodies(answer: bytes) -> Callable[[Peer], None]:
    def script(peer: Peer) -> None:
        while peer.head() and peer.body(1):
            peer.say(answer)

    return script


@pytest.mark.parametrize(
    ("answer", "connections"),
    [(OK, 1), (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok", 2), (b"HTTP/1.1 200 OK\r\n\r\nok", 2)],
    ids=["all-of-it-came", "more-to-come", "until-closed"],
)
def test_a_connection_whose_answer_was_not_read_is_used_again_only_if_it_all_came(
    backend: str, answer: bytes, connections: int
) -> None:
    async def main(url: str) -> None:
        async with Connections() as pool:
            for _ in range(2):
                async with pool.stream("GET", url):
                    pass

    with wire(staying(answer)) as server:
        run(backend, lambda: main(server.origin))
    assert server.connections == connections


def test_a_connection_whose_request_was_not_sent_to_its_end_is_not_used_again(backend: str) -> None:
    """Not even if all that misses is the last chunk's five bytes when the answer ends the request."""

    class Stuck(StapledByteStream):
        async def send(self, item: bytes) -> None:
            if item == b"0\r\n\r\n":
                stuck.set()
                await anyio.sleep_forever()
            await super().send(item)

    async def connect(host: str, port: int) -> ByteStream:
        stream = await anyio.connect_tcp(host, port)
        return Stuck(stream, stream)

    def script(peer: Peer) -> None:
        while peer.head():
            assert stuck.wait(PATIENCE)
            peer.say(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")

    async def main(url: str) -> None:
        async with Connections(connect=connect) as pool:
            for _ in range(2):
                await get(pool, "POST", url, (), pieces(b"x"))

    stuck = threading.Event()
    with wire(script) as server:
        run(backend, lambda: main(server.origin))
    assert server.connections == 2


def test_one_that_the_server_closed_meanwhile_is_not_used_again(backend: str) -> None:
    async def main(server: Wire) -> None:
        async with Connections() as pool:
            for served in (1, 2):
                await get(pool, "POST", server.origin)
                server.threads[served - 1].join(PATIENCE)

    with wire(answering(OK)) as server:
        run(backend, lambda: main(server))
    assert server.connections == 2


def test_a_closed_socket_is_not_quiet(backend: str) -> None:
    with socket.socket() as sock:
        pass
    assert readable(sock)


def test_one_that_was_idle_for_too_long_is_not_used_again(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(url: str) -> None:
        async with Connections() as pool:
            await get(pool, "GET", url)
            monkeypatch.setattr("mcp_oauth.io.http11.pool.IDLE_SECONDS", 0.0)
            await get(pool, "GET", url)
            await get(pool, "GET", url)

    with wire(staying(OK)) as server:
        run(backend, lambda: main(server.origin))
    assert server.connections == 2


def test_one_that_was_idle_when_its_time_came_is_closed_by_a_request_to_another_origin(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(one: Wire, other: Wire) -> None:
        async with Connections() as pool:
            now = anyio.current_time()
            await get(pool, "GET", one.origin)
            monkeypatch.setattr(anyio, "current_time", lambda: now + 100)
            await get(pool, "GET", other.origin)
            one.settle()

    with wire(staying(OK)) as one, wire(staying(OK)) as other:
        run(backend, lambda: main(one, other))


class Piped(StapledByteStream):
    """A stream that tells nothing of the socket beneath."""

    extra_attributes: Mapping[Any, Callable[[], Any]] = {}


def test_one_over_no_socket_cannot_be_looked_at_and_is_not_used_again(backend: str) -> None:
    async def connect(host: str, port: int) -> ByteStream:
        stream = await anyio.connect_tcp(host, port)
        return Piped(stream, stream)

    async def main(url: str) -> None:
        async with Connections(connect=connect) as pool:
            for _ in range(2):
                await get(pool, "GET", url)

    with wire(staying(OK)) as server:
        run(backend, lambda: main(server.origin))
    assert server.connections == 2


def test_the_origin_decides(backend: str) -> None:
    """Another name for the same address is another origin."""

    async def main(server: Wire) -> None:
        async with Connections() as pool:
            for host in ("127.0.0.1", "localhost", "LOCALHOST", "127.0.0.1"):
                await get(pool, "GET", f"HTTP://{host}:{server.port}/")

    with wire(staying(OK)) as server:
        run(backend, lambda: main(server))
    assert server.connections == 2


# --- Many at once -----------------------------------------------------------------------------------------------------


def test_50_requests_at_once_are_not_serialised_and_leave_10_connections(backend: str) -> None:
    all_are_here, closed = threading.Barrier(50), threading.Semaphore(0)

    def script(peer: Peer) -> None:
        peer.head()
        all_are_here.wait(PATIENCE)
        peer.say(OK)
        peer.rest()
        closed.release()

    async def main(url: str) -> bool:
        async with Connections() as pool:
            async with anyio.create_task_group() as tasks:
                for _ in range(50):
                    tasks.start_soon(get, pool, "GET", url)
            for _ in range(40):
                assert await anyio.to_thread.run_sync(closed.acquire, True, PATIENCE)
            return closed.acquire(blocking=False)

    with wire(script) as server:
        assert run(backend, lambda: main(server.origin)) is False
    assert server.connections == 50


# --- Asked twice, or not ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "body", "answer", "asked"),
    [
        ("GET", b"", b"", 3),
        ("HEAD", b"", b"", 3),
        ("OPTIONS", b"", b"", 3),
        ("POST", b"", b"", 2),
        ("DELETE", b"", b"", 2),
        ("GET", None, b"", 2),
        ("GET", b"", b"HTTP/1.1 2", 2),
    ],
    ids=[
        "RFC9112-9.3.1-get",
        "RFC9112-9.3.1-head",
        "RFC9112-9.3.1-options",
        "RULES-4.9-post",
        "RULES-4.9-delete",
        "body-is-spent",
        "an-answer-had-begun",
    ],
)
def test_a_request_on_a_closing_connection_is_sent_again_only_if_it_is_safe(
    backend: str, method: str, body: bytes | None, answer: bytes, asked: int
) -> None:
    """The server answers each connection's first request, and cuts at its second one."""
    seen: list[bytes] = []

    def script(peer: Peer) -> None:
        seen.append(peer.head())
        peer.say(b"HTTP/1.1 204 No Content\r\n\r\n")
        if head := peer.head():
            seen.append(head)
            peer.say(answer)

    async def main(url: str) -> None:
        async with Connections() as pool:
            await get(pool, "GET", url)
            await get(pool, method, url, (), pieces(b"x") if body is None else body)

    with wire(script) as server:
        if asked == 3:
            run(backend, lambda: main(server.origin))
        else:
            with pytest.raises(Broken):
                run(backend, lambda: main(server.origin))
    assert len(seen) == asked


def test_a_safe_request_is_sent_again_once(backend: str) -> None:
    seen: list[bytes] = []

    def script(peer: Peer) -> None:
        first = peer.head()
        seen.append(first)
        if b"/again" not in first:
            peer.say(OK)
            seen.append(peer.head())

    async def main(url: str) -> None:
        async with Connections() as pool:
            await get(pool, "GET", url)
            await get(pool, "GET", f"{url}/again")

    with wire(script) as server, pytest.raises(Broken):
        run(backend, lambda: main(server.origin))
    assert len(seen) == 3


# --- None is left open ------------------------------------------------------------------------------------------------


def test_the_end_closes_what_is_idle_and_then_what_comes_back(backend: str) -> None:
    async def main(idle: Wire, busy: Wire) -> None:
        async with anyio.create_task_group() as tasks:
            async with Connections() as pool:
                await get(pool, "GET", idle.origin)
                begun, ended = anyio.Event(), anyio.Event()
                tasks.start_soon(hold, pool, busy.origin, begun, ended)
                await begun.wait()
            idle.settle()
            ended.set()

    async def hold(pool: Connections, url: str, begun: anyio.Event, ended: anyio.Event) -> None:
        async with pool.stream("GET", url) as response:
            begun.set()
            await ended.wait()
            assert b"".join([piece async for piece in response.body]) == b"ok"

    with wire(staying(OK)) as idle, wire(staying(OK)) as busy:
        run(backend, lambda: main(idle, busy))


def test_the_end_closes_all_that_is_idle_if_cancelled_too(backend: str) -> None:
    async def main(one: Wire, other: Wire) -> None:
        with anyio.CancelScope() as scope:
            async with Connections() as pool:
                await get(pool, "GET", one.origin)
                await get(pool, "GET", other.origin)
                scope.cancel()
        for server in (one, other):
            await anyio.to_thread.run_sync(server.settle)

    with wire(staying(OK)) as one, wire(staying(OK)) as other:
        run(backend, lambda: main(one, other))


def test_after_its_end_nothing_is_sent(backend: str) -> None:
    async def main(url: str) -> None:
        async with Connections() as pool:
            pass
        with pytest.raises(anyio.ClosedResourceError):
            await get(pool, "GET", url)

    with wire(staying(OK)) as server:
        run(backend, lambda: main(server.origin))
    assert server.connections == 0


def test_a_body_ends_with_its_context(backend: str) -> None:
    """Its connection may be another request's by now."""

    async def main(url: str) -> None:
        async with Connections() as pool:
            async with pool.stream("GET", url) as response:
                assert [piece async for piece in response.body] == [b"ok"]
                assert [piece async for piece in response.body] == []
            with pytest.raises(anyio.ClosedResourceError):
                await anext(response.body)

    with wire(staying(OK)) as server:
        run(backend, lambda: main(server.origin))


def test_an_error_of_the_callers_is_his_own(backend: str) -> None:
    async def main(url: str) -> None:
        async with Connections() as pool, pool.stream("GET", url):
            raise LookupError

    with wire(staying(b"HTTP/1.1 200 OK\r\n\r\n")) as server, pytest.raises(LookupError):
        run(backend, lambda: main(server.origin))


Work = Callable[[Connections, Wire], Coroutine[Any, Any, object]]
Cancelling = Callable[[Work, Connections, Wire, int], Awaitable[bool]]


async def twice(pool: Connections, server: Wire) -> None:
    for _ in range(2):
        await get(pool, "POST", server.origin, (), b"x")


async def by_name(pool: Connections, server: Wire) -> None:
    await get(pool, "POST", server.origin.replace("127.0.0.1", "localhost"), (), b"x")


async def upload(pool: Connections, server: Wire) -> None:
    await get(pool, "POST", server.origin, (("content-length", "3"),), pieces(b"x", b"y", b"z"))


async def unread(pool: Connections, server: Wire) -> None:
    async with pool.stream("GET", server.origin):
        await anyio.lowlevel.checkpoint()


async def after_a_cut(pool: Connections, server: Wire) -> None:
    for _ in range(2):
        await get(pool, "GET", server.origin)


def cutting(peer: Peer) -> None:
    peer.head()
    peer.say(OK)
    peer.head()


def taking_3_bytes(peer: Peer) -> None:
    peer.head()
    peer.body(3)
    peer.say(OK)
    peer.rest()


SITUATIONS: dict[str, tuple[Work, Callable[[Peer], object], bool, bool]] = {
    "two-requests": (twice, staying_with_bodies(OK), False, False),
    "by-name": (by_name, staying_with_bodies(OK), False, False),
    "upload": (upload, taking_3_bytes, False, False),
    "unread": (unread, staying(b"HTTP/1.1 200 OK\r\n\r\n"), False, False),
    "closing-connection": (after_a_cut, cutting, False, False),
    "tls": (twice, staying_with_bodies(OK), True, False),
    "tls-through-a-proxy": (twice, staying_with_bodies(OK), True, True),
}


@pytest.mark.parametrize(("work", "script", "tls", "proxied"), SITUATIONS.values(), ids=SITUATIONS)
def test_a_cancellation_at_any_await_leaves_no_connection_open(
    backend: str, work: Work, script: Callable[[Peer], object], tls: bool, proxied: bool
) -> None:
    """Interrupted at its 1st await, then at its 2nd, ... until it comes through; each time the server sees the end."""
    trusted = trust("127.0.0.1") if tls else None

    async def main(server: Wire, proxy: Wire, cancelling: Cancelling, at: int) -> bool:
        url = proxy.origin if proxied else None
        async with Connections(ssl_context=trusted.client if trusted else None, proxy=url) as pool:
            came_so_far = await cancelling(work, pool, server, at)
            if work is twice:  # what was interrupted is not used again
                await work(pool, server)
        return came_so_far

    for cancelling in (by_scope, by_task) if backend == "asyncio" else (by_scope,):
        for at in count(1):
            with (
                wire(script, tls=trusted.server if trusted else None) as server,
                wire(tunnelling([], server.port)) as proxy,
            ):
                if not run(backend, partial(main, server, proxy, cancelling, at)):
                    break
        assert at > 4
        gc.collect()  # so that a forgotten socket warns here


async def by_scope(work: Work, pool: Connections, server: Wire, at: int) -> bool:
    """Whether the work came to its await number `at`, where it was cancelled."""
    with anyio.CancelScope() as scope:
        return await interrupted(work(pool, server), at, scope.cancel)
    return True


async def by_task(work: Work, pool: Connections, server: Wire, at: int) -> bool:
    """The same by asyncio's own way, which no shield stops."""
    task = asyncio.ensure_future(interrupted(work(pool, server), at, lambda: task.cancel()))
    await asyncio.wait([task])
    return task.cancelled() or task.result()
