"""Flights in all schedules of a few threads: at most two preemptions, at every line that touches what is shared.

Everything runs on virtual threads (`schedules`). The normal run takes one in `EVERY` of the schedules with the most
preemptions; `MCP_OAUTH_ALL_SCHEDULES=1` takes all of them, in an hour.
"""

from __future__ import annotations

import linecache
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mcp_oauth.io import flights as real
from tests.simulation.schedules import Explorer, Scene, World, Wrong

ALL = bool(os.environ.get("MCP_OAUTH_ALL_SCHEDULES"))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * 3600 if ALL else 120)]
EVERY = 1 if ALL else 500

SHARED = re.compile(r"with self\._(mutex|changed)|stopping|_given_up|_asks_user|outcome|started|wake|woken|_do")
"""Lines of flights.py that may touch, without the mutex, what other threads see, or that take the mutex."""


class RefusedError(Exception):
    """What a renewal may end with."""


class LeftError(BaseException):
    """What a cancelled task ends with."""


@dataclass(eq=False)
class Call:
    """One caller."""

    name: str
    key: str
    patient: bool
    leaves: bool
    landed_before: list[Run] = field(default_factory=list)
    result: tuple[str, bool] | None = None
    ended: bool = False


@dataclass(eq=False)
class Run:
    """One run of the work."""

    owner: Call
    flight: Any
    counts: bool = True
    """Whether it needs a slot."""


Body = Callable[[Any], str]
"""The work, given the flight: how it ended."""


class Stage:
    """Who calls, what ran, and what came of it."""

    def __init__(self, world: World, limit: int = 4, *, seconds: float = 0) -> None:
        self.world = world
        self.flights = world.module.Flights(limit)
        self.limit = limit
        self.seconds = seconds
        """How long the scene may take, beyond what the works asked for."""
        self.calls: list[Call] = []
        self.runs: list[Run] = []
        self.at_work: list[Run] = []
        self.wrong: list[str] = []
        """What the works saw; nobody need be there to hear of their exceptions."""

    # Callers

    def caller(self, name: str, key: str, body: Body, *, patient: bool = True, leaves: bool = False) -> None:
        call = Call(name, key, patient, leaves)
        self.world.spawn(name, lambda: self.call(call, body))

    def call(self, call: Call, body: Body) -> None:
        """What a caller's thread does."""
        self.calls.append(call)
        running = self.flights._by_key.get(call.key)
        call.landed_before = [run for run in self.runs if run.flight is not running]
        work = self.work(call, body)
        try:
            if call.leaves:
                self.join_and_leave(call, work)
            else:
                call.result = self.flights.wait(call.key, work, patient=call.patient)
        except RefusedError as refused:
            call.result = str(refused), self.runs[number(str(refused))].owner is call
        except self.world.module.NeedsUser:
            call.result = "needs user", False
        finally:
            call.ended = True

    def join_and_leave(self, call: Call, work: Callable[[Any], str]) -> None:
        """As a task that is cancelled while it waits."""
        waiting = self.flights.wait_async(call.key, work, patient=call.patient)
        waiting.send(None)
        with suppress(LeftError):
            waiting.throw(LeftError())

    # Works

    def work(self, call: Call, body: Body) -> Callable[[Any], str]:
        def work(flight: Any) -> str:
            run = Run(call, flight)
            self.require(not any(flight is other.flight for other in self.runs), "a flight runs twice")
            self.require(not any(flight.key == other.flight.key for other in self.at_work), "two flights of one key")
            self.require(self.flights._by_key.get(call.key) is flight, "a flight that nobody can join")
            self.runs.append(run)
            self.at_work.append(run)
            self.count_slots()
            self.world.step()
            try:
                return f"{body(run)} {self.runs.index(run)}"
            except RefusedError:
                raise RefusedError(f"refused {self.runs.index(run)}") from None
            finally:
                self.at_work.remove(run)

        return work

    def require(self, holds: bool, rule: str) -> None:
        if not holds:
            self.wrong.append(rule)

    def count_slots(self) -> None:
        self.require(sum(run.counts for run in self.at_work) <= self.limit, "more at work than there are slots")

    def renew(self, run: Run) -> str:
        return "token"

    def fail(self, run: Run) -> str:
        raise RefusedError

    def pause(self, run: Run, seconds: float = 0.1, *, whole: bool = True) -> str:
        """Not `whole`: something must end it early."""
        counted, run.counts = run.counts, False
        self.seconds += seconds if whole else 0
        stopping = run.flight.pause(seconds)
        run.counts = counted and not stopping
        self.count_slots()
        return "stopped" if stopping else "token"

    def log_in(self, run: Run) -> str:
        """A renewal that needs a person, who answers after a while."""
        run.counts = False
        if run.flight.ask_user() or self.pause(run) == "stopped":
            return "stopped"
        run.flight.user_answered()
        return "token"

    # What must hold in the end

    def check(self) -> None:
        assert self.wrong == []
        assert self.world.idle <= self.seconds + 1e-6, f"waited for what had come already: {self.world.idle} s"
        assert (self.flights._by_key, list(self.flights._queue), self.flights._slots) == ({}, [], set())
        assert not any(run.flight._seats for run in self.runs), "a seat is left"
        for call in self.calls:
            assert call.ended
            if call.result is not None:
                self.check_result(call, *call.result)
        for run in self.runs:
            self.check_owner(run)

    def check_result(self, call: Call, result: str, started: bool) -> None:
        if result == "needs user":
            assert not call.patient
            assert not any(run.owner is call for run in self.runs), "sent away from his own work"
            return
        run = self.runs[number(result)]
        assert run.flight.key == call.key
        assert run not in call.landed_before, "an outcome from before the call"
        assert started == (run.owner is call)
        assert "stopped" not in result or not self.world.is_alive(), "the outcome of a flight given up"

    def check_owner(self, run: Run) -> None:
        if run.owner.result is not None and not run.owner.leaves:
            theirs = [other for other in self.runs if other.owner is run.owner]
            assert theirs == [run], "a caller's work was done twice"
            assert number(run.owner.result[0]) == self.runs.index(run)


