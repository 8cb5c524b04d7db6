"""What the drive loop touches, and nothing else: an HTTP stack, a store, a person, a clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Protocol

from mcp_oauth.io.user import User, UserError, UserSession
from mcp_oauth.sansio.grant import Record, decode, encode
from mcp_oauth.sansio.messages import Response
from mcp_oauth.sansio.steps import (
    Acquire,
    Acquired,
    Allowed,
    AskIssuer,
    Busy,
    Conflict,
    Effect,
    Event,
    Extend,
    Extended,
    Listen,
    Listening,
    Load,
    Loaded,
    Notice,
    OpenBrowser,
    Redirected,
    Release,
    Released,
    Save,
    Saved,
    SendFailed,
    Sleep,
    StillWaiting,
    StoreFailed,
    UserFailed,
    Woke,
)
from mcp_oauth.sansio.values import Now
from mcp_oauth.store import base
from mcp_oauth.store.base import Lease, Store, Stored, StoreError
from mcp_oauth.store.lease import elapsed

IssuerPolicy = Callable[[str, str, "tuple[str, ...] | None"], bool]
"""(server URL, issuer, scopes) -> whether to log in there (RULES 2.9)."""

Answer = Response | SendFailed


class Stopped(Exception):
    """The run was told to stop while it slept: nobody waits for it any more, or the program ends."""


class Clock(Protocol):
    """Time, as one run sees it."""

    def now(self) -> Now:
        """Both clocks."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait. Raises `Stopped` at once when it is time to stop."""
        ...

    def ask_user(self) -> None:
        """A person is needed from here on."""
        ...

    def user_answered(self) -> None:
        """The person is not needed any more."""
        ...

    def stopping(self) -> bool:
        """It is time to stop."""
        ...


def now() -> Now:
    """Both clocks of the process. The second one counts the time in which the machine is suspended, where it can."""
    return Now(time.time(), elapsed())


class WallClock:
    """The real clock of a run that nobody stops."""

    def now(self) -> Now:
        """Both clocks."""
        return now()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    def ask_user(self) -> None:
        """Nobody else is concerned."""

    def user_answered(self) -> None:
        """Nobody else is concerned."""

    def stopping(self) -> bool:
        """Never."""
        return False


class Ports:
    """All that one run of a machine needs but HTTP. Leaving its context ends the lock and the listener it holds."""

    def __init__(
        self,
        store: Store,
        user: User,
        clock: Clock,
        *,
        tell: Callable[[Notice], None],
        allow_issuer: IssuerPolicy | None = None,
    ) -> None:
        self._store = store
        self._user = user
        self._clock = clock
        self._allow_issuer = allow_issuer
        self._held = ExitStack()
        self._lease: Lease | None = None
        self._listener = ExitStack()
        self._session: UserSession | None = None
        self.tell = tell

    def now(self) -> Now:
        """Both clocks."""
        return self._clock.now()

    def __enter__(self) -> Ports:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        with self._listener, self._held:
            pass

    def perform(self, effect: Effect) -> Event:
        """Do what an effect says. `Send`, `Proceed` and `Ensure` are the driver's own. Raises `Stopped`."""
        match effect:
            case Load() | Save() | Acquire() | Extend() | Release():
                return self._perform_in_store(effect)
            case Listen() | OpenBrowser() | AskIssuer():
                return self._perform_for_user(effect)
            case Sleep(seconds):
                self._clock.sleep(seconds)
                return Woke()
            case _:
                raise TypeError(f"no driver for {type(effect).__name__}")

    def _perform_in_store(self, effect: Load | Save | Acquire | Extend | Release) -> Event:
        try:
            match effect:
                case Load(key):
                    return Loaded(_record(self._store.load(key), key))
                case Save():
                    return self._save(effect)
                case Acquire(key):
                    return self._acquire(key)
                case Extend():
                    return self._extend()
                case Release():
                    self._held.close()
                    return Released()
        except StoreError as error:
            return StoreFailed(str(error))
        except Exception as error:  # against its contract; a rotated token must outlive that, and so must its secrets
            return StoreFailed(f"the store raised {type(error).__name__}")

    def _perform_for_user(self, effect: Listen | OpenBrowser | AskIssuer) -> Event:
        try:
            match effect:
                case Listen(redirect_uri, port):
                    return self._listen(redirect_uri, port)
                case OpenBrowser():
                    return self._open(effect)
                case AskIssuer():
                    return self._ask(effect)
        except UserError as error:
            return UserFailed(str(error))
        except Exception as error:  # the application's own code: the login is withdrawn, so that nobody waits for it
            return UserFailed(f"the application raised {type(error).__name__}")

    # --- The store ------------------------------------------------------------------------------------------------

    def _save(self, effect: Save) -> Event:
        answer = self._store.save(
            effect.key, encode(effect.record), revision=effect.record.revision, expected=effect.expected
        )
        if isinstance(answer, base.Saved):
            return Saved(answer.durable)
        return Conflict(_record(answer.stored, effect.key))

    def _acquire(self, key: str) -> Event:
        lease = self._store.try_lock(key)
        if isinstance(lease, base.Held):
            return Busy(lease.holder)
        with ExitStack() as held:
            held.enter_context(lease)
            record = _record(self._store.load(key), key)
            self._held.push(held.pop_all())
            self._lease = lease
        return Acquired(record, lease.valid_until, lease.exclusive, lease.left_by)

    def _extend(self) -> Event:
        lease = self._lease
        return Extended(lease.valid_until if lease is not None and lease.extend() else None)

    # --- The person -----------------------------------------------------------------------------------------------

    def _listen(self, redirect_uri: str, port: int | None) -> Event:
        self._clock.ask_user()
        if self._clock.stopping():
            return UserFailed(NOBODY_WAITS)
        self._listener.close()
        self._session = self._listener.enter_context(self._user.listen(redirect_uri, port))
        return Listening(self._session.redirect_uri)

    def _open(self, effect: OpenBrowser) -> Event:
        if self._session is None:
            return UserFailed("nothing listens for the redirect")
        if self._clock.stopping():
            return UserFailed(NOBODY_WAITS)
        if not effect.opened:
            self._session.show(effect.url, effect.state)
        url = self._wait(self._session, effect.seconds)
        if url is None:
            return StillWaiting()
        self._clock.user_answered()
        return Redirected(url)

    def _wait(self, session: UserSession, seconds: float) -> str | None:
        """In slices, so that a login that nobody waits for ends soon."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self._clock.stopping():
            url = session.wait(min(left, SLICE))
            if url is not None:
                return url
        return None

    def _ask(self, effect: AskIssuer) -> Event:
        allow = self._allow_issuer
        # Only True allows: a coroutine that nobody awaits is true as well.
        if allow is not None and allow(effect.server_url, effect.issuer, effect.scopes) is not True:
            return UserFailed(f"{effect.issuer} was not allowed for {effect.server_url}")
        return Allowed()


NOBODY_WAITS = "nobody waits for the login any more"
SLICE = 0.25
"""Seconds after which whoever waits for a person looks up."""


def _record(stored: Stored | None, key: str) -> Record | None:
    if stored is None:
        return None
    record = decode(stored.value)
    if record is None:
        raise StoreError(f"{key} was written by a newer version of mcp_oauth: upgrade this program")
    return record
