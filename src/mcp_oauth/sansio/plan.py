"""What the caller configured: one value, checked once, that every machine reads."""

from __future__ import annotations

import re
from typing import Literal

from msgspec.structs import replace

from mcp_oauth.sansio import uris
from mcp_oauth.sansio.errors import Failure, Reason, failure
from mcp_oauth.sansio.grant import Grant, Registration, Scopes
from mcp_oauth.sansio.values import Secret, Value

Params = tuple[tuple[str, str], ...]

PROTECTED_PARAMS = frozenset(
    {
        "client_id", "client_secret", "client_assertion", "client_assertion_type", "code", "code_challenge",
        "code_challenge_method", "code_verifier", "grant_type", "redirect_uri", "refresh_token", "request",
        "request_uri", "resource", "response_mode", "response_type", "scope", "state",
    }
)  # fmt: skip
"""Parameters that no extra may override (RULES 2.16)."""

_OWN_SCHEME = re.compile(r"(?!https?:)[a-z][a-z0-9+.-]*:[^\s#]+", re.IGNORECASE)


RELIED_ON = frozenset({"redirect_uris", "grant_types", "response_types", "scope"})
"""Members of a registration that a login relies on: no extra may set them."""


class PreRegistered(Value, frozen=True):
    """A client registered by hand at one authorization server; its credentials go nowhere else (RULES 2.9)."""

    shown = ("client_id", "issuer", "redirect_uri")

    client_id: str
    client_secret: Secret | None = None
    issuer: str | None = None
    """Where it is registered; None: bound to the first issuer that this server names."""
    redirect_uri: str | None = None
    """As registered; None: `http://127.0.0.1/callback` with any free port."""
    auth_method: Literal["none", "client_secret_basic", "client_secret_post"] | None = None
    """None: what the server's metadata allows."""


class ClientMetadataDocument(Value, frozen=True):
    """A client whose id is the https URL of its own metadata (CIMD)."""

    shown = ("url", "redirect_uri")

    url: str
    redirect_uri: str = "http://127.0.0.1/callback"
    """One that the document lists; a loopback one without a port means any free port."""


class Dynamic(Value, frozen=True):
    """A client that registers itself (RFC 7591)."""

    shown = ("client_name", "redirect_uri")

    client_name: str = "MCP client"
    redirect_uri: str | None = None
    """None: on loopback, a free port, a path of its own for each issuer (RULES 2.13)."""
    more_redirect_uris: tuple[str, ...] = ()
    """Registered beside the one that is used, for other programs of this client."""
    client_uri: str | None = None
    scopes: Scopes = ()
    """Registered beside those that the login asks for: a step-up to them needs no other client, whose sessions at the
    MCP server would be others too."""
    initial_access_token: Secret | None = None
    extra: Params = ()
    """More standard members of the registration request."""


class Plan(Value, frozen=True):
    """How to get at one MCP server, as one account."""

    shown = ("server_url", "account", "scopes", "interactive")

    server_url: str
    """Canonical (`uris.server_url`)."""
    account: str = ""
    """The caller's own label: two accounts of one server are two grants (FN 16, FN 56)."""
    preregistered: PreRegistered | None = None
    metadata_document: ClientMetadataDocument | None = None
    dynamic: Dynamic | None = Dynamic()
    """None: never register."""
    any_client: bool = False
    """No client was configured: a grant that is there brings its own."""
    scopes: Scopes | None = None
    """Asked for instead of what the server suggests; None: challenge, else metadata, else omitted (RULES 2.15)."""
    scope_limit: Scopes | None = None
    """Nothing else that a server suggests or demands is asked for (RULES 3.5)."""
    interactive: bool = True
    """False: `authorization-required` instead of any listener or browser."""
    resource: Literal["always", "never"] | str = "always"
    """The `resource` parameter (FN 9): the metadata's, none, or this text."""
    trusted_issuer: Params = ()
    """Pairs (authorization server as listed, `issuer` as published) that may differ (RULES 2.5)."""
    prefer_issuer: str | None = None
    strict_resource: bool = False
    """Demand that the metadata's `resource` equals the server URL (RFC 9728 section 3.3)."""
    assume_s256: bool = False
    allow_private: bool = False
    """OAuth traffic may go to private and loopback addresses that a public server names."""
    allow_any_redirect: bool = False
    """Redirect URIs may have a scheme of their own, such as `myapp://`."""
    legacy_2025_03_26: bool = False
    """Guess `/authorize`, `/token` and `/register` where a server has no metadata at all."""
    ask_issuer: bool = False
    """Ask the application before the first login at a new authorization server (RULES 2.9)."""
    authorization_params: Params = ()
    token_params: Params = ()
    login_seconds: float = 300.0
    """How long a person may take."""
    holder: str = "this process"
    """How others see who logs in: `pid 4711 on host`."""
    two_leg: bool = False
    """The redirect comes to another process; no listener, no heartbeat."""
    jitter: float = 0.0
    """From 0 up to 1, fixed for a process: spreads renewals of a fleet."""


def check(plan: Plan) -> Failure | None:
    """The first thing wrong with a plan, or None. Options are named as the caller knows them."""
    return (
        _check_server(plan.server_url)
        or _check_client(plan)
        or _check_resource(plan.resource)
        or _check_params("authorization_params", plan.authorization_params)
        or _check_params("token_params", plan.token_params)
        or _check_patience(plan.login_seconds)
        or _check_scopes("scopes", plan.scopes)
        or _check_scopes("scope_limit", plan.scope_limit)
        or _check_scopes("scopes of the client", plan.dynamic.scopes if plan.dynamic else ())
    )


