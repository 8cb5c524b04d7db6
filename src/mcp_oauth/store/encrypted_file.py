"""The store that works everywhere: one sealed file for each key, in a folder of the user's own.

What lies in the folder, `<slot>` being the SHA-256 of a record's key in hex:

    store.json          the header: the store's key, under a password or not (`sealing`)
    store.guard         the kernel lock around each change of the header
    store.lock          the kernel lock of whoever gives the store a new key
    <slot>.enc          the sealed value
    <slot>.lock         the kernel lock that `try_lock` takes; never deleted
    <slot>.holder       who has it, for a truthful message
    <slot>.next         room set aside for the successor; touched only by whoever has the `.lock`
    <slot>.guard        the kernel lock around each compare-and-swap, held for milliseconds; never deleted
    <slot>.tmp          a record being written; touched only by whoever has the `.guard`
    <slot>.corrupt-<n>  what was found in a record's place and was no record of that key

A record is replaced by writing a temporary file, making it durable, renaming it, and making the folder durable. So a
reader needs no lock, a kill at any point leaves the old record or the new one, and a leftover is known to be dead by
the lock that can be taken (`locks`).

A new key for the store comes in three steps, and what a dead process began is finished by the next one that opens the
store: a header with the new key and the retiring one, every record sealed anew, a header with the new key alone. The
second step passes through each `.guard`, under which every save reads the header first; so nothing is sealed under the
retiring key behind its back, and nothing is left under it when it goes.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import NamedTuple

from . import locks, sealing
from .base import Conflict, DamagedError, Held, NewerFormatError, ProcessLease, Saved, Stored, StoreError

RESERVE_BYTES = 64 * 1024
_HEADER = "store"
_RECORD = re.compile(r"[0-9a-f]{64}\.enc")
_RECORD_OR_GUARD = re.compile(r"[0-9a-f]{64}\.(enc|guard)")
_OWNER_OF = {".next": ".lock", ".tmp": ".guard"}


class _Opened(NamedTuple):
    key: sealing.StoreKey
    header: bytes


class EncryptedFileStore:
    """Sealed files in a folder. Opened at the first call, not before: no disk is touched when it is made."""

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        password: str | Callable[[], str] | None = None,
        kdf: sealing.KdfName = "argon2id",
        allow_network_folder: bool = False,
    ) -> None:
        """Take a folder, by default `~/.mcp_oauth/tokens`, which is made if it is missing.

        `password`: text, or what asks for it, once for all threads unless it or the store's key changes. None: the
        key lies in the folder, so that whoever can read the folder can read the values.
        `kdf`: for a store made here; an existing one says itself. "pbkdf2" where FIPS 140 rules.
        `allow_network_folder`: for NFS and SMB, whose locks may fail to hold.

        Raises `StoreError` for a folder that cannot be.
        """
        self._folder = locks.named_folder(folder or default_folder())
        self._header = self._folder / f"{_HEADER}.json"
        self._password = (lambda: password) if isinstance(password, str) else password
        self._kdf: sealing.KdfName = kdf
        self._network_allowed = allow_network_folder
        self._opened: _Opened | None = None
        self._reserves: dict[str, tuple[int, int]] = {}

    @property
    def identity(self) -> str:
        """`file:<folder>`."""
        return f"file:{self._folder}"

    def load(self, key: str) -> Stored | None:
        """The value, or None where there never was one.

        Raises `DamagedError` once for what is no record of this key, having moved it aside; `WrongPasswordError`,
        `NewerFormatError` and `UnsafePlaceError` having changed nothing.
        """
        with locks.told(self._folder):
            return sealing.stored(self._current(_slot(key)))

    def save(self, key: str, value: bytes, *, revision: str, expected: str | None) -> Saved | Conflict:
        """Compare-and-swap by revision; durable if the file system can make a rename durable.

        Raises `StoreFullError`, `NotWritableError`, and as `load`; the old value is then still there.
        """
        with locks.told(self._folder):
            slot = _slot(key)
            with self._guard(slot) as store_key:
                there = sealing.stored(self._inspect(slot, store_key))
                if (there and there.revision) != expected:
                    return Conflict(there)
                sealed = sealing.seal(store_key, sealing.Record(key, revision, value))
                return Saved(durable=self._replace(slot, ".enc", sealed))

    def keys(self) -> tuple[str, ...]:
        """The keys of all saved values. Raises as `load`."""
        with locks.told(self._folder):
            self._key()
            slots = [path.stem for path in self._folder.iterdir() if _RECORD.fullmatch(path.name)]
            records = [self._current(slot) for slot in slots]
            return tuple(record.name for record in records if record is not None)

    def try_lock(self, key: str) -> ProcessLease | Held:
        """Try once to take the lock, and set aside room for the successor."""
        with locks.told(self._folder), contextlib.ExitStack() as undo:
            self._key()
            slot = _slot(key)
            left_by = locks.take(self._path(slot, ".lock"), self._path(slot, ".holder"), undo)
            if isinstance(left_by, Held):
                return left_by
            undo.callback(self._drop_reserve, slot)
            self._reserve(slot)
            return ProcessLease(undo.pop_all().close, left_by=left_by)

    def change_password(self, password: str | None) -> None:
        """Keep the store's key under another password from now on; stores that are open stay open.

        The key itself stays: where somebody had the old password and a copy of the folder, call `rekey` next.
        """
        with locks.told(self._folder):
            self._key()
            asked = None if password is None else lambda: password
            self._change_header(lambda data: sealing.new_header(self._key_in(data), asked, self._kdf))
            self._password = asked

    def rekey(self) -> None:
        """Give the store a new key and seal every record anew under it, while others go on using the store.

        The password stays, and is asked for. What is no record stays as it is, for whoever loads it to be told. Ended
        early, by an error or a kill, it leaves every record readable, and the next process to open the store goes on.

        Raises `StoreBusyError` while another process does the same, `NewerFormatError`, and as `save`.
        """
        with locks.told(self._folder):
            self._key()
            with locks.guard(self._path(_HEADER, ".lock")):
                self._retire_old_key()
                self._change_header(lambda data: sealing.rotated_header(data, self._password))
                self._retire_old_key()

    # The header.

    def _key(self) -> sealing.StoreKey:
        """The store's key, read anew if another header lies there: a new password, a new key, or a new store."""
        known = self._opened
        opened = self._up_to_date() or self._open()
        if known is None and opened.key.retiring is not None:
            self._go_on_retiring()
            return self._key()
        return opened.key

    def _up_to_date(self) -> _Opened | None:
        """What was opened, if its header is the one that lies there."""
        opened = self._opened
        return opened if opened and opened.header == _read_if_there(self._header) else None

    def _open(self) -> _Opened:
        with sealing.asking(self.identity, self._password) as password:
            if (opened := self._up_to_date()) is not None:  # another thread was faster
                return opened
            locks.make_folder(self._folder)
            locks.check_folder(self._folder, network_allowed=self._network_allowed)
            self._sweep()
            if not self._header.exists():
                self._create_header(password)
            data = locks.read(self._header)
            with self._naming_header():
                key = sealing.open_header(data, password, self._opened and self._opened.key)
            if password is None:
                locks.check_private(self._header)
            self._opened = _Opened(key, data)
            return self._opened

    def _key_in(self, data: bytes) -> sealing.StoreKey:
        return sealing.open_header(data, self._password, self._key())

    def _create_header(self, password: sealing.Password | None) -> None:
        with locks.guard(self._path(_HEADER, ".guard")):
            if self._header.exists():
                return
            with self._naming_header():
                if any(_RECORD.fullmatch(path.name) for path in self._folder.iterdir()):
                    raise DamagedError(f"is missing, and the records beside it need it; {sealing.HEADER_CURE}")
                data = sealing.new_header(sealing.new_key(), password, self._kdf)
            self._replace(_HEADER, ".json", data)

    def _change_header(self, change: Callable[[bytes], bytes]) -> None:
        """Replace the header by what `change`, which may ask a person, makes of it; anew if a peer was faster."""
        while True:
            data = locks.read(self._header)
            with self._naming_header():
                changed = change(data)
            with locks.guard(self._path(_HEADER, ".guard")):
                if locks.read(self._header) == data:
                    self._replace(_HEADER, ".json", changed)
                    return

    def _go_on_retiring(self) -> None:
        """Finish what a dead process began, if it can be done; a living one has the lock, and will."""
        with contextlib.suppress(StoreError, OSError), locks.lock(self._path(_HEADER, ".lock"), wait=0):
            self._retire_old_key()

    def _retire_old_key(self) -> None:
        """Seal every record anew if a key is retiring, and drop that key. It takes every `.guard`, so have none."""
        if self._key().retiring is None:
            return
        for slot in sorted({path.stem for path in self._folder.iterdir() if _RECORD_OR_GUARD.fullmatch(path.name)}):
            with self._guard(slot) as key, contextlib.suppress(DamagedError):
                if (record := self._read(slot, key)) is not None:
                    self._replace(slot, ".enc", sealing.seal(key, record))
        self._change_header(sealing.settled_header)

    @contextlib.contextmanager
    def _naming_header(self) -> Generator[None]:
        try:
            yield
        except StoreError as error:
            raise type(error)(f"{self._header} {error}") from error

    def _sweep(self) -> None:
        """Remove what dead processes left: what is in use has its lock taken.

        Whoever tries one of these locks at that very moment is told `Held`, and tries again.
        """
        for path in self._folder.iterdir():
            if (owner := _OWNER_OF.get(path.suffix)) is None:
                continue
            with contextlib.suppress(OSError), locks.lock(path.with_suffix(owner), wait=0):
                path.unlink(missing_ok=True)

    # Records.

    def _current(self, slot: str) -> sealing.Record | None:
        key = self._key()
        try:
            return self._read(slot, key)
        except DamagedError:
            with self._guard(slot) as key:  # a peer may have put a good one there meanwhile
                return self._inspect(slot, key)

    def _read(self, slot: str, key: sealing.StoreKey) -> sealing.Record | None:
        path = self._path(slot, ".enc")
        if (data := _read_if_there(path)) is None:
            return None
        try:
            return sealing.unseal(key, bytes.fromhex(slot), data)
        except NewerFormatError as error:
            raise NewerFormatError(f"{path} {error}") from None

    def _inspect(self, slot: str, key: sealing.StoreKey) -> sealing.Record | None:
        """Read under the guard; what is no record of this slot is moved aside, then told."""
        try:
            return self._read(slot, key)
        except DamagedError as error:
            path = self._path(slot, ".enc")
            aside = next(p for n in range(1, sys.maxsize) if not (p := path.with_suffix(f".corrupt-{n}")).exists())
            _rename(path, aside)
            raise DamagedError(f"{path} {error}; it was moved to {aside.name}: log in again") from None

    def _replace(self, slot: str, suffix: str, data: bytes) -> bool:
        """Put a file in its place, the whole or nothing. Returns whether the rename is durable."""
        temporary, descriptor = self._successor(slot)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.truncate()
                locks.flush(descriptor)
            _rename(temporary, self._path(slot, suffix))
        except BaseException:
            locks.discard(temporary)  # after a failed flush its pages are in doubt: the next attempt has a new file
            raise
        return locks.flush_folder(self._folder)

    def _successor(self, slot: str) -> tuple[Path, int]:
        if self._reserves.get(slot) == _here():
            del self._reserves[slot]
            path = self._path(slot, ".next")
            return path, os.open(path, os.O_WRONLY | locks.FLAGS)
        path = self._path(slot, ".tmp")
        return path, locks.create(path)

    @contextlib.contextmanager
    def _guard(self, slot: str) -> Generator[sealing.StoreKey]:
        self._key()
        with locks.guard(self._path(slot, ".guard")):
            yield self._key()

    def _reserve(self, slot: str) -> None:
        """Write room for a successor, larger than what is there: the disk is full now, or it will do later."""
        there = self._path(slot, ".enc")
        room = RESERVE_BYTES + (there.stat().st_size if there.exists() else 0)
        with os.fdopen(locks.create(self._path(slot, ".next")), "wb") as file:
            file.write(bytes(room))
        self._reserves[slot] = _here()

    def _drop_reserve(self, slot: str) -> None:
        self._reserves.pop(slot, None)
        locks.discard(self._path(slot, ".next"))

    def _path(self, slot: str, suffix: str) -> Path:
        return self._folder / f"{slot}{suffix}"


def default_folder() -> Path:
    """`~/.mcp_oauth/tokens`. Raises `StoreError` where the user has no home."""
    try:
        return Path.home() / ".mcp_oauth" / "tokens"
    except RuntimeError:
        raise StoreError("this user has no home folder; name a folder for the store") from None


def _slot(key: str) -> str:
    return sealing.slot_of(key).hex()


def _here() -> tuple[int, int]:
    return os.getpid(), threading.get_ident()


def _read_if_there(path: Path) -> bytes | None:
    try:
        return locks.read(path)
    except FileNotFoundError:
        return None


def _rename(source: Path, target: Path) -> None:
    """Rename, replacing. On Windows a virus scanner or a reader may be in the way for a moment."""
    for pause in (0.01, 0.05, 0.25) if sys.platform == "win32" else ():
        with contextlib.suppress(PermissionError):
            source.replace(target)
            return
        time.sleep(pause)
    source.replace(target)
