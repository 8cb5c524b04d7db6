"""`BaseOAuth`: one server and account as every driver sees it, whatever its HTTP stack.

It holds the token at hand, and asks the grant's upkeep for another one: a flight of its own thread, shared by all
callers in the process (`flights`). A driver adds two things: how to send OAuth traffic, and the plug of its stack.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from contextvars import copy_context
from functools import partial
from itertools import chain, repeat
from typing import TYPE_CHECKING, NoReturn, TypeVar

import anyio
from msgspec.structs import replace

from mcp_oauth.exceptions import from_failure
from mcp_oauth.io.drive import Advance, drive, drive_async
from mcp_oauth.io.flights import FLIGHTS, Flight, NeedsUser
from mcp_oauth.io.fresh import KeepFresh
from mcp_oauth.io.later import LATER, Over
from mcp_oauth.io.options import JITTER, Options, make_plan
from mcp_oauth.io.ports import Ports, Stopped, WallClock, now
from mcp_oauth.io.sending import BlockingSender, Sender
from mcp_oauth.io.user import as_user
from mcp_oauth.sansio import access, forgetting, logout, upkeep
from mcp_oauth.sansio.errors import Reason, failure
from mcp_oauth.sansio.grant import GrantRecord, Token, grant_key
from mcp_oauth.sansio.keeping import Outcome
from mcp_oauth.sansio.logout import LoggedOut
from mcp_oauth.sansio.messages import printable
from mcp_oauth.sansio.plan import Plan
from mcp_oauth.sansio.steps import Await, Done, Effect, Ensured, Failed, How, Need, NotEnsured, Notice, Step
from mcp_oauth.sansio.values import Seed
from mcp_oauth.store.base import Store

if TYPE_CHECKING:
    from typing_extensions import Unpack

log = logging.getLogger("mcp_oauth")


MOST_FLIGHTS = 3
"""Runs of the upkeep that one request waits for: others' runs may not bring what it needs."""

Key = tuple[str, str, str]
Pin = tuple[str, str]

_unsaved: dict[Pin, GrantRecord] = {}
"""Records that a store would not take, by (store identity, key), each with a task of `LATER` (RULES 4.11)."""
SAVE_AGAIN = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
"""Seconds between the tries to save one again, the last ones for ever; a run of its upkeep tries at once."""

_pinning = threading.RLock()
"""Re-entrant: the garbage collector may run anything at any allocation."""


def _forget() -> None:
    """In a forked child: two processes must not own one rotating token."""
    global _pinning
    _pinning = threading.RLock()
    _unsaved.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)

S = TypeVar("S")
R = TypeVar("R")
T = TypeVar("T")


class _Landed:
    """What a flight brought, and whether it would have asked a person."""

    def __init__(self, step: Done[Outcome] | Failed, could_login: bool) -> None:
        self.step = step
        self.could_login = could_login


class _FlightClock(WallClock):
    """The clock of a run on a flight."""

    def __init__(self, flight: Flight) -> None:
        self._flight = flight

    def sleep(self, seconds: float) -> None:
        """Wait, and let others fly meanwhile."""
        if self._flight.pause(seconds):
            raise Stopped

    def ask_user(self) -> None:
        """From here on the flight ends when nobody waits for it."""
        self._flight.ask_user()

    def user_answered(self) -> None:
        """From here on it runs to its end."""
        self._flight.user_answered()

    def stopping(self) -> bool:
        """The program ends, or nobody waits."""
        return self._flight.stopping()


