"""`mcp_oauth.io.anyio`: what is special to the driver that needs no HTTP library. (The contract of all: contract/.)"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream

from mcp_oauth.exceptions import AccessError
from mcp_oauth.io.anyio import Client, NotSent, OAuth
from mcp_oauth.io.sending import UnreadableError
from mcp_oauth.sansio.errors import Reason
from mcp_oauth.sansio.messages import Response, header
from mcp_oauth.store.memory import MemoryStore
from tests.io.servers import PATIENCE, Reply, Seen, World, document, put_grant, serving, world_on_loopback

pytestmark = pytest.mark.usefixtures("nothing_is_left_of_threads")

Use = Callable[[Client], Awaitable[Any]]


@pytest.fixture(params=["asyncio", "trio"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def using(oauth: OAuth, use: Use, backend: str) -> Any:
    async def main() -> Any:
        with anyio.fail_after(PATIENCE):
            async with Client(oauth) as client:
                return await use(client)

    return anyio.run(main, backend=backend)


def logged_in(world: World, **options: Any) -> OAuth:
    store = MemoryStore()
    put_grant(store, world, expires_in=3600)
    return OAuth(world.url, store=store, interactive=False, **options)


class Counting:
    """Connects, and counts."""

    def __init__(self) -> None:
        self.connected = 0

    async def __call__(self, host: str, port: int) -> ByteStream:
        self.connected += 1
        return await anyio.connect_tcp(host, port)


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


# --- Where requests go ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "path"),
    [
        pytest.param("", "/mcp", id="RFC3986-5.2-empty-is-the-server"),
        pytest.param("/mcp", "/mcp", id="RFC3986-5.2-path"),
        pytest.param("/mcp/session?x=1", "/mcp/session", id="RFC3986-5.2-path-and-query"),
        pytest.param("mcp/a", "/mcp/a", id="RFC3986-5.2-relative"),
    ],
)
def test_a_url_may_be_relative_to_the_servers(backend: str, given: str, path: str) -> None:
    with world_on_loopback() as world:
        response: Response = using(logged_in(world), lambda client: client.request("POST", given), backend)
    assert (response.status, world.seen[-1].path) == (200, path)


def test_RULES_1_1_other_places_get_no_token(backend: str) -> None:
    with world_on_loopback() as world, serving(lambda seen: document(seen.headers)) as other:
        oauth = logged_in(world)
        using(oauth, lambda client: client.request("POST", json=1), backend)
        response: Response = using(oauth, lambda client: client.request("GET", f"{other.origin}/mcp"), backend)
    assert (response.status, b"authorization" in response.body) == (200, False)


def test_RULES_1_1_no_redirect_is_followed(backend: str) -> None:
    with serving() as server:
        server.handler = lambda seen: Reply(307, (("location", "/elsewhere"),))
        oauth = OAuth(f"{server.origin}/mcp", store=MemoryStore(), interactive=False)
        response: Response = using(oauth, lambda client: client.request("POST"), backend)
    assert (response.status, header(response.headers, "location")) == (307, "/elsewhere")


def test_where_there_is_nobody_the_caller_is_told_that_nothing_was_sent(backend: str) -> None:
    with serving() as server:
        origin = server.origin
    oauth = OAuth(f"{origin}/mcp", store=MemoryStore(), interactive=False)
    with pytest.raises(NotSent, match="Connection refused"):
        using(oauth, lambda client: client.request("POST"), backend)


# --- What is sent -----------------------------------------------------------------------------------------------------


def test_json_and_headers_go_as_they_are_and_the_token_before_the_callers_own(backend: str) -> None:
    with world_on_loopback() as world:
        headers = [("Authorization", "Basic c2VjcmV0"), ("Content-Type", "text/plain"), ("X-Two", "a"), ("X-Two", "b")]
        oauth = logged_in(world)
        using(oauth, lambda client: client.request("POST", headers=headers, json={"n": [1]}), backend)
    (seen,) = world.seen
    assert (seen.body, seen.headers["content-type"]) == (b'{"n":[1]}', "application/json")
    assert str(seen.token).startswith("Bearer CANARY-access-")


def test_headers_may_be_a_mapping(backend: str) -> None:
    with world_on_loopback() as world:
        oauth = logged_in(world)
        using(oauth, lambda client: client.request("POST", headers={"Accept": "text/event-stream"}), backend)
    assert world.seen[-1].headers["accept"] == "text/event-stream"


def test_a_body_that_cannot_be_sent_again_gives_the_typed_error_only_where_it_would_be_needed(backend: str) -> None:
    with world_on_loopback() as world:
        oauth = OAuth(world.url, store=MemoryStore(), user=world.login)
        headers = [("content-length", "3")]

        async def use(client: Client) -> Response:
            with pytest.raises(AccessError) as caught:
                await client.request("POST", headers=headers, body=pieces(b"a", b"bc"))
            assert caught.value.reason is Reason.BODY_NOT_REPLAYABLE
            return await client.request("POST", headers=headers, body=pieces(b"a", b"bc"))

        response: Response = using(oauth, use, backend)
    assert (response.status, world.logins, world.seen[-1].body) == (200, 1, b"abc")


# --- What comes back --------------------------------------------------------------------------------------------------


def test_the_body_is_read_up_to_a_limit(backend: str) -> None:
    with serving(lambda seen: Reply(200, (), b"x" * 1000)) as server:
        oauth = OAuth(f"{server.origin}/mcp", store=MemoryStore(), interactive=False)
        with pytest.raises(UnreadableError, match="longer than 999 bytes"):
            using(oauth, lambda client: client.request("GET", max_bytes=999), backend)
        response: Response = using(oauth, lambda client: client.request("GET", max_bytes=1000), backend)
    assert response.body == b"x" * 1000


def test_a_stream_ends_with_its_context(backend: str) -> None:
    with serving(lambda seen: Reply(200, (), b"x" * 1_000_000)) as server:
        oauth = OAuth(f"{server.origin}/mcp", store=MemoryStore(), interactive=False)

        async def use(client: Client) -> None:
            async with client.stream("GET") as answer:
                assert await anext(answer.body)
            with pytest.raises(anyio.ClosedResourceError):
                await anext(answer.body)

        using(oauth, use, backend)


# --- Connections ------------------------------------------------------------------------------------------------------


def test_a_client_keeps_its_connection_also_after_a_challenge(backend: str) -> None:
    with world_on_loopback() as world:
        oauth = OAuth(world.url, store=MemoryStore(), user=world.login)
        using(oauth, lambda client: client.request("POST"), backend)
        world.valid.clear()
        counted = Counting()

        async def use(client: Client) -> None:
            for _ in range(3):
                assert (await client.request("POST")).status == 200

        again = OAuth(world.url, store=oauth._store, user=world.login, connect=counted)
        using(again, use, backend)
    assert counted.connected == 2  # one for the caller's requests, one for the renewal


def test_outside_of_a_context_each_request_has_a_connection_of_its_own(backend: str) -> None:
    with world_on_loopback() as world:
        counted = Counting()
        client = Client(logged_in(world, connect=counted))
        for _ in range(2):
            response = anyio.run(partial(client.request, "POST"), backend=backend)
            assert response.status == 200
    assert counted.connected == 2


def test_a_login_that_fails_gives_the_connection_back(backend: str) -> None:
    def handler(seen: Seen) -> Reply:
        return Reply(401, (("www-authenticate", "Bearer"),), b"who?") if seen.path == "/mcp" else Reply(404)

    with serving(handler) as server:
        counted = Counting()
        oauth = OAuth(f"{server.origin}/mcp", store=MemoryStore(), interactive=False, connect=counted)

        async def use(client: Client) -> None:
            for _ in range(3):
                with pytest.raises(Exception, match="interactive=False"):
                    await client.request("POST")

        using(oauth, use, backend)
    assert counted.connected == 1


def test_it_imports_no_http_library() -> None:
    program = """
import sys, mcp_oauth.io.anyio
print([name for name in ("httpx", "httpx2", "aiohttp", "requests", "urllib3", "trio") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
