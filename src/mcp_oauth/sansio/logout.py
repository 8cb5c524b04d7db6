"""The machine of a logout (RULES 3.8): at most 81 effects.

    Load -> Save(tombstone) -> revocation of each grant -> the registration, if nobody else uses it (RFC 7592)

The local end comes first and certainly: after the tombstone nobody uses or writes back the grant, whatever the
servers say then. What they said is the result.
"""

from __future__ import annotations

from msgspec.structs import replace

from mcp_oauth.sansio import registration, revocation, uris
from mcp_oauth.sansio.errors import Failure, Reason, failure
from mcp_oauth.sansio.grant import Grant, GrantRecord, Record, RegistrationRecord, grant_key, registration_key
from mcp_oauth.sansio.messages import Response
from mcp_oauth.sansio.plan import Plan
from mcp_oauth.sansio.revocation import Revoked
from mcp_oauth.sansio.steps import (
    Await,
    Conflict,
    Done,
    Event,
    Failed,
    Load,
    Loaded,
    Misuse,
    Notice,
    Save,
    Saved,
    Send,
    SendFailed,
    Step,
    StoreFailed,
    Table,
    inside,
    noting,
    within,
)
from mcp_oauth.sansio.values import Now, Seed, Value

MOST_SAVES = 8
"""Rounds of a save that meets conflicts."""
MOST_GRANTS = 8
"""Grants whose tokens are revoked: one for each issuer that the server ever had."""
MOST_EFFECTS = 1 + MOST_SAVES + MOST_GRANTS * (revocation.MOST_EFFECTS + 3)


class LoggedOut(Value, frozen=True):
    """What the servers said. The grant is gone from the store in any case."""

    shown = ("revoked", "unregistered")

    revoked: tuple[Revoked, ...] = ()
    """One for each token; empty where there was none, or no revocation endpoint."""
    unregistered: tuple[Failure | None, ...] = ()
    """One for each registration whose deletion was asked for; None: deleted."""


class Run(Value, frozen=True):
    """One logout."""

    shown = ("key", "saves")

    key: str
    server_url: str
    account: str
    seed: Seed
    revoke: bool = True
    """False: no server is told."""
    saves: int = 0
    grants: tuple[Grant, ...] = ()
    """Those still to be ended."""
    result: LoggedOut = LoggedOut()


class Reading(Value, frozen=True, tag="logout.Reading"):
    """What is stored?"""

    shown = ("run",)

    run: Run


class Burying(Value, frozen=True, tag="logout.Burying"):
    """The tombstone is being saved."""

    shown = ("run",)

    run: Run
    grants: tuple[Grant, ...]


class Revoking(Value, frozen=True, tag="logout.Revoking"):
    """The tokens of the first grant are being revoked."""

    shown = ("run", "inner")

    run: Run
    inner: revocation.State


class Counting(Value, frozen=True, tag="logout.Counting"):
    """Who else uses the registration of the first grant?"""

    shown = ("run",)

    run: Run


class Leaving(Value, frozen=True, tag="logout.Leaving"):
    """That this grant does not use the registration any more is being saved."""

    shown = ("run",)

    run: Run
    last: bool


class Unregistering(Value, frozen=True, tag="logout.Unregistering"):
    """The server is asked to delete the registration."""

    shown = ("run", "url")

    run: Run
    url: str


State = Reading | Burying | Revoking | Counting | Leaving | Unregistering
Out = Step[State, LoggedOut]


def begin(plan: Plan, seed: Seed, unsaved: GrantRecord | None = None, *, revoke: bool = True) -> Out:
    """Log out of a server, as an account: all its grants, those too that the store would not take (RULES 4.11).

    Without `revoke` it is forgotten here only: no server is told, and the registration stays for the next login.
    """
    grants = unsaved.grants if unsaved is not None else ()
    run = Run(grant_key(plan.server_url, plan.account), plan.server_url, plan.account, seed, revoke, grants=grants)
    return Await(Reading(run), Load(run.key))


def advance(state: State, event: Event, *, now: Now) -> Out:  # noqa: ARG001 - the signature of all machines
    """See the table below."""
    match state, event:
        case Reading(run), Loaded(record):
            return _bury(run, record)
        case Burying(run, grants), Saved():
            return _next(replace(run, grants=_newest(run.grants, grants)))
        case Burying(run), Conflict(theirs):
            return _bury(run, theirs)
        case ((Reading() | Burying()), StoreFailed(reason)):
            return Failed(failure(Reason.STORE_FAILED, reason))
        case Revoking(run, inner), _:
            return _revoking(run, revocation.advance(inner, event))
        case Counting(run), Loaded(record):
            return _counted(run, record)
        case Leaving(run, last), Saved():
            return _unregister(run) if last else _next_grant(run)
        case Unregistering(run, url), Response():
            return _unregistered(run, registration.deletion_failure(event, url))
        case Unregistering(run, url), SendFailed(reason):
            return _unregistered(run, failure(Reason.REGISTRATION_UNAVAILABLE, reason, url=url))
        case (Counting(run), StoreFailed()) | (Leaving(run), StoreFailed() | Conflict()):
            # Somebody else uses the registration, or nobody can tell: it stays.
            return _next_grant(run)
        case _:
            raise Misuse(state, event)


