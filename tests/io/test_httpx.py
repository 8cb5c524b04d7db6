"""The drivers for httpx and httpx2 are held to one contract: sync and async, asyncio and trio (DESIGN 6, RULES 1)."""

from __future__ import annotations

import asyncio
import copy
import gzip
import logging
import pickle
import select
import socket
import ssl
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median
from types import ModuleType
from typing import Any

import anyio
import httpx
import httpx2
import pytest
import trustme

import mcp_oauth.io.httpx
import mcp_oauth.io.httpx2
from mcp_oauth.exceptions import AccessError, AuthorizationRequired
from mcp_oauth.io.flights import FLIGHTS
from mcp_oauth.sansio.errors import Reason
from mcp_oauth.sansio.messages import Request, Response, get, header
from mcp_oauth.sansio.steps import Send, SendFailed
from mcp_oauth.store.memory import MemoryStore
from tests.io.servers import (
    PATIENCE,
    Reply,
    Seen,
    World,
    document,
    put_grant,
    raw,
    serving,
    stored,
    stored_refresh_token,
    world_on_loopback,
)

DRIVERS: dict[ModuleType, Any] = {httpx: mcp_oauth.io.httpx.OAuth, httpx2: mcp_oauth.io.httpx2.OAuth}


@dataclass(frozen=True)
class Way:
    """A stack, and what runs it."""

    stack: Any
    mode: str

    def oauth(self, url: str, world: World | None = None, **options: Any) -> Any:
        """OAuth traffic goes straight into `world`, or to real servers."""
        transport = None if world is None else partial(self.mock, world)
        login = world.login if world else None
        return DRIVERS[self.stack](url, **{"store": MemoryStore(), "transport": transport, "user": login} | options)

    def mock(self, world: Callable[[Seen], Reply]) -> Any:
        def handler(request: Any) -> Any:
            headers = {name.lower(): request.headers[name] for name in request.headers}
            reply = world(Seen(request.method, str(request.url), headers, request.content))
            return self.stack.Response(reply.status, headers=list(reply.headers), content=reply.body)

        return self.stack.MockTransport(handler)

    def run(self, use: Callable[[Any], Any], ause: Callable[[Any], Any], **options: Any) -> Any:
        """Have a client, sync or async, and use it."""

        async def arun() -> Any:
            async with self.stack.AsyncClient(timeout=PATIENCE, **options) as client:
                return await ause(client)

        if self.mode != "sync":
            return anyio.run(arun, backend=self.mode)
        with self.stack.Client(timeout=PATIENCE, **options) as client:
            return use(client)

    def request(self, method: str, url: str, *, each: Any = None, options: Any = None, **request: Any) -> Any:
        """One request; `each` is its own auth."""
        if each is not None:
            request["auth"] = each

        async def ause(client: Any) -> Any:
            return await client.request(method, url, **request)

        return self.run(lambda client: client.request(method, url, **request), ause, **(options or {}))


WAYS = [Way(stack, mode) for stack in (httpx, httpx2) for mode in ("sync", "asyncio", "trio")]


@pytest.fixture(params=WAYS, ids=[f"{way.stack.__name__}-{way.mode}" for way in WAYS])
def way(request: pytest.FixtureRequest) -> Way:
    found: Way = request.param
    return found


@pytest.fixture(params=DRIVERS, ids=[stack.__name__ for stack in DRIVERS])
def stack(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE)
        assert not thread.is_alive(), thread


# --- The whole thing, on real sockets ---------------------------------------------------------------------------------


def test_logs_in_at_the_first_challenge_and_needs_nothing_more_for_the_next_request(way: Way) -> None:
    with world_on_loopback() as world:
        oauth = way.oauth(world.url, user=world.login)
        first = way.request("POST", world.url, options={"auth": oauth}, json={"n": 1})
        done = len(world.seen)
        second = way.request("POST", world.url, options={"auth": oauth}, json={"n": 2})
    assert (first.status_code, first.json()["body"].replace(" ", "")) == (200, '{"n":1}')
    assert second.json()["token"] == first.json()["token"]
    assert (world.logins, len(world.seen) - done) == (1, 1)


def test_FN_1_a_new_process_with_an_expired_token_renews_it_first(way: Way) -> None:
    with world_on_loopback() as world:
        store = MemoryStore()
        put_grant(store, world)
        oauth = way.oauth(world.url, store=store, interactive=False)
        assert way.request("GET", world.url, each=oauth).status_code == 200
    assert [seen.path for seen in world.seen] == ["/token", "/mcp"]
    assert stored_refresh_token(store, world) == world.refresh_token


