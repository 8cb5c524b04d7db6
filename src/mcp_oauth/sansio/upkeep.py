"""The machine that keeps one grant: adopts, renews or logs in. One at a time for each grant in a process.

    Load -> (the stored token will do) Done
         -> renewal
         -> login

It alone locks, saves and opens a browser. At most 12255 effects, normally 1 (a stored token) or 5 (a renewal).
"""

from __future__ import annotations

from msgspec.structs import replace

from mcp_oauth.sansio import keeping, login, renewal, resource, revocation
from mcp_oauth.sansio.errors import Failure, Reason, failure
from mcp_oauth.sansio.grant import (
    Grant,
    GrantRecord,
    Scopes,
    Token,
    alive,
    current_grant,
    fresh,
    grant_key,
    ran_out,
    renewable,
    same_tokens,
    token_of,
)
from mcp_oauth.sansio.keeping import Keep, Kept, Outcome, grants
from mcp_oauth.sansio.plan import Plan, agrees, as_client_of
from mcp_oauth.sansio.resource import Found
from mcp_oauth.sansio.revocation import Revoked
from mcp_oauth.sansio.steps import (
    Await,
    Done,
    Event,
    Failed,
    Load,
    Loaded,
    Misuse,
    Need,
    Notice,
    Step,
    StoreFailed,
    Table,
    inside,
    noting,
    within,
)
from mcp_oauth.sansio.values import Now, Seed, Value, fingerprint

MOST_ROUNDS = 3
"""Times that the record is read anew because others changed it."""
MOST_EFFECTS = MOST_ROUNDS * (1 + resource.MOST_EFFECTS + renewal.MOST_EFFECTS + login.MOST_EFFECTS)
UNACCEPTED = 60.0
"""Seconds in which a renewed token that was never accepted is not renewed again (RULES 3.4)."""
FRUITLESS = 600.0
"""Seconds in which a login whose token was never accepted is neither renewed nor repeated unasked (RULES 3.4)."""


class Run(Value, frozen=True):
    """What one run is for."""

    shown = ("plan", "need", "rounds")

    plan: Plan
    need: Need
    seed: Seed
    key: str
    unsaved: GrantRecord | None = None
    """What the store would not take the last time (RULES 4.11)."""
    rounds: int = 0


class Reading(Value, frozen=True, tag="upkeep.Reading"):
    """What is stored?"""

    shown = ("run",)

    run: Run


class Restoring(Value, frozen=True, tag="upkeep.Restoring"):
    """Saves what the store would not take the last time."""

    shown = ("inner",)

    run: Run
    inner: keeping.State


class Revoking(Value, frozen=True, tag="upkeep.Revoking"):
    """Revokes what was not saved in time: nobody may use it any more."""

    shown = ("inner",)

    run: Run
    inner: revocation.State


class Checking(Value, frozen=True, tag="upkeep.Checking"):
    """A token was refused: is its issuer still the resource's?"""

    shown = ("inner",)

    run: Run
    record: GrantRecord
    inner: resource.State


class Renewing(Value, frozen=True, tag="upkeep.Renewing"):
    """Renews the grant."""

    shown = ("inner",)

    run: Run
    inner: renewal.State


class LoggingIn(Value, frozen=True, tag="upkeep.LoggingIn"):
    """Logs in."""

    shown = ("inner",)

    run: Run
    inner: login.State


State = Reading | Restoring | Revoking | Checking | Renewing | LoggingIn
Out = Step[State, Outcome]


def begin(plan: Plan, need: Need, seed: Seed, unsaved: GrantRecord | None = None) -> Out:
    """Get a token that serves `need`. `unsaved` is that of the last outcome: it stays so until a run is done.

    The outcome has no token where none is stored and the need is only `missing` or `expiring`: whether one is needed
    at all, the server's challenge tells; and where the need allows no login.
    """
    return _read(Run(plan, need, seed, grant_key(plan.server_url, plan.account), unsaved))


def begin_restoring(plan: Plan, seed: Seed, unsaved: GrantRecord | None) -> Out:
    """Save what the store would not take, or adopt what is there instead, and nothing more (RULES 4.11).

    It renews nothing, asks nobody, and may end without a token. As in `begin`, `unsaved` stays so until it is done.
    """
    return begin(plan, Need("missing", may_renew=False, may_login=False), seed, unsaved)


def advance(state: State, event: Event, *, now: Now) -> Out:
    """See the table below."""
    match state, event:
        case Reading(run), Loaded(record):
            return _restore(run, run.unsaved, grants(record), now)
        case Reading(run), StoreFailed(reason):
            return _from_memory(run, reason, now)
        case Restoring(run, inner), _:
            return _restoring(run, keeping.advance(inner, event, now=now), now)
        case Revoking(run, inner), _:
            return _revoking(run, revocation.advance(inner, event))
        case Checking(run, record, inner), _:
            return _checked(run, record, resource.advance(inner, event), now)
        case Renewing(run, inner), _:
            return _renewed(run, renewal.advance(inner, event, now=now))
        case LoggingIn(run, inner), _:
            return _logged_in(run, login.advance(inner, event, now=now))
        case _:
            raise Misuse(state, event)


