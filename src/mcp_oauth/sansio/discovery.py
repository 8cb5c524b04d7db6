"""The machine that finds out how to log in at a server: at most 84 effects, normally 2.

    step = discovery.begin(Query(plan, challenged=("https://mcp.example.com/.well-known/oauth-protected-resource",)))
    # Await(FindingResource(...), Send(Request(GET, ...)))
    step = discovery.advance(step.state, Response(200, headers, body))
    # Done(Discovered(resource=..., metadata=...))

First the protected resource metadata (`resource`), then the metadata of one of its authorization servers (`issuer`).
A server without the former is one of the 2025-03-26 revision: it is its own authorization server (RULES 2.8).
"""

from __future__ import annotations

from msgspec.structs import replace

from mcp_oauth.sansio import issuer, resource, uris
from mcp_oauth.sansio.errors import Attempt, Failure, Reason, failure
from mcp_oauth.sansio.grant import Scopes
from mcp_oauth.sansio.messages import Response
from mcp_oauth.sansio.metadata import AuthorizationServerMetadata, ProtectedResourceMetadata
from mcp_oauth.sansio.plan import Plan
from mcp_oauth.sansio.resource import Found
from mcp_oauth.sansio.steps import Done, Event, Failed, Notice, Send, SendFailed, Step, Table, noting, within
from mcp_oauth.sansio.values import Value

MOST_ISSUERS = 5
"""Authorization servers of one resource that are tried."""
MOST_EFFECTS = resource.MOST_EFFECTS + MOST_ISSUERS * issuer.MOST_EFFECTS


class Query(Value, frozen=True):
    """What is asked."""

    shown = ("plan", "challenged", "stored_issuer")

    plan: Plan
    challenged: tuple[str, ...] = ()
    """The `resource_metadata` URLs of the challenge."""
    stored_issuer: str | None = None
    """The issuer of the grant that is kept: preferred while it is listed (RULES 2.4)."""
    resource_metadata_seen: bool = False
    """The server once published protected resource metadata: no guessing any more (RULES 2.8)."""
    known: tuple[tuple[str, str], ...] = ()
    """Issuers of kept grants, each with its token endpoint."""


class Discovered(Value, frozen=True):
    """How to log in."""

    shown = ("resource", "metadata", "scopes_supported", "guessed")

    resource: str
    """Byte for byte as the metadata has it; without metadata, the server URL."""
    metadata: AuthorizationServerMetadata
    scopes_supported: Scopes | None = None
    """The resource's, not the authorization server's."""
    listed: str | None = None
    """The issuer as the resource lists it; None: the resource lists none."""
    guessed: bool = False
    """The endpoints were guessed (2025-03-26)."""


class FindingResource(Value, frozen=True, tag="discovery.FindingResource"):
    """Looks for the protected resource metadata."""

    shown = ("inner",)

    query: Query
    inner: resource.State


class FindingIssuer(Value, frozen=True, tag="discovery.FindingIssuer"):
    """Reads the metadata of the first of `issuers`."""

    shown = ("inner", "issuers")

    query: Query
    found: ProtectedResourceMetadata
    issuers: tuple[str, ...]
    attempts: tuple[Attempt, ...]
    inner: issuer.State


class FindingOrigin(Value, frozen=True, tag="discovery.FindingOrigin"):
    """Reads the authorization server metadata at the MCP server's own origin (2025-03-26)."""

    shown = ("inner",)

    query: Query
    found: Found
    inner: issuer.State


State = FindingResource | FindingIssuer | FindingOrigin
Out = Step[State, Discovered]


def begin(query: Query) -> Out:
    """Find out how to log in at `query.plan.server_url`."""
    return _resource(query, resource.begin(query.plan, query.challenged))


def resume(query: Query, found: Found) -> Out:
    """The same, where the protected resource metadata has been read just now."""
    if found.metadata is None:
        origin, *others = _spellings(query.plan.server_url)
        return _origin(query, found, issuer.begin(issuer.Query(query.plan, origin, tuple(others))))
    return _issuers(query, found.metadata, _order(query, found.metadata.authorization_servers), found.attempts)


def advance(state: State, event: Event) -> Out:
    """Hand the answer to the machine inside."""
    match state:
        case FindingResource(query, inner):
            return _resource(query, resource.advance(inner, event))
        case FindingIssuer(query, found, issuers, attempts, inner):
            return _issuer(query, found, issuers, attempts, issuer.advance(inner, event))
        case _:
            return _origin(state.query, state.found, issuer.advance(state.inner, event))


def _resource(query: Query, step: Step[resource.State, Found]) -> Out:
    return within(step, lambda inner: FindingResource(query, inner), lambda found: resume(query, found))