class BaseOAuth(ABC):
    """One MCP server, as one account. Thread-safe, and bound to no event loop."""

    def __init__(self, server_url: str, **options: Unpack[Options]) -> None:
        """Raises `ConfigurationError`, with the option and the cure; `TypeError` for an option that there is not."""
        if unknown := options.keys() - Options.__optional_keys__:
            raise TypeError(f"{type(self).__module__}.{type(self).__name__} has no option {min(unknown)!r}")
        self._plan = make_plan(server_url, options)
        store = options.get("store")
        self._store = _default_store() if store is None else store
        self._user = as_user(options.get("user"))
        self._allow_issuer = options.get("allow_issuer")
        self._on_notice = options.get("on_notice")
        self._key = grant_key(self._plan.server_url, self._plan.account)
        self._token: Token | None = None
        self._accepted = True
        self._how: How = "stored"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._plan.server_url!r}, account={self._plan.account!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} holds a token and cannot be copied or pickled: make a new one")

    @property
    def server_url(self) -> str:
        """The server URL in its canonical form."""
        return self._plan.server_url

    @property
    def plan(self) -> Plan:
        """What was configured."""
        return self._plan

    @property
    def token(self) -> Token | None:
        """The token at hand in this process: its scopes and lifetime. It is asked for nowhere."""
        return self._token

    @abstractmethod
    def open_sender(self) -> AbstractAsyncContextManager[Sender] | AbstractContextManager[BlockingSender]:
        """A client of its own for OAuth traffic, for one run of a machine: no cookies, hooks or defaults of others.

        See `sending.sender` and `sending.blocking_sender`.
        """

    # --- What programs call ---------------------------------------------------------------------------------------

    def authorize(self, *, force: bool = False) -> Token:
        """Get a token now, with a login if need be; `force`: with a new login in any case. Raises `OAuthError`.

        Unlike a request it needs no challenge (FN 28), and asks again where a login was denied before.
        """
        return _token(self.ensure(Need("forced" if force else "asked")))

    async def aauthorize(self, *, force: bool = False) -> Token:
        """`authorize` for a task of asyncio or trio."""
        return _token(await self.ensure_async(Need("forced" if force else "asked")))

    def logout(self, *, revoke: bool = True) -> LoggedOut:
        """Revoke the tokens, forget the grant, and say what the server said (RULES 3.8). Raises `TokenStorageError`.

        `revoke=False`: forget it here only, and tell no server.
        """
        key, work = self._logging_out(revoke)
        try:
            return _value(FLIGHTS.wait(key, work)[0])
        finally:
            self._token = None

    async def alogout(self, *, revoke: bool = True) -> LoggedOut:
        """`logout` for a task of asyncio or trio."""
        key, work = self._logging_out(revoke)
        try:
            return _value((await FLIGHTS.wait_async(key, work))[0])
        finally:
            self._token = None

    def forget_client(self) -> tuple[str, ...]:
        """Forget this grant's dynamic registrations, so that the next login registers anew (FN 31); the tokens stay.

        Returns the issuers where it was registered. Raises `TokenStorageError`.
        """
        return _value(FLIGHTS.wait(self._flight_key("forget"), self._forget_client)[0])

    async def aforget_client(self) -> tuple[str, ...]:
        """`forget_client` for a task of asyncio or trio."""
        landed, _ = await FLIGHTS.wait_async(self._flight_key("forget"), self._forget_client)
        return _value(landed)

    def keep_fresh(self) -> KeepFresh:
        """Renew in the background: `with oauth.keep_fresh():`, or `async with`, in a program that runs for long.

        Within it the token is renewed when it enters its leeway, so that no request waits for that. It is looked at
        once a minute at least, asks no person, and raises nothing: a failure is the notice `not-fresh`, and tried
        again after 5 to 60 seconds. Any number of objects share one thread, which neither keeps them nor the program
        alive. It may be entered anywhere, nested too, and by many threads. A forked child begins its own.
        """
        return KeepFresh(self)

    # --- What plugs call ------------------------------------------------------------------------------------------

    def begin(self, *, replayable: bool) -> access.Out:
        """Begin one request of a caller (`sansio.access`)."""
        return access.begin(
            self._token, now=now(), jitter=JITTER, replayable=replayable, never_accepted=not self._accepted
        )

    def finished(self, accepted: Token | None) -> None:
        """The request is over; a server accepted this token."""
        if accepted is not None and accepted is self._token:
            self._accepted = True

    def ensure(self, need: Need) -> Ensured | NotEnsured:
        """Get a token from the grant's upkeep, in a thread."""
        trip = _Trip(self, need)
        while trip.result is None:
            try:
                trip.landed(*FLIGHTS.wait(trip.key, trip.work, patient=trip.patient))
            except NeedsUser:
                trip.needs_user()
        return trip.result

    async def ensure_async(self, need: Need) -> Ensured | NotEnsured:
        """Get a token from the grant's upkeep, in a task of asyncio or trio."""
        trip = _Trip(self, need)
        while trip.result is None:
            try:
                trip.landed(*await FLIGHTS.wait_async(trip.key, trip.work, patient=trip.patient))
            except NeedsUser:
                trip.needs_user()
        return trip.result

    def start_ensuring(self, need: Need, then: Callable[[Ensured | NotEnsured], object]) -> None:
        """`ensure` for somebody who goes on meanwhile: `then` is called from another thread, and must not raise."""
        trip = _Trip(self, need)

        def landed(outcome: Callable[[], _Landed | None], own: bool) -> None:
            try:
                trip.landed(outcome(), own)
            except NeedsUser:
                trip.needs_user()
            except BaseException as error:  # of an application's own code
                trip.result = NotEnsured(failure(Reason.STOPPED, f"the application raised {type(error).__name__}"))
            go_on()

        def go_on() -> None:
            if trip.result is None:
                FLIGHTS.start(trip.key, trip.work, landed)
            else:
                then(trip.result)

        go_on()

    def _flight_key(self, purpose: str) -> Key:
        return self._store.identity, self._key, purpose

    def _could_login(self, need: Need) -> bool:
        return self._plan.interactive and need.may_login and not _only_renewal(need)

    def pin(self, outcome: Outcome, given: GrantRecord | None = None) -> None:
        """Remember the record that the store would not take (RULES 4.11); without one, that `given` is settled.

        `given` is what this run was given. What another run has pinned since is newer.
        """
        pin = (self._store.identity, self._key)
        with _pinning:
            newer = _unsaved.get(pin) is not given
            if outcome.unsaved is not None and not (newer and outcome.how == "stored"):
                _unsaved[pin] = outcome.unsaved
            elif not newer:
                _unsaved.pop(pin, None)
        self._see_to(pin)

    def _settle(self, pin: Pin) -> None:
        with _pinning:
            _unsaved.pop(pin, None)
        self._see_to(pin)

    def _see_to(self, pin: Pin) -> None:
        if pin not in _unsaved:
            LATER.drop(pin)
        self._save_later(pin)  # another run may have pinned another record in between

    def _save_later(self, pin: Pin) -> None:
        if pin in _unsaved:
            delays = chain(SAVE_AGAIN, repeat(SAVE_AGAIN[-1]))
            LATER.add(pin, partial(self._save_again, pin, delays), next(delays), at_exit=True)

    def take(self, outcome: Outcome) -> Ensured:
        """Keep the token that a run of the upkeep brought."""
        token = outcome.token
        if token is not None and token != self._token:
            self._token, self._accepted, self._how = token, outcome.how == "stored", outcome.how
        # A peer's login is "stored" to its joiners; until a server accepts the token it is what this process knows.
        return Ensured(token, outcome.how if self._accepted or token is None else self._how)

    # --- On the flight's thread -----------------------------------------------------------------------------------

    def _upkeep(self, flight: Flight, need: Need) -> _Landed:
        plan = replace(self._plan, holder=holder())
        begin = partial(upkeep.begin, plan, need)
        return _Landed(self._keeping_up(flight, begin), self._could_login(need))

    def _keeping_up(
        self, flight: Flight, begin: Callable[[Seed, GrantRecord | None], upkeep.Out]
    ) -> Done[Outcome] | Failed:
        unsaved = _unsaved.get((self._store.identity, self._key))
        end = self._run(flight, begin(Seed(os.urandom(32)), unsaved), upkeep.advance)
        if isinstance(end, Done):  # else it is still to be saved
            self.pin(end.value, unsaved)
        return end

    def _save_again(self, pin: Pin, delays: Iterator[float], last: bool, over: Over) -> None:
        """Another try to save what the store would not take; whoever keeps up the grant now does it too."""

        def fly(purpose: str) -> None:
            FLIGHTS.start(self._flight_key(purpose), self._restore, landed)

        def landed(outcome: Callable[[], object], own: bool) -> None:
            try:
                outcome()
            except NeedsUser:  # somebody logs in meanwhile: not to be waited for
                return fly("renewal")
            except BaseException as error:  # of an application's own code; its text may quote anything
                log.error("saving tokens again raised %s", type(error).__name__)
            if last and not own and pin in _unsaved:
                return fly("upkeep")  # the other run may have tried it before the program ended
            if last and pin in _unsaved:
                lost = f"the program ended before {pin[0]} took the new tokens"
                self._tell(Notice("not-persisted", f"{self.server_url} may need a new login: {lost}"))
            over(next(delays) if pin in _unsaved else None)
            if not last:
                self._save_later(pin)
            return None

        fly("upkeep")

    def _restore(self, flight: Flight) -> None:
        self._keeping_up(flight, partial(upkeep.begin_restoring, self._plan))

    def _logging_out(self, revoke: bool) -> tuple[Key, Callable[[Flight], Done[LoggedOut] | Failed]]:
        pin = (self._store.identity, self._key)

        def work(flight: Flight) -> Done[LoggedOut] | Failed:
            step = logout.begin(self._plan, Seed(os.urandom(32)), _unsaved.get(pin), revoke=revoke)
            end = self._run(flight, step, logout.advance)
            if isinstance(end, Done):  # else the grant lives on, and is still to be saved
                self._settle(pin)
            return end

        return self._flight_key("logout" if revoke else "forget here"), work

    def _forget_client(self, flight: Flight) -> Done[tuple[str, ...]] | Failed:
        return self._run(flight, forgetting.begin(self._plan, Seed(os.urandom(32))), forgetting.advance)

    def _run(self, flight: Flight, step: Step[S, R], advance: Advance[S, R]) -> Done[R] | Failed:
        end = self.run(flight, step, advance)
        assert not isinstance(end, Await)  # noqa: S101 - nothing stops it before its end
        return end

    def run(
        self, flight: Flight, step: Step[S, R], advance: Advance[S, R], until: type[Effect] | tuple[()] = ()
    ) -> Step[S, R]:
        """Run a machine on a flight's thread: to its end, or to the first effect of the kind `until`."""
        clock = _FlightClock(flight)
        ports = Ports(self._store, self._user, clock, tell=self._tell, allow_issuer=self._allow_issuer)
        opened = self.open_sender()

        async def fly(sender: AbstractAsyncContextManager[Sender]) -> Step[S, R]:
            async with sender as send:
                return await drive_async(step, advance, send, ports, until)

        try:
            if not isinstance(opened, AbstractContextManager):
                return _in_loop(partial(fly, opened))
            with opened as send:
                return drive(step, advance, send, ports, until)
        except Stopped:
            return Failed(failure(Reason.STOPPED, "nobody waited for it any more, or the program is ending"))

    def _tell(self, notice: Notice) -> None:
        notice = replace(notice, message=printable(notice.message, 2000))  # peers name themselves in some
        log.log(LEVELS.get(notice.name, logging.INFO), "%s: %s", notice.name, notice.message)
        if self._on_notice is not None:
            try:
                self._on_notice(notice)
            except BaseException:  # sys.exit() too: between a rotation and its save, nothing may end the run
                log.exception("on_notice failed")