# --- What is stored ---------------------------------------------------------------------------------------------------


def _read(run: Run) -> Out:
    return Await(Reading(run), Load(run.key))


def _read_again(run: Run) -> Out:
    if run.rounds + 1 == MOST_ROUNDS:
        return Failed(failure(Reason.STORE_CONTENDED, "the grant changes faster than it can be read"))
    return _read(replace(run, rounds=run.rounds + 1))


def _restore(run: Run, unsaved: GrantRecord | None, stored: GrantRecord | None, now: Now) -> Out:
    """First of all, save what is only in memory."""
    grant = current_grant(unsaved)
    run = replace(run, unsaved=None)
    if unsaved is None or grant is None:
        return _decide(run, stored, now)
    if _is_stored(grant, stored):
        # Not written again: others may have noted beside it what must stand, such as that they are about to renew it.
        return noting(_decide(run, stored, now), Notice("persisted", f"tokens from {grant.issuer} are saved after all"))
    claim = unsaved.login.id if unsaved.login else None
    keep = Keep(run.key, "stored", grant, run.seed.child("restore", run.rounds), run.need.unlike, claim)
    return _restoring(run, keeping.settle(keep, unsaved, stored, now), now)


def _is_stored(grant: Grant, stored: GrantRecord | None) -> bool:
    others = stored.grants if stored is not None and not stored.logged_out else ()
    return any(same_tokens(grant, other) for other in others)


def _restoring(run: Run, step: Step[keeping.State, Kept], now: Now) -> Out:
    return within(step, lambda inner: Restoring(run, inner), lambda kept: _restored(run, kept, now))


def _restored(run: Run, kept: Kept, now: Now) -> Out:
    unsaved = kept.then.unsaved if isinstance(kept.then, Outcome) else None
    if unsaved is not None:
        return _from_memory(replace(run, unsaved=unsaved), "new tokens could not be saved", now)
    return _read_again(run) if kept.revoke is None else _revoking(run, revocation.begin(kept.revoke))


def _revoking(run: Run, step: Step[revocation.State, tuple[Revoked, ...]]) -> Out:
    return within(step, lambda inner: Revoking(run, inner), lambda _: _read_again(run))


def _from_memory(run: Run, reason: str, now: Now) -> Out:
    """The store fails: what is in memory only still serves. Nothing else does: no successor of it could be saved."""
    grant = current_grant(run.unsaved)
    if grant is not None and _serves(run, grant, now):
        return Done(Outcome("stored", token_of(grant), unsaved=run.unsaved))
    return Failed(failure(Reason.STORE_FAILED, reason))


# --- What to do -------------------------------------------------------------------------------------------------------


def _decide(run: Run, record: GrantRecord | None, now: Now) -> Out:
    """A stored token, a renewal, a login: in this order."""
    run = replace(run, plan=as_client_of(run.plan, current_grant(record)))
    grant = _ours(run, record)
    if grant is not None and _serves(run, grant, now):
        return Done(Outcome("stored", token_of(grant)))
    if record is None or grant is None or not _may_renew(run, grant, now):
        return _login_or_nothing(run, record, None, now)
    if run.need.because == "refused":
        return _checked(run, record, resource.begin(run.plan, run.need.resource_metadata), now)
    return _renew(run, grant, now)


def _ours(run: Run, record: GrantRecord | None) -> Grant | None:
    """The grant in use, if it is one that this program could have got."""
    grant = current_grant(record)
    return grant if grant is not None and agrees(run.plan, grant) else None


def _serves(run: Run, grant: Grant, now: Now) -> bool:
    return run.need.because != "forced" and fresh(grant, now, run.plan.jitter) and _will_do(run.need, token_of(grant))


def _will_do(need: Need, token: Token) -> bool:
    return token.fingerprint != need.unlike and _covers(need, token.requested)


def _covers(need: Need, requested: Scopes | None) -> bool:
    """Scopes are compared with what was asked for: what was granted is for the server to judge (RULES 3.5)."""
    return need.because != "scope" or set(need.scopes or ()) <= set(requested or ())


def _may_renew(run: Run, grant: Grant, now: Now) -> bool:
    """More scopes need a login; a renewed token that was refused at once is not renewed again (RULES 3.4)."""
    need = run.need
    may = need.may_renew and need.because != "forced" and _covers(need, grant.requested)
    return may and renewable(grant) and not _fruitless(run, grant, now)


