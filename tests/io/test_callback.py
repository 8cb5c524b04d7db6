"""The loopback listener, over real sockets, on asyncio and trio."""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import socket
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import NamedTuple

import h11
import httpx
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from mcp_oauth.io.callback import LIMITS, Callback, Limits, UserError, bind, serve
from mcp_oauth.io.pages import FAILURE, NOT_OURS, SUCCESS, TWO_BROWSERS, page, page_of_caller

STATE = "canary-state-4f2a"
CODE = "canary-code-91cc"
AUTHORIZE = "https://as.example/authorize?client_id=c&state=" + STATE
QUERY = f"code={CODE}&state={STATE}&iss=https%3A%2F%2Fas.example"
SECOND = 5.0
"""Far more than anything here takes, in seconds."""


class Login(NamedTuple):
    """One login under way: its listener, and the person's browser."""

    callback: Callback
    browser: httpx.Client
    serving: Future[None]
    origin: str
    port: int

    def url(self, query: str = QUERY) -> str:
        return f"{self.callback.redirect_uri}?{query}"

    def begin(self) -> Login:
        """Open the start URL, as the browser of this login does."""
        assert self.browser.get(self.callback.start_url).status_code == 303
        return self

    def is_waiting(self) -> bool:
        return not self.callback.redirected.done() and not self.serving.done()


Start = Callable[..., Login]


def named(rule: str) -> Callable[[object], str]:
    """Test ids that name the rule."""
    return lambda value: f"{rule}-{value}"


@pytest.fixture(params=["asyncio", "trio"])
def portal(request: pytest.FixtureRequest) -> Iterator[BlockingPortal]:
    with start_blocking_portal(request.param) as portal:
        yield portal


@pytest.fixture
def start(portal: BlockingPortal) -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def start(host: str = "127.0.0.1", *, limits: Limits = LIMITS, shown: bool = True) -> Login:
            sockets = [stack.enter_context(sock) for sock in bind(host)]
            port = sockets[0].getsockname()[1]
            callback = Callback(f"http://{host}:{port}/callback/abc")
            if shown:
                callback.expect(AUTHORIZE, STATE)
            serving = portal.start_task_soon(serve, callback, sockets, limits)
            stack.callback(serving.cancel)
            browser = stack.enter_context(httpx.Client(trust_env=False, timeout=SECOND))
            return Login(callback, browser, serving, f"http://{host}:{port}", port)

        yield start


def connect(login: Login) -> socket.socket:
    return socket.create_connection(("127.0.0.1", login.port), timeout=SECOND)


def rest(sock: socket.socket) -> bytes:
    """All that comes until the listener closes the connection."""
    with contextlib.suppress(ConnectionError):
        return b"".join(iter(partial(sock.recv, 65536), b""))
    return b""


def raw(login: Login, data: bytes) -> bytes:
    """What the listener answers to these bytes."""
    with connect(login) as sock, contextlib.suppress(OSError):  # dropped before all of it was sent
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return rest(sock)
    return b""


def status(answer: bytes) -> int | None:
    return int(answer.split()[1]) if answer else None


# --- A login ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"], ids=named("RULES-6.1"))
def test_a_login_from_start_to_end(start: Start, host: str) -> None:
    login = start(host)

    sent_off = login.browser.get(login.callback.start_url)
    assert (sent_off.status_code, sent_off.headers["location"]) == (303, AUTHORIZE)

    came_back = login.browser.get(login.url())
    assert login.callback.redirected.result(0) == login.url()
    assert (came_back.status_code, came_back.content) == (303, b"")
    assert CODE not in came_back.headers["location"]
    assert STATE not in came_back.headers["location"]

    done = login.browser.get(login.origin + came_back.headers["location"])
    assert (done.status_code, done.content) == (200, SUCCESS.html)
    login.serving.result(SECOND)


