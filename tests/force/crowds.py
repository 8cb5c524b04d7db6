"""Stores that processes can share, one of each kind, and many callers at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import httpx2
import pytest

from mcp_oauth.io.flights import FLIGHTS
from tests.io.servers import PATIENCE
from tests.io.ways import NO_TLS
from tests.servers import openbao, redis_server, secret_service
from tests.store.files import FILE
from tests.store.keyrings import use_keyring_of
from tests.store.peer import Recipe

WHOAMI = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "whoami"}}
"""What a caller asks of the MCP server."""


# --- Stores -----------------------------------------------------------------------------------------------------------


@contextmanager
def encrypted_file(folder: Path) -> Iterator[Recipe]:
    yield Recipe(FILE, {"folder": str(folder / "store")})


@contextmanager
def real_keyring(folder: Path) -> Iterator[Recipe]:
    """On a gnome-keyring, which is that of this process and of those that it starts meanwhile."""
    with secret_service.serving() as service, pytest.MonkeyPatch.context() as patch:
        use_keyring_of(service, patch)
        arguments = {"service": f"mcp-oauth-test-{uuid4().hex}", "lock_folder": str(folder / "locks")}
        yield Recipe("mcp_oauth.store.keyring:KeyringStore", arguments)


@contextmanager
def vault(folder: Path) -> Iterator[Recipe]:
    with openbao.serving() as bao:
        arguments = {"url": bao.url, "token": bao.token, "path_prefix": "force"}
        yield Recipe("mcp_oauth.store.vault:VaultStore", arguments)


@contextmanager
def redis(folder: Path) -> Iterator[Recipe]:
    with redis_server.serving() as server:
        arguments = {"url": server.url, "password": "correct horse", "kdf": "pbkdf2", "prefix": "force"}
        yield Recipe("mcp_oauth.store.redis:RedisStore", arguments)


STORES = {"encrypted_file": encrypted_file, "keyring": real_keyring, "vault": vault, "redis": redis}
"""Those with a lock that other processes see."""


# --- Many callers -----------------------------------------------------------------------------------------------------


class Seats:
    """Counts the callers of this process that have come to wait for a flight."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        join, self._taken = FLIGHTS._join, threading.Semaphore(0)

        def counted(seat: Any) -> None:
            join(seat)
            self._taken.release()

        monkeypatch.setattr(FLIGHTS, "_join", counted)

    def wait_for(self, callers: int) -> None:
        for _ in range(callers):
            assert self._taken.acquire(timeout=PATIENCE)

    def before_answer(self, callers: int) -> Callable[[str], None]:
        """For `World.before`: the server answers when so many wait."""
        return lambda stage: self.wait_for(callers)


async def atasks(auth: Any, url: str, count: int) -> list[bool]:
    """Whether each of so many tasks was served."""
    limits = httpx2.Limits(max_connections=count)
    answers = list[bool]()
    async with httpx2.AsyncClient(auth=auth, timeout=PATIENCE, limits=limits, verify=NO_TLS) as client:

        async def one() -> None:
            answers.append((await client.post(url, json=WHOAMI)).status_code == 200)

        async with anyio.create_task_group() as tasks:
            for _ in range(count):
                tasks.start_soon(one)
    return answers


def tasks(auth: Any, url: str, count: int, backend: str) -> list[bool]:
    """The same in an event loop of their own."""
    answers: list[bool] = anyio.run(atasks, auth, url, count, backend=backend)
    return answers


def threads(auth: Any, url: str, count: int) -> list[bool]:
    """Whether each of so many threads was served."""
    limits = httpx2.Limits(max_connections=count)
    with (
        httpx2.Client(auth=auth, timeout=PATIENCE, limits=limits, verify=NO_TLS) as client,
        ThreadPoolExecutor(count) as pool,
    ):
        asked = [pool.submit(client.post, url, json=WHOAMI) for _ in range(count)]
        return [one.result().status_code == 200 for one in asked]
