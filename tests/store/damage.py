"""What may become of a sealed record of the key `key`, and how it is told."""

from __future__ import annotations

from collections.abc import Callable

from mcp_oauth.store import sealing


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
