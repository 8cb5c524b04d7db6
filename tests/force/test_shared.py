"""One `OAuth` in many loops and threads, several for one grant, and what a fork makes of it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from mcp_oauth.io.httpx2 import OAuth
from mcp_oauth.store.base import Store
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from mcp_oauth.store.memory import MemoryStore
from tests.force.crowds import Seats, atasks, tasks, threads
from tests.integration.program import expire
from tests.io.servers import (
    PATIENCE,
    World,
    put_grant,
    world_on_loopback,
)
from tests.io.ways import NO_TLS
from tests.servers.process import ROOT

Callers = Callable[[OAuth, str], list[bool]]

EACH = 5
KINDS: dict[str, Callers] = {
    "asyncio": partial(tasks, count=EACH, backend="asyncio"),
    "asyncio in a second thread": partial(tasks, count=EACH, backend="asyncio"),
    "trio": partial(tasks, count=EACH, backend="trio"),
    "asyncio in a third thread": partial(tasks, count=EACH, backend="asyncio"),
    "threads": partial(threads, count=EACH),
}
"""Each in a thread of its own, and each loop is closed after its tasks."""


@pytest.fixture
def world() -> Iterator[World]:
    with world_on_loopback() as made:
        yield made


@pytest.fixture(params=["memory", "encrypted_file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return MemoryStore() if request.param == "memory" else EncryptedFileStore(tmp_path / "store")


def shared(world: World, store: Store, **options: Any) -> OAuth:
    return OAuth(world.url, **{"store": store, "verify": NO_TLS, "interactive": False, **options})


def run_out(world: World, store: Store, oauth: OAuth) -> None:
    """The access token has run out, also for the program that has it at hand."""
    grant = expire(store, world.url)
    token = oauth.token
    if token is not None:
        oauth._token = replace(token, obtained_at=grant.obtained_at, expires_at=grant.expires_at)


class TestOneObject:
    def test_in_one_loop_and_thread_after_the_other(self, world: World, store: Store) -> None:
        put_grant(store, world)
        oauth = shared(world, store)
        for done in range(4):
            for renewed, callers in enumerate(KINDS.values(), done * len(KINDS)):
                run_out(world, store, oauth)
                assert callers(oauth, world.url) == [True] * EACH
                assert world.refreshes == renewed + 1
        assert world.reuses == 0

    def test_in_all_of_them_at_once(self, world: World, store: Store) -> None:
        """The server answers when all of them wait."""
        put_grant(store, world)
        oauth = shared(world, store)
        for renewed in range(1, 5):
            run_out(world, store, oauth)
            with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(len(KINDS)) as pool:
                world.before = Seats(patch).before_answer(len(KINDS) * EACH)
                asked = [pool.submit(callers, oauth, world.url) for callers in KINDS.values()]
                assert [one.result() for one in asked] == [[True] * EACH] * len(KINDS)
            assert (world.refreshes, world.reuses) == (renewed, 0)

    def test_in_a_loop_that_is_closed_while_others_wait_for_what_it_began(self, world: World, store: Store) -> None:
        put_grant(store, world)
        oauth = shared(world, store)
        arrived, closed = threading.Event(), threading.Event()

        def hold(stage: str) -> None:
            arrived.set()
            assert closed.wait(PATIENCE)

        world.before = hold
        with ThreadPoolExecutor(len(KINDS)) as pool:
            with suppress(asyncio.TimeoutError):
                asyncio.run(asyncio.wait_for(gone_when(arrived, oauth, world.url), PATIENCE))
            others = [pool.submit(callers, oauth, world.url) for callers in KINDS.values()]
            closed.set()
            assert [one.result() for one in others] == [[True] * EACH] * len(KINDS)
        assert (world.refreshes, world.reuses) == (1, 0)


async def gone_when(event: threading.Event, oauth: OAuth, url: str) -> None:
    """Ask, and end the loop as soon as this happens."""
    asking = asyncio.create_task(atasks(oauth, url, EACH))
    await asyncio.to_thread(event.wait, PATIENCE)
    assert not asking.done()


class TestTwoObjects:
    """For one grant."""

    def test_on_one_store_share_a_renewal(self, world: World, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        put_grant(store, world)
        self.share(world, [shared(world, store) for _ in KINDS], monkeypatch)

    def test_on_two_stores_of_one_folder_share_a_renewal(
        self, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put_grant(EncryptedFileStore(tmp_path / "store"), world)
        each = [shared(world, EncryptedFileStore(tmp_path / "store")) for _ in KINDS]
        self.share(world, each, monkeypatch)

    def share(self, world: World, objects: list[OAuth], monkeypatch: pytest.MonkeyPatch) -> None:
        world.before = Seats(monkeypatch).before_answer(len(objects) * EACH)
        with ThreadPoolExecutor(len(objects)) as pool:
            asked = [
                pool.submit(callers, oauth, world.url) for oauth, callers in zip(objects, KINDS.values(), strict=True)
            ]
            assert [one.result() for one in asked] == [[True] * EACH] * len(objects)
        assert (world.refreshes, world.reuses) == (1, 0)

    def test_one_takes_what_the_other_renewed_when_its_own_token_is_refused(self, world: World, store: Store) -> None:
        put_grant(store, world, expires_in=1000)
        first, second = shared(world, store), shared(world, store)
        for oauth in (first, second):
            assert threads(oauth, world.url, 1) == [True]
        world.valid.clear()
        for oauth in (first, second):
            assert threads(oauth, world.url, 1) == [True]
        assert first.token == second.token
        assert (world.refreshes, world.reuses) == (1, 0)

    def test_a_logout_of_one_is_the_others_too(self, world: World, store: Store) -> None:
        put_grant(store, world, expires_in=1000)
        first, second = shared(world, store), shared(world, store)
        assert [threads(oauth, world.url, 1) for oauth in (first, second)] == [[True], [True]]
        first.logout()
        world.valid.clear()
        with pytest.raises(Exception, match="needs a login"):
            threads(second, world.url, 1)
        assert world.refreshes == 0


# --- Forks ------------------------------------------------------------------------------------------------------------

PROGRAM = """
import os, signal, sys, threading
from mcp_oauth.exceptions import OAuthError
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from mcp_oauth.store.memory import MemoryStore
from tests.force.crowds import tasks, threads
from tests.force.test_shared import run_out, shared
from tests.io.servers import put_grant, stored_refresh_token, world_on_loopback

