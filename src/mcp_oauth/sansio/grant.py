"""What is kept: the grants of one (server, account), and the client registrations that they share."""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec
from msgspec.structs import replace

from mcp_oauth.sansio.messages import DEADLINE
from mcp_oauth.sansio.values import Now, Secret, Value, fingerprint

Scopes = tuple[str, ...]

ClientKind = Literal["preregistered", "cimd", "dcr"]
AuthMethod = Literal["none", "client_secret_basic", "client_secret_post"]


class Registration(Value, frozen=True):
    """A client at one authorization server (RFC 7591 section 3.2.1)."""

    shown = ("issuer", "client_id", "kind", "auth_method", "redirect_uri")

    issuer: str
    client_id: str
    kind: ClientKind
    auth_method: AuthMethod
    redirect_uri: str | None = None
    """Byte for byte as registered; on loopback it may leave the port open. None: not known."""
    scopes: Scopes | None = None
    """What was asked for when it was registered; None: no `scope` member."""
    client_secret: Secret | None = None
    client_secret_expires_at: float | None = None
    """Wall seconds; None: never."""
    registration_client_uri: str | None = None
    registration_access_token: Secret | None = None


class Grant(Value, frozen=True):
    """What one authorization server granted, with all that a renewal or revocation needs (FN 1, FN 8)."""

    shown = ("issuer", "resource", "requested", "granted", "expires_at", "lineage", "generation")

    issuer: str
    registration: Registration
    token_endpoint: str
    access_token: Secret
    obtained_at: float
    """Wall seconds at which the token request was sent."""
    lineage: str
    """New with each login."""
    logged_in_at: float | None = None
    """Wall seconds of the login (RULES 3.4); None: unknown."""
    generation: int = 0
    """Renewals since the login."""
    expires_at: float | None = None
    """Wall seconds; None: unknown."""
    refresh_token: Secret | None = None
    parent: str | None = None
    """Fingerprint of the refresh token that this grant was renewed with."""
    resource: str | None = None
    """The `resource` parameter, byte for byte; None: not sent (FN 9)."""
    requested: Scopes | None = None
    """Scopes asked for; None: the parameter was left out."""
    granted: Scopes | None = None
    """Scopes known to be granted; None: unknown."""
    revocation_endpoint: str | None = None
    revocation_auth_methods: tuple[str, ...] | None = None
    extra_token_params: tuple[tuple[str, str], ...] = ()
    refused: str | None = None
    """Fingerprint of the refresh token that the server refused: dead (RULES 4.2)."""
    refused_because: str = ""
    """What a person is told of that, in whatever program a login is needed (RULES 4.15)."""
    client_refused: bool = False
    """It is dead because the server does not know the client any more (RULES 2.11)."""
    unanswered: bool = False
    """Its refresh token, or the one before, was sent and not answered: what comes of that is unknown (RULES 4.9)."""
    refusals: int = 0
    """Renewals in a row that were refused with another error than invalid_grant (FN 5)."""
    next_attempt_at: float | None = None
    """Wall seconds before which no renewal is tried."""
    renewals: tuple[float, ...] = ()
    """Wall seconds of the renewals of the last minute (RULES 3.4)."""


class LoginClaim(Value, frozen=True):
    """A login under way somewhere (RULES 4.13)."""

    shown = ("holder", "until")

    id: str
    holder: str
    until: float
    """Wall seconds at which another may take over."""


class Intent(Value, frozen=True):
    """A refresh token is about to be sent, under a lock that may lapse (RULES 4.7)."""

    shown = ("attempt", "presented", "holder", "send_until")

    attempt: str
    presented: str
    """Fingerprint of the refresh token."""
    holder: str
    send_until: float
    """Wall seconds after which its holder does not send it any more."""


class GrantRecord(Value, frozen=True, tag="grants-1"):
    """All that is kept for one (server URL, account)."""

    shown = ("server_url", "account", "grants", "current", "logged_out", "login")

    revision: str
    """Random, new with each save."""
    server_url: str
    account: str
    grants: tuple[Grant, ...] = ()
    """At most one for each issuer (RULES 4.1)."""
    current: str | None = None
    """The issuer whose grant is in use."""
    logged_out: bool = False
    resource_metadata_seen: bool = False
    """The server once published protected resource metadata (RULES 2.8)."""
    allowed_issuers: tuple[str, ...] = ()
    login: LoginClaim | None = None
    intent: Intent | None = None
    """Only in stores whose locks lapse; it is over when a grant is put into the record."""
    no_login_before: float | None = None
    """Wall seconds; a login that was denied or did not help is not repeated unasked (RULES 3.4)."""
    denied_scopes: tuple[Scopes, ...] = ()
    bound_clients: tuple[tuple[str, str], ...] = ()
    """Pre-registered clients, each with the issuer where it was first used: kept at a logout too (RULES 2.9)."""
    doubted: Registration | None = None
    """A dynamic registration with which a login timed out: the server may have forgotten it (FN 31)."""