class _Trip:
    """The flights of one request: mostly one. Others' runs may not bring what this one needs."""

    def __init__(self, oauth: BaseOAuth, need: Need) -> None:
        self._oauth = oauth
        self._need = need
        self._flights = 0
        self._detour = False
        self.result: Ensured | NotEnsured | None = None
        self.key = oauth._flight_key("upkeep")
        # What a renewal may mend never waits for somebody else's login in a browser (RULES 4.13).
        self.patient = oauth._plan.interactive and not _renewal_may_do(need)

    def work(self, flight: Flight) -> _Landed | None:
        """What a flight of this request does."""
        return self._oauth._upkeep(flight, replace(self._need, may_login=False) if self._detour else self._need)

    def landed(self, landed: _Landed | None, own: bool) -> None:
        """A flight is over; `own`: it did our work. None: it only saved what a store would not take before."""
        if landed is None:
            return
        self._flights += 1
        if self._detour and _brought_nothing(landed.step) and self._wants_login():
            self._after_detour()
        elif own or self._suits(landed):
            self.result = self._result(landed.step)
        elif self._flights == MOST_FLIGHTS:
            message = "other requests kept changing the grant"
            self.result = NotEnsured(failure(Reason.STORE_CONTENDED, message))

    def _wants_login(self) -> bool:
        return self._need.may_login and not _only_renewal(self._need)

    def _after_detour(self) -> None:
        """Only the login helps: wait for it now, or say that this request may not."""
        if self._oauth._plan.interactive:
            self._detour, self.patient, self.key = False, True, self._oauth._flight_key("upkeep")
        else:
            self.needs_user()

    def needs_user(self) -> None:
        """The running flight asks a person, and this request does not wait for that: not yet, or not at all."""
        if _renewal_may_do(self._need) and not self._detour:
            self._detour, self.key = True, self._oauth._flight_key("renewal")
            return
        message = f"{self._oauth.server_url} needs a login, and interactive=False"
        self.result = NotEnsured(failure(Reason.AUTHORIZATION_REQUIRED, message))

    def _suits(self, landed: _Landed) -> bool:
        """It brought what this request needs, or would have failed for it too."""
        step, need = landed.step, self._need
        if isinstance(step, Done):
            token = step.value.token
            return _only_renewal(need) if token is None else _serves(step.value, token, need)
        return landed.could_login or not self._oauth._could_login(need)

    def _result(self, step: Done[Outcome] | Failed) -> Ensured | NotEnsured:
        return NotEnsured(step.error) if isinstance(step, Failed) else self._oauth.take(step.value)


