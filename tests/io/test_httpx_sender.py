"""How the drivers for httpx and httpx2 send what the core asks for: bounded, verified, by themselves."""

from __future__ import annotations

import asyncio
import gzip
import select
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable
from typing import Any

import anyio
import pytest
import trustme

from mcp_oauth.sansio.messages import Request, Response, get, header
from mcp_oauth.sansio.steps import Send, SendFailed
from mcp_oauth.store.memory import MemoryStore
from tests.io.servers import PATIENCE, Reply, Seen, World, put_grant, raw, serving, world_on_loopback
from tests.io.ways import DRIVERS, REDIRECTS, Way

pytestmark = pytest.mark.usefixtures("nothing_is_left_of_threads")


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


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_what_came_while_the_process_was_stopped_for_longer_than_the_deadline_is_read(stack: Any, backend: str) -> None:
    """In two parts, so that it takes more than one look at the socket. Only the sender's own thread is stopped."""
    asked, stopping, answered = (threading.Event() for _ in range(3))

    def answer(connection: socket.socket) -> None:
        asked.set()
        assert stopping.wait(PATIENCE)
        for part in (OK + b"content-length: 80000\r\n\r\n", bytes(80_000)):
            connection.sendall(part)
        answered.set()

    async def stopped() -> None:
        while not asked.is_set():
            await anyio.sleep(0.01)
        stopping.set()
        assert answered.wait(PATIENCE)
        time.sleep(1.7)

    async def main(origin: str) -> Any:
        oauth = DRIVERS[stack]("https://mcp.example/mcp", store=MemoryStore())
        async with oauth.open_sender() as sender, anyio.create_task_group() as tasks:
            tasks.start_soon(stopped)
            return await sender(Send(get(origin), 1 << 20, 1.5))

    with raw(answer) as origin:
        response = anyio.run(main, origin, backend=backend)
    assert isinstance(response, Response)
    assert len(response.body) == 80_000


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


def test_RULES_1_3_the_environments_proxy_does_not_get_plain_http(stack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain http is for loopback: whatever the proxy was set for, it would read the tokens."""
    asked: list[str] = []

    def refuse(seen: Seen) -> Reply:
        asked.append(seen.method)
        return Reply(403)

    with serving(refuse) as proxy, serving(lambda seen: Reply(200)) as server:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
            monkeypatch.setenv(name, proxy.origin)
        for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        direct = send(stack, get(server.origin))
        through = send(stack, get("https://as.example/metadata"))
    assert isinstance(direct, Response)
    assert asked == ["CONNECT"]
    assert (type(through), through.may_have_arrived) == (SendFailed, False)


def test_no_client_is_made_where_nothing_is_sent(stack: Any, world: World) -> None:
    def transport() -> Any:
        raise AssertionError

    store = MemoryStore()
    put_grant(store, world, expires_in=1000)
    oauth = DRIVERS[stack](world.url, store=store, transport=transport)
    assert oauth.authorize() == oauth.token
