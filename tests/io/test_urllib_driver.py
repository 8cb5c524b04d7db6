"""The example of a driver for another stack does what the docs say of it, and is what they show."""

from __future__ import annotations

import socket
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
import trustme

from examples.urllib_driver import OAuth, request
from mcp_oauth.exceptions import AuthorizationRequired
from mcp_oauth.sansio.messages import Response, get
from mcp_oauth.sansio.steps import Send, SendFailed
from mcp_oauth.store.memory import MemoryStore
from tests.docs.blocks import blocks
from tests.io.servers import PATIENCE, Reply, Seen, World, put_grant, raw, serving, world_on_loopback

pytestmark = pytest.mark.usefixtures("nothing_is_left_of_threads")

ROOT = Path(__file__).parents[2]


def send(url: str, *, seconds: float = PATIENCE, most: int = 1 << 20, **options: Any) -> Any:
    with OAuth("https://mcp.example/mcp", store=MemoryStore(), **options).open_sender() as sender:
        return sender(Send(get(url), most, seconds))


def test_logs_in_at_the_first_challenge_and_renews_when_the_token_is_refused() -> None:
    with world_on_loopback() as world:
        oauth = OAuth(world.url, store=MemoryStore(), user=world.login)
        for _ in range(2):
            with request(oauth, world.url, b"hello") as response:
                assert (response.status, b'"body": "hello"' in response.read()) == (200, True)
            world.valid.clear()
    assert (world.logins, world.refreshes) == (1, 1)


def test_RULES_1_1_no_redirect_is_followed_with_the_token() -> None:
    tokens: list[str | None] = []

    def handler(seen: Seen) -> Reply:
        tokens.append(seen.token)
        return Reply(302, (("location", "/elsewhere"),))

    with serving(handler) as server:
        world, store = World(server.origin), MemoryStore()
        put_grant(store, world, expires_in=1000)
        with request(OAuth(world.url, store=store), world.url) as response:
            assert (response.status, response.headers["location"]) == (302, "/elsewhere")
    assert [str(token).startswith("Bearer") for token in tokens] == [True]


def test_FN_47_errors_reach_the_caller() -> None:
    with world_on_loopback() as world, pytest.raises(AuthorizationRequired):
        request(OAuth(world.url, store=MemoryStore(), interactive=False), world.url)


def answering(*parts: bytes) -> Any:
    def answer(connection: socket.socket) -> None:
        for part in parts:
            connection.sendall(part)

    return raw(answer)


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense\r\n\r\n",
        OK + b"content-length: 9\r\n\r\nCANARY",
        OK + b"transfer-encoding: chunked\r\n\r\n9\r\nCANARY",
        OK + b"\x00CANARY\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\n\r\n",
    ],
    ids=["nothing", "no-http", "cut", "cut-chunk", "bad-header", "interim"],
)
def test_RULES_4_9_a_cut_or_broken_answer_may_have_been_processed_and_is_not_quoted(answer: bytes) -> None:
    with answering(answer) as origin:
        failed = send(origin)
    assert isinstance(failed, SendFailed)
    assert failed.may_have_arrived
    assert "CANARY" not in failed.reason


def test_a_body_is_given_up_at_the_limit() -> None:
    with answering(OK + b"\r\n", bytes(101)) as origin:
        assert send(origin, most=100) == SendFailed("the body is longer than 100 bytes", may_have_arrived=True)
        assert isinstance(send(origin, most=101), Response)


@pytest.mark.parametrize("head", [b"", OK, OK + b"\r\n"], ids=["silence", "in-the-header", "in-the-body"])
def test_FN_30_an_exchange_ends_at_its_total_deadline(head: bytes) -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(head)
        assert connection.recv(1) == b""

    with raw(answer) as origin:
        began = time.monotonic()
        failed = send(origin, seconds=0.3)
        took = time.monotonic() - began
    assert failed == SendFailed("no answer within 0 seconds", may_have_arrived=True)
    assert took < 3


def test_RULES_4_9_who_refuses_has_not_seen_the_request() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        origin = f"http://127.0.0.1:{listener.getsockname()[1]}"
    failed = send(origin)
    assert (type(failed), failed.may_have_arrived) == (SendFailed, False)


def test_FN_57_a_private_ca_is_trusted_where_it_was_configured_and_nowhere_else() -> None:
    authority = trustme.CA()
    serverside, clientside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(serverside)
    authority.configure_trust(clientside)
    with serving(lambda seen: Reply(200), tls=serverside) as server:
        assert send(server.origin, context=clientside).status == 200
        failed = send(server.origin)
    assert "certificate verify failed" in failed.reason
    assert not failed.may_have_arrived


def test_the_page_shows_the_code_of_the_example() -> None:
    page = (ROOT / "docs" / "drivers.md").read_text("utf-8")
    shown = next(block for block in blocks(page, "py") if "def open_sender" in block.code)
    code = (ROOT / "examples" / "urllib_driver.py").read_text("utf-8")
    begin, end = code.index("# --- 1."), code.index('if __name__ == "__main__":')
    assert shown.code == code[begin:end].rstrip() + "\n"
