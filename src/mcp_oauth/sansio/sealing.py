"""A login that leaves the process: sealed, bound to the browser that began it, and short-lived (RULES 6.4).

    sealed = seal(dump(step), key=..., binding=..., nonce=os.urandom(12), now=now)     # first leg
    data = unseal(sealed, key=..., binding=..., now=now)                               # second leg

What is sealed is taken once: keep it where an atomic get-and-delete is possible, not in the browser itself.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, TypeVar

import msgspec

from mcp_oauth.sansio.errors import Failure, Reason, failure
from mcp_oauth.sansio.steps import Await
from mcp_oauth.sansio.values import Now, Value

LIFE = 600.0
"""Seconds in which a sealed login can be finished."""
FORMAT = b"mcp-oauth-login-1\n"
KEY_BYTES = 32
NONCE_BYTES = 12

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

S = TypeVar("S")


class _Sealed(Value, frozen=True):
    until: float
    data: bytes


def dump(step: Await[S]) -> bytes:
    """A waiting machine as JSON. It is secret."""
    return msgspec.json.encode(step)


def seal(data: bytes, *, key: bytes, binding: str, nonce: bytes, now: Now) -> bytes:
    """Encrypt a dump (AES-256-GCM) for ten minutes.

    `key` has 32 bytes; `binding` is a secret of the browser's session (a cookie), demanded again by `unseal`; `nonce`
    has 12 fresh random bytes.
    """
    inside = msgspec.json.encode(_Sealed(now.wall + LIFE, data))
    return FORMAT + nonce + _aead(key).encrypt(nonce, inside, _bound(binding))


def unseal(sealed: bytes, *, key: bytes, binding: str, now: Now) -> bytes | Failure:
    """The dump, or why not: it was altered, it is another browser's, or it is over."""
    from cryptography.exceptions import InvalidTag

    rest = sealed.removeprefix(FORMAT)
    if rest == sealed:
        return failure(Reason.CALLBACK_STATE, "this is no pending login of this version")
    try:
        inside = _aead(key).decrypt(rest[:NONCE_BYTES], rest[NONCE_BYTES:], _bound(binding))
    except (InvalidTag, ValueError):
        return failure(Reason.CALLBACK_STATE, "the pending login was altered, or belongs to another browser")
    opened = msgspec.json.decode(inside, type=_Sealed)
    if now.wall >= opened.until:
        return failure(Reason.LOGIN_TIMED_OUT, "the pending login is older than ten minutes")
    return opened.data


def _bound(binding: str) -> bytes:
    return FORMAT + hashlib.sha256(binding.encode("utf-8", "surrogatepass")).digest()


def _aead(key: bytes) -> AESGCM:
    # Imported late: whoever does no two-leg login does not pay for it.
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)
