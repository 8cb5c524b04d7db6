"""Tasks that are done later: one thread for all, at their time, a few at once, and for the last time at exit."""

from __future__ import annotations

import contextvars
import gc
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from mcp_oauth.io import later as module
from mcp_oauth.io.later import Later, Over
from tests.io.clockwork import NO_THREADS_AT_EXIT
from tests.io.servers import PATIENCE
from tests.io.test_flights_processes import run


class Recorded:
    """A task that is over when the test says so, and says when it was begun."""

    def __init__(self) -> None:
        self.overs: list[Over] = []
        self.lasts: list[bool] = []
        self.changed = threading.Condition()

    def __call__(self, last: bool, over: Over) -> None:
        with self.changed:
            self.lasts.append(last)
            self.overs.append(over)
            self.changed.notify_all()

    def begun(self, times: int = 1) -> Over:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.overs) >= times, PATIENCE)
            return self.overs[times - 1]


@pytest.fixture
def later() -> Iterator[Later]:
    later = Later(limit=2)
    yield later
    for thread in threading.enumerate():
        if thread.name == "mcp-oauth later":
            thread.join(PATIENCE)
            assert not thread.is_alive()
    assert (later._entries, later._queue, later._under_way, later._has_thread) == ({}, [], 0, False)


def test_without_tasks_there_is_no_thread(later: Later) -> None:
    assert not [thread for thread in threading.enumerate() if thread.name == "mcp-oauth later"]
    later.drop("never added")


def test_a_task_is_begun_again_until_it_is_done(later: Later) -> None:
    task = Recorded()
    later.add("key", task, 0.0)
    task.begun(1)(0.0)
    task.begun(2)(0.001)
    task.begun(3)(None)
    assert task.lasts == [False] * 3


def test_one_task_for_each_key(later: Later) -> None:
    one, other = Recorded(), Recorded()
    later.add("key", one, 0.0)
    over = one.begun()
    later.add("key", other, 0.0)
    over(None)
    later.add("key", other, 0.0)
    other.begun()(None)
    assert len(one.overs) == len(other.overs) == 1


def test_they_are_begun_in_the_order_of_their_times(later: Later, monkeypatch: pytest.MonkeyPatch) -> None:
    time = [0.0]
    monkeypatch.setattr(module, "monotonic", lambda: time[0])
    begun: list[int] = []
    done = threading.Event()

    def begin(seconds: int, _: bool, over: Over) -> None:
        begun.append(seconds)
        over(None)
        if len(begun) == 4:
            done.set()

    for seconds in (7, 3, 5, 1):
        later.add(seconds, partial(begin, seconds), float(seconds))
    time[0] = 10.0
    assert done.wait(PATIENCE)
    assert begun == [1, 3, 5, 7]


def test_so_many_are_under_way_and_the_next_begins_when_one_is_over(later: Later) -> None:
    tasks = [Recorded() for _ in range(3)]
    for task in tasks:
        later.add(task, task, 0.0)
    overs = [task.begun() for task in tasks[:2]]
    assert (later._under_way, tasks[2].overs) == (2, [])
    overs[1](None)
    tasks[2].begun()(None)
    overs[0](None)


@pytest.mark.parametrize("seconds", [0.0, None], ids=["again", "done"])
def test_what_is_dropped_while_under_way_is_not_begun_again(later: Later, seconds: float | None) -> None:
    task = Recorded()
    later.add("key", task, 0.0)
    over = task.begun()
    later.drop("key")
    over(seconds)
    assert len(task.overs) == 1


def test_what_is_dropped_leaves_its_key_to_another(later: Later) -> None:
    """What the first one says afterwards is not about the second."""
    first, second = Recorded(), Recorded()
    later.add("key", first, 0.0)
    over = first.begun()
    later.drop("key")
    later.add("key", second, 3600.0)
    over(None)
    assert len(later._entries) == 1
    later.drop("key")


