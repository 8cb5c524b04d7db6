"""The store for places that have a HashiCorp Vault or an OpenBao: one secret of a KV version 2 engine for each key.

What lies in the engine, `<slot>` being the SHA-256 of a key in hex:

    <prefix>/<slot>              a record: its key (percent-encoded), revision, value (base64), and who has its lock
    <prefix>/<slot>-corrupt-<n>  a copy of what was found in a record's place and was no record of that key

Vault seals what it keeps, so values are not sealed a second time: whoever may read the path reads the tokens. The
policy that a token or an AppRole needs is `POLICY`, and no more than that: nothing is ever deleted.

**A save** reads the record, judges its revision, and writes with the secret's version as check-and-set. If somebody
wrote in between, or the answer was lost, it reads again: our revision there means saved. The version says nothing
else, for whoever takes the lock raises it too. A secret that somebody deleted or destroyed is gone on from.

**Only one version is kept** (`max_versions=1` in the secret's metadata, set before the first write): else the refresh
tokens before this one stayed readable. A policy that forbids it is told, and nothing is written.

**A lock** is a lease of 13 seconds, written into the record by check-and-set (RULES 4.17). Its holder counts from
before it asked. Others take it over when they have seen it unchanged for that long by their own clock; or at once if
the version that they read is older than that and five seconds more by the server's clock (its `Date` against
`created_time`), so that the lock of a process that died yesterday keeps nobody waiting. No two machines' clocks are
ever compared, the wall clock of a holder is only told. A lock that is lost costs at most a renewal too many: saves
are judged by revision alone.

**Its own token** is renewed in passing, when a third of its life is left; an AppRole logs in anew, and a callable is
asked anew, when a token cannot be renewed, or was refused. No redirection is followed, it would take the token along.
"""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, unquote

import msgspec
from msgspec.structs import replace

from mcp_oauth.sansio.values import SecretBytes, Value

from .base import (
    Conflict,
    DamagedError,
    Held,
    NewerFormatError,
    Saved,
    StoreBusyError,
    Stored,
    UnavailableError,
)
from .lease import LEASE_SECONDS, Holder, LapsingLease, elapsed, this_process
from .sealing import slot_of
from .vault_server import CALL_SECONDS, POLICY, Server, checked_path, checked_url, with_approle, with_token

CLOCKS_APART = 5.0
"""How far apart the clocks of a cluster's nodes may be."""
ROUNDS = 50
"""How often a record may change between reading and writing before a call gives up."""
FORMAT = 1

_SLOT = re.compile(r"[0-9a-f]{64}")
_PLAIN = "/:@!$&'()*+,;=?#[]<> "
_A = TypeVar("_A")


# What lies in a secret, as Vault's answers have it.


class _Lock(msgspec.Struct, frozen=True):
    id: str
    holder: Holder
    until: float
    """By the wall clock of the holder: for people, and to tell an extended lock from one that was left."""


class _Record(Value, frozen=True, tag=False):
    shown = ("key",)

    format: int
    key: str
    revision: str | None = None
    """None: nothing was saved yet, there is only a lock."""
    value: SecretBytes = b""
    lock: _Lock | None = None


class _Metadata(msgspec.Struct, frozen=True):
    version: int
    created_time: str = ""


class _Secret(Value, frozen=True, tag=False):
    metadata: _Metadata
    data: dict[str, Any] | None = None


class _Listing(msgspec.Struct, frozen=True):
    keys: tuple[str, ...]


_NOTHING = _Record(FORMAT, "")


class _Found(NamedTuple):
    """What lies at a slot."""

    slot: str
    version: int
    record: _Record
    age: float = 0.0
    """Seconds since this version was written, by the server's clock."""
    again: bool = False
    """Whether this call has tried to write here before."""


