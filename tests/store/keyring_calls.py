"""What the tests of the keyring store share: short ways to use a store, and one on a simulated keyring."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from keyring.backend import KeyringBackend

from mcp_oauth.store import sealing
from mcp_oauth.store.base import Held, Saved
from mcp_oauth.store.keyring import KeyringStore

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


def simulation(backend: KeyringBackend, folder: Path, seconds: float = 10.0) -> KeyringStore:
    return KeyringStore(backend=backend, lock_folder=folder, seconds=seconds)
