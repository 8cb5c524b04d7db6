"""Our stores as a key-value store: what `py-key-value-aio` asks of one, and what our own stores promise beside it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import pytest
from key_value.aio.errors import InvalidTTLError, SerializationError
from key_value.aio.protocols import AsyncKeyValue
from key_value.aio.protocols.key_value import AsyncKeyValueProtocol
from key_value.aio.wrappers.prefix_collections import PrefixCollectionsWrapper

from mcp_oauth.adapters import key_value
from mcp_oauth.adapters.key_value import MOST_ROUNDS, MOST_THREADS, Entry, KeyValue
from mcp_oauth.cli import main
from mcp_oauth.sansio.grant import decode, digest
from mcp_oauth.sansio.values import Now
from mcp_oauth.store.base import Conflict, DamagedError, Saved, Store, StoreBusyError, Stored, UnavailableError
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from mcp_oauth.store.memory import MemoryStore
from mcp_oauth.token_manager import TokenManager
from mcp_oauth.tokens import BearerToken, OAuthTokens

pytestmark = pytest.mark.anyio

VALUE = {"access_token": "s3cret-value", "scopes": ["a", "b"]}


class Clock:
    """The wall clock of the entries; it stands still."""

    wall = 1_000_000.0

    def now(self) -> Now:
        return Now(self.wall, 0.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(key_value, "now", clock.now)
    return clock


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def kv(memory: MemoryStore) -> KeyValue:
    return KeyValue(memory)


# --- The protocol -----------------------------------------------------------------------------------------------------


def test_it_is_what_fastmcp_asks_for(kv: KeyValue) -> None:
    wanted: AsyncKeyValue = kv
    assert isinstance(wanted, AsyncKeyValueProtocol)


def test_neither_package_is_imported_with_it() -> None:
    loads = "import sys, mcp_oauth.adapters.key_value, mcp_oauth.adapters.mcp_sdk"
    program = f"{loads}; print({{'key_value', 'mcp', 'pydantic'}} & {{*sys.modules}})"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "set()"


async def test_every_store_keeps_renews_and_deletes(again: Callable[[], Store]) -> None:
    kv = KeyValue(again())
    assert await kv.get("key", collection="tokens") is None
    await kv.put("key", {"n": 1}, collection="tokens")
    await kv.put("key", VALUE, collection="tokens", ttl=3600)
    value, left = await KeyValue(again()).ttl("key", collection="tokens")
    assert value == VALUE
    assert left is not None
    assert 3500 < left <= 3600
    assert await kv.delete("key", collection="tokens")
    assert not await kv.delete("key", collection="tokens")
    assert await KeyValue(again()).get("key", collection="tokens") is None


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({}, id="empty"),
        pytest.param({"null": None, "true": True, "nested": {"list": [1, {"deep": []}]}}, id="nested"),
        pytest.param({"big": 10**40, "float": 1.25, "negative": -1}, id="numbers"),
        pytest.param({"text": "\ud800 \0 \n é 世界 🌍"}, id="any-text"),
        pytest.param({"document": "x" * 200_000}, id="200-kB"),
        pytest.param({"1": "null", "expires_at": 0, "type": "entry-1"}, id="names-of-our-own"),
    ],
)
async def test_a_value_is_read_as_it_was_put(kv: KeyValue, value: dict[str, Any]) -> None:
    await kv.put("key", value)
    assert await kv.get("key") == value


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"bytes", id="bytes"),
        pytest.param(datetime(2026, 1, 1, tzinfo=timezone.utc), id="datetime"),
        pytest.param(UUID(int=0), id="uuid"),
        pytest.param({1, 2}, id="set"),
    ],
)
async def test_what_is_not_json_is_refused_and_not_bent(kv: KeyValue, value: object) -> None:
    await kv.put("key", VALUE)
    with pytest.raises(SerializationError, match="not JSON"):
        await kv.put("key", {"value": value})
    assert await kv.get("key") == VALUE


@pytest.mark.parametrize("name", ["", "a" * 5000, "/../x", "https://h/mcp?k=v#f", "é\0\n", "!@#$%^&*()"])
async def test_keys_and_collections_are_any_text(kv: KeyValue, name: str) -> None:
    await kv.put(name, VALUE, collection=name)
    assert await kv.get(name, collection=name) == VALUE
    assert await kv.get("key", collection=name) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(("key", "a"), ("key", "b"), id="by-collection"),
        pytest.param(("key", None), ("key", "a"), id="the-default-is-one-of-its-own"),
        pytest.param(("bc", "a"), ("c", "ab"), id="by-where-the-collection-ends"),
    ],
)
async def test_entries_are_apart(kv: KeyValue, one: tuple[str, str | None], other: tuple[str, str | None]) -> None:
    await kv.put(one[0], {"n": 1}, collection=one[1])
    await kv.put(other[0], {"n": 2}, collection=other[1])
    assert await kv.delete(other[0], collection=other[1])
    assert await kv.get(one[0], collection=one[1]) == {"n": 1}


async def test_many_at_once_in_the_order_of_the_keys(kv: KeyValue, clock: Clock) -> None:
    await kv.put_many(("a", "b"), ({"n": 1}, {"n": 2}), collection="c", ttl=10)
    assert await kv.get_many(["b", "none", "a"], collection="c") == [{"n": 2}, None, {"n": 1}]
    assert await kv.ttl_many(["none", "a"], collection="c") == [(None, None), ({"n": 1}, 10.0)]
    assert await kv.delete_many(["a", "none", "a", "b"], collection="c") == 2
    assert await kv.get_many(["a", "b"], collection="c") == [None, None]


async def test_as_many_values_as_keys(kv: KeyValue, memory: MemoryStore) -> None:
    with pytest.raises(ValueError, match="2 keys, but 1 values"):
        await kv.put_many(["a", "b"], [{}])
    assert memory.keys() == ()


async def test_the_wrappers_of_py_key_value_go_round_it(kv: KeyValue) -> None:
    wrapped = PrefixCollectionsWrapper(key_value=kv, prefix="mine")
    await wrapped.put("key", VALUE, collection="c")
    assert await wrapped.get("key", collection="c") == VALUE
    assert await kv.get("key", collection="c") is None


# --- Time to live -----------------------------------------------------------------------------------------------------


async def test_an_entry_expires_by_the_wall_clock(kv: KeyValue, memory: MemoryStore, clock: Clock) -> None:
    await kv.put("key", VALUE, ttl=60)
    clock.wall += 59
    assert await KeyValue(memory).ttl("key") == (VALUE, 1.0)
    clock.wall += 1
    assert await kv.ttl("key") == (None, None)
    assert await kv.get("key") is None


async def test_without_one_it_stays(kv: KeyValue, clock: Clock) -> None:
    await kv.put("key", VALUE, ttl=60)
    await kv.put("key", VALUE)
    clock.wall += 1e9
    assert await kv.ttl("key") == (VALUE, None)


async def test_what_has_expired_was_not_there_to_delete_and_is_erased(
    kv: KeyValue, memory: MemoryStore, clock: Clock
) -> None:
    await kv.put("key", VALUE, ttl=60)
    clock.wall += 60
    assert not await kv.delete("key")
    assert b"s3cret-value" not in content(memory)


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), True])
async def test_a_time_to_live_that_cannot_be(kv: KeyValue, memory: MemoryStore, ttl: float) -> None:
    with pytest.raises(InvalidTTLError):
        await kv.put("key", VALUE, ttl=ttl)
    assert memory.keys() == ()


# --- In the store -----------------------------------------------------------------------------------------------------


def content(store: Store) -> bytes:
    (key,) = store.keys()
    stored = store.load(key)
    assert stored is not None
    return stored.value


async def test_a_deletion_leaves_nothing_of_the_value(kv: KeyValue, memory: MemoryStore) -> None:
    await kv.put("key", VALUE, ttl=60)
    await kv.delete("key")
    assert content(memory) == b'{"type":"entry-1","document":null,"expires_at":null}'


async def test_of_what_was_never_there_no_deletion_is_kept(kv: KeyValue, memory: MemoryStore) -> None:
    assert await kv.delete_many(["a", "b"]) == 0
    assert memory.keys() == ()


async def test_a_deletion_is_kept_once(kv: KeyValue, memory: MemoryStore) -> None:
    await kv.put("key", VALUE)
    await kv.delete("key")
    before = memory.load(memory.keys()[0])
    await kv.delete("key")
    assert memory.load(memory.keys()[0]) == before


async def test_it_is_sealed_as_the_store_seals(tmp_path: Path) -> None:
    await KeyValue(EncryptedFileStore(tmp_path, password="pw", kdf="pbkdf2")).put("alice", VALUE, collection="tokens")
    names = [path.name for path in tmp_path.iterdir()]
    assert not any("alice" in name or "tokens" in name for name in names)
    assert not any(b"s3cret-value" in path.read_bytes() for path in tmp_path.iterdir() if path.is_file())


async def test_no_secret_in_a_repr(kv: KeyValue) -> None:
    await kv.put("key", VALUE)
    assert repr(kv) == "KeyValue(MemoryStore)"
    assert repr(Entry(json.dumps(VALUE), 1.0)) == "Entry(expires_at=1.0, ...)"


class TestUnreadable:
    """A record of a later version, or one that is damaged below what the store can see."""

    PLACE = "entry-" + digest("", "key")

    @pytest.fixture(
        params=[
            pytest.param(b'{"type":"entry-2","document":{}}', id="newer"),
            pytest.param(b'{"type":"entry-1","document":"[1]"}', id="no-object"),
            pytest.param(b'{"type":"entry-1","document":"{s3cret"}', id="no-json"),
            pytest.param(b'{"type":"entry-1","document":"' + b"[" * 200_000 + b'"}', id="too-deep"),
            pytest.param(b"\xff s3cret", id="no-text"),
        ]
    )
    def damaged(self, request: pytest.FixtureRequest, memory: MemoryStore) -> bytes:
        value: bytes = request.param
        assert isinstance(memory.save(self.PLACE, value, revision="r", expected=None), Saved)
        return value

    async def test_it_is_told_where_and_left_as_it_is(self, kv: KeyValue, memory: MemoryStore, damaged: bytes) -> None:
        with pytest.raises(DamagedError, match=f"{self.PLACE} cannot be read") as told:
            await kv.get("key")
        assert "s3cret" not in str(told.value)
        assert told.value.__suppress_context__ or told.value.__context__ is None
        assert content(memory) == damaged

    async def test_a_put_replaces_it(self, kv: KeyValue, damaged: bytes) -> None:
        await kv.put("key", VALUE)
        assert await kv.get("key") == VALUE

    async def test_it_can_be_deleted(self, kv: KeyValue, damaged: bytes) -> None:
        assert await kv.delete("key")
        assert await kv.get("key") is None


async def test_what_the_store_raises_reaches_the_caller(tmp_path: Path) -> None:
    class Gone(MemoryStore):
        def load(self, key: str) -> Stored | None:
            raise UnavailableError("the vault is sealed")

    kv = KeyValue(Gone())
    for call in (kv.get("key"), kv.put("key", {}), kv.delete("key"), kv.ttl_many(["key"])):
        with pytest.raises(UnavailableError, match="the vault is sealed"):
            await call


async def test_other_records_of_the_store_know_nothing_of_it(memory: MemoryStore, kv: KeyValue) -> None:
    manager = TokenManager(store=memory)
    manager.save_tokens("notion", OAuthTokens("by-hand"))
    manager.save_credential("ci", BearerToken("token"))
    before = manager.list_servers(), manager.list_credentials()
    for key in ("notion", "ci", "https://mcp.example.com/mcp"):
        await kv.put(key, VALUE)
    assert (manager.list_servers(), manager.list_credentials()) == before
    ours = [key for key in memory.keys() if key.startswith("entry-")]  # noqa: SIM118 - a store is no mapping
    assert len(ours) == 3
    assert [decode(stored.value) for stored in map(memory.load, ours) if stored] == [None] * 3


# --- Concurrency ------------------------------------------------------------------------------------------------------


class Contended(MemoryStore):
    """Somebody else saves just before each of so many saves of ours."""

    def __init__(self, others: int) -> None:
        super().__init__()
        self.others = others

    def save(self, key: str, value: bytes, *, revision: str, expected: str | None) -> Saved | Conflict:
        if self.others:
            self.others -= 1
            super().save(key, b'{"type":"entry-1"}', revision=f"other-{self.others}", expected=expected)
        return super().save(key, value, revision=revision, expected=expected)


async def test_a_put_outlives_the_saves_of_others() -> None:
    kv = KeyValue(Contended(MOST_ROUNDS - 1))
    await kv.put("key", VALUE)
    assert await kv.get("key") == VALUE


async def test_it_gives_up_in_the_end() -> None:
    with pytest.raises(StoreBusyError, match="others kept changing this entry"):
        await KeyValue(Contended(MOST_ROUNDS)).put("key", VALUE)


async def test_a_deletion_that_another_made_first_is_not_counted() -> None:
    class Raced(MemoryStore):
        def save(self, key: str, value: bytes, *, revision: str, expected: str | None) -> Saved | Conflict:
            super().save(key, value, revision=revision + "'", expected=expected)
            return super().save(key, value, revision=revision, expected=expected)

    store = Raced()
    MemoryStore.save(
        store, "entry-" + digest("", "key"), b'{"type":"entry-1","document":"{}"}', revision="r", expected=None
    )
    assert not await KeyValue(store).delete("key")


class Slow(MemoryStore):
    """Holds every save until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go = threading.Semaphore(0), threading.Event()
        self.now = self.most = 0

    def save(self, key: str, value: bytes, *, revision: str, expected: str | None) -> Saved | Conflict:
        self.now += 1
        self.most = max(self.most, self.now)
        self.begun.release()
        self.go.wait()
        self.now -= 1
        return super().save(key, value, revision=revision, expected=expected)


