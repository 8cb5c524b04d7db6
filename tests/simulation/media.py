"""What grants are kept on, as processes share it: a disk with kernel locks, a Redis, a Vault. The stores of the library
run on it as they are, but for the files, which have tests with real kills (`tests/store`); a disk stands for them.

Each exchange with a medium takes time, may fail before or after it is done, and may be the last thing that its process
does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import format_datetime
from typing import Any, Protocol, TypeVar, cast

import msgspec
import redis

from mcp_oauth.store import redis as redis_store
from mcp_oauth.store.base import Conflict, Held, ProcessLease, Saved, Store, Stored, StoreError
from mcp_oauth.store.redis import RedisStore
from mcp_oauth.store.vault import VaultStore
from mcp_oauth.store.vault_server import Answer

T = TypeVar("T")


class Access(Protocol):
    """How a process gets at a medium: with delays and faults."""

    name: str

    def exchange(self, what: str, do: Callable[[], T], broken: Callable[[str], Exception]) -> T:
        """Do something over there; raises `broken` where no answer comes."""
        ...

    def saved(self) -> None:
        """The save of the running task has changed the medium."""
        ...

    def seconds(self) -> float:
        """The medium's own clock."""
        ...


class Medium(Protocol):
    """What all media have."""

    leases: bool
    """Its locks lapse."""
    durable: bool

    def store(self, access: Access) -> Store:
        """The store that a process opens on it."""
        ...

    def died(self, access: Access) -> None:
        """A process has ended: the system takes its locks away."""
        ...

    def lose_locks(self) -> None:
        """All locks are forgotten."""
        ...

    def locked(self, seconds: float) -> int:
        """How many locks are held at that time."""
        ...

    def snapshot(self) -> Any:
        """All that is kept, to be restored later."""
        ...

    def restore(self, snapshot: Any) -> None:
        """Fall back to what was kept then."""
        ...


# --- A disk -----------------------------------------------------------------------------------------------------------


@dataclass
class Disk:
    """Files and locks of the system: a lock ends with its process, and a save is durable unless the disk lies."""

    durable: bool = True
    leases: bool = False
    stored: dict[str, Stored] = field(default_factory=dict[str, Stored])
    locks: dict[str, Access] = field(default_factory=dict[str, Access])

    def store(self, access: Access) -> Store:
        return DiskStore(self, access)

    def died(self, access: Access) -> None:
        self.locks = {key: holder for key, holder in self.locks.items() if holder is not access}

    def lose_locks(self) -> None:
        """The system does not."""

    def locked(self, seconds: float) -> int:
        return len(self.locks)

    def snapshot(self) -> dict[str, Stored]:
        return dict(self.stored)

    def restore(self, snapshot: Any) -> None:
        self.stored = dict(snapshot)


class DiskStore:
    """A store on a disk."""

    def __init__(self, disk: Disk, access: Access) -> None:
        self._disk = disk
        self._access = access
        self._mine: set[str] = set()

    @property
    def identity(self) -> str:
        return "disk"

    def load(self, key: str) -> Stored | None:
        return self._access.exchange("read", lambda: self._disk.stored.get(key), StoreError)

    def keys(self) -> tuple[str, ...]:
        return tuple(self._disk.stored)

    def save(self, key: str, value: bytes, *, revision: str, expected: str | None) -> Saved | Conflict:
        def write() -> Saved | Conflict:
            there = self._disk.stored.get(key)
            if (there and there.revision) != expected:
                return Conflict(there)
            self._disk.stored[key] = Stored(value, revision)
            self._access.saved()
            return Saved(self._disk.durable)

        return self._access.exchange("write", write, StoreError)

    def try_lock(self, key: str) -> ProcessLease | Held:
        def lock() -> ProcessLease | Held:
            holder = self._disk.locks.setdefault(key, self._access)
            if holder is not self._access or key in mine:
                return Held(holder.name)
            mine.add(key)
            return ProcessLease(lambda: unlock(key))

        def unlock(key: str) -> None:
            self._disk.locks.pop(key, None)
            mine.discard(key)

        mine = self._mine
        try:
            return self._access.exchange("lock", lock, StoreError)
        except StoreError:
            if key in mine:
                unlock(key)
            raise


# --- A Redis ----------------------------------------------------------------------------------------------------------


@dataclass
class RedisServer:
    """What lies in a Redis, and its scripts."""

    durable: bool = True
    leases: bool = True
    values: dict[str, bytes] = field(default_factory=dict[str, bytes])
    locks: dict[str, tuple[bytes, float]] = field(default_factory=dict[str, "tuple[bytes, float]"])
    fence: int = 0

    def store(self, access: Access) -> Store:
        store = RedisStore("redis://cache.example.com", key=bytes(32))
        store._client = _RedisClient(self, access)
        store._server.durable = self.durable
        return store

    def died(self, access: Access) -> None:
        """Leases lapse by themselves."""

    def lose_locks(self) -> None:
        self.locks.clear()

    def locked(self, seconds: float) -> int:
        return sum(until > seconds for _, until in self.locks.values())

    def snapshot(self) -> dict[str, bytes]:
        return dict(self.values)

    def restore(self, snapshot: Any) -> None:
        self.values = dict(snapshot)

    def script(self, sha: str, names: Sequence[str], given: Sequence[Any], access: Access) -> Any:
        """What the scripts of `store.redis` do."""
        now = access.seconds()
        there, until = self.locks.get(names[0], (b"", 0.0))
        ours = until > now and bool(given) and there == given[0]
        match sha:
            case redis_store._CREATE.sha:
                return self.values.setdefault(names[0], given[0])
            case redis_store._SWAP.sha:
                if self.values.get(names[0]) != given[0] or self.values.get(names[1], b"") != given[1]:
                    return 0
                self.values[names[1]] = given[2]
                access.saved()
                return 1
            case redis_store._LOCK.sha:
                if until > now:
                    return [0, there]
                self.fence += 1
                token = f"{self.fence} {given[0]}".encode()
                self.locks[names[0]] = token, now + given[1] / 1000
                return [1, token]
            case redis_store._EXTEND.sha if ours:
                self.locks[names[0]] = there, now + given[1] / 1000
                return 1
            case redis_store._RELEASE.sha if ours:
                del self.locks[names[0]]
                return 1
        return 0


