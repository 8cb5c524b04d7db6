"""What a person is told who has to log in again (RULES 4.15): the notice `grant-refused`, when a grant is buried."""

from __future__ import annotations

from msgspec.structs import replace

from mcp_oauth.sansio import renewal
from mcp_oauth.sansio.exchange import MOST_SKEW
from mcp_oauth.sansio.grant import Grant, GrantRecord, Intent
from mcp_oauth.sansio.messages import Response
from mcp_oauth.sansio.steps import Acquired, Event, Extended, Loaded, Released, Saved, Woke
from tests.sansio.scripts import KEY, SEED, Line, each, grant, parent, play, record, saved, secret, tokens
from tests.sansio.walks import LOST, NOW, UNSENT, answer, table
from tests.sansio.worlds import Run

OLD = grant(1)
UNANSWERED = replace(OLD, unanswered=True)
POST = "POST as.example/token rt1"
INTEND: Line = ("Save *: * intent rt1 of us", Saved())
RELEASE: Line = ("Release", Released())
DEAD = answer(400, error="invalid_grant", error_description=f"no such token {secret(1, 'rt')}")
EXTENDED: Line = ("Extend", Extended(NOW.elapsed + 99))

DEAD_HOLDER = "pid 3 on host since 2026-11-23T10:00:00Z"
CUT_OFF = "pid 2 on host was cut off while it renewed this grant, and new tokens were lost: a login is needed"
LOST_BEFORE = "An earlier renewal was not answered, and new tokens were lost: a login is needed"
NOBODY_KNOWS = "The grant was revoked, has expired, or was used elsewhere: a login is needed"


def theirs(ends: float = -MOST_SKEW - 1, presented: int = 1) -> Intent:
    """Of somebody who was cut off long ago, unless said otherwise."""
    return Intent("a1", parent(presented), "pid 2 on host", NOW.wall + ends)


def locked(stored: GrantRecord, lease: bool, at: float = 0.0, left_by: str = "") -> Line:
    valid_until = NOW.elapsed + at + 99 if lease else None
    return ("Acquire", Acquired(stored, valid_until, exclusive=not lease, left_by=left_by), at)


def renew(script: list[Line], end: str, stored: GrantRecord, lease: bool = True, left_by: str = "") -> Run:
    step = renewal.begin(KEY, stored.grants[0], unlike=None, seed=SEED, jitter=0.0, holder="us")
    return play(renewal, step, [locked(stored, lease, left_by=left_by), *script], end)


def refused(stored: GrantRecord) -> list[Line]:
    """From the refusal on."""
    return [(POST, DEAD), ("Load", Loaded(stored)), ("Save *: * dead*", Saved()), RELEASE]


def told(run: Run) -> str:
    """In the one notice of its name."""
    (notice,) = (notice for step in run.steps for notice in step.notices if notice.name == "grant-refused")
    return str(notice.message)


@table(
    "stored, lease, why",
    {
        "RULES-4.15-revoked-expired-or-used-elsewhere": (record(OLD), False, NOBODY_KNOWS),
        "RULES-4.15-under-a-lease-too": (record(OLD), True, NOBODY_KNOWS),
        "RULES-4.15-an-exchange-was-not-answered": (record(UNANSWERED), False, LOST_BEFORE),
        "RULES-4.15-an-exchange-was-not-answered-under-a-lease": (record(UNANSWERED), True, LOST_BEFORE),
        "RULES-4.15-a-holder-was-cut-off": (record(OLD, intent=theirs()), True, CUT_OFF),
        "RULES-4.15-a-holder-was-cut-off-after-an-exchange": (record(UNANSWERED, intent=theirs()), True, CUT_OFF),
        "RULES-4.8-the-intent-was-for-another-token": (record(OLD, intent=theirs(presented=0)), True, NOBODY_KNOWS),
    },
)
def test_why_a_login_is_needed(stored: GrantRecord, lease: bool, why: str) -> None:
    """After what the server said, with nothing that is to be hidden."""
    run = renew([*[INTEND] * lease, *refused(stored)], "Done dead", stored, lease)
    assert told(run) == f"{run.end.value.failure.message}. {why}"
    assert "[hidden]" in told(run)


@each("between", {"RULES-4.7-at-once": False, "RULES-4.7-after-a-rest": True})
def test_who_died_with_a_lock_of_the_system_is_told(between: bool) -> None:
    """His note is there when the lock is taken for the first time, and not again."""
    stored, noted = record(OLD), record(replace(OLD, next_attempt_at=NOW.wall + 1))
    rest: list[Line] = [(POST, UNSENT), ("Save *: *", Saved()), RELEASE, ("Sleep 1", Woke(), 1)]
    script = [*rest, locked(noted, lease=False, at=1), *refused(noted)] if between else refused(stored)
    run = renew(script, "Done dead", stored, lease=False, left_by=DEAD_HOLDER)
    assert told(run).endswith(CUT_OFF.replace("pid 2 on host", DEAD_HOLDER))


def test_rules_4_15_why_is_kept_with_the_dead_grant_and_ends_with_it() -> None:
    run = renew(refused(record(OLD)), "Done dead", record(OLD), lease=False)
    buried = saved(run)[-1].grants[0]
    assert f"{buried.refused_because}: a login is needed" == told(run)
    again = replace(buried, refresh_token=secret(2, "rt"))
    (renewed,) = saved(renew([("POST as.example/token rt2", tokens(3))], "Save *", record(again), lease=False))
    assert renewed.grants[0].refused_because == ""


