"""The machine that gets a client id (spec, "Client Registration"): at most 4 effects.

Pre-registered, else a client metadata document (CIMD), else dynamic registration (RFC 7591), else the typed failure
`client-information-needed`. Beside it: the metadata document of a CIMD client, and the deletion of a dynamic
registration (RFC 7592 section 2.3).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from mcp_oauth.sansio import uris
from mcp_oauth.sansio.errors import Failure, Reason, failure, refused
from mcp_oauth.sansio.grant import AuthMethod, ClientKind, Registration, Scopes
from mcp_oauth.sansio.messages import (
    USER_AGENT,
    Headers,
    Request,
    Response,
    header,
    number_member,
    post_json,
    printable,
    read_json,
    text_member,
    texts_member,
)
from mcp_oauth.sansio.metadata import AuthorizationServerMetadata
from mcp_oauth.sansio.plan import (
    Dynamic,
    Plan,
    PreRegistered,
    document_url_refusal,
    redirect_refusal,
)
from mcp_oauth.sansio.scopes import union
from mcp_oauth.sansio.steps import Await, Done, Event, Failed, Misuse, Notice, Send, SendFailed, Step, Table
from mcp_oauth.sansio.token_endpoint import KNOWN_METHODS, choose_auth_method, header_safe
from mcp_oauth.sansio.values import Now, Value

MOST_REDIRECTS = 3
MOST_EFFECTS = 1 + MOST_REDIRECTS
STALE = 60.0
"""Seconds before its end at which a client secret is not used any more."""


class Query(Value, frozen=True):
    """What is asked: a client for one login."""

    shown = ("plan", "metadata", "redirect_uri", "scopes")

    plan: Plan
    metadata: AuthorizationServerMetadata
    listed: str | None
    """The issuer as the resource lists it."""
    redirect_uri: str
    """The one that this login will use."""
    scopes: Scopes | None
    """The ones that this login will ask for."""
    known: tuple[Registration, ...] = ()
    """Earlier dynamic registrations at this issuer for this server's origin."""


class Registering(Value, frozen=True, tag="registration.Registering"):
    """Waits for the answer of the registration endpoint."""

    shown = ("url", "redirects")

    query: Query
    url: str
    redirects: int


State = Registering
Out = Step[State, Registration]


def kind(plan: Plan, metadata: AuthorizationServerMetadata) -> ClientKind | None:
    """Which kind of client a login will use, in the spec's order of priority."""
    if plan.preregistered is not None:
        return "preregistered"
    if plan.metadata_document is not None and metadata.client_id_metadata_document_supported:
        return "cimd"
    return "dcr" if plan.dynamic is not None and metadata.registration_endpoint is not None else None


def begin(query: Query, now: Now) -> Out:
    """Get a client."""
    plan, metadata = query.plan, query.metadata
    if plan.preregistered is not None:
        return _preregistered(query, plan.preregistered)
    if plan.metadata_document is not None and metadata.client_id_metadata_document_supported:
        document = plan.metadata_document
        return Done(Registration(metadata.issuer, document.url, "cimd", "none", document.redirect_uri))
    if plan.dynamic is None or metadata.registration_endpoint is None:
        message = f"no client is configured for {metadata.issuer}, and none can be registered there"
        return Failed(failure(Reason.CLIENT_INFORMATION_NEEDED, message, url=metadata.issuer))
    reusable = (known for known in query.known if usable(known, query, now))
    for known in reusable:
        return Done(known)
    return _send(query, metadata.registration_endpoint, 0)


def advance(state: State, event: Event, *, now: Now) -> Out:
    """Judge the registration endpoint's answer."""
    match event:
        case Response():
            return _answered(state, event, now)
        case SendFailed(reason):
            message = f"the registration endpoint could not be reached: {reason}"
            return Failed(failure(Reason.REGISTRATION_UNAVAILABLE, message, url=state.url))
        case _:
            raise Misuse(state, event)


def usable(known: Registration, query: Query, now: Now) -> bool:
    """An earlier dynamic registration serves this login: same redirect URI and scopes, its secret not at its end."""
    expires = known.client_secret_expires_at
    return (
        known.issuer == query.metadata.issuer
        and known.redirect_uri == query.redirect_uri
        and set(query.scopes or ()) <= set(known.scopes or ())  # without `scope` a server may allow none, or its own
        and (expires is None or now.wall < expires - STALE)
    )