def call(who):
    try:
        said = "served" if all(threads(oauth, world.url, 3) + tasks(oauth, world.url, 3, "asyncio")) else "not served"
    except OAuthError as error:
        said = error.reason.value
    print(who, said, flush=True)

def fork(child):
    pid = os.fork()
    if not pid:
        try:
            child()
        finally:
            os._exit(0)
    return pid

waiting, waits = os.pipe()
store = EncryptedFileStore(sys.argv[1]) if sys.argv[1] else MemoryStore()
with world_on_loopback() as world:
    put_grant(store, world)
    oauth = shared(world, store, on_notice=lambda notice: notice.name == "lock-busy" and os.write(waits, b"."))
"""


def forking(program: str, folder: Path | str) -> list[str]:
    """What the processes of a program say, in order of their names. `folder`: of encrypted files; "": in memory."""
    command = [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", PROGRAM + program, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3 * PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return sorted(done.stdout.splitlines())


AFTER_USE = """
    call("parent before")
    for _ in range(3):
        run_out(world, store, oauth)
        child = fork(lambda: call("child"))
        call("parent")
        os.waitpid(child, 0)
    print("renewals", world.refreshes, "reused", world.reuses)
"""
DURING_A_FLIGHT = """
    arrived, go_on = threading.Event(), threading.Event()
    world.before = lambda stage: arrived.set() or go_on.wait(20)
    parent = threading.Thread(target=call, args=("parent",))
    parent.start()
    assert arrived.wait(20)
    child = fork(lambda: (call("child"), os.write(waits, b".")))
    os.read(waiting, 1)
    go_on.set()
    parent.join()
    os.waitpid(child, 0)
    call("parent after")
    assert stored_refresh_token(store, world) == world.refresh_token
    print("renewals", world.refreshes, "reused", world.reuses)
"""
KILLED_WITH_A_CHILD = """
    (arriving, arrived), (living, lives), (going, goes), (ending, ended) = (os.pipe() for _ in range(4))
    dead = threading.Event()

    def hold(stage):
        os.write(arrived, b".")
        dead.wait(20)
        raise ConnectionError("it is cut off before it is processed")

    def parent():
        threading.Thread(target=call, args=("parent",)).start()
        os.read(arriving, 1)
        fork(child)
        os.write(lives, b".")
        signal.pause()

    def child():
        os.read(going, 1)
        call("child")
        os.write(ended, b".")

    world.before = hold
    pid = fork(parent)
    os.read(living, 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    world.before = lambda stage: None
    dead.set()
    os.write(goes, b".")
    os.read(ending, 1)
    print("renewals", world.refreshes, "reused", world.reuses)
"""


class TestAFork:
    def test_after_use_both_work_and_share_each_renewal(self, tmp_path: Path) -> None:
        said = forking(AFTER_USE, tmp_path / "store")
        rest = [*["parent served"] * 3, "parent before served", "renewals 4 reused 0"]
        assert said == sorted([*["child served"] * 3, *rest])

    def test_after_use_the_memory_of_a_child_is_empty(self) -> None:
        said = forking(AFTER_USE, "")
        rest = [*["parent served"] * 3, "parent before served", "renewals 4 reused 0"]
        assert said == sorted([*["child authorization-required"] * 3, *rest])

    def test_during_a_renewal_the_child_waits_for_its_parent(self, tmp_path: Path) -> None:
        said = forking(DURING_A_FLIGHT, tmp_path / "store")
        assert said == ["child served", "parent after served", "parent served", "renewals 1 reused 0"]

    def test_during_a_renewal_in_memory_the_child_has_nothing_to_renew(self) -> None:
        said = forking(DURING_A_FLIGHT, "")
        rest = ["parent after served", "parent served", "renewals 1 reused 0"]
        assert said == ["child authorization-required", *rest]

    def test_during_a_renewal_whose_process_is_killed_its_child_takes_over(self, tmp_path: Path) -> None:
        """The child began with a copy of everything that was open, and with it of the lock."""
        said = forking(KILLED_WITH_A_CHILD, tmp_path / "store")
        assert said == ["child served", "renewals 1 reused 0"]
