"""One renewal: what it is for, and what it judges of records, intents, tokens and refusals. `renewal` does it."""

from __future__ import annotations

from msgspec.structs import replace

from mcp_oauth.sansio.errors import Failure, Reason, failure
from mcp_oauth.sansio.grant import (
    Grant,
    GrantRecord,
    Intent,
    Token,
    alive,
    current_grant,
    fresh,
    renewable,
    token_of,
)
from mcp_oauth.sansio.keeping import Outcome
from mcp_oauth.sansio.messages import DEADLINE
from mcp_oauth.sansio.values import Now, Secret, Seed, Value, fingerprint

MOST_POLLS = 36
"""Looks at a busy lock, from 50 ms to 1 s apart: about 30 seconds (RULES 4.4)."""
HURRIED_POLLS = 3
"""The same where the token at hand still serves: a quarter of a second."""
RETRIES = (1.0, 2.0, 4.0)
"""Seconds before a request is sent again that was certainly not processed (RULES 3.3)."""
LONGEST_REST = 60.0
"""Seconds of a Retry-After that are obeyed, and the furthest that a next attempt is put off."""
AFTER_AMBIGUITY = 5.0
"""Seconds before the next try, after two answers were lost or after a refusal."""
MOST_REFUSALS = 3
"""Refusals in a row, by OAuth errors other than invalid_grant, after which only a login helps (FN 5)."""
MOST_RENEWALS = 30
"""Renewals of one grant in a minute (RULES 3.4)."""
INTENT_SECONDS = DEADLINE + 3.0
"""An intent is good for a request with its deadline, and waited for as long (RULES 4.8)."""
MOST_SKEW = 60.0
"""Seconds by which the clocks of two machines may differ: an intent that is over for longer is not waited for."""


class Task(Value, frozen=True):
    """What is to be renewed."""

    shown = ("key", "polls", "tries", "rests")

    key: str
    seed: Seed
    jitter: float
    holder: str
    """How others see who renews."""
    lineage: str
    presented: str
    """Fingerprint of the refresh token that was judged to be renewed."""
    unlike: str | None
    """Fingerprint of the access token that will not do."""
    client_secret: Secret | None = None
    """The one that is configured now, for a pre-registered client: it may have been changed since the login."""
    serving: Token | None = None
    """The token at hand, which is alive: what to go on with when the lock stays busy."""
    polls: int = 0
    tries: int = 0
    """Starts that came to nothing, so that there was another one."""
    rests: int = 0
    """Times that it started again."""
    cut_off: str = ""
    """Who was going to renew it, and came to no end: under a kernel lock, or with an intent."""
    unanswered: bool = False
    """The same refresh token was sent before, and no answer came."""
    watched: str = ""
    """The intent that was seen last,"""
    until: float = 0.0
    """and the elapsed seconds until which it may be under way."""


def adoptable(task: Task, record: GrantRecord | None, now: Now) -> Token | None:
    """A peer's token that will do (RULES 4.6). One of another login is for upkeep to judge (RULES 4.3)."""
    grant = current_grant(record)
    if grant is None or grant.lineage != task.lineage or not fresh(grant, now, task.jitter):
        return None
    token = token_of(grant)
    return token if token.fingerprint != task.unlike else None


def as_configured(task: Task, grant: Grant) -> Grant:
    """The grant with the client secret that is configured now."""
    client = grant.registration
    if client.kind != "preregistered" or client.auth_method == "none" or task.client_secret is None:
        return grant
    return replace(grant, registration=replace(client, client_secret=task.client_secret))


def judged(task: Task, grant: Grant) -> bool:
    """It still has the refresh token that was judged to be renewed."""
    return renewable(grant) and fingerprint(grant.refresh_token or "") == task.presented


def moved_on(task: Task, record: GrantRecord | None) -> bool:
    """Somebody else has another refresh token by now, while the answer to this one was bad or lost."""
    grant = current_grant(record)
    return grant is not None and not judged(task, grant)


def serves(task: Task, grant: Grant, now: Now) -> bool:
    """The access token at hand will still do: an early renewal may fail without harm (FN 11)."""
    return alive(grant, now) and fingerprint(grant.access_token) != task.unlike


def put_off(grant: Grant, now: Now) -> float:
    """Seconds until the next attempt. What lies further ahead than anybody puts it off was noted by another clock."""
    seconds = (grant.next_attempt_at or now.wall) - now.wall
    return seconds if seconds <= LONGEST_REST else 0.0


def recent(grant: Grant, now: Now) -> tuple[float, ...]:
    """The renewals of the last minute (RULES 3.4)."""
    return tuple(at for at in grant.renewals if now.wall - 60.0 < at <= now.wall)


def too_often(task: Task, grant: Grant) -> Outcome | Failure:
    """A token that nobody refused is used all the same, whatever its expiry says (RULES 4.12)."""
    if fingerprint(grant.access_token) != task.unlike:
        return Outcome("stored", token_of(grant))
    return failure(Reason.RENEWAL_TOO_OFTEN, f"{MOST_RENEWALS} renewals within a minute")


def is_theirs(task: Task, intent: Intent) -> bool:
    """Somebody else's for the same refresh token. What came of our own earlier starts is known here."""
    ours = [task.seed.text("intent", n) for n in range(task.rests)]
    return intent.presented == task.presented and intent.attempt not in ours


def watch(task: Task, record: GrantRecord | None, now: Now) -> tuple[Task, Intent | None]:
    """The intent that may be under way, as far as anybody can tell who has not watched it for long enough (RULES 4.8).

    By our own clock, since theirs may be another.
    """
    intent = record.intent if record is not None else None
    if intent is None or not is_theirs(task, intent) or now.wall > intent.send_until + MOST_SKEW:
        return task, None
    if intent.attempt != task.watched:
        task = replace(task, watched=intent.attempt, until=now.elapsed + INTENT_SECONDS)
    return task, intent if now.elapsed < task.until else None


def outlives(valid_until: float | None, now: Now) -> bool:
    """The lease lasts until the answer must be there; None: it is lost."""
    return valid_until is not None and now.elapsed + DEADLINE <= valid_until


def hopeless(grant: Grant, refusal: Failure) -> bool:
    """Other refusals after which only a login helps: a forgotten client of our own making (RULES 2.11), or many."""
    if refusal.reason is Reason.CLIENT_REFUSED and grant.registration.kind != "dcr":
        return False
    return refusal.oauth_error == "invalid_client" or (counts(refusal) and grant.refusals + 1 >= MOST_REFUSALS)


def counts(refusal: Failure) -> bool:
    """The authorization server itself said no: not a page of a gateway before it, and not that it cannot just now."""
    if refusal.oauth_error in ("temporarily_unavailable", "server_error", "slow_down"):
        return False
    return refusal.oauth_error is not None or refusal.reason is Reason.CLIENT_REFUSED


def why(task: Task, refusal: Failure) -> str:
    """What a person is told who has to log in again (RULES 4.15)."""
    if refusal.reason is Reason.CLIENT_REFUSED:
        return "It does not know this client any more"
    if refusal.oauth_error != "invalid_grant":
        return f"It has refused {MOST_REFUSALS} renewals in a row"
    if task.cut_off:
        return f"{task.cut_off} was cut off while it renewed this grant, and new tokens were lost"
    if task.unanswered:
        return "An earlier renewal was not answered, and new tokens were lost"
    return "The grant was revoked, has expired, or was used elsewhere"


def next_revision(task: Task, record: GrantRecord) -> GrantRecord:
    """The record as it is saved after a request that brought no tokens."""
    return replace(record, revision=task.seed.text("revision", task.rests))
