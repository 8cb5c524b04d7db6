"""What a process that dies leaves to the others: room set aside, leftovers, and the old value or the new one."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from mcp_oauth.store.base import (
    Held,
    Stored,
)
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from tests.store.files import FILE, LOCK, SAVE, leftovers, place, put, take
from tests.store.peer import Peer, Recipe, Step, counted

KILLS = int(os.environ.get("MCP_OAUTH_KILLS", "60"))
"""How many processes are killed while they save."""
SIZES = [10, 3_000, 40_000]

Start = Callable[..., Peer]


@pytest.fixture
def store(folder: Path) -> EncryptedFileStore:
    return EncryptedFileStore(folder)


@pytest.fixture
def recipe(folder: Path) -> Recipe:
    return Recipe(FILE, {"folder": str(folder)})


# Room for the successor.


def test_rules_4_7_the_lock_sets_room_aside_and_the_next_save_takes_it(store: EncryptedFileStore, folder: Path) -> None:
    put(store, "key", os.urandom(200_000))
    room = place(folder, "key", ".next")
    with take(store, "key"):
        about = room.stat()
        assert about.st_size > 264_000
        assert about.st_blocks * 512 >= about.st_size
        put(store, "key", b"value", "r2", "r1")
        assert not room.exists()
        assert place(folder, "key").stat().st_ino == about.st_ino
    assert store.load("key") == Stored(b"value", "r2")


def test_room_that_was_not_needed_is_given_back(store: EncryptedFileStore, folder: Path) -> None:
    with take(store, "key"):
        assert place(folder, "key", ".next").exists()
        assert place(folder, "key", ".holder").exists()
    assert leftovers(folder) == []
    assert not place(folder, "key", ".holder").exists()
    assert place(folder, "key", ".lock").exists()


def test_a_save_on_another_thread_leaves_the_room_to_the_holder(store: EncryptedFileStore, folder: Path) -> None:
    room = place(folder, "key", ".next")
    with take(store, "key"):
        login = threading.Thread(target=put, args=(store, "key", b"a login's claim"))
        login.start()
        login.join()
        assert room.exists()
        put(store, "key", b"renewed", "r2", "r1")
        assert not room.exists()


def test_a_holder_that_has_not_said_who_it_is_is_held_all_the_same(store: EncryptedFileStore, folder: Path) -> None:
    with take(store, "key"):
        for note in (b"", b"{"):
            place(folder, "key", ".holder").write_bytes(note)
            assert store.try_lock("key") == Held("another process, which has yet to say which")


# Leftovers and kills.


def test_what_dead_processes_left_is_removed(store: EncryptedFileStore, folder: Path) -> None:
    put(store, "key", b"value")
    for path in (place(folder, "key", ".tmp"), place(folder, "key", ".next"), folder / "store.tmp"):
        path.write_bytes(b"half")
    assert EncryptedFileStore(folder).load("key") == Stored(b"value", "r1")
    assert leftovers(folder) == []


def test_what_is_in_use_is_not_removed(store: EncryptedFileStore, folder: Path) -> None:
    put(store, "key", b"value")
    being_written = place(folder, "key", ".tmp")
    with take(store, "key"), FileLock(place(folder, "key", ".guard")):
        being_written.write_bytes(b"half")
        EncryptedFileStore(folder).load("key")
        assert sorted(leftovers(folder)) == sorted([being_written.name, place(folder, "key", ".next").name])


WAYS: dict[str, list[Step]] = {"save": [SAVE], "save-under-the-lock": [LOCK, SAVE, ("unlock", {"key": "key"})]}


@pytest.mark.parametrize("steps", WAYS.values(), ids=WAYS)
def test_fn17_a_kill_at_any_call_of_a_write_leaves_the_old_or_the_new(
    folder: Path, recipe: Recipe, start: Start, steps: list[Step]
) -> None:
    store, peer = EncryptedFileStore(folder), start(recipe)
    found: list[Stored | None] = []
    store.load("key")
    peer.ask("load", key="key")
    put(store, "key", b"old", "old")
    while peer.ask("die_at", call=len(found), steps=steps):
        found.append(EncryptedFileStore(folder).load("key"))
        assert leftovers(folder) == []
        with take(store, "key"):
            there = found[-1]
            assert there is not None
            put(store, "key", b"old", "old", there.revision)
    first_new = found.index(Stored(b"new", "new"))
    assert found == [Stored(b"old", "old")] * first_new + [Stored(b"new", "new")] * (len(found) - first_new)
    assert 10 < first_new < len(found) - 3, "there were calls before the rename and after it"


def is_under_way(folder: Path) -> bool:
    """Whether a rotation is."""
    return bool(json.loads((folder / "store.json").read_bytes())["retiring"])


def test_a_kill_at_any_call_of_a_rotation_leaves_every_record_to_everybody(
    folder: Path, recipe: Recipe, start: Start
) -> None:
    running, peer = EncryptedFileStore(folder), start(recipe)
    for key in ("one", "two"):
        put(running, key, key.encode())
    peer.ask("keys")
    calls = unfinished = 0
    while peer.ask("die_at", call=calls, steps=[("rekey", {})]):
        calls += 1
        unfinished += is_under_way(folder)
        for store in (running, EncryptedFileStore(folder)):
            assert (store.load("one"), store.load("two")) == (Stored(b"one", "r1"), Stored(b"two", "r1"))
        assert not is_under_way(folder), "whoever opens it goes on"
        assert leftovers(folder) == []
    assert 30 < unfinished < calls


# Kills at random.


def end(peer: Peer, child: int) -> list[int]:
    """Kill a peer's child that does the same over and over. Returns what it had answered and nobody heard."""
    os.kill(child, signal.SIGKILL)
    return [said for kind, said in iter(peer.line, ("answer", "child ended")) if kind == "done"]


