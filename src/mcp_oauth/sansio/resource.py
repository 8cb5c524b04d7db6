"""The machine that finds a server's protected resource metadata (RFC 9728): at most 24 effects.

It asks the URLs of the challenge, then the well-known URL with the server's path, then the one at the root (spec,
"Protected Resource Metadata Discovery Requirements"). A URL that must not be touched is passed over, as servers behind
a proxy advertise `http://` ones, but then none of the others found is no definite miss.
"""

from __future__ import annotations

from msgspec.structs import replace

from mcp_oauth.sansio import fetching, uris
from mcp_oauth.sansio.errors import Attempt, Failure, Reason, failure
from mcp_oauth.sansio.fetching import Fetched
from mcp_oauth.sansio.messages import Response
from mcp_oauth.sansio.metadata import ProtectedResourceMetadata, protected_resource
from mcp_oauth.sansio.plan import Plan
from mcp_oauth.sansio.steps import Done, Event, Failed, Notice, Send, SendFailed, Step, Table, within
from mcp_oauth.sansio.values import Value

MOST_CANDIDATES = 4
"""Metadata URLs of one challenge that are tried (FN 25)."""
MOST_EFFECTS = (MOST_CANDIDATES + 2) * fetching.MOST_EFFECTS


class Probing(Value, frozen=True, tag="resource.Probing"):
    """Waits for one document; `rest` are the URLs to ask after a miss."""

    shown = ("inner", "rest")

    plan: Plan
    rest: tuple[str, ...]
    attempts: tuple[Attempt, ...]
    inner: fetching.State


State = Probing


class Found(Value, frozen=True):
    """The metadata, or None: every URL was a definite miss."""

    shown = ("metadata", "attempts")

    metadata: ProtectedResourceMetadata | None
    attempts: tuple[Attempt, ...] = ()


def begin(plan: Plan, challenged: tuple[str, ...] = ()) -> Step[State, Found]:
    """Look for the metadata of `plan.server_url`; `challenged` are the `resource_metadata` URLs of its challenge."""
    known = uris.protected_resource_metadata_urls(plan.server_url)
    return _next(plan, tuple(dict.fromkeys(challenged[:MOST_CANDIDATES] + known)), ())


def advance(state: State, event: Event) -> Step[State, Found]:
    """Judge a document, or go on to the next URL."""
    return _fetched(state.plan, state.rest, state.attempts, fetching.advance(state.inner, event))


def _next(plan: Plan, urls: tuple[str, ...], attempts: tuple[Attempt, ...]) -> Step[State, Found]:
    if not urls:
        return _nothing(attempts)
    why = uris.refusal(urls[0], server=plan.server_url, allow_private=plan.allow_private)
    if why:
        return _next(plan, urls[1:], (*attempts, Attempt(uris.without_query(urls[0]), reason=why)))
    return _fetched(plan, urls[1:], attempts, fetching.begin(urls[0]))


def _nothing(attempts: tuple[Attempt, ...]) -> Step[State, Found]:
    untouched = next((attempt for attempt in attempts if attempt.status is None), None)
    if untouched is None:
        return Done(Found(None, attempts))
    message = f"metadata URL refused: {untouched.reason}"
    return Failed(failure(Reason.URL_REFUSED, message, url=untouched.url, attempts=attempts))


def _fetched(
    plan: Plan, rest: tuple[str, ...], attempts: tuple[Attempt, ...], step: Step[fetching.State, Fetched]
) -> Step[State, Found]:
    return within(
        step,
        lambda inner: Probing(plan, rest, attempts, inner),
        lambda fetched: _judge(plan, rest, attempts, fetched),
    )


def _judge(plan: Plan, rest: tuple[str, ...], attempts: tuple[Attempt, ...], fetched: Fetched) -> Step[State, Found]:
    made = (*attempts, fetched.attempt)
    if fetched.unavailable:
        message = f"the server's metadata could not be read: {fetched.attempt}"
        return Failed(failure(Reason.SERVER_UNAVAILABLE, message, url=fetched.attempt.url, attempts=made))
    metadata = protected_resource(fetched.document or {})
    if metadata is None:
        return _next(plan, rest, (*attempts, fetched.miss))
    why = _refusal(plan, metadata, fetched.attempt.url)
    return Failed(replace(why, attempts=made)) if why else Done(Found(metadata, made), _notices(plan, metadata))


def _refusal(plan: Plan, metadata: ProtectedResourceMetadata, url: str) -> Failure | None:
    resource, server = uris.without_query(metadata.resource), uris.without_query(plan.server_url)
    if plan.strict_resource and metadata.resource != plan.server_url:
        message = f"the metadata describes {resource}, and strict_resource demands {server}"
        return failure(Reason.RESOURCE_MISMATCH, message, url=url)
    if not uris.covers(metadata.resource, plan.server_url):
        message = f"the metadata describes {resource}, which does not cover {server}"
        return failure(Reason.RESOURCE_MISMATCH, message, url=url)
    methods = metadata.bearer_methods_supported
    if methods is not None and "header" not in methods:
        return failure(Reason.NO_HEADER_TOKENS, "the server takes no token in the Authorization header", url=url)
    if not metadata.authorization_servers:
        return failure(Reason.NO_AUTHORIZATION_SERVER, "the metadata names no authorization server", url=url)
    return None


def _notices(plan: Plan, metadata: ProtectedResourceMetadata) -> tuple[Notice, ...]:
    """A resource that is a parent of the server: its token is good for the siblings too (RULES 2.2)."""
    resource = uris.server_url(metadata.resource) or ""
    if resource.removesuffix("/") == plan.server_url.removesuffix("/"):
        return ()
    message = f"tokens are for {uris.without_query(resource)}, of which {uris.without_query(plan.server_url)} is a part"
    return (Notice("resource-broader-than-server", message),)


TABLE: Table = {Probing: ((Send,), {Response: (Probing, Done, Failed), SendFailed: (Failed,)})}