def _checked(run: Run, record: GrantRecord, step: Step[resource.State, Found], now: Now) -> Out:
    return within(
        step,
        lambda inner: Checking(run, record, inner),
        lambda found: _still_listed(run, record, found, now),
        lambda error: _unchecked(run, record, error, now),
    )


def _still_listed(run: Run, record: GrantRecord, found: Found, now: Now) -> Out:
    """RULES 3.1: renew at the recorded issuer while the resource lists it; else log in at the new one."""
    grant = current_grant(record)
    listed = found.metadata.authorization_servers if found.metadata else ()
    published = {published for entry, published in run.plan.trusted_issuer if entry in listed}
    if grant is not None and (not listed or grant.issuer in published.union(listed)):
        return _renew(run, grant, now)
    return _login_or_nothing(run, record, found, now)


def _unchecked(run: Run, record: GrantRecord, error: Failure, now: Now) -> Out:
    grant = current_grant(record)
    if grant is not None and error.reason is Reason.SERVER_UNAVAILABLE:
        return _renew(run, grant, now)
    return Failed(error)


def _renew(run: Run, grant: Grant, now: Now) -> Out:
    seed = run.seed.child("renewal", run.rounds)
    client = run.plan.preregistered
    step = renewal.begin(
        run.key,
        grant,
        unlike=run.need.unlike,
        seed=seed,
        jitter=run.plan.jitter,
        holder=run.plan.holder,
        client_secret=client.client_secret if client else None,
        hurried=run.need.because == "expiring" and alive(grant, now),
    )
    return _renewed(run, step)


def _renewed(run: Run, step: Step[renewal.State, Outcome]) -> Out:
    return within(step, lambda inner: Renewing(run, inner), lambda outcome: _after_renewal(run, outcome))


def _after_renewal(run: Run, outcome: Outcome) -> Out:
    """The new token; or read again: somebody else changed the grant, or it is renewed in vain."""
    # What could not be saved goes to the driver in any case: it is the only one that can keep it.
    if outcome.token is not None and (outcome.unsaved is not None or _will_do(run.need, outcome.token)):
        return Done(outcome)
    in_vain = outcome.token is not None or outcome.failure is not None
    need = replace(run.need, may_renew=not in_vain)
    return _read_again(replace(run, need=need, unsaved=outcome.unsaved))


def _login_or_nothing(run: Run, record: GrantRecord | None, found: Found | None, now: Now) -> Out:
    need, grant = run.need, _ours(run, record)
    if need.because in ("missing", "expiring"):
        # Even an expired token: its server may see that otherwise, by another clock, and tells if not.
        return Done(Outcome("stored", token_of(grant)) if grant is not None else Outcome())
    if not need.may_login:
        return Done(Outcome())
    if grant is not None and _unaccepted(need, grant) and _within(FRUITLESS, grant.logged_in_at, now):
        message = f"{run.plan.server_url} refuses the token of the last login"
        return Failed(failure(Reason.LOGIN_HELD_BACK, message))
    seed = run.seed.child("login", run.rounds)
    return _logged_in(run, login.begin(run.plan, run.key, need, record=record, known=found, seed=seed, now=now))


def _logged_in(run: Run, step: Step[login.State, Outcome]) -> Out:
    return within(step, lambda inner: LoggingIn(run, inner), lambda outcome: _after_login(run, outcome))


def _after_login(run: Run, outcome: Outcome) -> Out:
    return Done(outcome) if outcome.token is not None else _read_again(run)


def _fruitless(run: Run, grant: Grant, now: Now) -> bool:
    """The token was obtained a moment ago, and refused without ever having been accepted.

    Not if it may have run out on its way.
    """
    seconds = UNACCEPTED if grant.generation else FRUITLESS
    return not ran_out(grant, now) and _unaccepted(run.need, grant) and _within(seconds, grant.obtained_at, now)


def _unaccepted(need: Need, grant: Grant) -> bool:
    return need.never_accepted and fingerprint(grant.access_token) == need.unlike


def _within(seconds: float, since: float | None, now: Now) -> bool:
    return since is not None and 0 <= now.wall - since < seconds


TABLE: Table = {
    Reading: (
        (Load,),
        {
            Loaded: (Reading, Restoring, Revoking, Checking, Renewing, LoggingIn, Done, Failed),
            StoreFailed: (Done, Failed),
        },
    ),
    Restoring: inside(keeping.TABLE, Restoring, Revoking, Reading, Done, Failed),
    Revoking: inside(revocation.TABLE, Revoking, Reading),
    Checking: inside(resource.TABLE, Checking, Renewing, LoggingIn, Done, Failed),
    Renewing: inside(renewal.TABLE, Renewing, Reading, Done, Failed),
    LoggingIn: inside(login.TABLE, LoggingIn, Reading, Done, Failed),
}
