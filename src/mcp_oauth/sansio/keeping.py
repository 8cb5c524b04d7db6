"""The machine that saves a grant just obtained, before anyone gets its token (RULES 4.10, 4.11): at most 10 effects.

    Save -> (a conflict) Save ...
         -> (a failure) Load -> Save

A save is judged by its revision alone. A lost answer is settled by reading. What a conflict means is the heart of
it: facts beat intents, the later fact wins, another login stands, and a logout is never undone.
"""

from __future__ import annotations

from msgspec.structs import replace

from mcp_oauth.sansio.errors import Failure, Reason, failure
from mcp_oauth.sansio.grant import (
    Grant,
    GrantRecord,
    LoginClaim,
    Record,
    Token,
    alive,
    current_grant,
    same_tokens,
    token_of,
    with_grant,
)
from mcp_oauth.sansio.steps import (
    Await,
    Conflict,
    Done,
    Event,
    Failed,
    How,
    Load,
    Loaded,
    Misuse,
    Notice,
    NoticeName,
    Save,
    Saved,
    Step,
    StoreFailed,
    Table,
)
from mcp_oauth.sansio.values import Now, Seed, Value, fingerprint

MOST_ROUNDS = 8
"""Saves, most of which met conflicts."""
MOST_FAILURES = 2
"""Saves that the store could not do, after which it is left in peace: each may have taken it long."""
MOST_EFFECTS = MOST_ROUNDS + MOST_FAILURES


class Outcome(Value, frozen=True):
    """How a renewal or a login ended. A token; or a failure that only a login mends; or neither: look again."""

    shown = ("how", "token", "failure")

    how: How = "none"
    token: Token | None = None
    failure: Failure | None = None
    unsaved: GrantRecord | None = None
    """What the store would not take: only in memory (RULES 4.11), to be given to the next `upkeep.begin`. Of a login
    it still has the claim, by which that is known again as ours.
    """


class Kept(Value, frozen=True):
    """What came of the save, and the grant that nobody may use and is to be revoked."""

    shown = ("then",)

    then: Outcome | Failure
    revoke: Grant | None = None


def ending(then: Outcome | Failure) -> Done[Outcome] | Failed:
    """The last step of a renewal or a login."""
    return Failed(then) if isinstance(then, Failure) else Done(then)


class Keep(Value, frozen=True):
    """What is to be saved, and for whom."""

    shown = ("key", "how", "rounds")

    key: str
    how: How
    grant: Grant
    seed: Seed
    unlike: str | None
    """Fingerprint of the access token that will not do."""
    claim: str | None = None
    """The id of the login's claim; None: a renewal."""
    resource_metadata_seen: bool = False
    rounds: int = 0
    failures: tuple[str, ...] = ()
    """Why the store could not do saves."""


class Saving(Value, frozen=True, tag="keeping.Saving"):
    """The record is on its way to the store."""

    shown = ("keep",)

    keep: Keep
    record: GrantRecord


class Settling(Value, frozen=True, tag="keeping.Settling"):
    """The store failed on the save: what has it kept?"""

    shown = ("keep",)

    keep: Keep
    record: GrantRecord


_SAVED: dict[How, NoticeName] = {"renewed": "renewed", "login": "logged-in", "stored": "persisted"}
"""What is said of a save; `stored` is what a store had not taken before."""

State = Saving | Settling
Out = Step[State, Kept]


def begin(keep: Keep, base: GrantRecord, expected: str | None) -> Out:
    """Put the grant into `base`, and save that over revision `expected`."""
    keep = replace(keep, rounds=keep.rounds + 1)
    seen = base.resource_metadata_seen or keep.resource_metadata_seen
    revision = keep.seed.text("keep", keep.rounds)
    record = replace(_with_mine(keep, base), resource_metadata_seen=seen, revision=revision)
    return Await(Saving(keep, record), Save(keep.key, record, expected))


def _with_mine(keep: Keep, base: GrantRecord) -> GrantRecord:
    record = with_grant(base, keep.grant)
    if keep.claim is None:
        # A renewal does not decide which issuer is in use: a login at another one may have come between.
        return replace(record, current=base.current)
    allowed = tuple(dict.fromkeys((*base.allowed_issuers, keep.grant.issuer)))
    return replace(
        record,
        login=None,
        no_login_before=None,
        allowed_issuers=allowed,
        bound_clients=_bound(keep.grant, base),
        denied_scopes=(),
        doubted=None,
    )


def _bound(grant: Grant, base: GrantRecord) -> tuple[tuple[str, str], ...]:
    """RULES 2.9: a pre-registered client belongs to the issuer where it is used."""
    client = grant.registration
    used = ((client.client_id, grant.issuer),) if client.kind == "preregistered" else ()
    return tuple(dict.fromkeys((*base.bound_clients, *used)))


