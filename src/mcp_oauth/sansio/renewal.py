"""The machine that renews one grant under the store's lock (RULES 4.4 to 4.12): at most 190 effects, normally 4.

    Acquire -> Send(refresh) -> Save -> Release

Where the lock is a lease, which may lapse while its holder sleeps, an intent is saved before the request, and the
lease is extended before it is repeated: whoever comes next waits until it cannot be under way any more.

Each rule of it was found by experiment: read again under the lock, and stop if a peer was faster; a refusal counts
only after a fresh read; a save is judged by its revision alone; what was certainly not processed is tried again
without the lock; what may have been processed is presented once more at once, within the servers' grace; and nothing
is discarded but on `invalid_grant`.
"""

from __future__ import annotations

from msgspec.structs import replace

from mcp_oauth.sansio import exchange, keeping, revocation, token_endpoint
from mcp_oauth.sansio.errors import Failure, Reason, failure
from mcp_oauth.sansio.exchange import (
    AFTER_AMBIGUITY,
    HURRIED_POLLS,
    INTENT_SECONDS,
    LONGEST_REST,
    MOST_POLLS,
    MOST_RENEWALS,
    RETRIES,
    Task,
)
from mcp_oauth.sansio.grant import (
    Grant,
    GrantRecord,
    Intent,
    current_grant,
    token_of,
    with_grant,
)
from mcp_oauth.sansio.keeping import Keep, Kept, Outcome, ending, grants
from mcp_oauth.sansio.messages import DEADLINE, Request, Response, retry_after
from mcp_oauth.sansio.revocation import Revoked
from mcp_oauth.sansio.steps import (
    Acquire,
    Acquired,
    Await,
    Busy,
    Conflict,
    Done,
    Event,
    Extend,
    Extended,
    Failed,
    Load,
    Loaded,
    Misuse,
    Notice,
    Release,
    Released,
    Save,
    Saved,
    Send,
    SendFailed,
    Sleep,
    Step,
    StoreFailed,
    Table,
    Woke,
    inside,
    noting,
    within,
)
from mcp_oauth.sansio.token_endpoint import TokenAnswer
from mcp_oauth.sansio.values import Now, Seed, Value, fingerprint

MOST_EFFECTS = 4 * MOST_POLLS + 8 * len(RETRIES) + 6 + keeping.MOST_EFFECTS + revocation.MOST_EFFECTS


class Rest(Value, frozen=True):
    """Not an end: wait without the lock, then start again."""

    shown = ("task", "seconds")

    task: Task
    seconds: float


class Locking(Value, frozen=True, tag="renewal.Locking"):
    """Waits for the lock's answer."""

    shown = ("task",)

    task: Task


class Waiting(Value, frozen=True, tag="renewal.Waiting"):
    """The lock is somebody's."""

    shown = ("task", "holder")

    task: Task
    holder: str


After = Outcome | Failure | Rest | Waiting


class Looking(Value, frozen=True, tag="renewal.Looking"):
    """Has the holder renewed it already?"""

    shown = ("task", "holder")

    task: Task
    holder: str


class Intending(Value, frozen=True, tag="renewal.Intending"):
    """That the refresh token is about to be sent is being saved, and with it proved that the store can be written."""

    shown = ("task",)

    task: Task
    record: GrantRecord
    grant: Grant
    valid_until: float
    """Elapsed seconds at which the lease lapses."""


class Sending(Value, frozen=True, tag="renewal.Sending"):
    """The refresh token is on its way."""

    shown = ("task", "again")

    task: Task
    record: GrantRecord
    grant: Grant
    sent: Now
    lease: bool = False
    """The lock may lapse."""
    again: bool = False
    """The answer to the first request was lost."""


class Extending(Value, frozen=True, tag="renewal.Extending"):
    """The answer was lost, and the lease must last for another one."""

    shown = ("sending", "reason")

    sending: Sending
    reason: str


class Saving(Value, frozen=True, tag="renewal.Saving"):
    """The renewed grant is being saved."""

    shown = ("inner",)

    inner: keeping.State


class Confirming(Value, frozen=True, tag="renewal.Confirming"):
    """The refresh token was refused: is it still the current one?"""

    shown = ("task", "refusal")

    task: Task
    refusal: Failure