@pytest.mark.parametrize(
    "query",
    [
        pytest.param(f"error=access_denied&state={STATE}", id="error"),
        pytest.param(f"code={CODE}&error=server_error&state={STATE}", id="code-and-error"),
        pytest.param(f"state={STATE}", id="neither"),
        pytest.param(f"code=a&code=b&state={STATE}", id="RULES-2.14-duplicate-code"),
        pytest.param(f"code=a&state={STATE}&state=other", id="RULES-2.14-duplicate-state"),
        pytest.param(f"code=a&state={STATE}&iss=https%3a%2F%2fevil.example", id="RULES-2.14-any-iss"),
        pytest.param(f"&&code=%7E+%2b&state={STATE}&%F0=%ff&", id="byte-for-byte"),
    ],
)
def test_the_redirect_is_handed_on_as_it_came_for_the_core_to_judge(start: Start, query: str) -> None:
    login = start().begin()
    cookie = next(iter(login.browser.cookies.jar))
    head = f"GET /callback/abc?{query} HTTP/1.1\r\nHost: 127.0.0.1:{login.port}\r\nCookie: {cookie.name}={cookie.value}"
    assert status(raw(login, f"{head}\r\n\r\n".encode())) == 303
    assert login.callback.redirected.result(0) == login.url(query)


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        (f"code={CODE}&state={STATE}", SUCCESS),
        (f"error=access_denied&state={STATE}", FAILURE),
        (f"code={CODE}&error=server_error&state={STATE}", FAILURE),
        (f"state={STATE}", FAILURE),
    ],
    ids=["code", "error", "both", "neither"],
)
def test_the_last_page_tells_success_from_failure(start: Start, query: str, shown: object) -> None:
    login = start().begin()
    done = login.browser.get(login.url(query), follow_redirects=True)
    assert (done.content, done.headers["content-security-policy"]) == shown


def test_the_listener_closes_although_nobody_fetches_the_last_page(start: Start) -> None:
    login = start(limits=Limits(farewell=0.05, closing=0.01)).begin()
    assert login.browser.get(login.url()).status_code == 303
    login.serving.result(SECOND)


def test_the_listener_closes_as_soon_as_the_last_page_was_served(start: Start) -> None:
    login = start(limits=Limits(farewell=3600.0)).begin()
    assert login.browser.get(login.url(), follow_redirects=True).status_code == 200
    login.serving.result(SECOND)


def test_cancelling_closes_at_once_with_connections_open(start: Start) -> None:
    login = start()
    with connect(login) as idle:
        idle.sendall(b"GET /")
        login.begin()  # whoever connected before is accepted by now
        login.serving.cancel()
        assert rest(idle) == b""


# --- Whose request it is ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        pytest.param("", id="RULES-2.14-no-query"),
        pytest.param(f"code={CODE}", id="RULES-2.14-state-absent"),
        pytest.param(f"code={CODE}&state=", id="RULES-2.14-state-empty"),
        pytest.param(f"code={CODE}&state={STATE}x", id="RULES-2.14-state-wrong"),
        pytest.param(f"code={CODE}&state={STATE.upper()}", id="RULES-2.14-state-in-another-case"),
        pytest.param(f"code={CODE}&state=%ED%A0%80", id="RULES-2.14-state-not-unicode"),
        pytest.param(f"code={CODE}&State={STATE}", id="RULES-2.14-state-by-another-name"),
    ],
)
def test_a_redirect_with_another_state_is_ignored(start: Start, query: str) -> None:
    login = start().begin()
    answer = login.browser.get(login.url(query))
    assert (answer.status_code, answer.content) == (400, NOT_OURS.html)
    assert login.is_waiting()
    assert login.browser.get(login.url()).status_code == 303


@pytest.mark.parametrize(
    "cookie",
    [
        pytest.param("", id="RULES-6.2-no-cookie"),
        pytest.param("{name}=", id="RULES-6.2-empty"),
        pytest.param("{name}={value}x", id="RULES-6.2-wrong"),
        pytest.param("other={value}", id="RULES-6.2-another-name"),
        pytest.param("mcp-oauth-1={value}", id="RULES-6.2-another-port"),
        pytest.param("x{name}={value}", id="RULES-6.2-a-longer-name"),
        pytest.param("{name}=é", id="RULES-6.2-not-ascii"),
    ],
)
def test_a_redirect_in_another_browser_is_ignored(start: Start, cookie: str) -> None:
    login = start().begin()
    ours = next(iter(login.browser.cookies.jar))
    headers = [(b"Cookie", cookie.format(name=ours.name, value=ours.value).encode())]
    answer = httpx.get(login.url(), headers=headers, trust_env=False)
    assert (answer.status_code, answer.content) == (400, NOT_OURS.html)
    assert login.is_waiting()


