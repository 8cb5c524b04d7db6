"""The machines one at a time, for callers who keep their tokens themselves: where each begins, and on what.

They are the same machines, and nothing is decided anew here. Each runs on a store of its own: empty, but for the record
that `registrations` or `renewable` puts there, and what it holds at `KEY` in the end is the result.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from mcp_oauth.sansio import attempt, client, login, registration, renewal, uris
from mcp_oauth.sansio.attempt import Chosen, Login
from mcp_oauth.sansio.authorization_code import Authorized
from mcp_oauth.sansio.client import Ready
from mcp_oauth.sansio.discovery import Discovered
from mcp_oauth.sansio.errors import Failure, Reason, failure
from mcp_oauth.sansio.grant import (
    Grant,
    GrantRecord,
    Record,
    Registration,
    RegistrationRecord,
    current_grant,
    decode,
    registration_key,
)
from mcp_oauth.sansio.metadata import AuthorizationServerMetadata
from mcp_oauth.sansio.plan import PROTECTED_PARAMS, Dynamic, Plan
from mcp_oauth.sansio.steps import Done, Event, Failed, Need, Redirected
from mcp_oauth.sansio.token_endpoint import TokenAnswer
from mcp_oauth.sansio.values import Now, Seed

KEY = "grant"
"""Where the store has the grant."""
LOOPBACK = "http://127.0.0.1/callback"
"""The redirect URI of who has no other wish."""
ENDPOINTS = ("authorization_url", "token_url", "registration_url", "revocation_url")
"""The options that name them."""


# --- Discovery --------------------------------------------------------------------------------------------------------


def told(server_url: str, issuer: str | None, *endpoints: str | None) -> Discovered | Failure | None:
    """What discovery would have found, at the caller's word; None: the caller told nothing.

    `endpoints` are those of `ENDPOINTS`, in this order.
    """
    given = {option: url for option, url in zip(ENDPOINTS, endpoints, strict=True) if url is not None}
    for option, url in given.items():
        if why := _refusal(url):
            return failure(Reason.CONFIGURATION, f"{option}: {why}")
    if not given:
        return None
    if not given.keys() >= {"authorization_url", "token_url"}:
        return failure(Reason.CONFIGURATION, "authorization_url and token_url: endpoints are given with both, or not")
    metadata = AuthorizationServerMetadata(
        issuer or uris.origin(given["authorization_url"]),
        given["authorization_url"],
        given["token_url"],
        given.get("registration_url"),
        given.get("revocation_url"),
        code_challenge_methods_supported=("S256",),
    )
    return Discovered(server_url, metadata)


def _refusal(endpoint: str) -> str | None:
    """RULES 1.3 and 2.6. Loopback and private hosts are allowed by being named."""
    if "#" in endpoint:
        return "an endpoint has no fragment"
    taken = sorted(PROTECTED_PARAMS.intersection(name for name, _ in uris.query_params(endpoint)))
    return f"its query holds {', '.join(taken)}" if taken else uris.refusal(endpoint, server=endpoint)


# --- Registration -----------------------------------------------------------------------------------------------------


def dynamic(client_name: str, redirect_uri: str, others: tuple[str, ...] = ()) -> Dynamic:
    """A client that registers itself. `LOOPBACK` gets a path for each issuer, so that none is mixed up (RULES 2.13)."""
    return Dynamic(client_name, None if redirect_uri == LOOPBACK else redirect_uri, others)


def begin_registration(plan: Plan, found: Discovered, seed: Seed, now: Now) -> client.Out:
    """Register anew, with the scopes that a login would ask for."""
    scopes = attempt.scopes_of(_login(plan, seed), found)
    return client.begin(client.Query(plan, KEY, found, scopes, seed), now)


def members(registered: Registration, dynamic: Dynamic | None) -> dict[str, Any]:
    """The client information (RFC 7591 section 3.2.1), as far as it is known; secret."""
    known = {
        "client_id": registered.client_id,
        "client_secret": registered.client_secret,
        "client_secret_expires_at": registered.client_secret_expires_at,
        "client_name": dynamic.client_name if dynamic else None,
        "redirect_uris": [registered.redirect_uri, *(dynamic.more_redirect_uris if dynamic else ())],
        "token_endpoint_auth_method": registered.auth_method,
        "scope": " ".join(registered.scopes) if registered.scopes else None,
        "registration_client_uri": registered.registration_client_uri,
        "registration_access_token": registered.registration_access_token,
    }
    return {member: value for member, value in known.items() if value is not None}


def registrations(plan: Plan, known: Registration) -> tuple[str, Record]:
    """Where and what the store has of a dynamic registration that a login is to use.

    One that a program made without scopes is taken to be for all: it has said so.
    """
    known = known if known.scopes is not None else replace(known, scopes=plan.scopes)
    return registration_key(known.issuer, uris.origin(plan.server_url)), RegistrationRecord("known", (known,), (KEY,))


# --- Login ------------------------------------------------------------------------------------------------------------


def begin_login(plan: Plan, found: Discovered, seed: Seed, now: Now) -> login.Out:
    """Log in where discovery is done, and its result is the caller's to judge."""
    return login.resume(_login(plan, seed), found, now)


def _login(plan: Plan, seed: Seed) -> Login:
    return Login(plan, KEY, Need("forced"), seed, None, "")


def logging_in(state: login.State, event: Event, *, now: Now) -> login.Out:
    """`login.advance` where no issuer is known: there is nothing to compare `iss` with (RFC 9207 section 2.4)."""
    if isinstance(event, Redirected):
        event = Redirected(uris.with_query("", (pair for pair in uris.query_params(event.url) if pair[0] != "iss")))
    return login.advance(state, event, now=now)


# --- Tokens -----------------------------------------------------------------------------------------------------------


def without_tokens(grant: Grant) -> Grant:
    """What the tokens of a grant were issued to."""
    return replace(grant, access_token="", refresh_token=None, expires_at=0.0, renewals=())


def issued_elsewhere(plan: Plan, found: Discovered, seed: Seed, now: Now) -> Grant | Failure:
    """The same, of tokens that came from elsewhere: issued to the pre-registered client."""
    query = registration.Query(plan, found.metadata, found.listed, "", None)
    step = registration.begin(query, now)
    if isinstance(step, Failed):
        return step.error
    assert isinstance(step, Done)  # noqa: S101 - such a client asks nobody
    nothing = Authorized(TokenAnswer("", 0.0, 0.0, None, None), None, None)
    return attempt.granted(_login(plan, seed), Chosen(found, None), Ready(step.value, ""), nothing)


def renewable(plan: Plan, grant: Grant) -> tuple[str, Record]:
    """Where and what the store has of a grant that is to be renewed."""
    return KEY, GrantRecord("given", plan.server_url, plan.account, (grant,), grant.issuer)


def grant_of(stored: bytes) -> Grant:
    """What a login or a renewal has saved at `KEY`."""
    record = decode(stored)
    grant = current_grant(record) if isinstance(record, GrantRecord) else None
    assert grant is not None  # noqa: S101 - or the machine would have failed
    return grant


def begin_renewal(plan: Plan, grant: Grant, seed: Seed) -> renewal.Out:
    """Renew a grant that has a refresh token, no access token, and is in the store."""
    return renewal.begin(KEY, grant, unlike=None, seed=seed, jitter=plan.jitter, holder=plan.holder)
