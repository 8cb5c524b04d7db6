"""Programs of a fleet: processes of their own on a store whose lock is a lease, which halt where the test wants to
kill, stop or overtake them.

The test's side is `Member`. The other side is this file, run as `python -m tests.integration.fleet RECIPE`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from mcp_oauth.exceptions import OAuthError
from mcp_oauth.sansio.grant import GrantRecord, current_grant, decode, grant_key
from mcp_oauth.store.base import Conflict, Held, Lease, Saved, Store, Stored
from mcp_oauth.store.sealing import slot_of
from tests.integration.program import Peer, approve, program, say, told
from tests.servers import openbao, redis_server
from tests.store.peer import Recipe

LOCKED = "locked"
"""Where a member halts: it has the lock and has read the record, and nobody knows what for."""
INTENDED = "intended"
"""Its intent is saved, and nothing was sent."""
ANSWERED = "answered"
"""The new tokens are at hand, and not saved."""
EXTENDING = "extending"
"""The answer was lost, and the lease is to be extended."""


# --- The stores -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Site:
    """A store on a real server, and what may befall it."""

    recipe: Recipe
    forget_lock: Callable[[str], None]
    """The server forgets the lock of a slot."""
    go_down: Callable[[], None]
    come_back: Callable[[], None]

    def lose_lock(self, url: str, account: str) -> None:
        self.forget_lock(slot_of(grant_key(url, account)).hex())


@contextmanager
def redis_site(folder: Path) -> Iterator[Site]:
    port = redis_server.free_port()
    with ExitStack() as undo:

        def start() -> None:
            running[:] = [undo.enter_context(redis_server.serving(folder, port))]

        def forget_lock(slot: str) -> None:
            assert running[0].ask("DEL", f"{{fleet}}:lock:{slot}") == 1

        running: list[redis_server.Redis] = []
        start()
        arguments = {"url": running[0].url, "password": "correct horse", "kdf": "pbkdf2", "prefix": "fleet"}
        recipe = Recipe("mcp_oauth.store.redis:RedisStore", arguments)
        yield Site(recipe, forget_lock, lambda: running[0].kill(), start)


@contextmanager
def vault_site(folder: Path) -> Iterator[Site]:
    with openbao.serving() as bao:

        def forget_lock(slot: str) -> None:
            path = f"secret/data/fleet/{slot}"
            record = bao.ask("GET", path)["data"]["data"]
            assert record.pop("lock")
            bao.ask("POST", path, {"data": record})

        arguments = {"url": bao.url, "token": bao.token, "path_prefix": "fleet"}
        yield Site(Recipe("mcp_oauth.store.vault:VaultStore", arguments), forget_lock, bao.seal, bao.unseal)


SITES = {"redis": redis_site, "vault": vault_site}


# --- The test's side --------------------------------------------------------------------------------------------------


class Member(Peer):
    """The test's side of a program of the fleet."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def command(self) -> list[str]:
        return [sys.executable, "-m", "tests.integration.fleet", json.dumps(self.recipe)]

    def __repr__(self) -> str:
        return f"Member({self.process.pid})"

    def call(self, url: str, account: str, *, tool: str = "whoami", halt: str = "", interactive: bool = True) -> None:
        """Begin a request; stop before the end at `halt`."""
        order = {"url": url, "account": account, "tool": tool, "halt": halt, "interactive": interactive}
        self.tell(json.dumps(order))
        if halt:
            assert self.until("halted")["at"] == halt

    def end(self) -> dict[str, Any]:
        """What came of the request."""
        while (read := self.read())["event"] not in {"answered", "failed"}:
            pass
        return read

    def go_on(self) -> None:
        self.tell("go on")

    def stop(self) -> None:
        """Take its processor away; then tell it to go on, as soon as it has that back."""
        self.process.send_signal(signal.SIGSTOP)
        assert os.WIFSTOPPED(os.waitpid(self.process.pid, os.WUNTRACED)[1])
        self.go_on()

    def wake(self) -> None:
        self.process.send_signal(signal.SIGCONT)


# --- The other side ---------------------------------------------------------------------------------------------------


class Halting:
    """A store in which a program stops at one place, once, until it is told to go on."""

    def __init__(self, inner: Store, halt: str) -> None:
        self._inner = inner
        self._halt = halt
        self._locked = False
        self._generation: int | None = None
        """That of the grant that an intent was saved for."""

    @property
    def identity(self) -> str:
        return self._inner.identity

    def load(self, key: str) -> Stored | None:
        stored = self._inner.load(key)
        if self._locked:
            self.at(LOCKED)
        return stored

    def keys(self) -> tuple[str, ...]:
        return self._inner.keys()

    def save(self, key: str, value: bytes, *, revision: str, expected: str | None) -> Saved | Conflict:
        record = decode(value)
        grant = current_grant(record) if isinstance(record, GrantRecord) else None
        if self._generation is not None and grant is not None and grant.generation > self._generation:
            self.at(ANSWERED)
        answer = self._inner.save(key, value, revision=revision, expected=expected)
        if isinstance(answer, Saved) and isinstance(record, GrantRecord) and record.intent is not None:
            self._generation = grant.generation if grant is not None else None
            self.at(INTENDED)
        return answer

    def try_lock(self, key: str) -> Lease | Held:
        lease = self._inner.try_lock(key)
        if isinstance(lease, Held):
            return lease
        self._locked = True
        return _HaltingLease(lease, self)

    def at(self, place: str) -> None:
        if place == self._halt:
            self._halt = ""
            say("halted", at=place)
            assert sys.stdin.readline() == "go on\n"


class _HaltingLease:
    exclusive = False

    def __init__(self, inner: Lease, store: Halting) -> None:
        self._inner = inner
        self._store = store
        self.valid_until = inner.valid_until
        self.left_by = inner.left_by

    def extend(self) -> bool:
        self._store.at(EXTENDING)
        extended = self._inner.extend()
        self.valid_until = self._inner.valid_until
        return extended

    def __enter__(self) -> Lease:
        self._inner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._inner.__exit__(kind, error, trace)


def _main(recipe: str) -> None:
    store = Recipe(*json.loads(recipe)).store()
    say("ready")
    while line := sys.stdin.readline():
        order = json.loads(line)
        url, tool, halt = (order.pop(name) for name in ("url", "tool", "halt"))
        here = program("httpx2-sync", url, store=Halting(store, halt), user=approve, on_notice=told, **order)
        try:
            answer = here.call(tool)
        except OAuthError as error:
            say("failed", reason=error.reason.value, traffic=here.traffic)
        else:
            say("answered", status=answer.status, text=answer.text, traffic=here.traffic)


if __name__ == "__main__":
    _main(*sys.argv[1:])