# --- Where a token goes (acceptance 8) --------------------------------------------------------------------------------

REDIRECTS = [301, 302, 303, 307, 308]
PLACES = {
    "other-port": "https://mcp.example:8443/mcp/x",
    "other-host": "https://evil.example/mcp",
    "subdomain": "https://a.mcp.example/mcp",
    "sibling": "https://mcp.example/mcpx",
    "parent": "https://mcp.example/",
    "dot-segments": "https://mcp.example/mcp/../other",
    "encoded-dots": "https://mcp.example/mcp/%2e%2e/other",
    "encoded-slash": "https://mcp.example/mcp%2Fx",
    "downgrade": "http://mcp.example/mcp/x",
}


class Redirecting(World):
    """Sends `/mcp/from` elsewhere, with a token or without, and accepts any token anywhere."""

    target = ""
    status = 307
    hostile = False

    def __call__(self, seen: Seen) -> Reply:
        if seen.url == f"{self.url}/from":
            self.seen.append(seen)
            return Reply(self.status, (("location", self.target),))
        if seen.path.startswith("/.well-known/") or seen.path in ("/register", "/token"):
            return super().__call__(seen)
        self.seen.append(seen)
        if seen.token is None and self.hostile:
            return Reply(401, (("www-authenticate", 'Bearer resource_metadata="https://evil.example/metadata"'),))
        return document({"token": seen.token})


@pytest.mark.parametrize("target", PLACES.values(), ids=[f"RULES-1.1-{name}" for name in PLACES])
@pytest.mark.parametrize("per_request", [True, False], ids=["request-auth", "client-auth"])
@pytest.mark.parametrize("hostile", [True, False], ids=["hostile-401", "200"])
def test_no_token_follows_a_redirect_out(way: Way, target: str, per_request: bool, hostile: bool) -> None:
    world = Redirecting()
    world.target, world.hostile = target, hostile
    store = MemoryStore()
    put_grant(store, world, expires_in=1000)
    oauth = way.oauth(world.url, world, store=store)
    options = {"transport": way.mock(world), "follow_redirects": True}
    for world.status in REDIRECTS:
        world.seen.clear()
        response = way.request(
            "POST",
            f"{world.url}/from",
            each=oauth if per_request else None,
            options=options if per_request else options | {"auth": oauth},
            content=b"body",
        )
        assert response.status_code == (401 if hostile else 200)
        sent, followed = world.seen
        assert sent.token is not None
        assert followed.token is None
    assert (world.refreshes, world.logins) == (0, 0)


@pytest.mark.parametrize("status", REDIRECTS)
def test_RULES_1_1_the_token_arrives_below_the_server_url(way: Way, status: int) -> None:
    world = Redirecting()
    world.status, world.target, world.hostile = status, f"{world.url}/below?x=1", True
    store = MemoryStore()
    put_grant(store, world, expires_in=1000)
    options = {"transport": way.mock(world), "follow_redirects": True, "auth": way.oauth(world.url, world, store=store)}
    response = way.request("POST", f"{world.url}/from", options=options, content=b"body")
    assert (response.status_code, response.url) == (200, world.target)
    assert [(seen.url, seen.token is not None) for seen in world.seen] == [
        (f"{world.url}/from", True),
        (world.target, False),
        (world.target, True),
    ]
    kept = status in (307, 308)
    assert world.seen[-1].method == ("POST" if kept else "GET")
    assert world.seen[-1].body == (b"body" if kept else b"")


def test_a_challenge_below_the_server_url_is_answered_with_a_login(way: Way) -> None:
    world = Redirecting()
    world.target, world.hostile = f"{world.url}/below", True
    options = {"transport": way.mock(world), "follow_redirects": True, "auth": way.oauth(world.url, world)}
    assert way.request("GET", f"{world.url}/from", options=options).status_code == 200
    assert world.logins == 1


def test_RULES_1_1_a_loopback_http_server_cannot_upgrade_a_token_to_https(way: Way) -> None:
    world = Redirecting("http://localhost")
    world.target = "https://localhost/mcp/x"
    store = MemoryStore()
    put_grant(store, world, expires_in=1000)
    options = {"transport": way.mock(world), "follow_redirects": True, "auth": way.oauth(world.url, world, store=store)}
    assert way.request("GET", f"{world.url}/from", options=options).json() == {"token": None}


def test_RULES_1_1_client_level_auth_acts_at_the_origin_only(way: Way, world: World) -> None:
    store = MemoryStore()
    put_grant(store, world, expires_in=1000)
    options = {"transport": way.mock(lambda seen: document({"token": seen.token})), "auth": way.oauth(world.url, world)}
    for url in PLACES.values():
        if not url.startswith(f"{world.origin}/"):
            assert way.request("GET", url, options=options).json() == {"token": None}


