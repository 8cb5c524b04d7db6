"""A Redis that restarts, refuses, hangs or is gone: what is lost with it, and what is told."""

from __future__ import annotations

import os
import signal
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from mcp_oauth.store import redis as redis_store
from mcp_oauth.store.base import (
    DamagedError,
    NotWritableError,
    Saved,
    Stored,
    StoreError,
    StoreFullError,
    UnavailableError,
    UnsafePlaceError,
)
from mcp_oauth.store.redis import RedisStore
from tests.servers import redis_server
from tests.servers.redis_server import Redis
from tests.store.redises import CALLS, KEY, READING, any_call, contents, place, put, take


@pytest.fixture
def own() -> Iterator[Redis]:
    """A Redis of the test's own, to be reconfigured."""
    with redis_server.serving() as server:
        yield server


# Restarts, and what outlives them.


def test_a_killed_redis_that_writes_everything_loses_nothing(tmp_path: Path) -> None:
    with redis_server.serving(tmp_path) as server:
        store = RedisStore(server.url, password="correct horse")
        put(store, "key", b"value")
        lease = take(store)
        server.kill()
    with pytest.raises(UnavailableError, match=f"127.0.0.1:{server.port}.*see that it runs"):
        store.load("key")
    with redis_server.serving(tmp_path, server.port):
        assert store.load("key") == Stored(b"value", "r1")
        assert lease.extend()
        put(store, "key", b"next", "r2", "r1")
        assert RedisStore(server.url, password="correct horse").load("key") == Stored(b"next", "r2")


def test_a_redis_that_was_emptied_is_a_new_store(tmp_path: Path) -> None:
    with redis_server.serving(tmp_path, settings={"appendonly": "no"}) as server:
        store = RedisStore(server.url, password="correct horse")
        assert store.save("key", b"value", revision="r1", expected=None) == Saved(durable=False)
        lease = take(store)
    with redis_server.serving(tmp_path, server.port):
        assert not lease.extend()
        assert store.load("key") is None
        put(store, "key", b"value", "r2")
        assert RedisStore(server.url, password="correct horse").load("key") == Stored(b"value", "r2")


@pytest.mark.parametrize(
    ("settings", "durable"),
    [
        pytest.param({}, True, id="RULES-4.17-append-always"),
        pytest.param({"appendfsync": "everysec"}, False, id="RULES-4.17-append-everysec"),
        pytest.param({"appendfsync": "no"}, False, id="RULES-4.17-append-sometime"),
        pytest.param({"appendonly": "no"}, False, id="RULES-4.17-append-nothing"),
        pytest.param({"appendonly": "no", "save": "1 1"}, False, id="RULES-4.17-snapshots"),
        pytest.param({"rename-command": "CONFIG x"}, False, id="RULES-4.17-unknown"),
    ],
)
def test_a_save_is_durable_where_each_change_is_flushed(settings: dict[str, str], durable: bool) -> None:
    with redis_server.serving(settings=settings) as server:
        store = RedisStore(server.url, key=KEY)
        assert store.save("key", b"value", revision="r1", expected=None) == Saved(durable=durable)


def test_settings_are_asked_for_anew_after_a_restart(tmp_path: Path) -> None:
    with redis_server.serving(tmp_path) as server:
        store = RedisStore(server.url, key=KEY)
        put(store, "key", b"value")
    with redis_server.serving(tmp_path, server.port, {"appendfsync": "everysec"}):
        assert store.save("key", b"next", revision="r2", expected="r1") == Saved(durable=False)


@pytest.mark.parametrize(
    ("policy", "limit", "refused"),
    [
        pytest.param("allkeys-lru", "100mb", True, id="allkeys-lru"),
        pytest.param("allkeys-random", "100mb", True, id="allkeys-random"),
        pytest.param("allkeys-lru", "0", False, id="no-limit"),
        pytest.param("volatile-lru", "100mb", False, id="only-what-lapses"),
        pytest.param("noeviction", "100mb", False, id="nothing"),
    ],
)
@any_call
def test_a_redis_that_evicts_records_is_refused_unless_allowed(
    own: Redis, policy: str, limit: str, refused: bool, call: Callable[[RedisStore], object]
) -> None:
    own.ask("CONFIG", "SET", "maxmemory-policy", policy)
    own.ask("CONFIG", "SET", "maxmemory", limit)
    store = RedisStore(own.url, key=KEY)
    if refused:
        for _ in range(2):
            with pytest.raises(UnsafePlaceError, match=r"maxmemory-policy to noeviction.*allow_eviction"):
                call(store)
        assert contents(own) == {}
        store = RedisStore(own.url, key=KEY, allow_eviction=True)
    call(store)


