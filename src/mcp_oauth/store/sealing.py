"""How values are sealed, and how the key that seals them is kept. Bytes in, bytes out: no files, no clock.

A store has one random key of 32 bytes. Its **header** (JSON) holds that key, wrapped with AES-256-GCM under what
Argon2id (RFC 9106) or PBKDF2-HMAC-SHA256 (RFC 8018) makes of a password, or bare where there is no password and the
place itself is the protection. A header carries its own checksum, so that a wrong password and a damaged header are
told apart, and the costs it asks for have a ceiling, so that a planted header cannot stop the reader. While records are
being sealed anew under a new key, it also holds the **retiring** one, sealed as a record is, under the new one.

A **record** is sealed with AES-256-GCM under a key of its own, HKDF-SHA256 (RFC 5869) of the store's key and a fresh
salt, so that no number of records brings two equal nonces under one key:

    magic 8 | format 1 | store key id 8 | slot 32 | salt 32 | nonce 12 | revision length 4 | sealed length 4
    revision | sealed(name length 4 | name | value)

All before the sealed part is its associated data. The slot is the SHA-256 of the name, so a record is bound to its
name and its revision, and a record moved to another name is known for what it is. What sealing cannot show is an
older record put back under its own name.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import os
import struct
import threading
import unicodedata
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from mcp_oauth.sansio.values import SecretBytes, Value

from .base import DamagedError, NewerFormatError, Stored, StoreError, WrongPasswordError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

FORMAT = 1
MAGIC = b"mcpoauth"
HEADER_CURE = "it was left as it is: restore it, or remove the store and log in again"
_RETIRING = "the retiring key"
_FIXED = struct.Struct(">8sB8s32s32s12sII")
_LENGTH = struct.Struct(">I")
_TAG = 16

KdfName = Literal["argon2id", "pbkdf2"]
_Salt = Annotated[bytes, Meta(min_length=16, max_length=64)]


class Argon2id(Value, frozen=True):
    """Argon2id and its cost: OWASP's first choice, and at most 13 times its memory and 5 times its passes."""

    salt: _Salt
    iterations: Annotated[int, Meta(ge=1, le=10)] = 2
    lanes: Annotated[int, Meta(ge=1, le=8)] = 1
    memory_kib: Annotated[int, Meta(ge=64, le=256 * 1024)] = 19 * 1024


class Pbkdf2(Value, frozen=True):
    """PBKDF2-HMAC-SHA256 and its cost: OWASP's figure, and at most ten times that."""

    salt: _Salt
    iterations: Annotated[int, Meta(ge=1, le=6_000_000)] = 600_000


_KDFS: dict[KdfName, type[Argon2id] | type[Pbkdf2]] = {"argon2id": Argon2id, "pbkdf2": Pbkdf2}


class Header(Value, frozen=True):
    """What a store's header says. Without a `kdf`, `key` is the store's key itself, else nonce and wrapped key."""

    shown = ("format", "key_id", "kdf")

    format: int
    key_id: bytes
    kdf: Argon2id | Pbkdf2 | None
    key: Annotated[SecretBytes, Meta(min_length=32, max_length=60)]
    retiring: Annotated[SecretBytes, Meta(max_length=200)] = b""
    checksum: bytes = b""


class _Versioned(msgspec.Struct):
    format: int


class StoreKey(Value, frozen=True):
    """The key that seals a store's records, and a name for it that gives nothing away."""

    shown = ("id",)

    id: bytes
    key: SecretBytes
    retiring: StoreKey | None = None
    """The key before this one, while there may be records under it: it opens them, and seals no more."""


class Record(NamedTuple):
    """What a sealed record holds."""

    name: str
    revision: str
    value: bytes


def stored(record: Record | None) -> Stored | None:
    """What a store says of a record: its name is known to whoever asked."""
    return None if record is None else Stored(record.value, record.revision)


Password = Callable[[], str]


def new_key() -> StoreKey:
    """A key for a new store."""
    return _store_key(os.urandom(32))


def given_key(key: bytes) -> StoreKey:
    """The key of a store that does not keep it: 32 bytes, made and kept elsewhere. Raises `ValueError` for others."""
    if len(key) != 32:
        raise ValueError(f"a key has 32 bytes, this has {len(key)}")
    return _store_key(key)


