"""The machine of a login (RULES 4.13): at most 3870 effects, normally 8.

    Save(claim) -> discovery -> client -> authorization_code -> Save(grant)

It never holds the renewal lock. A claim in the record says who logs in and until when; it is renewed while the
person takes time, so that other processes wait for the result instead of opening a second browser, and take over
when its holder dies.
"""

from __future__ import annotations

from msgspec.structs import replace

from mcp_oauth.sansio import attempt, authorization_code, client, discovery, keeping, resource, revocation
from mcp_oauth.sansio.attempt import Chosen, Login
from mcp_oauth.sansio.authorization_code import Authorized, AwaitingRedirect
from mcp_oauth.sansio.client import Ready
from mcp_oauth.sansio.discovery import Discovered
from mcp_oauth.sansio.errors import Failure, Reason, failure
from mcp_oauth.sansio.grant import Grant, GrantRecord, Registration, current_grant
from mcp_oauth.sansio.keeping import Keep, Kept, Outcome, ending, grants
from mcp_oauth.sansio.plan import Plan
from mcp_oauth.sansio.steps import (
    Allowed,
    AskIssuer,
    Await,
    Conflict,
    Done,
    Event,
    Failed,
    Load,
    Loaded,
    Misuse,
    Need,
    Notice,
    Save,
    Saved,
    Sleep,
    Step,
    StillWaiting,
    StoreFailed,
    Table,
    UserFailed,
    Woke,
    inside,
    noting,
    within,
)
from mcp_oauth.sansio.values import Now, Seed, Value

MOST_POLLS = 360
"""Looks at somebody else's login, a second apart."""
MOST_SAVES = 8
"""Rounds of saves that meet conflicts."""
MOST_EFFECTS = (
    2 * MOST_POLLS
    + 2 * MOST_SAVES
    + 1
    + discovery.MOST_EFFECTS
    + 1
    + 2 * (client.MOST_EFFECTS + 2 * authorization_code.MOST_EFFECTS)
    + keeping.MOST_EFFECTS
    + revocation.MOST_EFFECTS
)


class Claiming(Value, frozen=True, tag="login.Claiming"):
    """The claim is being saved."""

    shown = ("login",)

    login: Login
    record: GrantRecord


class Elsewhere(Value, frozen=True, tag="login.Elsewhere"):
    """Somebody else is logging in."""

    shown = ("login",)

    login: Login


class Looking(Value, frozen=True, tag="login.Looking"):
    """Has the other one finished?"""

    shown = ("login",)

    login: Login


class Discovering(Value, frozen=True, tag="login.Discovering"):
    """Finds out how to log in."""

    shown = ("inner",)

    login: Login
    inner: discovery.State


class Asking(Value, frozen=True, tag="login.Asking"):
    """The application is asked whether it trusts the authorization server."""

    shown = ("login", "chosen")

    login: Login
    chosen: Chosen


class Readying(Value, frozen=True, tag="login.Readying"):
    """Gets a client and a redirect URI."""

    shown = ("inner",)

    login: Login
    chosen: Chosen
    inner: client.State


class Authorizing(Value, frozen=True, tag="login.Authorizing"):
    """The person decides, and the code is exchanged."""

    shown = ("inner",)

    login: Login
    chosen: Chosen
    ready: Ready
    inner: authorization_code.State


class Beating(Value, frozen=True, tag="login.Beating"):
    """The claim is being renewed while the person decides."""

    shown = ("inner",)

    login: Login
    chosen: Chosen
    ready: Ready
    inner: AwaitingRedirect


class Watching(Value, frozen=True, tag="login.Watching"):
    """Somebody else has taken over while the person decides: has he finished?"""

    shown = ("inner",)

    login: Login
    chosen: Chosen
    ready: Ready
    inner: AwaitingRedirect


class Saving(Value, frozen=True, tag="login.Saving"):
    """The new grant is being saved."""

    shown = ("inner",)

    inner: keeping.State


class Withdrawing(Value, frozen=True, tag="login.Withdrawing"):
    """The login has failed; the claim is being taken back."""

    shown = ("error",)

    login: Login
    error: Failure


class Revoking(Value, frozen=True, tag="login.Revoking"):
    """Revokes a new grant that nobody may use."""

    shown = ("then",)

    then: Outcome | Failure
    inner: revocation.State


State = (
    Claiming
    | Elsewhere
    | Looking
    | Discovering
    | Asking
    | Readying
    | Authorizing
    | Beating
    | Watching
    | Saving
    | Withdrawing
    | Revoking
)
Out = Step[State, Outcome]


