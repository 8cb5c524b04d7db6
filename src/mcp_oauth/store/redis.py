"""The store for fleets: sealed values in a Redis that many machines share. Nothing leaves the process in plain text.

What lies in the Redis, `<slot>` being the SHA-256 of a key in hex and `{mcp-oauth}` the prefix:

    {mcp-oauth}:header                     the store's key under a password (`sealing`), or only which key it is
    {mcp-oauth}:records                    the set of all slots ever saved to
    {mcp-oauth}:record:<slot>              the sealed value
    {mcp-oauth}:record:<slot>:corrupt-<n>  what was found in a record's place and was no record of that key
    {mcp-oauth}:lock:<slot>                who has the lock, until it lapses
    {mcp-oauth}:fence                      how many locks were ever taken

The braces put all of it into one hash slot, so that a script may touch several of them.

**A save** reads the record, unseals it, judges its revision, and hands a script what it read: if that still lies there
byte for byte, it is replaced. So nothing is believed, and nothing overwritten, that was not unsealed. Every call is
one attempt: where an answer is lost, the save may have happened, and reading tells (RULES 4.10).

**A lock** is a lease of 13 seconds. Its token holds a fencing number that grows with each holder, so what a former
holder still wants with it comes to nothing. No save asks for that number: saves are judged by revision alone, which
protects the record from a late writer whether its lock lapsed or was never taken. A lock that is lost (lapsed by the
server's clock, evicted, flushed, or forgotten at a failover) costs at most a renewal too many, which the renewal
protocol settles.

**What a Redis may lose.** Only `appendonly yes` with `appendfsync always` outlives a crash; with less, or where
CONFIG may not be asked, a save says `durable=False`. Replication is asynchronous: a failover may take back what was
saved last, and with it a refresh token that its server counts as spent (RULES 4.15); no client can save that.

**Who can reach the Redis** can destroy values, hold locks, or put an older value back, but can neither read nor forge
one. With `redis://` that includes whoever listens on the network and reads the Redis password there: use `rediss://`
on a network that is not your own.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from . import sealing
from .base import (
    Conflict,
    DamagedError,
    Held,
    NewerFormatError,
    NotWritableError,
    Saved,
    StoreBusyError,
    Stored,
    StoreError,
    StoreFullError,
    UnavailableError,
    UnsafePlaceError,
    WrongPasswordError,
)
from .lease import LEASE_SECONDS, LapsingLease, elapsed, this_process

ANSWER_SECONDS = 3.0
"""How long a connection, and then each answer, is waited for: a call to a Redis that hangs ends within ten seconds."""
ROUNDS = 5
"""How often a record may change between reading and writing before a call gives up."""
BATCH = 100
PERMISSIONS = "+get +set +del +exists +incr +sadd +sscan +pexpire +renamenx +eval +evalsha +info +config|get"

_LEASE_MS = round(LEASE_SECONDS * 1000)
_GIVEN_KEY = b"mcp_oauth key "
_SLOT = re.compile(r"[0-9a-f]{64}")


class _Script:
    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


# KEYS: header, records. ARGV: a header.
_CREATE = _Script("""
local there = redis.call('GET', KEYS[1])
if there then return there end
if redis.call('EXISTS', KEYS[2]) == 1 then return false end
redis.call('SET', KEYS[1], ARGV[1])
return ARGV[1]
""")

# KEYS: header, record, records. ARGV: the header and the record that were read ('' for none), a new record, its slot.
_SWAP = _Script("""
if redis.call('GET', KEYS[1]) ~= ARGV[1] or (redis.call('GET', KEYS[2]) or '') ~= ARGV[2] then return 0 end
redis.call('SADD', KEYS[3], ARGV[4])
redis.call('SET', KEYS[2], ARGV[3])
return 1
""")

# KEYS: record, where to put it. ARGV: the record that was read. 1: moved; 0: that place is taken; -1: it has changed.
_MOVE = _Script("""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return -1 end
return redis.call('RENAMENX', KEYS[1], KEYS[2])
""")

# KEYS: lock, fence. ARGV: who, milliseconds. Our token, or what is there.
_LOCK = _Script("""
local there = redis.call('GET', KEYS[1])
if there then return {0, there} end
local token = redis.call('INCR', KEYS[2]) .. ' ' .. ARGV[1]
redis.call('SET', KEYS[1], token, 'PX', ARGV[2])
return {1, token}
""")

# KEYS: lock. ARGV: our token, milliseconds.
_EXTEND = _Script("""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
""")

# KEYS: lock. ARGV: our token.
_RELEASE = _Script("""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
""")


class _Opened(NamedTuple):
    header: bytes
    key: sealing.StoreKey


class _Seen(NamedTuple):
    """What lies at a slot: the bytes, and what they hold."""

    opened: _Opened
    data: bytes | None
    record: sealing.Record | None


class RedisStore:
    """Sealed values in a Redis. Connected at the first call, not before; any number of threads may share one."""

    def __init__(
        self,
        url: str,
        *,
        key: bytes | None = None,
        password: str | Callable[[], str] | None = None,
        kdf: sealing.KdfName = "argon2id",
        prefix: str = "mcp-oauth",
        allow_eviction: bool = False,
    ) -> None:
        """Take a Redis by its URL, as redis-py has it, and what seals the values: a key, or a password.

        `url`: `redis://user:password@host:6379/0`, `rediss://…` for TLS (`?ssl_ca_certs=<file>` for a CA of one's
        own), `unix:///path?db=0`. Not for Redis Cluster or Sentinel.
        `key`: 32 random bytes that all processes of the fleet are given (`secrets.token_bytes(32)`).
        `password`: text, or what asks for it, once for all threads unless it changes. Whoever reads the Redis can
        try to guess it; a key leaves nothing to guess.
        `kdf`: for a store made here; an existing one says itself. "pbkdf2" where FIPS 140 rules.
        `prefix`: what all names in the Redis begin with. Another prefix is another store.
        `allow_eviction`: for a Redis that drops any key when its memory is full: logins will be lost.

        Raises `ValueError` for what cannot be, `UnavailableError` where redis-py is missing.
        """
        if (key is None) == (password is None):
            raise ValueError("give a key of 32 bytes, or a password")
        if not prefix or set(prefix) & set("{}"):
            raise ValueError("a prefix is some text without braces")
        self._given = None if key is None else sealing.given_key(key)
        self._password = (lambda: password) if isinstance(password, str) else password
        self._kdf: sealing.KdfName = kdf
        self._prefix = prefix
        self._header, self._records, self._fence = map(self._name, ("header", "records", "fence"))
        self._opened: _Opened | None = None
        options = _options(url)
        self._place = _place(options)
        self._server = _Server(self._place, allow_eviction)
        self._client = _client({**options, "redis_connect_func": self._server.greet})

    @property
    def identity(self) -> str:
        """`redis:<host>:<port>/<db>/<prefix>`, or with the path of a socket."""
        return f"redis:{self._place}/{self._prefix}"

    def load(self, key: str) -> Stored | None:
        """The value, or None where there never was one.

        Raises `DamagedError` once for what is no record of this key, having renamed it; having changed nothing,
        `WrongPasswordError`, `NewerFormatError`, `UnsafePlaceError`, and `UnavailableError` where nobody answers.
        """
        with self._told():
            return sealing.stored(self._see(_slot(key)).record)

    def save(self, key: str, value: bytes, *, revision: str, expected: str | None) -> Saved | Conflict:
        """Compare-and-swap by revision; durable if the server writes and flushes each change before it answers.

        Raises `StoreFullError`, `NotWritableError`, and as `load`. Where the answer was lost, the value may be saved.
        """
        with self._told():
            slot = _slot(key)
            for _ in range(ROUNDS):
                seen = self._see(slot)
                there = sealing.stored(seen.record)
                if (there and there.revision) != expected:
                    return Conflict(there)
                if self._swap(slot, seen, sealing.Record(key, revision, value)):
                    return Saved(durable=self._server.durable)
            raise self._restless(slot)

    def keys(self) -> tuple[str, ...]:
        """The keys of all saved values, asked for in pieces, so that others are served meanwhile. Raises as `load`."""
        with self._told():
            self._look(())
            members: Iterator[bytes] = self._client.sscan_iter(self._records, count=BATCH)
            texts = sorted({member.decode("ascii", "replace") for member in members})
            slots = [text for text in texts if _SLOT.fullmatch(text)]
            batches = [slots[start : start + BATCH] for start in range(0, len(slots), BATCH)]
            return tuple(name for batch in batches for name in self._names(batch))

    def try_lock(self, key: str) -> LapsingLease | Held:
        """Try once to take the lock, which lapses after 13 seconds. That it can be written shows that a save can."""
        with self._told():
            self._look(())
            lock, since = self._name(f"lock:{_slot(key)}"), elapsed()
            me = f"{os.urandom(8).hex()} {this_process()}"
            ours, token = self._run(_LOCK, [lock, self._fence], [me, _LEASE_MS])
            if not ours:
                return Held(_plain(token).split(" ", 2)[-1])
            extend, release = partial(self._extend, lock, token), partial(self._release, lock, token)
            return LapsingLease(since + LEASE_SECONDS, extend=extend, release=release)

    def _extend(self, lock: str, token: bytes) -> float | None:
        since = elapsed()
        with self._told():
            return since + LEASE_SECONDS if self._run(_EXTEND, [lock], [token, _LEASE_MS]) else None

    def _release(self, lock: str, token: bytes) -> None:
        with self._told():
            self._run(_RELEASE, [lock], [token])

    # The header.

    def _open(self, header: bytes | None) -> _Opened:
        """The store's key, by the header that lies there now: another one after somebody emptied the Redis."""
        known = self._opened
        if known is not None and known.header == header:
            return known
        with sealing.asking(self.identity, self._password) as password, self._naming(self._header):
            there: bytes = header or self._client.get(self._header) or self._create_header(password)
            known = self._opened  # another thread may have been faster
            if known is None or known.header != there:
                self._opened = known = _Opened(there, self._key_of(there, known and known.key, password))
            return known

    def _create_header(self, password: sealing.Password | None) -> bytes:
        if self._given is not None:
            made = _mark(self._given)
        else:
            made = sealing.new_header(sealing.new_key(), password, self._kdf)
        header: bytes | None = self._run(_CREATE, [self._header, self._records], [made])
        if header is None:
            raise DamagedError(f"is missing, and the records beside it need it; {sealing.HEADER_CURE}")
        return header

    def _key_of(
        self, header: bytes, known: sealing.StoreKey | None, password: sealing.Password | None
    ) -> sealing.StoreKey:
        by_key = header.startswith(_GIVEN_KEY)
        if self._given is None:
            if by_key:
                raise WrongPasswordError("has a key instead of a password; nothing was changed")
            return sealing.open_header(header, password, known)
        if header != _mark(self._given):
            what = "another key" if by_key else "a password instead of a key"
            raise WrongPasswordError(f"has {what}; nothing was changed")
        return self._given

    # Records.

    def _look(self, slots: Sequence[str]) -> tuple[_Opened, list[bytes | None]]:
        pipeline = self._client.pipeline(transaction=False)
        for name in (self._header, *map(self._record, slots)):
            pipeline.get(name)
        header, *found = pipeline.execute()
        return self._open(header), found

    def _see(self, slot: str) -> _Seen:
        for _ in range(ROUNDS):
            opened, (data,) = self._look([slot])
            try:
                return _Seen(opened, data, self._unseal(opened.key, slot, data))
            except DamagedError as error:
                self._move_aside(slot, data or b"", error)
        raise self._restless(slot)

    def _names(self, slots: Sequence[str]) -> Iterator[str]:
        opened, found = self._look(slots)
        for slot, data in zip(slots, found, strict=True):
            try:
                record = self._unseal(opened.key, slot, data)
            except DamagedError:
                record = self._see(slot).record
            if record is not None:
                yield record.name

    def _unseal(self, key: sealing.StoreKey, slot: str, data: bytes | None) -> sealing.Record | None:
        if data is None:
            return None
        try:
            return sealing.unseal(key, bytes.fromhex(slot), data)
        except NewerFormatError as error:
            raise NewerFormatError(f"{self._where(self._record(slot))} {error}") from None

    def _move_aside(self, slot: str, data: bytes, error: DamagedError) -> None:
        """Give what is no record of this slot another name, and tell; unless something else lies there by now."""
        name, number, moved = self._record(slot), 0, 0
        while moved == 0:
            number += 1
            aside = f"{name}:corrupt-{number}"
            moved = self._run(_MOVE, [name, aside], [data])
            if moved > 0:
                raise DamagedError(f"{self._where(name)} {error}; it was renamed to {aside}: log in again") from None

    def _swap(self, slot: str, seen: _Seen, record: sealing.Record) -> bool:
        names = [self._header, self._record(slot), self._records]
        sealed = sealing.seal(seen.opened.key, record)
        return bool(self._run(_SWAP, names, [seen.opened.header, seen.data or b"", sealed, slot]))

    # Names, and what is told.

    def _name(self, what: str) -> str:
        return f"{{{self._prefix}}}:{what}"

    def _record(self, slot: str) -> str:
        return self._name(f"record:{slot}")

    def _where(self, name: str) -> str:
        return f"{name} in Redis at {self._place}"

    def _restless(self, slot: str) -> StoreBusyError:
        return StoreBusyError(f"{self._where(self._record(slot))} keeps changing; try again")

    @contextlib.contextmanager
    def _naming(self, name: str) -> Generator[None]:
        try:
            yield
        except StoreError as error:
            raise type(error)(f"{self._where(name)} {error}") from error

    def _run(self, script: _Script, names: Sequence[str], arguments: Sequence[bytes | str | int]) -> Any:
        """Run a script by its hash; as text where the server does not know it yet, or not any more."""
        try:
            return self._client.evalsha(script.sha, len(names), *names, *arguments)
        except _redis().exceptions.NoScriptError:
            return self._client.eval(script.text, len(names), *names, *arguments)

    @contextlib.contextmanager
    def _told(self) -> Generator[None]:
        try:
            yield
        except (_redis().RedisError, _redis().ChildDeadlockedError, UnicodeError) as error:
            # The others may be dead as well, or lead to what is no primary any more: the next call connects anew.
            self._client.connection_pool.disconnect(inuse_connections=False)
            raise _explained(error, self._place) from error


