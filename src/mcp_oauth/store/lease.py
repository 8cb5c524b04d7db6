"""What the stores without locks of the system share: a lease that lapses, and the name of who holds it."""

from __future__ import annotations

import os
import platform
import time
from datetime import datetime, timezone

import msgspec

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
