"""What is special to aiohttp: a middleware that runs at each hop, a request sent again, what the caller keeps."""

from __future__ import annotations

import asyncio
import io
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp import web
from aiohttp.abc import AbstractResolver
from yarl import URL

from mcp_oauth.exceptions import OAuthError
from mcp_oauth.io import aiohttp as driver
from mcp_oauth.io import plug
from mcp_oauth.io.aiohttp import OAuth
from mcp_oauth.sansio.messages import Request, Response, get, header
from mcp_oauth.sansio.steps import Send, SendFailed
from mcp_oauth.store.memory import MemoryStore
from tests.io.servers import PATIENCE, Reply, Seen, World, put_grant, raw, serving, world_on_loopback
from tests.io.web import world_on_the_web

pytestmark = pytest.mark.usefixtures("nothing_is_left_of_flights")


def logging_in(world: World) -> OAuth:
    """A driver without a token, whose user logs in."""
    return OAuth(world.url, store=MemoryStore(), user=world.login)


def session_with(*middlewares: Any, **options: Any) -> aiohttp.ClientSession:
    timeout = aiohttp.ClientTimeout(total=PATIENCE)
    return aiohttp.ClientSession(middlewares=middlewares, timeout=timeout, **options)


def run(use: Callable[[aiohttp.ClientSession], Awaitable[Any]], *middlewares: Any, **options: Any) -> Any:
    """Have a session, and use it."""

    async def main() -> Any:
        async with session_with(*middlewares, **options) as session:
            return await use(session)

    return asyncio.run(main())


# --- What the caller keeps --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [None, "Basic mine"], ids=["no-header-of-his-own", "a-header-of-his-own"])
def test_the_token_is_not_in_the_request_that_the_caller_keeps(own: str | None) -> None:
    headers = {} if own is None else {"Authorization": own}
    with world_on_loopback() as world:

        async def use(session: aiohttp.ClientSession) -> Any:
            async with session.get(world.url, headers=headers) as response:
                return response, await response.json(), dict(session.headers)

        response, seen, defaults = run(use, logging_in(world))
    assert seen["token"].startswith("Bearer CANARY")
    assert response.request_info.headers.getall("Authorization", []) == ([] if own is None else [own])
    assert "CANARY" not in f"{response!r} {response.request_info!r} {defaults!r} {headers!r}"


def test_the_token_is_not_in_an_error_of_the_callers_request() -> None:
    with world_on_loopback() as world:

        async def use(session: aiohttp.ClientSession) -> None:
            await session.ws_connect(world.url)  # it answers with 200

        with pytest.raises(aiohttp.WSServerHandshakeError) as raised:
            run(use, logging_in(world))
    assert "CANARY" not in f"{raised.value!r} {raised.value.request_info!r}"


def test_the_token_wins_over_netrc_where_it_belongs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login alice password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with world_on_loopback() as world, serving(lambda seen: Reply(200, body=str(seen.token).encode())) as other:

        async def use(session: aiohttp.ClientSession) -> tuple[str, str]:
            async with session.get(world.url) as at_home, session.get(other.origin) as elsewhere:
                return (await at_home.json())["token"], await elsewhere.text()

        at_home, elsewhere = run(use, logging_in(world), trust_env=True)
    assert at_home.startswith("Bearer")
    assert elsewhere.startswith("Basic")
    assert all(seen.token is None for seen in world.seen if not seen.path.startswith("/mcp"))


# --- Hops -------------------------------------------------------------------------------------------------------------


async def in_a_task_of_its_own(request: Any, handler: Any) -> Any:
    """What `asyncio.wait_for` did before Python 3.12, so that no context variable comes back."""
    return await asyncio.create_task(handler(request))


class Redirecting(World):
    """Redirects as it is told, and takes a token anywhere."""

    def __init__(self, origin: str) -> None:
        super().__init__(origin)
        self.locations: dict[str, str] = {}

    def __call__(self, seen: Seen) -> Reply:
        if (location := self.locations.get(seen.path)) is None:
            return super().__call__(seen) if "/." in seen.path or "oken" in seen.path else self.take(seen)
        self.seen.append(seen)
        return Reply(307, (("location", location),))

    def take(self, seen: Seen) -> Reply:
        self.seen.append(seen)
        return Reply(200, body=str(seen.token).encode())


def redirecting(server: Any) -> tuple[Redirecting, OAuth]:
    server.handler = world = Redirecting(server.origin)
    store = MemoryStore()
    put_grant(store, world, expires_in=3600)
    return world, OAuth(world.url, store=store)