def test_the_cookie_is_found_among_those_of_other_ports(start: Start) -> None:
    login = start().begin()
    ours = next(iter(login.browser.cookies.jar))
    crowd = f"mcp-oauth-1=a; {ours.name}=tossed; {ours.name}={ours.value};theme=dark"
    assert httpx.get(login.url(), headers={"Cookie": crowd}, trust_env=False).status_code == 303


def test_rules_6_2_the_cookie_is_out_of_reach_for_scripts_and_named_for_its_port(start: Start) -> None:
    login = start()
    cookie = login.browser.get(login.callback.start_url).headers["set-cookie"]
    pattern = rf"mcp-oauth-{login.port}=[A-Za-z0-9_-]{{43}}; Path=/; HttpOnly; SameSite=Lax"
    assert re.fullmatch(pattern, cookie)
    assert login.browser.cookies


def test_the_cookie_is_gone_with_the_login(start: Start) -> None:
    login = start().begin()
    login.browser.get(login.url(), follow_redirects=True)
    assert not login.browser.cookies


@pytest.mark.parametrize("path", ["/callback/abc?" + QUERY, "start"], ids=named("FN-40"))
def test_whatever_comes_before_the_url_is_shown_is_ignored(start: Start, path: str) -> None:
    login = start(shown=False)
    url = login.callback.start_url if path == "start" else login.origin + path
    assert login.browser.get(url).status_code == 404
    assert login.is_waiting()
    login.callback.expect(AUTHORIZE, STATE)
    login.begin()


def test_a_repeated_redirect_is_not_handed_on_again(start: Start) -> None:
    login = start(limits=Limits(farewell=3600.0)).begin()
    first = login.browser.get(login.url())
    again = login.browser.get(login.url(f"error=access_denied&state={STATE}"))
    assert (again.status_code, again.headers["location"]) == (303, first.headers["location"])
    assert login.callback.redirected.result(0) == login.url()
    assert login.browser.get(login.origin + first.headers["location"]).content == SUCCESS.html


# --- The start link ---------------------------------------------------------------------------------------------------


def test_rules_6_2_the_start_link_is_unguessable_and_on_the_host_of_the_cookie(start: Start) -> None:
    links = {start("localhost").callback.start_url, start("localhost").callback.start_url}
    assert len(links) == 2
    for link in links:
        assert re.fullmatch(r"http://localhost:\d+/start/[A-Za-z0-9_-]{43}", link)  # 256 bits


def test_rules_6_2_the_start_link_may_be_opened_again_by_its_browser(start: Start) -> None:
    login = start().begin().begin()
    assert login.browser.get(login.url()).status_code == 303


def test_rules_6_2_two_browsers_end_the_login(start: Start) -> None:
    """RULES 6.2: another local user who reads the link in the process list could log us in as himself."""
    login = start().begin()
    answer = httpx.get(login.callback.start_url, trust_env=False)
    assert (answer.status_code, answer.content) == (410, TWO_BROWSERS.html)
    with pytest.raises(UserError, match="two browsers"):
        login.callback.redirected.result(0)
    assert login.browser.get(login.url(), follow_redirects=True).content == FAILURE.html
    login.serving.result(SECOND)