class VaultStore:
    """Records in a Vault. Connected at the first call, not before; threads and forked children may share one."""

    def __init__(
        self,
        url: str,
        *,
        token: str | Callable[[], str] | None = None,
        role_id: str | None = None,
        secret_id: str | None = None,
        mount_point: str = "secret",
        path_prefix: str = "mcp-oauth",
        namespace: str | None = None,
        auth_mount: str = "approle",
        verify: str | None = None,
        allow_http: bool = False,
    ) -> None:
        """Take a Vault by its URL, and a token or an AppRole to log in with. The environment is not asked for them.

        `token`: text, or what asks for it: at the first call, and again when the one at hand is refused.
        `role_id`, `secret_id`: an AppRole, instead of a token; one without `bind_secret_id` has no secret.
        `mount_point`: a KV version 2 engine; `path_prefix`: what all paths in it begin with. `namespace`: where that
        engine and the AppRole are, in a Vault with namespaces; `auth_mount`: where AppRoles log in.
        `verify`: a file of the CAs that its certificate may come from, instead of the machine's.
        `allow_http`: for a network where nobody else listens. Loopback needs no leave.

        Raises `ValueError` for what cannot be, `UnsafePlaceError` for http:// to another machine.
        """
        if role_id is not None and token is None:
            log_in = with_approle(role_id, secret_id, auth_mount)
        elif token is not None and role_id is None:
            log_in = with_token(token)
        else:
            raise ValueError("give a token, or a role_id with its secret_id")
        address, space = checked_url(url, allow_http), checked_path("namespace", namespace) if namespace else ""
        self._mount, self._prefix = checked_path("mount_point", mount_point), checked_path("path_prefix", path_prefix)
        policy = POLICY.replace("<mount>", self._mount).replace("<prefix>", self._prefix)
        self._server = Server(address, space, self._mount, policy, log_in, verify)
        self._identity = "vault:" + "/".join(filter(None, (address, space, self._mount, self._prefix)))
        self._limited: set[str] = set()
        self._watched: dict[str, tuple[_Lock, float]] = {}

    @property
    def identity(self) -> str:
        """`vault:<url>/<namespace>/<mount>/<prefix>`."""
        return self._identity

    def load(self, key: str) -> Stored | None:
        """The value, or None where there never was one, or where somebody deleted it.

        Raises `DamagedError` once for what is no record of this key, having moved it aside; having changed nothing,
        `NewerFormatError`, `WrongPasswordError`, and `UnavailableError` where nobody answers or the Vault is sealed.
        """
        return _stored(self._read(_slot(key), _deadline()).record)

    def save(self, key: str, value: bytes, *, revision: str, expected: str | None) -> Saved | Conflict:
        """Compare-and-swap by revision; durable.

        Raises `NotWritableError`, `StoreFullError`, `StoreBusyError`, and as `load`. Where the server did not answer in
        time, the value may be saved.
        """

        def judge(found: _Found) -> _Record | Saved | Conflict:
            there = _stored(found.record)
            if found.again and there and there.revision == revision:
                return Saved(durable=True)
            if (there and there.revision) != expected:
                return Conflict(there)
            return replace(found.record, revision=_quoted(revision), value=value)

        answer: _Record | Saved | Conflict = self._change(key, judge)
        return Saved(durable=True) if isinstance(answer, _Record) else answer

    def keys(self) -> tuple[str, ...]:
        """The keys of all saved values, each read to know it. Raises as `load`."""
        answer = self._server.ask(_deadline(), "get", self._path("metadata"), params={"list": "true"})
        names = () if answer.status == 404 else self._server.data(answer, _Listing).keys
        found = (self._read(name, _deadline()).record for name in names if _SLOT.fullmatch(name))
        return tuple(_text(record.key) for record in found if record.revision is not None)

    def try_lock(self, key: str) -> LapsingLease | Held:
        """Try once to take the lock, which lapses after 13 seconds. That it was written shows that a save can be."""
        lock_id = os.urandom(16).hex()
        answer = self._hold(key, lock_id, anew=True)
        if isinstance(answer, Held):
            return answer
        extend, release = partial(self._extend, key, lock_id), partial(self._release, key, lock_id)
        return LapsingLease(answer, extend=extend, release=release)

    # The lock.

    def _hold(self, key: str, lock_id: str, *, anew: bool) -> float | Held:
        """Write our lock into the record: `anew` if it is free, else only if it is there. Returns when it lapses."""
        since = 0.0

        def judge(found: _Found) -> _Record | Held:
            nonlocal since
            lock = found.record.lock
            if (lock is None or lock.id != lock_id) and not (anew and self._is_free(found)):
                return Held(str(lock.holder) if lock else "nobody")
            since = elapsed()
            return replace(found.record, lock=_Lock(lock_id, this_process(), time.time() + LEASE_SECONDS))

        answer = self._change(key, judge)
        return answer if isinstance(answer, Held) else since + LEASE_SECONDS

    def _extend(self, key: str, lock_id: str) -> float | None:
        answer = self._hold(key, lock_id, anew=False)
        return None if isinstance(answer, Held) else answer

    def _is_free(self, found: _Found) -> bool:
        """Whether the lock was released, or has lapsed: seen unchanged for so long, or in a version that is so old."""
        lock = found.record.lock
        if lock is None:
            self._watched.pop(found.slot, None)
            return True
        seen, since = self._watched.get(found.slot, (None, 0.0))
        if seen != lock:
            since = elapsed()
            self._watched[found.slot] = (lock, since)
        return elapsed() - since >= LEASE_SECONDS or found.age >= LEASE_SECONDS + CLOCKS_APART

    def _release(self, key: str, lock_id: str) -> None:
        def judge(found: _Found) -> _Record | None:
            lock = found.record.lock
            return replace(found.record, lock=None) if lock and lock.id == lock_id else None

        self._change(key, judge)

    # Records.

    def _change(self, key: str, judge: Callable[[_Found], _Record | _A]) -> _Record | _A:
        """Read, judge, write, until nobody came in between. What is judged is a record to write, or the answer."""
        slot, deadline, lost = _slot(key), _deadline(), False
        for turn in range(ROUNDS):
            found = self._read(slot, deadline)
            wanted = judge(found._replace(again=turn > 0))
            if not isinstance(wanted, _Record):
                return wanted
            try:
                if self._write(slot, replace(wanted, key=_quoted(key)), found.version, deadline):
                    return wanted
            except UnavailableError:  # it may have been written: reading tells, if there is an answer to that
                if lost:
                    raise
                lost = True
        raise StoreBusyError(f"{self._where(slot)} keeps changing; try again")

    def _read(self, slot: str, deadline: float) -> _Found:
        answer = self._server.ask(deadline, "get", self._path("data", slot))
        if answer.status == 404 and not answer.body.get("data"):
            return _Found(slot, 0, _NOTHING)
        secret = self._server.data(answer, _Secret)
        version = secret.metadata.version
        if not secret.data:
            return _Found(slot, version, _NOTHING)
        try:
            record = _record(slot, secret.data)
        except NewerFormatError as error:
            raise NewerFormatError(f"{self._where(slot)} {error}") from None
        except DamagedError as error:
            copied = self._move_aside(slot, secret.data, version, deadline)
            raise DamagedError(f"{self._where(slot)} {error}; it was moved to {copied}: log in again") from None
        return _Found(slot, version, record, _age(secret.metadata.created_time, answer.date))

    def _move_aside(self, slot: str, content: Mapping[str, Any], version: int, deadline: float) -> str:
        """Copy what is no record of this slot to a free place, and empty the slot, unless it has changed by now."""
        names = (f"{slot}-corrupt-{number}" for number in itertools.count(1))
        name = next(name for name in names if self._swap(name, content, 0, deadline))
        self._swap(slot, {}, version, deadline)
        return name

    def _write(self, slot: str, record: _Record, version: int, deadline: float) -> bool:
        """False: it has changed by now."""
        if version == 0 or slot not in self._limited:
            self._server.ask(deadline, "post", self._path("metadata", slot), {"max_versions": 1})
            self._limited.add(slot)
        return self._swap(slot, msgspec.to_builtins(record), version, deadline)

    def _swap(self, name: str, content: Mapping[str, Any], version: int, deadline: float) -> bool:
        body = {"data": content, "options": {"cas": version}}
        return not self._server.ask(deadline, "post", self._path("data", name), body).swap_refused

    def _path(self, kind: str, *names: str) -> str:
        return "/".join((self._mount, kind, self._prefix, *names))

    def _where(self, slot: str) -> str:
        return f"{self._path('data', slot)} in Vault at {self._server.url}"


