"""httpx and httpx2 over HTTP/2: a real server (hypercorn), TLS with ALPN, nothing else spoken there."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme
from anyio.from_thread import start_blocking_portal
from hypercorn.asyncio import serve
from hypercorn.config import Config

from mcp_oauth.store.memory import MemoryStore
from tests.io.contract.httpx_ways import HttpxAsync, HttpxSync
from tests.io.contract.ways import CONTENT, CROWD, Answer, Authority, Call, Caller, Script, Way
from tests.io.servers import PATIENCE, Reply, Seen, World, document, put_grant, stored_refresh_token

pytestmark = pytest.mark.usefixtures("nothing_is_left_of_threads")

Asgi = Callable[[dict[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]


class Server:
    """An origin, and what is served there, over HTTP/2 alone."""

    def __init__(self, origin: str, authority: Authority) -> None:
        self.origin, self.authority = origin, authority
        self.handler: Callable[[Seen], Reply] = lambda seen: Reply(404)
        self.peers: set[Any] = set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise NotImplementedError  # there is no lifespan
        assert scope["http_version"] == "2"
        self.peers.add(tuple(scope["client"]))
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        url = f"{self.origin}{scope['raw_path'].decode()}"
        reply = self.handler(Seen(scope["method"], url, headers, body))
        fields = [(name.encode(), value.encode()) for name, value in reply.headers]
        await send({"type": "http.response.start", "status": reply.status, "headers": fields})
        await send({"type": "http.response.body", "body": reply.body})


@contextmanager
def http2(folder: Path) -> Generator[Server]:
    ca, client = trustme.CA(), ssl.create_default_context()
    ca.configure_trust(client)
    certificate = ca.issue_cert("127.0.0.1")
    pem = folder / "server.pem"
    certificate.private_key_and_cert_chain_pem.write_to_path(str(pem))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(f"https://127.0.0.1:{listener.getsockname()[1]}", Authority(client, folder))
        bind = f"fd://{listener.detach()}"
    config = Config()
    config.bind, config.alpn_protocols, config.errorlog = [bind], ["h2"], None
    config.certfile = config.keyfile = str(pem)
    with start_blocking_portal("asyncio") as portal:
        end = portal.call(asyncio.Event)
        served = portal.start_task_soon(partial(serve, server, config, shutdown_trigger=end.wait))
        try:
            yield server
        finally:
            portal.call(end.set)
            served.result(PATIENCE)


WAYS: list[Way] = [HttpxSync(stack, http2=True) for stack in ("httpx", "httpx2")]
TASKS: list[Way] = [
    HttpxAsync(stack, mode, http2=True) for stack in ("httpx", "httpx2") for mode in ("asyncio", "trio")
]
"""Many threads on one connection of HTTP/2 fail by chance in httpcore, with any auth and with none."""
WAYS += TASKS


@pytest.fixture(params=WAYS, ids=[way.name for way in WAYS])
def way(request: pytest.FixtureRequest) -> Way:
    found: Way = request.param
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with http2(tmp_path_factory.mktemp("h2")) as server:
        yield server


@pytest.fixture
def world(server: Server) -> World:
    server.handler = world = World(server.origin)
    server.peers.clear()
    return world


def plugged(way: Way, server: Server, world: World, **options: Any) -> Caller:
    """OAuth traffic and the caller's own over HTTP/2."""
    oauth = way.oauth(world.url, user=world.login, **way.trusting(server.authority), **options)
    return Caller(oauth, authority=server.authority)


def test_a_login_a_renewal_and_a_body_that_is_sent_again(way: Way, server: Server, world: World) -> None:
    caller = plugged(way, server, world)
    first = way.call(Call("POST", world.url, "bytes"), caller)
    world.valid.clear()
    second = way.call(Call("POST", world.url, "bytes"), caller)
    assert (first.status, second.status) == (200, 200)
    assert (world.logins, world.refreshes) == (1, 1)
    assert [seen.body for seen in world.at("/mcp")] == [CONTENT] * 4


@pytest.mark.parametrize("way", TASKS, ids=[way.name for way in TASKS])
def test_FN_12_50_requests_on_one_connection_with_an_expired_token_cause_one_refresh(
    way: Way, server: Server, world: World
) -> None:
    store = MemoryStore()
    put_grant(store, world)
    caller = plugged(way, server, world, store=store)

    def script() -> Script[list[Answer]]:
        answers: list[Answer] = yield [Call("GET", world.url)] * CROWD
        return answers

    answers = way.run(script(), caller)
    assert {answer.json()["token"] for answer in answers} == {f"Bearer {next(iter(world.valid - {'CANARY-access-1'}))}"}
    assert (world.refreshes, world.reuses, len(server.peers)) == (1, 0, 2)
    assert stored_refresh_token(store, world) == world.refresh_token


@pytest.mark.parametrize("target", ["/mcpx", "/mcp/below"], ids=["RULES-1.1-sibling", "RULES-1.1-below"])
def test_a_token_follows_a_redirect_below_the_server_url_only(
    way: Way, server: Server, world: World, target: str
) -> None:
    store = MemoryStore()
    put_grant(store, world, expires_in=1000)
    seen_at: list[tuple[str, str | None]] = []

    def handler(seen: Seen) -> Reply:
        seen_at.append((seen.path, seen.token))
        if seen.path == "/mcp":
            return Reply(307, (("location", target),))
        return document({}) if seen.token or target == "/mcpx" else Reply(401)

    server.handler = handler
    caller = plugged(way, server, world, store=store)
    assert way.call(Call("GET", world.url, follow=True), caller).status == 200
    assert [path for path, token in seen_at if token] == ["/mcp"] + ["/mcp/below"] * (target == "/mcp/below")