def number(result: str) -> int:
    return int(result.split()[-1])


def two_join(world: World) -> Callable[[], None]:
    stage = Stage(world)
    stage.caller("A", "key", stage.renew)
    stage.caller("B", "key", stage.renew)
    return stage.check


def two_join_an_error(world: World) -> Callable[[], None]:
    stage = Stage(world)
    stage.caller("A", "key", stage.fail)
    stage.caller("B", "key", stage.fail)
    return stage.check


def one_leaves_one_joins(world: World) -> Callable[[], None]:
    stage = Stage(world)
    stage.caller("A", "key", stage.renew, leaves=True)
    stage.caller("B", "key", stage.renew)
    return stage.check


def one_leaves_a_login_one_joins(world: World) -> Callable[[], None]:
    stage = Stage(world)
    stage.caller("A", "key", stage.log_in, leaves=True)
    stage.caller("B", "key", stage.log_in)
    return stage.check


def an_impatient_caller_joins_a_login(world: World) -> Callable[[], None]:
    stage = Stage(world)
    stage.caller("A", "key", stage.log_in, patient=False)
    stage.caller("B", "key", stage.renew, patient=False)
    return stage.check


def an_impatient_caller_leaves_a_login(world: World) -> Callable[[], None]:
    stage = Stage(world)
    stage.caller("A", "key", stage.log_in)
    stage.caller("B", "key", stage.log_in, patient=False, leaves=True)
    return stage.check


def one_goes_on_meanwhile(world: World) -> Callable[[], None]:
    """As `keep_fresh` does: whoever starts a flight waits for nothing, and hears of its landing."""
    stage = Stage(world, 1)
    going_on = Call("A", "key", patient=False, leaves=False)
    stage.calls.append(going_on)

    def landed(outcome: Callable[[], str], own: bool) -> None:
        assert going_on.result is None, "told twice"
        going_on.ended = True
        try:
            going_on.result = outcome(), own
        except world.module.NeedsUser:
            going_on.result = "needs user", own

    world.spawn("A", lambda: stage.flights.start("key", stage.work(going_on, stage.renew), landed))
    stage.caller("B", "key", stage.log_in, leaves=True)
    return stage.check


def all_leave_a_login(world: World) -> Callable[[], None]:
    stage = Stage(world)

    def wait_for_ever(run: Run) -> str:
        run.counts = False
        return "stopped" if run.flight.ask_user() else stage.pause(run, 3600, whole=False)

    stage.caller("A", "key", wait_for_ever, leaves=True)
    stage.caller("B", "key", wait_for_ever, leaves=True, patient=False)
    return stage.check