class _Server:
    """What a server says of itself, asked on each new connection: it may be another one, or have restarted."""

    def __init__(self, place: str, allow_eviction: bool) -> None:
        self.durable = False
        self._place = place
        self._allow_eviction = allow_eviction

    def greet(self, connection: Any) -> None:
        """Log in, and judge whether this is a place for grants. What may not be asked counts as unknown."""
        connection.on_connect()
        words = _asked(connection, "CONFIG", "GET", "append*")
        settings = zip(words[::2], words[1::2], strict=True)
        self.durable = set(settings) >= {(b"appendonly", b"yes"), (b"appendfsync", b"always")}
        memory: list[bytes] = _asked(connection, "INFO", "memory").split()
        if any(word.startswith(b"maxmemory_policy:allkeys") for word in memory) and b"maxmemory:0" not in memory:
            self._refuse_eviction(connection)

    def _refuse_eviction(self, connection: Any) -> None:
        if not self._allow_eviction:
            connection.disconnect()
            why = "drops any key when its memory is full, and with it a login"
            cure = "set its maxmemory-policy to noeviction or volatile-ttl, or allow_eviction=True"
            raise UnsafePlaceError(f"Redis at {self._place} {why}; {cure}")


def _asked(connection: Any, *command: str) -> Any:
    connection.send_command(*command)
    try:
        return connection.read_response()
    except _redis().ResponseError:
        return b""


