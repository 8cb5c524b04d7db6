"""What every machine promises, whatever the world answers: DESIGN 1 and RULES 1.2, 1.3, 6.4, as properties.

`MCP_OAUTH_EXAMPLES` raises the number of walks for each machine and property.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable, Iterator
from random import Random
from types import ModuleType
from typing import Any
from urllib.parse import parse_qs, unquote_plus, urljoin

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mcp_oauth.sansio import authorization_code, issuer, login, upkeep, uris
from mcp_oauth.sansio.errors import Reason, failure
from mcp_oauth.sansio.grant import Grant, Registration
from mcp_oauth.sansio.messages import Request, Response, header, read_json, text_member
from mcp_oauth.sansio.metadata import (
    AuthorizationServerMetadata,
    ProtectedResourceMetadata,
    authorization_server,
    protected_resource,
)
from mcp_oauth.sansio.plan import Plan
from mcp_oauth.sansio.steps import (
    ANSWERS,
    Acquired,
    Allowed,
    Answered,
    Busy,
    Conflict,
    Done,
    Ensured,
    Event,
    Failed,
    Listening,
    Loaded,
    Misuse,
    NotEnsured,
    OpenBrowser,
    Redirected,
    Released,
    Saved,
    Send,
    SendFailed,
    StillWaiting,
    StoreFailed,
    UserFailed,
    Woke,
)
from mcp_oauth.sansio.values import Value
from tests.sansio.anything import CHALLENGED, NEARBY, ORIGIN, SERVER
from tests.sansio.machines import BEGIN, Walk, any_walk
from tests.sansio.walks import CANARY, NOW, advance, shown
from tests.sansio.worlds import round_trip

EXAMPLES = int(os.environ.get("MCP_OAUTH_EXAMPLES", "40"))
MOST_SEEDS = 100_000
"""Walks in which each row of a table must be taken."""

PEERS = [machine for machine in BEGIN if Send in {effect for waits, _ in machine.TABLE.values() for effect in waits}]
"""The machines that send requests."""


def name(machine: ModuleType) -> str:
    return machine.__name__.rpartition(".")[2]


every_machine = pytest.mark.parametrize("machine", BEGIN, ids=name)
every_peer = pytest.mark.parametrize("machine", PEERS, ids=name)
walks = given(rnd=st.randoms(use_true_random=False))
often = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


# --- 1. Ends, is bounded, is JSON, is a function ----------------------------------------------------------------------


@every_machine
@often
@walks
def test_design_1_ends_within_its_bound(machine: ModuleType, rnd: Random) -> None:
    walk, _ = any_walk(machine, rnd)
    assert isinstance(walk.steps[-1], Done | Failed)
    assert len(walk.events) <= machine.MOST_EFFECTS


@every_machine
@often
@walks
def test_design_1_same_events_give_equal_steps_also_by_way_of_json(machine: ModuleType, rnd: Random) -> None:
    walk, _ = any_walk(machine, rnd)
    for step, (event, now), after in zip(walk.steps, walk.events, walk.steps[1:], strict=False):
        revived = round_trip(machine, step)
        assert revived == step
        assert advance(machine, revived, event, now) == advance(machine, step, event, now) == after


@every_machine
def test_design_1_the_bound_stands_in_its_docstring(machine: ModuleType) -> None:
    assert re.findall(r"[Aa]t most (\d+) effects", machine.__doc__ or "") == [str(machine.MOST_EFFECTS)]


# --- 2. Misuse --------------------------------------------------------------------------------------------------------

SAMPLES: dict[type[Any], Event] = {
    type(event): event
    for event in (
        Response(200),
        SendFailed("lost", may_have_arrived=True),
        Listening("http://127.0.0.1:1/"),
        Redirected("http://127.0.0.1:1/?code=x"),
        StillWaiting(),
        UserFailed("no"),
        Allowed(),
        Woke(),
        Acquired(None, left_by="pid 1"),
        Busy("x"),
        Released(),
        Loaded(None),
        Saved(),
        Conflict(None),
        StoreFailed("full"),
        Answered(200),
        Ensured(None, "none"),
        NotEnsured(failure(Reason.STOPPED, "no")),
    )
}


@every_machine
@often
@walks
def test_design_1_misuse_is_a_foreign_event_and_nothing_else(machine: ModuleType, rnd: Random) -> None:
    walk, _ = any_walk(machine, rnd)
    for step in dict.fromkeys(walk.steps[:-1]):
        for kind, event in SAMPLES.items():
            if kind in ANSWERS[type(step.effect)]:
                advance(machine, step, event, NOW)
            else:
                with pytest.raises(Misuse) as caught:
                    advance(machine, step, event, NOW)
                assert CANARY not in str(caught.value)


# --- 3. Tables --------------------------------------------------------------------------------------------------------

Row = tuple[type[Any], ...]


def row(state: type[Any], event: type[Any], after: type[Any]) -> Row:
    """A row as far as a table is exact: what follows on an inner machine's end, `inside` declares for all events."""
    return (state, after) if "inner" in state.__struct_fields__ else (state, event, after)


