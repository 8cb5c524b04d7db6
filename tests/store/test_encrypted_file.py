"""What the encrypted file store adds to the contract: sealing, durable files, their modes, and truthful errors."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from mcp_oauth.store import encrypted_file, sealing
from mcp_oauth.store.base import (
    DamagedError,
    Held,
    Lease,
    NewerFormatError,
    NotWritableError,
    Saved,
    StoreBusyError,
    Stored,
    StoreError,
    StoreFullError,
    UnsafePlaceError,
    WrongPasswordError,
)
from mcp_oauth.store.encrypted_file import EncryptedFileStore, default_folder
from tests.store.peer import Peer, Recipe, Step, counted, text

KILLS = int(os.environ.get("MCP_OAUTH_KILLS", "60"))
"""How many processes are killed while they write."""

NOBODY = 65534
ROOT = os.geteuid() == 0

Start = Callable[..., Peer]

LOCK: Step = ("lock", {"key": "key"})
SAVE: Step = ("save", {"key": "key", "value": text(b"new"), "revision": "new", "expected": "old"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(folder: Path) -> EncryptedFileStore:
    return EncryptedFileStore(folder)


@pytest.fixture
def recipe(folder: Path) -> Recipe:
    return Recipe("mcp_oauth.store.encrypted_file:EncryptedFileStore", {"folder": str(folder)})


def put(store: EncryptedFileStore, key: str, value: bytes, revision: str = "r1", expected: str | None = None) -> None:
    assert store.save(key, value, revision=revision, expected=expected) == Saved(durable=True)


def take(store: EncryptedFileStore, key: str) -> Lease:
    lease = store.try_lock(key)
    assert not isinstance(lease, Held), lease
    return lease


def place(folder: Path, key: str, suffix: str = ".record") -> Path:
    return folder / (sealing.slot_of(key).hex() + suffix)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix not in {".guard", ".lock"}}


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.suffix in {".tmp", ".next"}]


# Sealing.


ANY_TEXT = st.text(st.characters())


@given(name=ANY_TEXT, revision=ANY_TEXT, value=st.binary())
def test_what_is_sealed_is_unsealed(name: str, revision: str, value: bytes) -> None:
    key, record = sealing.new_key(), sealing.Record(name, revision, value)
    assert sealing.unseal(key, sealing.slot_of(name), sealing.seal(key, record)) == record


@given(st.binary(max_size=300))
def test_any_bytes_are_damaged_or_newer(data: bytes) -> None:
    with pytest.raises((DamagedError, NewerFormatError)):
        sealing.unseal(sealing.new_key(), sealing.slot_of("key"), data)


def test_no_bit_of_a_record_can_change() -> None:
    key = sealing.new_key()
    sealed = sealing.seal(key, sealing.Record("key", "r1", b"value"))
    for position in range(len(sealed) * 8):
        changed = bytearray(sealed)
        changed[position // 8] ^= 1 << position % 8
        with pytest.raises((DamagedError, NewerFormatError)):
            sealing.unseal(key, sealing.slot_of("key"), bytes(changed))


def test_no_two_seals_are_alike() -> None:
    key, record = sealing.new_key(), sealing.Record("key", "r1", b"value")
    seals = [sealing.seal(key, record) for _ in range(100)]
    assert len({sealed[49:81] for sealed in seals}) == 100, "salts"
    assert len({sealed[81:93] for sealed in seals}) == 100, "nonces"


def test_a_record_key_is_rfc_5869s() -> None:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    key, salt = sealing.new_key(), os.urandom(32)
    assert sealing._record_key(key, salt) == HKDF(SHA256(), 32, salt, b"mcp_oauth record").derive(key.key)


def test_no_secret_is_in_plain_text_or_in_a_repr(folder: Path) -> None:
    store = EncryptedFileStore(folder, password="correct horse")
    put(store, "a telling name", b"a refresh token")
    key = sealing.open_header((folder / "store.json").read_bytes(), lambda: "correct horse")
    for data in contents(folder).values():
        for secret in (b"telling", b"refresh token", b"horse", key.key):
            assert secret not in data
    assert repr(key) == f"StoreKey(id={key.id!r}, ...)"


# Passwords and headers.


@pytest.mark.parametrize("kdf", ["argon2id", "pbkdf2"])
def test_a_store_with_a_password_is_opened_with_it(folder: Path, kdf: sealing.KdfName) -> None:
    put(EncryptedFileStore(folder, password="right", kdf=kdf), "key", b"value")
    assert EncryptedFileStore(folder, password="right").load("key") == Stored(b"value", "r1")
    assert EncryptedFileStore(folder, password=lambda: "right").load("key") == Stored(b"value", "r1")


CALLS: dict[str, Callable[[EncryptedFileStore], object]] = {
    "load": lambda store: store.load("key"),
    "save": lambda store: store.save("key", b"other", revision="r2", expected="r1"),
    "keys": lambda store: store.keys(),
    "try_lock": lambda store: store.try_lock("key"),
    "change_password": lambda store: store.change_password("mine now"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    ("right", "wrong", "why"),
    [
        pytest.param("right", "wrong", "has another password", id="another"),
        pytest.param("right", None, "needs its password", id="none-given"),
        pytest.param(None, "wrong", "has no password", id="none-expected"),
        pytest.param("right", "", "empty password", id="empty"),
    ],
)
def test_a_wrong_password_says_so_and_changes_nothing(
    folder: Path, right: str | None, wrong: str | None, why: str, call: Callable[[EncryptedFileStore], object]
) -> None:
    put(EncryptedFileStore(folder, password=right), "key", b"value")
    before = contents(folder)
    with pytest.raises(WrongPasswordError, match=why) as raised:
        call(EncryptedFileStore(folder, password=wrong))
    assert str(folder) in str(raised.value)
    assert contents(folder) == before
    assert EncryptedFileStore(folder, password=right).load("key") == Stored(b"value", "r1")


def test_a_password_is_the_same_however_its_letters_are_composed(folder: Path) -> None:
    put(EncryptedFileStore(folder, password="caf\u00e9"), "key", b"value")
    assert EncryptedFileStore(folder, password="cafe\u0301").load("key") == Stored(b"value", "r1")


def test_a_password_that_cannot_be_asked_is_a_store_error(folder: Path) -> None:
    def ask() -> str:
        raise EOFError

    with pytest.raises(StoreError, match="could not be asked for"):
        EncryptedFileStore(folder, password=ask).load("key")


def test_the_kdf_is_paid_once_a_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paid: list[object] = []
    derive = sealing._derive

    def counting(kdf: sealing.Argon2id | sealing.Pbkdf2, secret: bytes) -> bytes:
        paid.append(kdf)
        return derive(kdf, secret)

    monkeypatch.setattr(sealing, "_derive", counting)
    put(EncryptedFileStore(folder, password="right"), "key", b"value")
    with ThreadPoolExecutor(20) as threads:
        for _ in range(20):
            threads.submit(EncryptedFileStore(folder, password="right").load, "key")
    assert len(paid) == 1


@pytest.mark.parametrize(
    ("kdf", "cost"),
    [
        ("argon2id", {"type": "Argon2id", "memory_kib": 19_456, "iterations": 2, "lanes": 1}),
        ("pbkdf2", {"type": "Pbkdf2", "iterations": 600_000}),
    ],
)
def test_the_kdf_costs_what_owasp_says(kdf: sealing.KdfName, cost: dict[str, object]) -> None:
    header = json.loads(sealing.new_header(sealing.new_key(), lambda: "right", kdf))
    del header["kdf"]["salt"]
    assert header["kdf"] == cost


def test_a_store_with_a_password_works_on_another_machine(folder: Path, tmp_path: Path) -> None:
    put(EncryptedFileStore(folder, password="right"), "key", b"value")
    copy = Path(shutil.copytree(folder, tmp_path / "other machine"))
    assert EncryptedFileStore(copy, password="right").load("key") == Stored(b"value", "r1")


def test_a_password_is_changed_while_others_use_the_store(folder: Path) -> None:
    running, changing = EncryptedFileStore(folder, password="old"), EncryptedFileStore(folder, password="old")
    put(running, "key", b"value")
    changing.change_password("new")
    put(running, "key", b"next", "r2", "r1")
    put(changing, "key", b"last", "r3", "r2")
    assert EncryptedFileStore(folder, password="new").load("key") == Stored(b"last", "r3")
    with pytest.raises(WrongPasswordError):
        EncryptedFileStore(folder, password="old").load("key")
    changing.change_password(None)
    assert EncryptedFileStore(folder).load("key") == Stored(b"last", "r3")


def bomb(**cost: int) -> Callable[[bytes], bytes]:
    """A header that asks for this cost, as whoever planted it would write it: with the checksum in order."""

    def planted(_: bytes) -> bytes:
        kdf = sealing.Argon2id(bytes(16), **cost)
        return sealing._checked(sealing.Header(sealing.FORMAT, bytes(8), kdf, bytes(60)))

    return planted


HEADERS: dict[str, tuple[Callable[[bytes], bytes], type[StoreError], str]] = {
    "empty": (lambda data: b"", DamagedError, "no header that can be used"),
    "cut-short": (lambda data: data[:-9], DamagedError, "no header that can be used"),
    "foreign": (lambda data: b"password=hunter2", DamagedError, "no header that can be used"),
    "foreign-json": (lambda data: b'{"format":1}', DamagedError, "no header that can be used"),
    "unknown-kdf": (lambda data: data.replace(b"Argon2id", b"Argon2di"), DamagedError, "no header that can be used"),
    "altered": (lambda data: data.replace(b'"iterations":2', b'"iterations":3'), DamagedError, "was altered"),
    "newer": (lambda data: data.replace(b'"format":1', b'"format":2'), NewerFormatError, "has format 2"),
    "kdf-bomb-memory": (bomb(memory_kib=2**31), DamagedError, "memory_kib"),
    "kdf-bomb-passes": (bomb(iterations=2**31), DamagedError, "iterations"),
    "kdf-bomb-lanes": (bomb(lanes=2**20), DamagedError, "lanes"),
}


@pytest.mark.parametrize(("change", "kind", "why"), HEADERS.values(), ids=HEADERS)
def test_a_header_that_is_not_in_order_is_left_as_it_is(
    folder: Path, change: Callable[[bytes], bytes], kind: type[StoreError], why: str
) -> None:
    put(EncryptedFileStore(folder, password="right"), "key", b"value")
    header = folder / "store.json"
    header.write_bytes(change(header.read_bytes()))
    before = contents(folder)
    with pytest.raises(kind, match=why) as raised:
        EncryptedFileStore(folder, password="right").load("key")
    assert str(header) in str(raised.value)
    assert "hunter2" not in str(raised.value)
    assert contents(folder) == before


@given(st.binary(max_size=300) | st.builds(lambda data: b'{"format":1,' + data, st.binary(max_size=300)))
def test_any_bytes_are_no_header(data: bytes) -> None:
    with pytest.raises((DamagedError, NewerFormatError)):
        sealing.open_header(data, None)


def test_a_header_nested_too_deeply_is_no_header() -> None:
    with pytest.raises(DamagedError, match="no header that can be used"):
        sealing.open_header(b'{"format":1,"kdf":' + b"[" * 100_000, None)


def test_a_header_with_a_key_too_short_is_no_header() -> None:
    planted = sealing._checked(sealing.Header(sealing.FORMAT, bytes(8), None, b"short"))
    with pytest.raises(DamagedError, match="no header that can be used"):
        sealing.open_header(planted, None)


def test_a_missing_header_is_not_made_anew_over_records_that_need_the_old_one(folder: Path) -> None:
    put(EncryptedFileStore(folder), "key", b"value")
    (folder / "store.json").unlink()
    with pytest.raises(DamagedError, match=r"store\.json is missing"):
        EncryptedFileStore(folder).load("key")
    assert not (folder / "store.json").exists()


def test_a_folder_that_vanished_is_made_anew(store: EncryptedFileStore, folder: Path) -> None:
    put(store, "key", b"value")
    shutil.rmtree(folder)
    assert store.load("key") is None
    put(store, "key", b"anew", "r2")
    assert EncryptedFileStore(folder).load("key") == Stored(b"anew", "r2")


def test_a_store_that_peers_made_anew_is_read_with_its_new_key(store: EncryptedFileStore, folder: Path) -> None:
    put(store, "key", b"value")
    shutil.rmtree(folder)
    put(EncryptedFileStore(folder), "key", b"anew", "r2")
    assert store.load("key") == Stored(b"anew", "r2")
    put(store, "key", b"next", "r3", "r2")
    assert EncryptedFileStore(folder).load("key") == Stored(b"next", "r3")


# Damage to records.


def flipped(position: int) -> Callable[[bytes], bytes]:
    def flip(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[position] ^= 1
        return bytes(changed)

    return flip


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "is cut short"),
    "cut-in-the-magic": (lambda data: data[:5], "is cut short"),
    "cut-in-the-head": (lambda data: data[:50], "is cut short"),
    "cut-in-the-revision": (lambda data: data[:102], "is cut short"),
    "cut-by-a-byte": (lambda data: data[:-1], "is cut short"),
    "longer": (lambda data: data + b"x", "was altered"),
    "flipped-slot": (flipped(20), "was altered"),
    "flipped-salt": (flipped(60), "was altered"),
    "flipped-nonce": (flipped(85), "was altered"),
    "flipped-revision": (flipped(102), "was altered"),
    "flipped-value": (flipped(110), "was altered"),
    "flipped-tag": (flipped(-1), "was altered"),
    "foreign": (lambda data: b'{"access_token":"hunter2"}' * 9, "is no record of mcp_oauth"),
    "another-store": (
        lambda data: sealing.seal(sealing.new_key(), sealing.Record("key", "r1", b"hunter2")),
        "was sealed by another store",
    ),
}


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
    (folder / "notes.record").write_bytes(b"?")
    (folder / f"{'x' * 64}.record").write_bytes(b"?")
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
    monkeypatch.setattr(encrypted_file, "MOUNTS", tmp_path / "mounts")
    expected = pytest.raises(UnsafePlaceError, match=r"is on (nfs4|cifs)") if refused else contextlib.nullcontext()
    with expected:
        EncryptedFileStore(tmp_path / "store").load("key")
    assert EncryptedFileStore(tmp_path / "store", allow_network_folder=True).load("key") is None


@pytest.mark.parametrize(
    ("named", "folder"),
    [
        pytest.param("/data", "/data/mcp-oauth", id="named"),
        pytest.param(None, "/home/me/.local/share/mcp-oauth", id="unnamed"),
        pytest.param("data", "/home/me/.local/share/mcp-oauth", id="relative-is-ignored"),
    ],
)
def test_the_default_is_in_the_users_data_folder(
    monkeypatch: pytest.MonkeyPatch, named: str | None, folder: str
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    if named is not None:
        monkeypatch.setenv("XDG_DATA_HOME", named)
    assert default_folder() == Path(folder)
    assert EncryptedFileStore().identity == f"file:{folder}"


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
        target = {"write": (encrypted_file, "_create"), "fsync": (os, "fsync"), "replace": (Path, "replace")}[call]
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


def test_a_full_disk_keeps_the_old_value(store: EncryptedFileStore, folder: Path, recipe: Recipe, start: Start) -> None:
    put(store, "key", b"value")
    peer = start(recipe, file_limit=16_384)
    with pytest.raises(StoreFullError, match=str(folder)):
        peer.save("key", os.urandom(200_000), revision="r2", expected="r1")
    assert leftovers(folder) == []
    assert peer.save("key", b"smaller", revision="r2", expected="r1") is True
    assert store.load("key") == Stored(b"smaller", "r2")


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
    peer = start(Recipe("mcp_oauth.store.encrypted_file:EncryptedFileStore", {"folder": str(open_folder)}), **setup)
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
    monkeypatch.setattr(encrypted_file, "GUARD_SECONDS", 0.02)
    guard = place(folder, "key", ".guard")
    with FileLock(guard), pytest.raises(StoreBusyError, match=guard.name):
        store.save("key", b"next", revision="r2", expected="r1")
    put(store, "key", b"next", "r2", "r1")


# Room for the successor.


def test_rules_4_7_the_lock_sets_room_aside_and_the_next_save_takes_it(store: EncryptedFileStore, folder: Path) -> None:
    put(store, "key", os.urandom(200_000))
    room = place(folder, "key", ".next")
    with take(store, "key"):
        about = room.stat()
        assert about.st_size > 264_000
        assert about.st_blocks * 512 >= about.st_size
        put(store, "key", b"value", "r2", "r1")
        assert not room.exists()
        assert place(folder, "key").stat().st_ino == about.st_ino
    assert store.load("key") == Stored(b"value", "r2")


def test_room_that_was_not_needed_is_given_back(store: EncryptedFileStore, folder: Path) -> None:
    with take(store, "key"):
        assert place(folder, "key", ".next").exists()
        assert place(folder, "key", ".holder").exists()
    assert leftovers(folder) == []
    assert not place(folder, "key", ".holder").exists()
    assert place(folder, "key", ".lock").exists()


def test_a_save_on_another_thread_leaves_the_room_to_the_holder(store: EncryptedFileStore, folder: Path) -> None:
    room = place(folder, "key", ".next")
    with take(store, "key"):
        login = threading.Thread(target=put, args=(store, "key", b"a login's claim"))
        login.start()
        login.join()
        assert room.exists()
        put(store, "key", b"renewed", "r2", "r1")
        assert not room.exists()


def test_a_holder_that_has_not_said_who_it_is_is_held_all_the_same(store: EncryptedFileStore, folder: Path) -> None:
    with take(store, "key"):
        for note in (b"", b"{"):
            place(folder, "key", ".holder").write_bytes(note)
            assert store.try_lock("key") == Held("another process, which has yet to say which")


# Leftovers and kills.


def test_what_dead_processes_left_is_removed(store: EncryptedFileStore, folder: Path) -> None:
    put(store, "key", b"value")
    for path in (place(folder, "key", ".tmp"), place(folder, "key", ".next"), folder / "store.tmp"):
        path.write_bytes(b"half")
    assert EncryptedFileStore(folder).load("key") == Stored(b"value", "r1")
    assert leftovers(folder) == []


def test_what_is_in_use_is_not_removed(store: EncryptedFileStore, folder: Path) -> None:
    put(store, "key", b"value")
    being_written = place(folder, "key", ".tmp")
    with take(store, "key"), FileLock(place(folder, "key", ".guard")):
        being_written.write_bytes(b"half")
        EncryptedFileStore(folder).load("key")
        assert sorted(leftovers(folder)) == sorted([being_written.name, place(folder, "key", ".next").name])


WAYS: dict[str, list[Step]] = {"save": [SAVE], "save-under-the-lock": [LOCK, SAVE, ("unlock", {"key": "key"})]}


@pytest.mark.parametrize("steps", WAYS.values(), ids=WAYS)
def test_fn17_a_kill_at_any_call_of_a_write_leaves_the_old_or_the_new(
    folder: Path, recipe: Recipe, start: Start, steps: list[Step]
) -> None:
    store, peer = EncryptedFileStore(folder), start(recipe)
    found: list[Stored | None] = []
    store.load("key")
    peer.ask("load", key="key")
    put(store, "key", b"old", "old")
    while peer.ask("die_at", call=len(found), steps=steps):
        found.append(EncryptedFileStore(folder).load("key"))
        assert leftovers(folder) == []
        with take(store, "key"):
            there = found[-1]
            assert there is not None
            put(store, "key", b"old", "old", there.revision)
    first_new = found.index(Stored(b"new", "new"))
    assert found == [Stored(b"old", "old")] * first_new + [Stored(b"new", "new")] * (len(found) - first_new)
    assert 10 < first_new < len(found) - 3, "there were calls before the rename and after it"


@pytest.mark.parametrize("locked", [False, True], ids=["save", "save-under-the-lock"])
def test_fn17_kills_at_random_lose_nothing(folder: Path, recipe: Recipe, start: Start, locked: bool) -> None:
    peer, chance = start(recipe), random.Random(KILLS)
    sizes = [10, 3_000, 40_000]
    for _ in range(KILLS // 2):
        peer.tell("churn", key="key", sizes=sizes, locked=locked)
        child = peer.hear("child")
        heard = [peer.hear("saved") for _ in range(chance.randrange(1, 4))]
        for _ in range(chance.randrange(20_000)):
            pass  # up to a millisecond, the time of a save
        os.kill(child, signal.SIGKILL)
        heard += [said for kind, said in iter(peer.line, ("answer", "child ended")) if kind == "saved"]
        store = EncryptedFileStore(folder)
        stored = store.load("key")
        assert stored is not None
        assert int(stored.revision) in {heard[-1], heard[-1] + 1}, "neither what was acknowledged nor the next"
        assert stored.value == counted(int(stored.revision), sizes[int(stored.revision) % len(sizes)])
        assert leftovers(folder) == []
        with take(store, "key"):
            pass