def _preregistered(query: Query, client: PreRegistered) -> Out:
    metadata = query.metadata
    if client.issuer is not None and client.issuer not in (metadata.issuer, query.listed):
        message = f"the client is registered at {client.issuer}, and the server names {metadata.issuer}"
        return Failed(failure(Reason.CLIENT_OF_ANOTHER_ISSUER, message, url=metadata.issuer))
    supported = metadata.token_endpoint_auth_methods_supported
    method = choose_auth_method(client.auth_method, client.client_secret, supported)
    if method is None:
        return _no_method(metadata.issuer, (client.auth_method,) if client.auth_method else supported)
    return Done(
        Registration(
            metadata.issuer,
            client.client_id,
            "preregistered",
            method,
            client.redirect_uri,
            client_secret=client.client_secret,
        )
    )


def _no_method(issuer: str, methods: tuple[str, ...] | None) -> Out:
    message = f"{issuer} wants client authentication by {', '.join(methods or ())}, which this client does not have"
    return Failed(failure(Reason.CLIENT_INFORMATION_NEEDED, message, url=issuer))


def _send(query: Query, url: str, redirects: int) -> Out:
    client = _dynamic(query)
    headers: Headers = ()
    if client.initial_access_token is not None:
        headers = (("authorization", f"Bearer {client.initial_access_token}"),)
    return Await(Registering(query, url, redirects), Send(post_json(url, client_metadata(query), headers)))


def _dynamic(query: Query) -> Dynamic:
    assert query.plan.dynamic is not None  # noqa: S101 - `begin` has seen to it
    return query.plan.dynamic


def client_metadata(query: Query) -> dict[str, Any]:
    """The registration request (RFC 7591 section 2): standard members only, as strict servers want it (FN 34)."""
    client = _dynamic(query)
    document: dict[str, Any] = {
        "client_name": client.client_name,
        "redirect_uris": [query.redirect_uri, *client.more_redirect_uris],
        "grant_types": ["authorization_code", "refresh_token"],
        "response_types": ["code"],
        "token_endpoint_auth_method": _wanted_method(query.metadata.token_endpoint_auth_methods_supported),
        "application_type": application_type(query.redirect_uri),
    }
    document |= {"client_uri": client.client_uri} if client.client_uri is not None else {}
    scopes = _scopes(query)
    document |= {"scope": " ".join(scopes)} if scopes else {}
    return document | dict(client.extra)


def _scopes(query: Query) -> Scopes | None:
    """Those of the login, and those for later."""
    later = _dynamic(query).scopes
    return union(query.scopes or (), later) if later else query.scopes


def application_type(redirect_uri: str) -> str:
    """`native` for loopback and schemes of one's own, `web` else (spec, "Application Type")."""
    url = uris.split(redirect_uri)
    return "web" if url is not None and uris.place(url) is not uris.Place.LOOPBACK else "native"


def _wanted_method(supported: tuple[str, ...] | None) -> AuthMethod:
    """A public client where the server has them, else a secret in the first way that it lists.

    The order matters to the official SDK's server: it lists both ways, but with Basic it also demands a `client_id`
    in the body, which is a second method to others (FN 42).
    """
    if not supported or "none" in supported:
        return "none"
    methods: list[AuthMethod] = [method for name in supported if (method := KNOWN_METHODS.get(name))]
    return methods[0] if methods else "client_secret_basic"


def _answered(state: Registering, response: Response, now: Now) -> Out:
    query = state.query
    if response.status in (307, 308):
        return _redirected(state, response)
    document = read_json(response.body) or {}
    if response.status not in (200, 201) or text_member(document, "error"):
        unavailable = response.status == 429 or response.status >= 500
        reason = Reason.REGISTRATION_UNAVAILABLE if unavailable else Reason.REGISTRATION_REFUSED
        hide = (_dynamic(query).initial_access_token,)
        return Failed(refused(reason, "the registration endpoint", state.url, response, hide=hide))
    client_id = text_member(document, "client_id")
    if client_id is None:
        message = "the registration answer has no client_id"
        return Failed(failure(Reason.REGISTRATION_UNREADABLE, message, url=state.url))
    return _registered(query, document, client_id, now)


def _registered(query: Query, document: Mapping[str, Any], client_id: str, now: Now) -> Out:
    secret = text_member(document, "client_secret")
    registered = text_member(document, "token_endpoint_auth_method")
    supported = query.metadata.token_endpoint_auth_methods_supported
    method = choose_auth_method(registered, secret, supported)
    if method is None:
        return _no_method(query.metadata.issuer, (registered,) if registered else supported)
    issuer = query.metadata.issuer
    expires = number_member(document, "client_secret_expires_at") if secret else None
    client = Registration(
        issuer,
        client_id,
        "dcr",
        method,
        query.redirect_uri,
        scopes=_scopes(query),
        client_secret=secret,
        client_secret_expires_at=expires or None,
        registration_client_uri=_management_uri(query.metadata, text_member(document, "registration_client_uri")),
        registration_access_token=_access_token(text_member(document, "registration_access_token")),
    )
    if not _current(client, now):
        return Failed(failure(Reason.CLIENT_EXPIRED, f"{issuer} registered a client that has expired", url=issuer))
    return Done(client, (Notice("registered", printable(f"registered at {issuer} as {client_id}")),))


