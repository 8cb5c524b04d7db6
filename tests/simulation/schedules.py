"""All schedules of a few threads with at most so many preemptions, after CHESS (Musuvathi and Qadeer, PLDI 2007).

The code under test is real; its threads are greenlets, and what it uses of `threading` and `time` is a `World`. A
tracer sees every line of it. Before a line, whoever runs may be *preempted*, which costs; where he waits, ends or
starts a thread, anybody who can may run on, which is free. Time passes by itself only when nobody can run; that a
waiter's time is up while others run costs a preemption too, and so does a Ctrl-C in the main thread.

A schedule is a *plan*: at which place in the run somebody else than expected comes. Every run notes what else could
have come after its plan's last place; so every schedule is run once, and a failure is replayed by its plan.
"""

from __future__ import annotations

import linecache
import math
import re
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from types import FrameType, ModuleType
from typing import Any, NamedTuple

from greenlet import GreenletExit, getcurrent, greenlet

from tests.simulation.snapshots import snapshot

MOST_TURNS = 100
"""Of threads, after which a run is taken to go on for ever."""


class Place(NamedTuple):
    """Before which line of whose turn; `AT_END`: at the end of the turn."""

    turn: int
    line: int


AT_END = sys.maxsize


class Turn(NamedTuple):
    """Who comes at a place."""

    place: Place
    thread: int
    interrupted: bool = False


Plan = tuple[Turn, ...]


class Option(NamedTuple):
    """A turn that could have been, and whether that is a preemption."""

    turn: Turn
    cost: int
    held: bool
    """Whether the mutex was held by who would be preempted."""


class Wrong(AssertionError):
    """A run that broke a rule."""


class _SeenBeforeError(Exception):
    """This run differs in nothing from one with a preemption less."""


def _always() -> bool:
    """What a preempted thread waits for."""
    return True


def _begun() -> bool:
    """What the starter of a thread waits for."""
    return True


@dataclass(eq=False)
class Task:
    """A thread of the world."""

    number: int
    name: str
    greenlet: greenlet
    ready: Callable[[], bool] = _always
    deadline: float = math.inf
    holds: int = 0
    """How many times the mutex."""
    hasty: bool = False
    """Whether its time may be up while others run."""

    def waits(self) -> bool:
        """For something that has not come yet."""
        return self.ready is not _always and not self.ready()


