"""What is particular to the keyring: on a real gnome-keyring, and on simulated keyrings of other kinds.

What it shares with the other stores is in `test_contract`.
"""

from __future__ import annotations

import base64
import gc
import os
import random
import re
import signal
import stat
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from copy import copy
from pathlib import Path
from typing import Any
from uuid import uuid4

import keyring
import pytest
from keyring.backend import KeyringBackend
from keyring.backends import chainer, fail, null

from mcp_oauth.store import locks, sealing
from mcp_oauth.store.base import (
    DamagedError,
    Held,
    NewerFormatError,
    NotWritableError,
    Saved,
    StoreBusyError,
    Stored,
    StoreError,
    StoreFullError,
    UnavailableError,
    UnsafePlaceError,
)
from mcp_oauth.store.keyring import KeyringStore, default_lock_folder
from tests.servers.secret_service import SecretService, serving
from tests.store import keyrings
from tests.store.keyrings import Calls, Died, Simulated
from tests.store.peer import Peer, Recipe, counted

Start = Callable[..., Peer]

SLOT = sealing.slot_of("key").hex()
BIG = os.urandom(200_000)
CALLS: dict[str, Callable[[KeyringStore], object]] = {
    "load": lambda store: store.load("key"),
    "save": lambda store: store.save("key", b"new", revision="new", expected="old"),
    "keys": lambda store: store.keys(),
    "try_lock": lambda store: store.try_lock("key"),
    "probe": lambda store: store.probe(),
}
WRITING = {name: CALLS[name] for name in ("save", "try_lock", "probe")}


def put(store: KeyringStore, key: str, value: bytes, revision: str = "r1", expected: str | None = None) -> None:
    assert store.save(key, value, revision=revision, expected=expected) == Saved(durable=True)


def unlock(store: KeyringStore) -> None:
    lease = store.try_lock("key")
    assert not isinstance(lease, Held)
    lease.__exit__(None, None, None)


# The real one.


@pytest.fixture
def service() -> str:
    return f"mcp-oauth-test-{uuid4().hex}"


@pytest.fixture
def store(session_bus: None, service: str, tmp_path: Path) -> KeyringStore:
    return KeyringStore(service, lock_folder=tmp_path / "locks")


def shelved(service: str, item: str) -> str:
    there = keyring.get_password(service, item)
    assert there is not None
    return there


def test_it_says_of_which_kind_it_is(store: KeyringStore) -> None:
    assert store.backend_kind() == "secretservice"


def test_what_lies_in_it(store: KeyringStore, service: str, secret_service_bus: SecretService) -> None:
    store.probe()
    put(store, "key", b"value")
    put(store, "key", b"other", "r2", "r1")
    unlock(store)
    items = secret_service_bus.items(service)
    assert set(items) == {SLOT, "index"}, "one item for a record (FN 15), the index, and nothing else"


def test_a_probe_leaves_nothing(store: KeyringStore, service: str, secret_service_bus: SecretService) -> None:
    store.probe()
    assert secret_service_bus.items(service) == {}


def test_services_share_nothing(store: KeyringStore, service: str, tmp_path: Path) -> None:
    other = KeyringStore(f"{service}-other", lock_folder=tmp_path / "locks")
    put(store, "key", b"value")
    assert other.load("key") is None
    assert other.keys() == ()
    with_lock = store.try_lock("key")
    assert not isinstance(with_lock, Held)
    with with_lock:
        unlock(other)


@pytest.fixture
def own_service(monkeypatch: pytest.MonkeyPatch, session_bus: None) -> Any:
    """A gnome-keyring of the test's own, in place of the common one."""
    with serving() as own:
        for name, value in own.environment.items():
            monkeypatch.setenv(name, value)
        yield own


# The library leaves its connection open where it finds the keyring locked.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("call", [pytest.param(call, id=f"FN14-{name}") for name, call in CALLS.items()])
def test_a_locked_keyring_says_so(own_service: SecretService, store: KeyringStore, call: Any) -> None:
    put(store, "key", b"value", "old")
    own_service.lock()
    with pytest.raises(UnavailableError, match=r"SecretService.Keyring is locked .*: unlock it, or use the encrypted"):
        call(store)
    own_service.unlock()
    assert store.load("key") == Stored(b"value", "old")
    unlock(store)
    gc.collect()  # what the library left open


