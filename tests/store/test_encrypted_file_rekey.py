"""A new key for a store that is in use: at no moment is a record out of anybody's reach, and the old key goes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mcp_oauth.store import locks, sealing
from mcp_oauth.store.base import (
    DamagedError,
    NewerFormatError,
    StoreBusyError,
    Stored,
    StoreFullError,
    WrongPasswordError,
)
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from tests.store.files import FILE, contents, leftovers, place, put
from tests.store.peer import Peer, Recipe

Start = Callable[..., Peer]


@pytest.fixture
def store(folder: Path) -> EncryptedFileStore:
    return EncryptedFileStore(folder)


def key_of(folder: Path, password: str | None = None) -> sealing.StoreKey:
    return sealing.open_header((folder / "store.json").read_bytes(), None if password is None else lambda: password)


def values(store: EncryptedFileStore, *keys: str) -> list[tuple[bytes, str] | None]:
    return [store.load(key) for key in keys]


def begun(store: EncryptedFileStore) -> None:
    """As if a process had died after the first of the three steps."""
    store._change_header(lambda data: sealing.rotated_header(data, store._password))


def eventually(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.parametrize("password", [None, "right"])
def test_after_it_all_is_under_the_new_key_and_the_old_one_opens_nothing(folder: Path, password: str | None) -> None:
    rekeying, running = (EncryptedFileStore(folder, password=password) for _ in range(2))
    for store, key in ((rekeying, "one"), (running, "two")):
        put(store, key, key.encode(), f"{key} 1")
    old = key_of(folder, password)
    rekeying.rekey()
    new = key_of(folder, password)
    assert new.retiring is None
    assert {new.id, new.key}.isdisjoint({old.id, old.key})
    for key in ("one", "two"):
        with pytest.raises(DamagedError, match="under a key that this one has dropped"):
            sealing.unseal(old, sealing.slot_of(key), place(folder, key).read_bytes())
    for store in (rekeying, running, EncryptedFileStore(folder, password=password)):
        assert values(store, "one", "two") == [(b"one", "one 1"), (b"two", "two 1")]
    put(running, "one", b"next", "one 2", "one 1")
    assert rekeying.load("one") == Stored(b"next", "one 2")
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert leftovers(folder) == []


def test_the_password_stays_and_is_asked_for_once_and_paid_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    derived: list[object] = []
    derive = sealing._derive

    def ask() -> str:
        asked.append("asked")
        return "right"

    def counting(kdf: sealing.Argon2id | sealing.Pbkdf2, secret: bytes) -> bytes:
        derived.append(kdf)
        return derive(kdf, secret)

    monkeypatch.setattr(sealing, "_derive", counting)
    store = EncryptedFileStore(folder, password=ask)
    put(store, "key", b"value")
    asked.clear()
    begun(store)
    assert asked == ["asked"]
    EncryptedFileStore(folder, password="right").rekey()
    assert store.load("key") == Stored(b"value", "r1")
    assert len(derived) == 1


def test_a_password_that_a_peer_changed_meanwhile_is_not_changed_back(folder: Path) -> None:
    running, changing = (EncryptedFileStore(folder, password="old") for _ in range(2))
    put(running, "key", b"value")
    changing.change_password("new")
    before = contents(folder)
    with pytest.raises(WrongPasswordError, match="another password; nothing was changed"):
        running.rekey()
    assert contents(folder) == before
    changing.rekey()
    assert EncryptedFileStore(folder, password="new").load("key") == Stored(b"value", "r1")


def test_a_change_of_password_that_a_rotation_overtakes_does_not_bring_the_old_key_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changing, rekeying = (EncryptedFileStore(folder, password="old") for _ in range(2))
    put(changing, "key", b"value")
    new_header = sealing.new_header

    def late(*arguments: Any) -> bytes:
        monkeypatch.undo()
        header = new_header(*arguments)
        rekeying.rekey()
        return header

    monkeypatch.setattr(sealing, "new_header", late)
    changing.change_password("new")
    assert EncryptedFileStore(folder, password="new").load("key") == Stored(b"value", "r1")


@pytest.mark.parametrize("password", [None, "new"])
def test_a_password_changes_in_the_midst_of_it(folder: Path, password: str | None) -> None:
    store = EncryptedFileStore(folder, password="old")
    put(store, "key", b"value")
    begun(store)
    store.change_password(password)
    assert key_of(folder, password).retiring is not None
    assert EncryptedFileStore(folder, password=password).load("key") == Stored(b"value", "r1")
    assert key_of(folder, password).retiring is None


# Others meanwhile.


def test_in_the_midst_of_it_every_record_is_open_to_all(store: EncryptedFileStore, folder: Path) -> None:
    running = EncryptedFileStore(folder)
    for key in ("one", "two", "three"):
        put(running, key, b"value")
    old = place(folder, "three").read_bytes()
    with locks.lock(folder / "store.lock", wait=0):
        begun(store)
        for other in (store, running, EncryptedFileStore(folder)):
            assert values(other, "one", "two", "three") == [Stored(b"value", "r1")] * 3
            assert sorted(other.keys()) == ["one", "three", "two"]
        put(running, "one", b"next", "r2", "r1")
        put(EncryptedFileStore(folder), "two", b"next", "r2", "r1")
        assert key_of(folder).retiring is not None, "who has the lock is at it"
    assert values(EncryptedFileStore(folder), "one", "two") == [Stored(b"next", "r2")] * 2
    assert key_of(folder).retiring is None, "nobody had the lock, so this one went on"
    place(folder, "three").write_bytes(old)
    with pytest.raises(DamagedError, match="under a key that this one has dropped"):
        running.load("three")


def test_a_save_that_waits_for_its_turn_reads_the_header_when_it_has_it(
    store: EncryptedFileStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, "key", b"value")
    guard = locks.guard

    def late(path: Path) -> Any:
        monkeypatch.undo()
        EncryptedFileStore(folder).rekey()
        return guard(path)

    monkeypatch.setattr(locks, "guard", late)
    put(store, "key", b"next", "r2", "r1")
    assert EncryptedFileStore(folder).load("key") == Stored(b"next", "r2")


@pytest.mark.parametrize("there", [False, True], ids=["a-new-key", "a-successor"])
def test_a_save_that_had_read_the_old_header_is_waited_for(
    store: EncryptedFileStore, folder: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    saving = EncryptedFileStore(folder)
    put(store, "other", b"value")
    if there:
        put(saving, "key", b"first", "r0")
    replace = saving._replace

    def late(slot: str, suffix: str, data: bytes) -> bool:
        eventually(lambda: key_of(folder).retiring is not None)
        return replace(slot, suffix, data)

    monkeypatch.setattr(saving, "_replace", late)
    rekeying: list[threading.Thread] = []
    seal = sealing.seal

    def begin(key: sealing.StoreKey, record: sealing.Record) -> bytes:
        sealed = seal(key, record)
        if not rekeying:
            rekeying.append(threading.Thread(target=store.rekey))
            rekeying[0].start()
        return sealed

    monkeypatch.setattr(sealing, "seal", begin)
    put(saving, "key", b"value", "r1", "r0" if there else None)
    rekeying[0].join()
    assert key_of(folder).retiring is None
    for one in (saving, store, EncryptedFileStore(folder)):
        assert one.load("key") == Stored(b"value", "r1")


def test_two_at_once_are_one_after_the_other(store: EncryptedFileStore, folder: Path) -> None:
    put(store, "key", b"value")
    threads = [threading.Thread(target=EncryptedFileStore(folder).rekey) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.load("key") == Stored(b"value", "r1")
    assert key_of(folder).retiring is None


def test_a_peer_that_is_stopped_in_the_midst_of_it_is_named(
    store: EncryptedFileStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, "key", b"value")
    monkeypatch.setattr(locks, "GUARD_SECONDS", 0.02)
    with locks.lock(folder / "store.lock", wait=0):
        with pytest.raises(StoreBusyError, match=r"store\.lock"):
            store.rekey()
        begun(store)
        assert EncryptedFileStore(folder).load("key") == Stored(b"value", "r1")


# What stands in its way.


def test_what_is_damaged_is_told_to_whoever_loads_it(store: EncryptedFileStore, folder: Path) -> None:
    put(store, "good", b"value")
    put(store, "damaged", b"value")
    path = place(folder, "damaged")
    path.write_bytes(path.read_bytes()[:-1])
    store.rekey()
    assert key_of(folder).retiring is None
    assert store.load("good") == Stored(b"value", "r1")
    with pytest.raises(DamagedError, match="is cut short"):
        store.load("damaged")


def test_a_record_of_a_later_release_keeps_its_key(store: EncryptedFileStore, folder: Path) -> None:
    for key in ("newer", "other"):
        put(store, key, b"value")
    path = place(folder, "newer")
    data = path.read_bytes()
    path.write_bytes(data[:8] + b"\x02" + data[9:])
    with pytest.raises(NewerFormatError, match=path.name):
        store.rekey()
    assert EncryptedFileStore(folder).load("other") == Stored(b"value", "r1")
    assert path.read_bytes()[9:] == data[9:]
    path.write_bytes(data)
    assert EncryptedFileStore(folder).load("newer") == Stored(b"value", "r1")


def test_a_full_disk_in_the_midst_of_it_loses_nothing(store: EncryptedFileStore, folder: Path, start: Start) -> None:
    large = os.urandom(200_000)
    put(store, "large", large)
    put(store, "small", b"value")
    with pytest.raises(StoreFullError, match=str(folder)):
        start(Recipe(FILE, {"folder": str(folder)}), file_limit=16_384).ask("rekey")
    assert leftovers(folder) == []
    assert values(store, "large", "small") == [(large, "r1"), (b"value", "r1")]
    assert key_of(folder).retiring is not None
    assert values(EncryptedFileStore(folder), "large", "small") == [(large, "r1"), (b"value", "r1")]
    assert key_of(folder).retiring is None


def test_an_empty_store_has_a_new_key_too(store: EncryptedFileStore, folder: Path) -> None:
    running = EncryptedFileStore(folder)
    running.load("key")
    before = key_of(folder)
    store.rekey()
    assert key_of(folder).id != before.id
    put(running, "key", b"value")
    assert EncryptedFileStore(folder).load("key") == Stored(b"value", "r1")
