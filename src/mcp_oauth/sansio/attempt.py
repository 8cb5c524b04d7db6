"""One login: whether it may be, what it asks for, what is remembered of it. Looked at by `login`, which does it."""

from __future__ import annotations

from msgspec.structs import replace

from mcp_oauth.sansio import resource, scopes
from mcp_oauth.sansio.authorization_code import Authorized
from mcp_oauth.sansio.client import Ready
from mcp_oauth.sansio.discovery import Discovered
from mcp_oauth.sansio.errors import Failure, Reason, failure
from mcp_oauth.sansio.grant import (
    Grant,
    GrantRecord,
    LoginClaim,
    Registration,
    Scopes,
    Token,
    current_grant,
    fresh,
    renewable,
    token_of,
)
from mcp_oauth.sansio.plan import Plan, agrees
from mcp_oauth.sansio.steps import Need
from mcp_oauth.sansio.values import Now, Seed, Value, fingerprint

EXPECTED = 60.0
"""Seconds that a claim lasts before the browser opens."""
HEARTBEAT = 20.0
"""Seconds that a claim lasts while the browser is open; it is renewed every `authorization_code.PATIENCE`."""
TWO_LEG = 600.0
"""Seconds that a claim lasts whose redirect comes to another process."""
HOLD_BACK = 600.0
"""Seconds in which a denied or fruitless login is not repeated unasked (RULES 3.4)."""
MOST_DENIALS = 3
"""Step-ups that a person denies before none is tried any more, until a login succeeds."""
MAY_HELP = (Reason.USER_UNAVAILABLE, Reason.ISSUER_REFUSED, Reason.EXCHANGE_LOST)
"""Failures of a login after which another one is not held back: nobody was troubled, or it may just work."""


class Login(Value, frozen=True):
    """One login, and the record as it was last seen."""

    shown = ("plan", "need", "polls")

    plan: Plan
    key: str
    need: Need
    seed: Seed
    record: GrantRecord | None
    claim: str
    """The id of our claim."""
    known: resource.Found | None = None
    """The protected resource metadata, if it has just been read."""
    unlike: str | None = None
    """The lineage of the grant that a forced login replaces."""
    before: str | None = None
    """The lineage of the grant that was there, and would not do."""
    polls: int = 0
    saves: int = 0
    failed: bool = False
    """A claim could not be saved, or the answer to that was lost."""
    again: bool = False
    """The server had forgotten our registration: this is the second round (RULES 2.11)."""


class Chosen(Value, frozen=True):
    """What discovery decided for the rest of the login."""

    shown = ("found", "scopes")

    found: Discovered
    scopes: Scopes | None


def held_back(plan: Plan, need: Need, record: GrantRecord | None, now: Now) -> Failure | None:
    """Why no login may begin, or None: beyond the limits, denied before, nobody there, or fruitless a moment ago."""
    if need.because == "scope":
        wanted = scopes.to_step_up(plan, current_grant(record), need.scopes or ())
        if wanted is None:
            return failure(Reason.SCOPE_LIMIT, f"the server demands {' '.join(need.scopes or ())}")
        denied = record.denied_scopes if record is not None else ()
        if len(denied) >= MOST_DENIALS or any(set(wanted) == set(one) for one in denied):
            return failure(Reason.STEP_UP_DENIED, f"{' '.join(wanted)} was denied before")
    if not plan.interactive:
        return failure(Reason.AUTHORIZATION_REQUIRED, _nobody_there(plan, need, current_grant(record)))
    held_until = (record.no_login_before if record is not None else None) or 0.0
    # Further ahead than that it was noted by another clock (RULES 4.14).
    if need.because not in ("asked", "forced") and now.wall < held_until <= now.wall + HOLD_BACK:
        return failure(Reason.LOGIN_HELD_BACK, f"no new login at {plan.server_url} unasked")
    return None


def _nobody_there(plan: Plan, need: Need, grant: Grant | None) -> str:
    """What the login would be for, or why the grant that was there needs another one."""
    asked, why = "", ""
    if need.because == "scope":
        asked = f" for the scopes {' '.join(need.scopes)}" if need.scopes else ""
    elif grant is not None and grant.refused_because:
        why = f": {grant.refused_because}"
    return f"{plan.server_url} needs a login{asked}, and interactive=False{why}"


def adoptable(login: Login, now: Now) -> Token | None:
    """A token that came while we waited and will do."""
    grant = _another(login)
    return token_of(grant) if grant is not None and fresh(grant, now, login.plan.jitter) else None


def to_be_renewed(login: Login) -> bool:
    """Somebody has logged in while we waited, and that token has run out since."""
    grant = _another(login) if login.need.because != "forced" else None
    return grant is not None and grant.lineage != login.before and renewable(grant)