def test_rules_4_8_a_holder_that_was_waited_for_in_vain() -> None:
    stuck = record(OLD, intent=theirs(ends=13))
    script: list[Line] = [RELEASE, ("Sleep *", Woke()), ("Load", Loaded(stuck), 13), locked(stuck, lease=True, at=13)]
    run = renew([*script, INTEND, *refused(stuck)], "Done dead", stuck)
    assert told(run).endswith(CUT_OFF)


def test_rules_4_15_a_holder_that_was_cut_off_before_a_rest() -> None:
    """Its intent was replaced by ours; what it did is still the likeliest reason."""
    stored, noted = record(OLD, intent=theirs()), record(replace(OLD, next_attempt_at=NOW.wall + 1))
    rest: list[Line] = [INTEND, (POST, UNSENT), ("Save *: *", Saved()), RELEASE, ("Sleep 1", Woke(), 1)]
    run = renew([*rest, locked(noted, lease=True, at=1), INTEND, *refused(noted)], "Done dead", stored)
    assert told(run).endswith(CUT_OFF)


def test_rules_4_15_we_were_too_late_to_send_and_nothing_was_lost() -> None:
    """An intent of our own that came to nothing says nothing of the tokens."""
    step = renewal.begin(KEY, OLD, unlike=None, seed=SEED, jitter=0.0, holder="us")
    late: list[Line] = [locked(record(OLD), lease=True), (INTEND[0], Saved(), 4), RELEASE, ("Sleep 0", Woke(), 4)]
    mine = saved(play(renewal, step, late, "Acquire"))[-1]
    script = [*late, locked(mine, lease=True, at=4), INTEND, *refused(mine)]
    assert told(play(renewal, step, script, "Done dead")).endswith(NOBODY_KNOWS)


@each(
    "stored",
    {
        "RULES-3.2-a-peer-was-faster": record(grant(2, left=3600)),
        "RULES-3.2-a-logout": record(logged_out=True),
        "RULES-3.2-dead-already": record(replace(OLD, refused=parent(1))),
    },
)
def test_nobody_is_told_of_a_grant_that_is_not_buried(stored: GrantRecord) -> None:
    run = renew([(POST, DEAD), ("Load", Loaded(stored)), RELEASE], "Done none", record(OLD), lease=False)
    assert run.notices == []


def test_rules_3_2_nor_of_a_refusal_that_only_puts_off() -> None:
    early = record(grant(1, left=30))
    run = renew([(POST, DEAD), ("Save *", Saved()), RELEASE], "Done stored at1", early, lease=False)
    assert run.notices == ["renewal-postponed"]


# --- What is remembered of an answer that was lost --------------------------------------------------------------------


def remembered(script: list[Line], then: str, one: Grant, lease: bool = False) -> Grant:
    """The grant as it was saved last."""
    return saved(renew(script, then, record(one), lease))[-1].grants[0]


@table(
    "script, lease",
    {
        "RULES-4.9-both-answers": ([(POST, LOST), (POST, Response(500))], False),
        "RULES-4.9-both-answers-under-a-lease": ([INTEND, (POST, LOST), EXTENDED, (POST, LOST)], True),
        "RULES-4.9-not-presented-again": ([INTEND, (POST, LOST), ("Extend", Extended(NOW.elapsed))], True),
    },
)
def test_it_is_remembered_that_no_answer_came(script: list[Line], lease: bool) -> None:
    for one in (OLD, UNANSWERED, grant(1, left=30)):
        assert remembered(script, "Save *: *", one, lease).unanswered


@each("event", {"RULES-3.3-not-reached": UNSENT, "RULES-3.3-429": Response(429), "FN-5-odd": answer(400, error="odd")})
def test_an_answer_says_nothing_of_the_one_before(event: Event) -> None:
    assert not remembered([(POST, event)], "Save *: *", OLD).unanswered
    assert remembered([(POST, event)], "Save *: *", UNANSWERED).unanswered


def test_rules_4_9_new_tokens_end_it_unless_the_first_request_may_still_arrive() -> None:
    assert not remembered([(POST, tokens(2))], "Save *: *as(at2 rt2)", UNANSWERED).unanswered
    assert remembered([(POST, LOST), (POST, tokens(2))], "Save *: *as(at2 rt2)", OLD).unanswered


@each("lease", {"RULES-4.15-under-a-lock": False, "RULES-4.15-under-a-lease": True})
def test_no_answer_and_then_a_refusal_in_one_breath(lease: bool) -> None:
    """A server without grace: what was lost a moment ago is why the same token is refused now."""
    sent: list[Line] = [INTEND, (POST, LOST), EXTENDED] if lease else [(POST, LOST)]
    run = renew([*sent, *refused(record(OLD))], "Done dead", record(OLD), lease)
    assert told(run).endswith(LOST_BEFORE)


def test_rules_4_15_no_answer_and_then_a_refusal_under_another_lock() -> None:
    """The lock was lost with the answer."""
    stored = record(OLD)
    lost: list[Line] = [INTEND, (POST, LOST), ("Extend", Extended(None)), RELEASE, ("Sleep 0", Woke())]
    run = renew([*lost, locked(stored, lease=True), INTEND, *refused(stored)], "Done dead", stored)
    assert told(run).endswith(LOST_BEFORE)


@table(
    "one, event",
    {
        "RULES-3.3-not-reached-the-second-time": (OLD, UNSENT),
        "RULES-3.3-unavailable-the-second-time": (OLD, Response(503)),
        "FN-5-an-odd-refusal-the-second-time": (OLD, answer(400, error="invalid_request")),
        "FN-11-refused-the-second-time-while-it-lives": (grant(1, left=30), DEAD),
    },
)
def test_no_answer_the_first_time_is_remembered_too(one: Grant, event: Event) -> None:
    assert remembered([(POST, LOST), (POST, event)], "Save *: *", one).unanswered
