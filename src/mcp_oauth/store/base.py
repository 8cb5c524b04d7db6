"""What a store is: four blocking calls on opaque bytes, compare-and-swap by revision, and a lock never waited for."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Protocol, runtime_checkable


class StoreError(Exception):
    """A store could not do what was asked. The message names the cause, the place and the cure, and no secret."""


class UnavailableError(StoreError):
    """A store that is not to be had: not on this system, not installed, not configured, locked, or out of reach."""


class WrongPasswordError(StoreError):
    """The password, or its absence, does not open the store. Nothing was changed."""


class DamagedError(StoreError):
    """What is stored is not what was saved there. It was not overwritten: the message says where it is now."""


class NewerFormatError(StoreError):
    """Written by a later release. It was left as it is."""


class NotWritableError(StoreError):
    """A read-only place, or no permission to write there."""


class StoreFullError(StoreError):
    """No space, no quota, or over a size limit."""


class UnsafePlaceError(StoreError):
    """A place where others could read or replace what is kept, or where its locks would not hold."""


class StoreBusyError(StoreError):
    """A peer held what a short write needs for longer than ten seconds: it is stopped, or very slow."""


class Stored(NamedTuple):
    """One saved value."""

    value: bytes
    revision: str


class Saved(NamedTuple):
    """The value is in the store."""

    durable: bool
    """False: a power failure may still take it back."""


class Conflict(NamedTuple):
    """Somebody else saved first; `stored` is what is there now (None: nothing)."""

    stored: Stored | None


class Held(NamedTuple):
    """The lock is somebody else's."""

    holder: str
    """Who, as far as the store knows: `pid 4711 on host since 2026-11-23T10:00:00Z`."""


class Lease(Protocol):
    """The lock of one key, held. Leaving the context releases it; so does the end of the process."""

    valid_until: float | None
    """Elapsed seconds (as `Now.elapsed`) at which a lease lapses; None: a lock of the system, which does not."""

    @property
    def exclusive(self) -> bool:
        """True for a lock of the system: a previous holder that did not release it is certainly dead."""
        ...

    @property
    def left_by(self) -> str:
        """That holder, named as in `Held`; "" where it released the lock, or nobody knows who it was."""
        ...

    def extend(self) -> bool:
        """Let the lease run anew from now on; False: it is lost. A lock of the system just stays held.

        Raises `StoreError`.
        """
        ...

    def __enter__(self) -> Lease: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class ProcessLease:
    """A lock that lasts until it is released or its process ends. A forked child's copy of it is nothing."""

    valid_until: float | None = None
    exclusive = True

    def __init__(self, release: Callable[[], object], *, left_by: str = "") -> None:
        """Leaving the context calls `release`, once, and only in the process that made this."""
        self.left_by = left_by
        self._release: Callable[[], object] | None = release
        self._process = os.getpid()

    def extend(self) -> bool:
        """It does not lapse."""
        return True

    def __enter__(self) -> ProcessLease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        release, self._release = self._release, None
        if release is not None and os.getpid() == self._process:
            release()


@runtime_checkable
class Store(Protocol):
    """Keeps opaque bytes under a key (any text). Every call may block; all raise `StoreError` and nothing else."""

    @property
    def identity(self) -> str:
        """What is shared: two stores with one identity see the same values, in this process or another."""
        ...

    def load(self, key: str) -> Stored | None:
        """The value, or None where there never was one."""
        ...

    def save(self, key: str, value: bytes, *, revision: str, expected: str | None) -> Saved | Conflict:
        """Compare-and-swap: write `value` as `revision` if what is stored has revision `expected` (None: nothing).

        Durable on return, or says that it is not. Judged by revision alone, never by who holds the lock.
        `revision` is the caller's, random, and never reused for a key. Both are bound to the sealed value.
        """
        ...

    def keys(self) -> tuple[str, ...]:
        """The keys of all saved values."""
        ...

    def try_lock(self, key: str) -> Lease | Held:
        """Try once to take the cross-process lock of a key, and prove that a successor can be written.

        Not re-entrant: `Held` also if this very thread has it. To be released on the thread that took it, and what
        was set aside as proof serves a `save` on that thread. Saving needs no lease.

        Raises `StoreError` where the next `save` would certainly fail (a read-only folder, a full disk).
        """
        ...
