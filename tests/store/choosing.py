"""What the tests of the choice of a store share: a user with nothing configured."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keyring.core
import pytest

from mcp_oauth.store import choose
from mcp_oauth.store.base import Store
from mcp_oauth.store.choose import TokenStoreBackend, TokenStoreFactory

AUTO = TokenStoreBackend.AUTO
KEY = bytes(range(32))
VARIABLES = (
    *("VAULT_ADDR", "VAULT_TOKEN", "VAULT_NAMESPACE", "VAULT_ROLE_ID", "VAULT_SECRET_ID", "VAULT_CACERT"),
    *("MCP_OAUTH_REDIS_URL", "MCP_OAUTH_REDIS_KEY", "PYTHON_KEYRING_BACKEND"),
)


@contextlib.contextmanager
def nothing_configured(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A user with an empty home, no session and nothing configured; nothing was decided in this process yet."""
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", f"unix:path={home}/no-bus")
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(keyring.core, "_keyring_backend", None)
    choose._decide.cache_clear()
    yield
    choose._decide.cache_clear()


def create(backend: TokenStoreBackend, **options: Any) -> Store:
    return TokenStoreFactory.create(backend, **options)
