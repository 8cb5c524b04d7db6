"""What the tests of the programs' API start from."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from mcp_oauth.client import MCPOAuthClient
from mcp_oauth.io import oauth as driver
from mcp_oauth.io import stacks
from mcp_oauth.io.flights import FLIGHTS
from mcp_oauth.sansio.values import Now
from mcp_oauth.store.base import Store
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from mcp_oauth.store.memory import MemoryStore
from mcp_oauth.token_manager import TokenManager
from tests.api.programs import WAYS, Setup
from tests.api.steps import Make, Server
from tests.io.servers import PATIENCE, Seen


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def make(server: Server) -> Make:
    """Makes clients of the server, whose person approves."""

    async def answer(request: httpx2.Request) -> httpx2.Response:
        reply = server(Seen(request.method, str(request.url), dict(request.headers), request.content))
        return httpx2.Response(reply.status, headers=list(reply.headers), content=reply.body)

    def client(**options: Any) -> MCPOAuthClient:
        options.setdefault("user", server.login)
        return MCPOAuthClient(server.url, transport=lambda: httpx2.MockTransport(answer), **options)

    return client


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were slept, at once."""
    slept: list[float] = []

    class Hasty(driver._FlightClock):
        def now(self) -> Now:
            real = super().now()
            return Now(real.wall + sum(slept), real.elapsed + sum(slept))

        def sleep(self, seconds: float) -> None:
            slept.append(seconds)

    monkeypatch.setattr(driver, "_FlightClock", Hasty)
    return slept


@pytest.fixture(params=WAYS, ids=["-".join(way) for way in WAYS])
def here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Setup:
    library, backend = request.param
    monkeypatch.setattr(stacks, "STACKS", (library,))
    return Setup(library, backend)


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch) -> Setup:
    """Where the stack makes no difference."""
    return Setup("httpx2", "asyncio")


@pytest.fixture(autouse=True)
def _no_flight_is_left() -> Iterator[None]:
    yield
    for thread in threading.enumerate():
        if thread.name.startswith("mcp-oauth"):
            thread.join(PATIENCE)
    assert FLIGHTS._by_key == {}


@pytest.fixture(params=["memory", "encrypted-file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return MemoryStore() if request.param == "memory" else EncryptedFileStore(tmp_path / "tokens")


@pytest.fixture
def manager(store: Store) -> TokenManager:
    return TokenManager(store=store)
