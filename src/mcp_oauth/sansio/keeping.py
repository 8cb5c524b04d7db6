"""The machine that saves a grant just obtained, before anyone gets its token (RULES 4.10, 4.11): at most 16 effects.

A save is judged by its revision alone. A lost answer is settled by reading. What a conflict means is the heart of
it: facts beat intents, the later fact wins, another login stands, and a logout is never undone.
"""

from __future__ import annotations

from msgspec.structs import replace

from mcp_oauth.sansio.errors import Failure, Reason, failure
from mcp_oauth.sansio.grant import (
    Grant,
    GrantRecord,
    Record,
    Token,
    alive,
    current_grant,
    token_of,
    with_grant,
)
from mcp_oauth.sansio.steps import (
    Await,
    Conflict,
    Done,
    Event,
    How,
    Load,
    Loaded,
    Misuse,
    Notice,
    Save,
    Saved,
    Step,
    StoreFailed,
    Table,
)
from mcp_oauth.sansio.values import Now, Seed, Value, fingerprint

MOST_ROUNDS = 8
"""Saves that meet conflicts."""
MOST_EFFECTS = 2 * MOST_ROUNDS


class Outcome(Value, frozen=True):
    """How a renewal or a login ended. A token; or a failure that only a login mends; or neither: look again."""

    shown = ("how", "token", "failure")

    how: How = "none"
    token: Token | None = None
    failure: Failure | None = None
    unsaved: GrantRecord | None = None
    """The record that the store would not take: only in memory (RULES 4.11)."""


class Kept(Value, frozen=True):
    """What came of the save, and the grant that nobody may use and is to be revoked."""

    shown = ("then",)

    then: Outcome | Failure
    revoke: Grant | None = None


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


State = Saving | Settling
Out = Step[State, Kept]


def begin(keep: Keep, base: GrantRecord, expected: str | None) -> Out:
    """Put the grant into `base`, and save that over revision `expected`."""
    keep = replace(keep, rounds=keep.rounds + 1)
    record = with_grant(base, keep.grant)
    if keep.claim is not None:
        allowed = tuple(dict.fromkeys((*base.allowed_issuers, keep.grant.issuer)))
        record = replace(record, login=None, no_login_before=None, allowed_issuers=allowed)
    seen = record.resource_metadata_seen or keep.resource_metadata_seen
    record = replace(record, resource_metadata_seen=seen, revision=keep.seed.text("keep", keep.rounds))
    return Await(Saving(keep, record), Save(keep.key, record, expected))


def advance(state: State, event: Event, *, now: Now) -> Out:
    """See the table below."""
    match state, event:
        case Saving(keep), Saved(durable):
            return _saved(keep, durable)
        case Saving(keep, record), Conflict(theirs):
            return settle(keep, record, grants(theirs), now)
        case Saving(keep, record), StoreFailed():
            return Await(Settling(keep, record), Load(keep.key))
        case Settling(keep, record), Loaded(stored):
            settled = isinstance(stored, GrantRecord) and stored.revision == record.revision
            return _saved(keep, durable=False) if settled else settle(keep, record, grants(stored), now)
        case Settling(keep, record), StoreFailed(reason):
            return _unsaved(keep, record, reason)
        case _:
            raise Misuse(state, event)


def grants(record: Record | None) -> GrantRecord | None:
    """The record, if it is one of grants."""
    return record if isinstance(record, GrantRecord) else None


def _saved(keep: Keep, durable: bool) -> Out:
    done = Notice("renewed" if keep.how == "renewed" else "logged-in", f"tokens from {keep.grant.issuer} are saved")
    doubt = Notice("not-durable", "a power failure may lose the new tokens: the store is not durable")
    return Done(Kept(Outcome(keep.how, token_of(keep.grant))), (done,) if durable else (done, doubt))


def _unsaved(keep: Keep, record: GrantRecord, reason: str) -> Out:
    """Callers get the token all the same."""
    notice = Notice("not-persisted", f"the new tokens could not be saved and are only in memory: {reason}")
    return Done(Kept(Outcome(keep.how, token_of(keep.grant), unsaved=record)), (notice,))


def settle(keep: Keep, record: GrantRecord, theirs: GrantRecord | None, now: Now) -> Out:
    """Settle what `record` would have saved with what is stored instead."""
    if theirs is None or _ours(keep, theirs):
        return _again(keep, theirs or record, theirs.revision if theirs else None)
    if theirs.logged_out:
        message = "a logout came between; the new tokens are revoked"
        return Done(Kept(failure(Reason.LOGGED_OUT, message), revoke=keep.grant))
    other = _rival(keep, theirs)
    if other is None or _mine_wins(keep, other, now):
        return _again(keep, theirs, theirs.revision)
    will_do = alive(other, now) and fingerprint(other.access_token) != keep.unlike
    then = Outcome("stored", token_of(other)) if will_do else Outcome()
    # The same lineage is one family at the server: to revoke mine would take theirs away.
    return Done(Kept(then, revoke=None if other.lineage == keep.grant.lineage else keep.grant))


def _ours(keep: Keep, theirs: GrantRecord) -> bool:
    """The login's claim still stands: only a renewal came between."""
    return theirs.login is not None and theirs.login.id == keep.claim


def _rival(keep: Keep, theirs: GrantRecord) -> Grant | None:
    if keep.claim is not None:
        return current_grant(theirs)
    return next((grant for grant in theirs.grants if grant.issuer == keep.grant.issuer), None)


def _mine_wins(keep: Keep, other: Grant, now: Now) -> bool:
    """A renewal: the other is what was renewed (or its tombstone), or was renewed from the same token earlier.

    A login: the other is of no use.
    """
    mine = keep.grant
    if keep.claim is not None:
        return not alive(other, now) or fingerprint(other.access_token) == keep.unlike
    if other.lineage != mine.lineage:
        return False
    unchanged = other.refresh_token is not None and fingerprint(other.refresh_token) == mine.parent
    return unchanged or (other.parent == mine.parent and other.obtained_at <= mine.obtained_at)


def _again(keep: Keep, base: GrantRecord, expected: str | None) -> Out:
    if keep.rounds < MOST_ROUNDS:
        return begin(keep, base, expected)
    return _unsaved(keep, with_grant(base, keep.grant), "other processes kept changing the record")


TABLE: Table = {
    Saving: ((Save,), {Saved: (Done,), Conflict: (Saving, Done), StoreFailed: (Settling,)}),
    Settling: ((Load,), {Loaded: (Saving, Done), StoreFailed: (Done,)}),
}
