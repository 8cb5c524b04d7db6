"""The store that works everywhere: one sealed file for each key, in a folder of the user's own.

What lies in the folder, `<slot>` being the SHA-256 of a key in hex:

    store.json          the header: the store's key, under a password or not (`sealing`)
    <slot>.record       the sealed value
    <slot>.lock         the kernel lock that `try_lock` takes; never deleted
    <slot>.holder       who has it, for a truthful message
    <slot>.next         room set aside for the successor; touched only by whoever has the `.lock`
    <slot>.guard        the kernel lock around each compare-and-swap, held for milliseconds; never deleted
    <slot>.tmp          a record being written; touched only by whoever has the `.guard`
    <slot>.corrupt-<n>  what was found in a record's place and was no record of that key

A record is replaced by writing a temporary file, making it durable, renaming it, and making the folder durable. So a
reader needs no lock, a kill at any point leaves the old record or the new one, and a leftover is known to be dead by
the lock that can be taken. Locks are `flock` (`LockFileEx` on Windows): they serve the processes of one machine, which
is why network folders are refused.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import NamedTuple

import msgspec
from filelock import BaseFileLock, FileLock, Timeout

from . import sealing
from .base import (
    Conflict,
    DamagedError,
    Held,
    NewerFormatError,
    NotWritableError,
    ProcessLease,
    Saved,
    StoreBusyError,
    Stored,
    StoreError,
    StoreFullError,
    UnsafePlaceError,
)
from .lease import Holder, this_process

GUARD_SECONDS = 10.0
RESERVE_BYTES = 64 * 1024
MOUNTS = Path("/proc/self/mountinfo")
NETWORK_FILESYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs"})
_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_HEADER = "store"
_RECORD = re.compile(r"[0-9a-f]{64}\.record")
_OWNER_OF = {".next": ".lock", ".tmp": ".guard"}


class _Opened(NamedTuple):
    key: sealing.StoreKey
    stamp: tuple[int, ...]


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
        """Take a folder, by default `mcp-oauth` in the user's data folder, which is made if it is missing.

        `password`: text, or what asks for it, once a process at most unless it changes. None: the key lies in the
        folder, so that whoever can read the folder can read the values.
        `kdf`: for a store made here; an existing one says itself. "pbkdf2" where FIPS 140 rules.
        `allow_network_folder`: for NFS and SMB, whose locks may fail to hold.
        """
        self._folder = Path(os.path.realpath(Path(folder).expanduser() if folder else default_folder()))
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
        with self._told():
            return _stored(self._current(_slot(key)))

    def save(self, key: str, value: bytes, *, revision: str, expected: str | None) -> Saved | Conflict:
        """Compare-and-swap by revision; durable if the file system can make a rename durable.

        Raises `StoreFullError`, `NotWritableError`, and as `load`; the old value is then still there.
        """
        with self._told():
            slot = _slot(key)
            with self._guard(slot) as store_key:
                there = _stored(self._inspect(slot, store_key))
                if (there and there.revision) != expected:
                    return Conflict(there)
                sealed = sealing.seal(store_key, sealing.Record(key, revision, value))
                return Saved(durable=self._replace(slot, ".record", sealed))

    def keys(self) -> tuple[str, ...]:
        """The keys of all saved values. Raises as `load`."""
        with self._told():
            self._key()
            slots = [path.stem for path in self._folder.iterdir() if _RECORD.fullmatch(path.name)]
            records = [self._current(slot) for slot in slots]
            return tuple(record.name for record in records if record is not None)

    def try_lock(self, key: str) -> ProcessLease | Held:
        """Try once to take the lock, and set aside room for the successor."""
        with self._told(), contextlib.ExitStack() as undo:
            self._key()
            slot = _slot(key)
            try:
                undo.enter_context(self._lock(slot, ".lock", wait=0))
            except Timeout:
                return Held(self._holder(slot))
            undo.callback(_discard, self._path(slot, ".holder"))
            self._note_holder(slot)
            undo.callback(self._drop_reserve, slot)
            self._reserve(slot)
            return ProcessLease(undo.pop_all().close)

    def change_password(self, password: str | None) -> None:
        """Keep the store's key under another password from now on; stores that are open stay open.

        The key itself stays, so this is no help once somebody had the old password and a copy of the folder.
        """
        with self._told():
            key = self._key()
            asked = None if password is None else lambda: password
            with self._naming_header():
                data = sealing.new_header(key, asked, self._kdf)
            with self._locked(_HEADER, ".guard"):
                self._replace(_HEADER, ".json", data)
            self._password = asked

    # The header.

    def _key(self) -> sealing.StoreKey:
        """The store's key, read anew if another header lies there: a peer's, after somebody emptied the folder."""
        stamp = _stamp(self._header)
        if self._opened is None or not stamp or stamp != self._opened.stamp:
            self._opened = self._open(self._opened and self._opened.key)
        return self._opened.key

    def _open(self, known: sealing.StoreKey | None) -> _Opened:
        _make_folder(self._folder)
        self._check_place()
        self._sweep()
        if not self._header.exists():
            self._create_header()
        stamp = _stamp(self._header)
        data = _read(self._header)
        with self._naming_header():
            return _Opened(sealing.open_header(data, self._password, known), stamp)

    def _create_header(self) -> None:
        with self._locked(_HEADER, ".guard"):
            if self._header.exists():
                return
            with self._naming_header():
                if any(_RECORD.fullmatch(path.name) for path in self._folder.iterdir()):
                    raise DamagedError(f"is missing, and the records beside it need it; {sealing.HEADER_CURE}")
                data = sealing.new_header(sealing.new_key(), self._password, self._kdf)
            self._replace(_HEADER, ".json", data)

    @contextlib.contextmanager
    def _naming_header(self) -> Generator[None]:
        try:
            yield
        except StoreError as error:
            raise type(error)(f"{self._header} {error}") from error

    def _check_place(self) -> None:
        about = self._folder.stat()
        if sys.platform != "win32":
            if about.st_uid != os.geteuid():
                who = f"belongs to uid {about.st_uid}, this process is uid {os.geteuid()}"
                raise UnsafePlaceError(f"{self._folder} {who}; use a folder of your own")
            if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise UnsafePlaceError(f"others may write to {self._folder}; run: chmod 700 {self._folder}")
        kind = _network_filesystem(about.st_dev)
        if kind is not None and not self._network_allowed:
            cure = "use a local folder, or allow_network_folder=True if its locks are known to hold"
            raise UnsafePlaceError(f"{self._folder} is on {kind}; {cure}")

    def _sweep(self) -> None:
        """Remove what dead processes left: what is in use has its lock taken.

        Whoever tries one of these locks at that very moment is told `Held`, and tries again.
        """
        for path in self._folder.iterdir():
            if (owner := _OWNER_OF.get(path.suffix)) is None:
                continue
            with contextlib.suppress(OSError), self._lock(path.stem, owner, wait=0):
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
        path = self._path(slot, ".record")
        try:
            data = _read(path)
        except FileNotFoundError:
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
            path = self._path(slot, ".record")
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
                _flush(descriptor)
            _rename(temporary, self._path(slot, suffix))
        except BaseException:
            _discard(temporary)  # after a failed flush its pages are in doubt: the next attempt has a new file
            raise
        return _flush_folder(self._folder)

    def _successor(self, slot: str) -> tuple[Path, int]:
        if self._reserves.get(slot) == _here():
            del self._reserves[slot]
            path = self._path(slot, ".next")
            return path, os.open(path, os.O_WRONLY | _FLAGS)
        path = self._path(slot, ".tmp")
        return path, _create(path)

    # Locks.

    @contextlib.contextmanager
    def _guard(self, slot: str) -> Generator[sealing.StoreKey]:
        self._key()
        with self._locked(slot, ".guard"):
            yield self._key()

    @contextlib.contextmanager
    def _locked(self, slot: str, suffix: str) -> Generator[None]:
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(self._lock(slot, suffix, wait=GUARD_SECONDS))
            except Timeout:
                who = f"a process has had {self._path(slot, suffix)} for {GUARD_SECONDS:.0f} seconds"
                raise StoreBusyError(f"{who}; end it if it is stopped, then try again") from None
            yield

    def _lock(self, slot: str, suffix: str, *, wait: float) -> BaseFileLock:
        # A new object each time, and nothing of filelock's defaults (RULES 4.16): they leak, and let two in.
        return FileLock(
            self._path(slot, suffix),
            timeout=wait,
            mode=0o600,
            thread_local=False,
            is_singleton=False,
            poll_interval=0.005,
            fallback_to_soft=False,
            preserve_lock_file=True,
        )

    def _reserve(self, slot: str) -> None:
        """Write room for a successor, larger than what is there: the disk is full now, or it will do later."""
        there = self._path(slot, ".record")
        room = RESERVE_BYTES + (there.stat().st_size if there.exists() else 0)
        with os.fdopen(_create(self._path(slot, ".next")), "wb") as file:
            file.write(bytes(room))
        self._reserves[slot] = _here()

    def _drop_reserve(self, slot: str) -> None:
        self._reserves.pop(slot, None)
        _discard(self._path(slot, ".next"))

    def _note_holder(self, slot: str) -> None:
        note = msgspec.json.encode(this_process())
        with os.fdopen(_create(self._path(slot, ".holder")), "wb") as file:
            file.write(note)

    def _holder(self, slot: str) -> str:
        try:
            return str(msgspec.json.decode(_read(self._path(slot, ".holder")), type=Holder))
        except (OSError, msgspec.DecodeError):
            return "another process, which has yet to say which"

    def _path(self, slot: str, suffix: str) -> Path:
        return self._folder / f"{slot}{suffix}"

    @contextlib.contextmanager
    def _told(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise _explained(error, self._folder) from error


def default_folder() -> Path:
    """`mcp-oauth` in the user's data folder. Raises `StoreError` where the user has no home."""
    try:
        home = Path.home()
    except RuntimeError:
        raise StoreError("this user has no home folder; name a folder for the store") from None
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Application Support"
    else:
        named = Path(os.environ.get("XDG_DATA_HOME", ""))  # a relative one is to be ignored, says its specification
        base = named if named.is_absolute() else home / ".local" / "share"
    return base / "mcp-oauth"