def check(folder: Path, acknowledged: int) -> None:
    """What was acknowledged is there, or the save after it; and nothing is in the way of the next one."""
    store = EncryptedFileStore(folder)
    stored = store.load("key")
    assert stored is not None
    number = int(stored.revision)
    assert number in {acknowledged, acknowledged + 1}
    assert stored.value == counted(number, SIZES[number % len(SIZES)])
    assert leftovers(folder) == []
    with take(store, "key"):
        pass


@pytest.mark.parametrize("locked", [False, True], ids=["save", "save-under-the-lock"])
def test_fn17_kills_at_random_lose_nothing(folder: Path, recipe: Recipe, start: Start, locked: bool) -> None:
    peer, chance = start(recipe), random.Random(KILLS)
    for _ in range(KILLS // 2):
        peer.tell("churn", what="save_next", arguments={"key": "key", "sizes": SIZES, "locked": locked})
        child = peer.hear("child")
        heard = [peer.hear("done") for _ in range(chance.randrange(1, 4))]
        for _ in range(chance.randrange(20_000)):
            pass  # up to a millisecond, the time of a save
        heard += end(peer, child)
        check(folder, heard[-1])


def test_kills_at_random_of_a_rotation_and_of_who_saves_meanwhile_lose_nothing(
    folder: Path, recipe: Recipe, start: Start
) -> None:
    saving, rekeying, chance = start(recipe), start(recipe), random.Random(KILLS)
    for number in range(20):
        put(EncryptedFileStore(folder), f"other {number}", b"value")
    for _ in range(KILLS // 4):
        saving.tell("churn", what="save_next", arguments={"key": "key", "sizes": SIZES, "locked": False})
        rekeying.tell("churn", what="rekey", arguments={})
        saver, rekeyer = saving.hear("child"), rekeying.hear("child")
        heard = [saving.hear("done") for _ in range(chance.randrange(1, 20))]
        end(rekeying, rekeyer)
        heard += end(saving, saver)
        check(folder, heard[-1])
        store = EncryptedFileStore(folder)
        assert {store.load(f"other {number}") for number in range(20)} == {Stored(b"value", "r1")}
