"""What the tests of the encrypted file store share: short ways to use one and to look into its folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from mcp_oauth.store import sealing
from mcp_oauth.store.base import Held, Lease, Saved, Store
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from tests.store.peer import Step, text

FILE = "mcp_oauth.store.encrypted_file:EncryptedFileStore"
NOBODY = 65534
ROOT = os.geteuid() == 0

LOCK: Step = ("lock", {"key": "key"})
SAVE: Step = ("save", {"key": "key", "value": text(b"new"), "revision": "new", "expected": "old"})

CALLS: dict[str, Callable[[EncryptedFileStore], object]] = {
    "load": lambda store: store.load("key"),
    "save": lambda store: store.save("key", b"other", revision="r2", expected="r1"),
    "keys": lambda store: store.keys(),
    "try_lock": lambda store: store.try_lock("key"),
    "change_password": lambda store: store.change_password("mine now"),
    "rekey": lambda store: store.rekey(),
}


def put(store: EncryptedFileStore, key: str, value: bytes, revision: str = "r1", expected: str | None = None) -> None:
    assert store.save(key, value, revision=revision, expected=expected) == Saved(durable=True)


def take(store: Store, key: str) -> Lease:
    lease = store.try_lock(key)
    assert not isinstance(lease, Held), lease
    return lease


def place(folder: Path, key: str, suffix: str = ".enc") -> Path:
    return folder / (sealing.slot_of(key).hex() + suffix)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix not in {".guard", ".lock"}}


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.suffix in {".tmp", ".next"}]
