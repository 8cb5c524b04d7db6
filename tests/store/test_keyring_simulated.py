"""The keyring store on keyrings of other systems, and on such as misbehave or hang; all of them simulated."""

from __future__ import annotations

import os
import re
import stat
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from copy import copy
from pathlib import Path
from typing import Any

import pytest
from keyring.backend import KeyringBackend

from mcp_oauth.store import locks
from mcp_oauth.store.base import (
    NotWritableError,
    StoreBusyError,
    Stored,
    StoreError,
    StoreFullError,
    UnavailableError,
    UnsafePlaceError,
)
from mcp_oauth.store.keyring import KeyringStore, default_lock_folder
from tests.store import keyrings
from tests.store.keyring_calls import BIG, CALLS, SLOT, WRITING, put, simulation, unlock
from tests.store.keyrings import Calls, Died, Simulated

# Simulated systems.


@pytest.fixture(params=["windows", "keychain", "other"])
def simulated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[KeyringBackend, Any]:
    """A backend, and the simulated system behind it."""
    if request.param == "other":
        backend = Simulated()
        return backend, backend
    return keyrings.windows(monkeypatch) if request.param == "windows" else keyrings.keychain(monkeypatch)


@pytest.fixture
def again(simulated: tuple[KeyringBackend, Any], tmp_path: Path) -> Callable[[], KeyringStore]:
    """Stores as of different processes: only the system below and the folder of the locks are common to them."""
    return lambda: KeyringStore(backend=copy(simulated[0]), lock_folder=tmp_path / "locks")


def test_fn13_200_kb_fit_into_small_items(simulated: tuple[KeyringBackend, Any], again: Any) -> None:
    _, system = simulated
    put(again(), "key", BIG)
    assert again().load("key") == Stored(BIG, "r1")
    assert again().keys() == ("key",)
    put(again(), "key", b"small", "r2", "r1")
    assert again().load("key") == Stored(b"small", "r2")
    assert system.names() == {SLOT, "index"}


def test_many_keys_fit_into_small_items(again: Any) -> None:
    names = [str(number) for number in range(60)]
    for name in names:
        put(again(), name, name.encode())
    assert again().keys() == tuple(names)


def test_rules_4_17_on_windows_credentials_stay_on_their_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    backend, manager = keyrings.windows(monkeypatch)
    store = KeyringStore(backend=backend, lock_folder=tmp_path / "locks")
    put(store, "key", BIG)
    assert store.backend_kind() == "windows"
    assert {one["Persist"] for one in manager.credentials.values()} == {manager.CRED_PERSIST_LOCAL_MACHINE}
    left = getattr(backend, "persist", None)
    assert left == manager.CRED_PERSIST_ENTERPRISE, "the caller's own object is as it was"


SIZES = {"small": (b"old", b"new"), "large": (b"old" * 1500, b"new" * 1500), "shrinking": (b"old" * 1500, b"new")}


@pytest.mark.parametrize(("old", "new"), SIZES.values(), ids=[f"FN13-{name}" for name in SIZES])
def test_a_failure_at_any_write_leaves_the_old_value(
    simulated: tuple[KeyringBackend, Any], again: Any, old: bytes, new: bytes
) -> None:
    calls: Calls = simulated[1].calls
    put(again(), "key", old, "old")
    number, failed = 0, 0
    while True:
        calls.fail_at(number, OSError("out of order"))
        try:
            answer: object = again().save("key", new, revision="new", expected="old")
        except StoreError:
            answer = None
        reached = calls.changes > number
        calls.go_well()
        there = again().load("key")
        assert there == (Stored(new, "new") if answer else Stored(old, "old"))
        failed += answer is None
        put(again(), "key", b"small", "in between", there.revision)
        assert simulated[1].names() == {SLOT, "index"}, "nothing is left of what failed"
        put(again(), "key", old, "old", "in between")
        if not reached:
            break
        number += 1
    assert failed >= 2


@pytest.mark.parametrize(("old", "new"), SIZES.values(), ids=[f"FN13-{name}" for name in SIZES])
def test_a_death_at_any_write_leaves_the_old_or_the_new_value(
    simulated: tuple[KeyringBackend, Any], again: Any, old: bytes, new: bytes
) -> None:
    calls: Calls = simulated[1].calls
    put(again(), "key", old, "old")
    found: list[Stored] = []
    while True:
        calls.die_at(len(found))
        try:
            again().save("key", new, revision="new", expected="old")
            break
        except Died:
            calls.go_well()
        found.append(again().load("key"))
        put(again(), "key", b"small", "in between", found[-1].revision)
        assert simulated[1].names() == {SLOT, "index"}, "nothing is left of what died"
        put(again(), "key", old, "old", "in between")
    first_new = found.index(Stored(new, "new"))
    assert found == [Stored(old, "old")] * first_new + [Stored(new, "new")] * (len(found) - first_new)
    assert 1 <= first_new < len(found), "there were writes before the record and after it"