async def test_a_save_that_began_ends_though_its_caller_is_cancelled() -> None:
    store = Slow()
    kv = KeyValue(store)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(kv.put_many, ["a", "b"], [{"n": 1}, {"n": 2}])
        await anyio.to_thread.run_sync(store.begun.acquire)
        tasks.cancel_scope.cancel()
        store.go.set()
    assert await kv.get_many(["a", "b"]) == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_it_ends_too_where_asyncio_cuts_through_every_shield() -> None:
    store = Slow()
    kv = KeyValue(store)
    task = asyncio.ensure_future(kv.put_many(["a", "b"], [{"n": 1}, {"n": 2}]))
    await anyio.to_thread.run_sync(store.begun.acquire)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    store.go.set()
    with anyio.fail_after(30):
        while await kv.get_many(["a", "b"]) != [{"n": 1}, {"n": 2}]:
            await anyio.sleep(0)


async def test_what_has_not_begun_is_not_saved() -> None:
    store = MemoryStore()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await KeyValue(store).put("key", VALUE)
    assert store.keys() == ()


async def test_it_leaves_the_threads_of_the_program_alone() -> None:
    store = Slow()
    async with anyio.create_task_group() as tasks:
        for n in range(50):
            tasks.start_soon(KeyValue(store).put, f"key-{n}", VALUE)
        for _ in range(MOST_THREADS):
            await anyio.to_thread.run_sync(store.begun.acquire)
        store.go.set()
    assert store.most <= MOST_THREADS
    assert len(store.keys()) == 50


async def test_fifty_writers_of_one_entry_leave_what_one_of_them_wrote() -> None:
    kv = KeyValue(MemoryStore())
    async with anyio.create_task_group() as tasks:
        for n in range(50):
            tasks.start_soon(kv.put, "key", {"n": n})
    value = await kv.get("key")
    assert value is not None
    assert value["n"] in range(50)


# --- Beside the command -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("the_log_stays")
@pytest.mark.parametrize("command", [("list",), ("store", "check"), ("store", "rekey")], ids=" ".join)
async def test_the_command_is_not_disturbed(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCP_OAUTH_STORE", "file")
    monkeypatch.setenv("MCP_OAUTH_STORE_DIR", str(tmp_path / "store"))
    kv = KeyValue(EncryptedFileStore(tmp_path / "store"))
    await kv.put("key", VALUE)
    assert await anyio.to_thread.run_sync(main, command) == 0
    assert await KeyValue(EncryptedFileStore(tmp_path / "store")).get("key") == VALUE
