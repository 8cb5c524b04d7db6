"""How many chunks a record in a keyring may have, in a keyring of small items."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcp_oauth.store import keyring, sealing
from mcp_oauth.store.base import DamagedError, Saved, Stored, StoreFullError
from mcp_oauth.store.keyring import KeyringStore
from tests.store.keyrings import Simulated

SLOT = sealing.slot_of("key").hex()
PLANTED = f"mcp-oauth chunks {'0' * 16} 200000"


class Counting(Simulated):
    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def get_password(self, service: str, username: str) -> str | None:
        self.reads += 1
        return super().get_password(service, username)

    def all_calls(self) -> int:
        return self.reads + self.calls.changes


@pytest.fixture
def backend() -> Counting:
    return Counting()


@pytest.fixture
def store(backend: Counting, tmp_path: Path) -> KeyringStore:
    return KeyringStore(backend=backend, lock_folder=tmp_path / "locks")


def test_a_text_that_speaks_of_more_is_no_record(store: KeyringStore, backend: Counting) -> None:
    backend.items[SLOT] = PLANTED
    with pytest.raises(DamagedError, match="is no record of mcp_oauth; it was moved to the item"):
        store.load("key")
    assert backend.all_calls() < 20
    assert PLANTED in backend.items.values()


@pytest.mark.parametrize("note", [f"{PLANTED}\n{{there}}", f"a record\n{PLANTED}"], ids=["before", "after"])
def test_a_note_that_speaks_of_more_is_settled_at_once(store: KeyringStore, backend: Counting, note: str) -> None:
    store.save("key", b"value", revision="r1", expected=None)
    backend.items[f"{SLOT}.next"] = note.format(there=backend.items[SLOT])
    backend.reads = backend.calls.changes = 0
    assert store.save("key", b"next", revision="r2", expected="r1") == Saved(durable=True)
    assert backend.all_calls() < 40
    assert store.load("key") == Stored(b"next", "r2")


def test_a_value_that_needs_more_is_not_begun(
    store: KeyringStore, backend: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyring, "MOST_CHUNKS", 10)
    assert store.save("key", bytes(8_000), revision="r1", expected=None) == Saved(durable=True)
    before = {item for item in backend.items if item.startswith(SLOT)}
    with pytest.raises(StoreFullError, match="has no room for 9001 bytes in items of 1200 characters: save less"):
        store.save("key", bytes(9_001), revision="r2", expected="r1")
    assert store.load("key") == Stored(bytes(8_000), "r1")
    assert {item for item in backend.items if item.startswith(SLOT)} == before
