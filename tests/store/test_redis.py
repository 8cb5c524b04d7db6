"""What the Redis store adds to the contract: sealed values, fencing, lost locks, damage, and how it is reached."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
import trustme

from mcp_oauth.store import redis as redis_store
from mcp_oauth.store import sealing
from mcp_oauth.store.base import (
    Conflict,
    DamagedError,
    Held,
    NewerFormatError,
    StoreBusyError,
    Stored,
    StoreError,
    UnavailableError,
    WrongPasswordError,
)
from mcp_oauth.store.lease import LEASE_SECONDS, elapsed
from mcp_oauth.store.redis import RedisStore
from tests.servers import redis_server
from tests.servers.redis_server import Redis
from tests.store.damage import DAMAGE
from tests.store.redises import CALLS, KEY, READING, any_call, contents, header_of, place, put, take


@pytest.fixture
def prefix() -> str:
    return f"test:{uuid4().hex}"


@pytest.fixture
def store(redis_at: Redis, prefix: str) -> RedisStore:
    return RedisStore(redis_at.url, key=KEY, prefix=prefix)


@pytest.fixture
def own() -> Iterator[Redis]:
    """A Redis of the test's own, to be reconfigured."""
    with redis_server.serving() as server:
        yield server


def fence(server: Redis, prefix: str) -> int:
    return int(server.ask("GET", place(prefix, "key", "lock")).split()[0])


# What lies in the Redis.


@pytest.mark.parametrize("how", [{"key": KEY}, {"password": "correct horse"}], ids=["key", "password"])
def test_nothing_leaves_the_process_in_plain_text(redis_at: Redis, prefix: str, how: dict[str, Any]) -> None:
    store = RedisStore(redis_at.url, prefix=prefix, **how)
    with take(store, "a telling name"):
        put(store, "a telling name", b"a refresh token")
        put(store, "a telling name", b"a refresh token", "r2", "r1")
        everything = contents(redis_at, prefix)
    assert len(everything) == 4
    raw = [redis_at.ask("GET", name) for name in (header_of(prefix), place(prefix, "a telling name"))]
    for secret in (b"telling", b"refresh", b"correct", KEY, KEY.hex().encode()):
        assert not [name for name, dump in everything.items() if secret in name + dump]
        assert not [value for value in raw if secret in value]


def test_all_is_below_the_prefix_and_in_one_hash_slot(own: Redis) -> None:
    store = RedisStore(own.url, key=KEY, prefix="fleet")
    for name in ("one", "two", "three"):
        put(store, name, b"value")
        take(store, name)
    own.ask("SET", place("fleet", "one"), "damaged")
    with pytest.raises(DamagedError):
        store.load("one")
    assert all(name.startswith(b"{fleet}:") for name in own.ask("KEYS", "*")), "what is in braces makes the hash slot"


def test_stores_of_two_prefixes_share_nothing(redis_at: Redis, prefix: str, store: RedisStore) -> None:
    put(store, "key", b"value")
    other = RedisStore(redis_at.url, password="correct horse", prefix=f"{prefix}2")
    assert other.load("key") is None
    assert other.keys() == ()
    with take(store), take(other):
        assert other.identity != store.identity


def test_keys_come_in_batches_and_what_is_no_slot_is_passed_over(
    redis_at: Redis, prefix: str, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_store, "BATCH", 7)
    names = [f"key {number}" for number in range(30)]
    for name in names:
        put(store, name, b"value")
    redis_at.ask("SADD", f"{{{prefix}}}:records", "x", b"\xff", "0" * 64)
    redis_at.ask("DEL", place(prefix, "key 3"))
    assert sorted(store.keys()) == sorted(set(names) - {"key 3"})


# Compare-and-swap.


