"""What the tests of the Redis store share: short ways to use a store, and to look behind it."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import pytest

from mcp_oauth.store import sealing
from mcp_oauth.store.base import Held, Saved
from mcp_oauth.store.lease import LapsingLease
from mcp_oauth.store.redis import RedisStore
from tests.servers.redis_server import Redis

KEY = secrets.token_bytes(32)
CALLS: dict[str, Callable[[RedisStore], object]] = {
    "load": lambda store: store.load("key"),
    "save": lambda store: store.save("key", b"other", revision="r2", expected="r1"),
    "keys": lambda store: store.keys(),
    "try_lock": lambda store: store.try_lock("key"),
}
READING = [name for name in CALLS if name != "try_lock"]

any_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def put(store: RedisStore, key: str, value: bytes, revision: str = "r1", expected: str | None = None) -> None:
    assert store.save(key, value, revision=revision, expected=expected) == Saved(durable=True)


def take(store: RedisStore, key: str = "key") -> LapsingLease:
    lease = store.try_lock(key)
    assert not isinstance(lease, Held), lease
    return lease


def place(prefix: str, key: str, kind: str = "record") -> str:
    return f"{{{prefix}}}:{kind}:{sealing.slot_of(key).hex()}"


def header_of(prefix: str) -> str:
    return f"{{{prefix}}}:header"


def contents(server: Redis, prefix: str = "") -> dict[bytes, bytes]:
    """All that lies there, as Redis dumps it, but for the count of locks."""
    names = [name for name in server.ask("KEYS", f"*{prefix}*") if not name.endswith(b":fence")]
    return {name: server.ask("DUMP", name) for name in names}