def test_what_is_dropped_does_not_pile_up(later: Later) -> None:
    for n in range(1000):
        later.add(n, Recorded(), 3600.0)
        later.drop(n - 1)
    assert len(later._queue) <= module._LITTER + 4
    later.drop(999)


def test_a_forgotten_context_may_be_ended_while_the_books_are_open(later: Later) -> None:
    """The garbage collector calls `drop` from anywhere."""
    keep, gone = Recorded(), Recorded()
    later.add("keep", keep, 0.0)
    later.add("gone", gone, 3600.0)
    with later._changed:
        later.drop("gone")
    keep.begun()(None)


def test_context_variables_are_those_of_who_added_it(later: Later) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nothing")
    seen: list[str] = []
    done = threading.Event()

    def task(_: bool, over: Over) -> None:
        seen.append(variable.get())
        over(None)
        done.set()

    def add() -> None:
        variable.set("the caller's")
        later.add("key", task, 0.0)

    contextvars.copy_context().run(add)
    assert done.wait(PATIENCE)
    assert seen == ["the caller's"]


def test_a_done_task_is_not_held(later: Later) -> None:
    idle, task = Recorded(), Recorded()
    later.add("idle", idle, 3600.0)
    later.add("key", task, 0.0)
    task.begun()(None)
    task.overs.clear()
    next_one = Recorded()
    later.add("next", next_one, 0.0)
    next_one.begun()(None)  # the thread has gone on
    assert not [held for held in gc.get_referrers(task) if isinstance(held, module._Entry)]
    later.drop("idle")


def test_where_no_thread_can_be_started_the_next_one_tries_again(
    later: Later, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    task = Recorded()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        later.add("key", task, 0.0)
    assert "no thread could be started" in caplog.text
    later.add("key", task, 0.0)
    task.begun()(None)


# --- At exit ----------------------------------------------------------------------------------------------------------

AT_EXIT = "from mcp_oauth.io.later import LATER\n"


def test_at_exit_only_what_is_wanted_then_is_done_once_and_at_once() -> None:
    said = run(
        AT_EXIT
        + """
def task(name):
    def begin(last, over):
        say(name, last, time.monotonic() - ended < 5)
        over(0.0)
    return begin
for n in range(40):
    LATER.add(n, task("last"), 3600.0, at_exit=True)
LATER.add("other", task("not at exit"), 3600.0)
ended = time.monotonic()
"""
    )
    assert said.splitlines() == ["last True True"] * 40


def test_at_exit_a_task_that_is_under_way_is_tried_once_more() -> None:
    said = run(
        AT_EXIT
        + """
began = threading.Event()
def begin(last, over):
    say(last)
    if last:
        return over(3600.0)
    began.set()
    def end():
        threading.main_thread().join()
        over(3600.0)
    threading.Thread(target=end).start()
LATER.add("key", begin, 0.0, at_exit=True)
assert began.wait(10)
"""
    )
    assert said.splitlines() == ["False", "True"]


def test_what_comes_after_the_end_of_the_main_thread_is_tried_once() -> None:
    said = run(
        AT_EXIT
        + """
def late():
    threading.main_thread().join()
    LATER.add("key", lambda last, over: (say(last), over(3600.0)), 3600.0, at_exit=True)
threading.Thread(target=late).start()
""",
        stderr="no thread could be started: nothing is done in the background for now\n" if NO_THREADS_AT_EXIT else "",
    )
    assert said.splitlines() == ([] if NO_THREADS_AT_EXIT else ["True"])


def test_a_forked_child_has_no_tasks_and_may_have_its_own() -> None:
    said = run(
        AT_EXIT
        + """
def begin(last, over):
    say("child" if os.getpid() != parent else "parent")
    over(None)
parent = os.getpid()
LATER.add("key", begin, 3600.0, at_exit=True)
with LATER._changed:
    pid = os.fork()
if not pid:
    assert not LATER._entries
    LATER.add("key", begin, 0.0)
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
"""
    )
    assert said.splitlines() == ["child", "parent"]
