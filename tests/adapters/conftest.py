"""The stores of `tests/store`, each on the real thing, and both event loops."""

from __future__ import annotations

import pytest

from tests.store.conftest import (
    again,
    encrypted_file_recipe,
    keyring_recipe,
    openbao_server,
    redis_at,
    redis_recipe,
    secret_service_bus,
    session_bus,
    store,
    vault_recipe,
)

__all__ = [
    "again",
    "anyio_backend",
    "encrypted_file_recipe",
    "keyring_recipe",
    "openbao_server",
    "redis_at",
    "redis_recipe",
    "secret_service_bus",
    "session_bus",
    "store",
    "vault_recipe",
]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The event loop of the tests that are coroutines."""
    name: str = request.param
    return name