def _slot(key: str) -> str:
    return sealing.slot_of(key).hex()


def _stored(record: sealing.Record | None) -> Stored | None:
    return None if record is None else Stored(record.value, record.revision)


def _here() -> tuple[int, int]:
    return os.getpid(), threading.get_ident()


def _explained(error: OSError, folder: Path) -> StoreError:
    where, why = error.filename or folder, error.strerror or type(error).__name__
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return StoreFullError(f"no room to write in {folder} ({why}): make room, then try again")
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return NotWritableError(f"{where}: {why}; give this user the right to read and write {folder}")
    return StoreError(f"{where}: {why}; see that {folder} is on a disk in order")


# Files. All are made 0600 and nothing is followed, so no moment and no link shows them to others.


def _make_folder(folder: Path) -> None:
    """Make a folder and what is missing above it, 0700 each, whatever the umask."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(0o700)
        folder.chmod(0o700)
        _flush_folder(folder.parent)


def _create(path: Path) -> int:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
    if sys.platform != "win32":
        os.fchmod(descriptor, 0o600)  # a umask may have taken the owner's bits too
    return descriptor


def _read(path: Path) -> bytes:
    with os.fdopen(os.open(path, os.O_RDONLY | _FLAGS), "rb", buffering=0) as file:
        return file.readall()


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes when another file takes this place; nothing where there is none."""
    try:
        about = path.stat()
    except FileNotFoundError:
        return ()
    return about.st_ino, about.st_mtime_ns, about.st_size


def _flush(descriptor: int) -> None:
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def _flush_folder(folder: Path) -> bool:
    """Make renames in a folder durable; False where the system cannot, or failed to."""
    if sys.platform == "win32":
        return False
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        _flush(descriptor)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _rename(source: Path, target: Path) -> None:
    """Rename, replacing. On Windows a virus scanner or a reader may be in the way for a moment."""
    for pause in (0.01, 0.05, 0.25) if sys.platform == "win32" else ():
        with contextlib.suppress(PermissionError):
            source.replace(target)
            return
        time.sleep(pause)
    source.replace(target)


def _discard(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _network_filesystem(device: int) -> str | None:
    """The network file system that a device number belongs to, where the system says so (proc_pid_mountinfo(5))."""
    if sys.platform != "linux":
        return None
    try:
        lines = MOUNTS.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return None
    number = f"{os.major(device)}:{os.minor(device)}"
    kinds = {line.partition(" - ")[2].split(" ")[0] for line in lines if line.split(" ")[2] == number}
    return next(iter(kinds & NETWORK_FILESYSTEMS), None)
