"""The machines one at a time, for callers who keep their tokens themselves."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from msgspec.structs import replace

from mcp_oauth.sansio import by_step, client, login, renewal
from mcp_oauth.sansio.by_step import ENDPOINTS, KEY, LOOPBACK
from mcp_oauth.sansio.discovery import Discovered
from mcp_oauth.sansio.errors import Failure, Reason
from mcp_oauth.sansio.grant import (
    Grant,
    GrantRecord,
    Registration,
    RegistrationRecord,
    encode,
    registration_key,
)
from mcp_oauth.sansio.metadata import AuthorizationServerMetadata
from mcp_oauth.sansio.plan import Dynamic, Plan
from mcp_oauth.sansio.steps import Acquired, Await, Event, Listening, Loaded, Redirected, Save, Saved
from tests.sansio.logins import CALLBACK, PLAN
from tests.sansio.scripts import ISSUER, SEED, SERVER, each, grant, record, secret, tokens
from tests.sansio.walks import CANARY, NOW, table, walk

AUTHORIZE, TOKEN = f"{ISSUER}/authorize", f"{ISSUER}/token"
TOLD = by_step.told(SERVER, None, AUTHORIZE, TOKEN, f"{ISSUER}/register", f"{ISSUER}/revoke")
MINE = Registration(
    ISSUER,
    "mine",
    "dcr",
    "client_secret_post",
    CALLBACK,
    ("a", "b"),
    f"{CANARY}-s",
    5.0,
    f"{ISSUER}/register/1",
    f"{CANARY}-r",
)


def discovered() -> Discovered:
    assert isinstance(TOLD, Discovered)
    return TOLD


# --- Discovery --------------------------------------------------------------------------------------------------------


def test_endpoints_at_the_callers_word() -> None:
    expected = AuthorizationServerMetadata(ISSUER, AUTHORIZE, TOKEN, f"{ISSUER}/register", f"{ISSUER}/revoke")
    assert discovered().metadata == replace(expected, code_challenge_methods_supported=("S256",))
    assert discovered().resource == SERVER
    named = by_step.told(SERVER, "https://named.example", AUTHORIZE, TOKEN, None, None)
    assert isinstance(named, Discovered)
    assert (named.metadata.issuer, named.metadata.registration_endpoint) == ("https://named.example", None)


def test_nothing_told() -> None:
    assert by_step.told(SERVER, ISSUER, None, None, None, None) is None


@table(
    "given, message",
    {
        "RFC6749-3.1-fragment": (
            {"authorization_url": f"{AUTHORIZE}#x"},
            "authorization_url: an endpoint has no fragment",
        ),
        "RULES-2.6-protocol-parameters": (
            {"authorization_url": f"{AUTHORIZE}?state=x&a=b&client_id=y"},
            "authorization_url: its query holds client_id, state",
        ),
        "RULES-1.3-http": ({"token_url": "http://as.example/token"}, "token_url: *"),
        "authorization-alone": ({"authorization_url": AUTHORIZE}, "authorization_url and token_url: *"),
        "token-alone": ({"token_url": TOKEN}, "authorization_url and token_url: *"),
        "revocation-alone": ({"revocation_url": f"{ISSUER}/revoke"}, "authorization_url and token_url: *"),
    },
)
def test_endpoints_that_are_refused(given: dict[str, str], message: str) -> None:
    refused = by_step.told(SERVER, None, *(given.get(option) for option in ENDPOINTS))
    assert isinstance(refused, Failure)
    assert refused.reason is Reason.CONFIGURATION
    assert refused.message.startswith(message.removesuffix("*"))


def test_rules_1_3_a_loopback_endpoint_is_allowed_by_being_named() -> None:
    local = "http://127.0.0.1:9000"
    assert isinstance(by_step.told(SERVER, None, f"{local}/authorize", f"{local}/token", None, None), Discovered)


# --- Registration -----------------------------------------------------------------------------------------------------


@table(
    "wished, fixed",
    {"RULES-2.13-ours-to-choose": (LOOPBACK, None), "RULES-2.13-the-callers": ("https://app.example/cb",) * 2},
)
def test_redirect_uri(wished: str, fixed: str | None) -> None:
    assert by_step.dynamic("App", wished, ("https://b.example",)) == Dynamic("App", fixed, ("https://b.example",))


def test_rules_2_10_registered_with_the_scopes_of_a_login() -> None:
    plan = Plan(SERVER, scopes=("a", "b"))
    step = by_step.begin_registration(plan, discovered(), SEED, NOW)
    played = walk(client, step, Loaded(None), Listening(CALLBACK))
    assert played.end.effect.request.url == f"{ISSUER}/register"
    assert b'"scope":"a b"' in played.end.effect.request.body


@table(
    "registered, dynamic, expected",
    {
        "RFC7591-3.2.1-all": (
            MINE,
            Dynamic("App", None, ("https://b.example",)),
            {
                "client_id": "mine",
                "client_secret": f"{CANARY}-s",
                "client_secret_expires_at": 5.0,
                "client_name": "App",
                "redirect_uris": [CALLBACK, "https://b.example"],
                "token_endpoint_auth_method": "client_secret_post",
                "scope": "a b",
                "registration_client_uri": f"{ISSUER}/register/1",
                "registration_access_token": f"{CANARY}-r",
            },
        ),
        "RFC7591-3.2.1-least": (
            Registration(ISSUER, "mine", "dcr", "none", CALLBACK),
            None,
            {"client_id": "mine", "redirect_uris": [CALLBACK], "token_endpoint_auth_method": "none"},
        ),
    },
)
def test_client_information(registered: Registration, dynamic: Dynamic | None, expected: dict[str, Any]) -> None:
    assert by_step.members(registered, dynamic) == expected


# --- Login ------------------------------------------------------------------------------------------------------------


def opened(played: Any) -> dict[str, list[str]]:
    return parse_qs(urlsplit(played.end.effect.url).query)


def test_rules_2_9_a_login_with_a_registration_that_the_caller_kept() -> None:
    plan = Plan(SERVER, dynamic=Dynamic(redirect_uri=CALLBACK))
    key, stored = by_step.registrations(plan, MINE)
    assert key == registration_key(ISSUER, "https://mcp.example")
    assert stored == RegistrationRecord("known", (MINE,), (KEY,))
    known = replace(MINE, client_secret_expires_at=None, scopes=None)
    _, stored = by_step.registrations(plan, known)
    step = by_step.begin_login(plan, discovered(), SEED, NOW)
    assert opened(walk(login, step, Loaded(stored), Listening(CALLBACK)))["client_id"] == ["mine"]


@each("iss", {"RFC9207-2.4-dropped": "&iss=https%3A%2F%2Felsewhere.example", "RFC9207-2.4-absent": ""})
def test_a_login_without_claim_where_no_issuer_is_known(iss: str) -> None:
    """Discovery is done; the person is asked, and what was granted is saved over nothing."""
    step = by_step.begin_login(PLAN, discovered(), SEED, NOW)
    waits = walk(login, step, Listening(CALLBACK)).end
    state = opened(walk(login, step, Listening(CALLBACK)))["state"][0]
    events: tuple[Event, ...] = (Redirected(f"{CALLBACK}?code={CANARY}-code&state={state}{iss}"), tokens(7))
    for event in events:
        waits = by_step.logging_in(waits.state, event, now=NOW)
        assert isinstance(waits, Await)
    assert isinstance(waits.effect, Save)
    assert (waits.effect.key, waits.effect.expected) == (KEY, None)
    assert isinstance(waits.effect.record, GrantRecord)
    kept = by_step.grant_of(encode(waits.effect.record))
    assert kept == waits.effect.record.grants[0]
    assert (kept.access_token, kept.registration.client_id) == (secret(7, "at"), "client")


# --- Tokens -----------------------------------------------------------------------------------------------------------


@each("stored", {"none-in-use": record(), "of-another-kind": RegistrationRecord("r0")})
def test_a_store_without_a_grant(stored: GrantRecord | RegistrationRecord) -> None:
    with pytest.raises(AssertionError):
        by_step.grant_of(encode(stored))


def test_what_the_tokens_of_a_grant_were_issued_to() -> None:
    bare = by_step.without_tokens(replace(grant(1), renewals=(1.0,)))
    assert bare == replace(grant(1), access_token="", refresh_token=None, expires_at=0.0)


def test_tokens_that_came_from_elsewhere_are_the_configured_clients() -> None:
    issued = by_step.issued_elsewhere(PLAN, discovered(), SEED, NOW)
    assert isinstance(issued, Grant)
    assert (issued.issuer, issued.token_endpoint, issued.revocation_endpoint) == (ISSUER, TOKEN, f"{ISSUER}/revoke")
    assert (issued.registration.client_id, issued.access_token, issued.refresh_token) == ("client", "", None)


def test_tokens_that_came_from_elsewhere_need_a_client() -> None:
    failed = by_step.issued_elsewhere(Plan(SERVER, dynamic=None), discovered(), SEED, NOW)
    assert isinstance(failed, Failure)
    assert failed.reason is Reason.CLIENT_INFORMATION_NEEDED


def test_a_renewal_of_a_grant_that_the_caller_kept() -> None:
    given = replace(by_step.without_tokens(grant(1)), refresh_token=secret(1, "rt"))
    key, stored = by_step.renewable(PLAN, given)
    assert (key, stored) == (KEY, GrantRecord("given", SERVER, "", (given,), ISSUER))
    played = walk(renewal, by_step.begin_renewal(PLAN, given, SEED), Acquired(stored), tokens(2), Saved())
    (saving,) = (step.effect for step in played.steps if isinstance(step.effect, Save))
    assert (saving.key, saving.expected) == (KEY, "given")
    assert by_step.grant_of(encode(saving.record)).refresh_token == secret(2, "rt")
