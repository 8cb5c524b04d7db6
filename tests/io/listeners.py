"""What the tests of the loopback listener share: a login under way, and the bytes of its browser."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import NamedTuple

import httpx

from mcp_oauth.io.callback import Callback

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
