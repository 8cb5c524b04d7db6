"""What is particular to the keyring, on a real gnome-keyring. What all stores share is in `test_contract`."""

from __future__ import annotations

import base64
import gc
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import keyring
import pytest
from keyring.backend import KeyringBackend
from keyring.backends import chainer, fail, null

from mcp_oauth.store import sealing
from mcp_oauth.store.base import (
    DamagedError,
    Held,
    NewerFormatError,
    Stored,
    StoreError,
    UnavailableError,
    UnsafePlaceError,
)
from mcp_oauth.store.keyring import KeyringStore
from tests.servers.secret_service import SecretService, serving
from tests.store import keyrings
from tests.store.keyring_calls import CALLS, SLOT, put, simulation, unlock
from tests.store.keyrings import Simulated
from tests.store.peer import Peer, Recipe, counted

Start = Callable[..., Peer]


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