class Noting(Value, frozen=True, tag="renewal.Noting"):
    """What others must know is being saved: when to try again, that a token is dead."""

    shown = ("then",)

    task: Task
    then: After
    told: Notice | None = None
    """What is told when it is saved."""


class Releasing(Value, frozen=True, tag="renewal.Releasing"):
    """The lock is being given back."""

    shown = ("then",)

    then: After
    revoke: Grant | None = None


class Resting(Value, frozen=True, tag="renewal.Resting"):
    """Waits without the lock."""

    shown = ("task",)

    task: Task


class Revoking(Value, frozen=True, tag="renewal.Revoking"):
    """Revokes a renewed grant that nobody may use."""

    shown = ("then",)

    then: Outcome | Failure
    inner: revocation.State


State = (
    Locking
    | Waiting
    | Looking
    | Intending
    | Sending
    | Extending
    | Saving
    | Confirming
    | Noting
    | Releasing
    | Resting
    | Revoking
)
Out = Step[State, Outcome]


def begin(
    key: str,
    grant: Grant,
    *,
    unlike: str | None,
    seed: Seed,
    jitter: float,
    holder: str,
    client_secret: str | None = None,
    hurried: bool = False,
) -> Out:
    """Renew `grant`, which is `renewable` and stands in the record at `key`.

    `holder` is how others see who renews; `client_secret` the one configured for a pre-registered client; `hurried`:
    the token at hand still serves, so do not wait long for the lock.
    """
    presented = fingerprint(grant.refresh_token or "")
    serving = token_of(grant) if hurried else None
    task = Task(key, seed, jitter, holder, grant.lineage, presented, unlike, client_secret, serving)
    return _lock(task)


def advance(state: State, event: Event, *, now: Now) -> Out:
    """See the table below, and the rules above."""
    match state, event:
        case Locking(task), Acquired(record, valid_until, _, left_by):
            return _acquired(replace(task, cut_off=left_by or task.cut_off), grants(record), valid_until, now)
        case Intending(), Saved():
            return _intended(state, now)
        case Intending(task, valid_until=valid_until), Conflict(theirs):
            return _outrun(task, grants(theirs), valid_until, now)
        case Locking(task), Busy(holder):
            return _busy(task, holder)
        case Waiting(task, holder), Woke():
            return Await(Looking(task, holder), Load(task.key))
        case Looking(task), Loaded(record):
            return _looked(task, grants(record), now)
        case Sending(), Response():
            return _answered(state, event, now)
        case Sending(), SendFailed(reason, may_have_arrived):
            return _unanswered(state, reason, may_have_arrived, now)
        case Extending(sending, reason), Extended(valid_until):
            return _extended(sending, reason, valid_until, now)
        case Extending(sending, reason), StoreFailed():
            return _lost(sending, reason, now)
        case Saving(inner), _:
            return _saving(keeping.advance(inner, event, now=now))
        case Confirming(task, refusal), Loaded(record):
            return _confirmed(task, refusal, grants(record))
        case Noting(_, then, told), Saved() | StoreFailed():
            return noting(_release(then), *([told] if told is not None else []))
        case Noting(task, then), Conflict(theirs):
            return _release(Outcome() if exchange.moved_on(task, grants(theirs)) else then)
        case Releasing(then, revoke), Released():
            return _released(then, revoke)
        case Resting(task), Woke():
            return _lock(replace(task, rests=task.rests + 1))
        case Revoking(then, inner), _:
            return _revoking(then, revocation.advance(inner, event))
        case ((Locking() | Looking()), StoreFailed(reason)):
            return Failed(failure(Reason.STORE_FAILED, reason))
        case ((Confirming() | Intending()), StoreFailed(reason)):
            return _release(failure(Reason.STORE_FAILED, reason))
        case _:
            raise Misuse(state, event)


# --- The lock ---------------------------------------------------------------------------------------------------------


def _lock(task: Task) -> Out:
    return Await(Locking(task), Acquire(task.key))


def _busy(task: Task, holder: str) -> Out:
    if task.serving is not None and task.polls == HURRIED_POLLS:
        return Done(Outcome("stored", task.serving))
    if task.polls == MOST_POLLS:
        return Failed(failure(Reason.RENEWAL_BUSY, f"the grant is locked by {holder}"))
    seconds = min(1.0, 0.05 * 1.5**task.polls) * (0.75 + task.seed.fraction("poll", task.polls) / 2)
    notices = (Notice("lock-busy", f"waiting for {holder}"),) if task.polls == 0 else ()
    return Await(Waiting(replace(task, polls=task.polls + 1), holder), Sleep(seconds), notices)