def begin(
    plan: Plan,
    key: str,
    need: Need,
    *,
    record: GrantRecord | None,
    known: resource.Found | None,
    seed: Seed,
    now: Now,
) -> Out:
    """Log in. The outcome has no token where another login came first whose token is to be renewed: look again.

    `record` is what is stored now; `known` the protected resource metadata, if it has just been read.
    """
    why = attempt.held_back(plan, need, record, now)
    if why:
        return Failed(why)
    grant = current_grant(record)
    lineage = grant.lineage if grant is not None else None
    unlike = lineage if need.because == "forced" else None
    return _look(Login(plan, key, need, seed, record, seed.text("claim"), known, unlike, lineage), now)


def resume(login: Login, found: Discovered, now: Now) -> Out:
    """Log in where discovery is done and its result was judged; no claim tells others."""
    return _ready(login, Chosen(found, attempt.scopes_of(login, found)), None, now)


def advance(state: State, event: Event, *, now: Now) -> Out:
    """See the table below."""
    match state, event:
        case Claiming(login, record), Saved():
            return _discover(replace(login, record=record), now)
        case Claiming(login), Conflict(theirs):
            return _look(replace(login, record=grants(theirs)), now)
        case Elsewhere(login), Woke():
            return Await(Looking(replace(login, failed=False)), Load(login.key))
        case Looking(login), Loaded(record):
            return _look(replace(login, record=grants(record)), now)
        case Claiming(login), StoreFailed() if not login.failed:
            return Await(Looking(replace(login, failed=True)), Load(login.key))  # the claim may stand all the same
        case ((Claiming() | Looking()), StoreFailed(reason)):
            return Failed(failure(Reason.STORE_FAILED, reason))
        case Discovering(login, inner), _:
            return _discovered(login, discovery.advance(inner, event), now)
        case Asking(login, chosen), Allowed():
            return _ready(login, chosen, None, now)
        case Asking(login), UserFailed(reason):
            return _withdraw(login, failure(Reason.ISSUER_REFUSED, reason), now)
        case Readying(login, chosen, inner), _:
            return _readied(login, chosen, client.advance(inner, event, now=now), now)
        case Authorizing(login, chosen, ready, AwaitingRedirect() as inner), StillWaiting():
            return _beat(login, chosen, ready, inner, now)
        case Authorizing(login, chosen, ready, inner), _:
            return _authorized(login, chosen, ready, authorization_code.advance(inner, event, now=now), now)
        case Beating(login, chosen, ready, inner), Saved() | StoreFailed():
            return _go_on(login, chosen, ready, inner, now)
        case Watching(login, chosen, ready, inner), StoreFailed():
            return _go_on(login, chosen, ready, inner, now)
        case Beating(login, chosen, ready, inner), Conflict(theirs):
            return _seen(replace(login, record=grants(theirs)), chosen, ready, inner, now)
        case Watching(login, chosen, ready, inner), Loaded(theirs):
            return _seen(replace(login, record=grants(theirs)), chosen, ready, inner, now)
        case Saving(inner), _:
            return _saving(keeping.advance(inner, event, now=now))
        case Withdrawing(_, error), Saved() | StoreFailed():
            return Failed(error)
        case Withdrawing(login, error), Conflict(theirs):
            return _withdraw(replace(login, record=grants(theirs)), error, now)
        case Revoking(then, inner), _:
            return _revoking(then, revocation.advance(inner, event))
        case _:
            raise Misuse(state, event)


# --- May we, and does somebody else already? --------------------------------------------------------------------------


def _look(login: Login, now: Now) -> Out:
    """A peer's token, a peer's login, or ours."""
    if login.polls + login.saves > 0 and (theirs := _theirs(login, now)):
        return Done(theirs)
    claim = login.record.login if login.record is not None else None
    # In a web application the person has begun anew: nobody can wait there for a browser that was closed.
    if claim is None or claim.id == login.claim or login.plan.two_leg or not attempt.lasting(claim, now):
        return _claim(login, now)
    if login.polls == MOST_POLLS:
        return Failed(failure(Reason.LOGIN_ELSEWHERE, f"{claim.holder} has not finished its login"))
    notices = (Notice("login-elsewhere", f"{claim.holder} is logging in; waiting for it"),) if not login.polls else ()
    return Await(Elsewhere(replace(login, polls=login.polls + 1)), Sleep(1.0), notices)


def _theirs(login: Login, now: Now) -> Outcome | None:
    """What somebody else's login has brought; without a token: it is to be renewed first."""
    token = attempt.adoptable(login, now)
    if token is not None:
        return Outcome("stored", token)
    return Outcome() if attempt.to_be_renewed(login) else None