def test_a_second_browser_after_the_redirect_changes_nothing(start: Start) -> None:
    login = start().begin()
    login.browser.get(login.url())
    assert httpx.get(login.callback.start_url, trust_env=False).status_code == 410
    assert login.callback.redirected.result(0) == login.url()


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Sec-Purpose", "prefetch"),
        ("Sec-Purpose", "prefetch;prerender"),
        ("Purpose", "prefetch"),
        ("X-Purpose", "preview"),
        ("X-Moz", "prefetch"),
    ],
    ids=named("FN-40"),
)
def test_a_prefetch_neither_uses_the_link_nor_ends_the_wait(start: Start, header: str, value: str) -> None:
    login = start()
    assert login.browser.get(login.callback.start_url, headers={header: value}).status_code == 503
    assert not login.browser.cookies
    login.begin()
    assert login.browser.get(login.url(), headers={header: value}).status_code == 503
    assert login.is_waiting()
    assert login.browser.get(login.url()).status_code == 303


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


# --- Answers ----------------------------------------------------------------------------------------------------------


def every_answer(login: Login) -> Iterator[httpx.Response]:
    yield login.browser.get(login.origin + "/<script>alert(1)</script>?x=<b>")
    yield login.browser.post(login.url())
    yield login.browser.get(login.url(), headers={"Host": "evil.example"})
    yield login.browser.get(login.url(), headers={"Sec-Fetch-Mode": "cors"})
    yield login.browser.get(login.url(), headers={"Sec-Purpose": "prefetch"})
    yield login.browser.get(login.callback.start_url)
    yield login.browser.get(login.url("error=<script>&error_description=<b>&state=x"))
    yield (taken := login.browser.get(login.url(f"code={CODE}&error=<script>&error_description=<b>&state={STATE}")))
    yield httpx.get(login.callback.start_url, trust_env=False)
    yield login.browser.get(login.origin + taken.headers["location"])