# The client. It is untyped: redis-py's own annotations change between releases, and say `Awaitable` of what is none.


def _redis() -> Any:
    try:
        return importlib.import_module("redis")
    except ImportError:
        cure = 'pip install "mcp-oauth-sansio[redis]"'
        raise UnavailableError(f"the Redis store needs the package redis: {cure}") from None


def _options(url: str) -> dict[str, Any]:
    try:
        return dict(_redis().connection.parse_url(url))
    except ValueError:  # whose text may hold a part of the password
        cure = "redis://user:password@host:6379/0, rediss://… or unix:///path, with a password that is percent-encoded"
        raise ValueError(f"this is no URL of a Redis; give {cure}") from None


def _place(options: Mapping[str, Any]) -> str:
    host = str(options.get("host", "localhost")).lower()
    address = f"[{host}]" if ":" in host else host
    where = options.get("path", f"{address}:{options.get('port', 6379)}")
    return f"{where}/{options.get('db', 0)}"


def _client(options: Mapping[str, Any]) -> Any:
    """A client that tries once. What the URL says of time-outs and retries is passed over: a lost answer is told."""
    redis = _redis()
    ours = {
        "socket_timeout": ANSWER_SECONDS,
        "socket_connect_timeout": ANSWER_SECONDS,
        "retry": redis.retry.Retry(redis.backoff.NoBackoff(), 0),
        "retry_on_timeout": False,
        "retry_on_error": (),
        "protocol": 2,
        "decode_responses": False,
    }
    pool = redis.ConnectionPool(**{**options, **ours})
    try:
        pool.connection_class(**pool.connection_kwargs)
    except (TypeError, redis.RedisError):
        raise ValueError("redis-py does not know an option of this URL, or its value") from None
    return redis.Redis.from_pool(pool)