def _check_server(url: str) -> Failure | None:
    if uris.server_url(url) is None:
        return failure(Reason.SERVER_URL, "the server URL is not an absolute http(s) URL", url=url)
    why = uris.refusal(url, server=url)
    return failure(Reason.SERVER_URL, why, url=url) if why else None


def _check_client(plan: Plan) -> Failure | None:
    clients = (plan.preregistered, plan.metadata_document, plan.dynamic)
    used = [client.redirect_uri for client in clients if client is not None]
    for uri in (*used, *(plan.dynamic.more_redirect_uris if plan.dynamic else ())):
        if uri is not None and (why := redirect_refusal(uri, plan.allow_any_redirect)):
            return failure(Reason.CONFIGURATION, f"redirect_uri: {why}")
    if plan.preregistered and _lacks_secret(plan.preregistered):
        return failure(Reason.CONFIGURATION, f"auth_method: {plan.preregistered.auth_method} needs a client_secret")
    if plan.dynamic and (taken := sorted(RELIED_ON.intersection(name for name, _ in plan.dynamic.extra))):
        return failure(Reason.CONFIGURATION, f"extra must not set {', '.join(taken)}")
    if plan.metadata_document and (why := document_url_refusal(plan.metadata_document.url)):
        return failure(Reason.CONFIGURATION, f"client metadata document: {why}")
    return None


def _lacks_secret(client: PreRegistered) -> bool:
    return client.auth_method not in (None, "none") and not client.client_secret


def _check_resource(resource: str) -> Failure | None:
    """RFC 8707 section 2: an absolute URI without a fragment."""
    if resource in ("always", "never") or re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*:[^\s#]+", resource):
        return None
    return failure(Reason.CONFIGURATION, "resource: neither always, never nor an absolute URI without a fragment")


def _check_params(option: str, params: Params) -> Failure | None:
    taken = sorted(PROTECTED_PARAMS.intersection(name for name, _ in params))
    return failure(Reason.CONFIGURATION, f"{option} must not set {', '.join(taken)}") if taken else None


def _check_patience(seconds: float) -> Failure | None:
    return None if seconds > 0 else failure(Reason.CONFIGURATION, "login_seconds must be more than 0")


def _check_scopes(option: str, scopes: Scopes | None) -> Failure | None:
    """RFC 6749 section 3.3: printable ASCII without space, quote and backslash."""
    bad = [s for s in scopes or () if not s or any(not "!" <= c <= "~" or c in '"\\' for c in s)]
    return failure(Reason.CONFIGURATION, f"{option}: {bad[0]!r} is not a scope") if bad else None


def agrees(plan: Plan, grant: Grant) -> bool:
    """The grant is one that this plan could have got (RULES 4.3): of its client, its resource, its scopes.

    Programs with other plans may share a store. To them it is as if there were no grant.
    """
    return (
        _same_client(plan, grant.registration)
        and {"always": grant.resource is not None, "never": grant.resource is None}.get(
            plan.resource, grant.resource == plan.resource
        )
        and set(plan.scopes or ()) <= set(grant.requested or ())
    )


def client_of(grant: Grant) -> PreRegistered | ClientMetadataDocument | None:
    """The client that a grant was configured with; None: it registered itself."""
    client = grant.registration
    if client.kind == "dcr":
        return None
    if client.kind == "cimd" and client.redirect_uri is not None:
        return ClientMetadataDocument(client.client_id, client.redirect_uri)
    if client.kind == "cimd":
        return ClientMetadataDocument(client.client_id)
    return PreRegistered(client.client_id, client.client_secret, client.issuer, client.redirect_uri, client.auth_method)


def as_client_of(plan: Plan, grant: Grant | None) -> Plan:
    """The plan of a program that configured no client and finds this grant: its renewals and logins go on as before."""
    client = client_of(grant) if grant is not None and plan.any_client else None
    if isinstance(client, PreRegistered):
        return replace(plan, preregistered=client, dynamic=None)
    return plan if client is None else replace(plan, metadata_document=client)


def _same_client(plan: Plan, client: Registration) -> bool:
    if plan.preregistered is not None:
        return client.client_id == plan.preregistered.client_id
    if client.kind == "cimd":
        return plan.metadata_document is not None and client.client_id == plan.metadata_document.url
    return client.kind == "dcr" and plan.dynamic is not None


def redirect_refusal(uri: str, allow_any: bool = False) -> str | None:
    """Why a redirect URI will not do (RULES 2.13: loopback or https), or None."""
    if allow_any and _OWN_SCHEME.fullmatch(uri):
        return None
    url = uris.split(uri)
    if url is None:
        return "not an absolute URL; a scheme of your own needs allow_any_redirect=True"
    if url.fragment is not None:
        return "it has a fragment (RFC 6749 section 3.1.2)"
    if url.scheme == "http" and uris.place(url) is not uris.Place.LOOPBACK:
        return "http is for loopback only"
    return None


def document_url_refusal(url: str) -> str | None:
    """Why a URL cannot be that of a client metadata document (RULES 2.12), or None."""
    parts = uris.split(url)
    if parts is None or parts.scheme != "https":
        return "its URL must be https, without userinfo"
    if parts.fragment is not None:
        return "its URL must not have a fragment"
    if parts.path in ("", "/"):
        return "its URL must have a path"
    if any(segment.lower().replace("%2e", ".") in (".", "..") for segment in parts.path.split("/")):
        return "its URL must not have dot segments"
    return None