TARGETS = {
    "below": ("/mcp/below", True),
    "itself-with-a-slash": ("/mcp/", True),
    "beside": ("/mcpx", False),
    "root": ("/", False),
    "elsewhere-at-the-origin": ("/messages?mcp=/mcp", False),
    "escaped": ("/%6Dessages", False),
    "dots": ("/mcp/../messages", False),
    "encoded-dots": ("/mcp/%2e%2e/messages", False),
    "no-scheme": ("//{host}/messages", False),
    "with-userinfo": ("http://me:pw@{host}/messages", False),
    "absolute": ("http://{host}/mcp/below", True),
}


@pytest.mark.parametrize("requote", [True, False], ids=["requoted", "as-it-is"])
@pytest.mark.parametrize("task", [(), (in_a_task_of_its_own,)], ids=["same-task", "other-task"])
@pytest.mark.parametrize(("location", "authorized"), TARGETS.values(), ids=TARGETS)
def test_RULES_1_1_a_hop_has_the_token_only_at_or_below_the_server(
    location: str, authorized: bool, task: Any, requote: bool
) -> None:
    with serving() as server:
        world, oauth = redirecting(server)
        world.locations["/mcp"] = location.format(host=server.origin.removeprefix("http://"))

        async def use(session: aiohttp.ClientSession) -> bool:
            async with session.get(world.url) as response:
                assert response.status == 200
                return "CANARY" in await response.text()

        assert run(use, *task, oauth, requote_redirect_url=requote) is authorized
    assert ["CANARY" in (seen.token or "") for seen in world.seen] == [True, authorized]


def test_RULES_1_1_a_hop_that_only_some_releases_of_aiohttp_follow_has_no_token() -> None:
    with serving() as server:
        world, oauth = redirecting(server)
        world.locations["/mcp"] = "http:/messages"

        async def use(session: aiohttp.ClientSession) -> None:
            with suppress(aiohttp.InvalidURL):
                async with session.get(world.url):
                    pass

        run(use, oauth)
    assert [seen.path for seen in world.seen if seen.token] == ["/mcp"]


@pytest.mark.parametrize("chain", [("/a", "/messages"), ("/mcp/x", "/messages"), ("/messages", "/messages")])
def test_RULES_1_1_every_hop_of_a_chain_is_judged(chain: tuple[str, str]) -> None:
    with serving() as server:
        world, oauth = redirecting(server)
        world.locations |= {"/mcp": chain[0]} | ({chain[0]: chain[1]} if chain[0] != chain[1] else {})

        async def use(session: aiohttp.ClientSession) -> str:
            async with session.get(world.url) as response:
                return await response.text()

        assert "CANARY" not in run(use, oauth)


def test_RULES_1_1_a_hop_that_comes_from_another_host_is_judged_too() -> None:
    with serving() as server:
        _, oauth = redirecting(server)
        with serving(lambda seen: Reply(302, (("location", f"{server.origin}{seen.path}"),))) as other:

            async def use(session: aiohttp.ClientSession) -> list[bool]:
                answers: list[bool] = []
                for path in ("/messages", "/mcp/below"):
                    async with session.get(other.origin + path) as response:
                        answers.append("CANARY" in await response.text())
                return answers

            assert run(use, oauth) == [False, True]


def test_RULES_1_1_the_callers_own_request_elsewhere_at_the_origin_has_the_token() -> None:
    with serving() as server:
        world, oauth = redirecting(server)
        world.locations["/mcp"] = "/led-here"

        async def use(session: aiohttp.ClientSession) -> list[bool]:
            answers: list[bool] = []
            for path in ("/messages", "/mcp", "/messages"):
                async with session.get(server.origin + path) as response:
                    answers.append("CANARY" in await response.text())
            return answers

        assert run(use, oauth) == [True, False, True]


@pytest.mark.parametrize("location", ["http://[", "ftp://elsewhere/", "http:///", "http://a:99999999/"])
def test_a_redirect_to_nowhere_is_aiohttps_error(location: str) -> None:
    with serving() as server:
        world, oauth = redirecting(server)
        world.locations["/mcp"] = location

        async def use(session: aiohttp.ClientSession) -> None:
            await session.get(world.url)

        with pytest.raises(aiohttp.ClientError):
            run(use, oauth)


# --- Bodies that are sent again ---------------------------------------------------------------------------------------