class _RedisClient:
    """redis-py, as far as the store uses it."""

    def __init__(self, server: RedisServer, access: Access) -> None:
        self._server = server
        self._access = access
        self._asked: list[str] = []
        self.connection_pool = self

    def disconnect(self, inuse_connections: bool) -> None: ...

    def evalsha(self, sha: str, count: int, *arguments: Any) -> Any:
        run = lambda: self._server.script(sha, arguments[:count], arguments[count:], self._access)  # noqa: E731
        return self._access.exchange(_SCRIPTS[sha], run, redis.exceptions.TimeoutError)

    def get(self, name: str) -> bytes | None:
        return self._access.exchange("get", lambda: self._server.values.get(name), redis.exceptions.TimeoutError)

    def pipeline(self, transaction: bool) -> Pipeline:
        return Pipeline(self._server, self._access)


class Pipeline:
    """Several GETs in one exchange."""

    def __init__(self, server: RedisServer, access: Access) -> None:
        self._server = server
        self._access = access
        self._names: list[str] = []

    def get(self, name: str) -> None:
        self._names.append(name)

    def execute(self) -> list[bytes | None]:
        look = lambda: [self._server.values.get(name) for name in self._names]  # noqa: E731
        return self._access.exchange("get", look, redis.exceptions.TimeoutError)


_SCRIPTS = {
    redis_store._CREATE.sha: "create",
    redis_store._SWAP.sha: "swap",
    redis_store._LOCK.sha: "lock",
    redis_store._EXTEND.sha: "extend",
    redis_store._RELEASE.sha: "release",
}


# --- A Vault ----------------------------------------------------------------------------------------------------------


@dataclass
class VaultServer:
    """What lies in a KV engine of version 2: for each path a version, when it was written, and a document."""

    durable: bool = True
    leases: bool = True
    secrets: dict[str, tuple[int, float, Mapping[str, Any]]] = field(
        default_factory=dict[str, "tuple[int, float, Mapping[str, Any]]"]
    )

    def store(self, access: Access) -> Store:
        store = VaultStore("https://vault.example.com", token="token")
        cast("Any", store)._server = _VaultClient(self, access)
        return store

    def died(self, access: Access) -> None:
        """Leases lapse by themselves."""

    def lose_locks(self) -> None:
        for path, (version, written, content) in self.secrets.items():
            self.secrets[path] = version + 1, written, {**content, "lock": None}

    def locked(self, seconds: float) -> int:
        """A lock without a living holder is taken by whoever has watched it for long enough: it cannot be seen here."""
        return 0

    def snapshot(self) -> Any:
        return dict(self.secrets)

    def restore(self, snapshot: Any) -> None:
        self.secrets = {path: (version + 100, *rest) for path, (version, *rest) in snapshot.items()}

    def ask(self, method: str, path: str, body: Any, access: Access) -> Answer:
        """Read, or check and set."""
        now = access.seconds()
        date = format_datetime(datetime.fromtimestamp(now, timezone.utc), usegmt=True)
        version, written, content = self.secrets.get(path, (0, 0.0, {}))
        if "/metadata/" in path:
            return Answer(204, {}, date)
        if method == "get":
            if not version:
                return Answer(404, {}, date)
            created = datetime.fromtimestamp(written, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
            data = {"metadata": {"version": version, "created_time": created}, "data": content}
            return Answer(200, {"data": data}, date)
        if body["options"]["cas"] != version:
            return Answer(400, {"errors": ["check-and-set parameter did not match the current version"]}, date)
        self.secrets[path] = version + 1, math.floor(now), body["data"]
        if body["data"].get("revision") != content.get("revision"):
            access.saved()
        return Answer(200, {"data": {"version": version + 1}}, date)


class _VaultClient:
    """`store.vault_server.Server`, as far as the store uses it."""

    url = "https://vault.example.com"

    def __init__(self, server: VaultServer, access: Access) -> None:
        self._server = server
        self._access = access

    def ask(
        self, deadline: float, method: str, path: str, body: Any = None, params: Mapping[str, str] | None = None
    ) -> Answer:
        ask = lambda: self._server.ask(method, path, body, self._access)  # noqa: E731
        return self._access.exchange(f"{method} {path.split('/')[1]}", ask, StoreError)

    def data(self, answer: Answer, kind: type[T]) -> T:
        return msgspec.convert(answer.body["data"], kind)
