"""Where a store lies: folders that cannot be, keys that others may read, and the notes beside the locks."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from mcp_oauth.store import locks
from mcp_oauth.store.base import Held, Lease, Stored, StoreError, UnsafePlaceError
from mcp_oauth.store.choose import AutoStore
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from mcp_oauth.store.keyring import KeyringStore
from tests.store.choosing import nothing_configured
from tests.store.files import put, take
from tests.store.keyrings import Simulated

# Folders.


STORES: dict[str, Callable[[str], object]] = {
    "file": EncryptedFileStore,
    "auto": lambda folder: AutoStore(token_dir=folder).load("key"),
    "keyring": lambda folder: KeyringStore(backend=Simulated(), lock_folder=folder).load("key"),
}


@pytest.mark.parametrize("use", STORES.values(), ids=STORES)
@pytest.mark.parametrize("folder", ["~nobody-99/x", "a\0b"], ids=["nobodys-home", "NUL"])
def test_a_folder_that_cannot_be_is_a_store_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, use: Callable[[str], object]
) -> None:
    monkeypatch.chdir(tmp_path)
    with nothing_configured(tmp_path, monkeypatch):
        monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.null.Keyring")
        with pytest.raises(StoreError, match=r"names no folder .*; give its path in full"):
            use(folder)
    assert list(tmp_path.iterdir()) == []


def test_a_drive_that_is_not_there_is_a_store_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, where what is above a missing drive is that drive."""

    def is_dir(self: Path) -> bool:
        return False

    def mkdir(self: Path, mode: int) -> None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))

    monkeypatch.setattr(Path, "is_dir", is_dir)
    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(StoreError, match=r"^/: No such file or directory; see that /a/b is on a disk"):
        EncryptedFileStore("/a/b").load("key")


# Keys that others may read.


OPEN_WAYS = [
    # the folder, the file, whether others may read it
    pytest.param(0o755, 0o644, True, id="all"),
    pytest.param(0o750, 0o640, True, id="group"),
    pytest.param(0o701, 0o604, True, id="others"),
    pytest.param(0o700, 0o644, False, id="not-in-the-folder"),
    pytest.param(0o701, 0o640, False, id="group-not-in-the-folder"),
    pytest.param(0o755, 0o600, False, id="not-the-file"),
]


@pytest.mark.parametrize(("folder_mode", "mode", "refused"), OPEN_WAYS)
def test_a_key_without_password_that_others_may_read_is_refused(
    folder: Path, folder_mode: int, mode: int, refused: bool
) -> None:
    put(EncryptedFileStore(folder), "key", b"value")
    header = folder / "store.json"
    header.chmod(mode)
    folder.chmod(folder_mode)
    cure = f"others may read {header}, .*; run: chmod 600 {header}, .*: mcp-oauth store rekey"
    with pytest.raises(UnsafePlaceError, match=cure) if refused else nullcontext():
        EncryptedFileStore(folder).load("key")
    header.chmod(0o600)
    assert EncryptedFileStore(folder).load("key") == Stored(b"value", "r1")


def test_a_key_under_a_password_may_be_read_by_others(folder: Path) -> None:
    put(EncryptedFileStore(folder, password="right"), "key", b"value")
    (folder / "store.json").chmod(0o644)
    folder.chmod(0o755)
    assert EncryptedFileStore(folder, password="right").load("key") == Stored(b"value", "r1")


# Notes of who has a lock.


LOCKING: dict[str, Callable[[Path], EncryptedFileStore | KeyringStore]] = {
    "file": EncryptedFileStore,
    "keyring": lambda folder: KeyringStore(backend=Simulated(), lock_folder=folder),
}


@pytest.mark.parametrize("make", LOCKING.values(), ids=LOCKING)
def test_a_note_in_the_way_of_a_reader_is_no_matter(
    folder: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], EncryptedFileStore | KeyringStore]
) -> None:
    """On Windows a file cannot be replaced while somebody reads it."""
    create, store = locks.create, make(folder)

    def being_read(path: Path) -> int:
        if path.suffix == ".holder":
            raise PermissionError(errno.EACCES, "The process cannot access the file", str(path))
        return create(path)

    monkeypatch.setattr(locks, "create", being_read)
    lease = store.try_lock("key")
    assert not isinstance(lease, Held)
    assert store.try_lock("key") == Held("another process, which has yet to say which")
    with lease:
        pass
    again: Lease | Held = store.try_lock("key")
    assert not isinstance(again, Held)
    again.__exit__(None, None, None)


@pytest.mark.parametrize("make", LOCKING.values(), ids=LOCKING)
@pytest.mark.parametrize(
    "note",
    [b"", b"{", b'{"pid": 1}', b"\xff", b'{"pid": 1, "host": "\xff", "since": ""}', b"[" * 10_000],
    ids=["empty", "cut-off", "half", "no-json", "no-text", "deep"],
)
def test_rules_4_7_a_note_that_says_nothing_is_no_matter(
    folder: Path, make: Callable[[Path], EncryptedFileStore | KeyringStore], note: bytes
) -> None:
    store = make(folder)
    with take(store, "key"):
        (place,) = folder.rglob("*.holder")
    place.write_bytes(note)
    with take(store, "key") as lease:
        assert lease.left_by == ""
    assert not place.exists()


def test_rules_4_7_a_successor_in_the_way_is_a_matter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, create = EncryptedFileStore(folder), locks.create

    def full(path: Path) -> int:
        if path.suffix in {".holder", ".next"}:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return create(path)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(locks, "create", full)
        with pytest.raises(StoreError, match="no room to write"):
            store.try_lock("key")
    with take(store, "key"):
        pass