@pytest.mark.parametrize("call", [pytest.param(call, id=f"FN14-{name}") for name, call in CALLS.items()])
def test_a_hanging_keyring_is_given_up(
    own_service: SecretService, service: str, tmp_path: Path, call: Callable[[KeyringStore], object]
) -> None:
    store = KeyringStore(service, lock_folder=tmp_path / "locks", seconds=0.6)
    put(store, "key", b"value", "old")
    with own_service.hanging():
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(UnavailableError, match=r"not answered for 0.6 seconds: it hangs, or waits for a"):
                call(store)
        assert time.monotonic() - began < 0.5, "nobody waits again for what hangs already"
    patient = KeyringStore(service, lock_folder=tmp_path / "locks")
    assert patient.load("key") == Stored(b"value", "old")
    unlock(patient)


def test_fn14_a_hanging_keyring_keeps_no_process_from_ending(
    own_service: SecretService, service: str, tmp_path: Path, start: Start
) -> None:
    arguments = {"service": service, "lock_folder": str(tmp_path / "locks"), "seconds": 2.0}
    peer = start(Recipe("mcp_oauth.store.keyring:KeyringStore", arguments))
    peer.ask("keys")
    with own_service.hanging():
        with pytest.raises(UnavailableError):
            peer.ask("load", key="key")
        assert peer.process.stdin is not None
        peer.process.stdin.close()
        assert peer.process.wait(10) == 0


def test_a_child_forked_while_the_keyring_hangs_waits_for_itself(
    own_service: SecretService, service: str, tmp_path: Path, start: Start
) -> None:
    arguments = {"service": service, "lock_folder": str(tmp_path / "locks"), "seconds": 2.0}
    peer = start(Recipe("mcp_oauth.store.keyring:KeyringStore", arguments))
    with own_service.hanging():
        peer.tell("load", key="key")
        with pytest.raises(UnavailableError):
            peer.hear()
        peer.tell("in_child", what="load", arguments={"key": "key"})
        with pytest.raises(UnavailableError):
            peer.hear()
        assert peer.hear() == "child ended"
    assert peer.in_child("keys") == []


def test_fn14_no_bus_is_no_keyring(recipe_without_bus: Recipe, start: Start) -> None:
    peer = start(recipe_without_bus)
    for what in ("load", "lock"):
        with pytest.raises(
            UnavailableError, match=r"no keyring can be reached here: start one in this session, or use"
        ):
            peer.ask(what, key="key")


@pytest.fixture
def recipe_without_bus(monkeypatch: pytest.MonkeyPatch, service: str, tmp_path: Path) -> Recipe:
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    arguments = {"service": service, "lock_folder": str(tmp_path / "locks")}
    return Recipe("mcp_oauth.store.keyring:KeyringStore", arguments)


