"""What a command works with: the store, the names in it, and the library's `OAuth` for a server."""

from __future__ import annotations

import logging
import sys
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import click

from mcp_oauth.cli.failures import CommandError, Exit
from mcp_oauth.cli.output import Screen
from mcp_oauth.io.oauth import _LEVELS, Client
from mcp_oauth.io.stacks import installed
from mcp_oauth.sansio import uris
from mcp_oauth.sansio.grant import Grant
from mcp_oauth.sansio.plan import Dynamic, client_of
from mcp_oauth.sansio.steps import Notice
from mcp_oauth.store.base import Store, WrongPasswordError
from mcp_oauth.store.choose import AutoStore, TokenStoreBackend, TokenStoreFactory
from mcp_oauth.token_manager import ServerEntry, TokenManager

log = logging.getLogger("mcp_oauth")

CLIENT_NAME = "mcp-oauth"
"""How the consent page names this program."""
ATTEMPTS = 3
"""How often a password is asked for."""

_KEYRINGS = {"darwin": TokenStoreBackend.KEYCHAIN, "win32": TokenStoreBackend.CREDENTIAL_MANAGER}

STORES = {
    **{backend.value: backend for backend in TokenStoreBackend if backend is not TokenStoreBackend.MEMORY},
    "file": TokenStoreBackend.ENCRYPTED_FILE,
    "keyring": _KEYRINGS.get(sys.platform, TokenStoreBackend.SECRET_SERVICE),
}
"""What `--store` takes. Memory is none: it would end with the command."""


class Settings(NamedTuple):
    """What the shared options say."""

    store: str = "auto"
    store_dir: Path | None = None
    password: str | None = None
    account: str = ""


class Target(NamedTuple):
    """The server that a command is about."""

    name: str | None
    """None: it was named by its URL."""
    url: str | None
    """Canonical; None: only tokens that were saved by hand under the name."""

    @property
    def title(self) -> str:
        """How to call it."""
        return self.name or self.url or ""


class Session:
    """One run of the command."""

    def __init__(self, screen: Screen, settings: Settings) -> None:
        self.screen = screen
        self.settings = settings
        self.noticed: set[str] = set()

    @property
    def backend(self) -> TokenStoreBackend:
        """The kind of store that was asked for."""
        return STORES[self.settings.store]

    @cached_property
    def store(self) -> Store:
        """The store; a person at a terminal is asked for its password. Raises `StoreError`."""
        store = self._make(self.settings.password)
        if self.backend not in (TokenStoreBackend.AUTO, TokenStoreBackend.ENCRYPTED_FILE):
            return store
        return self._unlocked(store) if self.settings.password is None and is_terminal() else store

    @cached_property
    def manager(self) -> TokenManager:
        """The names in the store."""
        return TokenManager(store=self.store, account=self.settings.account)

    def _unlocked(self, store: Store) -> Store:
        """The store, opened with what a person types if it wants a password."""
        for _ in range(ATTEMPTS):
            try:
                store.load("any")
            except WrongPasswordError as error:
                self.screen.insist(str(error))
                store = self._make(click.prompt("Password of the store", hide_input=True, err=True))
            else:
                break
        return store

    def _make(self, password: str | None) -> Store:
        return TokenStoreFactory.create(self.backend, token_dir=self.settings.store_dir, password=password)

    @property
    def settled_store(self) -> Store:
        """The store itself, where AUTO chose it."""
        return self.store.chosen if isinstance(self.store, AutoStore) else self.store

    @property
    def store_name(self) -> str:
        """The kind of store, for people."""
        return type(self.settled_store).__name__

    def target(self, name: str, url: str | None = None) -> Target:
        """The server of that name, or URL. Raises `CommandError` where there is none, or the two do not agree."""
        given = None if url is None else canonical(url)
        if "://" in name:
            return Target(None, canonical(name))
        bound = self.manager.server_url(name)
        if given and bound and given != bound:
            message = f"{name} is {bound}, and not {given}"
            raise CommandError(Exit.USAGE, message, "leave out --url, or give that server a name of its own")
        target = Target(name, given or bound)
        if target.url is None and self.entry(target) is None:
            raise unknown(name)
        return target

    def entry(self, target: Target) -> ServerEntry | None:
        """What the store lists of it."""
        mine = [entry for entry in self.manager.list_servers() if entry.account == self.settings.account]
        by_name = [entry for entry in mine if target.name is not None and entry.name == target.name]
        by_url = [entry for entry in mine if target.url is not None and entry.server_url == target.url]
        return next(iter(by_name + by_url), None)

    def grant(self, url: str | None) -> Grant | None:
        """The grant in use."""
        return None if url is None else self.manager.grant(url)

    def oauth(self, url: str, client: Client | None = None, **options: Any) -> Any:
        """The library's `OAuth`, as the client that got the stored grant unless another one is given."""
        grant = self.grant(url)
        known = client_of(grant) if grant is not None else None
        made: dict[str, Any] = {"client": client or known or Dynamic(CLIENT_NAME), "on_notice": self._notice}
        if grant is not None and grant.resource is None:
            made["resource"] = "never"
        made |= {"store": self.store, "account": self.settings.account}
        return installed().oauth(url, **{**made, **options})

    def _notice(self, notice: Notice) -> None:
        self.noticed.add(notice.name)
        if not log.isEnabledFor(_LEVELS.get(notice.name, logging.INFO)):  # else the log says it
            self.screen.say(f"- {notice.message}")


def canonical(url: str) -> str:
    """The server URL as the library knows it (RULES 2.1). Raises `CommandError`."""
    found = uris.server_url(url)
    if found is None:
        cure = "give the absolute https URL of its MCP endpoint (http only for loopback)"
        raise CommandError(Exit.USAGE, f"{url} is no server URL", cure)
    return found


def unknown(name: str) -> CommandError:
    """There is no server of that name."""
    cure = "mcp-oauth list shows the names, mcp-oauth auth NAME URL adds one"
    return CommandError(Exit.UNKNOWN, f"no server is called {name}", cure)


def is_terminal() -> bool:
    """A person can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()
