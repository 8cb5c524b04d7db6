"""The store in the keyring of a person's desktop: macOS Keychain, Windows Credential Manager, GNOME Keyring, KWallet.

What lies in the keyring under one service, `<slot>` being the SHA-256 of a key in hex:

    <slot>              the record, sealed as in a file and in base64; or, where items are small, its chunks' number
    <slot>.<tag>.<n>    a chunk; the tag is of one revision alone, and random, as a save may be tried again
    <slot>.next         while a record is being replaced: what will lie there, and which chunks lay there before
    <slot>.aside-<tag>  what was found in a record's place and was no record of that key
    index               the slots, as a record of its own: keyrings cannot be listed portably
    probe               a trial, for a moment

The seal adds no secrecy, which is the keyring's part: its key is the name of the service. It tells a record from what
was cut short, altered, put there by others, or moved there from another key or service.

**A record is replaced** in this order: `.next`, the chunks, the record, each of them read back; then what it replaces
is removed, and `.next`. Wherever that is cut off, the old record or the new one is whole, and whoever comes next
finishes or undoes it. That also serves the macOS backend, which replaces an item by deleting it first: a reader who
finds nothing looks again where no replacement can be under way.

**Nothing is cached.** A cache would show what other processes have replaced since; reading is real, always. So that a
macOS that asks a person for each item has little to ask, a record is one item there, with the index beside it.

**Locks** are files in a folder of the user's (`locks`): one for each key, and one guard for each service, in which all
that is written is written. One for all keys, since the Windows backend moves one credential to write another.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import sys
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from . import locks, sealing
from .base import (
    Conflict,
    DamagedError,
    Held,
    NewerFormatError,
    ProcessLease,
    Saved,
    Stored,
    StoreError,
    StoreFullError,
)
from .keyring_backend import ELSE, Items, Kind, Turn, find, line

if TYPE_CHECKING:
    from keyring.backend import KeyringBackend

T = TypeVar("T")

CALL_SECONDS = 10.0
MOST_CHUNKS = 2500
"""Of one record: three million characters, ten times what any login takes. A text that speaks of more is no record."""
_CHUNKS = re.compile(r"mcp-oauth chunks ([0-9a-f]{16}) ([0-9]{1,6})")
_NOTHING, _RECORD = "nothing", "a record"
_NOTE = re.compile(rf"({_NOTHING}|{_RECORD}|{_CHUNKS.pattern.replace('(', '(?:')})\n(.+)")
_PROBE = "probe"
_SLOT_BYTES = 32


class _Place(NamedTuple):
    """Where a record is kept: its item, and what shows that it belongs there."""

    item: str
    slot: bytes
    key: sealing.StoreKey


class _Found(NamedTuple):
    """What is in a place: the text of its item, and the record that it stands for."""

    text: str
    record: sealing.Record


class KeyringStore:
    """Values in a keyring. Opened at the first call, not before: no keyring is touched when it is made."""

    def __init__(
        self,
        service: str = "mcp-oauth",
        *,
        backend: KeyringBackend | Kind | None = None,
        lock_folder: str | os.PathLike[str] | None = None,
        seconds: float = CALL_SECONDS,
        allow_network_folder: bool = False,
    ) -> None:
        """Take the name under which the keyring shows the items; stores of another name share nothing.

        `backend`: an object of the library `keyring`, or the kind to insist on; by default what the library prefers.
        `lock_folder`: for all processes that share the store; by default in the user's state folder.
        `seconds`: how long one call of the keyring may take, a person's answer to its prompt included.
        `allow_network_folder`: for locks on NFS and SMB, which may fail to hold.
        """
        self._service = service
        self._wanted: KeyringBackend | Kind | None = backend
        self._backend: KeyringBackend | None = None
        self._lock_folder = lock_folder
        self._seconds = seconds
        self._network_allowed = allow_network_folder
        self._index = _Place("index", sealing.slot_of("index"), _key(service, "index"))
        self._records = _key(service, "records")

    @property
    def identity(self) -> str:
        """`keyring:<service>`, and which keyring if one was given."""
        if self._wanted is None or isinstance(self._wanted, str):
            return f"keyring:{self._service}" + (f"@{self._wanted}" if self._wanted else "")
        return f"keyring:{self._service}@{type(self._wanted).__qualname__}#{id(self._wanted):x}"

    def backend_kind(self) -> Kind:
        """Which kind of keyring it is. Raises `UnavailableError` and `UnsafePlaceError` where none can be used."""
        return self._run(lambda items: items.kind)

    def probe(self) -> None:
        """Write, read back and remove a trial item. Raises `StoreError` with the reason if that fails."""
        with self._told():
            self._run(self._try_writing)

    def load(self, key: str) -> Stored | None:
        """The value, or None where there never was one.

        Raises `DamagedError` once for what is no record of this key, having moved it aside.
        """
        place = self._place(key)
        with self._told():
            return sealing.stored(self._run(lambda items: self._current(items, place)))

    def save(self, key: str, value: bytes, *, revision: str, expected: str | None) -> Saved | Conflict:
        """Compare-and-swap by revision; as durable as the keyring is, which does not say.

        Raises `StoreFullError`, `NotWritableError`, and as `load`; the old value is then still there. After an
        `UnavailableError` in the midst of it reading tells which one is there (RULES 4.10).
        """
        place, record = self._place(key), sealing.Record(key, revision, value)

        def swap(items: Items) -> Saved | Conflict:
            with self._guard():
                found = _inspect(items, place)
                there = sealing.stored(found and found.record)
                if (there and there.revision) != expected:
                    return Conflict(there)
                self._list(items, place.slot)
                _replace(items, place, found, record)
                return Saved(durable=True)

        with self._told():
            return self._run(swap)

    def keys(self) -> tuple[str, ...]:
        """The keys of all saved values. Raises as `load`."""
        with self._told():
            return self._run(self._names)

    def try_lock(self, key: str) -> ProcessLease | Held:
        """Try once to take the lock, and prove that the keyring is open and takes what is written."""
        with self._told(), contextlib.ExitStack() as undo:
            folder, slot = self._folder(), self._place(key).item
            left_by = locks.take(folder / f"{slot}.lock", folder / f"{slot}.holder", undo)
            if isinstance(left_by, Held):
                return left_by
            self._run(self._try_writing)
            return ProcessLease(undo.pop_all().close, left_by=left_by)

    # Under a lock or not, on the thread of an operation.

    def _run(self, work: Callable[[Items], T]) -> T:
        def operation(turn: Turn) -> T:
            if self._backend is None:
                with turn.calling():
                    self._backend = find(self._wanted)
            return work(Items(self._backend, self._service, turn))

        return line(self.identity).run(operation, self._seconds)

    def _current(self, items: Items, place: _Place) -> sealing.Record | None:
        with contextlib.suppress(DamagedError):
            if (record := _read(items, place)) is not None:
                return record
        with self._guard():  # nothing, or half of it, may be a replacement under way
            found = _inspect(items, place)
            return found and found.record

    def _names(self, items: Items) -> tuple[str, ...]:
        slots = _slots(self._current(items, self._index))
        records = [self._current(items, self._place_of(slot)) for slot in slots]
        if None in records:
            with contextlib.suppress(StoreError):  # the list is right without it
                self._tidy(items)
        return tuple(record.name for record in records if record is not None)

    def _list(self, items: Items, slot: bytes) -> None:
        """Put a slot on the index, before its record is written: an entry too many is found out, one too few is not."""
        index = _inspect(items, self._index)
        slots = _slots(index and index.record)
        if slot not in slots:
            self._replace_index(items, index, (*slots, slot))

    def _tidy(self, items: Items) -> None:
        with self._guard():
            index = _inspect(items, self._index)
            kept = [one for one in _slots(index and index.record) if _inspect(items, self._place_of(one)) is not None]
            self._replace_index(items, index, kept)

    def _replace_index(self, items: Items, index: _Found | None, slots: Iterable[bytes]) -> None:
        _replace(items, self._index, index, sealing.Record("index", os.urandom(16).hex(), b"".join(slots)))

    def _try_writing(self, items: Items) -> None:
        with self._guard():
            items.put(_PROBE, os.urandom(16).hex())
            items.drop(_PROBE)

    # Places.

    def _place(self, key: str) -> _Place:
        return self._place_of(sealing.slot_of(key))

    def _place_of(self, slot: bytes) -> _Place:
        return _Place(slot.hex(), slot, self._records)

    def _base(self) -> Path:
        return locks.named_folder(self._lock_folder or default_lock_folder())

    def _folder(self) -> Path:
        folder = self._base() / sealing.slot_of(self._service).hex()[:16]
        locks.make_folder(folder)
        for one in (folder.parent, folder):
            locks.check_folder(one, network_allowed=self._network_allowed)
        return folder

    @contextlib.contextmanager
    def _guard(self) -> Generator[None]:
        with locks.guard(self._folder() / "store.guard"):
            yield

    def _told(self) -> contextlib.AbstractContextManager[None]:
        return locks.told(self._base())


def default_lock_folder() -> Path:
    """`mcp-oauth/locks` in the user's state folder. Raises `StoreError` where the user has no home."""
    try:
        home = Path.home()
    except RuntimeError:
        raise StoreError("this user has no home folder; name a lock_folder for the store") from None
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Application Support"
    else:
        named = Path(os.environ.get("XDG_STATE_HOME", ""))  # a relative one is to be ignored, says its specification
        base = named if named.is_absolute() else home / ".local" / "state"
    return base / "mcp-oauth" / "locks"


