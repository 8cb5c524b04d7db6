"""What a command works with: the store, the names in it, and the library's `OAuth` for a server."""

from __future__ import annotations

import logging
import sys
from functools import cached_property
from typing import Any, NamedTuple

import click

from mcp_oauth.cli.failures import CommandError, Exit
from mcp_oauth.cli.output import Screen
from mcp_oauth.cli.places import FILES, Settings, make
from mcp_oauth.io.oauth import LEVELS
from mcp_oauth.io.options import Client
from mcp_oauth.io.stacks import installed
from mcp_oauth.sansio import uris
from mcp_oauth.sansio.grant import Grant
from mcp_oauth.sansio.plan import Dynamic, client_of
from mcp_oauth.sansio.steps import Notice
from mcp_oauth.store.base import Store, WrongPasswordError
from mcp_oauth.store.choose import AutoStore
from mcp_oauth.token_manager import ServerEntry, TokenManager

log = logging.getLogger("mcp_oauth")

CLIENT_NAME = "mcp-oauth"
"""How the consent page names this program."""
ATTEMPTS = 3
"""How often a password is asked for."""


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
        """Raises `CommandError` and `StoreError` for a store that cannot be; it is made now, and opened when used."""
        self.screen = screen
        self.settings = settings
        self.noticed: set[str] = set()
        self._made = self._make(settings.password)  # while the environment has its secrets: `user_of` removes them

    @cached_property
    def store(self) -> Store:
        """The store; a person at a terminal is asked for its password. Raises `StoreError`."""
        asks = self.settings.backend in FILES and self.settings.password is None and is_terminal()
        return self._unlocked(self._made) if asks else self._made

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
        return make(self.settings._replace(password=password))

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
        """What is kept of it. Other records are not read: one that is broken is no obstacle."""
        return self.manager.entry(target.name, target.url)

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
        if not log.isEnabledFor(LEVELS.get(notice.name, logging.INFO)):  # else the log says it
            self.screen.say(f"- {notice.message}")


def canonical(url: str) -> str:
    """The server URL as the library knows it (RULES 2.1). Raises `CommandError`."""
    found = uris.server_url(url)
    if found is None:
        cure = "give the absolute https URL of its MCP endpoint (http only for loopback)"
        raise CommandError(Exit.USAGE, f"{url} is not a server URL", cure)
    return found


def unknown(name: str) -> CommandError:
    """There is no server of that name."""
    cure = "mcp-oauth list shows the names, mcp-oauth auth NAME URL adds one"
    message = f"nothing is kept for {name}" if "://" in name else f"no server is called {name}"
    return CommandError(Exit.UNKNOWN, message, cure)


def is_terminal() -> bool:
    """A person can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()