class World:
    """One run: threads, locks and a clock, and what else could have been; stands in for the module `threading`.

    `spare`: how many preemptions may follow
    the plan, for which options are noted. `shared`: which lines touch what other threads see, also without the mutex;
    None: any may. `seen`: states that earlier runs were in, and with how many preemptions to spare. `story`: where to
    write what happens.
    """

    def __init__(
        self,
        module: ModuleType,
        plan: Plan = (),
        *,
        spare: int = 0,
        opcodes: bool = False,
        shared: re.Pattern[str] | None = None,
        seen: dict[int, int] | None = None,
        story: list[str] | None = None,
    ) -> None:
        self.now = 0.0
        self.idle = 0.0
        self.options: list[Option] = []
        self.threads_can_start = True
        self.interruptible = False
        """Whether the main thread may get a Ctrl-C."""
        self.module = module
        self._planned = {turn.place: turn for turn in plan}
        self._last = plan[-1].place if plan else Place(-1, 0)
        self._spare = spare
        self._interrupts = not any(turn.interrupted for turn in plan)
        self._event = "opcode" if opcodes else "line"
        self._shared = shared
        self._in_vain = self._differs_in_nothing = False
        self._seen = seen
        self._story = story
        self._turn = self._line = 0
        self._tasks: list[Task] = []
        self._next: Turn | None = None
        self._main_is_alive = True
        self.over = False
        self.disturbed = False
        self.cut_short = False
        """Whether the run ended where an earlier one had been."""

    # The run

    def run(self, main: Callable[[], object]) -> None:
        """Run `main`, and all threads that come of it, to their ends."""
        self._hub = getcurrent()
        self.main = self.current = self.spawn("main", main)
        real = {name: getattr(self.module, name) for name in ("threading", "monotonic", "_signal")}
        before = sys.gettrace()
        vars(self.module).update(threading=self, monotonic=self.monotonic, _signal=self.signal)
        sys.settrace(self._trace)
        try:
            while turn := self._next_turn():
                self._take(turn)
        finally:
            sys.settrace(None)
            self._end()
            sys.settrace(before)
            vars(self.module).update(real)

    def spawn(self, name: str, call: Callable[[], object]) -> Task:
        """Begin a thread; it runs when its turn comes."""
        task = Task(len(self._tasks), name, greenlet(call, parent=self._hub))
        self._tasks.append(task)
        return task

    def block(self, ready: Callable[[], bool], seconds: float = math.inf) -> bool:
        """Let others run until `ready`, or for so long; then whether it is."""
        if ready():
            return True
        if self.over:
            raise GreenletExit
        self.wait_turn(ready, self.now + max(seconds, 1e-6))
        return ready()

    def step(self) -> None:
        """A place in the scene itself where whoever runs may be preempted."""
        self._before_line(sys._getframe(1))

    def wait_turn(self, ready: Callable[[], bool], deadline: float = math.inf) -> None:
        """Let anybody run who can, also whoever calls if that is `ready`."""
        if self.over:
            return
        task = self.current
        task.ready, task.deadline = ready, deadline
        try:
            sys.call_tracing(self._hub.switch, ())  # from within a tracer: others are traced all the same
        finally:
            task.ready, task.deadline = _always, math.inf

    def _take(self, turn: Turn) -> None:
        task = self.current = self._tasks[turn.thread]
        if task.waits() and not turn.interrupted:
            self.now = max(self.now, task.deadline)
        self._turn, self._line = turn.place.turn + 1, 0
        if self._turn > MOST_TURNS:
            raise Wrong("it goes on for ever")
        self._tell(f"--- {task.name}{' is interrupted' if turn.interrupted else ''}")
        if turn.interrupted:
            task.greenlet.throw(KeyboardInterrupt)
        else:
            task.greenlet.switch()

    def _next_turn(self) -> Turn | None:
        """Whose turn it is: who preempted, who the plan says, or the first who can, beginning with who ran."""
        if self._next is not None:
            turn, self._next = self._next, None
            return turn
        if self._differs_in_nothing:
            raise _SeenBeforeError
        alive = self._alive()
        if not alive:
            return None
        while not (able := [task for task in alive if not task.waits() or task.deadline <= self.now]):
            self._pass_time(min(task.deadline for task in alive))
        place = Place(self._turn, AT_END)
        expected = self.current if self.current in able else able[0]
        if place > self._last and self._seen is not None and (self._spare or len(able) > 1) and self._known(expected):
            self.cut_short = True
            return None
        if place > self._last:
            self._note(place, alive, expected, able)
            self._note_interrupt(place)
        return self._planned.get(place) or Turn(place, expected.number)

    def _known(self, expected: Task) -> bool:
        """Whether an earlier run was in this very state, with as many preemptions to spare."""
        assert self._seen is not None
        self._in_vain = False
        flags = (self._interrupts, self.interruptible, self.disturbed, self._main_is_alive)
        state = (expected.number, flags, self.now, self.idle)
        threads = [(task.deadline, task.greenlet) for task in self._tasks]
        names = {id(self): "world", **{id(task): task.number for task in self._tasks}}
        key = hash((state, snapshot(threads, names, without=__file__)))
        if self._seen.get(key, -1) >= self._spare:
            return True
        self._seen[key] = self._spare
        return False

    def _alive(self) -> list[Task]:
        return [task for task in self._tasks if not task.greenlet.dead]

    def _pass_time(self, until: float) -> None:
        if until == math.inf or self.idle > MOST_TURNS:
            raise Wrong("all wait for ever")
        self.idle += until - self.now
        self.now = until

    def _note(self, place: Place, alive: Sequence[Task], expected: Task, free: Sequence[Task]) -> None:
        for task in alive:
            if task is expected:
                continue
            if task in free:
                self.options.append(Option(Turn(place, task.number), 0, held=False))
            elif self._spare and (not task.waits() or (task.hasty and task.deadline < math.inf)):
                held = bool(expected.holds) and not task.waits()
                self.options.append(Option(Turn(place, task.number), 1, held))

    def _note_interrupt(self, place: Place) -> None:
        """The main thread waits, or is about to run this line; not where it was preempted: that was noted there."""
        waits = self.main.ready is not _always
        at_line = place.line != AT_END and self.main is self.current
        if self.interruptible and self._interrupts and self._spare and (at_line or waits):
            self.options.append(Option(Turn(place, self.main.number, interrupted=True), 1, held=False))

    # The lines

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename != self.module.__file__:
            return None
        frame.f_trace_opcodes = self._event == "opcode"
        return self._local_trace

    def _local_trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == self._event:
            self._before_line(frame)
        return self._local_trace

    def _before_line(self, frame: FrameType) -> None:
        self._line += 1
        place = Place(self._turn, self._line)
        if self._story is not None:
            self._tell(f"{self.current.name:20} {frame.f_lineno:4}  {_source(frame)}")
        turn = self._planned.get(place)
        if turn is not None:
            self._preempt(turn)
        elif place > self._last:
            self._in_vain = self._in_vain and not self._touches_shared(frame)
            if self._spare:
                self._note_line(place, frame)
            elif self._story is None and not self._in_vain:
                sys.settrace(None)  # nothing more to be seen in this run

    def _touches_shared(self, frame: FrameType) -> bool:
        own = frame.f_code.co_filename == self.module.__file__
        return not own or self._shared is None or self.current.holds > 0 or _matches(self._shared, _source(frame))

    def _note_line(self, place: Place, frame: FrameType) -> None:
        touches = self._touches_shared(frame)
        if touches:
            self._note(place, self._alive(), self.current, ())
        own = self.current is self.main
        if (own and not _ends_block(frame)) or (touches and not own):  # at a block's end CPython lets no signal in
            self._note_interrupt(place)

    def at_mutex(self) -> None:
        """Whoever preempted a holder of the mutex, only to wait for it, might as well not have come."""
        self._differs_in_nothing = self._in_vain and self._story is None

    def _preempt(self, turn: Turn) -> None:
        if turn.interrupted and self.current is self.main:
            self._tell("*** Ctrl-C")
            self.disturbed = True
            raise KeyboardInterrupt  # CPython ends the tracing
        self._next = turn
        quiet = not (turn.interrupted or self._tasks[turn.thread].waits())
        self._in_vain = self._shared is not None and turn.place == self._last and quiet and bool(self.current.holds)
        self.wait_turn(_always)

    def settle(self) -> None:
        """After a Ctrl-C: trace again, and let others run, since nobody saw the lines since then."""
        self.disturbed = False
        sys.settrace(self._trace)
        self.wait_turn(_always)

    def _tell(self, line: str) -> None:
        if self._story is not None:
            self._story.append(line)

    def _end(self) -> None:
        """Whoever still waits, after a failure, is ended."""
        self.over = True
        for task in self._alive():
            with suppress(Exception):
                task.greenlet.throw(GreenletExit)

    # What stands in for `threading`, `time.monotonic` and `flights._signal`

    def monotonic(self) -> float:
        return self.now

    def main_thread(self) -> Any:
        return self

    def is_alive(self) -> bool:
        """Whether the main thread is."""
        return self._main_is_alive

    def end_main_thread(self) -> None:
        self._main_is_alive = False

    def RLock(self) -> Mutex:
        return Mutex(self)

    def Condition(self, mutex: Mutex) -> Condition:
        return Condition(self, mutex)

    def Event(self) -> Event:
        return Event(self)

    def Thread(self, *, target: Callable[..., object], args: tuple[Any, ...], name: str, daemon: bool) -> Thread:
        return Thread(self, name, lambda: target(*args))

    def signal(self) -> tuple[Callable[[], object], Callable[[], Woken]]:
        event = Event(self)
        return event.set, lambda: Woken(event)