def new_header(key: StoreKey, password: Password | None, kdf: KdfName) -> bytes:
    """The header that keeps a store's key under a password, if there is one, with a fresh salt."""
    return _header(key, None if password is None else _KDFS[kdf](os.urandom(16)), password)


def rotated_header(data: bytes, password: Password | None) -> bytes:
    """The header with a new key, under the same password; the key that it had is retiring. Raises as `open_header`."""
    once = password and functools.cache(password)
    retiring = open_header(data, once)
    return _header(msgspec.structs.replace(new_key(), retiring=retiring), _read_header(data).kdf, once)


def settled_header(data: bytes) -> bytes:
    """The header without the retiring key, once no record needs it. Raises as `open_header`."""
    return _checked(msgspec.structs.replace(_read_header(data), retiring=b""))


def open_header(data: bytes, password: Password | None, known: StoreKey | None = None) -> StoreKey:
    """The store's key; `known` again, without asking for the password, if the header still holds that one.

    Raises `WrongPasswordError`, `NewerFormatError`, `DamagedError`, and `StoreError` where this machine lacks the KDF.
    """
    header = _read_header(data)
    if known is not None and header.key_id == known.id:
        return _with_retiring(known.key, header)
    if (header.kdf is None) != (password is None):
        raise WrongPasswordError("needs its password" if header.kdf else "has no password; open it without one")
    if header.kdf is None or password is None:
        return _with_retiring(header.key, header)
    from cryptography.exceptions import InvalidTag

    wrapping, about = _aead(_password_key(header.kdf, password)), _unwrapped(header)
    try:
        key = wrapping.decrypt(header.key[:12], header.key[12:], about)
    except InvalidTag:
        raise WrongPasswordError("has another password; nothing was changed") from None
    return _with_retiring(key, header)


def slot_of(name: str) -> bytes:
    """Where a record of this name belongs: 32 bytes. Any text is a name, lone surrogates too."""
    return hashlib.sha256(_text_bytes(name)).digest()


def seal(key: StoreKey, record: Record) -> bytes:
    """Seal a record, with fresh salt and nonce."""
    name, revision = _text_bytes(record.name), _text_bytes(record.revision)
    content = b"".join((_LENGTH.pack(len(name)), name, record.value))
    salt, nonce = os.urandom(32), os.urandom(12)
    slot, length = slot_of(record.name), len(content) + _TAG
    head = _FIXED.pack(MAGIC, FORMAT, key.id, slot, salt, nonce, len(revision), length) + revision
    return head + _aead(_record_key(key, salt)).encrypt(nonce, content, head)


def unseal(key: StoreKey, slot: bytes, data: bytes) -> Record:
    """Open what was read at a slot. Raises `NewerFormatError`, and `DamagedError` saying in what way."""
    if len(data) < _FIXED.size or not data.startswith(MAGIC):
        raise DamagedError("is cut short" if data[: len(MAGIC)] == MAGIC[: len(data)] else "is no record of mcp_oauth")
    _, number, key_id, own_slot, salt, nonce, revision_length, length = _FIXED.unpack_from(data)
    if number > FORMAT:
        raise NewerFormatError(f"has format {number}, this release reads up to {FORMAT}; use a newer mcp_oauth")
    end = _FIXED.size + revision_length
    if len(data) < end + length:
        raise DamagedError("is cut short")
    sealing_key = next((one for one in (key, key.retiring) if one is not None and one.id == key_id), None)
    if sealing_key is None:
        raise DamagedError("was sealed by another store, or under a key that this one has dropped")
    content = _opened(_record_key(sealing_key, salt), nonce, data[:end], data[end:])
    if own_slot != slot:
        raise DamagedError("is another key's record, moved here")
    name_end = _LENGTH.size + _LENGTH.unpack_from(content)[0]
    return Record(_text(content[_LENGTH.size : name_end]), _text(data[_FIXED.size : end]), content[name_end:])


def _opened(key: bytes, nonce: bytes, head: bytes, sealed: bytes) -> bytes:
    from cryptography.exceptions import InvalidTag

    try:
        return _aead(key).decrypt(nonce, sealed, head)
    except InvalidTag:
        raise DamagedError("was altered") from None


def _text_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _record_key(key: StoreKey, salt: bytes) -> bytes:
    # RFC 5869 for one block of output: extract, then expand with the info and the counter 1.
    return hmac.digest(hmac.digest(salt, key.key, "sha256"), b"mcp_oauth record\x01", "sha256")