def test_a_reader_who_comes_while_macos_replaces_waits_for_the_new_value(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    backend, simulated = keyrings.keychain(monkeypatch)
    writer, reader = (KeyringStore(backend=copy(backend), lock_folder=tmp_path / "locks") for _ in range(2))
    put(writer, "key", b"old", "old")
    found: list[Future[Stored | None]] = []
    with ThreadPoolExecutor(1) as threads:

        def read_in_between(item: str) -> None:
            if item == SLOT:
                found.append(threads.submit(reader.load, "key"))
                assert wait(found, 0.1).not_done, "it finds nothing, and does not believe it"

        simulated.in_between = read_in_between
        put(writer, "key", b"new", "new", "old")
        assert found[0].result() == Stored(b"new", "new")


def test_a_reader_of_chunks_finds_the_old_value_or_the_new_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    backend, manager = keyrings.windows(monkeypatch)
    writer, reader = (KeyringStore(backend=copy(backend), lock_folder=tmp_path / "locks") for _ in range(2))
    values = {"old": b"old" * 1500, "new": b"new" * 1500}
    put(writer, "key", values["old"], "old")
    found: list[str] = []

    def read(number: int) -> None:
        stored = reader.load("key")
        assert stored is not None
        assert stored.value == values[stored.revision]
        found.append(stored.revision)

    manager.calls.wrong = read
    put(writer, "key", values["new"], "new", "old")
    assert found == sorted(found, reverse=True), "once it is new, it stays new"
    assert set(found) == {"old", "new"}


def test_processes_that_write_different_keys_lose_nothing(simulated: tuple[KeyringBackend, Any], again: Any) -> None:
    stores = [again() for _ in range(8)]

    def write(number: int) -> None:
        for turn in range(5):
            put(stores[number], f"key {number}", b"%d" % turn, f"{turn}", f"{turn - 1}" if turn else None)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(8)))
    assert sorted(again().keys()) == [f"key {number}" for number in range(8)]
    assert {again().load(f"key {number}") for number in range(8)} == {Stored(b"4", "4")}


# Simulated backends that misbehave.


def with_items(made: Simulated, tmp_path: Path) -> Simulated:
    """The same items, behind another backend."""
    good = Simulated()
    put(simulation(good, tmp_path), "key", b"value", "old")
    made.items = good.items
    return made


REFUSING = {
    "read-only": (
        keyrings.ReadOnly,
        NotWritableError,
        r"cannot be changed \(PasswordSetError: a read-only keyring\): al",
    ),
    "forgetful": (
        keyrings.Forgetful,
        NotWritableError,
        r"does not keep what is written to it: use another one, or use",
    ),
}


@pytest.mark.parametrize(("made", "error", "told"), REFUSING.values(), ids=[f"FN14-{name}" for name in REFUSING])
@pytest.mark.parametrize("call", WRITING.values(), ids=WRITING)
def test_a_keyring_that_takes_nothing_is_told_before_a_token_is_spent(
    tmp_path: Path, made: type[Simulated], error: type[StoreError], told: str, call: Callable[[KeyringStore], object]
) -> None:
    backend = with_items(made(), tmp_path)
    store = simulation(backend, tmp_path)
    with pytest.raises(error, match=told):
        call(store)
    assert store.load("key") == Stored(b"value", "old")
    assert store.keys() == ("key",)
    unlock(simulation(with_items(Simulated(), tmp_path), tmp_path))


@pytest.mark.parametrize("name", ["try_lock", "probe"])
def test_a_keyring_that_removes_nothing_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotWritableError, match=r"cannot be changed \(PasswordDeleteError: reason\): allow it, or use"):
        CALLS[name](simulation(keyrings.Hoarding(), tmp_path))


def test_a_keyring_that_keeps_less_than_it_was_given_is_full(tmp_path: Path) -> None:
    backend = with_items(keyrings.Truncating(), tmp_path)
    with pytest.raises(StoreFullError, match=r"keeps 100 of \d+ characters: make room in it, or use"):
        simulation(backend, tmp_path).save("key", b"new", revision="new", expected="old")
    assert simulation(with_same_items(backend), tmp_path).load("key") == Stored(b"value", "old")


def with_same_items(backend: Simulated) -> Simulated:
    good = Simulated()
    good.items = backend.items
    return good


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_keyring_that_cannot_be_reached_is_told(tmp_path: Path, call: Callable[[KeyringStore], object]) -> None:
    with pytest.raises(
        UnavailableError, match=r"cannot be reached \(OSError: no such daemon\): see that the keyring run"
    ):
        call(simulation(keyrings.Failing(), tmp_path))