def _slot(key: str) -> str:
    return sealing.slot_of(key).hex()


def _mark(key: sealing.StoreKey) -> bytes:
    """The header of a store whose key is kept elsewhere: which key, and nothing of it."""
    return _GIVEN_KEY + key.id.hex().encode()


def _plain(said: bytes | str) -> str:
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
    return "".join(filter(str.isprintable, text))[:300]


_CLUSTER = "use a Redis that is no cluster: this store does not follow its redirections"
_ACL = f"give this user the right to the keys of this store and to {PERMISSIONS}"
_CURES: Sequence[tuple[Sequence[str], type[StoreError], str]] = (
    (("OutOfMemoryError", "OOM"), StoreFullError, "raise its maxmemory, or remove what is not needed"),
    (("MISCONF",), NotWritableError, "it cannot write to its disk: see its log, make room, repair it"),
    (("ReadOnlyError", "READONLY"), NotWritableError, "this is a replica: connect to the primary"),
    (("NoPermissionError", "NOPERM", "can't run this command"), NotWritableError, _ACL),
    (("AuthenticationError",), StoreError, "put the right user and password into the URL"),
    (("BusyLoadingError",), StoreError, "it is reading its data after a restart: try again soon"),
    (("MovedError", "AskError", "ClusterError", "MOVED", "CLUSTERDOWN"), StoreError, _CLUSTER),
    (("WRONGTYPE",), DamagedError, "something else has taken this name: remove it, or take another prefix"),
    (("TimeoutError",), UnavailableError, "it is stopped, overloaded or cut off. What was being saved may be there"),
    (("ConnectionError",), UnavailableError, "see that it runs and can be reached. What was being saved may be there"),
)
"""What tells an error (the name of its class, or a word of the server's), what it is, and the cure."""


def _explained(error: Exception, place: str) -> StoreError:
    classes, text = {kind.__name__ for kind in type(error).__mro__}, str(error)
    for signs, kind, cure in _CURES:
        if any(sign in classes or re.search(rf"\b{sign}\b", text) for sign in signs):
            return kind(f"Redis at {place}: {_plain(text)}; {cure}")
    return StoreError(f"Redis at {place}: {_plain(text)}")