def _source(frame: FrameType) -> str:
    return _line(frame.f_code.co_filename, frame.f_lineno)


@cache
def _line(file: str, number: int) -> str:
    return linecache.getline(file, number).strip()


@cache
def _matches(pattern: re.Pattern[str], line: str) -> bool:
    return pattern.search(line) is not None


def _ends_block(frame: FrameType) -> bool:
    return _source(frame).startswith("with ")


@dataclass(eq=False)
class Mutex:
    """A `threading.RLock`."""

    world: World
    owner: Task | None = None
    depth: int = 0

    def __enter__(self) -> None:
        self.acquire(1)

    def __exit__(self, *error: object) -> None:
        self.world.current.holds = self.depth = self.depth - 1
        if self.depth == 0:
            self.owner = None

    def acquire(self, depth: int) -> None:
        task = self.world.current
        if self.world.disturbed:
            self.world.settle()
        if self.owner not in (None, task) and not self.world.over:
            self.world.at_mutex()
            self.world.block(lambda: self.owner is None)
        self.owner = task
        self.depth += depth
        task.holds = self.depth

    def release_all(self) -> int:
        depth, self.depth, self.owner = self.depth, 0, None
        self.world.current.holds = 0
        return depth


@dataclass(eq=False)
class Event:
    world: World
    flag: bool = False

    def set(self) -> None:
        self.flag = True

    def is_set(self) -> bool:
        return self.flag

    def wait(self, seconds: float = math.inf) -> bool:
        return self.world.block(self.is_set, seconds)


