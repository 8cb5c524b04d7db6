"""Flights: blocking work done once per key in this process, however many tasks, threads and event loops ask for it.

A flight runs on a thread of its own and owns it from before its first lock to after its last save. Its callers only
wait: each has a *seat*, and whoever is cancelled loses the seat and nothing else happens, so that a rotated token is
never lost to a cancellation.

    queued ----> begun <----> paused          a *slot* is the right to run; there are `limit` of them, handed on
       |           |                          first come, first served; who pauses, or waits for a person, has none
    dropped      landed                       dropped: it never began, and nobody wanted it any more

Why nothing deadlocks: whoever holds a slot waits for no other flight, and whoever waits gave the slot back. The one
mutex guards the books and is never held over I/O, an await, or anything that belongs to a caller. It is re-entrant
because the garbage collector may end a forgotten waiter at any allocation, also one made under it.

Not used, with reason: `asyncio.shield` (cut through by `task.cancel` at the end of a loop), `wrap_future` (one
cancelled waiter cancels all), the worker threads of anyio or asyncio (waiters exhaust them, and the flight starves).
"""

from __future__ import annotations

import copy
import math
import os
import sys
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Hashable
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from time import monotonic
from types import TracebackType
from typing import Any, Generic, NoReturn, TypeVar

__all__ = ["FLIGHTS", "Flight", "Flights", "NeedsUser"]

T = TypeVar("T")

_SLICE = 0.2
"""Seconds after which whoever waits looks up: nothing announces the end of the main thread."""


class NeedsUser(Exception):
    """The work needs a person now, and this caller had said that it would not wait for one."""


@dataclass(eq=False)
class _Seat(Generic[T]):
    """One waiter."""

    flight: Flight
    wake: Callable[[], object]
    patient: bool
    started: bool = False
    outcome: Callable[[], T] | None = None
    """What the waiter does once it is woken; None: the flight had been given up before this waiter came."""


class Flight:
    """One run of the work, seen from inside: when to stop, how to wait, when a person is needed."""

    def __init__(self, flights: Flights, key: Hashable, work: Callable[[Flight], Any]) -> None:
        self.key = key
        self._flights = flights
        self._work = work
        self._context = copy_context()
        self._seats: dict[_Seat[Any], None] = {}
        self._changed = threading.Condition(flights._mutex)
        self._begun = False
        self._asks_user = False
        self._given_up = False

    def stopping(self) -> bool:
        """Whether to give up at the next safe point.

        True once the main thread has ended, or everybody left while a person was being waited for.
        """
        return self._given_up or not threading.main_thread().is_alive()

    def pause(self, seconds: float) -> bool:
        """Wait for `seconds`, or less if it is time to stop, and let other flights run meanwhile; then `stopping()`."""
        lent = self._flights._give_back(self)
        self._rest(seconds, until=self.stopping)
        if lent:
            self._flights._regain(self)
        return self.stopping()

    def ask_user(self) -> bool:
        """A person is needed from here on, so the flight stops when nobody waits for it any more; then `stopping()`.

        Impatient callers who joined, or join later, get `NeedsUser`; whose work it is stays. The slot is given back
        for good: people who never answer must not keep others from renewing.
        """
        self._flights._release_impatient(self)
        self._flights._give_back(self)
        return self.stopping()

    def user_answered(self) -> None:
        """The person has answered: the flight again runs to its end, whoever waits for it."""
        self._asks_user = False

    def _rest(self, seconds: float, until: Callable[[], bool]) -> None:
        end = monotonic() + seconds
        with self._changed:
            while not until() and (left := end - monotonic()) > 0:
                self._changed.wait(min(left, _SLICE))

    def _give_up(self) -> None:
        self._given_up = True
        self._changed.notify()


