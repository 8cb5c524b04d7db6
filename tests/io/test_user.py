"""The person's browser: where it comes back to, what it is told, and that it opens."""

from __future__ import annotations

import queue
import re
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import httpx
import pytest

from mcp_oauth.io.pages import FAILURE, SUCCESS
from mcp_oauth.io.user import Browser, PasteBack, User, UserError, UserSession, as_user, headless
from tests.io.people import ANSWER, ANY_PORT, AUTHORIZE, CODE, SOON, STATE

pytestmark = pytest.mark.usefixtures("nothing_is_left_of_threads")


@pytest.fixture
def busy() -> Iterator[int]:
    """A port that another program listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock.getsockname()[1]


@pytest.fixture
def free() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


class FakeBrowser:
    """Stands where `webbrowser` would: remembers what it was to open."""

    def __init__(self) -> None:
        self.opened: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.http = httpx.Client(trust_env=False, timeout=SOON)

    def open(self, url: str) -> None:
        self.opened.put(url)

    def log_in(self, session: UserSession, answer: str = ANSWER) -> httpx.Response:
        """Go the whole way up to the redirect that carries the code."""
        sent_off = self.http.get(self.opened.get(timeout=SOON))
        assert sent_off.headers["location"] == AUTHORIZE
        return self.http.get(session.redirect_uri + answer)

    def finish(self, taken: httpx.Response) -> str:
        """Fetch the last page, which lets the listener end."""
        assert taken.next_request is not None
        return self.http.send(taken.next_request).text


@pytest.fixture
def fake() -> Iterator[FakeBrowser]:
    fake = FakeBrowser()
    with fake.http:
        yield fake


@pytest.fixture
def browser(fake: FakeBrowser) -> Browser:
    return Browser(fake.open, tell=lambda _text: None)


# --- Browser: a login -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"], ids=lambda host: f"FN-38-{host}")
def test_a_login_in_a_browser(browser: Browser, fake: FakeBrowser, host: str) -> None:
    with browser.listen(f"http://{host}/callback/abc", None) as session:
        assert re.fullmatch(rf"http://{re.escape(host)}:\d+/callback/abc", session.redirect_uri)
        session.show(AUTHORIZE, STATE)
        assert session.wait(0) is None
        taken = fake.log_in(session)
        assert session.wait(SOON) == session.redirect_uri + ANSWER
        assert session.wait(0) == session.redirect_uri + ANSWER
        assert fake.finish(taken) == SUCCESS.html.decode()


def test_rules_6_2_the_browser_is_given_the_start_link_and_not_the_authorization_url(
    browser: Browser, fake: FakeBrowser
) -> None:
    """RULES 6.2: what stands in process arguments opens once, and says nothing."""
    with browser.listen(ANY_PORT, None) as session:
        session.show(AUTHORIZE, STATE)
        port = session.redirect_uri.split(":")[2].split("/")[0]
        assert re.fullmatch(rf"http://127\.0\.0\.1:{port}/start/[\w-]{{43}}", fake.opened.get(timeout=SOON))


def test_a_redirect_before_the_url_is_shown_is_ignored(browser: Browser, fake: FakeBrowser) -> None:
    with browser.listen(ANY_PORT, None) as session:
        assert fake.http.get(session.redirect_uri + ANSWER).status_code == 404
        session.show(AUTHORIZE, STATE)
        assert session.wait(0) is None
        fake.finish(fake.log_in(session))


def test_the_last_page_is_still_served_after_the_session(browser: Browser, fake: FakeBrowser) -> None:
    """The token request need not wait for the browser, nor the browser for it."""
    with browser.listen(ANY_PORT, None) as session:
        session.show(AUTHORIZE, STATE)
        taken = fake.log_in(session)
    assert fake.finish(taken) == SUCCESS.html.decode()
    # and `nothing_left_behind` sees the threads end


def test_leaving_without_a_redirect_closes_at_once(browser: Browser, fake: FakeBrowser) -> None:
    with browser.listen(ANY_PORT, None) as session:
        session.show(AUTHORIZE, STATE)
    with pytest.raises(httpx.ConnectError):
        fake.http.get(fake.opened.get(timeout=SOON))
    with pytest.raises(UserError, match="closed"):
        session.wait(SOON)


def test_a_waiting_thread_is_woken_when_another_closes(browser: Browser) -> None:
    with ThreadPoolExecutor(1) as pool:
        with browser.listen(ANY_PORT, None) as session:
            session.show(AUTHORIZE, STATE)
            waiting = pool.submit(session.wait, 60.0)
        with pytest.raises(UserError, match="closed"):
            waiting.result(SOON)


def test_a_waiting_thread_is_woken_by_the_redirect(browser: Browser, fake: FakeBrowser) -> None:
    with ThreadPoolExecutor(1) as pool, browser.listen(ANY_PORT, None) as session:
        session.show(AUTHORIZE, STATE)
        waiting = pool.submit(session.wait, 60.0)
        fake.finish(fake.log_in(session))
        assert waiting.result(SOON) == session.redirect_uri + ANSWER


def test_a_listener_that_fails_ends_the_wait(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise OSError("canary-of-the-system")

    monkeypatch.setattr("mcp_oauth.io.user.serve", broken)
    with browser.listen(ANY_PORT, None) as session:
        with pytest.raises(UserError) as caught:
            session.wait(SOON)
        assert str(caught.value) == "the loopback listener failed: OSError"


@pytest.mark.parametrize(
    ("answer", "shown"), [(ANSWER, "<p>yes"), (f"?error=access_denied&state={STATE}", "<p>no")], ids=["good", "bad"]
)
def test_the_applications_own_pages(fake: FakeBrowser, answer: str, shown: str) -> None:
    user = Browser(fake.open, tell=lambda _text: None, success_html="<p>yes", failure_html="<p>no")
    with user.listen(ANY_PORT, None) as session:
        session.show(AUTHORIZE, STATE)
        taken = fake.log_in(session, answer)
        assert fake.finish(taken) == shown


def test_pages_of_ours_where_the_application_has_none(browser: Browser, fake: FakeBrowser) -> None:
    with browser.listen(ANY_PORT, None) as session:
        session.show(AUTHORIZE, STATE)
        taken = fake.log_in(session, f"?error=access_denied&state={STATE}")
        assert fake.finish(taken) == FAILURE.html.decode()


# --- Ports ------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["browser", "paste", "function"])
def user(request: pytest.FixtureRequest, browser: Browser) -> User:
    users: dict[str, User] = {"browser": browser, "paste": PasteBack(), "function": as_user(str)}
    return users[request.param]


def test_fn_37_the_port_registered_earlier_is_used_if_it_is_free(user: User, free: int) -> None:
    with user.listen(ANY_PORT, free) as session:
        assert session.redirect_uri == f"http://127.0.0.1:{free}/callback/abc"


def test_fn_37_another_port_is_used_if_it_is_not(user: User, busy: int) -> None:
    with user.listen(ANY_PORT, busy) as session:
        assert session.redirect_uri != f"http://127.0.0.1:{busy}/callback/abc"


def test_a_redirect_uri_with_a_port_stays_as_it_is(user: User, free: int, busy: int) -> None:
    uri = f"http://127.0.0.1:{free}/a%2fb?c=d&"
    with user.listen(uri, busy) as session:
        assert session.redirect_uri == uri


def test_the_port_goes_where_it_belongs(user: User, free: int) -> None:
    with user.listen("http://127.0.0.1/127.0.0.1?u=http://127.0.0.1/", free) as session:
        assert session.redirect_uri == f"http://127.0.0.1:{free}/127.0.0.1?u=http://127.0.0.1/"


def test_a_fixed_port_that_is_busy_is_named_with_the_cure(browser: Browser, busy: int) -> None:
    with pytest.raises(UserError) as caught:
        browser.listen(f"http://127.0.0.1:{busy}/callback", None)
    assert f"port {busy} of 127.0.0.1 cannot be listened on" in str(caught.value)
    assert "configure another redirect URI" in str(caught.value)


def test_no_port_at_all(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("mcp_oauth.io.user.bind", full)
    with pytest.raises(UserError, match=r"port any of 127\.0\.0\.1 cannot be listened on: Too many open files"):
        user.listen(ANY_PORT, None)


NOT_LOOPBACK = [
    "https://app.example/oauth/callback?canary=secret",
    "https://127.0.0.1/callback",
    "http://127.0.0.1.evil.example/callback",
    "http://0.0.0.0/callback",
    "http://127.0.0.2/callback",
    "myapp://callback",
    "urn:ietf:wg:oauth:2.0:oob",
    "",
]


@pytest.mark.parametrize("uri", NOT_LOOPBACK, ids=lambda uri: f"RULES-2.13-{uri}")
def test_what_is_not_on_loopback_cannot_be_listened_on(browser: Browser, uri: str) -> None:
    with pytest.raises(UserError, match="two-leg login") as caught:
        browser.listen(uri, None)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("uri", NOT_LOOPBACK, ids=lambda uri: f"FN-45-{uri}")
def test_what_is_not_on_loopback_can_be_pasted(uri: str) -> None:
    with PasteBack().listen(uri, 1234) as session:
        assert session.redirect_uri == uri


# --- Browser: telling and opening -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "platform", "hindrance"),
    [
        ({}, "linux", "this machine has no display"),
        ({"DISPLAY": "", "WAYLAND_DISPLAY": ""}, "linux", "this machine has no display"),
        ({"DISPLAY": ":0"}, "linux", None),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "linux", None),
        ({"BROWSER": "/vscode/browser.sh"}, "linux", None),
        ({"BROWSER": "/vscode/browser.sh", "SSH_CONNECTION": "a b c d"}, "linux", None),
        ({"SSH_CONNECTION": "a b c d"}, "linux", "this is an SSH session"),
        ({"SSH_CONNECTION": "a b c d", "DISPLAY": "localhost:10.0"}, "linux", "this is an SSH session"),
        ({"SSH_CONNECTION": "a b c d"}, "darwin", "this is an SSH session"),
        ({}, "darwin", None),
        ({}, "win32", None),
    ],
)
def test_headless(environ: dict[str, str], platform: str, hindrance: str | None) -> None:
    assert headless(environ, platform) == hindrance


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> queue.SimpleQueue[str]:
    """What the person is told; on a desktop machine, as far as the environment says."""
    for name in ("SSH_CONNECTION", "BROWSER", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    return queue.SimpleQueue()


def test_fn_47_a_headless_machine_is_told_the_url_and_what_to_do(
    told: queue.SimpleQueue[str], fake: FakeBrowser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.1 50000 192.0.2.2 22")
    monkeypatch.setattr(webbrowser, "get", lambda: pytest.fail("opened"))
    with Browser(tell=told.put).listen(ANY_PORT, None) as session:
        session.show(AUTHORIZE, STATE)
        text = told.get_nowait()
        (link,) = re.findall(r"http://127\.0\.0\.1:\d+/start/[\w-]+", text)
        authority = link.split("/")[2]
        assert "this is an SSH session" in text
        assert f"ssh -L {authority.split(':')[1]}:{authority} " in text
        assert "PasteBack()" in text
        fake.open(link)  # through the forwarded port
        fake.finish(fake.log_in(session))
        assert session.wait(SOON) == session.redirect_uri + ANSWER


@pytest.mark.parametrize("where", ["desktop", "own opener"])
def test_the_url_is_always_told_too(
    told: queue.SimpleQueue[str], fake: FakeBrowser, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    opened: queue.SimpleQueue[str] = queue.SimpleQueue()

    class Firefox:
        name = "firefox"

        def open(self, url: str) -> bool:
            opened.put(url)
            return True

    monkeypatch.setattr(webbrowser, "get", Firefox)
    user = Browser(tell=told.put) if where == "desktop" else Browser(opened.put, tell=told.put)
    with user.listen(ANY_PORT, None) as session:
        session.show(AUTHORIZE, STATE)
        assert opened.get(timeout=SOON) in told.get_nowait()
    assert told.empty()


class Lynx:
    name = "/usr/bin/lynx"

    def open(self, url: str) -> bool:
        pytest.fail(url)


class Missing:
    name = "xdg-open"

    def open(self, url: str) -> bool:
        return False


def none() -> None:
    raise webbrowser.Error("could not locate runnable browser")


@pytest.mark.parametrize("get", [none, Lynx, Missing], ids=["no-browser", "text-browser", "browser-fails"])
def test_a_browser_that_does_not_open_is_told(
    told: queue.SimpleQueue[str], monkeypatch: pytest.MonkeyPatch, get: Callable[[], object]
) -> None:
    monkeypatch.setattr(webbrowser, "get", get)
    with Browser(tell=told.put).listen(ANY_PORT, None) as session:
        session.show(AUTHORIZE, STATE)
        assert "Opening the browser" in told.get(timeout=SOON)
        assert "no browser could be opened" in told.get(timeout=SOON)


def test_an_opener_that_raises_is_told(told: queue.SimpleQueue[str]) -> None:
    def broken(url: str) -> None:
        raise RuntimeError(url)

    with Browser(broken, tell=told.put).listen(ANY_PORT, None) as session:
        session.show(AUTHORIZE, STATE)
        told.get(timeout=SOON)
        assert "no browser could be opened" in told.get(timeout=SOON)


def test_an_opener_that_blocks_blocks_nobody(told: queue.SimpleQueue[str]) -> None:
    release = threading.Event()
    with Browser(lambda _url: release.wait(SOON), tell=told.put).listen(ANY_PORT, None) as session:
        session.show(AUTHORIZE, STATE)
        assert session.wait(0) is None
        assert not release.is_set()
        release.set()


def test_standard_error_is_where_it_is_told(fake: FakeBrowser, capsys: pytest.CaptureFixture[str]) -> None:
    with Browser(fake.open).listen(ANY_PORT, None) as session:
        session.show(AUTHORIZE, STATE)
        output = capsys.readouterr()
        assert fake.opened.get(timeout=SOON) in output.err
        assert output.out == ""


def test_a_program_without_standard_error(fake: FakeBrowser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)  # pythonw.exe
    with Browser(fake.open).listen(ANY_PORT, None) as session:
        session.show(AUTHORIZE, STATE)
        assert fake.opened.get(timeout=SOON)


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)//canary",
        "file:///etc/canary",
        "-canary",
        "https://as.example/?a='canary'",
        'https://as.example/"canary',
        "https://as.example/%action?canary",
        "https://as.example/\r\nSet-Cookie:%20canary",
        "https://as.example/\x1b[2Jcanary",
        "https://user:canary@as.example/",
        "",
    ],
    ids=lambda url: f"RULES-6.3-{url!r}",
)
def test_only_a_clean_http_url_is_shown(user: User, url: str) -> None:
    """RULES 6.3: nothing else gets to a browser, a header or a terminal."""
    with user.listen(ANY_PORT, None) as session, pytest.raises(UserError, match="must not be shown"):
        session.show(url, STATE)


def test_who_is_a_user() -> None:
    paste = PasteBack()
    assert as_user(paste) is paste
    assert isinstance(as_user(None), Browser)
    assert isinstance(as_user(str), User)
    with pytest.raises(TypeError, match="listen method or be callable"):
        as_user(cast("User", "browser"))


# --- Secrets ----------------------------------------------------------------------------------------------------------


def test_no_repr_holds_code_or_state(browser: Browser, fake: FakeBrowser) -> None:
    with browser.listen(ANY_PORT, None) as session:
        session.show(AUTHORIZE, STATE)
        fake.finish(fake.log_in(session))
        assert session.wait(SOON)
        with as_user(lambda _url: ANSWER).listen(ANY_PORT, None) as other:
            other.show(AUTHORIZE, STATE)
            assert other.wait(SOON)
            for thing in (browser, session, other, *vars(session).values(), *threading.enumerate()):
                assert CODE not in repr(thing)
                assert STATE not in repr(thing)
