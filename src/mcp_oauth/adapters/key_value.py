"""A store as the asynchronous key-value store of `py-key-value-aio`, which FastMCP takes as its `token_storage`.

    from fastmcp import Client
    from fastmcp.client.auth import OAuth

    auth = OAuth(token_storage=KeyValue(EncryptedFileStore("~/logins", password=...)))
    async with Client("https://mcp.example.com/mcp", auth=auth) as client: ...

It has the methods of `key_value.aio.protocols.AsyncKeyValue` and is typed by them; the package itself is imported for
its errors only. On asyncio and trio, and from any number of event loops.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsFloat, TypeVar, cast

import msgspec
from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar

from mcp_oauth.io.ports import now
from mcp_oauth.sansio.grant import digest
from mcp_oauth.sansio.values import Secret, Value
from mcp_oauth.store.base import DamagedError, Saved, Store, StoreBusyError, Stored

MOST_THREADS = 8
"""Calls of stores at the same time in one event loop, whichever adapter makes them."""
MOST_ROUNDS = 50
"""Saves of one entry that may meet somebody else's."""

T = TypeVar("T")

Found = tuple[dict[str, Any] | None, float | None]
"""The value, and the seconds that it has left; None for what there is not."""


class Entry(Value, frozen=True, tag="entry-1"):
    """What is kept under one key of a collection."""

    shown = ("expires_at",)

    document: Secret | None = None
    """JSON; None once it was deleted."""
    expires_at: float | None = None
    """Wall seconds; None: never."""


DELETED = Entry()


class KeyValue:
    """Any store of ours as a key-value store: JSON objects by key and collection, with a time to live.

    All methods raise `StoreError` for what the store cannot do, as it is. A call that is cancelled ends what it began:
    no entry is half written. Entries expire by the wall clock, when they are read. A store never forgets a key: a
    deletion leaves a small record behind, and what has expired stays until it is replaced or deleted. That suits the
    tokens of a client, and not the countless short-lived entries of a server.
    """

    def __init__(self, store: Store) -> None:
        """The entries have keys of their own in it, beside logins of ours and the entries of other programs."""
        self._store = store

    def __repr__(self) -> str:
        return f"KeyValue({type(self._store).__name__})"

    async def get(self, key: str, *, collection: str | None = None) -> dict[str, Any] | None:
        """The value, or None where there is none. Raises `DamagedError` for what this version cannot read."""
        return (await self.ttl(key, collection=collection))[0]

    async def ttl(self, key: str, *, collection: str | None = None) -> Found:
        """The value and the seconds that it has left (None: for ever); None and None where there is none."""
        return (await self.ttl_many([key], collection=collection))[0]

    async def put(
        self, key: str, value: Mapping[str, Any], *, collection: str | None = None, ttl: SupportsFloat | None = None
    ) -> None:
        """Keep a value for `ttl` seconds (None: for ever), in place of whatever was there.

        Raises py-key-value's `SerializationError` for a value that is not JSON, and its `InvalidTTLError`.
        """
        await self.put_many([key], [value], collection=collection, ttl=ttl)

    async def delete(self, key: str, *, collection: str | None = None) -> bool:
        """Delete an entry. False: there was none."""
        return bool(await self.delete_many([key], collection=collection))

    async def get_many(self, keys: Sequence[str], *, collection: str | None = None) -> list[dict[str, Any] | None]:
        """The values, in the order of the keys."""
        return [value for value, _ in await self.ttl_many(keys, collection=collection)]

    async def ttl_many(self, keys: Sequence[str], *, collection: str | None = None) -> list[Found]:
        """The values and the seconds that they have left, in the order of the keys."""
        places = _places(keys, collection)
        return await _in_thread(lambda: [_found(self._store, place) for place in places])

    async def put_many(
        self,
        keys: Sequence[str],
        values: Sequence[Mapping[str, Any]],
        *,
        collection: str | None = None,
        ttl: SupportsFloat | None = None,
    ) -> None:
        """Keep some values, one after the other. Raises `ValueError` unless there are as many as keys."""
        if len(keys) != len(values):
            raise ValueError(f"{len(keys)} keys, but {len(values)} values")
        expires_at = None if ttl is None else now().wall + _seconds(ttl)
        entries = [Entry(_document(value), expires_at) for value in values]
        places = _places(keys, collection)
        await _in_thread(lambda: [_replace(self._store, *both) for both in zip(places, entries, strict=True)])

    async def delete_many(self, keys: Sequence[str], *, collection: str | None = None) -> int:
        """Delete some entries. Returns how many there were."""
        places = _places(keys, collection)
        return sum(await _in_thread(lambda: [_replace(self._store, place, DELETED) for place in places]))


