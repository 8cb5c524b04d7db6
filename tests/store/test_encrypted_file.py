"""What the encrypted file store adds to the contract: damage told apart, modes, places, durable writes, full disks."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from mcp_oauth.store import locks
from mcp_oauth.store.base import (
    DamagedError,
    NewerFormatError,
    NotWritableError,
    Saved,
    StoreBusyError,
    Stored,
    StoreError,
    StoreFullError,
    UnsafePlaceError,
)
from mcp_oauth.store.encrypted_file import EncryptedFileStore, default_folder
from tests.servers.process import missing
from tests.store.damage import DAMAGE
from tests.store.files import CALLS, FILE, LOCK, NOBODY, ROOT, SAVE, contents, leftovers, place, put, take
from tests.store.peer import ALONE, Peer, Recipe, Step, text

Start = Callable[..., Peer]


@pytest.fixture
def store(folder: Path) -> EncryptedFileStore:
    return EncryptedFileStore(folder)


@pytest.fixture
def recipe(folder: Path) -> Recipe:
    return Recipe(FILE, {"folder": str(folder)})


# Damage to records.


@pytest.mark.parametrize(("change", "why"), DAMAGE.values(), ids=[f"FN17-{label}" for label in DAMAGE])
@pytest.mark.parametrize("call", ["load", "save", "keys"])
def test_a_damaged_record_is_moved_aside_and_told(
    store: EncryptedFileStore, folder: Path, call: str, change: Callable[[bytes], bytes], why: str
) -> None:
    path = place(folder, "key")
    for number in (1, 2):
        put(store, "key", b"value")
        damaged = change(path.read_bytes())
        path.write_bytes(damaged)
        with pytest.raises(DamagedError, match=why) as raised:
            CALLS[call](store)
        aside = path.with_suffix(f".corrupt-{number}")
        assert str(path) in str(raised.value)
        assert aside.name in str(raised.value)
        assert "hunter2" not in str(raised.value)
        assert aside.read_bytes() == damaged
        assert store.load("key") is None
        assert store.keys() == ()


def test_fn17_records_that_changed_places_are_told_apart_from_altered_ones(
    store: EncryptedFileStore, folder: Path
) -> None:
    for key in ("one", "two"):
        put(store, key, key.encode())
    one, two = place(folder, "one"), place(folder, "two")
    one.rename(folder / "between")
    two.rename(one)
    (folder / "between").rename(two)
    for key, path in (("one", one), ("two", two)):
        with pytest.raises(DamagedError, match="another key's record, moved here") as raised:
            store.load(key)
        assert str(path) in str(raised.value)
    put(store, "one", b"again")


@pytest.mark.parametrize("call", ["load", "save", "keys"])
def test_a_newer_record_is_left_as_it_is(store: EncryptedFileStore, folder: Path, call: str) -> None:
    put(store, "key", b"value")
    path = place(folder, "key")
    data = path.read_bytes()
    path.write_bytes(data[:8] + b"\x02" + data[9:])
    before = contents(folder)
    with pytest.raises(NewerFormatError, match="has format 2, this release reads up to 1") as raised:
        CALLS[call](store)
    assert str(path) in str(raised.value)
    assert contents(folder) == before


def test_a_good_record_that_a_peer_put_there_meanwhile_is_not_moved_aside(
    store: EncryptedFileStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, "key", b"value")
    path = place(folder, "key")
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    guard = EncryptedFileStore._guard

    def late(self: EncryptedFileStore, slot: str) -> Any:
        path.write_bytes(good)
        return guard(self, slot)

    monkeypatch.setattr(EncryptedFileStore, "_guard", late)
    assert store.load("key") == Stored(b"value", "r1")


def test_a_link_is_not_followed(store: EncryptedFileStore, folder: Path, tmp_path: Path) -> None:
    put(store, "key", b"value")
    elsewhere, path = tmp_path / "elsewhere", place(folder, "key")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    with pytest.raises(StoreError, match=path.name):
        store.load("key")
    path.unlink()
    before = elsewhere.read_bytes()
    for suffix in (".tmp", ".next", ".holder"):
        place(folder, "key", suffix).symlink_to(elsewhere)
    with take(store, "key"):
        put(store, "key", b"one", "r1")
        put(store, "key", b"two", "r2", "r1")
    assert elsewhere.read_bytes() == before


def test_what_is_no_record_by_its_name_is_ignored(store: EncryptedFileStore, folder: Path) -> None:
    put(store, "key", b"value")
    (folder / ".DS_Store").write_bytes(b"?")
    (folder / "notes.enc").write_bytes(b"?")
    (folder / f"{'x' * 64}.enc").write_bytes(b"?")
    assert store.keys() == ("key",)


# Modes and places.


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes(top: Path) -> tuple[set[int], set[int]]:
    """The modes of the folders and of the files below a folder."""
    paths = [(path, stat.S_IMODE(path.lstat().st_mode)) for path in top.rglob("*")]
    return {mode for path, mode in paths if path.is_dir()}, {mode for path, mode in paths if not path.is_dir()}


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o277, 0o777], ids=oct)
def test_fn17_all_is_0600_in_0700_under_any_umask(tmp_path: Path, mask: int) -> None:
    with umask(mask):
        store = EncryptedFileStore(tmp_path / "made" / "on the way" / "store")
        put(store, "key", b"value")
        with take(store, "key"):
            put(store, "key", b"next", "r2", "r1")
            put(store, "key", b"last", "r3", "r2")
            assert modes(tmp_path) == ({0o700}, {0o600})
    assert modes(tmp_path) == ({0o700}, {0o600})


def test_fn17_all_is_so_from_its_creation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("chmod", "fchmod", "lchmod"):
        monkeypatch.setattr(os, name, lambda *arguments, **more: None, raising=False)
    with umask(0):
        store = EncryptedFileStore(tmp_path / "made" / "store")
        put(store, "key", b"value")
        with take(store, "key"):
            put(store, "key", b"next", "r2", "r1")
            put(store, "key", b"last", "r3", "r2")
            assert modes(tmp_path) == ({0o700}, {0o600})


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path, call: Callable[[EncryptedFileStore], object]) -> None:
    folder = Path("/")
    if ROOT:
        folder = tmp_path / "theirs"
        folder.mkdir(0o700)
        os.chown(folder, NOBODY, NOBODY)
    before = sorted(folder.iterdir())
    with pytest.raises(UnsafePlaceError, match=rf"belongs to uid \d+, this process is uid {os.geteuid()}") as raised:
        call(EncryptedFileStore(folder))
    assert str(folder) in str(raised.value)
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(("mode", "refused"), [(0o700, False), (0o755, False), (0o770, True), (0o707, True)])
def test_a_folder_that_others_may_write_to_is_refused(folder: Path, mode: int, refused: bool) -> None:
    folder.mkdir()
    folder.chmod(mode)
    expected = pytest.raises(UnsafePlaceError, match=f"chmod 700 {folder}") if refused else contextlib.nullcontext()
    with expected:
        EncryptedFileStore(folder).load("key")


def test_a_file_where_the_folder_should_be_is_told(folder: Path) -> None:
    folder.write_bytes(b"")
    with pytest.raises(StoreError, match=str(folder)):
        EncryptedFileStore(folder).load("key")


MOUNT = "36 24 {device} / /home rw,noatime shared:1 - {kind} server:/export rw\n"


@pytest.mark.parametrize(
    ("mounts", "refused"),
    [
        pytest.param(MOUNT.format(device="{here}", kind="nfs4"), True, id="RULES-4.16-nfs"),
        pytest.param(MOUNT.format(device="{here}", kind="cifs"), True, id="RULES-4.16-smb"),
        pytest.param(MOUNT.format(device="{here}", kind="ext4"), False, id="local"),
        pytest.param(MOUNT.format(device="0:9999", kind="nfs4"), False, id="another-mount-is-nfs"),
        pytest.param("", False, id="unknown"),
        pytest.param(None, False, id="no-such-file"),
    ],
)
def test_a_network_folder_is_refused_unless_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mounts: str | None, refused: bool
) -> None:
    device = tmp_path.stat().st_dev
    if mounts is not None:
        here = f"{os.major(device)}:{os.minor(device)}"
        (tmp_path / "mounts").write_text(mounts.replace("{here}", here))
    monkeypatch.setattr(locks, "MOUNTS", tmp_path / "mounts")
    expected = pytest.raises(UnsafePlaceError, match=r"is on (nfs4|cifs)") if refused else contextlib.nullcontext()
    with expected:
        EncryptedFileStore(tmp_path / "store").load("key")
    assert EncryptedFileStore(tmp_path / "store", allow_network_folder=True).load("key") is None


def test_the_default_folder_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".mcp_oauth" / "tokens"
    with umask(0):
        put(EncryptedFileStore(), "one server", b"value")
        put(EncryptedFileStore(), "another", b"value")
    assert default_folder() == folder
    assert EncryptedFileStore().identity == f"file:{folder}"
    assert set(folder.glob("*.enc")) == {place(folder, "one server"), place(folder, "another")}
    assert modes(tmp_path) == ({0o700}, {0o600})


def test_a_user_without_a_home_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(StoreError, match="name a folder"):
        EncryptedFileStore()


def test_a_link_to_a_folder_is_that_folder(folder: Path, tmp_path: Path) -> None:
    put(EncryptedFileStore(folder), "key", b"value")
    (tmp_path / "link").symlink_to(folder)
    linked = EncryptedFileStore(tmp_path / "link")
    assert linked.identity == EncryptedFileStore(folder).identity
    assert linked.load("key") == Stored(b"value", "r1")


# Writing when it cannot be done.


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, StoreFullError),
        (errno.EDQUOT, StoreFullError),
        (errno.EFBIG, StoreFullError),
        (errno.EROFS, NotWritableError),
        (errno.EACCES, NotWritableError),
        (errno.EIO, StoreError),
    ],
    ids=lambda value: errno.errorcode[value] if isinstance(value, int) else "",
)
def test_a_failed_write_keeps_the_old_value_and_says_why(
    store: EncryptedFileStore,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    number: int,
    kind: type[StoreError],
) -> None:
    put(store, "key", b"value")
    before = contents(folder)

    def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as failing:
        target = {"write": (locks, "create"), "fsync": (os, "fsync"), "replace": (Path, "replace")}[call]
        failing.setattr(*target, fail)
        with pytest.raises(StoreError, match=os.strerror(number)) as raised:
            store.save("key", b"next", revision="r2", expected="r1")
    assert type(raised.value) is kind
    assert str(folder) in str(raised.value)
    assert contents(folder) == before
    put(store, "key", b"next", "r2", "r1")


def test_rules_4_17_after_a_failed_fsync_that_file_is_not_flushed_again(
    store: EncryptedFileStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.load("key")
    flushed: list[bool] = []
    held: list[int] = []

    def fail_once(descriptor: int) -> None:
        if not held:
            held.append(os.dup(descriptor))  # so that its inode is not given to the next file
            raise OSError(errno.EIO, "Input/output error")
        flushed.append(os.path.samestat(os.fstat(held[0]), os.fstat(descriptor)))

    monkeypatch.setattr(os, "fsync", fail_once)
    with take(store, "key"):
        with pytest.raises(StoreError, match="Input/output error"):
            store.save("key", b"value", revision="r1", expected=None)
        put(store, "key", b"value", "r1")
    os.close(held[0])
    assert flushed == [False, False], "the new file and the folder"


def test_a_save_whose_rename_may_be_undone_says_so(store: EncryptedFileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.load("key")
    fsync = os.fsync

    def folders_fail(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", folders_fail)
    assert store.save("key", b"value", revision="r1", expected=None) == Saved(durable=False)
    assert store.load("key") == Stored(b"value", "r1")


def test_a_save_is_made_durable_before_and_after_its_rename(
    store: EncryptedFileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.load("key")
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def flush(descriptor: int) -> None:
        done.append("flush folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "flush file")
        fsync(descriptor)

    def rename(source: Path, target: Path) -> Path:
        done.append("rename")
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(Path, "replace", rename)
    put(store, "key", b"value")
    assert done == ["flush file", "rename", "flush folder"]


def test_rules_4_7_no_lock_is_given_where_no_successor_fits(
    store: EncryptedFileStore, folder: Path, recipe: Recipe, start: Start
) -> None:
    put(store, "key", b"value")
    peer = start(recipe, file_limit=16_384)
    with pytest.raises(StoreFullError, match=str(folder)):
        peer.ask("lock", key="key")
    assert leftovers(folder) == []
    with take(store, "key"):
        pass


def test_a_limit_to_files_is_a_full_disk(store: EncryptedFileStore, folder: Path, recipe: Recipe, start: Start) -> None:
    put(store, "key", b"value")
    peer = start(recipe, file_limit=16_384)
    with pytest.raises(StoreFullError, match=str(folder)):
        peer.save("key", os.urandom(200_000), revision="r2", expected="r1")
    assert leftovers(folder) == []
    assert peer.save("key", b"smaller", revision="r2", expected="r1") is True
    assert store.load("key") == Stored(b"smaller", "r2")


@pytest.fixture
def on_a_small_disk(recipe: Recipe, start: Start) -> Peer:
    """A process whose store is on a disk of 192 kB."""
    if shutil.which("unshare") is None or subprocess.run([*ALONE, "true"], capture_output=True).returncode:
        missing("a small disk", "run this where `unshare --user --mount` is allowed, on Linux")
    return start(recipe, disk=196_608)


def test_a_disk_that_is_full_keeps_the_old_value(on_a_small_disk: Peer, tmp_path: Path) -> None:
    peer = on_a_small_disk
    assert peer.save("key", b"value", revision="r1", expected=None) is True
    with pytest.raises(StoreFullError, match="No space left"):
        peer.save("key", os.urandom(200_000), revision="r2", expected="r1")
    assert peer.save("key", b"smaller", revision="r2", expected="r1") is True
    peer.ask("fill_the_disk", folder=str(tmp_path))
    for what in (SAVE, LOCK, ("rekey", {})):
        with pytest.raises(StoreFullError, match="No space left"):
            peer.ask(what[0], **{**what[1], **({"expected": "r2"} if what is SAVE else {})})
    assert peer.ask("load", key="key") == [text(b"smaller"), "r2"]


def test_rules_4_7_a_disk_that_fills_up_under_the_lock_has_room_for_the_successor(
    on_a_small_disk: Peer, tmp_path: Path
) -> None:
    peer = on_a_small_disk
    assert peer.save("key", b"value", revision="r1", expected=None) is True
    assert peer.ask("lock", key="key") is True
    peer.ask("fill_the_disk", folder=str(tmp_path))
    assert peer.save("key", os.urandom(60_000), revision="r2", expected="r1") is True
    with pytest.raises(StoreFullError, match="No space left"):
        peer.save("key", os.urandom(60_000), revision="r3", expected="r2")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user can reach, below one that any user can pass."""
    with tempfile.TemporaryDirectory() as top:
        Path(top).chmod(0o711)
        yield Path(top) / "store"