def _bury(run: Run, record: Record | None) -> Out:
    if not isinstance(record, GrantRecord) or (record.logged_out and not record.grants):
        return _next(replace(run, grants=_newest(run.grants, ())))
    if run.saves == MOST_SAVES:
        return Failed(failure(Reason.STORE_CONTENDED, "other processes kept changing the grant"))
    tombstone = GrantRecord(
        run.seed.text("revision", run.saves),
        run.server_url,
        run.account,
        logged_out=True,
        resource_metadata_seen=record.resource_metadata_seen,
        bound_clients=record.bound_clients,
    )
    buried = Burying(replace(run, saves=run.saves + 1), record.grants)
    return Await(buried, Save(run.key, tombstone, record.revision))


def _newest(unsaved: tuple[Grant, ...], stored: tuple[Grant, ...]) -> tuple[Grant, ...]:
    """One for each lineage: what was renewed and not saved stands for what is stored."""
    lineages = {grant.lineage for grant in unsaved}
    return (unsaved + tuple(grant for grant in stored if grant.lineage not in lineages))[:MOST_GRANTS]


def _next(run: Run) -> Out:
    if not (run.grants and run.revoke):
        return Done(run.result)
    return _revoking(run, revocation.begin(run.grants[0]))


def _next_grant(run: Run) -> Out:
    return _next(replace(run, grants=run.grants[1:]))


def _revoking(run: Run, step: Step[revocation.State, tuple[Revoked, ...]]) -> Out:
    return within(step, lambda inner: Revoking(run, inner), lambda revoked: _revoked(run, revoked))


def _revoked(run: Run, revoked: tuple[Revoked, ...]) -> Out:
    grant = run.grants[0]
    run = replace(run, result=replace(run.result, revoked=run.result.revoked + revoked))
    notices = tuple(_notice(grant, one) for one in revoked)
    if grant.registration.kind != "dcr":
        return noting(_next_grant(run), *notices)
    return Await(Counting(run), Load(_clients_key(run)), notices)


def _notice(grant: Grant, one: Revoked) -> Notice:
    what = one.token.replace("_", " ")
    if one.failure is None:
        return Notice("revoked", f"{grant.issuer} revoked the {what}")
    return Notice("revocation-failed", f"{grant.issuer} did not revoke the {what}: {one.failure.message}")


def _clients_key(run: Run) -> str:
    return registration_key(run.grants[0].issuer, uris.origin(run.server_url))


def _counted(run: Run, record: Record | None) -> Out:
    if not isinstance(record, RegistrationRecord):
        return _next_grant(run)
    users = tuple(user for user in record.users if user != run.key)
    left = replace(
        record,
        revision=run.seed.text("users", len(run.grants)),
        users=users,
        registrations=record.registrations if users else (),
    )
    return Await(Leaving(run, last=not users), Save(_clients_key(run), left, record.revision))


def _unregister(run: Run) -> Out:
    request = registration.deletion_request(run.grants[0].registration)
    if request is None:
        return _next_grant(run)
    return Await(Unregistering(run, request.url), Send(request))


def _unregistered(run: Run, result: Failure | None) -> Out:
    done = replace(run.result, unregistered=(*run.result.unregistered, result))
    return _next_grant(replace(run, result=done))


TABLE: Table = {
    Reading: ((Load,), {Loaded: (Burying, Revoking, Counting, Done), StoreFailed: (Failed,)}),
    Burying: (
        (Save,),
        {
            Saved: (Revoking, Counting, Done),
            Conflict: (Burying, Revoking, Counting, Done, Failed),
            StoreFailed: (Failed,),
        },
    ),
    Revoking: inside(revocation.TABLE, Revoking, Counting, Done),
    Counting: ((Load,), {Loaded: (Leaving, Counting, Revoking, Done), StoreFailed: (Counting, Revoking, Done)}),
    Leaving: (
        (Save,),
        {
            Saved: (Unregistering, Counting, Revoking, Done),
            Conflict: (Counting, Revoking, Done),
            StoreFailed: (Counting, Revoking, Done),
        },
    ),
    Unregistering: ((Send,), {Response: (Counting, Revoking, Done), SendFailed: (Counting, Revoking, Done)}),
}