def test_rules_6_1_every_answer_is_uncached_unreferred_and_inert(start: Start) -> None:
    answers = list(every_answer(start()))
    assert [answer.status_code for answer in answers] == [404, 405, 421, 403, 503, 303, 400, 303, 410, 200]
    for answer in answers:
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["connection"] == "close"
        assert "server" not in answer.headers
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; ")
        assert policy.endswith("base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
        assert "unsafe" not in policy


def test_fn_40_nothing_of_a_request_is_shown_or_logged(
    start: Start, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    login = start()
    with caplog.at_level(logging.DEBUG):
        for logger in ("httpx", "httpcore"):  # the test's own browser
            caplog.set_level(logging.CRITICAL, logger=logger)
        answers = list(every_answer(login))
        login.serving.result(SECOND)
    shown = "".join(answer.text for answer in answers)
    kept = [
        value for answer in answers for name, value in answer.headers.items() if answer.url != login.callback.start_url
    ]
    output = capfd.readouterr()
    told = [shown, *kept, caplog.text, output.out, output.err, repr(login.callback), repr(login.serving)]
    for text in told:
        for canary in (CODE, STATE, "script", "<b>", "%3Cb%3E", "evil.example"):
            assert canary not in text


def test_the_pages_are_self_contained_and_fit_their_policy() -> None:
    for html, policy in (SUCCESS, FAILURE, NOT_OURS, TWO_BROWSERS):
        text = html.decode()
        assert text.startswith("<!doctype html>\n<html lang=")
        assert not re.search(r"https?:|//|url\(|src=|href=|<script|\son\w+=|\sstyle=", text)
        assert not re.search(r"\b(left|right)\b", text)  # logical properties: right to left works
        assert "prefers-color-scheme: dark" in text
        assert all(f"<{tag}" in text for tag in ("title", "main", "h1", 'meta name="viewport"'))
        assert re.fullmatch(r"default-src 'none'; style-src 'sha256-[A-Za-z0-9+/]{43}='; .*", policy)


def test_fn_40_a_page_escapes_what_it_is_given() -> None:
    html = page('"><x', "<script>", "&<b>").html
    assert b"<script>" not in html
    assert b"<b>" not in html
    assert b'class="&quot;&gt;&lt;x"' in html


def test_the_callers_own_page_is_sent_as_it_is_and_can_fetch_and_run_nothing(start: Start) -> None:
    own = page_of_caller("<h1>Gut gemacht ✓</h1>")
    assert own.html.decode() == "<h1>Gut gemacht ✓</h1>"
    assert own.policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:; ")


# --- Ports ------------------------------------------------------------------------------------------------------------


def ports(sockets: list[socket.socket]) -> set[int]:
    return {sock.getsockname()[1] for sock in sockets}


@pytest.fixture
def held() -> Iterator[Callable[[str, int], int]]:
    """Listen on a port in another program's place."""
    with contextlib.ExitStack() as stack:

        def hold(address: str, port: int = 0) -> int:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            sock = stack.enter_context(socket.socket(family))
            sock.bind((address, port))
            sock.listen()
            return int(sock.getsockname()[1])

        yield hold


def close(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


@pytest.mark.parametrize(
    ("host", "addresses"),
    [("127.0.0.1", {"127.0.0.1"}), ("[::1]", {"::1"}), ("localhost", {"127.0.0.1", "::1"})],
    ids=named("FN-38"),
)
def test_each_host_is_bound_on_its_own_addresses_only(host: str, addresses: set[str]) -> None:
    sockets = bind(host)
    assert {sock.getsockname()[0] for sock in sockets} == addresses
    assert len(ports(sockets)) == 1
    close(sockets)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"], ids=named("RULES-6.1"))
def test_localhost_is_never_half_bound(held: Callable[..., int], address: str) -> None:
    """RULES 6.1: whoever holds the other family would get the browser's redirect."""
    busy = held(address)
    with pytest.raises(OSError, match="in use"):
        bind("localhost", busy)


def test_rules_6_1_localhost_takes_another_port_where_one_family_is_busy(
    held: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = held("::1")
    real = socket.socket.bind
    tried: list[int] = []

    def first_the_busy_one(sock: socket.socket, address: tuple[str, int]) -> None:
        if address == ("127.0.0.1", 0) and not tried:
            address = ("127.0.0.1", busy)
        tried.append(address[1])
        real(sock, address)

    monkeypatch.setattr(socket.socket, "bind", first_the_busy_one)
    sockets = bind("localhost")
    assert tried[:3] == [busy, busy, 0]
    assert len(sockets) == 2
    assert ports(sockets) != {busy}
    close(sockets)


@pytest.mark.parametrize("code", ["EAFNOSUPPORT", "EADDRNOTAVAIL"], ids=named("RULES-6.1"))
def test_without_ipv6_localhost_is_127_0_0_1(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    real = socket.socket.bind

    def no_ipv6(sock: socket.socket, address: tuple[str, int]) -> None:
        if address[0] == "::1":
            raise OSError(getattr(errno, code), code)
        real(sock, address)

    monkeypatch.setattr(socket.socket, "bind", no_ipv6)
    sockets = bind("localhost")
    assert [sock.getsockname()[0] for sock in sockets] == ["127.0.0.1"]
    close(sockets)
    with pytest.raises(OSError, match=code):
        bind("[::1]")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"], ids=named("RULES-6.1"))
def test_a_fixed_port_that_is_busy_is_an_error(held: Callable[..., int], host: str) -> None:
    with pytest.raises(OSError, match="in use"):
        bind(host, held("127.0.0.1"))


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"], ids=named("RULES-6.1"))
def test_nobody_shares_our_port(address: str) -> None:
    sockets = bind("127.0.0.1")
    with socket.socket() as thief:
        for option in ("SO_REUSEADDR", "SO_REUSEPORT"):
            if hasattr(socket, option):
                thief.setsockopt(socket.SOL_SOCKET, getattr(socket, option), 1)
        with pytest.raises(OSError):
            thief.bind((address, *ports(sockets)))
    close(sockets)


def test_a_fixed_port_is_free_again_at_once() -> None:
    """What the last login's connections left behind (TIME_WAIT) does not keep the next one out."""
    (listening,) = bind("127.0.0.1")
    (port,) = ports([listening])
    listening.setblocking(True)
    with socket.create_connection(("127.0.0.1", port)) as browser:
        listening.accept()[0].close()
        assert browser.recv(1) == b""
    listening.close()
    close(bind("127.0.0.1", port))