def _looked(task: Task, record: GrantRecord | None, now: Now) -> Out:
    token = exchange.adoptable(task, record, now)
    if token is not None:
        return Done(Outcome("stored", token))
    task, theirs = exchange.watch(task, record, now)
    return _lock(task) if theirs is None else _busy(task, theirs.holder)


def _acquired(task: Task, record: GrantRecord | None, valid_until: float | None, now: Now) -> Out:
    """Read again under the lock: stop if a peer was faster or the grant is another one (RULES 4.6)."""
    token = exchange.adoptable(task, record, now)
    if token is not None:
        return _release(Outcome("stored", token))
    grant = current_grant(record)
    if record is None or grant is None or not exchange.judged(task, grant):
        return _release(Outcome())
    seconds = exchange.put_off(grant, now)
    if seconds > 0:
        return _postponed(task, grant, now, seconds)
    if len(exchange.recent(grant, now)) >= MOST_RENEWALS:
        return _release(exchange.too_often(task, grant))
    grant = replace(exchange.as_configured(task, grant), unanswered=task.unanswered or grant.unanswered)
    if valid_until is None:
        return _send(Sending(task, record, grant, now, again=task.unanswered))
    return _intend(task, record, grant, valid_until, now)


# --- The intent, where the lock is a lease ----------------------------------------------------------------------------


def _intend(task: Task, record: GrantRecord, grant: Grant, valid_until: float, now: Now) -> Out:
    """Say what is going to be sent, before it is (RULES 4.7); or wait for who said so before."""
    task, theirs = exchange.watch(task, record, now)
    if theirs is not None and exchange.serves(task, grant, now):
        return _release(Outcome("stored", token_of(grant)))
    if theirs is not None:
        return _release(Waiting(task, theirs.holder))
    if record.intent is not None and exchange.is_theirs(task, record.intent):
        task = replace(task, cut_off=record.intent.holder)
    mine = Intent(task.seed.text("intent", task.rests), task.presented, task.holder, now.wall + INTENT_SECONDS)
    intended = replace(record, intent=mine, revision=task.seed.text("intended", task.rests))
    return Await(Intending(task, intended, grant, valid_until), Save(task.key, intended, record.revision))


def _intended(state: Intending, now: Now) -> Out:
    """Send only if the lease outlives the deadline, by both clocks (RULES 4.9); else start again."""
    task = state.task
    in_time = state.record.intent is not None and now.wall + DEADLINE <= state.record.intent.send_until
    if in_time and exchange.outlives(state.valid_until, now):
        return _send(Sending(task, state.record, state.grant, now, lease=True, again=task.unanswered))
    if task.tries < len(RETRIES):
        return _release(Rest(replace(task, tries=task.tries + 1), 0.0))
    return _release(failure(Reason.STORE_FAILED, "its saves take longer than its locks last"))


def _outrun(task: Task, record: GrantRecord | None, valid_until: float, now: Now) -> Out:
    """Somebody saved something meanwhile, maybe only his claim of a login: judge that, still under the lock."""
    if task.tries == len(RETRIES):
        return _release(Outcome())
    return _acquired(replace(task, tries=task.tries + 1, rests=task.rests + 1), record, valid_until, now)


def _extended(sending: Sending, reason: str, valid_until: float | None, now: Now) -> Out:
    """Once more at once; where the lock was lost, under a new one."""
    if exchange.outlives(valid_until, now):
        return _send(replace(sending, sent=now, again=True))
    task = sending.task
    if valid_until is None and task.tries < len(RETRIES):
        return _release(Rest(replace(task, unanswered=True, tries=task.tries + 1), 0.0))
    return _lost(sending, reason, now)


# --- The request ------------------------------------------------------------------------------------------------------


def _send(state: Sending) -> Out:
    return Await(state, Send(_request(state.grant)))


def _request(grant: Grant) -> Request:
    return token_endpoint.refresh_request(
        grant.token_endpoint,
        grant.registration,
        refresh_token=grant.refresh_token or "",
        resource=grant.resource,
        extra=grant.extra_token_params,
    )


