"""How every driver sends what the core asks for: bounded, verified, by itself."""

from __future__ import annotations

import gzip
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pytest

from mcp_oauth.io.ports import Answer
from mcp_oauth.sansio.messages import Request, Response, get, header
from mcp_oauth.sansio.steps import Send, SendFailed
from mcp_oauth.store.memory import MemoryStore
from tests.io.contract.conftest import Private
from tests.io.contract.ways import REDIRECTS, Way, exchange
from tests.io.servers import (
    PATIENCE,
    Reply,
    Seen,
    World,
    answering,
    dripping,
    put_grant,
    raw,
    serving,
    tunnel,
    world_on_loopback,
)

pytestmark = pytest.mark.usefixtures("nothing_is_left_of_threads")

OK = b"HTTP/1.1 200 OK\r\nconnection: close\r\n"
MOST = 100_000


@pytest.mark.parametrize("status", REDIRECTS)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_RULES_1_4_no_redirect_is_followed(stack: Way, status: int, method: Literal["GET", "POST"]) -> None:
    with serving(lambda seen: Reply(status, (("location", "/elsewhere"),))) as server:
        response = stack.oauth_send(Request(method, f"{server.origin}/start"))
    assert isinstance(response, Response)
    assert (response.status, header(response.headers, "location")) == (status, "/elsewhere")


# --- Limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "framing",
    [
        pytest.param(b"content-length: 67108864\r\n\r\n", id="declared"),
        pytest.param(b"\r\n", id="undeclared"),
        pytest.param(b"transfer-encoding: chunked\r\n\r\n4000000\r\n", id="one-chunk"),
    ],
)
def test_a_body_of_64_MB_is_given_up_at_the_limit(stack: Way, framing: bytes) -> None:
    sent = [0]

    def answer(connection: socket.socket) -> None:
        connection.sendall(OK + framing)
        for _ in range(64):
            connection.sendall(bytes(1 << 20))
            sent[0] += 1

    with raw(answer) as origin:
        failed = stack.oauth_send(get(origin), most=MOST)
    assert failed == SendFailed(f"the body is longer than {MOST} bytes", may_have_arrived=True)
    assert sent[0] < 32


@pytest.mark.parametrize("length", [MOST - 1, MOST, MOST + 1])
def test_a_body_of_exactly_the_limit_is_read(stack: Way, length: int) -> None:
    with answering(OK + b"\r\n", b"x" * length) as origin:
        result = stack.oauth_send(get(origin), most=MOST)
    assert isinstance(result, Response) is (length <= MOST)


CODED = {
    "gzip-bomb": ("gzip", gzip.compress(bytes(64 << 20)), f"the body is longer than {MOST} bytes"),
    "broken": ("gzip", b"not gzip", "the body's content coding is broken"),
    "cut": ("gzip", gzip.compress(b"a form: access_token=half")[:-12], "the body's content coding is broken"),
    "goes-on-after-its-end": ("gzip", gzip.compress(b"fine") + bytes(64 << 20), "the body's content coding is broken"),
    "RFC1952-2.2-two-members": (
        "gzip",
        gzip.compress(b"fi") + gzip.compress(b"ne"),
        "the body's content coding is broken",
    ),
    "empty": ("gzip", b"", b""),
    "unknown": ("br", b"?", "the body has a content coding that was not asked for"),
    "twice": ("gzip, gzip", b"?", "the body has a content coding that was not asked for"),
    "gzip": ("gzip", gzip.compress(b"fine"), b"fine"),
    "exactly-the-limit": ("x-gzip", gzip.compress(b"x" * MOST), b"x" * MOST),
    "deflate": ("deflate", zlib.compress(b"fine"), b"fine"),
    "identity": ("Identity", b"fine", b"fine"),
}


@pytest.mark.parametrize(("coding", "body", "answer"), CODED.values(), ids=CODED)
def test_a_coded_body_is_decoded_under_the_same_limit(stack: Way, coding: str, body: bytes, answer: Any) -> None:
    with answering(OK + f"content-encoding: {coding}\r\n\r\n".encode(), body) as origin:
        result = stack.oauth_send(get(origin), most=MOST)
    assert (result.reason if isinstance(result, SendFailed) else result.body) == answer


