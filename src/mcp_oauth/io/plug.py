"""What the plugs of all stacks share: one request of a caller on its way through `sansio.access`.

A plug knows its stack's requests and responses, and this knows the rest. A stack that sends a request when it is told
to needs nothing but `send_authorized` or `send_authorized_async`:

    response = send_authorized(oauth, url, send, heard, drop)

    send(headers)     sends the caller's request with these headers besides its own, and returns the response
    heard(response)   its status, and its WWW-Authenticate fields
    drop(response)    lets go of a challenged response, after which the request is sent again; it must not raise, and
                      may be called a second time where the first was cancelled

A stack that calls its plug back (httpx, requests) steps through a `Trip` by itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import anyio

from mcp_oauth.exceptions import from_failure
from mcp_oauth.io.oauth import BaseOAuth
from mcp_oauth.io.ports import now
from mcp_oauth.sansio import access, uris
from mcp_oauth.sansio.messages import Headers
from mcp_oauth.sansio.steps import Answered, Await, Done, Ensure, Event, Failed, Proceed

R = TypeVar("R")
Heard = tuple[int, Iterable[str]]
"""A status, and WWW-Authenticate fields."""

MOST_DROPPED = 1 << 16
"""Bytes of a challenged response that are read, so that its connection can be used again; a longer one is closed."""
LETTING_GO = 1.0
"""Seconds in which a response is let go in an event loop, also by a caller who was cancelled."""


class Trip:
    """One request of a caller. `effect` is what to do next; None: the last answer is the caller's."""

    def __init__(self, oauth: BaseOAuth, url: str, *, replayable: bool, hop: bool = False) -> None:
        """`url` is where the request goes; elsewhere than to the server it goes as it is (RULES 1.1).

        `replayable`: its body can be sent again; `hop`: the stack was redirected there. Raises `OAuthError`.
        """
        self.effect: Proceed | Ensure | None = Proceed(())
        self._oauth = oauth
        self._step: access.Out | None = None
        self._direct = False
        if (uris.below if hop else uris.belongs)(_as_http(url), server=oauth.server_url):
            self._go_on(oauth.begin(replayable=replayable))

    def answered(self, status: int, challenges: Iterable[str], *, redirected_to: str | None = None) -> bool:
        """After `Proceed`: judge what came back, from another place where the stack followed redirects by itself.

        True: that hop went without the token, which belongs there; send the request once more, straight to it.
        Raises `OAuthError`.
        """
        if self._step is None:
            self.effect = None
            return False
        if redirected_to is not None and self._lacked_token(status, redirected_to):
            self._direct = True
            return True
        # They mean something with these two alone (RFC 9110 section 11.6.1 allows them with any status).
        meant = tuple(challenges) if status in (401, 403) else ()
        self._advance(Answered(status, meant, redirected_to is None or self._below(redirected_to)))
        return False

    def ensured(self, event: Event) -> None:
        """After `Ensure`: go on with a token, or without. Raises `OAuthError`."""
        self._advance(event)

    def _lacked_token(self, status: int, url: str) -> bool:
        had_one = isinstance(self.effect, Proceed) and bool(self.effect.headers)
        return status == 401 and had_one and not self._direct and self._below(url)

    def _below(self, url: str) -> bool:
        return uris.below(_as_http(url), server=self._oauth.server_url)

    def _advance(self, event: Event) -> None:
        assert isinstance(self._step, Await)  # noqa: S101 - or there would be no effect
        self._go_on(access.advance(self._step.state, event, now=now()))

    def _go_on(self, step: access.Out) -> None:
        self._step = step
        match step:
            case Await(_, Proceed() | Ensure() as effect):
                self.effect = effect
            case Done(finished):
                self._oauth.finished(finished.accepted)
                self.effect = None
            case Failed(error):
                raise from_failure(error)
            case _:
                raise AssertionError("access has two effects")


def is_short(content_length: str | None) -> bool:
    """Whether the body of a challenged response is worth reading to its end."""
    length = content_length or ""
    return len(length) < 6 and length.isdecimal() and int(length) <= MOST_DROPPED


def _as_http(url: str) -> str:
    """The handshake of a WebSocket is a request to the same origin (RFC 6455 section 4.1)."""
    return f"http{url[2:]}" if url[:5].lower() in ("ws://", "wss:/") else url


def send_authorized(
    oauth: BaseOAuth,
    url: str,
    send: Callable[[Headers], R],
    heard: Callable[[R], Heard],
    drop: Callable[[R], object],
    *,
    replayable: bool = True,
) -> R:
    """Send a request with the token, get one and send it again where the server demands one. Raises `OAuthError`."""
    trip = Trip(oauth, url, replayable=replayable)
    response: R | None = None
    try:
        while True:
            match trip.effect:
                case Ensure(need):
                    trip.ensured(oauth.ensure(need))
                case Proceed(headers):
                    if response is not None:
                        drop(response)
                        response = None
                    response = send(headers)
                    trip.answered(*heard(response))
                case None:
                    assert response is not None  # noqa: S101 - `access` ends with an answer
                    return response
    except BaseException:
        if response is not None:
            drop(response)
        raise


async def send_authorized_async(
    oauth: BaseOAuth,
    url: str,
    send: Callable[[Headers], Awaitable[R]],
    heard: Callable[[R], Heard],
    drop: Callable[[R], Awaitable[object]],
    *,
    replayable: bool = True,
    hop: bool = False,
) -> R:
    """The same in a task of asyncio or trio; `hop`: the stack was redirected to `url`."""
    trip = Trip(oauth, url, replayable=replayable, hop=hop)
    response: R | None = None
    try:
        while True:
            match trip.effect:
                case Ensure(need):
                    trip.ensured(await oauth.ensure_async(need))
                case Proceed(headers):
                    if response is not None:
                        await _let_go(drop, response)
                        response = None
                    response = await send(headers)
                    trip.answered(*heard(response))
                case None:
                    assert response is not None  # noqa: S101 - `access` ends with an answer
                    return response
    except BaseException:
        if response is not None:
            await _let_go(drop, response, shield=True)
        raise


async def _let_go(drop: Callable[[R], Awaitable[object]], response: R, *, shield: bool = False) -> None:
    with anyio.move_on_after(LETTING_GO, shield=shield):
        await drop(response)
