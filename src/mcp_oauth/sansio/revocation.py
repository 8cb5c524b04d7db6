"""The machine that revokes a grant's tokens (RFC 7009): at most 6 effects.

Refresh token first, then access token. 503 means that the token is still alive (section 2.2.1): asked once more
after Retry-After. It never fails: what the server said is its result.
"""

from __future__ import annotations

from typing import Literal

from mcp_oauth.sansio.errors import Failure, Reason, failure, refused
from mcp_oauth.sansio.grant import AuthMethod, Grant
from mcp_oauth.sansio.messages import Request, Response, retry_after
from mcp_oauth.sansio.steps import Await, Done, Event, Misuse, Send, SendFailed, Sleep, Step, Table, Woke
from mcp_oauth.sansio.token_endpoint import choose_auth_method, request, secrets_of
from mcp_oauth.sansio.values import Secret, Value

MOST_TRIES = 2
MOST_EFFECTS = 2 * (2 * MOST_TRIES - 1)
LONGEST_WAIT = 5.0
"""Seconds: somebody waits for the logout."""

Kind = Literal["refresh_token", "access_token"]


class Revoked(Value, frozen=True):
    """What became of one token."""

    shown = ("token", "failure")

    token: Kind
    failure: Failure | None
    """None: the server revoked it, or had forgotten it."""


class Revoking(Value, frozen=True, tag="revocation.Revoking"):
    """Waits for the answer about the first of `rest`."""

    shown = ("tries", "done")

    grant: Grant
    url: str
    rest: tuple[tuple[Kind, Secret], ...]
    done: tuple[Revoked, ...] = ()
    tries: int = 1


class Resting(Value, frozen=True, tag="revocation.Resting"):
    """Waits before it asks again."""

    shown = ("then",)

    then: Revoking


State = Revoking | Resting
Out = Step[State, tuple[Revoked, ...]]


def begin(grant: Grant, tokens: tuple[tuple[Kind, str], ...] | None = None) -> Out:
    """Revoke `tokens`, which were issued to the client of a grant; None: all that it holds.

    Without a revocation endpoint there is nothing to do: the result is empty.
    """
    if grant.revocation_endpoint is None:
        return Done(())
    return _send(Revoking(grant, grant.revocation_endpoint, tokens or _held(grant)))


def _held(grant: Grant) -> tuple[tuple[Kind, str], ...]:
    """The refresh token first (RULES 3.8)."""
    access: tuple[tuple[Kind, str], ...] = (("access_token", grant.access_token),)
    return access if grant.refresh_token is None else (("refresh_token", grant.refresh_token), *access)


def advance(state: State, event: Event) -> Out:
    """Judge an answer, and go on to the next token."""
    match state, event:
        case Revoking(), Response(status=503) if state.tries < MOST_TRIES:
            seconds = min(retry_after(event) or 1.0, LONGEST_WAIT)
            return Await(Resting(state), Sleep(seconds))
        case Revoking(), Response(status=200 | 204):
            return _next(state, None)
        case Revoking(), Response():
            grant = state.grant
            hide = (
                *secrets_of(_request(state)),
                grant.registration.client_secret,
                grant.refresh_token,
                grant.access_token,
            )
            return _next(
                state, refused(Reason.EXCHANGE_REFUSED, "the revocation endpoint", state.url, event, hide=hide)
            )
        case Revoking(), SendFailed(reason):
            message = f"the revocation endpoint could not be reached: {reason}"
            return _next(state, failure(Reason.SERVER_UNAVAILABLE, message, url=state.url))
        case Resting(then), Woke():
            return _send(Revoking(then.grant, then.url, then.rest, then.done, then.tries + 1))
        case _:
            raise Misuse(state, event)


def _send(state: Revoking) -> Out:
    return Await(state, Send(_request(state)))


def _request(state: Revoking) -> Request:
    """RFC 7009 section 2.1."""
    kind, token = state.rest[0]
    params = (("token", token), ("token_type_hint", kind))
    return request(state.url, state.grant.registration, params, _auth_method(state.grant))


def _auth_method(grant: Grant) -> AuthMethod | None:
    """RULES 2.18: the revocation endpoint may want another method than the token endpoint."""
    supported = grant.revocation_auth_methods
    client = grant.registration
    if supported is None or client.auth_method in supported:
        return None
    return choose_auth_method(None, client.client_secret, supported)


def _next(state: Revoking, result: Failure | None) -> Out:
    done = (*state.done, Revoked(state.rest[0][0], result))
    if len(state.rest) == 1:
        return Done(done)
    return _send(Revoking(state.grant, state.url, state.rest[1:], done))


TABLE: Table = {
    Revoking: ((Send,), {Response: (Revoking, Resting, Done), SendFailed: (Revoking, Done)}),
    Resting: ((Sleep,), {Woke: (Revoking,)}),
}
