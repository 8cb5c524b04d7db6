"""The store that ends with its process."""

from __future__ import annotations

import itertools
import os
import threading
from datetime import datetime, timezone
from functools import partial
from weakref import WeakSet

from .base import Conflict, Held, ProcessLease, Saved, Stored

_numbers = itertools.count(1)
_living: WeakSet[MemoryStore] = WeakSet()


class MemoryStore:
    """Keeps values in this process alone: each object is a store of its own, and is empty in a forked child.

    A save is called durable, because nobody who chose memory needs to hear at each save that it will end.
    """

    def __init__(self, name: str = "") -> None:
        """`name` only makes the identity readable; two stores of one name share nothing."""
        self._identity = f"memory:{next(_numbers)}" + (f":{name}" if name else "")
        self._begin()
        _living.add(self)

    def _begin(self) -> None:
        self._mutex = threading.Lock()
        self._stored: dict[str, Stored] = {}
        self._holders: dict[str, Held] = {}

    @property
    def identity(self) -> str:
        """`memory:<n>`, one for each object."""
        return self._identity

    def load(self, key: str) -> Stored | None:
        """The value, or None where there never was one."""
        return self._stored.get(key)

    def save(self, key: str, value: bytes, *, revision: str, expected: str | None) -> Saved | Conflict:
        """Compare-and-swap by revision."""
        with self._mutex:
            stored = self._stored.get(key)
            if (stored and stored.revision) != expected:
                return Conflict(stored)
            self._stored[key] = Stored(value, revision)
            return Saved(durable=True)

    def keys(self) -> tuple[str, ...]:
        """The keys of all saved values."""
        with self._mutex:
            return tuple(self._stored)

    def try_lock(self, key: str) -> ProcessLease | Held:
        """Try once to take the lock of a key."""
        since = datetime.now(timezone.utc).isoformat(timespec="seconds")
        with self._mutex:
            if (held := self._holders.get(key)) is not None:
                return held
            self._holders[key] = Held(f"{threading.current_thread().name} of this process since {since}")
        return ProcessLease(partial(self._unlock, key))

    def _unlock(self, key: str) -> None:
        with self._mutex:
            del self._holders[key]


def _begin_again() -> None:
    # Two processes must not own one rotating refresh token; and the mutex may have been held when the fork came.
    for store in _living:
        store._begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_again)