def one_slot_is_lent(world: World) -> Callable[[], None]:
    stage = Stage(world, 1)

    def wait_for_the_other(run: Run) -> str:
        while not any(other.flight.key == "b" for other in stage.runs):
            stage.pause(run)
        return "token"

    stage.caller("A", "a", wait_for_the_other)
    stage.caller("B", "b", stage.renew)
    return stage.check


def one_slot_is_lent_both_ways(world: World) -> Callable[[], None]:
    stage = Stage(world, 1)
    stage.caller("A", "a", stage.pause)
    stage.caller("B", "b", stage.pause)
    return stage.check


def a_login_needs_no_slot(world: World) -> Callable[[], None]:
    stage = Stage(world, 1)
    stage.caller("A", "a", stage.log_in)
    stage.caller("B", "b", stage.renew)
    return stage.check


def a_queued_flight_is_dropped(world: World) -> Callable[[], None]:
    stage = Stage(world, 1)
    stage.caller("A", "a", stage.renew)
    stage.caller("B", "b", stage.renew, leaves=True)
    return stage.check


def the_main_thread_ends_while_one_regains(world: World) -> Callable[[], None]:
    stage = Stage(world, 1, seconds=1)

    def hold(run: Run) -> str:
        world.block(lambda: False, 0.5)
        return "token"

    stage.caller("A", "a", stage.pause)
    stage.caller("B", "b", hold)
    world.spawn("end", world.end_main_thread)
    return stage.check


def the_main_thread_ends_while_one_pauses(world: World) -> Callable[[], None]:
    stage = Stage(world, seconds=0.5)

    def pause(run: Run) -> str:
        return stage.pause(run, 3600, whole=False)

    stage.caller("A", "a", pause)
    world.spawn("end", world.end_main_thread)
    return stage.check


def no_thread_can_start(world: World) -> Callable[[], None]:
    world.threads_can_start = False
    stage = Stage(world, 1)
    stage.caller("A", "a", stage.pause)
    stage.caller("B", "b", stage.renew)
    stage.caller("C", "a", stage.renew)
    return stage.check


def a_third_joins_at_landing(world: World) -> Callable[[], None]:
    stage = Stage(world)
    for name in "ABC":
        stage.caller(name, "key", stage.renew)
    return stage.check


def a_third_wants_what_is_dropped(world: World) -> Callable[[], None]:
    stage = Stage(world, 1)
    stage.caller("A", "a", stage.renew)
    stage.caller("B", "b", stage.renew, leaves=True)
    stage.caller("C", "b", stage.renew)
    return stage.check


def three_and_one_slot(world: World) -> Callable[[], None]:
    stage = Stage(world, 1)
    for name in "abc":
        stage.caller(name, name, stage.renew)
    return stage.check


SMALL: list[Scene] = [
    two_join,
    two_join_an_error,
    one_leaves_one_joins,
    one_leaves_a_login_one_joins,
    an_impatient_caller_joins_a_login,
    an_impatient_caller_leaves_a_login,
    one_goes_on_meanwhile,
    one_slot_is_lent,
    one_slot_is_lent_both_ways,
    a_login_needs_no_slot,
    a_queued_flight_is_dropped,
    the_main_thread_ends_while_one_regains,
    the_main_thread_ends_while_one_pauses,
    no_thread_can_start,
]
LARGE: list[Scene] = [all_leave_a_login, a_third_joins_at_landing, a_third_wants_what_is_dropped, three_and_one_slot]


def interrupted(body: str, **how: bool) -> Scene:
    """The main thread waits, gets a Ctrl-C, and asks again; somebody else wants the same."""

    def scene(world: World) -> Callable[[], None]:
        stage = Stage(world, 1)
        work = getattr(stage, body)
        stage.caller("B", "key", work, **how)
        world.interruptible = True
        for name in ("A", "A again"):
            with suppress(KeyboardInterrupt):
                stage.call(Call(name, "key", patient=True, leaves=False), work)
        world.interruptible = False
        return stage.check

    return scene


@pytest.mark.parametrize("scene", SMALL)
def test_two_preemptions(scene: Scene) -> None:
    runs = Explorer(real, 2, shared=SHARED, every=EVERY).explore(scene)
    print(f"{scene.__name__}: {runs} schedules")
    assert runs > 150


@pytest.mark.parametrize("scene", LARGE)
def test_two_preemptions_of_more_threads(scene: Scene) -> None:
    runs = Explorer(real, 2 if ALL else 1, shared=SHARED, every=EVERY).explore(scene)
    print(f"{scene.__name__}: {runs} schedules")
    assert runs > 200