@dataclass(eq=False)
class Condition:
    world: World
    mutex: Mutex
    waiters: list[Event] = field(default_factory=list)

    def __enter__(self) -> None:
        self.mutex.__enter__()

    def __exit__(self, *error: object) -> None:
        self.mutex.__exit__()

    def notify(self) -> None:
        assert self.mutex.owner is self.world.current
        if self.waiters:
            self.waiters.pop(0).set()

    def wait(self, seconds: float) -> bool:
        told = Event(self.world)
        self.waiters.append(told)
        depth = self.mutex.release_all()
        task = self.world.current
        task.hasty = True
        try:
            return told.wait(seconds)
        finally:
            task.hasty = False
            if told in self.waiters:
                self.waiters.remove(told)
            self.mutex.acquire(depth)


@dataclass(eq=False)
class Thread:
    world: World
    name: str
    call: Callable[[], object]

    def start(self) -> None:
        """As the real one: returns when the new thread has begun, so the new one or any other may run first."""
        if not self.world.threads_can_start:
            raise RuntimeError("can't start new thread")
        self.world.spawn(self.name, self.call)
        self.world.wait_turn(_begun)


@dataclass(eq=False)
class Woken:
    """What a task awaits; its event loop is the thread that drives it by hand."""

    event: Event

    def __await__(self) -> Generator[Event, None, None]:
        yield self.event


Scene = Callable[[World], Callable[[], None]]
"""Begins threads in a new world, from its main thread; returns what must hold in the end."""


@dataclass
class _Branch:
    """A schedule to be run."""

    plan: Plan
    spare: int
    key: object = None
    in_vain: set[object] = field(default_factory=set)


@dataclass(frozen=True)
class Explorer:
    """Runs a scene in every schedule with at most `preemptions`.

    `opcodes`: at every bytecode, not only at every line. `shared`: as in `World`. `every`: of the plans that spend the
    last preemption, one in so many is run.
    """

    module: ModuleType
    preemptions: int = 2
    opcodes: bool = False
    shared: re.Pattern[str] | None = None
    every: int = 1

    def explore(self, scene: Scene) -> int:
        """Returns how many schedules there were; raises `Wrong` with the story of the first that broke a rule."""
        runs = 0
        todo = [_Branch((), self.preemptions)]
        seen: dict[int, int] = {}
        leaves = 0
        while todo:
            branch = todo.pop()
            if branch.key in branch.in_vain:
                continue
            try:
                options = self._run(scene, branch.plan, branch.spare, seen)
            except _SeenBeforeError:
                branch.in_vain.add(branch.key)
                continue
            runs += 1
            in_vain: set[object] = set()
            for turn, cost, held in options:
                leaf = cost == branch.spare == 1
                leaves += leaf
                if not leaf or leaves % self.every == 0:
                    key = (turn.place.turn, turn.thread) if held else None
                    todo.append(_Branch((*branch.plan, turn), branch.spare - cost, key, in_vain))
        return runs

    def _run(self, scene: Scene, plan: Plan, spare: int, seen: dict[int, int]) -> list[Option]:
        world = World(self.module, plan, spare=spare, opcodes=self.opcodes, shared=self.shared, seen=seen)
        try:
            _play(scene, world)
        except _SeenBeforeError:
            raise
        except Exception as error:
            raise Wrong(self._story(scene, plan)) from error
        return world.options

    def _story(self, scene: Scene, plan: Plan) -> str:
        story: list[str] = []
        world = World(self.module, plan, opcodes=self.opcodes, shared=self.shared, story=story)
        try:
            _play(scene, world)
        except Exception as error:
            story.append(f"{type(error).__name__}: {error}")
        return "\n".join([str(plan), *story])


def _play(scene: Scene, world: World) -> None:
    checks: list[Callable[[], None]] = []
    world.run(lambda: checks.append(scene(world)))
    if not world.cut_short:
        checks[0]()
