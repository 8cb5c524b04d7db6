"""The locks of the system, and the folders of the user's own in which they lie.

A lock is `flock` (`LockFileEx` on Windows), so it ends with its process, whatever became of that, and serves the
processes of one machine, which is why network folders are refused (RULES 4.16). Its file is never deleted: of two
files of one name each could be held by somebody. What is written here is 0600 in folders that are 0700, and no link is
followed, so at no moment do others see it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
import sys
from collections.abc import Generator
from pathlib import Path

import msgspec
from filelock import BaseFileLock, FileLock, Timeout

from .base import Held, NotWritableError, StoreBusyError, StoreError, StoreFullError, UnsafePlaceError
from .lease import Holder, this_process

GUARD_SECONDS = 10.0
"""How long a short write waits for another one to end."""
MOUNTS = Path("/proc/self/mountinfo")
NETWORK_FILESYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs"})
FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
"""With which every file is opened."""
_CHUNK = 64 * 1024


# Locks.


def lock(path: Path, *, wait: float) -> BaseFileLock:
    """A lock that was not taken yet. Entering it raises `filelock.Timeout` after `wait` seconds.

    It is to be left on the thread that entered it.
    """
    # A new object each time, and nothing of filelock's defaults (RULES 4.16): they leak, and let two in.
    return FileLock(
        path,
        timeout=wait,
        mode=0o600,
        thread_local=False,
        is_singleton=False,
        poll_interval=0.005,
        fallback_to_soft=False,
        preserve_lock_file=True,
    )


@contextlib.contextmanager
def guard(path: Path) -> Generator[None]:
    """Hold a lock for a short write. Raises `StoreBusyError` if a peer has it for ten seconds."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(lock(path, wait=GUARD_SECONDS))
        except Timeout:
            who = f"a process has had {path} for {GUARD_SECONDS:.0f} seconds"
            raise StoreBusyError(f"{who}; end it if it is stopped, then try again") from None
        yield


def take(path: Path, note: Path, undo: contextlib.ExitStack) -> Held | str:
    """Try once to take a lock until `undo` is closed, noting who has it; or say who has.

    Returns who had it before and died with it, since his note is still there; "" where there is none.
    """
    try:
        undo.enter_context(lock(path, wait=0))
    except Timeout:
        return Held(_noted(note) or "another process, which has yet to say which")
    left_by = _noted(note)
    undo.callback(discard, note)
    # The note only serves a message, and on Windows a peer that reads it is in the way. What proves that there is room
    # for a successor (RULES 4.7) is the caller's next step.
    with contextlib.suppress(OSError), os.fdopen(create(note), "wb") as file:
        file.write(msgspec.json.encode(this_process()))
    return left_by


def _noted(note: Path) -> str:
    try:
        return str(msgspec.json.decode(read(note), type=Holder))
    except (OSError, ValueError, RecursionError):  # whatever it is, the lock does not depend on it
        return ""


# Folders.


def named_folder(name: str | os.PathLike[str]) -> Path:
    """The folder of this name, with `~` and links resolved. Raises `StoreError` where there cannot be one."""
    try:
        return Path(os.path.realpath(Path(name).expanduser()))
    except (RuntimeError, ValueError) as error:
        raise StoreError(f"{os.fspath(name)!r} names no folder ({error}); give its path in full") from None


def make_folder(folder: Path) -> None:
    """Make a folder and what is missing above it, durable and 0700 each, whatever the umask."""
    if folder.is_dir():
        return
    if folder.parent != folder:  # a drive that is not there is above itself
        make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(0o700)
        folder.chmod(0o700)
        flush_folder(folder.parent)


def check_folder(folder: Path, *, network_allowed: bool) -> None:
    """Raises `UnsafePlaceError` where others may write, or where locks may fail to hold."""
    about = folder.stat()
    if sys.platform != "win32":
        if about.st_uid != os.geteuid():
            who = f"belongs to uid {about.st_uid}, this process is uid {os.geteuid()}"
            raise UnsafePlaceError(f"{folder} {who}; use a folder of your own")
        if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise UnsafePlaceError(f"others may write to {folder}; run: chmod 700 {folder}")
    kind = _network_filesystem(about.st_dev)
    if kind is not None and not network_allowed:
        cure = "use a local folder, or allow_network_folder=True if its locks are known to hold"
        raise UnsafePlaceError(f"{folder} is on {kind}; {cure}")


def check_private(file: Path) -> None:
    """Raises `UnsafePlaceError` where others may read a file: its folder lets them in, and its mode lets them read."""
    if sys.platform != "win32":
        others_in, others_read = file.parent.stat().st_mode, file.stat().st_mode >> 2  # r, where the folder's x is
        if others_in & others_read & (stat.S_IXGRP | stat.S_IXOTH):
            cure = f"run: chmod 600 {file}, and if anybody may have read it: mcp-oauth store rekey"
            raise UnsafePlaceError(f"others may read {file}, which holds a key that no password protects; {cure}")


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


@contextlib.contextmanager
def told(folder: Path) -> Generator[None]:
    """Turn what the system says into a `StoreError` that names the cause, the place and the cure."""
    try:
        yield
    except OSError as error:
        raise _explained(error, folder) from error


def _explained(error: OSError, folder: Path) -> StoreError:
    where, why = error.filename or folder, error.strerror or type(error).__name__
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return StoreFullError(f"no room to write in {folder} ({why}): make room, then try again")
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return NotWritableError(f"{where}: {why}; give this user the right to read and write {folder}")
    return StoreError(f"{where}: {why}; see that {folder} is on a disk in order")


# Files.


def create(path: Path) -> int:
    """Open a new file, empty and 0600, in place of what is there."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | FLAGS, 0o600)
    if sys.platform != "win32":
        os.fchmod(descriptor, 0o600)  # a umask may have taken the owner's bits too
    return descriptor


def read(path: Path) -> bytes:
    """All that is in a file."""
    descriptor = os.open(path, os.O_RDONLY | FLAGS)
    try:
        return b"".join(iter(functools.partial(os.read, descriptor, _CHUNK), b""))
    finally:
        os.close(descriptor)


def discard(path: Path) -> None:
    """Remove a file, if that can be done."""
    with contextlib.suppress(OSError):
        path.unlink()


def flush(descriptor: int) -> None:
    """Make what was written to a file durable."""
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def flush_folder(folder: Path) -> bool:
    """Make renames in a folder durable; False where the system cannot, or failed to."""
    if sys.platform == "win32":
        return False
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        flush(descriptor)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
