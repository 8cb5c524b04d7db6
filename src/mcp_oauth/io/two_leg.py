"""A login in two legs: begun in one process or request, finished in another (web applications, FN 55).

    two_leg = TwoLeg(oauth, key)
    leg = await two_leg.abegin(binding)            # send the browser to leg.url; keep leg.sealed, to be taken once
    token = await two_leg.afinish(sealed, redirected_url, binding)

Between the legs there is only `leg.sealed`: encrypted, bound to the browser that began, and good for ten minutes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from mcp_oauth.exceptions import from_failure
from mcp_oauth.io.flights import FLIGHTS, Flight
from mcp_oauth.io.oauth import BaseOAuth, holder
from mcp_oauth.io.ports import now
from mcp_oauth.sansio import upkeep
from mcp_oauth.sansio.errors import Failure, Reason, failure
from mcp_oauth.sansio.grant import Token, grant_key
from mcp_oauth.sansio.keeping import Outcome
from mcp_oauth.sansio.sealing import KEY_BYTES, NONCE_BYTES, dump, seal, unseal
from mcp_oauth.sansio.steps import Await, Done, Failed, Need, OpenBrowser, Redirected, Step
from mcp_oauth.sansio.values import Seed


class Leg(NamedTuple):
    """A login that waits for its redirect."""

    url: str
    """Where to send the browser."""
    sealed: bytes
    """What finishes it. Keep it where an atomic get-and-delete takes it once: it must not be used twice."""


class TwoLeg:
    """Logins of one server and account whose redirect comes to a URL of your own application.

    `oauth` needs a client with your `redirect_uri`; `key` has 32 bytes and is the same in all processes.
    """

    def __init__(self, oauth: BaseOAuth, key: bytes) -> None:
        """Raises `ConfigurationError` where no redirect URI is configured, or the key has another length."""
        if len(key) != KEY_BYTES:
            raise from_failure(failure(Reason.CONFIGURATION, f"key must have {KEY_BYTES} bytes"))
        plan = oauth.plan
        clients = (plan.preregistered, plan.metadata_document, plan.dynamic)
        if not all(client.redirect_uri for client in clients if client is not None):
            raise from_failure(failure(Reason.CONFIGURATION, "every client needs a redirect_uri for a two-leg login"))
        self._oauth = oauth
        self._key = key
        self._grant = grant_key(plan.server_url, plan.account)

    def begin(self, binding: str) -> Leg:
        """The first leg. `binding` is a secret of the browser's session: a random cookie. Raises `OAuthError`."""
        return self._begun(FLIGHTS.wait(object(), self._first)[0], binding)

    async def abegin(self, binding: str) -> Leg:
        """`begin` for a task of asyncio or trio."""
        return self._begun((await FLIGHTS.wait_async(object(), self._first))[0], binding)

    def finish(self, sealed: bytes, redirected: str, binding: str) -> Token:
        """The second leg. `redirected` is the whole URL that the browser was sent to. Raises `OAuthError`."""
        return self._finished(FLIGHTS.wait(object(), self._second(sealed, redirected, binding))[0])

    async def afinish(self, sealed: bytes, redirected: str, binding: str) -> Token:
        """`finish` for a task of asyncio or trio."""
        return self._finished((await FLIGHTS.wait_async(object(), self._second(sealed, redirected, binding)))[0])

    def _first(self, flight: Flight) -> Step[upkeep.State, Outcome]:
        plan = replace(self._oauth.plan, two_leg=True, interactive=True, holder=holder())
        step = upkeep.begin(plan, Need("forced"), Seed(os.urandom(32)))
        return self._oauth.run(flight, step, upkeep.advance, until=OpenBrowser)

    def _begun(self, step: Step[upkeep.State, Outcome], binding: str) -> Leg:
        if isinstance(step, Await) and isinstance(step.effect, OpenBrowser):
            nonce, bound = os.urandom(NONCE_BYTES), self._bound(binding)
            return Leg(step.effect.url, seal(dump(step), key=self._key, binding=bound, nonce=nonce, now=now()))
        raise from_failure(_failure(step, Reason.LOGIN_ELSEWHERE, "another login has just been finished"))

    def _second(self, sealed: bytes, redirected: str, binding: str) -> Callable[[Flight], Step[upkeep.State, Outcome]]:
        opened = unseal(sealed, key=self._key, binding=self._bound(binding), now=now())
        if isinstance(opened, Failure):
            raise from_failure(opened)
        try:
            pending = msgspec.json.decode(opened, type=Await[upkeep.State])
        except msgspec.MsgspecError:
            raise from_failure(failure(Reason.CALLBACK_STATE, "another version of mcp_oauth began it")) from None
        step = upkeep.advance(pending.state, Redirected(redirected), now=now())

        def work(flight: Flight) -> Step[upkeep.State, Outcome]:
            end = self._oauth.run(flight, step, upkeep.advance, until=OpenBrowser)
            if isinstance(end, Done):
                self._oauth.pin(end.value)
            return end

        return work

    def _bound(self, binding: str) -> str:
        """Bound to the server and the account too: the token of one must not reach another (RULES 1.1)."""
        return f"{self._grant} {binding}"

    def _finished(self, step: Step[upkeep.State, Outcome]) -> Token:
        if isinstance(step, (Await, Failed)) or step.value.token is None:
            # Waiting for a redirect again means that this one was another login's.
            raise from_failure(_failure(step, Reason.CALLBACK_STATE, "the redirect is of another login"))
        self._oauth.take(step.value)
        return step.value.token


def _failure(step: Step[upkeep.State, Outcome], otherwise: Reason, message: str) -> Failure:
    return step.error if isinstance(step, Failed) else failure(otherwise, message)
