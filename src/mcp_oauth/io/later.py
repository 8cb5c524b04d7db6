"""What is done by itself, later: tasks by key, on one thread of this process, which is there while there are tasks.

    waiting ----> under way ----> waiting ...      it is begun at its time, and says when it is over, and when to begin
       |              |                            it again; of those under way there are at most `limit`
    dropped       over for good

The thread only begins tasks: what they do is done on flights, so a slow server or store keeps no other task waiting
but by the limit. When the main thread ends, tasks are dropped; but those that are wanted `at_exit` are begun at once,
for the last time, and the program ends when they are over.
"""

from __future__ import annotations

import heapq
import logging
import os
import threading
from collections.abc import Callable, Hashable
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from itertools import count
from time import monotonic

__all__ = ["LATER", "Later", "Over", "Task"]

log = logging.getLogger("mcp_oauth")

_SLICE = 0.2
"""Seconds after which the thread looks up: nothing announces the end of the main thread."""
_LITTER = 100
"""Dropped tasks that may wait for their time to be forgotten."""

Over = Callable[[float | None], None]
"""Called when a task is over, from any thread: with the seconds after which it is begun again; None: it is done."""

Task = Callable[[bool, Over], None]
"""Begins something, and soon returns. It is told whether this is the last time, for the program ends."""


@dataclass(eq=False)
class _Entry:
    key: Hashable
    task: Task
    at_exit: bool
    context: Context = field(default_factory=copy_context)
    last: bool = False


class Later:
    """The tasks of a process. `limit`: how many may be under way, so that callers' flights always find free slots."""

    def __init__(self, limit: int = 16) -> None:
        self._limit = limit
        self._reset()

    def _reset(self) -> None:
        # Re-entrant: the garbage collector may end a forgotten context at any allocation, also one made under it.
        self._changed = threading.Condition(threading.RLock())
        self._entries: dict[Hashable, _Entry] = {}
        self._queue: list[tuple[float, int, _Entry]] = []
        self._numbers = count()
        self._under_way = 0
        self._has_thread = False

    def add(self, key: Hashable, task: Task, seconds: float, *, at_exit: bool = False) -> None:
        """Begin `task` after so many seconds, with the caller's context variables; nothing if `key` has a task."""
        with self._changed:
            if key not in self._entries:
                entry = self._entries[key] = _Entry(key, task, at_exit)
                self._enqueue(entry, seconds)
            launching = not self._has_thread
            self._has_thread = True
        if launching:
            self._launch()

    def drop(self, key: Hashable) -> None:
        """Forget the task of `key`, if it has one. If it is under way, this was the last time."""
        with self._changed:
            self._entries.pop(key, None)  # and nothing else: the garbage collector may be who calls, in `_take` too
            self._changed.notify()

    def _stands(self, entry: _Entry) -> bool:
        return self._entries.get(entry.key) is entry

    def _enqueue(self, entry: _Entry, seconds: float) -> None:
        if len(self._queue) > 2 * len(self._entries) + _LITTER:
            self._queue = [waiting for waiting in self._queue if self._stands(waiting[-1])]
            heapq.heapify(self._queue)
        heapq.heappush(self._queue, (monotonic() + seconds, next(self._numbers), entry))
        self._changed.notify()

    # The thread

    def _launch(self) -> None:
        try:
            threading.Thread(target=self._work, name="mcp-oauth later", daemon=False).start()
        except RuntimeError:  # a platform without threads, or too many of them
            log.warning("no thread could be started: nothing is done in the background for now")
            with self._changed:
                self._has_thread = False  # the next `add` tries again

    def _work(self) -> None:
        while self._begin_next():
            pass

    def _begin_next(self) -> bool:
        if (entry := self._next()) is None:
            return False
        over = self._over_for(entry)
        try:
            entry.context.run(entry.task, entry.last, over)
        except BaseException as error:  # of an application's own code; its text may quote anything
            log.error("a task in the background raised %s", type(error).__name__)
            over(None)
        return True

    def _next(self) -> _Entry | None:
        """Wait until the time of an entry has come, and return it; None: there is none left."""
        with self._changed:
            while self._entries:
                entry = self._take(ending=not threading.main_thread().is_alive())
                if entry is not None:
                    return entry
                self._changed.wait(self._idle())
            self._queue.clear()
            self._has_thread = False
            return None

    def _idle(self) -> float:
        if not self._queue or self._under_way >= self._limit:
            return _SLICE
        return min(_SLICE, max(0.0, self._queue[0][0] - monotonic()))

    def _take(self, ending: bool) -> _Entry | None:
        if ending:
            self._drop_all_but_at_exit()
        while self._queue and self._under_way < self._limit and (ending or self._queue[0][0] <= monotonic()):
            entry = heapq.heappop(self._queue)[-1]
            if self._stands(entry):
                self._under_way += 1
                entry.last = ending
                return entry
        return None

    def _drop_all_but_at_exit(self) -> None:
        for entry in list(self._entries.values()):
            if not entry.at_exit:
                self._entries.pop(entry.key, None)

    def _over_for(self, entry: _Entry) -> Over:
        open_ends = [entry]  # a task that says it is over, and then raises, is over once

        def over(seconds: float | None) -> None:
            with self._changed:
                if not open_ends:
                    return
                open_ends.clear()
                self._under_way -= 1
                if self._stands(entry) and seconds is not None and not entry.last:
                    self._enqueue(entry, seconds)
                elif self._stands(entry):
                    self._entries.pop(entry.key, None)
                self._changed.notify()

        return over


LATER = Later()
"""Those of this process."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=LATER._reset)  # a child has no thread of ours, and owns no token of its parent's