def test_a_bus_that_has_gone_is_no_keyring(
    store: KeyringStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put(store, "key", b"value")
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", f"unix:path={tmp_path / 'none'}")
    with pytest.raises(
        UnavailableError, match=f"the item {SLOT} of .* cannot be reached .*: see that the keyring runs"
    ):
        store.load("key")


def test_fn17_kills_at_random_lose_nothing(
    service: str, tmp_path: Path, store: KeyringStore, start: Start, secret_service_bus: SecretService
) -> None:
    arguments = {"service": service, "lock_folder": str(tmp_path / "locks")}
    peer, chance, sizes = start(Recipe("mcp_oauth.store.keyring:KeyringStore", arguments)), random.Random(1), [10, 3000]
    peer.ask("load", key="key")
    for _ in range(12):
        step = {"key": "key", "sizes": sizes, "locked": bool(chance.randrange(2))}
        peer.tell("churn", what="save_next", arguments=step)
        child = peer.hear("child")
        heard = [peer.hear("done")]
        threading.Event().wait(chance.random() * 0.08)  # up to the time of a save
        os.kill(child, signal.SIGKILL)
        heard += [said for kind, said in iter(peer.line, ("answer", "child ended")) if kind == "done"]
        stored = store.load("key")
        assert stored is not None
        assert int(stored.revision) in {heard[-1], heard[-1] + 1}, "neither what was acknowledged nor the next"
        assert stored.value == counted(int(stored.revision), sizes[int(stored.revision) % 2])
        unlock(store)
    stored = store.load("key")
    put(store, "key", b"the end", "end", stored and stored.revision)
    assert set(secret_service_bus.items(service)) == {SLOT, "index"}


# What is no record.


def cut(there: str) -> str:
    return there[:-100]


def flipped(there: str) -> str:
    data = bytearray(base64.b64decode(there))
    data[-1] ^= 1
    return base64.b64encode(data).decode()


DAMAGE: dict[str, tuple[Callable[[str], str], str]] = {
    "cut-short": (cut, "is cut short"),
    "cut-to-nothing": (lambda there: "", "is cut short"),
    "cut-within-four": (lambda there: there[:-1], "is cut short"),
    "bit-flipped": (flipped, "was altered"),
    "foreign": (lambda there: "hunter2", "is no record of mcp_oauth"),
    "foreign-base64": (lambda there: base64.b64encode(bytes(200)).decode(), "is no record of mcp_oauth"),
    "chunks-that-are-not-there": (lambda there: "mcp-oauth chunks 0123456789abcdef 2", "is no record of mcp_oauth"),
}


@pytest.mark.parametrize(("damage", "told"), [pytest.param(*case, id=name) for name, case in DAMAGE.items()])
@pytest.mark.parametrize("name", ["load", "save", "keys"])
def test_what_is_no_record_is_told_and_moved_aside(
    store: KeyringStore, service: str, damage: Callable[[str], str], told: str, name: str
) -> None:
    put(store, "key", b"value", "old")
    damaged = damage(shelved(service, SLOT))
    keyring.set_password(service, SLOT, damaged)
    with pytest.raises(
        DamagedError, match=f"^the item {SLOT} of {service} in .* {told}; it was moved to the item"
    ) as no:
        CALLS[name](store)
    aside = str(no.value).split("moved to the item ")[1].split(":")[0]
    assert shelved(service, aside) == damaged
    assert store.load("key") is None
    put(store, "key", b"again")
    assert store.keys() == ("key",)


def test_fn16_a_record_moved_to_another_name_is_told(store: KeyringStore, service: str) -> None:
    put(store, "key", b"value")
    put(store, "other", b"other")
    keyring.set_password(service, SLOT, shelved(service, sealing.slot_of("other").hex()))
    with pytest.raises(DamagedError, match=f"{SLOT} .* is another key's record, moved here; it was moved to the item"):
        store.load("key")
    assert store.load("other") == Stored(b"other", "r1")


def test_a_record_of_another_service_is_told(store: KeyringStore, service: str, tmp_path: Path) -> None:
    other = KeyringStore(f"{service}-other", lock_folder=tmp_path / "locks")
    put(other, "key", b"other")
    keyring.set_password(service, SLOT, shelved(f"{service}-other", SLOT))
    with pytest.raises(DamagedError, match="was sealed by another store"):
        store.load("key")


def test_a_record_of_a_later_release_is_left_as_it_is(store: KeyringStore, service: str) -> None:
    put(store, "key", b"value", "old")
    later = bytearray(base64.b64decode(shelved(service, SLOT)))
    later[len(sealing.MAGIC)] += 1
    keyring.set_password(service, SLOT, base64.b64encode(later).decode())
    for _ in range(2):
        for name in ("load", "save", "keys"):
            with pytest.raises(NewerFormatError, match=f"the item {SLOT} of {service} in .* use a newer mcp_oauth"):
                CALLS[name](store)


@pytest.mark.parametrize("name", ["load", "save"])
def test_what_is_no_text_is_left_and_its_removal_told(
    store: KeyringStore, service: str, secret_service_bus: SecretService, name: str
) -> None:
    secret_service_bus.put(service, SLOT, b"\xff\xfe\xfd")
    with pytest.raises(DamagedError, match=rf"{SLOT} .* is no text; .*: python -m keyring -b .* del {service} {SLOT}"):
        CALLS[name](store)
    assert secret_service_bus.items(service)[SLOT] == b"\xff\xfe\xfd"


def test_an_index_entry_without_a_record_is_dropped(store: KeyringStore, service: str) -> None:
    put(store, "key", b"value")
    put(store, "other", b"other")
    before = shelved(service, "index")
    keyring.delete_password(service, SLOT)
    assert store.keys() == ("other",)
    assert len(shelved(service, "index")) < len(before)
    put(store, "key", b"value")
    assert sorted(store.keys()) == ["key", "other"]


@pytest.mark.parametrize("name", ["save", "keys"])
def test_a_damaged_index_is_told_and_grows_again(store: KeyringStore, service: str, name: str) -> None:
    put(store, "key", b"value", "old")
    keyring.set_password(service, "index", "hunter2")
    with pytest.raises(DamagedError, match=r"the item index of .* is no record of mcp_oauth; it was moved to the item"):
        CALLS[name](store)
    assert store.load("key") == Stored(b"value", "old")
    assert store.keys() == ()
    put(store, "key", b"value", "new", "old")
    assert store.keys() == ("key",)


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


def simulation(backend: KeyringBackend, folder: Path, seconds: float = 10.0) -> KeyringStore:
    return KeyringStore(backend=backend, lock_folder=folder, seconds=seconds)


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


# Which keyring.


ALT = type("EncryptedKeyring", (Simulated,), {"__module__": "keyrings.alt.file"})

UNFIT = {
    "null": (
        null.Keyring,
        UnavailableError,
        r"is switched off \(keyring.backends.null.Keyring\): switch it on, or use",
    ),
    "plaintext": (keyrings.PlaintextKeyring, UnsafePlaceError, "keeps secrets in files that it protects badly or not"),
    "of-keyrings.alt": (
        ALT,
        UnsafePlaceError,
        "keyrings.alt.file.EncryptedKeyring keeps secrets in files that it prot",
    ),
}


@pytest.mark.parametrize(("made", "error", "told"), UNFIT.values(), ids=[f"FN14-{name}" for name in UNFIT])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_keyring_that_is_none_is_refused(
    tmp_path: Path, made: type[KeyringBackend], error: type[StoreError], told: str, call: Any
) -> None:
    with pytest.raises(error, match=told):
        call(simulation(made(), tmp_path))


@pytest.mark.parametrize("made", [chainer.ChainerBackend, fail.Keyring])
def test_where_the_library_has_not_chosen_the_best_one_is_taken(
    session_bus: None, service: str, tmp_path: Path, made: type[KeyringBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Preferred(keyrings.PlaintextKeyring):
        priority = 9.0

    store = KeyringStore(service, backend=made(), lock_folder=tmp_path)
    assert store.backend_kind() == "secretservice"
    assert Preferred.viable


def test_fn14_a_kind_that_was_asked_for_is_honoured_or_refused(session_bus: None, service: str, tmp_path: Path) -> None:
    store = KeyringStore(service, backend="secretservice", lock_folder=tmp_path)
    put(store, "key", b"value")
    assert store.identity == f"keyring:{service}@secretservice"
    for kind in ("windows", "keychain", "kwallet"):
        with pytest.raises(UnavailableError, match=f"no keyring of the kind {kind} can be reached here: start one in"):
            KeyringStore(service, backend=kind, lock_folder=tmp_path).load("key")


def test_without_the_package_the_cure_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(UnavailableError, match=r'needs the package keyring: pip install "mcp-oauth-sansio\[keyring\]"'):
        KeyringStore(lock_folder=tmp_path).load("key")


def test_a_configured_keyring_that_does_not_exist_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("keyring.core._keyring_backend", None)
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "no.such.Keyring")
    with pytest.raises(
        UnavailableError, match=r"no keyring can be used \(ModuleNotFoundError: .*: correct PYTHON_KEYR"
    ):
        KeyringStore(lock_folder=tmp_path).load("key")


def test_stores_of_different_backends_are_different(tmp_path: Path) -> None:
    one, other = Simulated(), Simulated()
    assert simulation(one, tmp_path).identity == simulation(one, tmp_path).identity
    assert simulation(one, tmp_path).identity != simulation(other, tmp_path).identity
    assert KeyringStore().identity == "keyring:mcp-oauth"


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