@pytest.mark.parametrize("step", [SAVE, LOCK], ids=["save", "lock"])
def test_a_read_only_folder_can_be_read_and_says_what_it_is(open_folder: Path, start: Start, step: Step) -> None:
    put(EncryptedFileStore(open_folder), "key", b"value", "old")
    setup = {"uid": NOBODY} if ROOT else {}  # root may write everywhere
    if ROOT:
        for path in (open_folder, *open_folder.iterdir()):
            os.chown(path, NOBODY, NOBODY)
    open_folder.chmod(0o500)
    place(open_folder, "key", ".guard").chmod(0o400)
    peer = start(Recipe(FILE, {"folder": str(open_folder)}), **setup)
    try:
        assert peer.ask("load", key="key") == [text(b"value"), "old"]
        with pytest.raises(NotWritableError, match="Permission denied") as raised:
            peer.ask(step[0], **step[1])
        assert str(open_folder) in str(raised.value)
    finally:
        open_folder.chmod(0o700)


def test_a_stopped_peer_is_waited_for_only_so_long(
    store: EncryptedFileStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, "key", b"value")
    monkeypatch.setattr(locks, "GUARD_SECONDS", 0.02)
    guard = place(folder, "key", ".guard")
    with FileLock(guard), pytest.raises(StoreBusyError, match=guard.name):
        store.save("key", b"next", revision="r2", expected="r1")
    put(store, "key", b"next", "r2", "r1")