def _answered(state: Sending, response: Response, now: Now) -> Out:
    if response.status in (429, 503):
        seconds = min(retry_after(response) or 0.0, LONGEST_REST)
        return _not_processed(state, f"HTTP {response.status}", seconds, now)
    grant = state.grant
    hide = (*token_endpoint.secrets_of(_request(grant)), grant.registration.client_secret)
    answer = token_endpoint.read(response, grant.token_endpoint, state.sent, Reason.RENEWAL_REFUSED, hide=hide)
    if isinstance(answer, TokenAnswer):
        return _renewed(state, answer, now)
    if response.status >= 500 or answer.reason is Reason.TOKEN_UNREADABLE:
        return _ambiguous(state, answer.message, now)
    return _refused(state, answer, now)


def _unanswered(state: Sending, reason: str, may_have_arrived: bool, now: Now) -> Out:
    return _ambiguous(state, reason, now) if may_have_arrived else _not_processed(state, reason, 0.0, now)


def _not_processed(state: Sending, reason: str, seconds: float, now: Now) -> Out:
    """Certainly not: sleep without the lock, start again (RULES 4.9)."""
    task = state.task
    seconds = max(seconds, RETRIES[min(task.tries, len(RETRIES) - 1)])
    if task.tries < len(RETRIES) and not exchange.serves(task, state.grant, now):
        return _note(state, Rest(replace(task, tries=task.tries + 1), seconds), now, seconds)
    message = f"the token endpoint is unavailable: {reason}"
    error = failure(Reason.RENEWAL_UNAVAILABLE, message, url=state.grant.token_endpoint)
    return _note(state, error, now, seconds)


def _ambiguous(state: Sending, reason: str, now: Now) -> Out:
    """It may have been processed: present it once more at once, within the server's grace (RULES 3.3)."""
    if state.again:
        return _lost(state, reason, now)
    state = replace(state, grant=replace(state.grant, unanswered=True))
    if state.lease:
        return Await(Extending(state, reason), Extend())
    return _send(replace(state, sent=now, again=True))


def _lost(state: Sending, reason: str, now: Now) -> Out:
    message = f"the answer to the renewal was lost: {reason}"
    error = failure(Reason.RENEWAL_AMBIGUOUS, message, url=state.grant.token_endpoint)
    return _note(state, error, now, AFTER_AMBIGUITY)


def _refused(state: Sending, refusal: Failure, now: Now) -> Out:
    """Only `invalid_grant` means that the token is dead, and only after a fresh read (RULES 3.2)."""
    grant = state.grant
    served = exchange.serves(state.task, grant, now)
    if refusal.oauth_error != "invalid_grant" and (served or not exchange.hopeless(grant, refusal)):
        return _note(state, refusal, now, AFTER_AMBIGUITY, refusals=int(exchange.counts(refusal) and not served))
    if refusal.oauth_error == "invalid_grant" and served:
        # Some servers refuse an early renewal only (FN 11): the token at hand lives, so ask again when it does not.
        return _note(state, refusal, now, min((grant.expires_at or now.wall) - now.wall, LONGEST_REST))
    return Await(Confirming(replace(state.task, unanswered=grant.unanswered), refusal), Load(state.task.key))


def _note(state: Sending, then: After, now: Now, seconds: float, refusals: int = 0) -> Out:
    """Save when the next attempt may be made, then go on to `then`; an early renewal goes on with the token it has."""
    old = state.grant
    grant = replace(old, next_attempt_at=now.wall + seconds, refusals=old.refusals + refusals)
    record = exchange.next_revision(state.task, with_grant(state.record, grant))
    if exchange.serves(state.task, grant, now):
        then = Outcome("stored", token_of(grant))
    notice = Notice("renewal-postponed", f"the next renewal is tried in {seconds:.0f} s at the earliest")
    return Await(Noting(state.task, then), Save(state.task.key, record, state.record.revision), (notice,))