def _store_key(key: bytes) -> StoreKey:
    return StoreKey(id=hmac.digest(key, b"mcp_oauth store key id", "sha256")[:8], key=key)


def _header(key: StoreKey, kdf: Argon2id | Pbkdf2 | None, password: Password | None) -> bytes:
    retiring = b"" if key.retiring is None else seal(key, Record(_RETIRING, "", key.retiring.key))
    header = Header(FORMAT, key.id, kdf, key.key, retiring)
    if kdf is not None and password is not None:
        nonce = os.urandom(12)
        wrapped = _aead(_password_key(kdf, password)).encrypt(nonce, key.key, _unwrapped(header))
        header = msgspec.structs.replace(header, key=nonce + wrapped)
    return _checked(header)


def _with_retiring(key: bytes, header: Header) -> StoreKey:
    opened = _store_key(key)
    if not header.retiring:
        return opened
    retiring = unseal(opened, slot_of(_RETIRING), header.retiring)
    return msgspec.structs.replace(opened, retiring=_store_key(retiring.value))


def _checked(header: Header) -> bytes:
    return msgspec.json.encode(msgspec.structs.replace(header, checksum=_checksum(header)))


def _unwrapped(header: Header) -> bytes:
    return msgspec.json.encode(msgspec.structs.replace(header, key=b"", retiring=b"", checksum=b""))


def _checksum(header: Header) -> bytes:
    return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(header, checksum=b""))).digest()


def _read_header(data: bytes) -> Header:
    try:
        number = msgspec.json.decode(data, type=_Versioned).format
        if number > FORMAT:
            raise NewerFormatError(f"has format {number}, this release reads up to {FORMAT}; use a newer mcp_oauth")
        header = msgspec.json.decode(data, type=Header)
    except (msgspec.DecodeError, RecursionError) as error:
        raise DamagedError(f"is no header that can be used ({error}); {HEADER_CURE}") from None
    if header.checksum != _checksum(header):
        raise DamagedError(f"was altered; {HEADER_CURE}")
    return header


def _aead(key: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)


_password_keys: dict[tuple[Argon2id | Pbkdf2, bytes], bytes] = {}
_deriving = threading.Lock()
_asking: dict[str, contextlib.AbstractContextManager[object]] = {}


@contextlib.contextmanager
def asking(identity: str, password: Password | None) -> Generator[Password | None]:
    """To open a store in, one thread at a time: its password, which is asked for here no more than once.

    What asks for it may use stores itself: another one has another lock, and this one lets its own thread in.
    """
    with _asking.setdefault(identity, threading.RLock()):
        yield password and functools.cache(password)


def _password_key(kdf: Argon2id | Pbkdf2, password: Password) -> bytes:
    """What the KDF makes of the password: worked out once in a process, whichever store object asks."""
    try:
        text = password()
    except Exception as error:
        raise StoreError("has a password, which could not be asked for") from error
    if not text:
        raise WrongPasswordError("cannot have an empty password, it would protect nothing; give another one, or none")
    # One text typed on two systems may differ in its composition (RFC 8265 section 4.2.2).
    secret = _text_bytes(unicodedata.normalize("NFC", text))
    asked = kdf, hashlib.sha256(secret).digest()
    with _deriving:
        if asked not in _password_keys:
            _password_keys[asked] = _derive(kdf, secret)
        return _password_keys[asked]


def _derive(kdf: Argon2id | Pbkdf2, secret: bytes) -> bytes:
    if isinstance(kdf, Pbkdf2):
        return hashlib.pbkdf2_hmac("sha256", secret, kdf.salt, kdf.iterations, dklen=32)
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.kdf import argon2

    try:
        maker = argon2.Argon2id(
            salt=kdf.salt, length=32, iterations=kdf.iterations, lanes=kdf.lanes, memory_cost=kdf.memory_kib
        )
        return maker.derive(secret)
    except UnsupportedAlgorithm:
        raise StoreError("needs Argon2id, which this OpenSSL lacks; make the store anew with kdf='pbkdf2'") from None


def _new_locks_after_fork() -> None:
    global _deriving
    _deriving = threading.Lock()  # another thread of the parent may have held the old ones
    _asking.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_locks_after_fork)
