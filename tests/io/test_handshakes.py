"""Event streams and WebSockets: a token in the handshake, renewed before the client connects again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import pytest
from aiohttp import web
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import InvalidStatus
from websockets.http11 import Request, Response

import mcp_oauth.io.aiohttp
import mcp_oauth.io.httpx2
from examples.sse_client import events
from examples.websockets_client import connect_authorized, messages
from mcp_oauth.exceptions import AuthorizationRequired
from mcp_oauth.store.memory import MemoryStore
from tests.docs.blocks import blocks
from tests.io.servers import Seen, World, put_grant, serving
from tests.io.web import world_on_the_web

pytestmark = pytest.mark.usefixtures("nothing_is_left_of_flights")

CONNECTIONS = 3
ROOT = Path(__file__).parents[2]


def shown_with(name: str) -> str:
    """The block of the page on drivers that has it."""
    (shown,) = (
        block.code for block in blocks((ROOT / "docs" / "drivers.md").read_text("utf-8"), "py") if name in block.code
    )
    return shown


def a_token_that_runs_out_at_once(world: World, driver: Any) -> Any:
    """Each is good for one request (RULES 4.12), so that the next connection needs another."""
    world.lifetime = 0
    store = MemoryStore()
    put_grant(store, world)
    return driver.OAuth(world.url, store=store)


def each_handshake_had_a_new_token_at_once(world: World) -> None:
    tokens = [seen.token for seen in world.at("/mcp")]
    assert len(set(tokens)) == len(tokens) == world.refreshes == CONNECTIONS
    assert None not in tokens


# --- Server-sent events -----------------------------------------------------------------------------------------------


async def two_events(request: web.BaseRequest, world: World) -> web.StreamResponse:
    """Two events, numbered on from the last that the client has, and the end of the stream."""
    last = int(request.headers.get("Last-Event-ID", "0"))
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for number in (last + 1, last + 2):
        await response.write(f"id: {number}\ndata: event {number}\n\n".encode())
    return response


def test_the_example_of_events_renews_before_it_connects_again() -> None:
    async def main() -> list[str]:
        async with world_on_the_web(two_events) as world:
            oauth, data = a_token_that_runs_out_at_once(world, mcp_oauth.io.httpx2), list[str]()
            async with aclosing(events(oauth, world.url, wait=0)) as stream:
                async for event in stream:
                    data.append(event.data)
                    if len(data) == 2 * CONNECTIONS:
                        break
            each_handshake_had_a_new_token_at_once(world)
            return data

    assert asyncio.run(main()) == [f"event {n}" for n in range(1, 2 * CONNECTIONS + 1)]


def test_the_example_of_events_goes_on_after_a_connection_is_cut() -> None:
    async def cut(request: web.BaseRequest, world: World) -> web.StreamResponse:
        response = await two_events(request, world)
        assert request.transport
        request.transport.abort()
        return response

    async def main() -> list[str]:
        async with world_on_the_web(cut) as world:
            oauth, ids = a_token_that_runs_out_at_once(world, mcp_oauth.io.httpx2), list[str]()
            async with aclosing(events(oauth, world.url, wait=0)) as stream:
                async for event in stream:
                    ids.append(event.id)
                    if event.id == "4":
                        break
            assert world.refreshes == len(world.at("/mcp"))
            return ids

    assert asyncio.run(main()) == ["1", "2", "3", "4"]


def test_the_example_of_events_ends_where_the_server_refuses() -> None:
    async def refuse(request: web.BaseRequest, world: World) -> web.StreamResponse:
        return web.Response(status=403)

    async def main() -> None:
        async with world_on_the_web(refuse) as world:
            oauth = a_token_that_runs_out_at_once(world, mcp_oauth.io.httpx2)
            with pytest.raises(httpx2.HTTPStatusError):
                await anext(events(oauth, world.url, wait=0))

    asyncio.run(main())


def test_the_page_on_drivers_shows_what_works(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(shown_with("client.sse"), names)

    async def main() -> None:
        async with world_on_the_web(two_events) as world:
            names["OAuth"] = lambda url: mcp_oauth.io.httpx2.OAuth(url, store=MemoryStore(), user=world.login)
            await names["show"](world.url)

    asyncio.run(main())
    assert capsys.readouterr().out == "event 1\nevent 2\n"


def test_an_event_stream_of_aiohttp_renews_before_it_connects_again() -> None:
    async def main() -> list[bytes]:
        lines: list[bytes] = []
        async with world_on_the_web(two_events) as world:
            oauth = a_token_that_runs_out_at_once(world, mcp_oauth.io.aiohttp)
            async with aiohttp.ClientSession(middlewares=(oauth,)) as session:
                for _ in range(CONNECTIONS):
                    async with session.get(world.url) as response:
                        lines += [line async for line in response.content if line.startswith(b"data")]
            each_handshake_had_a_new_token_at_once(world)
        return lines

    assert asyncio.run(main()) == [b"data: event 1\n", b"data: event 2\n"] * CONNECTIONS


# --- WebSockets of aiohttp and httpx2 ---------------------------------------------------------------------------------


async def greet(request: web.BaseRequest, world: World) -> web.StreamResponse:
    """Says hello, and goes away."""
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    await socket.send_str("hello")
    await socket.close()
    return socket


async def aiohttp_sockets(world: World, oauth: Any) -> list[Any]:
    async with aiohttp.ClientSession(middlewares=(oauth,)) as session:
        heard: list[Any] = []
        for _ in range(CONNECTIONS):
            async with session.ws_connect(world.url.replace("http", "ws")) as socket:
                heard.append(await socket.receive_str())
        return heard


async def httpx2_sockets(world: World, oauth: Any) -> list[Any]:
    async with httpx2.AsyncClient(auth=oauth) as client:
        heard: list[Any] = []
        for _ in range(CONNECTIONS):
            async with client.websocket(world.url.replace("http", "ws")) as socket:
                heard.append(await socket.receive_text())
        return heard


@pytest.mark.parametrize(
    ("driver", "talk"),
    [(mcp_oauth.io.aiohttp, aiohttp_sockets), (mcp_oauth.io.httpx2, httpx2_sockets)],
    ids=["aiohttp", "httpx2"],
)
def test_a_websocket_of_the_stack_renews_before_it_connects_again(driver: Any, talk: Any) -> None:
    async def main() -> None:
        async with world_on_the_web(greet) as world:
            oauth = a_token_that_runs_out_at_once(world, driver)
            assert await talk(world, oauth) == ["hello"] * CONNECTIONS
            each_handshake_had_a_new_token_at_once(world)

    asyncio.run(main())


# --- The library websockets -------------------------------------------------------------------------------------------


class Beside(World):
    """An MCP server on a port of its own, beside its authorization server."""

    home = ""

    @property
    def url(self) -> str:
        return f"{self.home}/mcp"


@asynccontextmanager
async def sockets(world: Beside, redirect: str | None = None) -> AsyncGenerator[Server]:
    """A WebSocket server that says hello, and cuts the connection; `redirect` is where it sends who has a token."""

    def judge(connection: ServerConnection, request: Request) -> Response | None:
        headers = {name.lower(): value for name, value in request.headers.raw_items()}
        reply = world(Seen("GET", f"{world.home}{request.path}", headers, b""))
        if reply.status == 200 and redirect is not None and request.path != redirect:
            reply = reply._replace(status=302, headers=(("location", redirect),))
        if request.path == "/mcp" and reply.status == 200:
            return None
        response = connection.respond(reply.status, reply.body.decode())
        for name, value in reply.headers:
            if name in response.headers:
                del response.headers[name]
            response.headers[name] = value.replace(world.origin, world.home)
        return response

    async def talk(connection: ServerConnection) -> None:
        await connection.send("hello")
        connection.transport.close()

    async with serve(talk, "127.0.0.1", 0, process_request=judge) as server:
        host, port = next(iter(server.sockets)).getsockname()
        world.home = f"http://{host}:{port}"
        yield server


@asynccontextmanager
async def beside(redirect: str | None = None) -> AsyncGenerator[tuple[Beside, str]]:
    """The world, and the URL of its WebSocket."""
    with serving() as server:
        server.handler = world = Beside(server.origin)
        async with sockets(world, redirect):
            yield world, world.url.replace("http", "ws")


def test_the_example_of_websockets_renews_before_it_connects_again() -> None:
    async def main() -> list[str | bytes]:
        async with beside() as (world, url):
            oauth, heard = a_token_that_runs_out_at_once(world, mcp_oauth.io.httpx2), list[str | bytes]()
            async with aclosing(messages(oauth, url, wait=0)) as stream:
                async for message in stream:
                    heard.append(message)
                    if len(heard) == CONNECTIONS:
                        break
            each_handshake_had_a_new_token_at_once(world)
            return heard

    assert asyncio.run(main()) == ["hello"] * CONNECTIONS


def test_the_example_of_websockets_gets_a_token_where_it_is_challenged() -> None:
    async def main() -> None:
        async with beside() as (world, url):
            oauth = mcp_oauth.io.httpx2.OAuth(world.url, store=MemoryStore(), user=world.login)
            async with await connect_authorized(oauth, url, user_agent_header="mine") as socket:
                assert await socket.recv() == "hello"
            assert [seen.token is not None for seen in world.at("/mcp")] == [False, True]
            assert [seen.headers["user-agent"] for seen in world.at("/mcp")] == ["mine", "mine"]

    asyncio.run(main())


def test_the_page_on_drivers_shows_the_code_of_the_example() -> None:
    code = (ROOT / "examples" / "websockets_client.py").read_text("utf-8")
    assert shown_with("connect_authorized") in code


def test_the_example_of_websockets_raises_what_its_user_must_know() -> None:
    async def main() -> None:
        async with beside() as (world, url):
            oauth = mcp_oauth.io.httpx2.OAuth(world.url, store=MemoryStore(), interactive=False)
            with pytest.raises(AuthorizationRequired):
                await connect_authorized(oauth, url)
            with pytest.raises(InvalidStatus, match="404"):
                await connect_authorized(oauth, url.replace("/mcp", "/other"))

    asyncio.run(main())


def test_RULES_1_1_the_example_of_websockets_follows_no_redirect() -> None:
    async def main() -> None:
        async with beside("/other") as (world, url):
            oauth = a_token_that_runs_out_at_once(world, mcp_oauth.io.httpx2)
            with pytest.raises(InvalidStatus, match="302"):
                await connect_authorized(oauth, url)
            assert [seen.path for seen in world.seen if seen.token] == ["/mcp"]

    asyncio.run(main())
