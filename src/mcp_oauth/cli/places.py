"""Which store: what `--store` takes, and what is wrong with what was asked for, in the words of this command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from mcp_oauth.cli.failures import CommandError, Exit
from mcp_oauth.store.base import Store
from mcp_oauth.store.choose import TokenStoreBackend, TokenStoreFactory, system_keyring

STORES = {
    **{backend.value: backend for backend in TokenStoreBackend if backend is not TokenStoreBackend.MEMORY},
    "file": TokenStoreBackend.ENCRYPTED_FILE,
    "keyring": system_keyring(),
}
"""What `--store` takes. Memory is none: it would end with the command."""

FILES = (TokenStoreBackend.AUTO, TokenStoreBackend.ENCRYPTED_FILE)
"""What may have a folder, and asks for its password."""

_KEYRINGS = (TokenStoreBackend.KEYCHAIN, TokenStoreBackend.CREDENTIAL_MANAGER, TokenStoreBackend.SECRET_SERVICE)


class Settings(NamedTuple):
    """What the shared options say."""

    store: str = "auto"
    store_dir: Path | None = None
    password: str | None = None
    account: str = ""

    @property
    def backend(self) -> TokenStoreBackend:
        """The kind of store that is asked for."""
        return STORES[self.store]


def make(settings: Settings) -> Store:
    """The store that is asked for, not opened yet. Raises `CommandError`, and `StoreError` for what it knows itself."""
    _check_options(settings)
    if missing := _missing(settings):
        raise CommandError(Exit.STORE, f"the store {settings.store} cannot be used here", missing)
    return TokenStoreFactory.create(settings.backend, token_dir=settings.store_dir, password=settings.password)


def _check_options(settings: Settings) -> None:
    if settings.store_dir is not None and settings.backend not in FILES:
        cure = "leave out --store-dir (MCP_OAUTH_STORE_DIR), or choose --store file"
        raise CommandError(Exit.USAGE, f"the store {settings.store} is in no folder", cure)
    if settings.password is not None and settings.backend not in (*FILES, TokenStoreBackend.REDIS):
        cure = "leave out --password-file (MCP_OAUTH_PASSWORD, MCP_OAUTH_PASSWORD_FILE), or choose --store file"
        raise CommandError(Exit.USAGE, f"the store {settings.store} takes no password", cure)


def _missing(settings: Settings) -> str | None:
    """What to do before this store can be made, as far as the environment tells."""
    given = os.environ.get
    match settings.backend:
        case TokenStoreBackend.VAULT if not given("VAULT_ADDR"):
            return "say where it is: set VAULT_ADDR"
        case TokenStoreBackend.VAULT if not (
            given("VAULT_TOKEN") or (given("VAULT_ROLE_ID") and given("VAULT_SECRET_ID"))
        ):
            return "say who you are: set VAULT_TOKEN, or VAULT_ROLE_ID and VAULT_SECRET_ID"
        case TokenStoreBackend.REDIS if not given("MCP_OAUTH_REDIS_URL"):
            return "say where it is: set MCP_OAUTH_REDIS_URL"
        case TokenStoreBackend.REDIS if settings.password is None and not given("MCP_OAUTH_REDIS_KEY"):
            return "set MCP_OAUTH_REDIS_KEY to what openssl rand -hex 32 makes, or give it a password (--password-file)"
        case backend if backend in _KEYRINGS and backend is not system_keyring():
            return "choose --store keyring, which is the one of this system, file or auto"
        case _:
            return None