def _claim(login: Login, now: Now) -> Out:
    if login.saves == MOST_SAVES:
        return Failed(failure(Reason.STORE_CONTENDED, "the login could not be announced"))
    expected = login.record.revision if login.record is not None else None
    # A logout from here on is one that came between.
    claimed = attempt.claimed(login, now, attempt.TWO_LEG if login.plan.two_leg else attempt.EXPECTED)
    login, record = _next(login, replace(claimed, logged_out=False))
    return Await(Claiming(login, record), Save(login.key, record, expected))


def _next(login: Login, record: GrantRecord) -> tuple[Login, GrantRecord]:
    """A record with a new revision, and the login that has counted it."""
    login = replace(login, saves=login.saves + 1)
    return login, replace(record, revision=login.seed.text("revision", login.saves))


# --- How, and as which client -----------------------------------------------------------------------------------------


def _discover(login: Login, now: Now) -> Out:
    record = attempt.base(login)
    query = discovery.Query(
        login.plan,
        login.need.resource_metadata,
        record.current,
        record.resource_metadata_seen,
        tuple((grant.issuer, grant.token_endpoint) for grant in record.grants),
    )
    known = login.known
    return _discovered(login, discovery.begin(query) if known is None else discovery.resume(query, known), now)


def _discovered(login: Login, step: Step[discovery.State, Discovered], now: Now) -> Out:
    return within(
        step,
        lambda inner: Discovering(login, inner),
        lambda found: _choose(login, found, now),
        lambda error: _withdraw(login, error, now),
    )


def _choose(login: Login, found: Discovered, now: Now) -> Out:
    """Which scopes, and whether this authorization server may be used (RULES 2.9)."""
    issuer, plan = found.metadata.issuer, login.plan
    bound = attempt.bound_to(login)
    if bound and issuer not in bound:
        message = f"the client is in use at {bound[0]}, and the server now names {issuer}"
        return _withdraw(login, failure(Reason.CLIENT_OF_ANOTHER_ISSUER, message, url=issuer), now)
    chosen = Chosen(found, attempt.scopes_of(login, found))
    if issuer in attempt.base(login).allowed_issuers:
        return _ready(login, chosen, None, now)
    if plan.ask_issuer:
        return Await(Asking(login, chosen), AskIssuer(plan.server_url, issuer, chosen.scopes))
    notice = Notice("issuer-first-used", f"first login at {issuer} for {plan.server_url}")
    return noting(_ready(login, chosen, None, now), notice)


def _ready(login: Login, chosen: Chosen, forget: Registration | None, now: Now) -> Out:
    query = client.Query(
        login.plan,
        login.key,
        chosen.found,
        chosen.scopes,
        login.seed.child("client", int(login.again)),
        forget or attempt.forgotten(login, chosen.found),
    )
    return _readied(login, chosen, client.begin(query, now), now)


def _readied(login: Login, chosen: Chosen, step: Step[client.State, Ready], now: Now) -> Out:
    return within(
        step,
        lambda inner: Readying(login, chosen, inner),
        lambda ready: _authorize(login, chosen, ready, now),
        lambda error: _withdraw(login, error, now),
    )


# --- The person -------------------------------------------------------------------------------------------------------


def _authorize(login: Login, chosen: Chosen, ready: Ready, now: Now) -> Out:
    step = authorization_code.begin(
        login.plan,
        chosen.found.metadata,
        ready.client,
        redirect_uri=ready.redirect_uri,
        resource=attempt.resource_of(login.plan, chosen.found),
        scopes=chosen.scopes,
        consent=attempt.consent(login, chosen, ready),
        seed=login.seed.child("authorization", int(login.again)),
    )
    return _authorized(login, chosen, ready, step, now)


def _authorized(
    login: Login, chosen: Chosen, ready: Ready, step: Step[authorization_code.State, Authorized], now: Now
) -> Out:
    return within(
        step,
        lambda inner: Authorizing(login, chosen, ready, inner),
        lambda result: _granted(login, chosen, ready, result),
        lambda error: _unauthorized(login, chosen, ready, error, now),
    )


def _beat(login: Login, chosen: Chosen, ready: Ready, inner: AwaitingRedirect, now: Now) -> Out:
    """Renew the claim. The record that is being saved counts as seen: if the save fails, the next one tells.

    A claim of somebody else who has taken over is left in peace, and looked at: the person may still answer us first.
    """
    if attempt.taken_over(login, now):
        return Await(Watching(login, chosen, ready, inner), Load(login.key))
    expected = login.record.revision if login.record is not None else None
    record = replace(
        attempt.claimed(login, now, attempt.HEARTBEAT), revision=login.seed.text(f"beat/{login.again}", inner.round)
    )
    return Await(Beating(replace(login, record=record), chosen, ready, inner), Save(login.key, record, expected))