# --- In the store -----------------------------------------------------------------------------------------------------


def _places(keys: Sequence[str], collection: str | None) -> list[str]:
    """Where entries are in the store: keys that no other kind of record has (`grant-`, `name-` and so on)."""
    return ["entry-" + digest(collection or "", key) for key in keys]


def _found(store: Store, place: str) -> Found:
    stored = store.load(place)
    if stored is None or not _alive(stored):
        return None, None
    try:
        entry = _decoder.decode(stored.value)
        value = json.loads(entry.document or "")
    except _UNREADABLE:
        raise _unreadable(place) from None
    if not isinstance(value, dict):
        raise _unreadable(place)
    left = None if entry.expires_at is None else max(0.0, entry.expires_at - now().wall)
    return cast("dict[str, Any]", value), left


def _replace(store: Store, place: str, entry: Entry) -> bool:
    """Put an entry in the place of whatever is there. False: nothing was, and of nothing no deletion is kept."""
    value = msgspec.json.encode(entry)
    stored = store.load(place)
    for _ in range(MOST_ROUNDS):
        if entry == DELETED and (stored is None or stored.value == value):
            return False
        revision = secrets.token_urlsafe(32)
        answer = store.save(place, value, revision=revision, expected=stored and stored.revision)
        if isinstance(answer, Saved):
            return stored is not None and _alive(stored)
        stored = answer.stored
    raise StoreBusyError(f"{place}: others kept changing this entry. Try again")


def _alive(stored: Stored) -> bool:
    """It was not deleted and has not expired; what this version cannot read is taken to be alive."""
    try:
        entry = _decoder.decode(stored.value)
    except _UNREADABLE:
        return True
    return entry != DELETED and (entry.expires_at is None or now().wall < entry.expires_at)


_decoder = msgspec.json.Decoder(Entry)
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)


def _unreadable(place: str) -> DamagedError:
    message = (
        "cannot be read: a newer version of mcp_oauth wrote it (upgrade this program), or it is damaged (delete it)"
    )
    return DamagedError(f"{place} {message}")


# --- What is given ----------------------------------------------------------------------------------------------------


def _document(value: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(value))
    except (TypeError, ValueError, RecursionError) as error:
        from key_value.aio.errors import SerializationError

        raise SerializationError(f"the value is not JSON ({type(error).__name__})") from None


def _seconds(ttl: SupportsFloat) -> float:
    seconds = math.nan if isinstance(ttl, bool) else float(ttl)  # True is no second
    if not 0 < seconds < math.inf:
        from key_value.aio.errors import InvalidTTLError

        raise InvalidTTLError(ttl=seconds)
    return seconds


# --- Threads ----------------------------------------------------------------------------------------------------------


_threads: RunVar[CapacityLimiter] = RunVar("mcp_oauth.adapters.key_value")


async def _in_thread(work: Callable[[], T]) -> T:
    """Run what may block. It has a limit of its own: stores must not wait for the threads of the caller's program.

    A cancelled caller waits for the end of what has begun; where asyncio does not let it wait, it ends all the same.
    """
    limiter = _threads.get(None)
    if limiter is None:
        _threads.set(limiter := CapacityLimiter(MOST_THREADS))
    return await to_thread.run_sync(work, limiter=limiter)