def _postponed(task: Task, grant: Grant, now: Now, seconds: float) -> Out:
    """Somebody else was told to wait: so do we."""
    if exchange.serves(task, grant, now):
        return _release(Outcome("stored", token_of(grant)))
    if task.tries < len(RETRIES):
        return _release(Rest(replace(task, tries=task.tries + 1), seconds))
    message = f"the next renewal may be tried in {seconds:.0f} s"
    return _release(failure(Reason.RENEWAL_UNAVAILABLE, message, url=grant.token_endpoint))


# --- The save ---------------------------------------------------------------------------------------------------------


def _renewed(state: Sending, answer: TokenAnswer, now: Now) -> Out:
    """What the answer leaves out stays as it was (RULES 3.6)."""
    old = state.grant
    grant = replace(
        old,
        access_token=answer.access_token,
        obtained_at=answer.obtained_at,
        expires_at=answer.expires_at,
        refresh_token=answer.refresh_token or old.refresh_token,
        granted=answer.scopes if answer.scopes is not None else old.granted,
        parent=state.task.presented,
        generation=old.generation + 1,
        refused=None,
        refused_because="",
        unanswered=state.again,  # the first request may still arrive, and end the whole family
        refusals=0,
        next_attempt_at=None,
        renewals=(*exchange.recent(old, now), now.wall),
    )
    task = state.task
    keep = Keep(task.key, "renewed", grant, task.seed.child("keep", task.rests), task.unlike)
    return _saving(keeping.begin(keep, state.record, state.record.revision))


def _saving(step: Step[keeping.State, Kept]) -> Out:
    return within(step, Saving, lambda kept: _release(kept.then, kept.revoke))


# --- The end ----------------------------------------------------------------------------------------------------------


def _confirmed(task: Task, refusal: Failure, record: GrantRecord | None) -> Out:
    """Still the current token: it is dead, and everybody may know."""
    grant = current_grant(record)
    if record is None or grant is None or not exchange.judged(task, grant):
        return _release(Outcome())
    forgotten = refusal.reason is Reason.CLIENT_REFUSED
    why = f"{refusal.message}. {exchange.why(task, refusal)}"
    dead = replace(grant, refused=task.presented, refused_because=why, client_refused=forgotten or grant.client_refused)
    buried = exchange.next_revision(task, with_grant(record, dead))
    told = Notice("grant-refused", f"{why}: a login is needed")
    return Await(Noting(task, Outcome(failure=refusal), told), Save(task.key, buried, record.revision))


def _release(then: After, revoke: Grant | None = None) -> Out:
    return Await(Releasing(then, revoke), Release())


def _released(then: After, revoke: Grant | None) -> Out:
    if isinstance(then, Rest):
        return Await(Resting(then.task), Sleep(then.seconds))
    if isinstance(then, Waiting):
        return _busy(then.task, then.holder)
    return _revoking(then, revocation.begin(revoke)) if revoke is not None else ending(then)


def _revoking(then: Outcome | Failure, step: Step[revocation.State, tuple[Revoked, ...]]) -> Out:
    return within(step, lambda inner: Revoking(then, inner), lambda _: ending(then))


TABLE: Table = {
    Locking: (
        (Acquire,),
        {Acquired: (Releasing, Intending, Sending), Busy: (Waiting, Failed), StoreFailed: (Failed,)},
    ),
    Waiting: ((Sleep,), {Woke: (Looking,)}),
    Looking: ((Load,), {Loaded: (Locking, Waiting, Done, Failed), StoreFailed: (Failed,)}),
    Intending: ((Save,), {Saved: (Sending, Releasing), Conflict: (Intending, Releasing), StoreFailed: (Releasing,)}),
    Sending: (
        (Send,),
        {Response: (Sending, Extending, Saving, Confirming, Noting), SendFailed: (Sending, Extending, Noting)},
    ),
    Extending: ((Extend,), {Extended: (Sending, Releasing, Noting), StoreFailed: (Noting,)}),
    Saving: inside(keeping.TABLE, Saving, Releasing),
    Confirming: ((Load,), {Loaded: (Noting, Releasing), StoreFailed: (Releasing,)}),
    Noting: ((Save,), {Saved: (Releasing,), Conflict: (Releasing,), StoreFailed: (Releasing,)}),
    Releasing: ((Release,), {Released: (Resting, Waiting, Revoking, Done, Failed)}),
    Resting: ((Sleep,), {Woke: (Locking,)}),
    Revoking: inside(revocation.TABLE, Revoking, Done, Failed),
}
