"""A store that cannot be is refused in the words of the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcp_oauth.cli.places import STORES
from mcp_oauth.store.choose import system_keyring
from tests.cli.site import Run

ADDRESS = {"VAULT_ADDR": "https://vault.example"}
REDIS = {"MCP_OAUTH_REDIS_URL": "redis://redis.example"}
ELSEWHERE = next(name for name in ("keychain", "windows", "secretservice") if STORES[name] is not system_keyring())

PYTHON = ("vault_", "redis_", "token_dir", "TokenStoreBackend", "ENCRYPTED_FILE", "AUTO", "VAULT ", "REDIS ")
"""How the library's callers say it."""


@pytest.fixture(autouse=True)
def nothing_is_configured(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MCP_OAUTH_STORE_DIR", "MCP_OAUTH_REDIS_URL", "MCP_OAUTH_REDIS_KEY", "VAULT_ADDR", "VAULT_TOKEN",
                 "VAULT_ROLE_ID", "VAULT_SECRET_ID"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("store", "given", "cure"),
    [
        ("vault", {}, "set VAULT_ADDR"),
        ("vault", ADDRESS, "set VAULT_TOKEN, or VAULT_ROLE_ID and VAULT_SECRET_ID"),
        ("vault", {**ADDRESS, "VAULT_ROLE_ID": "x"}, "set VAULT_TOKEN, or VAULT_ROLE_ID and VAULT_SECRET_ID"),
        ("redis", {}, "set MCP_OAUTH_REDIS_URL"),
        ("redis", REDIS, "set MCP_OAUTH_REDIS_KEY to what openssl rand -hex 32 makes"),
        ("redis", {**REDIS, "MCP_OAUTH_REDIS_KEY": "hvs."}, "MCP_OAUTH_REDIS_KEY is not in hex"),
        (ELSEWHERE, {}, "choose --store keyring"),
    ],
)
def test_what_is_missing(
    run: Run, monkeypatch: pytest.MonkeyPatch, store: str, given: dict[str, str], cure: str
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    ran = run("list", "--store", store)
    assert ran.code == 5
    assert cure in ran.err
    assert [word for word in PYTHON if word in ran.err] == []


@pytest.mark.parametrize("store", ["vault", "redis", "keyring"])
def test_a_folder_is_for_encrypted_files(run: Run, tmp_path: Path, store: str) -> None:
    ran = run("list", "--store", store, "--store-dir", str(tmp_path))
    assert ran.code == 2
    assert "leave out --store-dir (MCP_OAUTH_STORE_DIR), or choose --store file" in ran.err


@pytest.mark.parametrize("store", ["vault", "keyring"])
def test_a_password_is_for_encrypted_files_and_Redis(run: Run, monkeypatch: pytest.MonkeyPatch, store: str) -> None:
    monkeypatch.setenv("MCP_OAUTH_PASSWORD", "CANARY")
    ran = run("list", "--store", store)
    assert ran.code == 2
    assert "MCP_OAUTH_PASSWORD" in ran.err
    assert "CANARY" not in ran.err