def _go_on(login: Login, chosen: Chosen, ready: Ready, inner: AwaitingRedirect, now: Now) -> Out:
    return _authorized(login, chosen, ready, authorization_code.advance(inner, StillWaiting(), now=now), now)


def _seen(login: Login, chosen: Chosen, ready: Ready, inner: AwaitingRedirect, now: Now) -> Out:
    """If somebody logged out, or took over and logged in, this login is of no use any more."""
    if login.record is not None and login.record.logged_out:
        return Failed(failure(Reason.LOGGED_OUT, "a logout came between"))
    theirs = _theirs(login, now)
    return Done(theirs) if theirs is not None else _go_on(login, chosen, ready, inner, now)


def _unauthorized(login: Login, chosen: Chosen, ready: Ready, error: Failure, now: Now) -> Out:
    """A server that has forgotten our registration gets a new one, once (RULES 2.11)."""
    if error.reason is Reason.CLIENT_REFUSED and ready.client.kind == "dcr" and not login.again:
        notice = Notice("registered-again", f"{ready.client.issuer} does not know {ready.client.client_id} any more")
        return noting(_ready(replace(login, again=True), chosen, ready.client, now), notice)
    silent = error.reason is Reason.LOGIN_TIMED_OUT and ready.recalled
    return _withdraw(login, error, now, ready.client if silent else None)


def _withdraw(login: Login, error: Failure, now: Now, doubted: Registration | None = None) -> Out:
    """Take the claim back, so that nobody waits for it; what others must know is remembered (RULES 3.4, 3.5, FN 31)."""
    record = login.record
    if record is None or record.login is None or record.login.id != login.claim or login.saves >= 2 * MOST_SAVES:
        return Failed(error)
    expected = record.revision
    login, record = _next(login, attempt.withdrawn(login, record, error, now, doubted))
    return Await(Withdrawing(login, error), Save(login.key, record, expected))


# --- The save ---------------------------------------------------------------------------------------------------------


def _granted(login: Login, chosen: Chosen, ready: Ready, result: Authorized) -> Out:
    grant = attempt.granted(login, chosen, ready, result)
    seen = attempt.base(login).resource_metadata_seen or chosen.found.listed is not None
    keep = Keep(login.key, "login", grant, login.seed.child("keep"), login.need.unlike, login.claim, seen)
    return _saving(keeping.begin(keep, attempt.base(login), login.record.revision if login.record else None))


def _saving(step: Step[keeping.State, Kept]) -> Out:
    return within(step, Saving, lambda kept: _kept(kept.then, kept.revoke))


def _kept(then: Outcome | Failure, revoke: Grant | None) -> Out:
    return ending(then) if revoke is None else _revoking(then, revocation.begin(revoke))


def _revoking(then: Outcome | Failure, step: Step[revocation.State, tuple[revocation.Revoked, ...]]) -> Out:
    return within(step, lambda inner: Revoking(then, inner), lambda _: ending(then))


_READY = (Readying, Authorizing, Withdrawing)

TABLE: Table = {
    Claiming: (
        (Save,),
        {
            Saved: (Discovering, Withdrawing),
            Conflict: (Claiming, Elsewhere, Done, Failed),
            StoreFailed: (Looking, Failed),
        },
    ),
    Elsewhere: ((Sleep,), {Woke: (Looking,)}),
    Looking: ((Load,), {Loaded: (Claiming, Elsewhere, Done, Failed), StoreFailed: (Failed,)}),
    Discovering: inside(discovery.TABLE, Discovering, Asking, *_READY),
    Asking: ((AskIssuer,), {Allowed: _READY, UserFailed: (Withdrawing,)}),
    Readying: inside(client.TABLE, *_READY, Failed),
    Authorizing: inside(authorization_code.TABLE, *_READY, Beating, Watching, Saving, Failed),
    Beating: (
        (Save,),
        {
            Saved: (Authorizing, Withdrawing, Failed),
            StoreFailed: (Authorizing, Withdrawing, Failed),
            Conflict: (Authorizing, Withdrawing, Done, Failed),
        },
    ),
    Watching: (
        (Load,),
        {Loaded: (Authorizing, Withdrawing, Done, Failed), StoreFailed: (Authorizing, Failed)},
    ),
    Saving: inside(keeping.TABLE, Saving, Revoking, Done, Failed),
    Withdrawing: ((Save,), {Saved: (Failed,), StoreFailed: (Failed,), Conflict: (Withdrawing, Failed)}),
    Revoking: inside(revocation.TABLE, Revoking, Done, Failed),
}
