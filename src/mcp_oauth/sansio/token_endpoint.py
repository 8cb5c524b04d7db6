"""The token endpoint (RFC 6749 section 3.2): pairs of functions that make a request and judge its answer.

`code_request` and `refresh_request` make one, `read` judges any. Exactly one client authentication method goes with
each request (RFC 6749 section 2.3).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, quote_plus, unquote_plus

from msgspec.structs import replace

from mcp_oauth.sansio.errors import Failure, Reason, Secrets, failure, refused
from mcp_oauth.sansio.grant import AuthMethod, Registration, Scopes
from mcp_oauth.sansio.messages import (
    Headers,
    Request,
    Response,
    header,
    number_member,
    post_form,
    printable,
    read_document,
    text_member,
)
from mcp_oauth.sansio.plan import Params
from mcp_oauth.sansio.values import Now, Secret, Value

LONGEST_LIFE = 10 * 365 * 86400.0
"""Seconds: a token that claims to live longer is taken to live this long."""

_TOKEN = re.compile(r"[\x21-\x7e]+")
_SECRET_PARAMS = frozenset({"client_secret", "code", "code_verifier", "refresh_token", "token"})


class TokenAnswer(Value, frozen=True):
    """A successful answer (RFC 6749 section 5.1)."""

    shown = ("expires_at", "scopes")

    access_token: Secret
    obtained_at: float
    """Wall seconds at which the request was sent."""
    expires_at: float | None
    """Wall seconds; None: the answer does not say."""
    refresh_token: Secret | None
    scopes: Scopes | None
    """None: the answer does not say, so what was asked for was granted."""


def choose_auth_method(
    registered: str | None, secret: str | None, supported: tuple[str, ...] | None
) -> AuthMethod | None:
    """The client authentication method (RFC 7591 section 2, RFC 8414 section 2), or None: one that we do not have.

    `registered` is what the registration says: it is obeyed. Else, with a secret, `supported` decides, which is what
    the metadata lists (nothing: client_secret_basic).
    """
    if registered is not None:
        method = KNOWN_METHODS.get(registered)
        return method if method == "none" or secret is not None else None
    if secret is None:
        return "none"
    if not supported:
        return "client_secret_basic"
    return next((method for name, method in KNOWN_METHODS.items() if name in supported), None)


KNOWN_METHODS: Mapping[str, AuthMethod] = {
    "client_secret_basic": "client_secret_basic",
    "client_secret_post": "client_secret_post",
    "none": "none",
}
"""By name; the first are preferred."""


def authenticate(client: Registration, method: AuthMethod) -> tuple[Headers, Params]:
    """The headers and parameters that authenticate a client."""
    secret = client.client_secret or ""
    if method == "client_secret_basic":
        # RFC 6749 section 2.3.1: both are form-encoded first, so that a colon in them does no harm.
        pair = f"{quote_plus(client.client_id)}:{quote_plus(secret)}".encode("ascii")
        return (("authorization", "Basic " + base64.b64encode(pair).decode("ascii")),), ()
    if method == "client_secret_post":
        return (), (("client_id", client.client_id), ("client_secret", secret))
    return (), (("client_id", client.client_id),)


def request(url: str, client: Registration, params: Params, method: AuthMethod | None = None) -> Request:
    """A form request with client authentication; `method` where the endpoint has one of its own (RULES 2.18)."""
    headers, credentials = authenticate(client, method or client.auth_method)
    return post_form(url, params + credentials, headers)


def code_request(
    url: str,
    client: Registration,
    *,
    code: str,
    verifier: str,
    redirect_uri: str,
    resource: str | None,
    extra: Params = (),
) -> Request:
    """Exchange an authorization code (RFC 6749 section 4.1.3, RFC 7636 section 4.5, RFC 8707 section 2.2)."""
    params = (
        ("grant_type", "authorization_code"),
        ("code", code),
        ("redirect_uri", redirect_uri),
        ("code_verifier", verifier),
    )
    return request(url, client, params + _resource(resource) + extra)


def refresh_request(
    url: str, client: Registration, *, refresh_token: str, resource: str | None, extra: Params = ()
) -> Request:
    """Renew a grant (RFC 6749 section 6). No `scope`: the same as granted (RULES 2.15)."""
    params = (("grant_type", "refresh_token"), ("refresh_token", refresh_token))
    return request(url, client, params + _resource(resource) + extra)


def _resource(resource: str | None) -> Params:
    return () if resource is None else (("resource", resource),)


def read(response: Response, url: str, sent: Now, reason: Reason, *, hide: Secrets = ()) -> TokenAnswer | Failure:
    """Judge an answer. `sent` is when the request went out; `reason` is that of a refusal; `hide` is never repeated.

    An `error` wins over any status (FN 42), and so does Slack's `ok: false`. A success that breaks RFC 6749
    section 5.1 is `token-unreadable`.
    """
    document = read_document(response)
    error = _error(document or {})
    if error is not None or response.status not in (200, 201):
        return _refusal(response, url, reason, error, hide)
    if document is None:
        return failure(Reason.TOKEN_UNREADABLE, "the token answer is neither JSON nor form-encoded", url=url)
    return _success(document, url, sent)


def _error(document: Mapping[str, Any]) -> str | None:
    error = text_member(document, "error")
    return error or ("refused" if document.get("ok") is False else None)


def _refusal(response: Response, url: str, reason: Reason, error: str | None, hide: Secrets) -> Failure:
    found = refused(reason, "the token endpoint", url, response, hide=hide)
    if error == "invalid_client" or (response.status == 401 and error is None):
        return replace(found, reason=Reason.CLIENT_REFUSED)
    return found


def secrets_of(request: Request) -> tuple[str, ...]:
    """What a form request carries that no message may repeat: its credentials, code, verifier and tokens."""
    params = parse_qsl(request.body.decode("ascii"), keep_blank_values=True)
    basic = (header(request.headers, "authorization") or "").removeprefix("Basic ")
    secret = unquote_plus(base64.b64decode(basic).decode("ascii").partition(":")[2])
    return (basic, secret, *(value for name, value in params if name in _SECRET_PARAMS))


def header_safe(token: str) -> bool:
    """An Authorization header can carry it (RFC 6750's b64token is narrower than what servers issue)."""
    return _TOKEN.fullmatch(token) is not None


def _success(document: Mapping[str, Any], url: str, sent: Now) -> TokenAnswer | Failure:
    access_token = text_member(document, "access_token")
    token_type = text_member(document, "token_type") or "Bearer"
    if access_token is None or not header_safe(access_token):
        message = "the token answer has no access_token that a header can carry"
        return failure(Reason.TOKEN_UNREADABLE, message, url=url)
    if token_type.lower() != "bearer":
        message = f"the token answer has the unknown token_type {printable(token_type, 40)!r}"
        return failure(Reason.TOKEN_UNREADABLE, message, url=url)
    life = number_member(document, "expires_in")
    scope = text_member(document, "scope")
    return TokenAnswer(
        access_token,
        sent.wall,
        None if life is None else sent.wall + min(max(life, 0.0), LONGEST_LIFE),
        text_member(document, "refresh_token"),
        None if scope is None else tuple(dict.fromkeys(scope.replace(",", " ").split())),  # GitHub, Slack: commas
    )