class Flights:
    """All flights of a process. `limit`: how many may run at once."""

    def __init__(self, limit: int = 32) -> None:
        self._limit = limit
        self._reset()

    def wait(self, key: Hashable, work: Callable[[Flight], T], *, patient: bool = True) -> tuple[T, bool]:
        """Wait, in a thread, for the running flight of `key`, or for a new one that does `work`.

        Returns what the work returned, and whether it was this caller's work; raises what the work raised (each
        caller its own copy), or `NeedsUser` if not `patient` and a person is needed. The context variables are those
        of the caller whose work it is. Where no thread can be started the work is done in the caller's own.
        """
        while True:
            woken = threading.Event()
            with self._seat(key, work, woken.set, patient) as seat:
                while not woken.wait(1):
                    pass  # in slices: Windows hears no Ctrl-C during an endless wait
            if seat.outcome is not None:
                return seat.outcome(), seat.started

    async def wait_async(self, key: Hashable, work: Callable[[Flight], T], *, patient: bool = True) -> tuple[T, bool]:
        """`wait` for a task of asyncio or trio."""
        while True:
            wake, woken = _signal()
            with self._seat(key, work, wake, patient) as seat:
                await woken()
            if seat.outcome is not None:
                return seat.outcome(), seat.started

    def start(
        self, key: Hashable, work: Callable[[Flight], T], landed: Callable[[Callable[[], T], bool], object]
    ) -> None:
        """`wait`, not `patient`, for somebody who goes on meanwhile: `landed` is called on the flight's thread.

        It gets a function that returns or raises what `wait` would, and whether it was this caller's work, and must
        not raise. It is called in this thread where a person is being waited for, or no other thread can be started.
        """

        def wake() -> None:
            if seat.outcome is None:
                self.start(key, work, landed)
            else:
                landed(seat.outcome, seat.started)

        seat: _Seat[T] = _Seat(Flight(self, key, work), wake, patient=False)
        self._join(seat)

    def _reset(self) -> None:
        self._mutex = threading.RLock()
        self._by_key: dict[Hashable, Flight] = {}
        self._queue: deque[Flight] = deque()
        self._slots: set[Flight] = set()

    # Seats

    @contextmanager
    def _seat(
        self, key: Hashable, work: Callable[[Flight], T], wake: Callable[[], object], patient: bool
    ) -> Generator[_Seat[T], None, None]:
        seat: _Seat[T] = _Seat(Flight(self, key, work), wake, patient)
        try:
            self._join(seat)
            yield seat
        finally:
            self._leave(seat)

    def _join(self, seat: _Seat[Any]) -> None:
        own = seat.flight
        with self._mutex:
            flight = seat.flight = self._by_key.setdefault(own.key, own)
            seat.started = flight is own
            turned_away = flight._asks_user and not seat.patient
            if turned_away:
                seat.outcome = _needs_user
            else:
                flight._seats[seat] = None
            ready = (seat.started or self._unclaimed(flight)) and self._claim(flight)
        if ready:
            self._launch(flight)
        if turned_away:
            seat.wake()

    def _leave(self, seat: _Seat[Any]) -> None:
        flight = seat.flight
        with self._mutex:
            flight._seats.pop(seat, None)
            if not flight._seats:
                self._all_left(flight)
            stranded = flight in self._slots and not flight._begun
        if stranded:  # a KeyboardInterrupt may have come before the thread was started; two threads do no harm
            self._launch(flight)

    def _all_left(self, flight: Flight) -> None:
        if self._by_key.get(flight.key) is not flight:
            return  # landed, or left behind in the parent of a fork
        if flight._asks_user:
            flight._give_up()
        elif not flight._begun and flight not in self._slots:
            del self._by_key[flight.key]
            with suppress(ValueError):
                self._queue.remove(flight)

    def _release_impatient(self, flight: Flight) -> None:
        with self._mutex:
            flight._asks_user = True
            released = [seat for seat in list(flight._seats) if not (seat.patient or seat.started)]
            for seat in released:
                seat.outcome = _needs_user
                flight._seats.pop(seat, None)
            if not flight._seats:
                flight._give_up()
        _wake(released)

    # Slots

    def _unclaimed(self, flight: Flight) -> bool:
        """A KeyboardInterrupt may have come between a flight's entry in the books and its claim."""
        return not (flight._begun or flight in self._slots or flight in self._queue)

    def _claim(self, flight: Flight) -> bool:
        free = len(self._slots) < self._limit
        if free:
            self._slots.add(flight)
        else:
            self._queue.append(flight)
        return free

    def _hand_on(self, flight: Flight) -> Flight | None:
        """Take the slot of `flight`, if it has one, and give it to the next in the queue: returned if yet to begin."""
        if flight not in self._slots:
            return None
        self._slots.remove(flight)
        if not self._queue:
            return None
        heir = self._queue.popleft()
        self._slots.add(heir)
        heir._changed.notify()
        return None if heir._begun else heir

    def _give_back(self, flight: Flight) -> bool:
        with self._mutex:
            had_slot = flight in self._slots
            heir = self._hand_on(flight)
        if heir is not None:
            self._launch(heir)
        return had_slot

    def _regain(self, flight: Flight) -> None:
        """Wait for a slot; who is to stop goes on without."""
        with self._mutex:
            if not self._claim(flight):
                flight._rest(math.inf, until=lambda: flight in self._slots or flight.stopping())
            if flight not in self._slots:
                self._queue.remove(flight)

    # Threads

    def _launch(self, flight: Flight) -> None:
        thread = threading.Thread(target=self._fly, args=(flight,), name="mcp-oauth flight", daemon=False)
        try:
            thread.start()
        except RuntimeError:  # a platform without threads, too many of them, or the interpreter is shutting down
            self._fly(flight)

    def _fly(self, flight: Flight | None) -> None:
        while flight is not None and self._begin(flight):
            outcome = flight._context.run(_do, flight)
            flight = self._land(flight, outcome)

    def _begin(self, flight: Flight) -> bool:
        with self._mutex:
            first = not flight._begun
            flight._begun = True
        return first

    def _land(self, flight: Flight, outcome: Callable[[], Any]) -> Flight | None:
        """Wake everybody; returned is the flight that goes on with the slot, and with this thread."""
        with self._mutex:
            self._by_key.pop(flight.key, None)
            seats = list(flight._seats)
            flight._seats.clear()
            if not flight._given_up:
                for seat in seats:
                    seat.outcome = outcome
            heir = self._hand_on(flight)
        _wake(seats)
        return heir


