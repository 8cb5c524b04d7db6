"""The state of suspended greenlets as a value: two runs with equal snapshots go on alike.

What is left out is what a line has only begun to compute; so threads are to be suspended between lines, or in calls
that the line does nothing else with.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from contextvars import Context
from functools import partial
from itertools import chain
from types import CoroutineType, FrameType, FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any

from greenlet import greenlet

PLAIN = (str, int, float, bytes)


def snapshot(
    threads: Iterable[tuple[object, greenlet]], names: Mapping[int, object], *, without: str
) -> tuple[object, ...]:
    """All that the threads can still see, in an order, and with numbers for identities, that depend on nothing else.

    Each comes with what else is known of it. `names`: of objects, by their `id`, that are not looked into. `without`:
    a file of whose frames the locals do not matter.
    """
    state = _Snapshot(names, without)
    for known, thread in threads:
        state.parts.append(known)
        state.add_thread(thread)
    return tuple(state.parts)


class _Snapshot:
    def __init__(self, names: Mapping[int, object], without: str) -> None:
        self.parts: list[object] = []
        self._names = dict(names)
        self._without = without

    def add_thread(self, thread: greenlet) -> None:
        frame = thread.gr_frame
        self.parts.append(thread.dead)
        if frame is None and not thread.dead:
            self.add(thread.run)
        while frame is not None:
            self.add_frame(frame)
            frame = frame.f_back

    def add_frame(self, frame: FrameType) -> None:
        self.parts += (frame.f_code.co_name, frame.f_lasti)
        if frame.f_code.co_filename != self._without:
            self.add_all(chain.from_iterable(frame.f_locals.items()))

    def add_all(self, things: Iterable[object]) -> None:
        for thing in things:
            self.add(thing)

    def add(self, thing: object) -> None:
        if thing is None or isinstance(thing, PLAIN):
            self.parts.append(thing)
        elif isinstance(thing, (type, ModuleType, FrameType, Context)):
            self.parts.append(type(thing).__name__)
        elif isinstance(thing, MethodType):
            self.parts.append(thing.__name__)
            self.add(thing.__self__)
        elif id(thing) in self._names:
            self.parts.append(("again", self._names[id(thing)]))
        else:
            self._names[id(thing)] = len(self._names)
            self.parts.append(type(thing).__name__)
            self.add_inside(thing)

    def add_inside(self, thing: Any) -> None:
        if isinstance(thing, FunctionType):
            self.add_function(thing)
        elif isinstance(thing, dict):
            self.add_all(chain.from_iterable(thing.items()))
        elif isinstance(thing, (list, tuple, deque)):
            self.add_all(thing)
        elif isinstance(thing, set):
            self.add_all(sorted(thing, key=lambda each: str(self._names.get(id(each)))))
        elif isinstance(thing, (GeneratorType, CoroutineType)):
            frame = thing.gi_frame if isinstance(thing, GeneratorType) else thing.cr_frame
            self.add_frame(frame) if frame is not None else self.add(None)
        elif isinstance(thing, partial):
            self.add_all((thing.func, *thing.args))
        elif isinstance(thing, BaseException):
            self.add_all(thing.args)
        elif hasattr(thing, "__dict__"):
            self.add_all(vars(thing).values())

    def add_function(self, function: FunctionType) -> None:
        self.parts.append(function.__qualname__)
        for cell in function.__closure__ or ():
            with suppress(ValueError):  # nothing in it yet
                self.add(cell.cell_contents)
