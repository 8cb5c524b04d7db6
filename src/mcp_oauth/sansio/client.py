"""The machine that decides as which client, and to which redirect URI, a login is made: at most 26 effects.

    Load(registrations) -> Listen -> registration -> Save(registrations)

The port of the listener must be known before a client is registered with it. Dynamic registrations are shared by the
servers of one origin, and by nobody else (RULES 2.9).
"""

from __future__ import annotations

import hashlib

from msgspec.structs import replace

from mcp_oauth.sansio import registration, uris
from mcp_oauth.sansio.discovery import Discovered
from mcp_oauth.sansio.errors import Reason, failure
from mcp_oauth.sansio.grant import Record, Registration, RegistrationRecord, Scopes, registration_key
from mcp_oauth.sansio.plan import Plan
from mcp_oauth.sansio.steps import (
    Await,
    Conflict,
    Done,
    Event,
    Failed,
    Listen,
    Listening,
    Load,
    Loaded,
    Misuse,
    Save,
    Saved,
    Step,
    StoreFailed,
    Table,
    UserFailed,
    inside,
    within,
)
from mcp_oauth.sansio.values import Now, Seed, Value, base64url

MOST_SAVES = 8
"""Rounds of saves that meet conflicts."""
MOST_EFFECTS = 2 + registration.MOST_EFFECTS + 2 * (MOST_SAVES + 2)


class Query(Value, frozen=True):
    """What is asked: a client for one login."""

    shown = ("found", "scopes")

    plan: Plan
    key: str
    """Of the grant record that will refer to the client."""
    found: Discovered
    scopes: Scopes | None
    seed: Seed
    forget: Registration | None = None
    """A registration that the server does not know any more (RULES 2.11)."""
    clients: RegistrationRecord | None = None
    """What is stored."""
    redirect_uri: str = ""
    saves: int = 0


class Ready(Value, frozen=True):
    """The client, and the redirect URI that is listened on."""

    shown = ("client", "redirect_uri")

    client: Registration
    redirect_uri: str
    recalled: bool = False
    """It was registered for an earlier login."""


class Recalling(Value, frozen=True, tag="client.Recalling"):
    """Earlier dynamic registrations are being read."""

    shown = ("query",)

    query: Query


class Forgetting(Value, frozen=True, tag="client.Forgetting"):
    """A registration that is of no use any more is being removed."""

    shown = ("query",)

    query: Query


class Preparing(Value, frozen=True, tag="client.Preparing"):
    """The listener is being opened."""

    shown = ("query",)

    query: Query


class Registering(Value, frozen=True, tag="client.Registering"):
    """Gets a client."""

    shown = ("inner",)

    query: Query
    inner: registration.State


class Remembering(Value, frozen=True, tag="client.Remembering"):
    """The registration is being saved."""

    shown = ("query", "client")

    query: Query
    client: Registration
    recalled: bool


State = Recalling | Forgetting | Preparing | Registering | Remembering
Out = Step[State, Ready]


def begin(query: Query, now: Now) -> Out:
    """Find or make the client."""
    if registration.kind(query.plan, query.found.metadata) != "dcr":
        return _prepare(query, now)
    return Await(Recalling(query), Load(_key(query)))


def advance(state: State, event: Event, *, now: Now) -> Out:
    """See the table below."""
    match state, event:
        case Recalling(query), Loaded(record):
            return _recalled(replace(query, clients=_clients(record)), now)
        case Recalling(), StoreFailed(reason):
            return Failed(failure(Reason.STORE_FAILED, reason))
        case Forgetting(query), Saved() | StoreFailed():
            return _prepare(query, now)
        case Forgetting(query), Conflict(theirs):
            return _recalled(replace(query, clients=_clients(theirs)), now)
        case Preparing(query), Listening(redirect_uri):
            return _register(replace(query, redirect_uri=redirect_uri), now)
        case Preparing(), UserFailed(reason):
            return Failed(failure(Reason.USER_UNAVAILABLE, reason))
        case Registering(query, inner), _:
            return _registered(query, registration.advance(inner, event, now=now))
        case Remembering(query, client, recalled), Saved() | StoreFailed():
            # A registration that cannot be saved serves this login all the same: the grant has its own copy.
            return Done(Ready(client, query.redirect_uri, recalled))
        case Remembering(query, client, recalled), Conflict(theirs):
            return _remember(replace(query, clients=_clients(theirs)), client, recalled)
        case _:
            raise Misuse(state, event)


