"""What lies in a store below the sealing: to do to it what an intruder does, or a backup that was put back in part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from mcp_oauth.store import sealing
from tests.store.files import FILE, place
from tests.store.peer import Recipe


class Raw(NamedTuple):
    """Ways past the store: the sealed record of a key as it lies there, and putting one in the place of any key."""

    read: Callable[[str], Any]
    write: Callable[[str, Any], object]

    def swap(self, one: str, other: str) -> None:
        first, second = self.read(one), self.read(other)
        self.write(one, second)
        self.write(other, first)


def raw(recipe: Recipe) -> Raw:
    return _KINDS[recipe.make](**recipe.arguments)


def _file(folder: str) -> Raw:
    return Raw(
        lambda key: place(Path(folder), key).read_bytes(),
        lambda key, record: place(Path(folder), key).write_bytes(record),
    )


def _keyring(service: str, **_: object) -> Raw:
    from keyring.core import load_keyring

    items: Any = load_keyring("keyring.backends.SecretService.Keyring")
    return Raw(
        lambda key: items.get_password(service, sealing.slot_of(key).hex()),
        lambda key, record: items.set_password(service, sealing.slot_of(key).hex(), record),
    )


def _vault(url: str, token: str, path_prefix: str) -> Raw:
    def ask(key: str, record: Any = None) -> Any:
        body = None if record is None else {"data": record}
        address = f"{url}/v1/secret/data/{path_prefix}/{sealing.slot_of(key).hex()}"
        answer = httpx.request("POST" if body else "GET", address, json=body, headers={"X-Vault-Token": token})
        return answer.raise_for_status().json()["data"]

    return Raw(lambda key: ask(key)["data"], ask)


def _redis(url: str, prefix: str, **_: object) -> Raw:
    import redis

    def ask(command: str, key: str, *more: bytes) -> Any:
        with redis.Redis.from_url(url) as client:
            return client.execute_command(command, f"{{{prefix}}}:record:{sealing.slot_of(key).hex()}", *more)

    return Raw(lambda key: ask("GET", key), lambda key, record: ask("SET", key, record))


_KINDS: dict[str, Callable[..., Raw]] = {
    FILE: _file,
    "mcp_oauth.store.keyring:KeyringStore": _keyring,
    "mcp_oauth.store.vault:VaultStore": _vault,
    "mcp_oauth.store.redis:RedisStore": _redis,
}
