"""The machine that reads one authorization server's metadata (RFC 8414, OpenID Connect Discovery): at most 12 effects.

The URLs and their order are the spec's ("Authorization Server Metadata Discovery"). The document's `issuer` must
equal the identifier that the URL was made from, character for character (RFC 8414 section 3.3).
"""

from __future__ import annotations

from urllib.parse import parse_qsl

from msgspec.structs import replace

from mcp_oauth.sansio import fetching, metadata, uris
from mcp_oauth.sansio.errors import Attempt, Failure, Reason, failure
from mcp_oauth.sansio.fetching import Fetched
from mcp_oauth.sansio.messages import Response
from mcp_oauth.sansio.metadata import AuthorizationServerMetadata
from mcp_oauth.sansio.plan import PROTECTED_PARAMS, Plan
from mcp_oauth.sansio.steps import Done, Event, Failed, Notice, Send, SendFailed, Step, Table, within
from mcp_oauth.sansio.values import Value

MOST_EFFECTS = 3 * fetching.MOST_EFFECTS


class Query(Value, frozen=True):
    """What is asked: the metadata of `issuer`, as the resource listed it."""

    shown = ("issuer", "others")

    plan: Plan
    issuer: str
    others: tuple[str, ...] = ()
    """Further spellings that the document may publish: the origin with a slash, where nobody listed an issuer."""


class Probing(Value, frozen=True, tag="issuer.Probing"):
    """Waits for one document; `rest` are the URLs to ask after a miss."""

    shown = ("query", "inner", "rest")

    query: Query
    rest: tuple[str, ...]
    attempts: tuple[Attempt, ...]
    inner: fetching.State


State = Probing


def begin(query: Query) -> Step[State, AuthorizationServerMetadata]:
    """Look for the metadata of an issuer.

    Fails with `no-issuer-metadata` or `server-unavailable` where another issuer may be tried (RULES 2.4), and with
    other reasons where a security check failed.
    """
    why = _issuer_refusal(query)
    if why:
        return Failed(why)
    return _next(query, uris.authorization_server_metadata_urls(query.issuer), ())


def advance(state: State, event: Event) -> Step[State, AuthorizationServerMetadata]:
    """Judge a document, or go on to the next URL."""
    return _fetched(state.query, state.rest, state.attempts, fetching.advance(state.inner, event))


def _issuer_refusal(query: Query) -> Failure | None:
    """RULES 1.3 and 2.5: an issuer has neither query nor fragment."""
    url = uris.split(query.issuer)
    if url is not None and (url.query is not None or url.fragment is not None):
        return failure(Reason.URL_REFUSED, "an issuer has no query and no fragment", url=query.issuer)
    return _url_refusal(query.plan, "issuer", query.issuer)


def _url_refusal(plan: Plan, what: str, url: str) -> Failure | None:
    why = uris.refusal(url, server=plan.server_url, allow_private=plan.allow_private)
    return failure(Reason.URL_REFUSED, f"{what} refused: {why}", url=url) if why else None


def _next(
    query: Query, urls: tuple[str, ...], attempts: tuple[Attempt, ...]
) -> Step[State, AuthorizationServerMetadata]:
    if not urls:
        message = f"{query.issuer} publishes no authorization server metadata"
        return Failed(failure(Reason.NO_ISSUER_METADATA, message, url=query.issuer, attempts=attempts))
    return _fetched(query, urls[1:], attempts, fetching.begin(urls[0]))


def _fetched(
    query: Query, rest: tuple[str, ...], attempts: tuple[Attempt, ...], step: Step[fetching.State, Fetched]
) -> Step[State, AuthorizationServerMetadata]:
    return within(
        step,
        lambda inner: Probing(query, rest, attempts, inner),
        lambda fetched: _judge(query, rest, attempts, fetched),
    )


def _judge(
    query: Query, rest: tuple[str, ...], attempts: tuple[Attempt, ...], fetched: Fetched
) -> Step[State, AuthorizationServerMetadata]:
    made = (*attempts, fetched.attempt)
    if fetched.unavailable:
        message = f"the authorization server's metadata could not be read: {fetched.attempt}"
        return Failed(failure(Reason.SERVER_UNAVAILABLE, message, url=fetched.attempt.url, attempts=made))
    found = metadata.authorization_server(fetched.document or {})
    if found is None:
        return _next(query, rest, (*attempts, fetched.miss))
    why = _issuer_mismatch(query, found, fetched.attempt.url) or _refusal(query.plan, found, fetched.attempt.url)
    return Failed(replace(why, attempts=made)) if why else Done(found, _notices(query, found))


def _issuer_mismatch(query: Query, found: AuthorizationServerMetadata, url: str) -> Failure | None:
    if found.issuer in (query.issuer, *query.others) or (query.issuer, found.issuer) in query.plan.trusted_issuer:
        return None
    message = f'asked for issuer "{query.issuer}", the document says "{uris.without_query(found.issuer)}"'
    return failure(Reason.ISSUER_MISMATCH, message, url=url)


def _refusal(plan: Plan, found: AuthorizationServerMetadata, url: str) -> Failure | None:
    if found.token_endpoint is None or found.authorization_endpoint is None:
        missing = "token_endpoint" if found.token_endpoint is None else "authorization_endpoint"
        return failure(Reason.BAD_ISSUER_METADATA, f"the metadata has no {missing}", url=url)
    for name in metadata.ENDPOINTS:
        endpoint: str | None = getattr(found, name)
        why = endpoint and (_fragment(name, endpoint) or _url_refusal(plan, name, endpoint))
        if why:
            return why
    if taken := _taken_params(found.authorization_endpoint):
        message = f"the authorization endpoint's own query holds {', '.join(taken)}"
        return failure(Reason.BAD_ISSUER_METADATA, message, url=url)
    if "S256" not in (found.code_challenge_methods_supported or ()) and not plan.assume_s256:
        return failure(Reason.NO_S256, f"{uris.without_query(found.issuer)} does not declare S256", url=url)
    return None


def _fragment(name: str, endpoint: str) -> Failure | None:
    """RFC 6749 sections 3.1 and 3.2: an endpoint has no fragment."""
    return failure(Reason.URL_REFUSED, f"{name} has a fragment", url=endpoint) if "#" in endpoint else None


def _taken_params(endpoint: str) -> list[str]:
    """RULES 2.6: protocol parameters in the authorization endpoint's own query."""
    query = endpoint.partition("?")[2]
    return sorted(PROTECTED_PARAMS.intersection(name for name, _ in parse_qsl(query, keep_blank_values=True)))


def _notices(query: Query, found: AuthorizationServerMetadata) -> tuple[Notice, ...]:
    if found.issuer in (query.issuer, *query.others):
        return ()
    published = uris.without_query(found.issuer)
    return (Notice("trusted-issuer", f"{published} is trusted for {query.issuer}, as configured"),)


TABLE: Table = {Probing: ((Send,), {Response: (Probing, Done, Failed), SendFailed: (Failed,)})}