def test_fn54_no_secret_is_in_an_error(tmp_path: Path) -> None:
    store = simulation(with_items(keyrings.Blabbing(), tmp_path), tmp_path)
    with pytest.raises(UnavailableError, match=r"RuntimeError: could not keep a record \.\.\.") as caught:
        store.save("new key", BIG[:1000], revision="new", expected=None)
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + repr(store)
    assert not re.search(r"[\w+/=]{65,}", told), "nothing that could be a record, nor a part of one"
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None


# Simulated hanging.


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[keyrings.Hanging]:
    backend = keyrings.Hanging()
    with_items(backend, tmp_path)
    yield backend
    backend.going_on.set()


def test_fn14_no_more_than_one_thread_hangs(hanging: keyrings.Hanging, tmp_path: Path) -> None:
    store = simulation(hanging, tmp_path, seconds=0.1)
    hanging.going_on.clear()
    before = threading.active_count()
    with ThreadPoolExecutor(5) as threads:
        errors = [threads.submit(store.load, "key").exception() for _ in range(20)]
    assert all(isinstance(error, UnavailableError) for error in errors)
    assert (hanging.entered, threading.active_count()) == (1, before + 1)
    (hung,) = (thread for thread in threading.enumerate() if thread.name == "mcp-oauth keyring")
    assert hung.daemon
    hanging.going_on.set()
    hung.join()
    assert store.load("key") == Stored(b"value", "old")


def test_a_write_that_was_given_up_goes_no_further_and_meets_no_other(
    hanging: keyrings.Hanging, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "GUARD_SECONDS", 0.2)
    store, peer = simulation(hanging, tmp_path, seconds=0.1), simulation(with_same_items(hanging), tmp_path)
    hanging.hang_at_write = True
    with pytest.raises(UnavailableError, match="not answered"):
        store.save("key", b"late", revision="late", expected="old")
    with pytest.raises(StoreBusyError):
        peer.save("key", b"new", revision="new", expected="old")
    (hung,) = (thread for thread in threading.enumerate() if thread.name == "mcp-oauth keyring")
    entered = hanging.entered
    hanging.going_on.set()
    hung.join()
    assert hanging.entered == entered, "the call that hung was its last one"
    put(peer, "key", b"new", "new", "old")
    assert store.load("key") == Stored(b"new", "new")
    assert set(hanging.items) == {SLOT, "index"}


def test_where_no_thread_can_start_it_works_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    store = simulation(Simulated(), tmp_path)
    monkeypatch.setattr(threading.Thread, "start", start)
    put(store, "key", b"value")
    assert store.load("key") == Stored(b"value", "r1")


# The folder of the locks.


def test_rules_4_16_the_locks_are_the_users_own(tmp_path: Path) -> None:
    folder, before = tmp_path / "a" / "locks", os.umask(0)
    try:
        unlock(simulation(Simulated(), folder))
    finally:
        os.umask(before)
    made = [folder.parent, folder, *folder.rglob("*")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in made if path.is_dir()} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in made if path.is_file()} == {0o600}
    folder.chmod(0o770)
    with pytest.raises(UnsafePlaceError, match=f"others may write to {folder}; run: chmod 700"):
        simulation(Simulated(), folder).try_lock("key")


def test_a_lock_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for call in (CALLS["try_lock"], CALLS["load"]):
        with pytest.raises(StoreError, match=f"{tmp_path}.*/file.*: Not a directory; see that"):
            call(simulation(Simulated(), tmp_path / "file" / "locks"))


PLACES = {
    "linux-xdg": ("linux", {"XDG_STATE_HOME": "/state"}, "/state/mcp-oauth/locks"),
    "linux-home": ("linux", {"HOME": "/home/me"}, "/home/me/.local/state/mcp-oauth/locks"),
    "linux-relative": ("linux", {"HOME": "/home/me", "XDG_STATE_HOME": "x"}, "/home/me/.local/state/mcp-oauth/locks"),
    "macos": ("darwin", {"HOME": "/Users/me"}, "/Users/me/Library/Application Support/mcp-oauth/locks"),
    "windows": ("win32", {"LOCALAPPDATA": "/local"}, "/local/mcp-oauth/locks"),
    "windows-home": ("win32", {"HOME": "/users/me"}, "/users/me/AppData/Local/mcp-oauth/locks"),
}


@pytest.mark.parametrize(("system", "variables", "folder"), PLACES.values(), ids=[f"RULES-4.16-{it}" for it in PLACES])
def test_where_the_locks_are(
    monkeypatch: pytest.MonkeyPatch, system: str, variables: dict[str, str], folder: str
) -> None:
    for name in ("XDG_STATE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", system)
    assert default_lock_folder() == Path(folder)


def test_without_a_home_there_is_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    with pytest.raises(StoreError, match="this user has no home folder; name a lock_folder for the store"):
        KeyringStore(backend=Simulated()).load("key")
