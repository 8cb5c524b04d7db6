"""The person's part of a login: a browser on this machine, a paste, or whatever the application makes of it.

    with user.listen(redirect_uri, port) as session:      # before the authorization request is made
        session.redirect_uri                              # with its port: what goes into the request
        session.show(authorization_url, state)            # returns at once
        session.wait(seconds)                             # the redirect URL, or None: nobody came back yet

All of it blocks and is called from the flight's own thread. Nothing here judges a redirect: the core does.
"""

from __future__ import annotations

import os
import sys
import webbrowser
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as NotYet
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import PurePath
from socket import socket
from threading import Thread
from types import TracebackType
from typing import Protocol, runtime_checkable
from urllib.parse import urlsplit

import anyio
from anyio.from_thread import start_blocking_portal

from mcp_oauth.io.callback import LOOPBACK, Callback, UserError, bind, serve
from mcp_oauth.io.pages import FAILURE, SUCCESS, page_of_caller
from mcp_oauth.sansio.uris import for_browser, split, without_query

__all__ = ["Browser", "PasteBack", "User", "UserError", "UserSession", "as_user"]

_CLOSED = "the login was closed before anybody came back"
_TEXT_BROWSERS = ("www-browser", "links", "elinks", "lynx", "w3m")

Agent = Callable[[str], "str | Awaitable[str]"]
"""Authorization URL in, redirect URL out; may be `async`."""


class UserSession(Protocol):
    """One login's conversation. Leaving the context closes everything at once."""

    redirect_uri: str
    """Where the person's browser will be sent: what `listen` got, with a port where that was ours to choose."""

    def __enter__(self) -> UserSession: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

    def show(self, url: str, state: str, /) -> None:
        """Show the authorization URL, and return at once. `state` marks the redirect that answers it."""
        ...

    def wait(self, seconds: float) -> str | None:
        """The whole redirect URL (or what the person pasted), or None when `seconds` have passed.

        Call it again to go on waiting. Raises `UserError`, also when another thread leaves the context.
        """
        ...


@runtime_checkable
class User(Protocol):
    """Who logs in, and by what means."""

    def listen(self, redirect_uri: str, port: int | None) -> UserSession:
        """Get ready for a redirect to `redirect_uri`; raises `UserError` where that cannot be.

        On loopback and without a port, `port` (the one registered earlier) is used if it is free, else any other.
        """
        ...


class Browser:
    """A browser on this machine, sent back to a loopback listener (RFC 8252 section 7.3). The default.

    On a machine without one the address is told all the same, with what to do; it never waits in silence.
    """

    def __init__(
        self,
        opener: Callable[[str], object] | None = None,
        *,
        tell: Callable[[str], object] | None = None,
        success_html: str | None = None,
        failure_html: str | None = None,
    ) -> None:
        """`opener` opens a URL in a browser of your choice and may return False for "could not".

        `tell` shows the person a text (default: standard error). The two documents replace the last page; they are
        sent as they are, under a policy that lets them run and fetch nothing.
        """
        self._opener = opener
        self._tell = tell or _tell
        self._success = SUCCESS if success_html is None else page_of_caller(success_html)
        self._failure = FAILURE if failure_html is None else page_of_caller(failure_html)

    def listen(self, redirect_uri: str, port: int | None) -> UserSession:
        """Bind the redirect URI's host and port; entering the session starts to serve them."""
        host = _loopback_host(redirect_uri)
        if host is None:
            raise UserError(
                f"a browser cannot be sent back to this program at {without_query(redirect_uri)}: configure an http "
                "redirect URI on 127.0.0.1, [::1] or localhost, or receive the redirect in your own web application "
                "(two-leg login)"
            )
        redirect_uri, sockets = _bound(redirect_uri, host, port)
        return _Listening(Callback(redirect_uri, self._success, self._failure), sockets, self._present)

    def _present(self, url: str) -> None:
        hindrance = None if self._opener else headless(os.environ, sys.platform)
        if hindrance is not None:
            self._tell(_by_hand(url, hindrance))
            return
        self._tell(f"Opening the browser to log in. If none appears, open this address on this machine: {url}")
        _in_background("browser", partial(self._open, url))

    def _open(self, url: str) -> None:
        opener = self._opener or _open_in_browser
        try:
            opened = opener(url)
        except Exception:
            opened = False
        if opened is False:
            self._tell(_by_hand(url, "no browser could be opened"))


