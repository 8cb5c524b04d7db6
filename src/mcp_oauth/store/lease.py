"""What the stores without locks of the system share: a lease that lapses, and the name of who holds it."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable
from datetime import datetime, timezone
from types import TracebackType

import msgspec

from .base import ProcessLease, StoreError

LEASE_SECONDS = 13.0
"""How long a lease lasts: a token request with its deadline of 10 seconds, and a save (RULES 4.9)."""


def elapsed() -> float:
    """Seconds on the clock of `Now.elapsed`: it counts the time in which the machine is suspended, where it can."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


if not hasattr(time, "CLOCK_BOOTTIME"):
    elapsed = time.monotonic


class Holder(msgspec.Struct, frozen=True):
    """Who holds a lock."""

    pid: int
    host: str
    since: str

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host} since {self.since}"


def this_process() -> Holder:
    """Who we are, as a holder from now on."""
    since = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Holder(os.getpid(), platform.node(), since)


class LapsingLease(ProcessLease):
    """A lock that lapses unless it is extended or released before."""

    exclusive = False

    def __init__(
        self, valid_until: float, *, extend: Callable[[], float | None], release: Callable[[], object]
    ) -> None:
        """When it lapses, in elapsed seconds from before the store was asked; `extend` says so anew, None: it is lost.

        A `release` that raises `StoreError` is no matter: what cannot be released lapses.
        """
        super().__init__(release)
        self._extend = extend
        self.valid_until: float | None = valid_until

    def extend(self) -> bool:
        """Let it run anew from now on; False: it is lost, released, or a forked child's copy. Raises `StoreError`."""
        if self._release is None or os.getpid() != self._process:
            return False
        if (valid_until := self._extend()) is None:
            return False
        self.valid_until = valid_until
        return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        with contextlib.suppress(StoreError):
            super().__exit__(kind, error, trace)
