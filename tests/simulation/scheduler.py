"""One thread of the system, many tasks in virtual time: who runs when is a choice, and nothing else decides it.

A task is a greenlet, so the code under test runs as it is, and stops only where it waits. What it uses of `threading`
and `time` are the substitutes below. A task that is killed is never resumed: its frames stay as they are, and none of
its `finally` runs, as in a process that the system ends.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar

from greenlet import GreenletExit, getcurrent, greenlet

from tests.simulation.choices import Choices

T = TypeVar("T")


class Closed(BaseException):
    """The world has ended, and with it whatever is still asked of it."""


class Machine:
    """What tasks run on: an operating system process, as far as a scheduler cares."""

    dead = False
    resumes_at = 0.0
    """True seconds before which none of its tasks runs."""

    def enter(self) -> None:
        """One of its tasks is about to run."""


class Task:
    """One line of execution."""

    def __init__(self, name: str, machine: Machine, run: Callable[[], object], hub: greenlet) -> None:
        self.name = name
        self.machine = machine
        self.greenlet = greenlet(run, hub)
        self.ended = False
        self.waits = 0
        """How often it has waited: a wake-up for an earlier wait comes to nothing."""
        self.waiting = False
        self.thrown: BaseException | None = None


class Scheduler:
    """Runs tasks, the earliest first; among several that are due at once, a choice."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.seconds = 0.0
        """True time."""
        self.closed = False
        self.pausing: Callable[[float], None] = lambda _seconds: None
        """Told when the task at hand begins to wait for some seconds."""
        self.tasks: list[Task] = []
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._hub = getcurrent()
        self._current: Task | None = None

    @property
    def current(self) -> Task:
        """The task that is running."""
        assert self._current is not None
        return self._current

    # --- From outside ---------------------------------------------------------------------------------------------

    def spawn(self, name: str, machine: Machine, run: Callable[[], object]) -> Task:
        """Begin a task."""

        def whole() -> None:
            try:
                run()
            except (Closed, GreenletExit):
                pass
            finally:
                task.ended = True

        task = Task(name, machine, whole, self._hub)
        self.tasks.append(task)
        self.at(self.seconds, lambda: self._resume(task, False))
        return task

    def at(self, seconds: float, do: Callable[[], None]) -> None:
        """Do something at a time."""
        heapq.heappush(self._queue, (seconds, next(self._numbers), do))

    def run(self, until: float, done: Callable[[], bool]) -> None:
        """Let time pass, until then, or until `done`."""
        while self._queue and self._queue[0][0] <= until and not done():
            self.seconds = max(self.seconds, self._queue[0][0])
            self._next()()
        if not done():
            self.seconds = until

    def close(self) -> None:
        """Take all tasks down, killed ones too, now that nothing can be asked of the world."""
        self.closed = True
        self._queue.clear()
        for task in self.tasks:
            while not task.greenlet.dead and task.greenlet:
                self._current = task
                task.greenlet.throw(GreenletExit)

    def _next(self) -> Callable[[], None]:
        due = [heapq.heappop(self._queue)]
        while self._queue and self._queue[0][0] <= self.seconds:
            due.append(heapq.heappop(self._queue))
        chosen = due.pop(self.choices.pick(len(due), 0.5) if len(due) > 1 else 0)
        for other in due:
            heapq.heappush(self._queue, other)
        return chosen[2]

    # --- From a task ----------------------------------------------------------------------------------------------

    def wait(self, until: float | None = None) -> bool:
        """Let others run until this task is woken (True) or that time has come (False)."""
        if self.closed:
            raise Closed
        task = self.current
        task.waits += 1
        task.waiting = True
        if until is not None:
            self._call(until, task, task.waits, False)
        woken: bool = self._hub.switch()
        return woken

    def sleep(self, seconds: float) -> None:
        """Let others run for so many true seconds."""
        self.wait(self.seconds + seconds)

    def wake(self, task: Task) -> None:
        """End the wait of a task."""
        if task.waiting:
            self._call(self.seconds, task, task.waits, True)

    def throw(self, task: Task, error: BaseException) -> None:
        """Raise an error where the task waits."""
        if task.waiting:
            task.thrown = error
            self.wake(task)

    def _call(self, seconds: float, task: Task, wait: int, woken: bool) -> None:
        self.at(seconds, lambda: self._return(task, wait, woken))

    def _return(self, task: Task, wait: int, woken: bool) -> None:
        if not task.waiting or task.waits != wait or task.machine.dead:
            return
        if task.machine.resumes_at > self.seconds:
            self._call(task.machine.resumes_at, task, wait, woken)
            return
        self._resume(task, woken)

    def _resume(self, task: Task, woken: bool) -> None:
        if task.machine.dead:
            return
        if task.machine.resumes_at > self.seconds:
            self.at(task.machine.resumes_at, lambda: self._resume(task, woken))
            return
        task.waiting = False
        task.machine.enter()
        before, self._current = self._current, task
        error, task.thrown = task.thrown, None
        if error is None:
            task.greenlet.switch(*([woken] if task.waits else []))
        else:
            task.greenlet.throw(error)
        self._current = before


# --- Coroutines -------------------------------------------------------------------------------------------------------


class Signal:
    """What a coroutine awaits: `wake` from any task ends it."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._set = False
        self._task: Task | None = None

    def set(self) -> None:
        """Wake whoever waits, now or later."""
        self._set = True
        if self._task is not None:
            self._scheduler.wake(self._task)

    def __await__(self) -> Generator[Signal, None, None]:
        yield self

    def block(self) -> None:
        """Wait in the task that steps the coroutine."""
        self._task = self._scheduler.current
        while not self._set:
            self._scheduler.wait()


def step_through(coroutine: Awaitable[T]) -> T:
    """Run a coroutine in the task at hand, as its event loop would; what is thrown at the task reaches its await."""
    steps: Any = coroutine.__await__()
    error: BaseException | None = None
    while True:
        try:
            signal: Signal = steps.throw(error) if error is not None else steps.send(None)
        except StopIteration as stop:
            value: T = stop.value
            return value
        try:
            signal.block()
            error = None
        except BaseException as thrown:
            error = thrown


# --- Substitutes for the modules `threading` and `time` ---------------------------------------------------------------


class Event:
    """`threading.Event`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._waiters: list[Task] = []
        self._set = False

    def set(self) -> None:
        self._set = True
        for task in self._waiters:
            self._scheduler.wake(task)

    def clear(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def wait(self, timeout: float | None = None) -> bool:
        if self._set:
            return True
        task = self._scheduler.current
        self._waiters.append(task)
        try:
            # Nothing but `set` ends this wait in the simulation, so a slice of it is as good as the whole.
            self._scheduler.wait(None if timeout is None else self._scheduler.seconds + max(timeout, 30.0))
        finally:
            self._waiters.remove(task)
        return self._set


class Mutex:
    """`threading.RLock` and `Lock`. Nobody waits while he holds it, so there is nothing to exclude."""

    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...


class Condition:
    """`threading.Condition`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._waiters: list[Task] = []

    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...

    def wait(self, timeout: float | None = None) -> bool:
        task = self._scheduler.current
        self._scheduler.pausing(timeout or 0.0)
        self._waiters.append(task)
        try:
            return self._scheduler.wait(None if timeout is None else self._scheduler.seconds + timeout)
        finally:
            self._waiters.remove(task)

    def notify(self, n: int = 1) -> None:
        for task in self._waiters[:n]:
            self._scheduler.wake(task)

    def notify_all(self) -> None:
        self.notify(len(self._waiters))
