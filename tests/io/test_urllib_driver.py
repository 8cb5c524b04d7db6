"""The example of a driver for another stack does what the docs say of it, and is what they show."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
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
from tests.io.servers import PATIENCE, Reply, Seen, World, dripping, put_grant, raw, serving, world_on_loopback

pytestmark = pytest.mark.usefixtures("nothing_is_left_of_threads")

ROOT = Path(__file__).parents[2]


def send(url: str, *, seconds: float = PATIENCE, most: int = 1 << 20) -> Any:
    with OAuth("https://mcp.example/mcp", store=MemoryStore()).open_sender() as sender:
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
def test_FN_30_who_falls_silent_is_waited_for_until_the_deadline(head: bytes) -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(head)
        assert connection.recv(1) == b""

    with raw(answer) as origin:
        began = time.monotonic()
        failed = send(origin, seconds=0.3)
        took = time.monotonic() - began
    assert isinstance(failed, SendFailed)
    assert failed.may_have_arrived
    assert took < 3


def test_FN_30_a_body_that_trickles_ends_at_the_deadline() -> None:
    with dripping(OK + b"\r\n", b"x") as origin:
        failed = send(origin, seconds=0.3)
    assert failed == SendFailed("no answer within 0 seconds", may_have_arrived=True)


def test_RULES_4_9_who_refuses_has_not_seen_the_request() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        origin = f"http://127.0.0.1:{listener.getsockname()[1]}"
    failed = send(origin)
    assert (type(failed), failed.may_have_arrived) == (SendFailed, False)


PROGRAM = """
import sys
from tests.io.test_urllib_driver import send
print(send(sys.argv[1]))
"""


def run(url: str, **environment: str) -> str:
    """What an exchange brings in a process with this environment."""
    command = [sys.executable, "-c", PROGRAM, url]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True).stdout


def test_FN_57_a_private_ca_is_trusted_where_the_environment_names_it_and_nowhere_else(tmp_path: Path) -> None:
    authority, path = trustme.CA(), tmp_path / "ca.pem"
    serverside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(serverside)
    authority.cert_pem.write_to_path(str(path))
    with serving(lambda seen: Reply(200), tls=serverside) as server:
        assert "status=200" in run(server.origin, SSL_CERT_FILE=str(path))
        failed = send(server.origin)
    assert "certificate verify failed" in failed.reason
    assert not failed.may_have_arrived


def test_RULES_1_3_no_proxy_of_the_environment_gets_plain_http() -> None:
    asked: list[Seen] = []

    def refuse(seen: Seen) -> Reply:
        asked.append(seen)
        return Reply(403)

    with serving(refuse) as proxy, serving(lambda seen: Reply(200)) as server:
        proxies = {f"{scheme}_proxy": proxy.origin for scheme in ("http", "https", "all")} | {"no_proxy": ""}
        assert "status=200" in run(server.origin, **proxies)
    assert asked == []


def test_the_page_shows_the_code_of_the_example() -> None:
    page = (ROOT / "docs" / "drivers.md").read_text("utf-8")
    (shown,) = (block.code for block in blocks(page, "py") if "OpenerDirector" in block.code)
    code = (ROOT / "examples" / "urllib_driver.py").read_text("utf-8")
    begin, end = code.index("# Without other"), code.index('if __name__ == "__main__":')
    assert shown == code[begin:end].rstrip() + "\n"
