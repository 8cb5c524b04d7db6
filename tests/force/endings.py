"""Programs that come to an end while a renewal is under way, each in a process of its own.

The test's side is `Ending`. The other side is this file, run as `python -m tests.force.endings HOW URL FOLDER PLACE`:
it makes a request in the way that HOW says, and halts once at PLACE until it is told to go on.
"""

from __future__ import annotations

import asyncio
import atexit
import importlib
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from mcp_oauth.store.base import Conflict, Held, ProcessLease, Saved
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from tests.integration.program import Answer, Peer, Program, acall, nobody, program, say, served
from tests.io.servers import PATIENCE

LOCKED = "locked"
"""Where a program halts: it has the lock, and has sent nothing."""
SAVING = "saving"
"""The new tokens are at hand, and are not saved."""
SAVED = "saved"
"""They are saved, and nobody was told."""


# --- The test's side --------------------------------------------------------------------------------------------------


@dataclass
class Ending(Peer):
    """The test's side of such a program; `stack` says how it calls and how it ends."""

    place: str = ""

    def command(self) -> list[str]:
        program = [sys.executable, "-m", "tests.force.endings", self.stack, self.url, str(self.folder), self.place]
        return ["sh", "-c", 'exec "$@" 2>"$0"', str(self._errors), *program]

    @property
    def _errors(self) -> Path:
        return self.folder / "errors"

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def end(self) -> None:
        """Have the main thread come to its end, and go on when it is about to."""
        (self.folder / "end").touch()
        self.until("ending")

    def halted(self) -> None:
        assert self.until("halted")["at"] == self.place

    def go_on(self) -> None:
        self.tell("go on")

    def said(self) -> list[str]:
        """All that is still said, up to the end of the process, which comes soon."""
        rest, _ = self.process.communicate(timeout=PATIENCE)
        return [line.split('"')[3] for line in rest.splitlines()]

    def ended(self) -> tuple[int, str]:
        """Its exit status, and what it wrote to stderr."""
        return self.process.wait(PATIENCE), self._errors.read_text()


# --- The other side ---------------------------------------------------------------------------------------------------


class Halting(EncryptedFileStore):
    """Encrypted files that halt at one place, once, on the thread of the flight."""

    def __init__(self, folder: Path, place: str) -> None:
        super().__init__(folder)
        self._place = place

    def try_lock(self, key: str) -> ProcessLease | Held:
        lease = super().try_lock(key)
        self._at(LOCKED)
        return lease

    def save(self, key: str, value: bytes, *, revision: str, expected: str | None) -> Saved | Conflict:
        self._at(SAVING)
        answer = super().save(key, value, revision=revision, expected=expected)
        self._at(SAVED)
        say("saved")
        return answer

    def _at(self, place: str) -> None:
        if place == self._place:
            self._place = ""
            say("halted", at=place)
            assert sys.stdin.readline() == "go on\n"


class Run:
    """One program: what its ways of ending are made of."""

    def __init__(self, here: Program, end: Path) -> None:
        self.here = here
        self._end = end

    def call(self) -> None:
        _answered(self.here.call())

    async def acall(self) -> None:
        _answered(await acall(importlib.import_module("httpx2"), self.here.oauth, self.here.url))

    def told_to_end(self) -> None:
        while not self._end.exists():
            time.sleep(0.01)
        say("ending")

    async def atold_to_end(self) -> None:
        while not self._end.exists():
            await anyio.sleep(0.01)
        say("ending")


def _answered(answer: Answer) -> None:
    say("answered" if served(answer) else "refused")


def in_asyncio(run: Run) -> None:
    """Not by way of anyio, whose `run` on Python 3.10 raises `CancelledError` at Ctrl-C."""
    asyncio.run(run.acall())


def interrupted(request: Callable[[Run], object]) -> Callable[[Run], None]:
    """A program that hears Ctrl-C, and makes its request again."""

    def way(run: Run) -> None:
        try:
            request(run)
        except KeyboardInterrupt:
            say("interrupted")
        request(run)

    return way


async def main_returns(run: Run) -> None:
    task = asyncio.create_task(run.acall())
    await run.atold_to_end()
    assert not task.done()


async def main_raises(run: Run) -> None:
    await main_returns(run)
    raise SystemExit


async def nursery_is_cancelled(run: Run) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(run.acall)
        await run.atold_to_end()
        group.cancel_scope.cancel()


def thread(*, daemon: bool, end: Callable[[], object]) -> Callable[[Run], None]:
    """A thread makes the request; the main thread ends."""

    def way(run: Run) -> None:
        threading.Thread(target=run.call, daemon=daemon).start()
        run.told_to_end()
        end()

    return way


def nothing() -> None:
    """The main thread comes to its last line."""


def loop_in_daemon(run: Run) -> None:
    """The event loop is in a daemon thread, as in a notebook or behind a synchronous face."""
    threading.Thread(target=asyncio.run, args=(run.acall(),), daemon=True).start()
    run.told_to_end()


def request_at_exit(run: Run) -> None:
    """The request itself is made when the program has ended."""
    atexit.register(run.call)


WAYS: dict[str, Callable[[Run], Any]] = {
    "sync": Run.call,
    "sync-caught": interrupted(Run.call),
    "asyncio-caught": interrupted(in_asyncio),
    "trio-caught": interrupted(lambda run: anyio.run(run.acall, backend="trio")),
    "asyncio-main-returns": lambda run: asyncio.run(main_returns(run)),
    "asyncio-main-raises": lambda run: asyncio.run(main_raises(run)),
    "asyncio-group-cancelled": lambda run: anyio.run(nursery_is_cancelled, run),
    "trio-nursery-cancelled": lambda run: anyio.run(nursery_is_cancelled, run, backend="trio"),
    "thread-main-returns": thread(daemon=False, end=nothing),
    "daemon-main-returns": thread(daemon=True, end=nothing),
    "daemon-sys-exit": thread(daemon=True, end=sys.exit),
    "loop-in-daemon": loop_in_daemon,
    "request-at-exit": request_at_exit,
}


def _main(how: str, url: str, folder: str, place: str) -> None:
    atexit.register(say, "atexit")
    store = Halting(Path(folder, "store"), place)
    run = Run(program("httpx2-sync", url, store=store, user=nobody), Path(folder, "end"))
    say("ready")
    WAYS[how](run)


if __name__ == "__main__":
    _main(*sys.argv[1:])
