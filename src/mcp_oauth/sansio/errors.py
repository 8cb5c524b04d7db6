"""The error taxonomy: what can go wrong, at which stage, whose fault it is, and what to do about it."""

from __future__ import annotations

import re
from enum import Enum
from typing import Literal
from urllib.parse import quote_plus

from mcp_oauth.sansio.messages import Response, printable, read_document, text_member
from mcp_oauth.sansio.uris import without_query
from mcp_oauth.sansio.values import Value

Secrets = tuple[str | None, ...]

Stage = Literal["configuration", "discovery", "registration", "authorization", "token", "renewal", "storage", "access"]
Fault = Literal["caller", "resource server", "authorization server", "user", "network", "store"]


class Reason(str, Enum):
    """Every way in which a machine fails: a stable name, its stage, whose fault it is, and the cure."""

    stage: Stage
    fault: Fault
    cure: str

    def __new__(cls, name: str, stage: Stage, fault: Fault, cure: str) -> Reason:
        """Make a member whose value is its name on the wire."""
        member = str.__new__(cls, name)
        member._value_ = name
        member.stage, member.fault, member.cure = stage, fault, cure
        return member

    SERVER_URL = (
        "server-url",
        "configuration",
        "caller",
        "give the absolute https URL of the MCP server (http only for loopback)",
    )
    CONFIGURATION = ("configuration", "configuration", "caller", "correct the option that the message names")

    URL_REFUSED = (
        "url-refused",
        "discovery",
        "resource server",
        "the server names a URL that a client must not touch; if it is your own network, pass allow_private=True",
    )
    SERVER_UNAVAILABLE = (
        "server-unavailable",
        "discovery",
        "network",
        "mend what the message names, or try again later; nothing was discarded",
    )
    NO_RESOURCE_METADATA = (
        "no-resource-metadata",
        "discovery",
        "resource server",
        "the server publishes no protected resource metadata (RFC 9728) and no authorization server metadata; "
        "check the URL, or pass legacy_2025_03_26=True for servers of that revision",
    )
    NO_AUTHORIZATION_SERVER = (
        "no-authorization-server",
        "discovery",
        "resource server",
        "its protected resource metadata must list authorization_servers (RFC 9728 section 2)",
    )
    RESOURCE_MISMATCH = (
        "resource-mismatch",
        "discovery",
        "resource server",
        "the metadata describes another resource (RFC 9728 section 3.3); use the URL that it names",
    )
    NO_HEADER_TOKENS = (
        "no-header-tokens",
        "discovery",
        "resource server",
        "MCP needs tokens in the Authorization header; the metadata's bearer_methods_supported excludes it",
    )
    NO_ISSUER_METADATA = (
        "no-issuer-metadata",
        "discovery",
        "authorization server",
        "the authorization server must publish RFC 8414 or OpenID metadata",
    )
    ISSUER_MISMATCH = (
        "issuer-mismatch",
        "discovery",
        "authorization server",
        "the two must be equal (RFC 8414 section 3.3); if you trust this server, pass "
        "trusted_issuer={listed: published}",
    )
    BAD_ISSUER_METADATA = (
        "bad-issuer-metadata",
        "discovery",
        "authorization server",
        "its metadata lacks what a login needs; its operator must correct it",
    )
    NO_S256 = (
        "no-s256",
        "discovery",
        "authorization server",
        "it does not declare PKCE with S256, so the spec says refuse; if you know better, pass assume_s256=True",
    )
    ISSUER_REFUSED = (
        "issuer-refused",
        "authorization",
        "user",
        "the application did not allow a login at this authorization server",
    )

    CLIENT_INFORMATION_NEEDED = (
        "client-information-needed",
        "registration",
        "caller",
        "the server registers no clients by itself: register one there by hand and pass client=PreRegistered(...)",
    )
    REGISTRATION_REFUSED = (
        "registration-refused",
        "registration",
        "authorization server",
        "see what the server says; a server that admits known clients only needs client=PreRegistered(...)",
    )
    REGISTRATION_UNREADABLE = (
        "registration-unreadable",
        "registration",
        "authorization server",
        "its registration answer has no client_id (RFC 7591 section 3.2.1)",
    )
    REGISTRATION_UNAVAILABLE = (
        "registration-unavailable",
        "registration",
        "network",
        "mend what the message names, or try again later",
    )
    CLIENT_OF_ANOTHER_ISSUER = (
        "client-of-another-issuer",
        "registration",
        "caller",
        "the server now names another authorization server than the one where your client is registered; "
        "register there, and pass the new client and its issuer",
    )
    CLIENT_EXPIRED = ("client-expired", "registration", "caller", "its client secret has expired: get a new one")
    CLIENT_REFUSED = (
        "client-refused",
        "token",
        "caller",
        "the authorization server does not accept this client (invalid_client): check its id, secret and method",
    )

    AUTHORIZATION_REQUIRED = (
        "authorization-required",
        "authorization",
        "user",
        "a person must log in: allow it with interactive=True, here or in another program that shares the store",
    )
    USER_UNAVAILABLE = ("user-unavailable", "authorization", "user", "see the message; PasteBack() works over SSH")
    LOGIN_TIMED_OUT = (
        "login-timed-out",
        "authorization",
        "user",
        "nobody answered in the browser before the timeout: try again",
    )
    LOGIN_ELSEWHERE = (
        "login-elsewhere",
        "authorization",
        "user",
        "another process is logging in for this grant: finish that login",
    )
    LOGIN_HELD_BACK = (
        "login-held-back",
        "authorization",
        "user",
        "a login was denied or did not help within the last 10 minutes: authorize(force=True) asks all the same",
    )
    STEP_UP_DENIED = (
        "step-up-denied",
        "authorization",
        "user",
        "these scopes were asked for before and not granted: call authorize() to ask again",
    )
    SCOPE_LIMIT = ("scope-limit", "authorization", "caller", "the server demands scopes beyond your scope_limit")
    CALLBACK_DUPLICATE = ("callback-duplicate", "authorization", "authorization server", "log in again")
    CALLBACK_STATE = ("callback-state", "authorization", "user", "the redirect belongs to another login: log in again")
    CALLBACK_ISSUER = (
        "callback-issuer",
        "authorization",
        "authorization server",
        "the answer does not come from the authorization server that was asked (RFC 9207): do not go on",
    )
    CALLBACK_ERROR = ("callback-error", "authorization", "authorization server", "see what the server says")
    CALLBACK_WITHOUT_CODE = ("callback-without-code", "authorization", "authorization server", "log in again")
    ACCESS_DENIED = ("access-denied", "authorization", "user", "the login was denied: allow it, or use another account")

    EXCHANGE_REFUSED = ("exchange-refused", "token", "authorization server", "see what the server says; log in again")
    EXCHANGE_LOST = (
        "exchange-lost",
        "token",
        "network",
        "the code may have been used, and a code is used once: log in again",
    )
    TOKEN_UNREADABLE = ("token-unreadable", "token", "authorization server", "its token answer breaks RFC 6749 5.1")

    RENEWAL_UNAVAILABLE = (
        "renewal-unavailable",
        "renewal",
        "network",
        "the grant is kept: mend what the message names, or try again later",
    )
    RENEWAL_AMBIGUOUS = (
        "renewal-ambiguous",
        "renewal",
        "network",
        "the answer to a renewal was lost twice; the grant is kept, and the next request tries again. "
        "If the server had spent the refresh token, it will ask for a login then; where it never does, "
        "authorize(force=True)",
    )
    RENEWAL_REFUSED = (
        "renewal-refused",
        "renewal",
        "authorization server",
        "see what the server says; the grant is kept",
    )
    RENEWAL_BUSY = ("renewal-busy", "renewal", "store", "another process holds the lock of this grant")
    RENEWAL_TOO_OFTEN = (
        "renewal-too-often",
        "renewal",
        "resource server",
        "the server refuses tokens as fast as they are renewed; renewal pauses for a minute",
    )
    LOGGED_OUT = ("logged-out", "renewal", "user", "a logout happened meanwhile: call authorize() to log in again")

    STOPPED = ("stopped", "access", "caller", "the work was given up before its end: try again")
    BODY_NOT_REPLAYABLE = (
        "body-not-replayable",
        "access",
        "caller",
        "a token is there now: send the request again, or give its body as bytes so that it can be repeated",
    )

    STORE_FAILED = ("store-failed", "storage", "store", "see the message; nothing was overwritten")
    STORE_CONTENDED = ("store-contended", "storage", "store", "other processes kept changing this grant: try again")