def test_headers_of_64_MB_are_given_up(stack: Way) -> None:
    sent = [0]

    def answer(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        for _ in range(64):
            connection.sendall(b"x: CANARY\r\n" * (1 << 17))
            sent[0] += 1

    with raw(answer) as origin:
        failed = stack.oauth_send(get(origin), most=MOST)
    assert isinstance(failed, SendFailed)
    assert failed.may_have_arrived
    assert "CANARY" not in failed.reason
    assert sent[0] < 32


# --- Deadlines --------------------------------------------------------------------------------------------------------


SLOW = {
    "endless-body": (OK + b"\r\n", b"x"),
    "endless-chunks": (OK + b"transfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "silence": (b"", b""),
    "endless-1xx": (b"", b"HTTP/1.1 102 \r\n\r\n"),
}
SLOW_HEADER = {
    "status-trickle": (b"", b"H"),
    "header-trickle": (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"),
    "header-line-trickle": (b"HTTP/1.1 200 OK\r\nx: ", b"y"),
}


@pytest.mark.parametrize(("head", "drop"), SLOW.values(), ids=SLOW)
def test_FN_30_an_exchange_ends_at_its_total_deadline(stack: Way, head: bytes, drop: bytes) -> None:
    ends_at_its_deadline(stack, head, drop)


@pytest.mark.parametrize(("head", "drop"), SLOW_HEADER.values(), ids=SLOW_HEADER)
def test_FN_30_a_slow_header_ends_at_the_deadline_too(driver: Way, head: bytes, drop: bytes) -> None:
    ends_at_its_deadline(driver, head, drop)


def ends_at_its_deadline(way: Way, head: bytes, drop: bytes) -> None:
    with dripping(head, drop) as origin:
        began = time.monotonic()
        failed = way.oauth_send(get(origin), seconds=0.2)
        took = time.monotonic() - began
    assert isinstance(failed, SendFailed)
    assert failed.may_have_arrived
    assert took < 2


@pytest.mark.parametrize("drop", [b"", b"\x16\x03\x03\x40\x00\x02\x00"], ids=["silence", "trickle"])
def test_FN_30_a_slow_tls_handshake_ends_and_has_sent_nothing(driver: Way, drop: bytes) -> None:
    """The trickle is a record of 16 KB that never becomes whole."""
    with dripping(drop, drop[-1:], listen=False) as origin:
        began = time.monotonic()
        failed = driver.oauth_send(get(origin.replace("http:", "https:")), seconds=0.4)
        took = time.monotonic() - began
    assert isinstance(failed, SendFailed)
    assert took < 4
    assert not failed.may_have_arrived


CHILD = """
import sys
from mcp_oauth.sansio.messages import get
from tests.io.contract.table import DRIVERS

driver = next(way for way in DRIVERS if way.stack == sys.argv[1])
print(len(driver.oauth_send(get(sys.argv[2]), seconds=1.0).body))
"""


def test_what_came_while_the_process_was_stopped_for_longer_than_the_deadline_is_read(driver: Way) -> None:
    """In two parts, so that it takes more than one look at the socket."""
    asked, stopped = threading.Event(), threading.Event()

    def answer(connection: socket.socket) -> None:
        asked.set()
        assert stopped.wait(PATIENCE)
        for part in (OK + b"content-length: 80000\r\n\r\n", bytes(80_000)):
            connection.sendall(part)

    with raw(answer) as origin:
        command = [sys.executable, "-c", CHILD, driver.stack, origin]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert asked.wait(PATIENCE)
            os.kill(child.pid, signal.SIGSTOP)
            stopped.set()
            time.sleep(1.2)  # this is what is tested
            os.kill(child.pid, signal.SIGCONT)
            output, _ = child.communicate(timeout=PATIENCE)
    assert output.split() == ["80000"]


# --- Whether the server may have seen it ------------------------------------------------------------------------------


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


UNSENT: dict[str, Callable[[], str]] = {
    "refused": closed_port,
    "scheme": lambda: "ftp://127.0.0.1/",
}


@pytest.mark.parametrize("url", UNSENT.values(), ids=UNSENT)
def test_RULES_4_9_what_was_certainly_not_processed_says_so(stack: Way, url: Callable[[], str]) -> None:
    failed = stack.oauth_send(get(url()))
    assert isinstance(failed, SendFailed)
    assert not failed.may_have_arrived


def test_RULES_4_9_a_name_that_nobody_knows_says_so(stack: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    failed = stack.oauth_send(get("https://as.example/"))
    assert isinstance(failed, SendFailed)
    assert not failed.may_have_arrived


@contextmanager
def deaf() -> Iterator[str]:
    """Where no more connections are accepted: the next handshake hangs."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        for filler in fillers:
            filler.close()


def test_RULES_4_9_a_peer_that_cannot_be_connected_to_has_certainly_not_seen_the_request(driver: Way) -> None:
    with deaf() as origin:
        failed = driver.oauth_send(get(origin), seconds=0.4)
    assert isinstance(failed, SendFailed)
    assert not failed.may_have_arrived


BROKEN = {
    "cut": b"",
    "nonsense": b"nonsense\r\n\r\n",
    "cut-body": OK + b"content-length: 9\r\n\r\nCANARY",
    "cut-chunk": OK + b"transfer-encoding: chunked\r\n\r\n9\r\nCANARY",
    "bad-chunk": OK + b"transfer-encoding: chunked\r\n\r\nCANARY\r\n",
    "bad-status": b"HTTP/1.1 CANARY OK\r\n\r\n",
}


@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN)
def test_RULES_4_9_a_cut_or_broken_answer_may_have_been_processed_and_is_not_quoted(stack: Way, answer: bytes) -> None:
    with answering(answer) as origin:
        failed = stack.oauth_send(get(origin))
    assert isinstance(failed, SendFailed)
    assert failed.may_have_arrived
    assert "CANARY" not in failed.reason


def test_a_broken_header_may_be_forgiven_and_is_not_quoted(stack: Way) -> None:
    with answering(b"HTTP/1.1 200 OK\r\n\x00CANARY\r\n\r\n") as origin:
        result = stack.oauth_send(get(origin))
    if isinstance(result, SendFailed):
        assert result.may_have_arrived
        assert "CANARY" not in result.reason
    else:
        assert "CANARY" not in f"{result.headers}"


@pytest.mark.parametrize("answer", [b"", OK + b"content-length: 9\r\n\r\nCUT"], ids=["no-answer", "half-an-answer"])
@pytest.mark.parametrize("kept", [False, True], ids=["new-connection", "kept-connection"])
def test_RULES_4_9_a_post_is_never_sent_twice_by_the_stack(stack: Way, answer: bytes, kept: bool) -> None:
    """Stacks and their pools have retries of their own, above all for a connection that was kept."""
    posts: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        while request := connection.recv(65536):
            if request.startswith(b"POST"):
                posts.append(request)
                connection.sendall(answer)
                return
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    with raw(serve, listen=False) as origin:
        post = Request("POST", f"{origin}/token", (("content-type", "text/plain"),), b"refresh token")
        before = [Send(get(origin))] * kept
        failed = exchange(stack.oauth(f"{origin}/mcp"), *before, Send(post))[-1]
    assert isinstance(failed, SendFailed)
    assert failed.may_have_arrived
    assert len(posts) == 1


# --- By itself --------------------------------------------------------------------------------------------------------


def test_FN_24_only_the_cores_headers_travel_and_no_cookie_is_kept(stack: Way, netrc: None) -> None:
    seen: list[Seen] = []

    def handler(request: Seen) -> Reply:
        seen.append(request)
        return Reply(200, (("set-cookie", "a=CANARY; path=/"),), b"{}")

    with serving(handler) as server:
        effects = [Send(get(f"{server.origin}/metadata"))] * 2
        assert all(isinstance(answer, Response) for answer in exchange(stack.oauth(f"{server.origin}/mcp"), *effects))
    core = {"accept": "application/json", "accept-encoding": "identity", "user-agent": "mcp-oauth"}
    for one in seen:
        framing = {"host": server.origin.removeprefix("http://"), "connection": one.headers.get("connection")}
        assert core.items() <= one.headers.items()
        assert one.headers.keys() <= core.keys() | framing.keys()
    assert len(seen) == 2


def test_FN_57_what_lies_beneath_the_callers_client_is_used(driver: Way) -> None:
    used: list[None] = []
    with world_on_loopback() as world:
        oauth = driver.oauth(world.url, user=world.login, **driver.beneath(lambda: used.append(None)))
        oauth.authorize()
    assert used
    assert world.logins == 1


def canary() -> Any:
    raise RuntimeError("CANARY")


def test_what_lies_beneath_may_raise_and_is_not_quoted(driver: Way) -> None:
    with serving(lambda seen: Reply(200)) as server:
        failed = driver.oauth_send(get(server.origin), **driver.beneath(canary))
    assert isinstance(failed, SendFailed)
    assert "CANARY" not in failed.reason


def test_a_factory_that_raises_has_sent_nothing(driver: Way) -> None:
    failed = driver.oauth_send(get("https://as.example"), **driver.unmakeable(canary))
    assert isinstance(failed, SendFailed)
    assert not failed.may_have_arrived
    assert "CANARY" not in failed.reason


def test_no_client_is_made_where_nothing_is_sent(driver: Way) -> None:
    world, store = World(), MemoryStore()
    put_grant(store, world, expires_in=1000)
    oauth = driver.oauth(world.url, store=store, **driver.unmakeable(canary))
    assert oauth.authorize() == oauth.token


# --- TLS, proxies -----------------------------------------------------------------------------------------------------


def test_tls_of_an_unknown_authority_is_refused(stack: Way, private: Private) -> None:
    with serving(lambda seen: Reply(200), tls=private.server) as server:
        assert_untrusted(stack.oauth_send(get(server.origin)))


def test_FN_57_a_private_ca_is_trusted_for_the_names_that_it_vouches_for(driver: Way, private: Private) -> None:
    trusting = driver.trusting(private.authority)
    with serving(lambda seen: Reply(200), tls=private.server) as server:
        assert isinstance(driver.oauth_send(get(server.origin), **trusting), Response)
        assert_untrusted(driver.oauth_send(get(server.origin.replace("127.0.0.1", "localhost")), **trusting))


def assert_untrusted(answer: Answer) -> None:
    assert isinstance(answer, SendFailed)
    assert "certificate" in answer.reason.lower()
    assert not answer.may_have_arrived


def test_FN_57_the_callers_proxy_is_used_and_one_that_refuses_has_sent_nothing(driver: Way) -> None:
    with serving(lambda seen: Reply(403 if seen.method == "CONNECT" else 200, (), seen.url.encode())) as proxy:
        answer = driver.oauth_send(get("http://as.example/metadata"), proxy=proxy.origin)
        refused = driver.oauth_send(get("https://as.example/metadata"), proxy=proxy.origin)
    assert isinstance(answer, Response)
    assert answer.body.endswith(b"http://as.example/metadata")
    assert isinstance(refused, SendFailed)
    assert not refused.may_have_arrived


def test_FN_57_tls_is_verified_through_a_proxy_too(driver: Way, private: Private) -> None:
    with serving(lambda seen: Reply(200, (), b"fine"), tls=private.server) as server, tunnel() as proxy:
        trusting = driver.trusting(private.authority)
        fine = driver.oauth_send(get(server.origin), proxy=proxy.origin, **trusting)
        untrusted = driver.oauth_send(get(server.origin), proxy=proxy.origin)
    assert isinstance(fine, Response)
    assert fine.body == b"fine"
    assert isinstance(untrusted, SendFailed)
    assert not untrusted.may_have_arrived
    assert proxy.asked == [f"CONNECT {server.origin.removeprefix('https://')}"] * 2


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Names a proxy in the environment, for everything."""

    def name(url: str) -> None:
        for scheme in ("http", "https", "all"):
            for variable in (f"{scheme}_proxy", f"{scheme}_proxy".upper()):
                monkeypatch.setenv(variable, url)
        for variable in ("no_proxy", "NO_PROXY", "REQUEST_METHOD"):
            monkeypatch.delenv(variable, raising=False)

    return name


def test_RULES_1_3_the_environments_proxy_does_not_get_plain_http(
    driver: Way, environment: Callable[[str], None]
) -> None:
    """Plain http is for loopback: whatever the proxy was set for, it would read the tokens."""
    asked: list[str] = []

    def refuse(seen: Seen) -> Reply:
        asked.append(seen.method)
        return Reply(403)

    with serving(refuse) as proxy, serving(lambda seen: Reply(200)) as server:
        environment(proxy.origin)
        direct = driver.oauth_send(get(server.origin))
        through = driver.oauth_send(get("https://as.example/metadata"))
    assert isinstance(direct, Response)
    assert asked == ["CONNECT"]
    assert isinstance(through, SendFailed)
    assert not through.may_have_arrived
