"""What every value of the core is: frozen, equal by content, JSON, and silent about its secrets."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from typing import Annotated, Any, ClassVar, cast

from msgspec import Meta, Struct

Secret = Annotated[str, Meta(extra={"secret": True})]
"""Text that opens a door: never in a repr, a log or an exception."""

SecretBytes = Annotated[bytes, Meta(extra={"secret": True})]

_QUERY = re.compile(r"(\w://[^\s?#]*)[?#]\S*")


class Value(Struct, frozen=True, tag=True):
    """Base of all states, effects, events and results.

    Only the fields named in `shown` appear in the repr, so that a new field is hidden until someone decides
    that it may be seen; and no URL shows its query, where servers and people put keys.
    """

    shown: ClassVar[tuple[str, ...]] = ()

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        hidden = "..." if len(self.shown) < len(self.__struct_fields__) else ""
        return f"{type(self).__name__}({', '.join(part for part in (inside, hidden) if part)})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """What `rich` shows; the one that msgspec brings would show every field."""
        return [(name, _without_queries(getattr(self, name))) for name in self.shown]


def _without_queries(value: Any) -> Any:
    if isinstance(value, str):
        return _QUERY.sub(r"\1", value)
    return tuple(_without_queries(item) for item in cast("Any", value)) if isinstance(value, tuple) else value


class Now(Value, frozen=True):
    """The two clocks of RULES 4.14, in seconds."""

    shown = ("wall", "elapsed")

    wall: float
    """Seconds since the epoch: for what outlives the process."""
    elapsed: float
    """Seconds on a clock that only goes forward, suspended time included: for everything else."""


class Seed(Value, frozen=True):
    """32 bytes of fresh entropy, the only source of what looks random inside a machine."""

    key: SecretBytes

    def child(self, label: str, n: int = 0) -> Seed:
        """The seed of a machine inside this one; `n` tells repetitions apart."""
        return Seed(self._derive("seed", label, n))

    def text(self, label: str, n: int = 0) -> str:
        """43 characters of base64url (256 bits): a `state`, a PKCE verifier, a revision."""
        return base64url(self._derive("text", label, n))

    def fraction(self, label: str, n: int = 0) -> float:
        """A number from 0 up to 1, for jitter."""
        return int.from_bytes(self._derive("fraction", label, n)[:6], "big") / (1 << 48)

    def _derive(self, use: str, label: str, n: int) -> bytes:
        # The use comes first: a text that is sent to somebody must never be the key of a child.
        return hmac.digest(self.key, f"{use}\0{label}\0{n}".encode(), "sha256")


def base64url(data: bytes) -> str:
    """Base64url without padding (RFC 7515 section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def fingerprint(secret: str) -> str:
    """The SHA-256 of a token, base64url: tells two tokens apart without holding either."""
    return base64url(hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest())