def declared(machine: ModuleType) -> set[Row]:
    return {
        row(state, event, after)
        for state, (_, events) in machine.TABLE.items()
        for event, following in events.items()
        for after in following
    }


def taken(walk: Walk) -> set[Row]:
    turns = walk.turns()
    return {row(type(step.state), type(event), type(getattr(after, "state", after))) for step, event, after in turns}


@every_machine
@often
@walks
def test_design_1_no_transition_outside_the_table(machine: ModuleType, rnd: Random) -> None:
    walk, _ = any_walk(machine, rnd)
    assert taken(walk) <= declared(machine)
    assert all(type(step.effect) in machine.TABLE[type(step.state)][0] for step in walk.steps[:-1])


@every_machine
def test_design_1_no_row_never_taken(machine: ModuleType) -> None:
    missing = declared(machine)
    for seed in range(MOST_SEEDS):
        if not missing:
            break
        missing -= taken(any_walk(machine, Random(seed))[0])
    assert not missing


# --- 4. Who is asked, and told what -----------------------------------------------------------------------------------

_SECRET = re.compile(rf"{CANARY}-[a-z-]+-[0-9]{{8}}")


def values_in(thing: Any) -> Iterator[Any]:
    """The thing, and all values inside."""
    yield thing
    names: Iterable[str] = getattr(thing, "__struct_fields__", ())
    inside = thing if isinstance(thing, tuple) else [getattr(thing, name) for name in names]
    for item in inside:
        yield from values_in(item)


def secrets_in(*texts: str | None) -> set[str]:
    """The names of the secrets in texts, form-encoded or not."""
    return {found for text in texts if text for found in _SECRET.findall(unquote_plus(text))}


class Ledger:
    """What a walk has taught: whom the machine may ask, and where each secret may go.

    It reads what was configured, and each answer in the light of what was asked; never what the machine made of it.
    """

    def __init__(self, begun: Any) -> None:
        self.urls = {CHALLENGED, NEARBY, *uris.protected_resource_metadata_urls(SERVER)}
        """Where documents may be asked for."""
        self.homes: dict[str, set[str]] = {}
        self.grants: list[Grant] = []
        self.chosen = AuthorizationServerMetadata("", f"{ORIGIN}/authorize", f"{ORIGIN}/token", f"{ORIGIN}/register")
        """The metadata that is in force; at first what a server of 2025-03-26 would have."""
        self.plans = [value for value in values_in(begun) if isinstance(value, Plan)]
        self.issuers(ORIGIN, f"{ORIGIN}/")
        self.look(begun)

    def issuers(self, *names: str) -> None:
        well_formed = [name for name in names if uris.split(name)]
        self.urls.update(url for name in well_formed for url in uris.authorization_server_metadata_urls(name))

    def home(self, secret: str | None, *urls: str | None) -> None:
        for found in secrets_in(secret):
            self.homes.setdefault(found, set()).update(url for url in urls if url)

    def look(self, thing: Any) -> None:
        """What was configured, or is stored."""
        for value in values_in(thing):
            if isinstance(value, AuthorizationServerMetadata):
                self.chosen = value
            elif isinstance(value, authorization_code.Authorization):
                self.chosen = AuthorizationServerMetadata(value.issuer, value.url, value.token_endpoint)
            elif isinstance(value, issuer.Query):
                self.issuers(value.issuer)
            elif isinstance(value, ProtectedResourceMetadata):
                self.issuers(*value.authorization_servers)
            elif isinstance(value, Grant):
                self.grant(value)
            elif isinstance(value, Registration):
                endpoints = (self.chosen.token_endpoint, self.chosen.revocation_endpoint)
                self.home(value.client_secret, *(endpoints if value.issuer == self.chosen.issuer else ()))
                self.home(value.registration_access_token, value.registration_client_uri)

    def grant(self, grant: Grant) -> None:
        self.grants.append(grant)
        self.home(grant.access_token, grant.revocation_endpoint)
        self.home(grant.refresh_token, grant.token_endpoint, grant.revocation_endpoint)
        self.home(grant.registration.client_secret, grant.token_endpoint, grant.revocation_endpoint)

    def configured(self) -> None:
        """What the caller configured goes to the authorization server in force."""
        for plan in self.plans:
            client, dynamic = plan.preregistered, plan.dynamic
            if client is not None and client.issuer in (None, self.chosen.issuer, *dict(plan.trusted_issuer)):
                self.home(client.client_secret, self.chosen.token_endpoint, self.chosen.revocation_endpoint)
            if dynamic is not None:
                self.home(dynamic.initial_access_token, self.chosen.registration_endpoint)

    def learn(self, step: Any, event: Event) -> None:
        """What an answer teaches."""
        match step.effect, event:
            case Send(request), Response():
                self.answered(request, event)
            case OpenBrowser(), Redirected(url):
                self.home(url, self.chosen.token_endpoint)
            case _:
                self.look(event)

    def answered(self, request: Request, response: Response) -> None:
        location = header(response.headers, "location")
        if location and response.status in (301, 302, 303, 307, 308) and (target := redirect(request.url, location)):
            self.urls.add(target)
        document = read_json(response.body) or {}
        if request.method == "GET" and response.status == 200:
            self.look(protected_resource(document))
            self.look(authorization_server(document))
        elif b"client_name" in request.body:
            told = (self.chosen.token_endpoint, self.chosen.revocation_endpoint)
            self.home(text_member(document, "client_secret"), *told)
            management = text_member(document, "registration_client_uri")
            near = management and uris.same_origin(management, self.chosen.registration_endpoint or "")
            self.home(text_member(document, "registration_access_token"), management if near else None)
        elif request.method == "POST":
            here = [grant.revocation_endpoint for grant in self.grants if grant.token_endpoint == request.url]
            self.home(text_member(document, "access_token"), self.chosen.revocation_endpoint, *here)
            self.home(text_member(document, "refresh_token"), request.url, self.chosen.revocation_endpoint, *here)

    def check(self, request: Request) -> None:
        """Nobody is asked who was not named for it, and no secret is told to anybody but its own server."""
        self.configured()
        plan = next(iter(self.plans), Plan(SERVER))
        assert uris.refusal(request.url, server=SERVER, allow_private=plan.allow_private) is None
        assert not secrets_in(request.url)
        if request.method == "GET":
            assert request.url in self.urls
        elif b"client_name" in request.body:
            assert request.url in self.urls | {self.chosen.registration_endpoint}
        elif b"authorization_code" in request.body:
            assert request.url == self.chosen.token_endpoint
        told = secrets_in(*(value for _, value in request.headers), basic(request), request.body.decode("latin-1"))
        assert not [secret for secret in told if request.url not in self.homes.get(secret, ())]