def form() -> aiohttp.FormData:
    return aiohttp.FormData({"a": "1"})


def upload() -> aiohttp.FormData:
    data = aiohttp.FormData()
    data.add_field("file", io.BytesIO(b"content"), filename="name.txt")
    return data


def once() -> aiohttp.FormData:
    data = aiohttp.FormData()
    data.add_field("file", stream(), filename="name.txt")
    return data


async def stream() -> Any:
    yield b"content"


AGAIN: dict[str, Callable[[Path], dict[str, Any]]] = {
    "nothing": lambda path: {},
    "empty": lambda path: {"data": b""},
    "bytes": lambda path: {"data": b"content"},
    "large": lambda path: {"data": bytearray(b"x" * 500_000)},
    "text": lambda path: {"data": "content"},
    "json": lambda path: {"json": {"a": 1}},
    "form": lambda path: {"data": {"a": "1"}},
    "form-data": lambda path: {"data": form()},
    "multipart": lambda path: {"data": upload()},
    "compressed": lambda path: {"data": b"content", "compress": "deflate"},
    "bytes-io": lambda path: {"data": io.BytesIO(b"content")},
    "string-io": lambda path: {"data": io.StringIO("content")},
    "file": lambda path: {"data": path.open("rb")},
    "text-file": lambda path: {"data": path.open()},
}


async def first_and_second(body: dict[str, Any], **options: Any) -> list[bytes]:
    """The bodies of a request that is challenged, as they arrive."""
    async with world_on_the_web() as world:
        async with session_with(logging_in(world)) as session, session.put(world.url, **body, **options) as response:
            assert response.status == 200
        return [seen.body for seen in world.at("/mcp")]