def _clients(record: Record | None) -> RegistrationRecord | None:
    return record if isinstance(record, RegistrationRecord) else None


def _key(query: Query) -> str:
    return registration_key(query.found.metadata.issuer, uris.origin(query.plan.server_url))


def _recalled(query: Query, now: Now) -> Out:
    known = query.clients.registrations if query.clients else ()
    if query.clients is None or query.forget not in known or query.saves == MOST_SAVES:
        return _prepare(query, now)
    clients = replace(query.clients, registrations=tuple(client for client in known if client != query.forget))
    query, save = _save(query, clients)
    return Await(Forgetting(query), save)


def _save(query: Query, clients: RegistrationRecord) -> tuple[Query, Save]:
    expected = query.clients.revision if query.clients else None
    clients = replace(clients, revision=query.seed.text("clients", query.saves))
    return replace(query, clients=clients, saves=query.saves + 1), Save(_key(query), clients, expected)


def _prepare(query: Query, now: Now) -> Out:
    redirect_uri = _redirect_uri(query)
    if redirect_uri is None or query.plan.two_leg:
        return _register(replace(query, redirect_uri=redirect_uri or ""), now)
    return Await(Preparing(query), Listen(redirect_uri, _registered_port(redirect_uri, query.clients)))


def _redirect_uri(query: Query) -> str | None:
    """The configured one; or one of our own, with a path for each issuer, so that answers are not mixed up."""
    plan, metadata = query.plan, query.found.metadata
    kind = registration.kind(plan, metadata)
    if kind == "preregistered" and plan.preregistered is not None:
        return plan.preregistered.redirect_uri or "http://127.0.0.1/callback"
    if kind == "cimd" and plan.metadata_document is not None:
        return plan.metadata_document.redirect_uri
    if kind == "dcr" and plan.dynamic is not None:
        digest = hashlib.sha256(metadata.issuer.encode("utf-8", "surrogatepass")).digest()
        return plan.dynamic.redirect_uri or f"http://127.0.0.1/callback/{base64url(digest[:12])}"
    return None


def _registered_port(redirect_uri: str, clients: RegistrationRecord | None) -> int | None:
    """FN 37: the port of an earlier registration of the same redirect URI."""
    ours = uris.split(redirect_uri)
    for client in reversed(clients.registrations if clients else ()):
        theirs = uris.split(client.redirect_uri or "")
        if ours and theirs and (ours.host, ours.path) == (theirs.host, theirs.path):
            return theirs.port
    return None


def _register(query: Query, now: Now) -> Out:
    known = query.clients.registrations if query.clients else ()
    asked = registration.Query(
        query.plan,
        query.found.metadata,
        query.found.listed,
        query.redirect_uri,
        query.scopes,
        tuple(client for client in known if client != query.forget),
    )
    return _registered(query, registration.begin(asked, now))


def _registered(query: Query, step: Step[registration.State, Registration]) -> Out:
    return within(
        step,
        lambda inner: Registering(query, inner),
        lambda client: _remember(query, client, client in (query.clients.registrations if query.clients else ())),
    )


def _remember(query: Query, client: Registration, recalled: bool) -> Out:
    """Save a dynamic registration, and that this grant refers to it (RULES 2.9, 3.8)."""
    clients = query.clients or RegistrationRecord("")
    known = client in clients.registrations and query.key in clients.users
    if client.kind != "dcr" or known or query.saves == MOST_SAVES:
        return Done(Ready(client, query.redirect_uri, recalled))
    others = tuple(other for other in clients.registrations if other.redirect_uri != client.redirect_uri)
    users = tuple(dict.fromkeys((*clients.users, query.key)))
    query, save = _save(query, replace(clients, registrations=(*others, client), users=users))
    return Await(Remembering(query, client, recalled), save)


_PREPARED = (Preparing, Registering, Remembering, Done)

TABLE: Table = {
    Recalling: (
        (Load,),
        {Loaded: (Forgetting, *_PREPARED), StoreFailed: (Failed,)},
    ),
    Forgetting: (
        (Save,),
        {
            Saved: _PREPARED,
            StoreFailed: _PREPARED,
            Conflict: (Forgetting, *_PREPARED),
        },
    ),
    Preparing: ((Listen,), {Listening: (Registering, Remembering, Done, Failed), UserFailed: (Failed,)}),
    Registering: inside(registration.TABLE, Registering, Remembering, Done, Failed),
    Remembering: ((Save,), {Saved: (Done,), StoreFailed: (Done,), Conflict: (Remembering, Done)}),
}
