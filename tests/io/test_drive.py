"""The drive loop, in threads and in event loops: each effect in turn, notices told, nothing held at the end."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from mcp_oauth.io.drive import Advance, drive, drive_async
from mcp_oauth.io.ports import Ports, WallClock
from mcp_oauth.io.user import PasteBack
from mcp_oauth.sansio.errors import Reason, failure
from mcp_oauth.sansio.messages import Response, get
from mcp_oauth.sansio.steps import Acquire, Await, Done, Event, Failed, Load, Notice, Send, SendFailed, Sleep, Step
from mcp_oauth.sansio.values import Now
from mcp_oauth.store.base import Held
from mcp_oauth.store.memory import MemoryStore

EFFECTS = (Load("key"), Acquire("key"), Send(get("https://as.example/metadata")), Sleep(0.0))
State = tuple[str, ...]


def note(text: str) -> tuple[Notice, ...]:
    return (Notice("renewed", text),)


def begin() -> Step[State, State]:
    return Await((), EFFECTS[0], note("0"))


def advance(state: State, event: Event, *, now: Now) -> Step[State, State]:
    """A machine that wants each effect in turn, and remembers what answered."""
    assert now.elapsed > 0
    state = (*state, type(event).__name__)
    if isinstance(event, SendFailed):
        return Failed(failure(Reason.STOPPED, event.reason), note("failed"))
    if len(state) == len(EFFECTS):
        return Done(state, note("done"))
    return Await(state, EFFECTS[len(state)], note(str(len(state))))


def fails(state: State, event: Event, *, now: Now) -> Step[State, State]:
    raise ZeroDivisionError


class Runner:
    """Runs the machine on ports of its own."""

    def __init__(self, backend: str | None, answer: Any) -> None:
        self.backend, self.answer = backend, answer
        self.store, self.told = MemoryStore(), list[str]()
        self.ports = Ports(self.store, PasteBack(), WallClock(), tell=lambda notice: self.told.append(notice.message))

    def send(self, effect: Send) -> Any:
        assert effect is EFFECTS[2]
        assert isinstance(self.store.try_lock("key"), Held)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def asend(self, effect: Send) -> Any:
        await anyio.lowlevel.checkpoint()
        return self.send(effect)

    def run(self, advance: Advance[State, State] = advance) -> Step[State, State]:
        if self.backend is None:
            return drive(begin(), advance, self.send, self.ports)

        async def main() -> Step[State, State]:
            return await drive_async(begin(), advance, self.asend, self.ports)

        return anyio.run(main, backend=self.backend)

    def lock_is_free(self) -> bool:
        return not isinstance(self.store.try_lock("key"), Held)


BACKENDS = pytest.mark.parametrize("backend", [None, "asyncio", "trio"], ids=["thread", "asyncio", "trio"])


@BACKENDS
def test_each_effect_is_performed_and_each_notice_told(backend: str | None) -> None:
    runner = Runner(backend, Response(200))
    done = runner.run()
    assert done == Done(("Loaded", "Acquired", "Response", "Woke"), note("done"))
    assert runner.told == ["0", "1", "2", "3", "done"]
    assert runner.lock_is_free()


@BACKENDS
def test_a_failure_is_a_result(backend: str | None) -> None:
    runner = Runner(backend, SendFailed("cut", may_have_arrived=True))
    failed = runner.run()
    assert isinstance(failed, Failed)
    assert failed.error.message == "cut"
    assert runner.told == ["0", "1", "2", "failed"]
    assert runner.lock_is_free()


@BACKENDS
def test_nothing_is_held_when_the_stack_or_the_machine_raises(backend: str | None) -> None:
    runner = Runner(backend, OSError("no network"))
    with pytest.raises(OSError, match="no network"):
        runner.run()
    assert runner.lock_is_free()
    with pytest.raises(ZeroDivisionError):
        Runner(backend, None).run(fails)


def test_nothing_is_held_when_the_task_is_cancelled() -> None:
    runner = Runner("trio", None)
    scope: anyio.CancelScope

    async def never(effect: Send) -> Any:
        scope.cancel()
        await anyio.sleep_forever()

    async def main() -> None:
        nonlocal scope
        with anyio.CancelScope() as scope:
            await drive_async(begin(), advance, never, runner.ports)

    anyio.run(main)
    assert scope.cancelled_caught
    assert runner.lock_is_free()


def test_it_may_end_early_before_an_effect_and_holds_nothing() -> None:
    runner = Runner("trio", Response(200))

    async def main() -> Step[State, State]:
        return await drive_async(begin(), advance, runner.asend, runner.ports, Sleep)

    assert anyio.run(main) == Await(("Loaded", "Acquired", "Response"), EFFECTS[3], note("3"))
    assert runner.told == ["0", "1", "2", "3"]
    assert runner.lock_is_free()


def test_a_finished_machine_needs_nothing() -> None:
    runner = Runner(None, None)
    assert drive(Done((), note("done")), advance, runner.send, runner.ports) == Done((), note("done"))
    assert runner.told == ["done"]