# What a Redis refuses.


def acl(server: Redis, *rules: str) -> None:
    server.ask("ACL", "SETUSER", "fleet", "on", ">hunter2", "~{mcp-oauth}:*", *rules)


def as_fleet(server: Redis) -> RedisStore:
    return RedisStore(f"redis://fleet:hunter2@127.0.0.1:{server.port}/0", key=KEY)


def test_the_permissions_that_are_told_are_enough(own: Redis) -> None:
    acl(own, *redis_store.PERMISSIONS.split())
    store = as_fleet(own)
    put(store, "key", b"value")
    with take(store) as lease:
        assert lease.extend()
    assert store.keys() == ("key",)
    own.ask("SET", place("mcp-oauth", "key"), "damaged")
    with pytest.raises(DamagedError):
        store.load("key")


def test_a_redis_that_may_not_be_asked_for_its_settings_will_do(own: Redis) -> None:
    own.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    own.ask("CONFIG", "SET", "maxmemory", "100mb")
    acl(own, "+@all", "-config", "-info")
    assert as_fleet(own).save("key", b"value", revision="r1", expected=None) == Saved(durable=False)


Setup = Callable[[Redis], object]
REFUSALS: dict[str, tuple[Setup, type[StoreError], str, list[str]]] = {
    "no-memory": (
        lambda own: own.ask("CONFIG", "SET", "maxmemory", "1"),
        StoreFullError,
        "maxmemory",
        ["save", "try_lock"],
    ),
    "replica": (
        lambda own: own.ask("REPLICAOF", "127.0.0.1", "1"),
        NotWritableError,
        "connect to the primary",
        ["save", "try_lock"],
    ),
    "may-not-write": (
        lambda own: acl(own, "+@all", "-set"),
        NotWritableError,
        "give this user the right",
        ["save", "try_lock"],
    ),
    "may-not-script": (
        lambda own: acl(own, "+@all", "-@scripting"),
        NotWritableError,
        "give this user the right",
        ["save", "try_lock"],
    ),
    "other-keys": (
        lambda own: acl(own, "+@all", "resetkeys", "~other:*"),
        NotWritableError,
        "give this user the right",
        list(CALLS),
    ),
    "wrong-password": (lambda own: acl(own, "+@all", "<hunter2"), StoreError, "right user and password", list(CALLS)),
    "something-else-there": (
        lambda own: (own.ask("DEL", place("mcp-oauth", "key")), own.ask("LPUSH", place("mcp-oauth", "key"), "x")),
        DamagedError,
        "something else has taken this name",
        READING,
    ),
}


@pytest.mark.parametrize(
    ("set_up", "kind", "cure", "call"),
    [
        pytest.param(set_up, kind, cure, CALLS[call], id=f"{label}-{call}")
        for label, (set_up, kind, cure, calls) in REFUSALS.items()
        for call in calls
    ],
)
def test_a_refusal_says_why_and_what_to_do(
    own: Redis, set_up: Setup, kind: type[StoreError], cure: str, call: Callable[[RedisStore], object]
) -> None:
    put(RedisStore(own.url, key=KEY), "key", b"value")
    acl(own, "+@all")
    set_up(own)
    before = contents(own)
    with pytest.raises(StoreError, match=cure) as raised:
        call(as_fleet(own))
    assert type(raised.value) is kind
    assert f"Redis at 127.0.0.1:{own.port}/0: " in str(raised.value)
    assert "hunter2" not in str(raised.value)
    assert contents(own) == before


def test_a_redis_that_wants_a_password_says_so() -> None:
    with redis_server.serving(settings={"requirepass": "hunter2"}) as server, pytest.raises(StoreError) as raised:
        RedisStore(server.url, key=KEY).load("key")
    assert "put the right user and password into the URL" in str(raised.value)


