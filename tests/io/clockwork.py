"""Time for `LATER` that passes when a test says so, and what was told meanwhile."""

from __future__ import annotations

import sys
import threading
from typing import Any

from mcp_oauth.io import later as module
from mcp_oauth.io.later import LATER, Over
from mcp_oauth.sansio.steps import Notice
from tests.io.servers import PATIENCE

NO_THREADS_AT_EXIT = (3, 12) <= sys.version_info < (3, 12, 2)
"""These Pythons start no thread once their main thread has ended (CPython issue 113964), and say so to who asks."""


class Clockwork:
    """The clock of `LATER`, which stands still, and how long each of its tasks was to wait."""

    def __init__(self, monkeypatch: Any) -> None:
        self.time = 1000.0
        self.rests: list[float] = []
        self._asked = threading.Condition()
        self._enqueue = LATER._enqueue
        monkeypatch.setattr(module, "monotonic", lambda: self.time)
        monkeypatch.setattr(LATER, "_enqueue", self._remember)

    def _remember(self, entry: Any, seconds: float) -> None:
        self._enqueue(entry, seconds)
        with self._asked:
            self.rests.append(seconds)
            self._asked.notify_all()

    def wait_for(self, rests: int) -> list[float]:
        """Wait until tasks were to wait so many times; all of those waits, in seconds."""
        with self._asked:
            assert self._asked.wait_for(lambda: len(self.rests) >= rests, PATIENCE), self.rests
            return list(self.rests)

    def elapse(self, seconds: float | None = None) -> float:
        """Let so much time pass; None: until the task that was asked to wait last may begin."""
        self.time += self.rests[-1] if seconds is None else seconds
        with LATER._changed:
            LATER._changed.notify()
        return self.time


class Told(list[str]):
    """An `on_notice` that remembers the names."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []
        self._changed = threading.Condition()

    def __call__(self, notice: Notice) -> None:
        with self._changed:
            self.append(notice.name)
            self.messages.append(notice.message)
            self._changed.notify_all()

    def until(self, name: str, times: int = 1) -> None:
        """Wait until it was told so many times."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.count(name) >= times, PATIENCE), list(self)


def tasks() -> int:
    """Those that are waiting or under way."""
    with LATER._changed:
        return len(LATER._entries)


def threads(name: str = "mcp-oauth later") -> int:
    return sum(thread.name == name for thread in threading.enumerate())


def has_ended(name: str) -> None:
    """All threads of that name end by themselves."""
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join(PATIENCE)
            assert not thread.is_alive()


def later_is_over() -> None:
    """The thread ends by itself when there is nothing left to do."""
    has_ended("mcp-oauth later")
    with LATER._changed:
        assert LATER._changed.wait_for(lambda: not LATER._under_way, PATIENCE)  # it does not wait for what was dropped
    assert tasks() == 0


def later_is_idle() -> None:
    """Wait until the thread has begun all that was to be begun, and holds nothing of it."""
    begun = threading.Event()

    def task(_: bool, over: Over) -> None:
        over(None)
        begun.set()

    LATER.add(begun, task, 0.0)
    assert begun.wait(PATIENCE)