def advance(state: State, event: Event, *, now: Now) -> Out:
    """See the table below."""
    match state, event:
        case Saving(keep, record), Saved(durable):
            return _saved(keep, record, durable)
        case Saving(keep, record), Conflict(theirs):
            return settle(keep, record, grants(theirs), now)
        case Saving(keep, record), StoreFailed(reason):
            keep = replace(keep, failures=(*keep.failures, reason))
            return Await(Settling(keep, record), Load(keep.key))
        case Settling(keep, record), Loaded(stored):
            settled = isinstance(stored, GrantRecord) and stored.revision == record.revision
            return _saved(keep, record, durable=False) if settled else settle(keep, record, grants(stored), now)
        case Settling(keep, record), StoreFailed(reason):
            return _unsaved(keep, record, reason)
        case _:
            raise Misuse(state, event)


def grants(record: Record | None) -> GrantRecord | None:
    """The record, if it is one of grants."""
    return record if isinstance(record, GrantRecord) else None


def _saved(keep: Keep, record: GrantRecord, durable: bool) -> Out:
    """Where a login at another issuer came between, its grant is the one in use: look again."""
    then = Outcome(keep.how, token_of(keep.grant)) if record.current == keep.grant.issuer else Outcome()
    done = Notice(_SAVED[keep.how], f"tokens from {keep.grant.issuer} are saved")
    doubt = Notice("not-durable", "a power failure may lose the new tokens: the store is not durable")
    return Done(Kept(then), (done,) if durable else (done, doubt))


def _unsaved(keep: Keep, record: GrantRecord, reason: str) -> Out:
    """Callers get the token all the same."""
    claim = LoginClaim(keep.claim, holder="", until=0.0) if keep.claim is not None else None
    unsaved = replace(with_grant(record, keep.grant), login=claim)
    notice = Notice("not-persisted", f"the new tokens could not be saved and are only in memory: {reason}")
    return Done(Kept(Outcome(keep.how, token_of(keep.grant), unsaved=unsaved)), (notice,))


def settle(keep: Keep, record: GrantRecord, theirs: GrantRecord | None, now: Now) -> Out:
    """Settle what `record` would have saved with what is stored instead."""
    if theirs is None or _ours(keep, theirs):
        return _again(keep, theirs or record, theirs.revision if theirs else None)
    if theirs.logged_out:
        message = "a logout came between; the new tokens are revoked"
        return Done(Kept(failure(Reason.LOGGED_OUT, message), revoke=keep.grant))
    other = _rival(keep, theirs)
    if other is not None and same_tokens(other, keep.grant):
        # Saved after all. It is not written again: others may have noted beside it what must stand.
        return _saved(keep, theirs, durable=False)
    if _mine_wins(keep, other, now):
        return _again(keep, theirs, theirs.revision)
    # The same lineage is one family at the server: to revoke mine would take theirs away.
    one_family = other is not None and other.lineage == keep.grant.lineage
    return Done(Kept(_instead(keep, theirs, now), revoke=None if one_family else keep.grant))


def _ours(keep: Keep, theirs: GrantRecord) -> bool:
    """The login's claim still stands: only a renewal came between."""
    return theirs.login is not None and theirs.login.id == keep.claim


def _rival(keep: Keep, theirs: GrantRecord) -> Grant | None:
    if keep.claim is not None:
        return current_grant(theirs)
    return next((grant for grant in theirs.grants if grant.issuer == keep.grant.issuer), None)


def _mine_wins(keep: Keep, other: Grant | None, now: Now) -> bool:
    """Whether the grant goes over the other one.

    A login: unless the other serves as well (RULES 4.3). A renewal: if the other was renewed from the same token and
    sent earlier, or is an ancestor of mine: what I renewed, be it a tombstone now, or what a store has fallen back to.
    Where there is none, a logout and a login elsewhere came between.
    """
    mine = keep.grant
    if keep.claim is not None:
        enough = other is not None and set(mine.requested or ()) <= set(other.requested or ())
        ours = other is not None and other.registration.client_id == mine.registration.client_id
        return other is None or not ours or other.issuer != mine.issuer or not enough or not _will_do(keep, other, now)
    if other is None or other.lineage != mine.lineage:
        return False
    if other.parent == mine.parent:
        return other.obtained_at <= mine.obtained_at
    return other.generation < mine.generation


def _instead(keep: Keep, theirs: GrantRecord, now: Now) -> Outcome:
    grant = current_grant(theirs)
    return Outcome("stored", token_of(grant)) if grant is not None and _will_do(keep, grant, now) else Outcome()


def _will_do(keep: Keep, grant: Grant, now: Now) -> bool:
    return alive(grant, now) and fingerprint(grant.access_token) != keep.unlike


def _again(keep: Keep, base: GrantRecord, expected: str | None) -> Out:
    if len(keep.failures) == MOST_FAILURES:
        return _unsaved(keep, base, keep.failures[-1])
    if keep.rounds == MOST_ROUNDS:
        return _unsaved(keep, base, "other processes kept changing the record")
    return begin(keep, base, expected)


TABLE: Table = {
    Saving: ((Save,), {Saved: (Done,), Conflict: (Saving, Done), StoreFailed: (Settling,)}),
    Settling: ((Load,), {Loaded: (Saving, Done), StoreFailed: (Done,)}),
}