class RegistrationRecord(Value, frozen=True, tag="registrations-1"):
    """Dynamic registrations at one issuer for one server origin (RULES 2.9)."""

    shown = ("registrations", "users")

    revision: str
    registrations: tuple[Registration, ...] = ()
    users: tuple[str, ...] = ()
    """Keys of the grant records that refer to them."""


Record = GrantRecord | RegistrationRecord


class Token(Value, frozen=True):
    """What a caller gets: an access token and what is known about it."""

    shown = ("issuer", "expires_at", "requested", "granted", "fingerprint")

    access_token: Secret
    issuer: str
    fingerprint: str
    obtained_at: float
    """Wall seconds."""
    expires_at: float | None
    """Wall seconds; None: unknown."""
    requested: Scopes | None
    granted: Scopes | None


def encode(record: Record) -> bytes:
    """The stored form of a record: JSON, secret."""
    return msgspec.json.encode(record)


def decode(data: bytes) -> Record | None:
    """The record in its stored form, or None if this version cannot read it."""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


_decoder: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)


def grant_key(server_url: str, account: str) -> str:
    """Where the record of a server and an account is stored (RULES 4.1)."""
    return "grant-" + digest(server_url, account)


def registration_key(issuer: str, server_origin: str) -> str:
    """Where the dynamic registrations are stored that servers of one origin use at one issuer (RULES 2.9)."""
    return "registration-" + digest(issuer, server_origin)


def digest(*parts: str) -> str:
    """What stands for some texts in the key of a record: SHA-256 over each with its length before it (RULES 4.1)."""
    framed = b"".join(len(raw).to_bytes(4, "big") + raw for raw in (p.encode("utf-8", "surrogatepass") for p in parts))
    return hashlib.sha256(framed).hexdigest()


def token_of(grant: Grant) -> Token:
    """The caller's view of a grant."""
    return Token(
        grant.access_token,
        grant.issuer,
        fingerprint(grant.access_token),
        grant.obtained_at,
        grant.expires_at,
        grant.requested,
        grant.granted,
    )


def current_grant(record: GrantRecord | None) -> Grant | None:
    """The grant in use, if there is one."""
    if record is None or record.logged_out:
        return None
    return next((grant for grant in record.grants if grant.issuer == record.current), None)


def with_grant(record: GrantRecord, grant: Grant) -> GrantRecord:
    """The record with this grant as the one in use; those of other issuers stay."""
    others = tuple(other for other in record.grants if other.issuer != grant.issuer)
    return replace(record, grants=(*others, grant), current=grant.issuer, logged_out=False, intent=None)


def leeway(obtained_at: float, expires_at: float, jitter: float) -> float:
    """Seconds before expiry at which a token is renewed: a tenth of its life, at most 60, less some jitter (FN 11)."""
    return min(60.0, max(0.0, expires_at - obtained_at) / 10) * (1 - jitter / 5)


def alive(token: Token | Grant, now: Now) -> bool:
    """Not known to have expired."""
    return token.expires_at is None or now.wall < token.expires_at


def ran_out(token: Token | Grant | None, now: Now) -> bool:
    """Not alive any more, and it was meant to live for longer than its way to a server takes."""
    if token is None or token.expires_at is None:
        return False
    return token.obtained_at + DEADLINE < token.expires_at <= now.wall


def fresh(token: Token | Grant, now: Now, jitter: float) -> bool:
    """Alive, and not yet in its leeway."""
    if token.expires_at is None:
        return True
    return now.wall < token.expires_at - leeway(token.obtained_at, token.expires_at, jitter)


def same_tokens(one: Grant, other: Grant) -> bool:
    """Both came with one token answer."""
    return (one.issuer, one.access_token, one.refresh_token) == (other.issuer, other.access_token, other.refresh_token)


def renewable(grant: Grant) -> bool:
    """It has a refresh token that no server has refused."""
    return grant.refresh_token is not None and grant.refused != fingerprint(grant.refresh_token)