def test_a_cluster_is_told() -> None:
    with (
        redis_server.serving(settings={"cluster-enabled": "yes"}) as server,
        pytest.raises(StoreError, match="use a Redis that is no cluster"),
    ):
        RedisStore(server.url, key=KEY).load("key")


# Outages.


@contextmanager
def answering(error: bytes) -> Iterator[int]:
    """Something at a port that answers every command with one error."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while words := self.rfile.readline():
                for _ in range(int(words[1:])):
                    self.rfile.read(int(self.rfile.readline()[1:]) + 2)
                self.wfile.write(b"-" + error + b"\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


SIMULATED: dict[str, tuple[bytes, type[StoreError], str]] = {
    "loading": (b"LOADING Redis is loading the dataset in memory", StoreError, "try again soon"),
    "disk-full": (b"MISCONF Errors writing to the AOF file: No space left", NotWritableError, "make room"),
    "old-script": (b"ERR Error running script: @user_script:3: -OOM command not allowed", StoreFullError, "maxmemory"),
    "moved": (b"MOVED 3999 127.0.0.1:6381", StoreError, "use a Redis that is no cluster"),
    "unheard-of": (b"WHAT \x1b[2Jhunter" + b"x" * 999, StoreError, r"error: WHAT \[2Jhunterx+$"),
}


@pytest.mark.parametrize(("error", "kind", "cure"), SIMULATED.values(), ids=SIMULATED)
def test_what_a_simulated_redis_answers_is_told(error: bytes, kind: type[StoreError], cure: str) -> None:
    with answering(error) as port, pytest.raises(StoreError, match=cure) as raised:
        RedisStore(f"redis://127.0.0.1:{port}/0", key=KEY).load("key")
    assert type(raised.value) is kind
    assert len(str(raised.value)) < 500


@any_call
def test_a_redis_that_is_not_there_is_told(call: Callable[[RedisStore], object]) -> None:
    port = redis_server.free_port()
    with pytest.raises(UnavailableError, match=f"Redis at 127.0.0.1:{port}/3: .*see that it runs") as raised:
        call(RedisStore(f"redis://me:hunter2@127.0.0.1:{port}/3", key=KEY))
    assert "hunter2" not in str(raised.value)


def test_a_host_that_cannot_be_is_told() -> None:
    with pytest.raises(StoreError, match=r"Redis at a\.\.b:6379/0"):
        RedisStore("redis://a..b", key=KEY).load("key")


def test_a_redis_that_hangs_is_waited_for_only_so_long(own: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_store, "ANSWER_SECONDS", 0.1)
    store, fresh = RedisStore(own.url, key=KEY), RedisStore(own.url, key=KEY)
    put(store, "key", b"value")
    os.kill(own.pid, signal.SIGSTOP)
    try:
        for asked in (store, fresh):
            for call in CALLS.values():
                begun = time.monotonic()
                with pytest.raises(UnavailableError, match="it is stopped, overloaded or cut off"):
                    call(asked)
                assert time.monotonic() - begun < 10 / 3 * 0.1 + 0.5
    finally:
        os.kill(own.pid, signal.SIGCONT)
    assert store.load("key") == fresh.load("key") == Stored(b"value", "r1")


def test_dropped_connections_are_made_anew(own: Redis) -> None:
    store = RedisStore(own.url, key=KEY)
    put(store, "key", b"value")
    assert own.ask("CLIENT", "KILL", "TYPE", "normal") > 0
    put(store, "key", b"next", "r2", "r1")


def connections(server: Redis) -> set[str]:
    with redis.Redis(port=server.port) as client:
        return {about["addr"] for about in client.client_list() if about["id"] != str(client.client_id())}


def test_a_former_primary_is_left_after_its_refusal(own: Redis) -> None:
    store = RedisStore(own.url, key=KEY)
    put(store, "key", b"value")
    before = connections(own)
    own.ask("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(NotWritableError, match="primary"):
        store.save("key", b"next", revision="r2", expected="r1")
    own.ask("REPLICAOF", "NO", "ONE")
    put(store, "key", b"next", "r2", "r1")
    assert before
    assert not before & connections(own)