def _do(flight: Flight) -> Callable[[], Any]:
    try:
        value = flight._work(flight)
    except BaseException as error:
        return partial(_raise, error, error.__traceback__)
    return lambda: value


def _raise(error: BaseException, trace: TracebackType | None) -> NoReturn:
    """Raise a copy, so that no caller's traceback, context or note shows up at another's."""
    try:
        own = copy.copy(error)
    except Exception:  # its constructor takes something other than `args`: shared, with the traceback cut back
        own = error
    own.args = error.args
    own.__cause__, own.__context__ = error.__cause__, error.__context__
    own.__suppress_context__ = error.__suppress_context__
    raise own.with_traceback(trace)


def _needs_user() -> NoReturn:
    raise NeedsUser("the work that was waited for needs a person")


def _wake(seats: list[_Seat[Any]]) -> None:
    for seat in seats:
        # Its event loop is closed, so the waiter is gone; and nothing that a waiter's own code raises is the others'.
        with suppress(BaseException):
            seat.wake()


def _signal() -> tuple[Callable[[], object], Callable[[], Awaitable[object]]]:
    """How any thread wakes the running task, and how the task waits for that.

    Trio is asked first: run as a guest of asyncio, both would answer.
    """
    if "trio" in sys.modules:
        import trio

        if trio.lowlevel.in_trio_task():
            trio_event = trio.Event()
            return partial(trio.lowlevel.current_trio_token().run_sync_soon, trio_event.set), trio_event.wait
    import asyncio

    event = asyncio.Event()
    return partial(asyncio.get_running_loop().call_soon_threadsafe, event.set), event.wait


FLIGHTS = Flights()
"""Those of this process."""

if sys.platform != "win32":  # in a child no flight has its thread, and a token that rotates must not have two owners
    os.register_at_fork(after_in_child=FLIGHTS._reset)