def redirect(url: str, location: str) -> str | None:
    target = urljoin(url, location)
    return target if uris.same_origin(url, target) else None


def basic(request: Request) -> str:
    """What HTTP Basic hides."""
    scheme, _, credentials = (header(request.headers, "authorization") or "").partition(" ")
    return base64.b64decode(credentials).decode("ascii") if scheme == "Basic" else ""


@every_peer
@often
@walks
def test_rules_1_2_nobody_is_asked_or_told_without_having_been_named(machine: ModuleType, rnd: Random) -> None:
    walk, _ = any_walk(machine, rnd)
    ledger = Ledger(walk.steps[0])
    for step, event, _ in walk.turns():
        if isinstance(step.effect, Send):
            ledger.check(step.effect.request)
        ledger.learn(step, event)


@pytest.mark.parametrize("machine", [authorization_code, login, upkeep], ids=name)
@often
@walks
def test_rules_1_2_the_browser_learns_no_secret(machine: ModuleType, rnd: Random) -> None:
    walk, _ = any_walk(machine, rnd)
    for step in walk.steps[:-1]:
        if isinstance(step.effect, OpenBrowser):
            (asked,) = (value for value in values_in(step.state) if isinstance(value, authorization_code.Authorization))
            assert not secrets_in(step.effect.url)
            assert asked.verifier not in step.effect.url


@pytest.mark.parametrize("machine", [authorization_code, login, upkeep], ids=name)
@often
@walks
def test_rules_6_4_a_dump_after_the_exchange_holds_no_verifier(machine: ModuleType, rnd: Random) -> None:
    walk, _ = any_walk(machine, rnd)
    spent: set[str] = set()
    for step, event, after in walk.turns():
        request = step.effect.request if isinstance(step.effect, Send) else None
        if request and b"code_verifier" in request.body and isinstance(event, Response):
            spent |= {*(parse_qs(request.body.decode())[name][0] for name in ("code", "code_verifier"))}
        dumped = msgspec.json.encode(after).decode()
        assert not [secret for secret in spent if secret in dumped]


# --- 5. Silence -------------------------------------------------------------------------------------------------------


@every_machine
@often
@walks
def test_fn_54_no_secret_is_shown(machine: ModuleType, rnd: Random) -> None:
    """In no repr, message, notice or failure, at any depth, whatever servers repeat."""
    walk, _ = any_walk(machine, rnd)
    for step in walk.steps:
        assert CANARY not in shown(step) + "".join(repr(value) for value in values_in(step) if isinstance(value, Value))
    for event, _ in walk.events:
        assert CANARY not in repr(event)


@every_peer
@often
@walks
def test_fn_54_no_credentials_are_shown(machine: ModuleType, rnd: Random) -> None:
    walk, _ = any_walk(machine, rnd)
    requests = [step.effect.request for step in walk.steps[:-1] if isinstance(step.effect, Send)]
    sent = {credentials for request in requests for _, credentials in request.headers if " " in credentials}
    hidden = {credentials.partition(" ")[2] for credentials in sent}
    assert not [one for one in hidden if any(one in shown(step) for step in walk.steps)]
