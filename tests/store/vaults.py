"""What the tests of the Vault store share: stores on one OpenBao, short ways to use them and to look behind them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mcp_oauth.store import sealing, vault, vault_server
from mcp_oauth.store.base import Held, Saved
from mcp_oauth.store.lease import LapsingLease, elapsed
from mcp_oauth.store.vault import VaultStore
from mcp_oauth.store.vault_server import POLICY, Server
from tests.servers.openbao import OpenBao

Make = Callable[..., VaultStore]
CALLS: dict[str, Callable[[VaultStore], object]] = {
    "load": lambda store: store.load("key"),
    "save": lambda store: store.save("key", b"other", revision="r2", expected="r1"),
    "keys": lambda store: store.keys(),
    "try_lock": lambda store: store.try_lock("key"),
}
WRITING = ["save", "try_lock"]

any_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def maker(bao: OpenBao, prefix: str) -> Make:
    """Makes stores that see the same, with the root's token unless told otherwise."""

    def make(**arguments: Any) -> VaultStore:
        if not arguments.keys() & {"token", "role_id"}:
            arguments["token"] = bao.token
        return VaultStore(bao.url, **{"path_prefix": prefix, **arguments})

    return make


class Clock:
    """The elapsed seconds as the stores see them: put it `ahead`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0.0
        for module in (vault, vault_server):
            monkeypatch.setattr(module, "elapsed", self)

    def __call__(self) -> float:
        return elapsed() + self.ahead


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the stores ask from now on, as "method path"."""
    asked: list[str] = []
    send = Server.send

    def counting(self: Server, deadline: float, token: str, method: str, path: str, *rest: Any) -> Any:
        asked.append(f"{method} {path}")
        return send(self, deadline, token, method, path, *rest)

    monkeypatch.setattr(Server, "send", counting)
    return asked


def put(store: VaultStore, key: str, value: bytes, revision: str = "r1", expected: str | None = None) -> None:
    assert store.save(key, value, revision=revision, expected=expected) == Saved(durable=True)


def take(store: VaultStore, key: str = "key") -> LapsingLease:
    lease = store.try_lock(key)
    assert not isinstance(lease, Held), lease
    return lease


def place(prefix: str, key: str = "key", kind: str = "data", suffix: str = "") -> str:
    return f"secret/{kind}/{prefix}/{sealing.slot_of(key).hex()}{suffix}"


def content(bao: OpenBao, path: str) -> Any:
    return bao.ask("GET", path).get("data", {}).get("data")


def overwrite(bao: OpenBao, path: str, data: object) -> None:
    bao.ask("POST", path, {"data": data})


def policy(prefix: str, text: str = POLICY) -> str:
    return text.replace("<mount>", "secret").replace("<prefix>", prefix)