@pytest.mark.parametrize("follow", [True, False], ids=["followed", "not-followed"])
@pytest.mark.parametrize("per_request", [True, False], ids=["request-auth", "client-auth"])
@pytest.mark.parametrize("challenged", [True, False], ids=["challenged-first", "token-at-hand"])
def test_RULES_1_1_on_two_real_ports(way: Way, follow: bool, per_request: bool, challenged: bool) -> None:
    with serving() as evil, serving() as server:
        caught: list[Seen] = []
        world = World(server.origin)
        store = MemoryStore()
        if not challenged:
            put_grant(store, world, expires_in=1000)

        def hostile(seen: Seen) -> Reply:
            caught.append(seen)
            return Reply(401, (("www-authenticate", f'Bearer resource_metadata="{evil.origin}/metadata"'),))

        def redirecting(seen: Seen) -> Reply:
            if seen.path != "/mcp" or (challenged and seen.token is None):
                return hostile(seen) if seen.path == "/sibling" else world(seen)
            return Reply(307, (("location", f"{targets[0]}?{len(caught)}"),), b"go there")

        evil.handler, server.handler = hostile, redirecting
        oauth = way.oauth(world.url, store=store, user=world.login)
        for target in (f"{evil.origin}/mcp", f"{server.origin}/sibling"):
            targets = [target]
            response = way.request(
                "POST",
                world.url,
                each=oauth if per_request else None,
                options={"follow_redirects": follow} | ({} if per_request else {"auth": oauth}),
                content=b"{}",
            )
            assert response.status_code == (401 if follow else 307)
            if not follow:
                assert "authorization" not in response.next_request.headers
    assert [seen.token for seen in caught] == [None, None] * follow
    assert world.logins == challenged
    assert not any(seen.path == "/metadata" for seen in caught)


# --- What copies of a request carry -----------------------------------------------------------------------------------


class Instrumented:
    """A transport that puts a copy of the headers into the request, as instrumentation does (OpenTelemetry's)."""

    def __init__(self, stack: Any, inner: Any) -> None:
        self.stack, self.inner = stack, inner

    def prepare(self, request: Any) -> Any:
        request.headers = self.stack.Headers(request.headers)
        request.headers["traceparent"] = "00-1-1-01"
        return request

    def handle_request(self, request: Any) -> Any:
        return self.inner.handle_request(self.prepare(request))

    async def handle_async_request(self, request: Any) -> Any:
        return await self.inner.handle_async_request(self.prepare(request))


def instrumented(way: Way, world: Callable[[Seen], Reply]) -> Any:
    bases = (Instrumented, way.stack.AsyncBaseTransport, way.stack.BaseTransport)
    return type("Transport", bases, {})(way.stack, way.mock(world))


def test_instrumentation_may_replace_the_headers_and_the_token_goes_no_further(way: Way) -> None:
    world = Redirecting()
    world.target = "https://mcp.example/sibling"
    store = MemoryStore()
    put_grant(store, world, expires_in=1000)
    options = {"transport": instrumented(way, world), "follow_redirects": True}
    response = way.request("GET", f"{world.url}/from", each=way.oauth(world.url, world, store=store), options=options)
    assert response.json() == {"token": None}
    assert [(seen.token is not None, "traceparent" in seen.headers) for seen in world.seen] == [
        (True, True),
        (False, True),
    ]


def test_copies_and_pickles_of_a_response_hold_no_token(way: Way, world: World) -> None:
    store = MemoryStore()
    put_grant(store, world, expires_in=1000)
    options = {"transport": way.mock(world), "auth": way.oauth(world.url, world, store=store)}
    response = way.request("POST", world.url, options=options, headers={"x-mine": "1"}, content=b"")
    headers = response.request.headers
    assert headers["authorization"].startswith("Bearer ")
    assert "CANARY" not in repr(headers)
    assert "authorization" not in copy.copy(headers)
    unpickled = pickle.loads(pickle.dumps(response)).request
    assert ("authorization" in unpickled.headers, unpickled.headers["x-mine"]) == (False, "1")
    headers["x-more"] = "2"
    assert (headers.get("X-More"), len(headers), "x-more" in list(headers)) == ("2", len(list(headers)), True)
    del headers["x-more"]
    assert "x-more" not in headers


