"""A `TokenManager` whose store fails, holds what it cannot read, or is used by many at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from mcp_oauth.exceptions import TokenStorageError
from mcp_oauth.sansio.errors import Reason
from mcp_oauth.store.base import Conflict, DamagedError, NewerFormatError, Saved, Store, Stored, StoreError
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from mcp_oauth.store.memory import MemoryStore
from mcp_oauth.token_manager import MOST_ROUNDS, ServerEntry, State, TokenManager
from mcp_oauth.tokens import BearerToken
from tests.api.names import NAME, OTHER, URL, Kind, by_hand, only_key, put_grant

# --- A store that fails -----------------------------------------------------------------------------------------------

CALLS: dict[str, Callable[[TokenManager], object]] = {
    "load_tokens": lambda manager: manager.load_tokens(NAME),
    "has_valid_tokens": lambda manager: manager.has_valid_tokens(NAME),
    "save_tokens": lambda manager: manager.save_tokens(NAME, by_hand()),
    "delete_tokens": lambda manager: manager.delete_tokens(NAME),
    "bind": lambda manager: manager.bind(NAME, OTHER),
    "server_url": lambda manager: manager.server_url(NAME),
    "release": lambda manager: manager.release(NAME, URL),
    "usable_tokens": lambda manager: manager.usable_tokens(NAME, URL),
    "entry": lambda manager: manager.entry(NAME),
}
CREDENTIAL_CALLS: dict[str, Callable[[TokenManager], object]] = {
    "load_credential": lambda manager: manager.load_credential("key"),
    "save_credential": lambda manager: manager.save_credential("key", BearerToken("later")),
    "delete_credential": lambda manager: manager.delete_credential("key"),
    "list_credentials": lambda manager: manager.list_credentials(),
}
ALL: dict[str, Callable[[TokenManager], object]] = {
    **CALLS,
    **CREDENTIAL_CALLS,
    "list_servers": lambda manager: manager.list_servers(),
}
UNREADABLE = {
    "newer-version": json.dumps({"type": "name-2", "revision": "r", "name": NAME, "account": ""}).encode(),
    "another-kind": json.dumps({"type": "grants-1", "revision": "r", "server_url": URL, "account": ""}).encode(),
    "wrong-type": json.dumps({"type": "name-1", "revision": "r", "name": 7, "account": ""}).encode(),
    "not-json": b"\xff\x00",
    "too-deep": b"[" * 100_000,
    "empty": b"",
}


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_cannot_be_read_is_an_error_and_is_not_overwritten(
    call: Callable[[TokenManager], object], content: bytes, store: Store
) -> None:
    manager = TokenManager(store=store)
    manager.bind(NAME, URL)
    _spoil(store, "name-", content)
    _refused(call, manager, "name-", content)


@pytest.mark.parametrize("call", CREDENTIAL_CALLS.values(), ids=CREDENTIAL_CALLS)
def test_a_credential_that_cannot_be_read_is_an_error_and_is_not_overwritten(
    call: Callable[[TokenManager], object], manager: TokenManager
) -> None:
    manager.save_credential("key", BearerToken("token"))
    _spoil(manager.token_store, "credential-", b"CANARY")
    _refused(call, manager, "credential-", b"CANARY")


@pytest.mark.parametrize("call", ["load_tokens", "delete_tokens", "entry"])
def test_a_grant_that_cannot_be_read_is_an_error_and_is_not_overwritten(call: str, manager: TokenManager) -> None:
    manager.bind(NAME, URL)
    put_grant(manager.token_store)
    _spoil(manager.token_store, "grant-", b"CANARY")
    _refused(CALLS[call], manager, "grant-", b"CANARY")


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE)
def test_one_name_that_cannot_be_read_hides_no_other_from_the_list(content: bytes, store: Store) -> None:
    manager = TokenManager(store=store)
    manager.bind(NAME, URL)
    key = only_key(store, "name-")
    _spoil(store, "name-", content)
    manager.bind("good", OTHER)
    good, bad = manager.list_servers()
    assert (good.name, good.state, good.key) == ("good", "logged out", None)
    assert bad == ServerEntry(None, None, "", "unreadable", key=key)


@pytest.mark.parametrize(
    ("saved", "state"), [("none", "unreadable"), ("expired", "unreadable"), ("alive", "valid")], ids=str
)
def test_a_grant_that_cannot_be_read_is_listed_under_its_name(saved: Kind, state: State, manager: TokenManager) -> None:
    manager.bind(NAME, URL)
    if saved != "none":
        manager.save_tokens(NAME, by_hand(saved))
    put_grant(manager.token_store)
    _spoil(manager.token_store, "grant-", b"CANARY")
    key = only_key(manager.token_store, "grant-")
    (entry,) = manager.list_servers()
    assert (entry.name, entry.server_url, entry.state) == (NAME, URL, state)
    assert entry.key == (key if state == "unreadable" else None)


def test_a_grant_of_no_name_that_cannot_be_read_is_listed_by_its_key(manager: TokenManager) -> None:
    put_grant(manager.token_store)
    _spoil(manager.token_store, "grant-", b"CANARY")
    key = only_key(manager.token_store, "grant-")
    assert manager.list_servers() == (ServerEntry(None, None, "", "unreadable", key=key),)


@pytest.mark.parametrize("error", [DamagedError, NewerFormatError])
def test_a_record_that_the_store_cannot_unseal_is_listed(error: type[StoreError]) -> None:
    class Sealed(MemoryStore):
        def load(self, key: str) -> Stored | None:
            if key == sealed:
                raise error("it was altered")
            return super().load(key)

    sealed = ""
    manager = TokenManager(store=(store := Sealed()))
    manager.bind(NAME, URL)
    sealed = only_key(store, "name-")
    assert manager.list_servers() == (ServerEntry(None, None, "", "unreadable", key=sealed),)
    with pytest.raises(TokenStorageError, match="altered"):
        manager.entry(NAME)


def _spoil(store: Store, kind: str, content: bytes) -> None:
    key = only_key(store, kind)
    found = store.load(key)
    assert found is not None
    assert isinstance(store.save(key, content, revision="spoiled", expected=found.revision), Saved)


def _refused(call: Callable[[TokenManager], object], manager: TokenManager, kind: str, content: bytes) -> None:
    with pytest.raises(TokenStorageError, match="newer version") as refused:
        call(manager)
    assert "CANARY" not in str(refused.value)
    assert manager.token_store.load(only_key(manager.token_store, kind)) == Stored(content, "spoiled")


def test_a_damaged_name_on_disk_is_an_error_that_says_where_it_is(tmp_path: Path) -> None:
    TokenManager(store=EncryptedFileStore(tmp_path)).bind(NAME, URL)
    (file,) = tmp_path.rglob("*.enc")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(TokenStorageError, match=str(tmp_path)):
        TokenManager(store=EncryptedFileStore(tmp_path)).bind(NAME, OTHER)
    assert bytes(content) in [other.read_bytes() for other in tmp_path.rglob("*") if other.is_file()]


class Broken(MemoryStore):
    """Raises, from the first or the second call of its methods."""

    error: Exception | None = None

    def load(self, key: str) -> Stored | None:
        self._fail()
        return super().load(key)

    def keys(self) -> tuple[str, ...]:
        self._fail()
        return super().keys()

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("call", ALL.values(), ids=ALL)
@pytest.mark.parametrize(
    ("error", "told"),
    [(StoreError("the disk is gone: mount it"), "the disk is gone: mount it"), (KeyError("CANARY"), "raised KeyError")],
    ids=["as-agreed", "against-its-contract"],
)
def test_a_store_that_fails_is_a_typed_error(
    error: Exception, told: str, call: Callable[[TokenManager], object]
) -> None:
    manager = TokenManager(store=(store := Broken()))
    store.error = error
    with pytest.raises(TokenStorageError, match=told) as failed:
        call(manager)
    assert (failed.value.stage, failed.value.reason) == ("storage", Reason.STORE_FAILED)
    assert failed.value.cure
    assert "CANARY" not in str(failed.value)


def test_a_grant_whose_end_cannot_be_saved_is_an_error(manager: TokenManager, monkeypatch: pytest.MonkeyPatch) -> None:
    manager.bind(NAME, URL)
    put_grant(manager.token_store)

    def full(*_: Any, **__: Any) -> Any:
        raise StoreError("the disk is full")

    monkeypatch.setattr(manager.token_store, "save", full)
    with pytest.raises(TokenStorageError, match="full"):
        manager.delete_tokens(NAME)
    monkeypatch.undo()
    assert manager.has_valid_tokens(NAME)


# --- Many at once -----------------------------------------------------------------------------------------------------


def test_names_of_racing_writers_are_all_kept(manager: TokenManager) -> None:
    """Both change one record; neither takes the other's half away."""

    def rounds(one: Callable[[int], object]) -> None:
        for number in range(10):
            one(number)

    urls = [f"https://mcp.example/{number}" for number in range(10)]
    with ThreadPoolExecutor(4) as pool:
        tasks = [
            pool.submit(rounds, lambda number: manager.save_tokens(NAME, by_hand(token=f"token-{number}"))),
            pool.submit(rounds, lambda number: manager.bind(NAME, urls[number])),
            pool.submit(rounds, lambda number: manager.save_credential(f"{number}", BearerToken("token"))),
        ]
    for task in tasks:
        task.result()
    label = manager._label(NAME)
    assert label.server_url == urls[-1]
    assert label.tokens is not None
    assert label.tokens.access_token == "token-9"
    assert len(manager.list_credentials()) == 10


def test_who_loses_every_race_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = TokenManager(store=(store := MemoryStore()))
    manager.bind(NAME, URL)
    rounds: list[str] = []

    def lost(key: str, value: bytes, *, revision: str, expected: str | None) -> Saved | Conflict:
        rounds.append(revision)
        return Conflict(store.load(key))

    monkeypatch.setattr(store, "save", lost)
    with pytest.raises(TokenStorageError) as contended:
        manager.bind(NAME, OTHER)
    assert contended.value.reason is Reason.STORE_CONTENDED
    assert len(set(rounds)) == MOST_ROUNDS


def test_what_changes_nothing_is_not_saved(manager: TokenManager) -> None:
    manager.bind(NAME, URL)
    before = manager.token_store.load(only_key(manager.token_store, "name-"))
    manager.bind(NAME, URL)
    assert manager.token_store.load(only_key(manager.token_store, "name-")) == before


def test_each_save_has_a_revision_of_its_own(manager: TokenManager) -> None:
    manager.bind(NAME, URL)
    first = manager._label(NAME)
    manager.bind(NAME, OTHER)
    second = manager._label(NAME)
    assert first == replace(second, revision=first.revision, server_url=URL)
    assert first.revision != second.revision
