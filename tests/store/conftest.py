"""The kinds of store that the contract is tried on, each on the real thing. Another kind is another line here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from mcp_oauth.store.base import Store
from mcp_oauth.store.memory import MemoryStore
from tests.servers import openbao, redis_server, secret_service
from tests.store.files import FILE
from tests.store.keyrings import use_keyring_of
from tests.store.peer import Peer, Recipe

Again = Callable[[], Store]
"""A store that sees what the others of its site see."""


@pytest.fixture(scope="session")
def openbao_server() -> Iterator[openbao.OpenBao]:
    with openbao.serving() as server:
        yield server


@pytest.fixture(scope="session")
def redis_at() -> Iterator[redis_server.Redis]:
    with redis_server.serving() as server:
        yield server


@pytest.fixture(scope="session")
def secret_service_bus() -> Iterator[secret_service.SecretService]:
    with secret_service.serving() as service:
        yield service


@pytest.fixture
def session_bus(secret_service_bus: secret_service.SecretService, monkeypatch: pytest.MonkeyPatch) -> None:
    use_keyring_of(secret_service_bus, monkeypatch)


@pytest.fixture
def encrypted_file_recipe(tmp_path: Path) -> Recipe:
    return Recipe(FILE, {"folder": str(tmp_path / "store")})


@pytest.fixture
def keyring_recipe(session_bus: None, tmp_path: Path) -> Recipe:
    arguments = {"service": f"mcp-oauth-test-{uuid4().hex}", "lock_folder": str(tmp_path / "locks")}
    return Recipe("mcp_oauth.store.keyring:KeyringStore", arguments)


@pytest.fixture
def vault_recipe(openbao_server: openbao.OpenBao) -> Recipe:
    arguments = {"url": openbao_server.url, "token": openbao_server.token, "path_prefix": f"test/{uuid4().hex}"}
    return Recipe("mcp_oauth.store.vault:VaultStore", arguments)


@pytest.fixture
def redis_recipe(redis_at: redis_server.Redis) -> Recipe:
    arguments = {"url": redis_at.url, "password": "correct horse", "prefix": f"test:{uuid4().hex}"}
    return Recipe("mcp_oauth.store.redis:RedisStore", arguments)


SHARED = ("encrypted_file", "keyring", "vault", "redis")
"""The stores that other processes can reach; `memory` ends with this one."""


@pytest.fixture(params=SHARED)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    """A store that other processes can reach."""
    made: Recipe = request.getfixturevalue(f"{request.param}_recipe")
    return made


@pytest.fixture(params=("memory", *SHARED))
def again(request: pytest.FixtureRequest) -> Again:
    if request.param == "memory":
        store = MemoryStore()
        return lambda: store
    made: Recipe = request.getfixturevalue(f"{request.param}_recipe")
    return made.store


@pytest.fixture
def store(again: Again) -> Store:
    return again()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the encrypted file store of a test is."""
    return tmp_path / "store"


@pytest.fixture
def start() -> Iterator[Callable[..., Peer]]:
    """Start other processes; they end with the test."""
    with contextlib.ExitStack() as peers:

        def start_one(recipe: Recipe, **setup: int) -> Peer:
            peer = Peer(recipe, **setup)
            peers.callback(peer.kill)
            return peer

        yield start_one