def test_the_callers_own_request_object_gets_no_token(way: Way, world: World) -> None:
    store = MemoryStore()
    put_grant(store, world, expires_in=1000)
    oauth = way.oauth(world.url, world, store=store)
    request = way.stack.Request("GET", world.url)

    async def asend(client: Any) -> Any:
        return await client.send(request, auth=oauth)

    response = way.run(lambda client: client.send(request, auth=oauth), asend, transport=way.mock(world))
    assert (response.status_code, "authorization" in request.headers) == (200, False)


def test_the_token_goes_before_the_callers_own_authorization_header_which_serves_elsewhere(
    way: Way, world: World
) -> None:
    store = MemoryStore()
    put_grant(store, world, expires_in=1000)
    options = {"transport": way.mock(lambda seen: document({"token": seen.token}))}
    own = {"authorization": "Basic b3du"}
    each = way.oauth(world.url, world, store=store)
    assert way.request("GET", world.url, each=each, options=options, headers=own).json()["token"].startswith("Bearer ")
    assert way.request("GET", "https://other.example/", each=each, options=options, headers=own).json() == {
        "token": "Basic b3du"
    }


# --- Bodies -----------------------------------------------------------------------------------------------------------


class Trickle(httpx.SyncByteStream, httpx.AsyncByteStream, httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """A body that says when it is read and closed."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.chunks, self.read, self.closed = chunks, 0, False

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self.chunks:
            self.read += 1
            yield chunk

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            self.read += 1
            yield chunk

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.closed = True


def endless() -> Iterator[bytes]:
    while True:
        yield b"x" * 100


def broken(error: Exception) -> Iterator[bytes]:
    yield b"x"
    raise error


def challenging(way: Way, world: World, body: Any, **headers: str) -> Any:
    """A transport whose 401 has this body."""

    def handler(request: Any) -> Any:
        if "authorization" not in request.headers:
            return way.stack.Response(401, headers=headers, stream=body)
        return way.stack.Response(200, json={"token": request.headers["authorization"]})

    return way.stack.MockTransport(handler)


@pytest.mark.parametrize(
    ("chunks", "length", "reads"),
    [
        pytest.param(lambda _: endless(), None, 0, id="endless-without-length"),
        pytest.param(lambda _: endless(), "65537", 0, id="too-long"),
        pytest.param(lambda _: endless(), "9" * 5000, 0, id="absurd-length"),
        pytest.param(lambda _: iter([b"who", b"?"]), "4", 2, id="short"),
        pytest.param(lambda way: broken(way.stack.ReadError("cut")), "4", 1, id="broken"),
        pytest.param(lambda _: iter([]), "0", 0, id="empty"),
    ],
)
def test_DESIGN_4_a_challenged_body_is_read_up_to_a_limit_and_dropped(
    way: Way, world: World, chunks: Any, length: str | None, reads: int
) -> None:
    body = Trickle(chunks(way))
    headers = {"content-encoding": "gzip"} | ({"content-length": length} if length else {})
    options = {"transport": challenging(way, world, body, **headers), "auth": way.oauth(world.url, world)}
    response = way.request("GET", world.url, options=options)
    assert (response.status_code, body.read, body.closed) == (200, reads, True)
    assert [past.content for past in response.history] == [b""]


def test_a_body_that_a_hook_has_read_stays_readable(way: Way, world: World) -> None:
    async def aread(response: Any) -> None:
        await response.aread()

    hook = aread if way.mode != "sync" else lambda response: response.read()
    options = {"transport": way.mock(world), "event_hooks": {"response": [hook]}, "auth": way.oauth(world.url, world)}
    response = way.request("GET", world.url, options=options)
    assert [past.content for past in response.history] == [b"who?"]


def generated(way: Way) -> Any:
    def body() -> Iterator[bytes]:
        yield b"once"

    async def abody() -> AsyncIterator[bytes]:
        yield b"once"

    return body() if way.mode == "sync" else abody()


def test_a_body_that_cannot_be_replayed_gives_the_typed_error_and_the_next_request_works(
    way: Way, world: World
) -> None:
    options = {"transport": way.mock(world), "auth": way.oauth(world.url, world)}
    with pytest.raises(AccessError) as caught:
        way.request("POST", world.url, options=options, content=generated(way))
    assert caught.value.reason is Reason.BODY_NOT_REPLAYABLE
    assert way.request("POST", world.url, options=options, content=generated(way)).json()["body"] == "once"
    assert world.logins == 1


@pytest.mark.parametrize(
    "body",
    [{"content": b"\x00bytes"}, {"json": {"a": 1}}, {"data": {"a": "1"}}, {}],
    ids=["content", "json", "form", "none"],
)
def test_a_replayable_body_is_sent_again_intact(way: Way, world: World, body: Any) -> None:
    options = {"transport": way.mock(world), "auth": way.oauth(world.url, world)}
    assert way.request("POST", world.url, options=options, **body).status_code == 200
    first, second = world.at("/mcp")
    assert (first.body, first.headers.get("content-type")) == (second.body, second.headers.get("content-type"))


def test_streams_stay_streams(way: Way) -> None:
    """The server sends its second event only when the first has been seen."""
    seen_first = threading.Event()

    def events(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: 1\n\n")
        assert seen_first.wait(PATIENCE)
        connection.sendall(b"data: 2\n\n")

    def use(client: Any) -> list[str]:
        with client.stream("GET", url) as response:
            lines = []
            for line in response.iter_lines():
                lines.append(line)
                seen_first.set()
            return lines

    async def ause(client: Any) -> list[str]:
        async with client.stream("GET", url) as response:
            lines = []
            async for line in response.aiter_lines():
                lines.append(line)
                seen_first.set()
            return lines

    with raw(events) as origin:
        world, store = World(origin), MemoryStore()
        url = f"{world.url}/events"
        put_grant(store, world, expires_in=1000)
        lines = way.run(use, ause, auth=way.oauth(world.url, store=store))
    assert lines == ["data: 1", "", "data: 2", ""]


# --- OAuth traffic ----------------------------------------------------------------------------------------------------


def send(stack: Any, request: Request, *, seconds: float = PATIENCE, most: int = 1 << 20, **options: Any) -> Any:
    """One `Send`, as a flight performs it."""
    oauth = DRIVERS[stack]("https://mcp.example/mcp", store=MemoryStore(), **options)

    async def main() -> Any:
        async with oauth.open_sender() as sender:
            return await sender(Send(request, most, seconds))

    return asyncio.run(main())


def answering(*parts: bytes) -> Any:
    def answer(connection: socket.socket) -> None:
        for part in parts:
            connection.sendall(part)

    return raw(answer)


def dripping(head: bytes, drop: bytes) -> Any:
    """Sends the head, then a drop every 10 ms until the peer goes away."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(head)
        while not select.select([connection], [], [], 0.01)[0]:
            connection.sendall(drop)

    return raw(answer)


OK = b"HTTP/1.1 200 OK\r\nconnection: close\r\n"


@pytest.mark.parametrize("status", REDIRECTS)
def test_RULES_1_4_no_redirect_is_followed(stack: Any, status: int) -> None:
    with serving(lambda seen: Reply(status, (("location", "/elsewhere"),))) as server:
        response = send(stack, get(f"{server.origin}/start"))
    assert (response.status, header(response.headers, "location")) == (status, "/elsewhere")


@pytest.mark.parametrize(
    "length", [pytest.param(b"content-length: 67108864\r\n", id="declared"), pytest.param(b"", id="undeclared")]
)
def test_a_body_of_64_MB_is_given_up_at_the_limit(stack: Any, length: bytes) -> None:
    sent = [0]

    def answer(connection: socket.socket) -> None:
        connection.sendall(OK + length + b"\r\n")
        for _ in range(64):
            connection.sendall(bytes(1 << 20))
            sent[0] += 1

    with raw(answer) as origin:
        failed = send(stack, get(origin), most=100_000)
    assert failed == SendFailed("the body is longer than 100000 bytes", may_have_arrived=True)
    assert sent[0] < 32


BOMB = gzip.compress(bytes(64 << 20))


@pytest.mark.parametrize(
    ("coding", "body", "answer"),
    [
        ("gzip", BOMB, "the body is longer than 100000 bytes"),
        ("gzip", b"not gzip", "the body's content coding is broken"),
        ("br", b"?", "the body has a content coding that was not asked for"),
        ("gzip, gzip", b"?", "the body has a content coding that was not asked for"),
        ("gzip", gzip.compress(b"fine"), b"fine"),
        ("x-gzip", gzip.compress(b"x" * 100_000), b"x" * 100_000),
        ("deflate", zlib.compress(b"fine"), b"fine"),
        ("Identity", b"fine", b"fine"),
    ],
    ids=["gzip-bomb", "broken", "unknown", "twice", "gzip", "exactly-the-limit", "deflate", "identity"],
)
def test_a_coded_body_is_decoded_under_the_same_limit(stack: Any, coding: str, body: bytes, answer: Any) -> None:
    with answering(OK + f"content-encoding: {coding}\r\n\r\n".encode(), body) as origin:
        result = send(stack, get(origin), most=100_000)
    assert (result.reason if isinstance(result, SendFailed) else result.body) == answer


@pytest.mark.parametrize(
    ("head", "drop"),
    [(OK + b"\r\n", b"x"), (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"), (b"", b"H"), (b"", b"HTTP/1.1 102 \r\n\r\n")],
    ids=["endless-slow-body", "slow-header-trickle", "no-answer", "endless-1xx"],
)
def test_FN_30_an_exchange_ends_at_its_total_deadline(stack: Any, head: bytes, drop: bytes) -> None:
    with dripping(head, drop) as origin:
        began = time.monotonic()
        failed = send(stack, get(origin), seconds=0.2)
        took = time.monotonic() - began
    assert isinstance(failed, SendFailed)
    assert failed.may_have_arrived
    assert took < 2


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    ("url", "arrived"),
    [
        (closed_port, False),
        (lambda: "ftp://127.0.0.1/", False),
    ],
    ids=["RULES-4.9-refused", "RULES-4.9-scheme"],
)
def test_what_was_certainly_not_processed_says_so(stack: Any, url: Callable[[], str], arrived: bool) -> None:
    assert send(stack, get(url())).may_have_arrived is arrived


def test_RULES_4_9_a_peer_that_cannot_be_connected_to_has_certainly_not_seen_the_request(stack: Any) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:  # no more is accepted: the next handshake hangs
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        failed = send(stack, get(f"http://127.0.0.1:{listener.getsockname()[1]}"), seconds=0.4)
        for filler in fillers:
            filler.close()
    assert (type(failed), failed.may_have_arrived) == (SendFailed, False)


@pytest.mark.parametrize(
    "answer",
    [b"", b"nonsense\r\n\r\n", OK + b"content-length: 9\r\n\r\nCANARY", b"HTTP/1.1 200 OK\r\n\x00CANARY\r\n\r\n"],
)
def test_RULES_4_9_a_cut_or_broken_answer_may_have_been_processed_and_is_not_quoted(stack: Any, answer: bytes) -> None:
    with answering(answer) as origin:
        failed = send(stack, get(origin))
    assert isinstance(failed, SendFailed)
    assert failed.may_have_arrived
    assert "CANARY" not in failed.reason


def test_a_transport_of_the_callers_that_raises_may_have_sent_the_token(stack: Any) -> None:
    def handler(request: Any) -> Any:
        raise RuntimeError(f"CANARY {request.content}")

    failed = send(stack, get("https://as.example"), transport=lambda: stack.MockTransport(handler))
    assert failed == SendFailed("RuntimeError", may_have_arrived=True)


def test_a_transport_factory_that_raises_has_sent_nothing(stack: Any) -> None:
    def factory() -> Any:
        raise OSError("CANARY")

    failed = send(stack, get("https://as.example"), transport=factory)
    assert failed == SendFailed("no HTTP client: OSError", may_have_arrived=False)


def test_FN_24_only_the_cores_headers_travel_and_no_cookie_is_kept(
    stack: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login alice password CANARY\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    seen: list[Seen] = []

    def handler(request: Seen) -> Reply:
        seen.append(request)
        return Reply(200, (("set-cookie", "a=CANARY; path=/"),), b"{}")

    with serving(handler) as server:
        oauth = DRIVERS[stack](f"{server.origin}/mcp", store=MemoryStore())

        async def main() -> None:
            async with oauth.open_sender() as sender:
                for _ in range(2):
                    assert isinstance(await sender(Send(get(f"{server.origin}/metadata"))), Response)

        asyncio.run(main())
    for one in seen:
        one.headers.pop("host")
        assert one.headers == {
            "accept": "application/json",
            "accept-encoding": "identity",
            "connection": "keep-alive",
            "user-agent": "mcp-oauth",
        }


def test_nothing_of_the_callers_client_touches_oauth_traffic(way: Way) -> None:
    """FN 57: no hook, cookie, default header, query, base URL, timeout or transport of the caller's."""
    touched: list[str] = []

    def hook(request: Any) -> None:
        touched.append(request.url.path)

    async def ahook(request: Any) -> None:
        touched.append(request.url.path)

    with world_on_loopback() as world:
        options = {
            "auth": way.oauth(world.url, user=world.login),
            "event_hooks": {"request": [hook if way.mode == "sync" else ahook]},
            "headers": {"x-mine": "CANARY"},
            "cookies": {"mine": "CANARY"},
            "params": {"mine": "CANARY"},
        }
        assert way.request("GET", world.url, options=options).status_code == 200
    assert set(touched) == {"/mcp"}
    for seen in world.seen:
        assert (seen.path == "/mcp") == ("CANARY" in f"{seen.url}{seen.headers}")


@pytest.mark.parametrize(
    ("host", "trusted", "fine"),
    [("127.0.0.1", True, True), ("127.0.0.1", False, False), ("localhost", True, False)],
    ids=["FN-57-private-ca", "untrusted", "wrong-host"],
)
def test_tls_is_verified(stack: Any, host: str, trusted: bool, fine: bool) -> None:
    authority = trustme.CA()
    serverside, clientside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(serverside)
    authority.configure_trust(clientside)
    with serving(lambda seen: Reply(200), tls=serverside) as server:
        url = server.origin.replace("127.0.0.1", host)
        answer = send(stack, get(url), verify=clientside if trusted else None)
    if fine:
        assert answer.status == 200
    else:
        assert "certificate verify failed" in answer.reason.lower()
        assert not answer.may_have_arrived


def test_FN_57_the_callers_proxy_is_used_and_one_that_refuses_has_sent_nothing(stack: Any) -> None:
    with serving(lambda seen: Reply(403 if seen.method == "CONNECT" else 200, (), seen.url.encode())) as proxy:
        answer = send(stack, get("http://as.example/metadata"), proxy=proxy.origin)
        refused = send(stack, get("https://as.example/metadata"), proxy=proxy.origin)
    assert answer.body.endswith(b"http://as.example/metadata")
    assert (type(refused), refused.may_have_arrived) == (SendFailed, False)


def test_no_client_is_made_where_nothing_is_sent(stack: Any, world: World) -> None:
    def transport() -> Any:
        raise AssertionError

    store = MemoryStore()
    put_grant(store, world, expires_in=1000)
    oauth = DRIVERS[stack](world.url, store=store, transport=transport)
    assert oauth.authorize() == oauth.token


# --- Many at once (acceptance 7) --------------------------------------------------------------------------------------

CROWD = 50


def crowd_server(barrier: threading.Barrier, seconds: float) -> Callable[[Seen], Reply]:
    """Answers when all are there, and after a while."""

    def handler(seen: Seen) -> Reply:
        barrier.wait(PATIENCE)
        time.sleep(seconds)  # the 50 ms that a request takes
        return document({"token": seen.token})

    return handler


@pytest.mark.parametrize("mode", ["asyncio", "trio"])
def test_50_requests_are_under_way_at_once_and_take_no_longer_than_without(stack: Any, mode: str) -> None:
    with serving(crowd_server(threading.Barrier(CROWD), 0.05)) as server:
        world, store = World(server.origin), MemoryStore()
        put_grant(store, world, expires_in=1000)
        oauth = DRIVERS[stack](world.url, store=store)

        async def crowd(auth: Any) -> float:
            limits = stack.Limits(max_connections=CROWD)
            async with stack.AsyncClient(auth=auth, timeout=PATIENCE, limits=limits) as client:

                async def one() -> None:
                    assert ((await client.get(world.url)).json()["token"] is None) is (auth is None)

                took = []
                for _ in range(4):
                    began = time.perf_counter()
                    async with anyio.create_task_group() as group:
                        for _ in range(CROWD):
                            group.start_soon(one)
                    took.append(time.perf_counter() - began)
                return median(took[1:])

        without, with_oauth = (anyio.run(crowd, auth, backend=mode) for auth in (None, oauth))
    print(f"{stack.__name__} on {mode}: {with_oauth / without:.2f} x")
    assert with_oauth < 2 * without


def test_FN_12_50_callers_of_all_kinds_with_an_expired_token_cause_one_refresh(
    stack: Any, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks of three loops and threads, with two `OAuth` objects on one store."""
    store, tokens = MemoryStore(), list[str]()
    put_grant(store, world)
    join, asked = FLIGHTS._join, threading.Semaphore(0)

    def watched(seat: Any) -> None:
        join(seat)
        asked.release()

    monkeypatch.setattr(FLIGHTS, "_join", watched)
    world.before = lambda stage: [asked.acquire(timeout=PATIENCE) for _ in range(CROWD)]
    way = Way(stack, "")
    both = [way.oauth(world.url, world, store=store) for _ in range(2)]

    async def tasks(number: int) -> None:
        async with stack.AsyncClient(transport=way.mock(world)) as client, anyio.create_task_group() as group:

            async def one(auth: Any) -> None:
                tokens.append((await client.get(world.url, auth=auth)).json()["token"])

            for n in range(number):
                group.start_soon(one, both[n % 2])

    def thread(auth: Any) -> None:
        with stack.Client(transport=way.mock(world), auth=auth) as client:
            tokens.append(client.get(world.url).json()["token"])

    threads = [threading.Thread(target=thread, args=(both[n % 2],)) for n in range(14)]
    loops = [("asyncio", 12), ("asyncio", 12), ("trio", 12)]
    threads += [threading.Thread(target=partial(anyio.run, tasks, number, backend=mode)) for mode, number in loops]
    for each in threads:
        each.start()
    for each in threads:
        each.join(PATIENCE)
    assert (len(tokens), len(set(tokens))) == (CROWD, 1)
    assert (world.refreshes, world.reuses, world.logins) == (1, 0, 0)


# --- Cancellation (acceptance 9): the caller's own awaits -------------------------------------------------------------


class CancelAt:
    """Awaits something, and cancels it at its n-th suspension."""

    def __init__(self, coroutine: Any, n: int) -> None:
        self.coroutine, self.n = coroutine, n

    def __await__(self) -> Any:
        inner = self.coroutine.__await__()
        suspensions = 0
        while True:
            try:
                future = inner.send(None)
            except StopIteration as end:
                return end.value
            suspensions += 1
            if suspensions > self.n:
                if future is not None:
                    future._asyncio_future_blocking = False
                inner.throw(asyncio.CancelledError())
            yield future


@pytest.mark.parametrize("expires_in", [-10.0, None], ids=["renewal", "login"])
def test_a_caller_cancelled_at_any_of_its_awaits_leaves_nothing_behind(stack: Any, expires_in: float | None) -> None:
    finished = False
    n = 0
    while not finished:
        world, store = World(), MemoryStore()
        if expires_in is not None:
            put_grant(store, world, expires_in=expires_in)
        way = Way(stack, "asyncio")
        oauth = way.oauth(world.url, world, store=store)
        inner = way.mock(world)

        async def slowly(request: Any, inner: Any = inner) -> Any:
            for _ in range(3):
                await asyncio.sleep(0)
            return await inner.handle_async_request(request)

        async def main(oauth: Any = oauth, world: World = world, n: int = n, slowly: Any = slowly) -> bool:
            async with stack.AsyncClient(auth=oauth, transport=stack.MockTransport(slowly)) as client:
                try:
                    await CancelAt(client.get(world.url), n)
                    finished = True
                except asyncio.CancelledError:
                    finished = False
                assert (await client.get(world.url)).status_code == 200
                return finished

        finished = asyncio.run(main())
        for thread in threading.enumerate():
            if thread.name == "mcp-oauth flight":
                thread.join(PATIENCE)
        assert stored_refresh_token(store, world) == world.refresh_token
        assert world.reuses == 0
        assert world.refreshes + world.logins <= (2 if expires_in is None else 1)  # a login nobody waits for ends
        record = stored(store, world)
        assert record is not None
        assert record.login is None
        n += 1
    assert n > 4


def test_move_on_after_0_and_wait_for_0_change_nothing(stack: Any, world: World) -> None:
    store = MemoryStore()
    put_grant(store, world)
    way = Way(stack, "trio")
    oauth = way.oauth(world.url, world, store=store)

    async def main() -> None:
        async with stack.AsyncClient(auth=oauth, transport=way.mock(world)) as client:
            with anyio.move_on_after(0):
                await client.get(world.url)
            with anyio.fail_after(PATIENCE):
                assert (await client.get(world.url)).status_code == 200

    for backend in ("asyncio", "trio"):
        anyio.run(main, backend=backend)
    assert (world.refreshes, world.reuses) == (1, 0)


# --- Errors, imports --------------------------------------------------------------------------------------------------


def test_FN_47_errors_reach_the_caller_and_close_the_response(way: Way, world: World) -> None:
    body = Trickle(endless())
    refusing = way.stack.MockTransport(lambda request: way.stack.Response(401, stream=body))
    options = {"transport": refusing, "auth": way.oauth(world.url, world, interactive=False)}
    with pytest.raises(AuthorizationRequired):
        way.request("GET", world.url, options=options)
    assert (body.read, body.closed) == (0, True)


def test_FN_54_no_secret_is_logged_at_any_level(way: Way, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger=way.stack.__name__)  # an earlier test may have silenced it
    with world_on_loopback() as world:
        oauth = way.oauth(world.url, user=world.login)
        assert way.request("GET", world.url, options={"auth": oauth}).status_code == 200
        world.valid.clear()
        assert way.request("GET", world.url, options={"auth": oauth}).status_code == 200
        oauth.logout()
    assert (world.logins, world.refreshes) == (1, 1)
    assert {record.name for record in caplog.records} >= {"mcp_oauth", way.stack.__name__}
    assert "CANARY" not in caplog.text


@pytest.mark.parametrize("name", ["httpx", "httpx2"])
def test_one_stack_does_not_import_the_other(name: str) -> None:
    other = {"httpx": "httpx2", "httpx2": "httpx"}[name]
    code = f"import sys, mcp_oauth.io.{name}; assert {other!r} not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