class Attempt(Value, frozen=True):
    """One request on the way to a failure."""

    shown = ("url", "status", "reason")

    url: str
    """Without its query."""
    status: int | None = None
    """The HTTP status; None: there was no answer."""
    reason: str = ""
    """Why there was none, or why it was not used."""

    def __str__(self) -> str:
        parts = (f"HTTP {self.status}" if self.status else "", self.reason)
        return f"{self.url}: {', '.join(part for part in parts if part)}"


class Failure(Value, frozen=True):
    """Why a machine ended without its result. Holds no secret; texts of peers are made printable."""

    shown = ("reason", "message", "url", "status", "oauth_error", "attempts")

    reason: Reason
    message: str
    url: str | None = None
    """The URL concerned, without its query."""
    status: int | None = None
    """The HTTP status of the answer that decided."""
    oauth_error: str | None = None
    """The `error` code of the authorization server (RFC 6749 section 5.2)."""
    attempts: tuple[Attempt, ...] = ()

    def __str__(self) -> str:
        return f"{self.message} ({self.reason.cure})"


def failure(reason: Reason, message: str, *, url: str | None = None, attempts: tuple[Attempt, ...] = ()) -> Failure:
    """A failure that no HTTP answer explains."""
    return Failure(reason, printable(message, 2000), None if url is None else without_query(url), attempts=attempts)


_TOLD = ("error_description", "message", "msg")
"""Where servers tell what is wrong: by the standard, and otherwise (Supabase)."""


HIDDEN = "[hidden]"
"""What stands in a message where a secret stood."""

_HEAD = 16


def conceal(text: str, secrets: Secrets) -> str:
    """A peer's text without our own secrets, which it may have echoed: as they are, form-encoded, or cut short.

    Before it is cut by `printable`, so that no beginning of a secret is left over.
    """
    for secret in secrets:
        for form in (secret, quote_plus(secret, errors="replace")) if secret else ():
            text = re.sub(re.escape(form[:_HEAD]) + r"\S*", HIDDEN, text.replace(form, HIDDEN))
    return text


def refused(
    reason: Reason,
    what: str,
    url: str,
    response: Response,
    attempts: tuple[Attempt, ...] = (),
    *,
    hide: Secrets = (),
) -> Failure:
    """A failure that an HTTP answer explains, with the OAuth error and its description if the body has them.

    `hide` is what the message must not repeat.
    """
    document = read_document(response) or {}
    error = conceal(text_member(document, "error") or "", hide)
    told = conceal(next(filter(None, (text_member(document, name) for name in _TOLD)), ""), hide)
    parts = [f"{what} answered HTTP {response.status}"]
    parts += [printable(error, 80)] if error else []
    parts += [printable(told)] if told else []
    message = ": ".join(parts)
    code = printable(error, 80) if error else None
    return Failure(reason, message, without_query(url), response.status, code, attempts)
