"""What is no browser coming back: other requests, other origins, other bytes, too much of them."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct

import h11
import httpx
import pytest

from mcp_oauth.io.callback import LIMITS, Callback, Limits
from tests.io.listeners import AUTHORIZE, QUERY, SECOND, STATE, Start, connect, named, raw, rest, status

# --- What is no navigation to us --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["OPTIONS", "POST", "HEAD", "PUT", "DELETE", "PATCH", "CONNECT", "TRACE", "get"], ids=named("RULES-6.1")
)
def test_only_get(start: Start, method: str) -> None:
    login = start().begin()
    target = f"/callback/abc?{QUERY}"
    body = b"Content-Length: 3\r\n\r\na=b"
    answer = raw(login, f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1:{login.port}\r\n".encode() + body)
    assert status(answer) == 405
    assert b"Allow: GET\r\n" in answer
    assert (answer.endswith(b"\r\n\r\n")) == (method == "HEAD")
    assert login.is_waiting()


def test_rules_6_1_no_cors_and_no_private_network_access(start: Start) -> None:
    login = start().begin()
    headers = {
        "Origin": "https://evil.example",
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Private-Network": "true",
        "Access-Control-Request-Local-Network": "true",
    }
    for answer in (
        login.browser.options(login.url(), headers=headers),
        httpx.get(login.url(), headers=headers, trust_env=False),
        login.browser.get(login.url("state=wrong"), headers=headers),
    ):
        assert answer.status_code in (400, 405)
        assert not [name for name in answer.headers if name.startswith(("access-control", "cross-origin"))]
    assert login.is_waiting()


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "localhost:{port}",
        "127.0.0.1",
        "127.0.0.1:1",
        "127.0.0.1:{port}.evil.example",
        "user@127.0.0.1:{port}",
        "127.0.0.1:0{port}",
        "[::1]:{port}",
        "",
    ],
    ids=named("RULES-6.1"),
)
def test_the_host_must_be_the_redirect_uris(start: Start, host: str) -> None:
    """RULES 6.1: a page that rebinds its own name to 127.0.0.1 reaches the socket, but not us."""
    login = start().begin()
    answer = login.browser.get(login.url(), headers={"Host": host.format(port=login.port)})
    assert answer.status_code == 421
    assert login.browser.get(login.callback.start_url, headers={"Host": "evil.example"}).status_code == 421
    assert login.is_waiting()


def test_the_host_is_compared_in_any_case(start: Start) -> None:
    login = start("localhost").begin()
    assert login.browser.get(login.url(), headers={"Host": f"LocalHost:{login.port}"}).status_code == 303


def test_the_host_of_port_80_has_no_port() -> None:
    """RFC 9110 section 7.2: a browser leaves the default port out."""
    callback = Callback("http://localhost:80/callback")
    callback.expect(AUTHORIZE, STATE)
    target = callback.start_url.removeprefix("http://localhost")
    request = h11.Request(method="GET", target=target, headers=[("Host", "localhost")])
    assert callback.answer(request).status == 303


@pytest.mark.parametrize(
    ("mode", "dest"),
    [
        ("cors", "empty"),
        ("no-cors", "image"),
        ("no-cors", "script"),
        ("same-origin", "empty"),
        ("websocket", "websocket"),
        ("navigate", "iframe"),
        ("navigate", "embed"),
        ("navigate", ""),
        ("", "document"),
    ],
    ids=named("RULES-6.1"),
)
def test_sec_fetch_must_be_a_navigation_of_a_document(start: Start, mode: str, dest: str) -> None:
    login = start().begin()
    headers = {"Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": dest, "Sec-Fetch-Site": "cross-site"}
    assert login.browser.get(login.url(), headers=headers).status_code == 403
    assert login.browser.get(login.callback.start_url, headers=headers).status_code == 403
    assert login.is_waiting()
    headers |= {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert login.browser.get(login.url(), headers=headers).status_code == 303


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/favicon.ico",
        "/callback",
        "/callback/abc/",
        "/callback/abcd",
        "/callback/ABC",
        "/callback/%61bc",
        "//callback/abc",
        "/x/../callback/abc",
        "/start/",
        "/start/x",
        "/done/",
        "http://127.0.0.1/callback/abc",
        "*",
    ],
    ids=named("FN-40"),
)
def test_other_paths_are_not_found(start: Start, target: str) -> None:
    login = start().begin()
    cookie = next(iter(login.browser.cookies.jar))
    lines = f"GET {target}?{QUERY} HTTP/1.1\r\nHost: 127.0.0.1:{login.port}\r\nCookie: {cookie.name}={cookie.value}"
    assert status(raw(login, f"{lines}\r\n\r\n".encode())) == 404
    assert login.is_waiting()


def test_a_redirect_uri_without_a_path_is_the_root() -> None:
    callback = Callback("http://127.0.0.1:8080")
    callback.expect(AUTHORIZE, STATE)
    request = h11.Request(method="GET", target="/?" + QUERY, headers=[("Host", "127.0.0.1:8080")])
    assert callback.answer(request).status == 400  # ours, but for the cookie


@pytest.mark.parametrize("uri", ["", "myapp://callback", "http://127.0.0.1:99999/", "http://user@127.0.0.1:1/"])
def test_a_redirect_uri_that_is_none(uri: str) -> None:
    with pytest.raises(ValueError, match="not an absolute"):
        Callback(uri)


# --- Bytes ------------------------------------------------------------------------------------------------------------

HOST = b"Host: 127.0.0.1:%d\r\n"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(b"", None, id="preconnect"),
        pytest.param(b"\r\n\r\n", None, id="empty-lines"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), None, id="TLS-hello"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 405, id="HTTP2-preface"),
        pytest.param(b"\xff\xfe" * 4000, None, id="garbage"),
        pytest.param(b"GET\r\n\r\n", None, id="HTTP0.9"),
        pytest.param(b"GET / HTTP/1.1\r\n", None, id="cut-head"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", None, id="RFC9112-3.2-no-host"),
        pytest.param(b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n", None, id="RFC9112-3.2-two-hosts"),
        pytest.param(b"GET /\xc3\xa9 HTTP/1.1\r\n" + HOST + b"\r\n", None, id="target-not-ascii"),
        pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n", None, id="bad-length"),
        pytest.param(b"GET / HTTP/1.0\r\n\r\n", 421, id="HTTP1.0-without-host"),
        pytest.param(b"GET / HTTP/1.0\r\n" + HOST + b"\r\n", 404, id="HTTP1.0"),
        pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b"\r\nGET / HTTP/1.1\r\n\r\n", 404, id="pipelined"),
        pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\n\r\n", 404, id="expect"),
        pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b"Upgrade: websocket\r\n\r\n", 404, id="upgrade"),
        pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nzz", 404, id="bad-body"),
    ],
)
def test_bytes_that_are_no_request_are_dropped(start: Start, data: bytes, expected: int | None) -> None:
    login = start()
    filled = data % ((login.port,) * data.count(b"%d")) if b"%d" in data else data
    assert status(raw(login, filled)) == expected
    assert login.is_waiting()
    login.begin()


@pytest.mark.parametrize(("size", "expected"), [(LIMITS.head, 404), (LIMITS.head + 1, None), (200_000, None)])
def test_a_head_has_at_most_16_kilobytes(start: Start, size: int, expected: int | None) -> None:
    login = start()
    head = b"GET /x HTTP/1.1\r\n" + HOST % login.port + b"Cookie: %b\r\n\r\n"
    assert status(raw(login, head % (b"x" * (size - len(head) + 2)))) == expected
    assert login.is_waiting()


def test_a_slow_request_is_dropped(start: Start) -> None:
    """Slowloris: each byte may come in time, but the whole has one limit."""
    login = start(limits=Limits(seconds=0.2))
    with connect(login) as sock:
        sock.settimeout(0.02)
        for byte in b"GET / HTTP/1.1\r\nX: " + b"x" * 1000:
            try:
                sock.sendall(bytes([byte]))
                assert sock.recv(1) == b""
                break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        else:
            pytest.fail("still connected")
    login.begin()


def test_idle_connections_do_not_keep_the_browser_out(start: Start) -> None:
    """More connections than the listener holds, all silent: the oldest make room."""
    login = start()
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connect(login)) for _ in range(150)]
        login.begin()
        assert [rest(sock) for sock in idle[:80]] == [b""] * 80
        assert login.browser.get(login.url(), follow_redirects=True).status_code == 200
    login.serving.result(SECOND)


def test_a_hundred_requests_at_once_are_all_answered(start: Start) -> None:
    login = start()
    with contextlib.ExitStack() as stack:
        crowd: list[socket.socket] = []
        for _ in range(100):
            crowd.append(stack.enter_context(connect(login)))
            crowd[-1].sendall(b"GET /x HTTP/1.1\r\n" + HOST % login.port + b"\r\n")
        for sock in crowd:
            sock.shutdown(socket.SHUT_WR)
        assert [status(rest(sock)) for sock in crowd] == [404] * 100
    login.begin()


def test_a_connection_that_cannot_be_accepted_ends_nothing(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file descriptor left, or the peer gone before its turn."""
    failures = [OSError(errno.EMFILE, "Too many open files"), ConnectionAbortedError()]
    real = socket.socket.accept

    def accept(sock: socket.socket) -> object:
        if failures:
            raise failures.pop()
        return real(sock)

    monkeypatch.setattr(socket.socket, "accept", accept)
    start().begin()
    assert not failures


def test_connections_that_are_reset_end_nothing(start: Start) -> None:
    login = start()
    for _ in range(100):
        with connect(login) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    login.begin()
    assert login.is_waiting()