def _another(login: Login) -> Grant | None:
    """A grant that serves as well as the one that this login is for."""
    grant = current_grant(login.record)
    if grant is None or not agrees(login.plan, grant) or grant.lineage == login.unlike:
        return None
    enough = login.need.because != "scope" or set(login.need.scopes or ()) <= set(grant.requested or ())
    return grant if enough and fingerprint(grant.access_token) != login.need.unlike else None


def claimed(login: Login, now: Now, seconds: float) -> GrantRecord:
    """The record with our claim, which lasts that long (RULES 4.13)."""
    return replace(base(login), login=LoginClaim(login.claim, login.plan.holder, now.wall + seconds))


def base(login: Login) -> GrantRecord:
    """What is stored, or an empty record."""
    return login.record or GrantRecord("", login.plan.server_url, login.plan.account)


def bound_to(login: Login) -> tuple[str, ...]:
    """A pre-registered client without a configured issuer is bound to the one where it was first used (RULES 2.9)."""
    client = login.plan.preregistered
    if client is None or client.issuer is not None:
        return ()
    return tuple(issuer for client_id, issuer in base(login).bound_clients if client_id == client.client_id)


def scopes_of(login: Login, found: Discovered) -> Scopes | None:
    """RULES 2.15 and 3.5; what this issuer was asked for before is asked for again."""
    earlier = _earlier(login, found)
    if login.need.because == "scope":
        return scopes.to_step_up(login.plan, earlier, login.need.scopes or ())
    wanted = scopes.to_request(login.plan, login.need.scopes, found.scopes_supported, found.metadata)
    if login.plan.scopes is not None or earlier is None or earlier.requested is None:
        return wanted
    return scopes.union(earlier.requested, wanted or ())


def _earlier(login: Login, found: Discovered) -> Grant | None:
    return next((grant for grant in base(login).grants if grant.issuer == found.metadata.issuer), None)


def forgotten(login: Login, found: Discovered) -> Registration | None:
    """A client that the server did not know any more at the last renewal, or seems to have forgotten."""
    earlier, doubted = _earlier(login, found), base(login).doubted
    if earlier is not None and earlier.client_refused:
        return earlier.registration
    return doubted if doubted is not None and doubted.issuer == found.metadata.issuer else None


def resource_of(plan: Plan, found: Discovered) -> str | None:
    """The `resource` parameter (RULES 2.16): the metadata's, byte for byte, unless the caller wants otherwise."""
    match plan.resource:
        case "always":
            return found.resource
        case "never":
            return None
        case override:
            return override


def consent(login: Login, chosen: Chosen, ready: Ready) -> bool:
    """OpenID providers are told to ask the person: for offline access, and for the first use of a public client id."""
    issuer = chosen.found.metadata.issuer
    first = ready.client.kind == "cimd" and issuer not in base(login).allowed_issuers
    return chosen.found.metadata.openid and (first or scopes.OFFLINE in (chosen.scopes or ()))


def granted(login: Login, chosen: Chosen, ready: Ready, result: Authorized) -> Grant:
    """What is kept of a login that succeeded."""
    metadata, answer = chosen.found.metadata, result.answer
    return Grant(
        metadata.issuer,
        ready.client,
        metadata.token_endpoint or "",
        answer.access_token,
        answer.obtained_at,
        login.seed.text("lineage"),
        logged_in_at=answer.obtained_at,
        expires_at=answer.expires_at,
        refresh_token=answer.refresh_token,
        resource=resource_of(login.plan, chosen.found),
        requested=result.requested,
        granted=result.granted,
        revocation_endpoint=metadata.revocation_endpoint,
        revocation_auth_methods=metadata.revocation_endpoint_auth_methods_supported,
        extra_token_params=login.plan.token_params,
    )


def lasting(claim: LoginClaim, now: Now) -> bool:
    """It has not lapsed, and was not made by a clock that is far ahead of ours."""
    return now.wall < claim.until <= now.wall + TWO_LEG


def taken_over(login: Login, now: Now) -> bool:
    """Somebody else has claimed the login, after a logout or because we were not heard of for too long."""
    claim = login.record.login if login.record is not None else None
    return claim is not None and claim.id != login.claim and lasting(claim, now)


def withdrawn(login: Login, record: GrantRecord, error: Failure, now: Now, doubted: Registration | None) -> GrantRecord:
    """The record without our claim; that the login was denied or fruitless is remembered (RULES 3.4, 3.5)."""
    denied = _denied(login, error, record)
    fruitless = error.reason.stage in ("authorization", "token") and error.reason not in MAY_HELP and not denied
    return replace(
        record,
        login=None,
        no_login_before=now.wall + HOLD_BACK if fruitless else record.no_login_before,
        denied_scopes=record.denied_scopes + denied,
        doubted=doubted or record.doubted,
    )


def _denied(login: Login, error: Failure, record: GrantRecord) -> tuple[Scopes, ...]:
    if error.reason is not Reason.ACCESS_DENIED or login.need.because != "scope":
        return ()
    wanted = scopes.to_step_up(login.plan, current_grant(record), login.need.scopes or ())
    return (wanted,) if wanted else ()