@pytest.mark.parametrize("body", AGAIN.values(), ids=AGAIN)
def test_a_body_is_sent_again_intact(body: Callable[[Path], dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "body"
    path.write_bytes(b"content" * 10_000)
    first, second = asyncio.run(first_and_second(body(path)))
    assert first == second


def test_a_file_is_sent_again_from_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "body"
    path.write_bytes(b"0123456789")

    async def main() -> list[bytes]:
        with path.open("rb") as file:
            file.seek(4)
            return await first_and_second({"data": file})

    assert asyncio.run(main()) == [b"456789", b"456789"]


def test_a_body_that_is_still_being_sent_when_the_challenge_comes_is_sent_again_intact(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(os.urandom(4 << 20))

    async def hasty(request: web.BaseRequest, world: World) -> web.StreamResponse:
        return web.Response(status=401, headers={"WWW-Authenticate": "Bearer"})

    async def main() -> list[bytes]:
        async with world_on_the_web(challenge=hasty) as world:
            data = large.open("rb")
            async with session_with(logging_in(world)) as session, session.put(world.url, data=data) as response:
                assert response.status == 200
            return [seen.body for seen in world.at("/mcp")]

    assert asyncio.run(main()) == [large.read_bytes()]


@pytest.mark.parametrize("body", [lambda: {"data": stream()}, lambda: {"data": once()}], ids=["stream", "multipart"])
def test_a_stream_cannot_be_sent_again_which_is_a_clear_error(body: Callable[[], dict[str, Any]]) -> None:
    with pytest.raises(OAuthError, match="cannot be sent twice"):
        asyncio.run(first_and_second(body()))


def test_a_pipe_cannot_be_sent_again_which_is_a_clear_error() -> None:
    there, here = os.pipe()
    os.write(here, b"content")
    os.close(here)
    with os.fdopen(there, "rb") as pipe, pytest.raises(OAuthError, match="cannot be sent twice"):
        asyncio.run(first_and_second({"data": pipe}))


# --- A challenged response --------------------------------------------------------------------------------------------


def unfinished(length: int | None) -> Any:
    async def challenge(request: web.BaseRequest, world: World) -> web.StreamResponse:
        response = web.StreamResponse(status=401, headers={"WWW-Authenticate": "Bearer"})
        response.content_length = length
        await response.prepare(request)
        await response.write(b"x")
        await asyncio.Event().wait()
        raise AssertionError

    return challenge


@pytest.mark.parametrize("length", [10, 1 << 30, None], ids=["never-comes", "too-long", "of-unknown-length"])
def test_the_body_of_a_challenged_response_holds_nobody(length: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plug, "LETTING_GO", 0.1)

    async def main() -> int:
        async with world_on_the_web(challenge=unfinished(length)) as world, session_with(logging_in(world)) as session:
            response = await session.get(world.url)
            response.close()
            return response.status

    assert asyncio.run(main()) == 200


def test_the_connection_of_a_short_challenge_is_used_again() -> None:
    peers: list[Any] = []

    async def challenge(request: web.BaseRequest, world: World) -> web.StreamResponse:
        peers.append(request.transport)
        return web.Response(status=401, headers={"WWW-Authenticate": "Bearer"}, text="who?")

    async def mcp(request: web.BaseRequest, world: World) -> web.StreamResponse:
        peers.append(request.transport)
        return web.Response()

    async def main() -> None:
        async with world_on_the_web(mcp, challenge) as world, session_with(logging_in(world)) as session:
            response = await session.get(world.url)
            response.close()
            assert response.status == 200

    asyncio.run(main())
    assert len(peers) == 2
    assert peers[0] is peers[1]


# --- WebSockets -------------------------------------------------------------------------------------------------------


async def echo(request: web.BaseRequest, world: World) -> web.StreamResponse:
    """Says one message back, and closes."""
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    await socket.send_str(await socket.receive_str())
    await socket.close()
    return socket


@pytest.mark.parametrize("level", ["session", "challenged"])
def test_the_handshake_of_a_websocket_has_the_token(level: str) -> None:
    async def main() -> tuple[Any, int]:
        async with world_on_the_web(echo) as world:
            oauth = logging_in(world)
            if level != "challenged":
                await oauth.aauthorize()
            url = world.url.replace("http", "ws")
            async with session_with(oauth) as session, session.ws_connect(url) as socket:
                await socket.send_str("hello")
                return await socket.receive_str(), len(world.at("/mcp"))

    assert asyncio.run(main()) == ("hello", 2 if level == "challenged" else 1)


# --- OAuth traffic ----------------------------------------------------------------------------------------------------


def perform(*requests: Request, seconds: float = PATIENCE, most: int = 1 << 20, **options: Any) -> list[Any]:
    """Some requests of one run, as a flight sends them."""
    oauth = OAuth("https://mcp.example/mcp", store=MemoryStore(), **options)

    async def main() -> list[Any]:
        async with oauth.open_sender() as send:
            return [await send(Send(request, most, seconds)) for request in requests]

    return asyncio.run(main())


POST = Request("POST", "", (("content-type", "application/x-www-form-urlencoded"),), b"a=1")


def post(url: str) -> Request:
    return Request("POST", url, POST.headers, POST.body)


def test_only_the_headers_of_the_core_travel() -> None:
    seen: list[Seen] = []

    def answer(request: Seen) -> Reply:
        seen.append(request)
        return Reply(200, (("set-cookie", "a=b"),))

    with serving(answer) as server:
        perform(get(f"{server.origin}/a"), post(f"{server.origin}/b"))
    transport = {"host", "connection", "accept-encoding"}
    assert [set(request.headers) - transport for request in seen] == [
        {name.lower() for name, _ in get("x").headers},
        {"content-type", "content-length"},
    ]
    assert {request.headers["accept-encoding"] for request in seen} == {"identity"}


def test_a_url_travels_byte_for_byte() -> None:
    seen: list[str] = []

    def answer(request: Seen) -> Reply:
        seen.append(request.url)
        return Reply(200)

    with serving(answer) as server:
        url = f"{server.origin}/%7euser/%6d//x?q=%7e+%20&q=a,b"
        perform(get(url))
    assert seen == [url]


def test_header_fields_may_be_long_and_are_any_bytes() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nx-odd: caf\xe9\r\nx-policy: " + b"x" * 20_000 + b"\r\n\r\n"
    with raw(lambda connection: connection.sendall(head)) as origin:
        (response,) = perform(get(origin))
    assert isinstance(response, Response)
    assert header(response.headers, "x-odd") == "caf\xe9"
    assert len(header(response.headers, "x-policy") or "") == 20_000


def test_header_fields_have_a_limit() -> None:
    head = b"HTTP/1.1 200 OK\r\nx-policy: " + b"x" * 100_000 + b"\r\n\r\n"
    with raw(lambda connection: connection.sendall(head)) as origin:
        (failed,) = perform(get(origin))
    assert isinstance(failed, SendFailed)
    assert failed.may_have_arrived


def test_RULES_4_9_a_post_whose_answer_is_lost_is_not_sent_again_by_aiohttp() -> None:
    times: list[int] = []
    with raw(lambda connection: times.append(1)) as origin:
        (failed,) = perform(post(origin))
    assert failed == SendFailed("ServerDisconnectedError", may_have_arrived=True)
    assert times == [1]


def test_RULES_2_14_a_connection_that_the_server_closed_meanwhile_is_not_used() -> None:
    """The server keeps its connections alive in words, and closes them at once."""
    ok = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: keep-alive\r\n\r\n"
    with raw(lambda connection: connection.sendall(ok)) as origin:
        answers = perform(post(origin), post(origin), post(origin))
    assert [answer.status for answer in answers] == [200, 200, 200]


class Hanging(AbstractResolver):
    """Resolves no name, ever."""

    async def resolve(self, *_: Any, **__: Any) -> Any:
        await asyncio.sleep(3600)

    async def close(self) -> None:
        pass


class Nowhere(AbstractResolver):
    """Knows no name."""

    async def resolve(self, *_: Any, **__: Any) -> Any:
        raise OSError("no such name")

    async def close(self) -> None:
        pass


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def test_RULES_4_9_who_was_not_connected_to_has_not_seen_the_request() -> None:
    assert perform(
        post("https://as.example"), seconds=0.1, connector=lambda: aiohttp.TCPConnector(resolver=Hanging())
    ) == [SendFailed("ConnectionTimeoutError", may_have_arrived=False)]
    for failed in [
        *perform(post("https://as.example"), connector=lambda: aiohttp.TCPConnector(resolver=Nowhere())),
        *perform(post(f"http://127.0.0.1:{closed_port()}")),
        *perform(post("https://as.example"), proxy=f"http://127.0.0.1:{closed_port()}"),
        *perform(post("ftp://as.example"), post("http:///")),
    ]:
        assert isinstance(failed, SendFailed)
        assert not failed.may_have_arrived


def test_RULES_4_9_what_a_proxy_refused_was_not_sent_and_its_password_is_not_told() -> None:
    with serving(lambda seen: Reply(407)) as proxy:
        url = proxy.origin.replace("http://", "http://me:CANARY@")
        assert perform(post("https://as.example/token"), proxy=url) == [
            SendFailed("the proxy answered with status 407", may_have_arrived=False)
        ]


def test_a_certificate_that_is_not_trusted_is_named_with_the_cure() -> None:
    ca, server_side, client_side = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    ca.issue_cert("127.0.0.1").configure_cert(server_side)
    ca.configure_trust(client_side)
    with serving(lambda seen: Reply(200), server_side) as server:
        (failed,) = perform(post(server.origin))
        (other_name,) = perform(post(server.origin.replace("127.0.0.1", "localhost")), ssl=client_side)
        (response,) = perform(post(server.origin), ssl=client_side)
        (too,) = perform(post(server.origin), connector=lambda: aiohttp.TCPConnector(ssl=client_side))
    assert (response.status, too.status) == (200, 200)
    for each in failed, other_name:
        assert not each.may_have_arrived
        assert "certificate verify failed" in each.reason
    cure = "ssl=ssl.create_default_context(cafile=...)"
    assert (cure in failed.reason, cure in other_name.reason) == (True, False)  # another CA does not mend a name


def test_a_connector_is_made_for_each_run_and_closed_with_it() -> None:
    made: list[aiohttp.TCPConnector] = []

    def make() -> aiohttp.TCPConnector:
        made.append(aiohttp.TCPConnector())
        return made[-1]

    with world_on_loopback() as world:
        oauth = OAuth(world.url, store=MemoryStore(), user=world.login, connector=make)
        oauth.authorize()
        oauth.authorize(force=True)
    assert [connector.closed for connector in made] == [True, True]


def test_redirects_at_the_servers_host_are_remembered_however_it_is_written() -> None:
    oauth = OAuth("https://mcp.example/mcp", store=MemoryStore())
    for location in ("https://MCP.example/a/../b", "https://elsewhere.example/c", "https:", "//[", "?d"):
        oauth._remember(URL("https://mcp.example/mcp"), location)
    assert set(oauth._led_to) == {"/b", "/a/../b", "/mcp"}


def test_the_memory_of_redirects_is_bounded() -> None:
    oauth = OAuth("https://mcp.example/mcp", store=MemoryStore())
    for n in range(driver.MOST_REMEMBERED + 5):
        oauth._remember(URL("https://mcp.example/mcp"), f"/{n}")
    assert len(oauth._led_to) == driver.MOST_REMEMBERED