# Records, and the words they are found by.


def _deadline() -> float:
    return time.monotonic() + CALL_SECONDS


def _slot(key: str) -> str:
    return slot_of(key).hex()


def _record(slot: str, content: Mapping[str, Any]) -> _Record:
    number = content.get("format")
    if isinstance(number, int) and number > FORMAT:
        raise NewerFormatError(f"has format {number}, this release reads up to {FORMAT}; use a newer mcp_oauth")
    try:
        record = msgspec.convert(content, _Record)
        key, _ = _text(record.key), _text(record.revision or "")
    except ValueError:
        raise DamagedError("is no record of mcp_oauth") from None
    if _slot(key) != slot:
        raise DamagedError("is another key's record, moved here")
    return record


def _stored(record: _Record) -> Stored | None:
    return None if record.revision is None else Stored(record.value, _text(record.revision))


def _quoted(text: str) -> str:
    """Any text as one that JSON keeps in every language: lone surrogates as well."""
    return quote(text, safe=_PLAIN, errors="surrogatepass")


def _text(quoted: str) -> str:
    return unquote(quoted, errors="surrogatepass")


def _age(written: str, now: str) -> float:
    """Seconds between the time of a version (RFC 3339) and that of an answer (RFC 9110); 0 where one is missing."""
    try:
        start = datetime.strptime(written[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc)
        return (parsedate_to_datetime(now) - start).total_seconds()
    except (ValueError, TypeError):
        return 0.0
