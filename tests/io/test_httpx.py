"""What only httpx and httpx2 have: mock transports, hooks, requests and headers as objects, `next_request`.

What they share with every stack is in `tests/io/contract`.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mcp_oauth.sansio.messages import get
from mcp_oauth.sansio.steps import Send, SendFailed
from mcp_oauth.store.memory import MemoryStore
from tests.io.contract.ways import exchange
from tests.io.servers import Reply, Seen, World, document, put_grant
from tests.io.ways import REDIRECTS, Trickle, Way, endless

pytestmark = pytest.mark.usefixtures("nothing_is_left_of_threads")


def with_token(way: Way, world: World) -> Any:
    """An auth whose token is good."""
    store = MemoryStore()
    put_grant(store, world, expires_in=1000)
    return way.oauth(world.url, world, store=store)


# --- Bodies -----------------------------------------------------------------------------------------------------------


def broken(error: Exception) -> Iterator[bytes]:
    yield b"x"
    raise error


def challenging(way: Way, body: Any, headers: dict[str, str]) -> Any:
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
def test_DESIGN_4_a_challenged_body_is_dropped_before_httpx_reads_it_whole(
    way: Way, world: World, chunks: Any, length: str | None, reads: int
) -> None:
    body = Trickle(chunks(way))
    headers = {"content-encoding": "gzip"} | ({"content-length": length} if length else {})
    options = {"transport": challenging(way, body, headers), "auth": way.oauth(world.url, world)}
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


def test_FN_57_no_base_url_or_query_of_the_callers_client_touches_oauth_traffic(way: Way, world: World) -> None:
    oauth = way.oauth(world.url, world)
    options = {"transport": way.mock(world), "auth": oauth, "base_url": world.origin, "params": {"mine": "1"}}
    assert way.request("GET", "/mcp", options=options).status_code == 200
    assert {seen.path for seen in world.seen if "mine" in seen.url} == {"/mcp"}


def test_a_transport_of_the_callers_that_raises_may_have_sent_the_token(way: Way, world: World) -> None:
    def handler(request: Any) -> Any:
        raise RuntimeError(f"CANARY {request.content}")

    oauth = way.oauth(world.url, transport=lambda: way.stack.MockTransport(handler))
    assert exchange(oauth, Send(get("https://as.example"))) == [SendFailed("RuntimeError", may_have_arrived=True)]


# --- Where a token goes: hosts and schemes that loopback does not have ------------------------------------------------


PLACES = {
    "other-port": "https://mcp.example:8443/mcp/x",
    "other-host": "https://evil.example/mcp",
    "subdomain": "https://a.mcp.example/mcp",
    "downgrade": "http://mcp.example/mcp/x",
    "sibling": "https://mcp.example/mcpx",
}


class Redirecting(World):
    """Sends `/mcp` elsewhere, and accepts any token anywhere."""

    target = ""
    status = 307

    def __call__(self, seen: Seen) -> Reply:
        self.seen.append(seen)
        if seen.url == self.url:
            return Reply(self.status, (("location", self.target),))
        return document({"token": seen.token})


@pytest.mark.parametrize("target", PLACES.values(), ids=[f"RULES-1.1-{name}" for name in PLACES])
def test_no_token_follows_a_redirect_out(way: Way, target: str) -> None:
    world = Redirecting()
    world.target = target
    options = {"transport": way.mock(world), "follow_redirects": True, "auth": with_token(way, world)}
    for world.status in REDIRECTS:
        world.seen.clear()
        assert way.request("GET", world.url, options=options).json() == {"token": None}
        assert [seen.token is None for seen in world.seen] == [False, True]


@pytest.mark.parametrize("target", ["https://localhost/mcp/x", "https://localhost:80/mcp/x"])
def test_RULES_1_1_a_loopback_http_server_cannot_upgrade_a_token_to_https(way: Way, target: str) -> None:
    world = Redirecting("http://localhost")
    world.target = target
    options = {"transport": way.mock(world), "follow_redirects": True, "auth": with_token(way, world)}
    assert way.request("GET", world.url, options=options).json() == {"token": None}


def test_RULES_1_1_client_level_auth_acts_at_the_origin_only(way: Way, world: World) -> None:
    anywhere = way.mock(lambda seen: document({"token": seen.token}))
    options = {"transport": anywhere, "auth": with_token(way, world)}
    for url in PLACES.values():
        token = way.request("GET", url, options=options).json()["token"]
        assert (token is not None) == url.startswith(f"{world.origin}/")


@pytest.mark.parametrize("target", PLACES.values(), ids=[f"RULES-1.1-{name}" for name in PLACES])
def test_the_next_request_that_the_caller_may_send_himself_has_no_token(way: Way, target: str) -> None:
    world = Redirecting()
    world.target = target
    response = way.request("GET", world.url, options={"transport": way.mock(world)}, each=with_token(way, world))
    assert response.status_code == 307
    assert "authorization" not in response.next_request.headers


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
    options = {"transport": instrumented(way, world), "follow_redirects": True}
    response = way.request("GET", world.url, each=with_token(way, world), options=options)
    assert response.json() == {"token": None}
    assert [(seen.token is not None, "traceparent" in seen.headers) for seen in world.seen] == [
        (True, True),
        (False, True),
    ]


def test_copies_and_pickles_of_a_response_hold_no_token(way: Way, world: World) -> None:
    options = {"transport": way.mock(world), "auth": with_token(way, world)}
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
    oauth = with_token(way, world)
    request = way.stack.Request("GET", world.url)

    async def asend(client: Any) -> Any:
        return await client.send(request, auth=oauth)

    response = way.run(lambda client: client.send(request, auth=oauth), asend, transport=way.mock(world))
    assert (response.status_code, "authorization" in request.headers) == (200, False)
