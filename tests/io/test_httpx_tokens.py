"""Where the drivers for httpx and httpx2 let a token go, and where not (RULES 1.1)."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from mcp_oauth.store.memory import MemoryStore
from tests.io.servers import Reply, Seen, World, document, put_grant, serving
from tests.io.ways import REDIRECTS, Way

pytestmark = pytest.mark.usefixtures("nothing_is_left_of_threads")


# --- Where a token goes (acceptance 8) --------------------------------------------------------------------------------


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
