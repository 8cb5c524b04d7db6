"""What a program says about a server: the options of every driver's `OAuth`, and the plan that they make."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypedDict, TypeVar

from mcp_oauth.exceptions import from_failure
from mcp_oauth.io.ports import IssuerPolicy
from mcp_oauth.io.user import Agent, User
from mcp_oauth.sansio import uris
from mcp_oauth.sansio.errors import Reason, failure
from mcp_oauth.sansio.plan import ClientMetadataDocument, Dynamic, Plan, PreRegistered, check
from mcp_oauth.sansio.steps import Notice
from mcp_oauth.store.base import Store

Client = PreRegistered | ClientMetadataDocument | Dynamic

JITTER = random.random()  # noqa: S311 - spreads the renewals of a fleet

T = TypeVar("T")


class Options(TypedDict, total=False):
    """How to get at a server: the options of every driver's `OAuth`. See `sansio.plan.Plan` for the rarer ones."""

    store: Store | None
    """Where grants live; None: the system's keyring if it works, else encrypted files (`store.choose.AutoStore`)."""
    account: str
    """Your own label: two accounts of one server are two grants."""
    scopes: Iterable[str] | None
    """Asked for instead of what the server suggests."""
    scope_limit: Iterable[str] | None
    client: Client | Iterable[Client] | None
    """What you are to authorization servers; None: what the stored grant says, else register dynamically."""
    user: User | Agent | None
    """Who logs in and how; None: a browser on this machine."""
    interactive: bool
    """False: `AuthorizationRequired` instead of any listener or browser."""
    allow_issuer: IssuerPolicy | None
    """Asked before the first login at an authorization server."""
    on_notice: Callable[[Notice], None] | None
    """Told what happens, from the flight's thread; every notice also goes to the logger `mcp_oauth`."""
    resource: str
    trusted_issuer: Mapping[str, str]
    prefer_issuer: str | None
    strict_resource: bool
    assume_s256: bool
    allow_private: bool
    allow_any_redirect: bool
    legacy_2025_03_26: bool
    authorization_params: Mapping[str, str]
    token_params: Mapping[str, str]
    login_seconds: float


def insist(option: str, value: object, kind: Any, wanted: str) -> None:
    """Raises `ConfigurationError` for a value that is no `kind`: most programs do not have their types checked."""
    if not isinstance(value, kind):
        raise from_failure(failure(Reason.CONFIGURATION, f"{option}: give {wanted}"))


def make_plan(server_url: str, options: Options) -> Plan:
    """The plan that a driver's options describe. Raises `ConfigurationError`."""
    clients = _clients(options.get("client"))
    for each in clients:
        insist("client", each, Client, "PreRegistered, ClientMetadataDocument or Dynamic, or several of them")
    plan = Plan(
        uris.server_url(server_url) or server_url,
        options.get("account", ""),
        _only(clients, PreRegistered),
        _only(clients, ClientMetadataDocument),
        _only(clients, Dynamic) or (None if _only(clients, PreRegistered) else Dynamic()),
        any_client=not clients,
        scopes=_tuple(options.get("scopes")),
        scope_limit=_tuple(options.get("scope_limit")),
        interactive=options.get("interactive", True),
        resource=options.get("resource", "always"),
        trusted_issuer=tuple(options.get("trusted_issuer", {}).items()),
        prefer_issuer=options.get("prefer_issuer"),
        strict_resource=options.get("strict_resource", False),
        assume_s256=options.get("assume_s256", False),
        allow_private=options.get("allow_private", False),
        allow_any_redirect=options.get("allow_any_redirect", False),
        legacy_2025_03_26=options.get("legacy_2025_03_26", False),
        ask_issuer=options.get("allow_issuer") is not None,
        authorization_params=tuple(options.get("authorization_params", {}).items()),
        token_params=tuple(options.get("token_params", {}).items()),
        login_seconds=options.get("login_seconds", 300.0),
        jitter=JITTER,
    )
    if wrong := check(plan):
        raise from_failure(wrong)
    return plan


def _clients(client: Client | Iterable[Client] | None) -> tuple[Client, ...]:
    if client is None:
        return ()
    return (client,) if isinstance(client, Client) else tuple(client)


def _only(clients: tuple[Client, ...], kind: type[T]) -> T | None:
    return next((client for client in clients if isinstance(client, kind)), None)


def _tuple(scopes: Iterable[str] | None) -> tuple[str, ...] | None:
    if scopes is None:
        return None
    return tuple(scopes.split() if isinstance(scopes, str) else scopes)