def _only_renewal(need: Need) -> bool:
    """Never a reason to ask a person."""
    return need.because in ("missing", "expiring")


def _renewal_may_do(need: Need) -> bool:
    return _only_renewal(need) or (need.because == "refused" and need.may_renew and need.unlike is not None)


def _brought_nothing(step: Done[Outcome] | Failed) -> bool:
    return isinstance(step, Done) and step.value.token is None


def _serves(outcome: Outcome, token: Token, need: Need) -> bool:
    if need.because == "forced":
        return outcome.how == "login"
    enough = need.because != "scope" or set(need.scopes or ()) <= set(token.requested or ())
    return token.fingerprint != need.unlike and enough


def _value(step: Done[R] | Failed) -> R:
    if isinstance(step, Failed):
        raise from_failure(step.error)
    return step.value


def _token(ensured: Ensured | NotEnsured) -> Token:
    if isinstance(ensured, NotEnsured):
        raise from_failure(ensured.failure)
    assert ensured.token is not None  # noqa: S101 - upkeep brings one, or fails, where one is asked for
    return ensured.token


def holder() -> str:
    """How others see who logs in."""
    return f"pid {os.getpid()} on {platform.node()}"


def _in_loop(fly: Callable[[], Awaitable[T]]) -> T:
    """Run in an event loop of this thread, with the caller's context but for what it says of the caller's loop."""
    context = copy_context()
    if sniffio := sys.modules.get("sniffio"):
        context.run(sniffio.current_async_library_cvar.set, None)
    return context.run(anyio.run, fly)


LEVELS: Mapping[str, int] = {
    "not-persisted": logging.ERROR,
    "not-fresh": logging.WARNING,
    "not-durable": logging.WARNING,
    "revocation-failed": logging.WARNING,
    "resource-broader-than-server": logging.WARNING,
    "scopes-reduced": logging.WARNING,
}
"""The levels of notices in the log; the others are INFO."""


def _default_store() -> Store:
    from mcp_oauth.store.choose import AutoStore

    return AutoStore()