@contextmanager
def before_the_swap(monkeypatch: pytest.MonkeyPatch, meanwhile: list[Callable[[], object]]) -> Iterator[None]:
    """Let others act between a save's reading and its writing: one act for each attempt."""
    swap = RedisStore._swap

    def late(self: RedisStore, *arguments: Any) -> bool:
        if meanwhile:
            meanwhile.pop(0)()
        return swap(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(RedisStore, "_swap", late)
        yield


def test_what_was_saved_between_reading_and_writing_is_not_overwritten(
    redis_at: Redis, prefix: str, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, "key", b"old")
    peer = RedisStore(redis_at.url, key=KEY, prefix=prefix)
    with before_the_swap(monkeypatch, [lambda: put(peer, "key", b"theirs", "r2", "r1")]):
        assert store.save("key", b"mine", revision="r3", expected="r1") == Conflict(Stored(b"theirs", "r2"))
    assert store.load("key") == Stored(b"theirs", "r2")


def test_what_was_sealed_anew_meanwhile_is_read_again(
    redis_at: Redis, prefix: str, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seal_anew() -> None:
        sealed = sealing.seal(sealing.given_key(KEY), sealing.Record("key", "r1", b"old"))
        redis_at.ask("SET", place(prefix, "key"), sealed)

    put(store, "key", b"old")
    with before_the_swap(monkeypatch, [seal_anew]):
        put(store, "key", b"new", "r2", "r1")
    with before_the_swap(monkeypatch, [lambda: redis_at.ask("DEL", header_of(prefix), f"{{{prefix}}}:records")]):
        put(store, "key", b"newer", "r3", "r2")
    put(store, "key", b"old", "r1", "r3")
    with before_the_swap(monkeypatch, [seal_anew] * 9), pytest.raises(StoreBusyError, match="keeps changing"):
        store.save("key", b"new", revision="r2", expected="r1")
    assert store.load("key") == Stored(b"old", "r1")


def test_rules_4_10_a_lost_answer_is_told_and_not_asked_for_again(own: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RedisStore(own.url, key=KEY)
    put(store, "key", b"old")
    own.ask("CONFIG", "RESETSTAT")
    execute: Callable[..., Any] = redis.Redis.execute_command

    def lose_the_answer(self: redis.Redis, *command: Any, **options: Any) -> Any:
        answer = execute(self, *command, **options)
        if command[0] == "EVALSHA":
            raise redis.ConnectionError("Connection closed by server.")
        return answer

    with monkeypatch.context() as patched:
        patched.setattr(redis.Redis, "execute_command", lose_the_answer)
        with pytest.raises(UnavailableError, match=r"closed by server.*What was being saved may be there"):
            store.save("key", b"new", revision="r2", expected="r1")
    assert own.ask("INFO", "commandstats")["cmdstat_evalsha"]["calls"] == 1
    assert store.load("key") == Stored(b"new", "r2")


def test_scripts_that_the_server_has_forgotten_are_sent_again(redis_at: Redis, store: RedisStore) -> None:
    put(store, "key", b"old")
    redis_at.ask("SCRIPT", "FLUSH")
    put(store, "key", b"new", "r2", "r1")
    redis_at.ask("SCRIPT", "FLUSH")
    with take(store):
        redis_at.ask("SCRIPT", "FLUSH")
    take(store)


# The lock.


def test_rules_4_5_a_lock_is_a_lease_counted_from_before_it_was_asked_for(
    redis_at: Redis, prefix: str, store: RedisStore
) -> None:
    before = elapsed()
    with take(store) as lease:
        assert not lease.exclusive
        assert lease.valid_until is not None
        assert before <= lease.valid_until - LEASE_SECONDS <= elapsed()
        left = redis_at.ask("PTTL", place(prefix, "key", "lock"))
        assert 0 < left <= LEASE_SECONDS * 1000
        assert lease.valid_until <= elapsed() + left / 1000 + 0.1, "nobody else has it before we know that it lapsed"
    assert redis_at.ask("EXISTS", place(prefix, "key", "lock")) == 0


def test_the_fencing_number_grows_with_each_holder(redis_at: Redis, prefix: str, store: RedisStore) -> None:
    numbers: list[int] = []
    for _ in range(3):
        with take(store):
            numbers.append(fence(redis_at, prefix))
    assert numbers == [1, 2, 3]


def test_an_extended_lease_runs_anew(redis_at: Redis, prefix: str, store: RedisStore) -> None:
    lock = place(prefix, "key", "lock")
    with take(store) as lease:
        redis_at.ask("PEXPIRE", lock, 5_000)
        before = elapsed()
        assert lease.extend()
        assert redis_at.ask("PTTL", lock) > 5_000
        assert lease.valid_until is not None
        assert before <= lease.valid_until - LEASE_SECONDS <= elapsed()


LOSSES: dict[str, Callable[[Redis], object]] = {
    "lapsed": lambda server: server.ask("PEXPIRE", place("mcp-oauth", "key", "lock"), 0),
    "evicted": lambda server: server.ask("DEL", place("mcp-oauth", "key", "lock")),
    "flushed": lambda server: server.ask("FLUSHALL"),
}


@pytest.mark.parametrize("lose", LOSSES.values(), ids=LOSSES)
def test_a_lost_lock_can_neither_be_extended_nor_released(own: Redis, lose: Callable[[Redis], object]) -> None:
    store = RedisStore(own.url, key=KEY)
    with take(store) as lost:
        until = lost.valid_until
        lose(own)
        assert not lost.extend()
        assert lost.valid_until == until
        successor = take(store)
        assert not lost.extend()
    assert isinstance(store.try_lock("key"), Held)
    assert successor.extend()


def test_rules_4_10_who_lost_the_lock_is_judged_by_revision(own: Redis) -> None:
    store = RedisStore(own.url, key=KEY)
    put(store, "key", b"old")
    with take(store):
        LOSSES["lapsed"](own)
        with take(store):
            put(store, "key", b"the successor's", "r2", "r1")
        late = store.save("key", b"too late", revision="r3", expected="r1")
    assert late == Conflict(Stored(b"the successor's", "r2"))


def test_a_lease_that_cannot_be_released_lapses(own: Redis) -> None:
    with take(RedisStore(own.url, key=KEY)) as lease:
        own.kill()
        with pytest.raises(UnavailableError):
            lease.extend()


def test_a_forked_childs_lease_is_nothing(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = take(store)
    with monkeypatch.context() as child, lease:
        child.setattr(os, "getpid", lambda: -1)
        assert not lease.extend()
    assert isinstance(store.try_lock("key"), Held)


def test_a_released_lease_is_not_extended(store: RedisStore) -> None:
    with take(store) as lease:
        pass
    with take(store):
        assert not lease.extend()


def test_a_holders_name_cannot_play_with_the_terminal(redis_at: Redis, prefix: str, store: RedisStore) -> None:
    redis_at.ask("SET", place(prefix, "key", "lock"), b"1 x \x1b[2Jpid 7\xff\n")
    assert store.try_lock("key") == Held("[2Jpid 7\N{REPLACEMENT CHARACTER}")


# Damage.


@pytest.mark.parametrize(("change", "why"), DAMAGE.values(), ids=[f"FN17-{label}" for label in DAMAGE])
@pytest.mark.parametrize("call", READING)
def test_a_damaged_record_is_renamed_and_told(
    redis_at: Redis, prefix: str, store: RedisStore, call: str, change: Callable[[bytes], bytes], why: str
) -> None:
    name = place(prefix, "key")
    for number in (1, 2):
        put(store, "key", b"value")
        damaged = change(redis_at.ask("GET", name))
        redis_at.ask("SET", name, damaged)
        with pytest.raises(DamagedError, match=why) as raised:
            CALLS[call](store)
        told = str(raised.value)
        assert f"{name} in Redis at 127.0.0.1:{redis_at.port}/0" in told
        assert f"{name}:corrupt-{number}: log in again" in told
        assert "hunter2" not in told
        assert redis_at.ask("GET", f"{name}:corrupt-{number}") == damaged
        assert store.load("key") is None
        assert store.keys() == ()


def test_fn17_records_that_changed_places_are_told_apart_from_altered_ones(
    redis_at: Redis, prefix: str, store: RedisStore
) -> None:
    names = [place(prefix, key) for key in ("one", "two")]
    for key in ("one", "two"):
        put(store, key, key.encode())
    one, two = (redis_at.ask("GET", name) for name in names)
    redis_at.ask("MSET", names[0], two, names[1], one)
    for key, name in zip(("one", "two"), names, strict=True):
        with pytest.raises(DamagedError, match="another key's record, moved here") as raised:
            store.load(key)
        assert name in str(raised.value)


def test_a_good_record_that_a_peer_put_there_meanwhile_is_left(
    redis_at: Redis, prefix: str, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, "key", b"value")
    name = place(prefix, "key")
    good = redis_at.ask("GET", name)
    move, often = RedisStore._move_aside, [1]

    def late(self: RedisStore, *arguments: Any) -> None:
        often[0] -= 1
        redis_at.ask("SET", name, good if often[0] == 0 else os.urandom(9))
        move(self, *arguments)

    monkeypatch.setattr(RedisStore, "_move_aside", late)
    for call, found in (("load", Stored(b"value", "r1")), ("keys", ("key",))):
        often[0] = 1
        redis_at.ask("SET", name, b"damaged")
        assert CALLS[call](store) == found
    redis_at.ask("SET", name, b"damaged")
    with pytest.raises(StoreBusyError, match="keeps changing"):
        store.load("key")
    assert redis_at.ask("KEYS", f"*{prefix}*:corrupt-*") == []


@pytest.mark.parametrize("call", READING)
def test_a_newer_record_is_left_as_it_is(redis_at: Redis, prefix: str, store: RedisStore, call: str) -> None:
    put(store, "key", b"value")
    name = place(prefix, "key")
    redis_at.ask("SETRANGE", name, 8, b"\x02")
    before = contents(redis_at, prefix)
    with pytest.raises(NewerFormatError, match="has format 2, this release reads up to 1") as raised:
        CALLS[call](store)
    assert name in str(raised.value)
    assert contents(redis_at, prefix) == before


# The header.

HEADERS: dict[str, tuple[Callable[[bytes], bytes], type[StoreError], str]] = {
    "cut": (lambda data: data[:-9], DamagedError, "is no header"),
    "altered": (lambda data: data.replace(b'"lanes":1', b'"lanes":2'), DamagedError, "was altered"),
    "newer": (lambda data: data.replace(b'"format":1', b'"format":9'), NewerFormatError, "has format 9"),
    "another-password": (
        lambda data: sealing.new_header(sealing.new_key(), lambda: "battery staple", "pbkdf2"),
        WrongPasswordError,
        "has another password",
    ),
    "no-password": (lambda data: sealing.new_header(sealing.new_key(), None, "pbkdf2"), WrongPasswordError, "has no"),
}


@pytest.mark.parametrize(("change", "kind", "why"), HEADERS.values(), ids=HEADERS)
@any_call
def test_a_header_that_does_not_open_is_left_as_it_is(
    redis_at: Redis,
    prefix: str,
    call: Callable[[RedisStore], object],
    change: Callable[[bytes], bytes],
    kind: type[StoreError],
    why: str,
) -> None:
    store = RedisStore(redis_at.url, password="correct horse", prefix=prefix)
    put(store, "key", b"value")
    redis_at.ask("SET", header_of(prefix), change(redis_at.ask("GET", header_of(prefix))))
    before = contents(redis_at, prefix)
    with pytest.raises(kind, match=why) as raised:
        call(store)
    assert f"{header_of(prefix)} in Redis at 127.0.0.1:{redis_at.port}/0" in str(raised.value)
    assert contents(redis_at, prefix) == before


@pytest.mark.parametrize("how", [{"key": KEY}, {"password": "correct horse"}], ids=["key", "password"])
@any_call
def test_records_without_their_header_are_not_given_another(
    redis_at: Redis, prefix: str, how: dict[str, Any], call: Callable[[RedisStore], object]
) -> None:
    store = RedisStore(redis_at.url, prefix=prefix, **how)
    put(store, "key", b"value")
    redis_at.ask("DEL", header_of(prefix))
    before = contents(redis_at, prefix)
    with pytest.raises(DamagedError, match="is missing, and the records beside it need it"):
        call(store)
    assert contents(redis_at, prefix) == before


OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another-key": ({"key": KEY}, {"key": bytes(32)}, "has another key"),
    "another-password": ({"password": "correct horse"}, {"password": "hunter2"}, "has another password"),
    "a-password-for-a-key": ({"key": KEY}, {"password": "hunter2"}, "has a key instead of a password"),
    "a-key-for-a-password": ({"password": "correct horse"}, {"key": KEY}, "has a password instead of a key"),
}


@pytest.mark.parametrize(("made", "opened", "why"), OTHERS.values(), ids=OTHERS)
@any_call
def test_a_wrong_key_says_so_and_changes_nothing(
    redis_at: Redis,
    prefix: str,
    made: dict[str, Any],
    opened: dict[str, Any],
    why: str,
    call: Callable[[RedisStore], object],
) -> None:
    put(RedisStore(redis_at.url, prefix=prefix, **made), "key", b"value")
    before = contents(redis_at, prefix)
    with pytest.raises(WrongPasswordError, match=f"{why}.*nothing was changed") as raised:
        call(RedisStore(redis_at.url, prefix=prefix, **opened))
    assert "hunter2" not in str(raised.value)
    assert contents(redis_at, prefix) == before


# How it is made and reached.


@pytest.mark.parametrize(
    ("url", "identity"),
    [
        ("redis://me:hunter2@Redis.example/", "redis:redis.example:6379/0/fleet"),
        ("rediss://:hunter2@redis.example:7000/3", "redis:redis.example:7000/3/fleet"),
        ("redis://[::1]:7000?db=2", "redis:[::1]:7000/2/fleet"),
        ("redis://", "redis:localhost:6379/0/fleet"),
        ("unix://me:hunter2@/run/redis.sock?db=4", "redis:/run/redis.sock/4/fleet"),
    ],
)
def test_its_identity_is_where_it_is_without_credentials(url: str, identity: str) -> None:
    store = RedisStore(url, password="correct horse", prefix="fleet")
    assert store.identity == identity
    assert not [secret for secret in ("hunter2", "correct") if secret in repr(store)]


URL = "redis://127.0.0.1"


@pytest.mark.parametrize(
    ("url", "arguments", "why"),
    [
        pytest.param(URL, {}, "give a key of 32 bytes, or a password", id="neither"),
        pytest.param(URL, {"key": KEY, "password": "x"}, "give a key of 32 bytes, or a password", id="both"),
        pytest.param(URL, {"key": KEY[1:]}, "a key has 32 bytes, this has 31", id="short-key"),
        pytest.param(URL, {"key": KEY, "prefix": ""}, "a prefix is some text", id="no-prefix"),
        pytest.param(URL, {"key": KEY, "prefix": "a{b"}, "without braces", id="brace"),
        pytest.param("http://:hunter2@host", {"key": KEY}, "no URL of a Redis", id="http"),
        pytest.param("redis://:hunter2/x@host", {"key": KEY}, "percent-encoded", id="unescaped"),
        pytest.param("redis://:hunter2@host?db=x", {"key": KEY}, "no URL of a Redis", id="no-number"),
        pytest.param("redis://:hunter2@host?hunter2=1", {"key": KEY}, "does not know an option", id="option"),
        pytest.param("rediss://:hunter2@host?ssl_cert_reqs=hunter2", {"key": KEY}, "or its value", id="value"),
    ],
)
def test_what_cannot_be_is_told_at_once(url: str, arguments: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why) as raised:
        RedisStore(url, **arguments)
    assert "hunter2" not in str(raised.value)
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


def test_a_url_cannot_make_a_call_wait_longer_or_try_again(redis_at: Redis, prefix: str) -> None:
    tuned = "?socket_timeout=600&retry_on_timeout=yes&protocol=3&decode_responses=1&max_connections=7"
    store = RedisStore(redis_at.url + tuned, key=KEY, prefix=prefix)
    put(store, "key", b"\xff")
    assert store.load("key") == Stored(b"\xff", "r1")
    assert store._client.connection_pool.connection_kwargs["socket_timeout"] == redis_store.ANSWER_SECONDS
    assert store._client.connection_pool.max_connections == 7


def test_without_redis_py_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(UnavailableError, match=r'pip install "mcp-oauth-sansio\[redis\]"'):
        RedisStore(URL, key=KEY)


def test_over_tls_and_over_a_socket_of_the_system(tmp_path: Path) -> None:
    authority, port = trustme.CA(), redis_server.free_port()
    pem = {name: tmp_path / f"{name}.pem" for name in ("ca", "other", "cert")}
    authority.cert_pem.write_to_path(pem["ca"])
    trustme.CA().cert_pem.write_to_path(pem["other"])
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(pem["cert"])
    tls = {"tls-port": str(port), "tls-auth-clients": "no", "unixsocket": str(tmp_path / "socket")}
    tls |= {f"tls-{name}-file": str(pem["cert"]) for name in ("cert", "key")} | {"tls-ca-cert-file": str(pem["ca"])}
    with redis_server.serving(tmp_path, settings=tls):
        put(RedisStore(f"rediss://127.0.0.1:{port}?ssl_ca_certs={pem['ca']}", key=KEY), "key", b"value")
        assert RedisStore(f"unix://{tmp_path}/socket", key=KEY).load("key") == Stored(b"value", "r1")
        with pytest.raises(UnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
            RedisStore(f"rediss://127.0.0.1:{port}?ssl_ca_certs={pem['other']}", key=KEY).load("key")