def _key(service: str, what: str) -> sealing.StoreKey:
    digest = hashlib.sha256(f"mcp_oauth keyring {what} of {service}".encode("utf-8", "surrogatepass")).digest()
    return sealing.StoreKey(id=hashlib.sha256(digest).digest()[:8], key=digest)


def _slots(index: sealing.Record | None) -> tuple[bytes, ...]:
    slots = b"" if index is None else index.value
    return tuple(slots[at : at + _SLOT_BYTES] for at in range(0, len(slots), _SLOT_BYTES))


# Reading.


def _read(items: Items, place: _Place) -> sealing.Record | None:
    text = items.get(place.item)
    return None if text is None else _opened(items, place, text)


def _opened(items: Items, place: _Place, text: str) -> sealing.Record:
    whole = "".join(items.get(chunk) or "" for chunk in _chunks(place, text)) or text
    try:
        return sealing.unseal(place.key, place.slot, _bytes(whole))
    except NewerFormatError as error:
        raise NewerFormatError(f"{items.where(place.item)} {error}") from None


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text[: len(text) // 4 * 4], validate=True)
    except ValueError:
        raise DamagedError("is no record of mcp_oauth") from None


def _chunks(place: _Place, text: str) -> list[str]:
    """The items of the chunks that a text speaks of; none if it is a whole record, or anything else."""
    if (said := _CHUNKS.fullmatch(text)) is None or int(said[2]) > MOST_CHUNKS:
        return []
    return [f"{place.item}.{said[1]}.{number}" for number in range(int(said[2]))]


def _inspect(items: Items, place: _Place) -> _Found | None:
    """Read under the guard; what was cut off is settled; what is no record of this place is moved aside, then told."""
    text = _settle(items, place)
    if text is None:
        return None
    try:
        return _Found(text, _opened(items, place, text))
    except DamagedError as error:
        where, aside = items.where(place.item), f"{place.item}.aside-{_tag(text)}"
        items.put(aside, text)
        items.drop(place.item)
        raise DamagedError(f"{where} {error}; it was moved to the item {aside}: log in again") from None


# Writing, under the guard.


def _replace(items: Items, place: _Place, found: _Found | None, record: sealing.Record) -> None:
    """Put a record in the place of what was found there, the whole or nothing."""
    text = base64.b64encode(sealing.seal(place.key, record)).decode()
    step = items.limit or len(text)
    pieces = [text[at : at + step] for at in range(0, len(text), step)]
    if len(pieces) > MOST_CHUNKS:
        what = f"has no room for {len(record.value)} bytes in items of {step} characters"
        raise StoreFullError(f"{items.where(place.item)} {what}: save less, {ELSE}")
    after = text if len(pieces) == 1 else f"mcp-oauth chunks {os.urandom(8).hex()} {len(pieces)}"
    before = _NOTHING if found is None else found.text if _chunks(place, found.text) else _RECORD
    items.put(f"{place.item}.next", f"{before}\n{after}")
    try:
        for chunk, piece in zip(_chunks(place, after), pieces, strict=False):
            items.put(chunk, piece)
        items.put(place.item, after)
    except StoreError:
        with contextlib.suppress(StoreError):
            if _settle(items, place) == after:
                return
        raise
    with contextlib.suppress(StoreError):  # whoever comes next does it
        _clear(items, place, before)


def _settle(items: Items, place: _Place) -> str | None:
    """Finish or undo a replacement that was cut off. Returns what the item says then."""
    there, note = items.get(place.item), items.get(f"{place.item}.next")
    if note is None or (said := _NOTE.fullmatch(note)) is None:
        return there
    before, after = said.groups()
    if there is None and before != _NOTHING:  # the backend replaces by deleting first, and was cut off in between
        items.put(place.item, after)
        there = after
    _clear(items, place, before if there == after else after)
    return there


def _clear(items: Items, place: _Place, gone: str) -> None:
    """Remove the chunks of what is gone, and then the note that tells of them."""
    for chunk in _chunks(place, gone):
        items.drop(chunk)
    items.drop(f"{place.item}.next")


def _tag(text: str) -> str:
    return sealing.slot_of(text).hex()[:16]
