"""How the values and the key of a store are sealed: records, headers, passwords."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.kdf import argon2
from hypothesis import given
from hypothesis import strategies as st

from mcp_oauth.store import sealing
from mcp_oauth.store.base import (
    DamagedError,
    NewerFormatError,
    Stored,
    StoreError,
    WrongPasswordError,
)
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from tests.store.files import CALLS, FILE, contents, put, take
from tests.store.peer import Peer, Recipe, text


@pytest.fixture
def store(folder: Path) -> EncryptedFileStore:
    return EncryptedFileStore(folder)


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
    header = sealing.rotated_header((folder / "store.json").read_bytes(), lambda: "correct horse")
    key = sealing.open_header(header, lambda: "correct horse")
    assert key.retiring is not None
    keys = [form for secret in (key.key, key.retiring.key) for form in (secret, base64.b64encode(secret))]
    for data in (header, *contents(folder).values()):
        for secret in (b"telling", b"refresh token", b"horse", *keys):
            assert secret not in data
    assert repr(key) == f"StoreKey(id={key.id!r}, ...)"


# Passwords and headers.


@pytest.mark.parametrize("kdf", ["argon2id", "pbkdf2"])
def test_a_store_with_a_password_is_opened_with_it(folder: Path, kdf: sealing.KdfName) -> None:
    put(EncryptedFileStore(folder, password="right", kdf=kdf), "key", b"value")
    assert EncryptedFileStore(folder, password="right").load("key") == Stored(b"value", "r1")
    assert EncryptedFileStore(folder, password=lambda: "right").load("key") == Stored(b"value", "r1")


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


def test_an_openssl_without_argon2id_is_told_and_pbkdf2_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(**cost: object) -> None:
        raise UnsupportedAlgorithm("This version of OpenSSL does not support argon2id")

    monkeypatch.setattr(argon2, "Argon2id", lacking)
    with pytest.raises(StoreError, match="kdf='pbkdf2'"):
        EncryptedFileStore(folder, password="right").load("key")
    assert EncryptedFileStore(folder, password="right", kdf="pbkdf2").load("key") is None


@pytest.mark.parametrize("password", [None, "right"])
def test_a_copy_of_the_folder_works_on_another_machine(
    folder: Path, tmp_path: Path, start: Callable[..., Peer], password: str | None
) -> None:
    with take(put_two(folder, password), "one"):
        copy = Path(shutil.copytree(folder, tmp_path / "home of another" / "tokens"))
    shutil.rmtree(folder)
    peer = start(Recipe(FILE, {"folder": str(copy), "password": password}))
    assert peer.ask("load", key="one") == [text(b"value"), "r1"]
    assert peer.ask("keys") == ["one", "two"]
    assert peer.ask("lock", key="one") is True
    assert peer.save("one", b"next", revision="r2", expected="r1") is True


def put_two(folder: Path, password: str | None) -> EncryptedFileStore:
    store = EncryptedFileStore(folder, password=password)
    put(store, "one", b"value")
    put(store, "two", b"value")
    return store


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


def test_a_retiring_key_of_another_store_is_refused() -> None:
    other, mine = (sealing.rotated_header(sealing.new_header(sealing.new_key(), None, "pbkdf2"), None) for _ in "12")
    planted = {**json.loads(mine), "retiring": json.loads(other)["retiring"]}
    header = sealing._checked(msgspec.convert(planted, sealing.Header))
    with pytest.raises(DamagedError, match="was sealed by another store"):
        sealing.open_header(header, None)


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