# Since 3.12 a tracer is not told of the same bytecodes in each run.
@pytest.mark.parametrize("opcodes", [False, True] if sys.version_info < (3, 12) else [False])
def test_a_preemption_everywhere(opcodes: bool) -> None:
    """Also where nothing shared is touched: the other tests leave that out."""
    runs = Explorer(real, 1, opcodes=opcodes, every=1 if ALL else 4).explore(two_join)
    assert runs > 500


@pytest.mark.parametrize("body", ["renew", "fail", "log_in"])
def test_ctrl_c_and_a_preemption(body: str) -> None:
    runs = Explorer(real, 2, shared=SHARED, every=5 * EVERY if EVERY > 1 else 1).explore(interrupted(body))
    assert runs > 1000


def planted(bug: str, changes: list[tuple[str, str]]) -> ModuleType:
    """The module with a bug."""
    path = Path(real.__file__)
    source = path.read_text("utf-8").partition("\nFLIGHTS = ")[0]
    for old, new in changes:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    module = ModuleType(real.__name__)
    module.__file__ = f"{path} that {bug}"
    linecache.cache[module.__file__] = (len(source), None, source.splitlines(keepends=True), module.__file__)
    exec(compile(source, module.__file__, "exec"), vars(module))
    return module


JOIN = "        with self._mutex:\n            flight = seat.flight = self._by_key.setdefault(own.key, own)\n"
LAND = "        with self._mutex:\n            self._by_key.pop(flight.key, None)\n            seats"
BUGS: dict[str, tuple[Scene, list[tuple[str, str]]]] = {
    "looks for a flight outside the mutex": (
        two_join,
        [
            (
                JOIN,
                JOIN.replace("        with", "        known = self._by_key.get(own.key)\n        with", 1).replace(
                    "self._by_key.set", "known or self._by_key.set"
                ),
            )
        ],
    ),
    "starts a flight for each caller": (
        two_join,
        [("self._by_key.setdefault(own.key, own)", "self._by_key[own.key] = own")],
    ),
    "wakes before the outcome is there": (two_join, [(LAND, "        _wake(list(flight._seats))\n" + LAND)]),
    "wakes nobody": (two_join, [("        _wake(seats)\n", "")]),
    "leaves the books after waking": (
        two_join,
        [
            ("            self._by_key.pop(flight.key, None)\n", ""),
            ("        _wake(seats)\n", "        _wake(seats)\n        self._by_key.pop(flight.key, None)\n"),
        ],
    ),
    "hands the slot not on when it lands": (
        three_and_one_slot,
        [("heir = self._hand_on(flight)\n        _wake", "heir = self._slots.discard(flight)\n        _wake")],
    ),
    "gives one slot too many": (three_and_one_slot, [("< self._limit", "<= self._limit")]),
    "does not notify who regains": (one_slot_is_lent, [("        heir._changed.notify()\n", "")]),
    "does not notify who is given up": (
        all_leave_a_login,
        [("        self._given_up = True\n        self._changed.notify()", "        self._given_up = True")],
    ),
    "gives out the outcome of a flight given up": (
        one_leaves_a_login_one_joins,
        [("            if not flight._given_up:\n", "            if True:\n")],
    ),
    "stays in the queue when it stops": (
        the_main_thread_ends_while_one_regains,
        [("                self._queue.remove(flight)\n\n    # Thr", "                pass\n\n    # Thr")],
    ),
    "keeps a slot while it pauses": (
        one_slot_is_lent,
        [("        lent = self._flights._give_back(self)\n", "        lent = False\n")],
    ),
    "drops a flight from the books only": (
        a_queued_flight_is_dropped,
        [("                self._queue.remove(flight)\n\n    def _rel", "                pass\n\n    def _rel")],
    ),
    "begins twice": (one_leaves_one_joins, [("        return first\n", "        return True\n")]),
    "sends away whose work it is": (
        an_impatient_caller_joins_a_login,
        [("if not (seat.patient or seat.started)]", "if not seat.patient]")],
    ),
    "does not launch the stranded": (
        interrupted("renew"),
        [("        if stranded:", "        if stranded and False:")],
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_found(bug: str) -> None:
    scene, changes = BUGS[bug]
    explorer = Explorer(planted(bug, changes), 2, shared=SHARED, every=5)
    with pytest.raises(Wrong):
        explorer.explore(scene)