def _current(client: Registration, now: Now) -> bool:
    return client.client_secret_expires_at is None or now.wall < client.client_secret_expires_at


def _management_uri(metadata: AuthorizationServerMetadata, uri: str | None) -> str | None:
    """RULES 2.10: only on the registration endpoint's own origin."""
    return uri if uri and uris.same_origin(uri, metadata.registration_endpoint or "") else None


def _access_token(token: str | None) -> str | None:
    return token if token and header_safe(token) else None


def _redirected(state: Registering, response: Response) -> Out:
    """RULES 1.4: same origin, three at most, and never with an initial access token."""
    location = header(response.headers, "location") or ""
    target = uris.redirect_target(state.url, location) if location else None
    if target is None or state.redirects == MOST_REDIRECTS or _dynamic(state.query).initial_access_token:
        message = f"the registration endpoint redirects to {uris.without_query(location)}, which is not followed"
        return Failed(failure(Reason.REGISTRATION_REFUSED, message, url=state.url))
    return _send(state.query, target, state.redirects + 1)


TABLE: Table = {Registering: ((Send,), {Response: (Registering, Done, Failed), SendFailed: (Failed,)})}


# --- Client ID metadata documents -------------------------------------------------------------------------------------


def metadata_document(
    url: str,
    client_name: str,
    *,
    redirect_uris: tuple[str, ...] = ("http://127.0.0.1/callback", "http://[::1]/callback"),
    client_uri: str | None = None,
    scopes: Scopes | None = None,
) -> dict[str, Any]:
    """The document to publish at `url` (draft-ietf-oauth-client-id-metadata-document-00).

    The default redirect URIs have no port: RFC 8252 section 7.3 lets a client choose one, for IP literals only.
    Raises ValueError, with what is wrong, for a document that `metadata_document_problems` would not pass.
    """
    document: dict[str, Any] = {
        "client_id": url,
        "client_name": client_name,
        "redirect_uris": list(redirect_uris),
        "grant_types": ["authorization_code", "refresh_token"],
        "response_types": ["code"],
        "token_endpoint_auth_method": "none",
        "application_type": application_type(redirect_uris[0]) if redirect_uris else "native",
    }
    document |= {"client_uri": client_uri} if client_uri is not None else {}
    document |= {"scope": " ".join(scopes)} if scopes is not None else {}
    if problems := metadata_document_problems(document, url):
        raise ValueError("; ".join(problems))
    return document


def metadata_document_problems(document: Mapping[str, Any], url: str) -> tuple[str, ...]:
    """What an authorization server would refuse in a client metadata document that it gets from `url` (RULES 2.12)."""
    problems = [document_url_refusal(url)]
    if document.get("client_id") != url:
        problems.append("client_id must be the document's own URL, character for character")
    if text_member(document, "client_name") is None:
        problems.append("client_name is missing")
    if any(name in document for name in ("client_secret", "client_secret_expires_at")):
        problems.append("a published document must not hold a client_secret")
    if str(document.get("token_endpoint_auth_method", "")).startswith("client_secret"):
        problems.append("token_endpoint_auth_method must not be one with a shared secret")
    listed = texts_member(document, "redirect_uris")
    if not listed:
        problems.append("redirect_uris is missing")
    problems += [_listed_redirect_problem(uri) for uri in listed or ()]
    return tuple(problem for problem in problems if problem)


def _listed_redirect_problem(uri: str) -> str | None:
    if why := redirect_refusal(uri):
        return f"redirect URI {uris.without_query(uri)}: {why}"
    if re.match(r"http://localhost(?:[/?]|$)", uri, re.IGNORECASE):
        return "a localhost redirect URI needs a fixed port (RFC 8252 section 7.3 covers IP literals only)"
    return None


# --- RFC 7592 ---------------------------------------------------------------------------------------------------------


def deletion_request(client: Registration) -> Request | None:
    """Delete a dynamic registration (RFC 7592 section 2.3), or None where the server gave no means."""
    if client.registration_client_uri is None or client.registration_access_token is None:
        return None
    bearer = ("authorization", f"Bearer {client.registration_access_token}")
    return Request("DELETE", client.registration_client_uri, (("user-agent", USER_AGENT), bearer))


def deletion_failure(response: Response, url: str) -> Failure | None:
    """None: deleted, or unknown already (401, 404: RFC 7592 section 2.3)."""
    if response.status in (200, 204, 401, 404):
        return None
    # Without the server's own words, which might repeat the registration access token.
    message = f"the deletion of the registration answered HTTP {response.status}"
    return replace(failure(Reason.REGISTRATION_REFUSED, message, url=url), status=response.status)