def headless(environ: Mapping[str, str], platform: str) -> str | None:
    """Why no browser is to be expected here, or None. `platform` as `sys.platform`."""
    if environ.get("BROWSER"):
        return None
    if environ.get("SSH_CONNECTION"):
        return "this is an SSH session"
    if platform == "linux" and not (environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY")):
        return "this machine has no display"
    return None


def _open_in_browser(url: str) -> bool:
    browser = webbrowser.get()
    if PurePath(browser.name).name in _TEXT_BROWSERS:  # it would take the program's own terminal
        return False
    return browser.open(url)


def _by_hand(url: str, hindrance: str) -> str:
    address = urlsplit(url).netloc
    port = address.rpartition(":")[2]
    return (
        f"To log in, open this address in a browser on this machine: {url}\n"
        f"It was not opened for you: {hindrance}. To use a browser on another machine, first forward the port from "
        f"there (ssh -L {port}:{address} ...), or run this program with user=PasteBack()."
    )


def _tell(text: str) -> None:
    if sys.stderr is not None:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


class _Listening:
    """A session on the loopback listener, which runs in an event loop and thread of its own."""

    def __init__(self, callback: Callback, sockets: Sequence[socket], present: Callable[[str], None]) -> None:
        self.redirect_uri = callback.redirect_uri
        self._callback = callback
        self._sockets = sockets
        self._present = present
        self._closing = ExitStack()

    def __enter__(self) -> UserSession:
        with ExitStack() as opened:
            for sock in self._sockets:
                opened.enter_context(sock)
            portal = opened.enter_context(start_blocking_portal(name="mcp-oauth-callback"))
            self._serving = portal.start_task_soon(serve, self._callback, self._sockets)
            self._serving.add_done_callback(self._ended)
            self._closing = opened.pop_all()
        return self

    def _ended(self, serving: Future[None]) -> None:
        error = None if serving.cancelled() else serving.exception()
        self._callback.fail(_CLOSED if error is None else f"the loopback listener failed: {type(error).__name__}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if self._callback.redirected.done():
            # The browser is still to be shown its last page, for which the token request need not wait.
            Thread(target=self._closing.close, name="mcp-oauth-callback-end").start()
        else:
            self._serving.cancel()
            self._closing.close()

    def show(self, url: str, state: str, /) -> None:
        self._callback.expect(_showable(url), state)
        self._present(_showable(self._callback.start_url))

    def wait(self, seconds: float) -> str | None:
        try:
            return self._callback.redirected.result(seconds)
        except NotYet:
            return None


class PasteBack:
    """The person opens the authorization URL anywhere, and pastes the address where the browser ended up (FN 45).

    Made for SSH sessions and containers. What is pasted may be the whole URL or its query; it is asked for again as
    long as it belongs to another login. A read that is under way when the login is closed stays until Enter is pressed.
    """

    def __init__(self, read: Callable[[], str] | None = None, write: Callable[[str], object] | None = None) -> None:
        """`read` returns one line (default: of standard input), `write` shows a text (default: on standard error)."""
        self._read = read or _read_line
        self._write = write or _tell

    def listen(self, redirect_uri: str, port: int | None) -> UserSession:
        """Choose the port, if there is one to choose; nothing listens on it."""
        redirect_uri = _with_port(redirect_uri, port)
        return _Asking(redirect_uri, partial(self._ask, redirect_uri))

    def _ask(self, redirect_uri: str, url: str) -> str:
        self._write(
            f"To log in, open this address in a browser: {url}\n"
            f"The browser will end up at an address that begins with {redirect_uri} and may well fail to load. "
            "Paste that whole address here and press Enter:"
        )
        try:
            return self._read()
        except EOFError:
            raise UserError(
                "there is no terminal to paste the redirect URL into: standard input is at its end"
            ) from None


def _read_line() -> str:
    """One line of standard input, unbuffered: a thread left behind in `input()` aborts the interpreter's exit."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(sys.stdin.fileno(), 1)
        if not byte:
            break
        line += byte
    if not line:
        raise EOFError
    return line.decode(errors="replace")


class _Calling:
    """The application's own user agent."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def listen(self, redirect_uri: str, port: int | None) -> UserSession:
        return _Asking(_with_port(redirect_uri, port), self._ask)

    def _ask(self, url: str) -> str:
        answer = self._agent(url)
        return answer if isinstance(answer, str) else anyio.run(_awaited, answer)


async def _awaited(answer: Awaitable[str]) -> str:
    return await answer


class _Asking:
    """A session that gets each answer by a blocking call on a thread of its own."""

    def __init__(self, redirect_uri: str, ask: Callable[[str], str]) -> None:
        self.redirect_uri = redirect_uri
        self._ask = ask
        self._url: str | None = None
        self._answer: Future[str] | None = None

    def __enter__(self) -> UserSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if self._answer is not None:
            with suppress(InvalidStateError):
                self._answer.set_exception(UserError(_CLOSED))

    def show(self, url: str, _state: str, /) -> None:
        self._url = _showable(url)
        self._answer = _answered(self._ask, self._url)

    def wait(self, seconds: float) -> str | None:
        if self._url is None:
            raise UserError("nothing has been shown yet")
        if self._answer is None:  # the core did not take the last one
            self._answer = _answered(self._ask, self._url)
        try:
            answer = self._answer.result(seconds)
        except NotYet:
            return None
        self._answer = None
        return answer


def _answered(ask: Callable[[str], str], url: str) -> Future[str]:
    """The answer to come. Of an error only the kind is kept: its text and traceback may hold the URL."""
    answer: Future[str] = Future()
    _in_background("user", partial(_settle, answer, partial(ask, url)))
    return answer


def _settle(answer: Future[str], ask: Callable[[], object]) -> None:
    try:
        result = ask()
    except UserError as error:
        result = error
    except BaseException as error:
        result = UserError(f"the user agent failed: {type(error).__name__}")
    if not isinstance(result, (str, UserError)):
        result = UserError("the user agent gave no URL")
    with suppress(InvalidStateError):  # closed in the meantime
        if isinstance(result, str):
            answer.set_result(result)
        else:
            answer.set_exception(result)


def _in_background(name: str, target: Callable[[], None]) -> None:
    """Run what may block forever on a thread that nobody waits for."""
    Thread(target=target, name=f"mcp-oauth-{name}", daemon=True).start()


def as_user(user: User | Agent | None) -> User:
    """A `User` as it is, a function (authorization URL in, redirect URL out; may be async) as one, None a `Browser`."""
    if user is None:
        return Browser()
    if isinstance(user, User):
        return user
    if callable(user):
        return _Calling(user)
    raise TypeError("user must have a listen method or be callable")


def _showable(url: str) -> str:
    shown = for_browser(url)
    if shown is None:
        raise UserError(f"{without_query(url)} must not be shown to a browser")
    return shown


def _loopback_host(redirect_uri: str) -> str | None:
    """The host of an http redirect URI on loopback; None for any other."""
    parts = split(redirect_uri)
    return parts.host if parts and parts.scheme == "http" and parts.host in LOOPBACK else None


def _with_port(redirect_uri: str, port: int | None) -> str:
    """The redirect URI; with a port that is free just now where it is on loopback and has none."""
    host = _loopback_host(redirect_uri)
    if host is None or urlsplit(redirect_uri).port:
        return redirect_uri
    redirect_uri, sockets = _bound(redirect_uri, host, port)
    for sock in sockets:
        sock.close()
    return redirect_uri


def _bound(redirect_uri: str, host: str, port: int | None) -> tuple[str, list[socket]]:
    """The redirect URI with its port, and the sockets that listen there."""
    parts = urlsplit(redirect_uri)
    choices = (parts.port,) if parts.port else dict.fromkeys((port, None))
    reason = ""
    for choice in choices:
        try:
            sockets = bind(host, choice)
        except OSError as error:
            reason = f"port {choice or 'any'} of {host} cannot be listened on: {error.strerror}"
            continue
        authority = parts.netloc if parts.port else f"{parts.netloc}:{sockets[0].getsockname()[1]}"
        return redirect_uri.replace(parts.netloc, authority, 1), sockets
    raise UserError(f"{reason}; end the program that holds it, or configure another redirect URI")
