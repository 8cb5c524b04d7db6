"""The drivers for httpx and httpx2 are held to one contract: sync and async, asyncio and trio (DESIGN 6)."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from mcp_oauth.exceptions import AccessError, AuthorizationRequired
from mcp_oauth.sansio.errors import Reason
from mcp_oauth.store.memory import MemoryStore
from tests.io.servers import PATIENCE, World, put_grant, raw, stored_refresh_token, world_on_loopback
from tests.io.ways import Trickle, Way, endless

pytestmark = pytest.mark.usefixtures("nothing_is_left_of_threads")


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


# --- Bodies -----------------------------------------------------------------------------------------------------------


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