def _order(query: Query, listed: tuple[str, ...]) -> tuple[str, ...]:
    """RULES 2.4: the kept grant's issuer, the caller's preference, then the document's order."""
    published = dict(query.plan.trusted_issuer)
    first = tuple(
        entry
        for wanted in (query.stored_issuer, query.plan.prefer_issuer)
        for entry in listed
        if wanted in (entry, published.get(entry, entry))
    )
    return tuple(dict.fromkeys(first + listed))[:MOST_ISSUERS]


def _issuers(
    query: Query, found: ProtectedResourceMetadata, issuers: tuple[str, ...], attempts: tuple[Attempt, ...]
) -> Out:
    return _issuer(query, found, issuers, attempts, issuer.begin(issuer.Query(query.plan, issuers[0])))


def _issuer(
    query: Query,
    found: ProtectedResourceMetadata,
    issuers: tuple[str, ...],
    attempts: tuple[Attempt, ...],
    step: Step[issuer.State, AuthorizationServerMetadata],
) -> Out:
    return within(
        step,
        lambda inner: FindingIssuer(query, found, issuers, attempts, inner),
        lambda metadata: _discovered(
            query, Discovered(found.resource, metadata, found.scopes_supported, issuers[0]), (issuers[0],)
        ),
        lambda error: _unavailable(query, found, issuers, replace(error, attempts=attempts + error.attempts)),
    )


def _unavailable(query: Query, found: ProtectedResourceMetadata, issuers: tuple[str, ...], error: Failure) -> Out:
    """Another one is tried only if this one is unavailable, never after a failed security check (RULES 2.4)."""
    if error.reason not in (Reason.NO_ISSUER_METADATA, Reason.SERVER_UNAVAILABLE) or len(issuers) == 1:
        return Failed(error)
    notice = Notice("issuer-unavailable", f"{issuers[0]} is unavailable; trying {uris.without_query(issuers[1])}")
    return noting(_issuers(query, found, issuers[1:], error.attempts), notice)


def _origin(query: Query, found: Found, step: Step[issuer.State, AuthorizationServerMetadata]) -> Out:
    server = query.plan.server_url
    return within(
        step,
        lambda inner: FindingOrigin(query, found, inner),
        lambda metadata: _discovered(query, Discovered(server, metadata), _spellings(server)),
        lambda error: _nothing(query, replace(error, attempts=found.attempts + error.attempts)),
    )


def _spellings(server: str) -> tuple[str, ...]:
    """The names that a server may have as its own authorization server: nobody lists one."""
    return uris.origin(server), uris.origin(server) + "/"


def _discovered(query: Query, found: Discovered, own: tuple[str, ...]) -> Out:
    """An issuer met under another name than its `own` must not be known with another token endpoint (RULES 2.5)."""
    name, endpoint = found.metadata.issuer, found.metadata.token_endpoint
    if name in own or dict(query.known).get(name, endpoint) == endpoint:
        return Done(found)
    message = f"{uris.without_query(name)} is known with another token endpoint than {own[0]} gives it"
    return Failed(failure(Reason.ISSUER_MISMATCH, message, url=endpoint))


def _nothing(query: Query, error: Failure) -> Out:
    """No metadata anywhere: guess, if that was asked for and nothing speaks against it (RULES 2.8)."""
    if error.reason is not Reason.NO_ISSUER_METADATA:
        return Failed(error)
    if _may_guess(query, error.attempts):
        return Done(Discovered(query.plan.server_url, _guess(uris.origin(query.plan.server_url)), guessed=True))
    message = f"{uris.without_query(query.plan.server_url)} publishes no OAuth metadata"
    return Failed(failure(Reason.NO_RESOURCE_METADATA, message, url=query.plan.server_url, attempts=error.attempts))


def _may_guess(query: Query, attempts: tuple[Attempt, ...]) -> bool:
    secret = query.plan.preregistered is not None and query.plan.preregistered.client_secret is not None
    absent = all(attempt.status in (404, 405, 410) for attempt in attempts)
    return query.plan.legacy_2025_03_26 and absent and not query.resource_metadata_seen and not secret


def _guess(origin: str) -> AuthorizationServerMetadata:
    """The default endpoints of the 2025-03-26 revision."""
    return AuthorizationServerMetadata(
        origin,
        f"{origin}/authorize",
        f"{origin}/token",
        f"{origin}/register",
        code_challenge_methods_supported=("S256",),
    )


TABLE: Table = {
    FindingResource: (
        (Send,),
        {Response: (FindingResource, FindingIssuer, FindingOrigin, Failed), SendFailed: (Failed,)},
    ),
    FindingIssuer: ((Send,), {Response: (FindingIssuer, Done, Failed), SendFailed: (FindingIssuer, Failed)}),
    FindingOrigin: ((Send,), {Response: (FindingOrigin, Done, Failed), SendFailed: (Failed,)}),
}
