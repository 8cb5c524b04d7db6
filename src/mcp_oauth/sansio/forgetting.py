"""The machine that forgets a grant's dynamic registrations (FN 31): at most 17 effects, normally 2.

The tokens stay. The next login at these authorization servers registers anew.
"""

from __future__ import annotations

from msgspec.structs import replace

from mcp_oauth.sansio.errors import Reason, failure
from mcp_oauth.sansio.grant import Record, grant_key
from mcp_oauth.sansio.keeping import grants
from mcp_oauth.sansio.plan import Plan
from mcp_oauth.sansio.steps import (
    Await,
    Conflict,
    Done,
    Event,
    Failed,
    Load,
    Loaded,
    Misuse,
    Save,
    Saved,
    Step,
    StoreFailed,
    Table,
)
from mcp_oauth.sansio.values import Now, Seed, Value

MOST_SAVES = 16
MOST_EFFECTS = 1 + MOST_SAVES


class Reading(Value, frozen=True, tag="forgetting.Reading"):
    """What is stored?"""

    shown = ("key",)

    key: str
    seed: Seed


class Saving(Value, frozen=True, tag="forgetting.Saving"):
    """The record is on its way to the store."""

    shown = ("key", "issuers", "saves")

    key: str
    seed: Seed
    issuers: tuple[str, ...]
    saves: int


State = Reading | Saving
Out = Step[State, tuple[str, ...]]


def begin(plan: Plan, seed: Seed) -> Out:
    """Forget; the result is the issuers whose registrations there were."""
    key = grant_key(plan.server_url, plan.account)
    return Await(Reading(key, seed), Load(key))


def advance(state: State, event: Event, *, now: Now) -> Out:  # noqa: ARG001 - the signature of all machines
    """See the table below."""
    match state, event:
        case Reading(key, seed), Loaded(record):
            return _save(key, seed, record, 0)
        case Saving(_, _, issuers), Saved():
            return Done(issuers)
        case Saving(key, seed, _, saves), Conflict(theirs):
            return _save(key, seed, theirs, saves)
        case _, StoreFailed(reason):
            return Failed(failure(Reason.STORE_FAILED, reason))
        case _:
            raise Misuse(state, event)


def _save(key: str, seed: Seed, stored: Record | None, saves: int) -> Out:
    record = grants(stored)
    issuers = tuple(grant.issuer for grant in record.grants if grant.registration.kind == "dcr") if record else ()
    if record is None or not issuers:
        return Done(())
    if saves == MOST_SAVES:
        return Failed(failure(Reason.STORE_CONTENDED, "other processes kept changing the grant"))
    kept = tuple(replace(grant, client_refused=True) if grant.issuer in issuers else grant for grant in record.grants)
    saved = replace(record, grants=kept, revision=seed.text("forget", saves))
    return Await(Saving(key, seed, issuers, saves + 1), Save(key, saved, record.revision))


TABLE: Table = {
    Reading: ((Load,), {Loaded: (Saving, Done), StoreFailed: (Failed,)}),
    Saving: ((Save,), {Saved: (Done,), Conflict: (Saving, Done, Failed), StoreFailed: (Failed,)}),
}
