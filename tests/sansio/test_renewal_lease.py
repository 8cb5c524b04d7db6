"""The renewal protocol where the lock is a lease, which may lapse while its holder sleeps."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from mcp_oauth.sansio import exchange, renewal
from mcp_oauth.sansio.errors import Reason
from mcp_oauth.sansio.exchange import INTENT_SECONDS, MOST_SKEW
from mcp_oauth.sansio.grant import GrantRecord, Intent, LoginClaim, with_grant
from mcp_oauth.sansio.messages import DEADLINE, Response
from mcp_oauth.sansio.steps import (
    Acquired,
    Busy,
    Conflict,
    Event,
    Extended,
    Loaded,
    Released,
    Save,
    Saved,
    StoreFailed,
    Woke,
)
from tests.sansio.scripts import KEY, SEED, Line, each, grant, parent, play, record, saved, tokens, unlike
from tests.sansio.walks import LOST, NOW, UNSENT, later, table
from tests.sansio.worlds import Run

OLD = grant(1)
EARLY = grant(1, left=30)
POST = "POST as.example/token rt1"
INTENT = "Save r0: *as(at1 rt1) intent rt1 of us"
RELEASE: Line = ("Release", Released())
FULL = StoreFailed("disk full")


OURS = Intent(SEED.text("intent"), parent(1), "us", NOW.wall + INTENT_SECONDS)
"""Of the first start."""


def leased(stored: GrantRecord, seconds: float = 13.0, at: float = 0.0) -> Line:
    return ("Acquire", Acquired(stored, NOW.elapsed + at + seconds, exclusive=False), at)


def theirs(attempt: str = "a1", *, ends: float = 13.0, presented: int = 1) -> Intent:
    return Intent(attempt, parent(presented), "pid 2 on host", NOW.wall + ends)


def renew(script: list[Line], end: str, stored: GrantRecord | None = None, refused: str | None = None) -> Run:
    """From the first lock on; `stored` is what it finds."""
    step = renewal.begin(KEY, OLD, unlike=refused, seed=SEED, jitter=0.0, holder="us")
    return play(renewal, step, [leased(stored or record(OLD)), *script], end)


def effect_of(run: Run, kind: type[Any], n: int = 0) -> Any:
    return [step.effect for step in run.steps[:-1] if isinstance(step.effect, kind)][n]


def test_rules_4_7_the_intent_comes_first_and_the_renewed_grant_ends_it() -> None:
    kept = "Save *: *as(at2 rt2)"
    run = renew([(INTENT, Saved(), 1), (POST, tokens(2), 2), (kept, Saved()), RELEASE], "Done renewed at2")
    intended, renewed = saved(run)
    assert intended.intent is not None
    assert intended.intent.send_until == NOW.wall + INTENT_SECONDS
    assert effect_of(run, Save, 1).expected == intended.revision
    assert renewed.intent is None
    assert renewed.grants[0].obtained_at == NOW.wall + 1


def test_a_lock_of_the_system_needs_no_intent() -> None:
    step = renewal.begin(KEY, OLD, unlike=None, seed=SEED, jitter=0.0, holder="us")
    play(renewal, step, [("Acquire", Acquired(record(OLD)))], POST)


@table(
    "answer, end",
    {
        "RULES-4.7-the-store-cannot-be-written": (FULL, "Failed store-failed"),
        "RULES-4.6-somebody-has-renewed-meanwhile": (Conflict(record(grant(2, left=3600))), "Done stored at2"),
        "RULES-4.6-and-that-has-run-out": (Conflict(record(grant(2))), "Done none"),
        "RULES-4.6-a-logout": (Conflict(record(logged_out=True)), "Done none"),
        "RULES-4.6-the-record-is-gone": (Conflict(None), "Done none"),
        "RULES-4.8-somebody-else-intends-to": (Conflict(record(OLD, intent=theirs())), "Sleep 0.0*"),
    },
)
def test_without_its_intent_nothing_is_sent(answer: Event, end: str) -> None:
    renew([(INTENT, answer), RELEASE], end)


def outrun(n: int, **more: Any) -> Line:
    """The intent meets a record that somebody has only noted something in."""
    claim = LoginClaim("theirs", "pid 2 on host", NOW.wall + 20)
    return (f"Save r{n}: *", Conflict(record(OLD, revision=f"r{n + 1}", login=claim, **more)))


def test_rules_4_13_a_claim_that_was_saved_meanwhile_is_saved_over_under_the_same_lock() -> None:
    both = "Save r1: *as(at1 rt1) claim theirs intent rt1 of us"
    kept = "Save *: *as(at2 rt2) claim theirs"
    run = renew([outrun(0), (both, Saved()), (POST, tokens(2)), (kept, Saved()), RELEASE], "Done renewed at2")
    assert len({one.intent.attempt for one in saved(run) if one.intent}) == 2


def test_rules_4_9_nothing_is_sent_if_that_takes_longer_than_the_lock_lasts() -> None:
    renew([outrun(0), ("Save r1: *", Saved(), 3.1), RELEASE], "Sleep 0")


def test_rules_4_10_outrun_four_times_it_looks_again() -> None:
    saved(renew([*map(outrun, range(4)), RELEASE], "Done none"))


def test_rules_4_8_an_earlier_intent_of_its_own_that_still_stands_is_not_waited_for() -> None:
    """It was too late to send, and then outrun; the claim that did it was saved over the first intent."""
    late: list[Line] = [(INTENT, Saved(), 4), RELEASE, ("Sleep 0", Woke()), leased(record(OLD, intent=OURS), at=4)]
    again: Line = ("Save r1: *as(at1 rt1) claim theirs intent rt1 of us", Saved())
    run = renew([*late, outrun(0, intent=OURS), again], POST)
    assert run.end.state.task.cut_off == ""


@table(
    "lease, passed, then",
    {
        "RULES-4.9-in-time": (13.0, 3.0, POST),
        "RULES-4.9-too-late-by-the-elapsed-time-of-the-lease": (12.9, 3.0, "Sleep 0"),
        "RULES-4.9-too-late-by-the-wall-time-of-the-intent": (99.0, 3.1, "Sleep 0"),
        "RULES-4.9-lapsed": (13.0, 99.0, "Sleep 0"),
    },
)
def test_sent_only_if_the_lease_outlives_the_deadline(lease: float, passed: float, then: str) -> None:
    step = renewal.begin(KEY, OLD, unlike=None, seed=SEED, jitter=0.0, holder="us")
    script = [leased(record(OLD), lease), (INTENT, Saved(), passed), *[RELEASE] * then.startswith("Sleep")]
    play(renewal, step, script, then)


def paused(at: float, stored: GrantRecord) -> list[Line]:
    """Stopped for so long after it saved its intent that it may not send any more."""
    intent: Line = ("Save *: *as(at1 rt1) intent rt1 of us", Saved(), at + 4)
    return [leased(stored, at=at), intent, RELEASE, ("Sleep 0", Woke(), at + 4)]


def test_rules_4_8_its_own_intent_that_came_to_nothing_is_not_waited_for() -> None:
    step = renewal.begin(KEY, OLD, unlike=None, seed=SEED, jitter=0.0, holder="us")
    run = play(renewal, step, paused(0, record(OLD)), "Acquire")
    mine = saved(run)[-1]
    run = play(renewal, step, [*paused(0, record(OLD)), leased(mine, at=4)], f"Save {mine.revision}: *")
    assert len({one.intent.attempt for one in saved(run) if one.intent}) == 2


def test_rules_4_9_a_store_that_is_always_too_slow_is_told() -> None:
    step = renewal.begin(KEY, OLD, unlike=None, seed=SEED, jitter=0.0, holder="us")
    script = [line for n in range(3) for line in paused(4.0 * n, record(OLD))]
    run = play(renewal, step, [*script, *paused(12, record(OLD))[:3]], "Failed store-failed")
    assert "its saves take longer than its locks last" in run.end.error.message


# --- The answer is lost ----------------------------------------------------------------------------------------------


@table(
    "answer, then",
    {
        "RULES-4.9-presented-once-more-under-a-longer-lease": (Extended(NOW.elapsed + 10 + DEADLINE), POST),
        "RULES-4.9-not-long-enough": (Extended(NOW.elapsed + 9.9 + DEADLINE), "Save *: *as(at1 rt1 +15s)"),
        "RULES-4.9-the-lease-is-lost": (Extended(None), "Release"),
        "RULES-4.9-nobody-can-tell": (FULL, "Save *: *as(at1 rt1 +15s)"),
    },
)
def test_an_ambiguous_answer(answer: Event, then: str) -> None:
    renew([(INTENT, Saved()), (POST, LOST, 10), ("Extend", answer)], then)


TOO_SHORT: Line = ("Extend", Extended(NOW.elapsed + 9.9 + DEADLINE))


def test_rules_4_9_the_lease_is_too_short_and_the_grant_kept() -> None:
    script: list[Line] = [(INTENT, Saved()), (POST, LOST, 10), TOO_SHORT]
    run = renew([*script, ("Save *: *as(at1 rt1 +15s)", Saved()), RELEASE], "Failed renewal-ambiguous")
    assert "the answer to the renewal was lost: " in run.end.error.message
    assert saved(run)[-1].intent is None


def test_rules_4_9_both_answers_are_lost() -> None:
    extended = Extended(NOW.elapsed + 23)
    script: list[Line] = [(INTENT, Saved()), (POST, LOST, 10), ("Extend", extended), (POST, LOST, 20)]
    renew([*script, ("Save *: *as(at1 rt1 +25s)", Saved()), RELEASE], "Failed renewal-ambiguous")


LOCK_LOST: tuple[Line, ...] = (
    (INTENT, Saved()),
    (POST, LOST, 10),
    ("Extend", Extended(None)),
    RELEASE,
    ("Sleep 0", Woke(), 10),
)
"""The answer, and the lock with it: it starts again at once, within the server's grace."""
LOCKED_ANEW: tuple[Line, ...] = (*LOCK_LOST, leased(record(OLD, intent=OURS), at=10))


def test_rules_4_9_the_lock_is_lost_and_the_token_presented_once_more_under_a_new_one() -> None:
    kept = "Save *: *as(at2 rt2)"
    run = renew([*LOCKED_ANEW, (INTENT, Saved()), (POST, tokens(2)), (kept, Saved()), RELEASE], "Done renewed at2")
    assert saved(run)[-1].grants[0].unanswered
    assert run.notices == ["renewed"]


@each("under", {"a-lease": 23.0, "a-lock-of-the-system": None})
def test_rules_3_3_but_only_once_more_whatever_the_lock(under: float | None) -> None:
    anew: Line = ("Acquire", Acquired(record(OLD), under and NOW.elapsed + under), 10)
    sent: list[Line] = [*[(INTENT, Saved())] * (under is not None), (POST, LOST, 20)]
    script = [*LOCK_LOST, anew, *sent, ("Save *: *as(at1 rt1 +25s)", Saved()), RELEASE]
    run = renew(script, "Failed renewal-ambiguous")
    assert "the answer to the renewal was lost: " in run.end.error.message
    assert saved(run)[-1].grants[0].unanswered


@table(
    "stored, then",
    {
        "RULES-4.6-a-peer-has-renewed": (record(grant(2, left=3600)), "Done stored at2"),
        "RULES-4.6-a-logout": (record(logged_out=True), "Done none"),
        "RULES-4.8-a-peer-intends-to": (record(OLD, intent=theirs()), "Sleep 0.0*"),
    },
)
def test_what_the_new_lock_finds(stored: GrantRecord, then: str) -> None:
    renew([*LOCK_LOST, leased(stored, at=10), RELEASE], then)


def test_rules_4_4_the_new_lock_is_a_peers() -> None:
    script: list[Line] = [*LOCK_LOST, ("Acquire", Busy("pid 2 on host")), *seen(record(grant(2, left=3600)), 11)]
    renew(script, "Done stored at2")


def test_rules_4_9_not_processed_the_second_time_is_tried_again_and_the_first_remembered() -> None:
    noted = replace(OLD, next_attempt_at=NOW.wall + 12, unanswered=True)
    rest: list[Line] = [("Save *: *as(at1 rt1 +12s)", Saved()), RELEASE, ("Sleep 2", Woke(), 12)]
    script = [*LOCKED_ANEW, (INTENT, Saved()), (POST, UNSENT), *rest, leased(record(noted), at=12)]
    run = renew([*script, ("Save *", Saved()), (POST, LOST)], "Save *: *as(at1 rt1 +17s)")
    assert all(one.grants[0].unanswered for one in saved(run)[2:])


def test_design_1_the_lock_is_lost_after_three_starts() -> None:
    script: list[Line] = []
    for n, (at, seconds) in enumerate([(0, 1), (1, 2), (3, 4)]):
        noted = record(replace(OLD, next_attempt_at=NOW.wall + at), revision=f"r{n}")
        rest: list[Line] = [("Save *", Saved()), RELEASE, (f"Sleep {seconds}", Woke(), at + seconds)]
        script += [leased(noted, at=at), ("Save *", Saved()), (POST, UNSENT), *rest]
    lost: list[Line] = [("Save *", Saved()), (POST, LOST), ("Extend", Extended(None)), ("Save *", Saved()), RELEASE]
    renew([*script[1:], leased(record(OLD), at=7), *lost], "Failed renewal-ambiguous")


def test_each_start_has_an_intent_of_its_own() -> None:
    """After a request that was certainly not processed; no revision recurs (RULES 4.2)."""
    noted = with_grant(record(OLD, revision="r1"), replace(OLD, next_attempt_at=NOW.wall + 1))
    script: list[Line] = [
        (INTENT, Saved()),
        (POST, UNSENT),
        ("Save *: *as(at1 rt1 +1s)", Saved()),
        RELEASE,
        ("Sleep 1", Woke(), 1),
        leased(noted, at=1),
        ("Save r1: *as(at1 rt1 +1s) intent rt1 of us", Saved()),
        (POST, tokens(2)),
        ("Save *: *as(at2 rt2)", Saved()),
        RELEASE,
    ]
    run = renew(script, "Done renewed at2")
    intents = [one.intent.attempt for one in saved(run) if one.intent is not None]
    assert len(set(intents)) == 2


@table(
    "theirs, end",
    {
        "RULES-4.9-a-peer-has-renewed-meanwhile": (record(grant(2, left=3600)), "Done none"),
        "only-a-login-was-announced": (record(OLD, revision="r9"), "Failed renewal-ambiguous"),
        "RULES-4.10-a-logout": (record(logged_out=True), "Failed renewal-ambiguous"),
    },
)
def test_an_answer_was_lost_and_the_record_has_changed(theirs: GrantRecord, end: str) -> None:
    script: list[Line] = [(INTENT, Saved()), (POST, LOST, 10), TOO_SHORT]
    renew([*script, ("Save *: *as(at1 rt1 +15s)", Conflict(theirs)), RELEASE], end)


# --- Somebody else's intent -------------------------------------------------------------------------------------------


@table(
    "intent, then",
    {
        "RULES-4.8-may-be-under-way": (theirs(), "Sleep 0.0*"),
        "RULES-4.8-clocks-differ": (theirs(ends=-MOST_SKEW), "Sleep 0.0*"),
        "RULES-4.8-long-over": (theirs(ends=-MOST_SKEW - 0.1), INTENT),
        "RULES-4.8-of-a-token-before-this-one": (theirs(presented=0), INTENT),
    },
)
def test_an_intent_of_somebody_else(intent: Intent, then: str) -> None:
    renew([RELEASE] * then.startswith("Sleep"), then, record(OLD, intent=intent))


def seen(stored: GrantRecord, at: float = 0.0) -> list[Line]:
    """A poll that finds this: read without the lock."""
    return [("Sleep *", Woke()), ("Load", Loaded(stored), at)]


STUCK = record(OLD, intent=theirs(ends=7200))
"""By a clock that is hours ahead."""


@each(
    "before",
    {
        "RULES-4.8-from-the-lock-on": [leased(STUCK), RELEASE],
        "RULES-4.4-while-the-lock-was-held": [("Acquire", Busy("pid 2 on host")), *seen(STUCK)],
    },
)
def test_rules_4_8_unchanged_for_as_long_as_it_could_be_sent_it_is_dead(before: list[Line]) -> None:
    """Watched by our own clock, and read without taking the lock."""
    script = [*before, *seen(STUCK, 12.9), *seen(STUCK, 13), leased(STUCK, at=13), (INTENT, Saved()), (POST, tokens(2))]
    step = renewal.begin(KEY, OLD, unlike=None, seed=SEED, jitter=0.0, holder="us")
    run = play(renewal, step, script, "Save *: *as(at2 rt2)")
    ours = saved(run)[0].intent
    assert ours is not None
    assert ours.send_until == later(13).wall + INTENT_SECONDS


def test_rules_4_4_its_result_is_taken_as_soon_as_it_is_there() -> None:
    script = [RELEASE, *seen(STUCK, 1), *seen(record(grant(2, left=3600)), 1.1)]
    assert renew(script, "Done stored at2", STUCK).notices == ["lock-busy"]


def test_rules_4_8_another_intent_is_another_wait_but_not_for_ever() -> None:
    script: list[Line] = [RELEASE]
    for n in range(exchange.MOST_POLLS - 1):
        script += seen(record(OLD, intent=theirs(f"a{n // 12}")), float(n))
    run = renew([*script, *seen(record(OLD, intent=theirs("a9")), 36)], "Failed renewal-busy", STUCK)
    assert run.end.error.reason is Reason.RENEWAL_BUSY
    assert run.end.error.message == "the grant is locked by pid 2 on host"


@table(
    "refused, end",
    {
        "RULES-4.8-waits-only-if-the-token-is-unusable": (None, "Done stored at1"),
        "RULES-4.8-it-was-refused": (unlike(1), "Sleep 0.0*"),
    },
)
def test_while_the_token_lives(refused: str | None, end: str) -> None:
    renew([RELEASE], end, record(EARLY, intent=theirs()), refused)


def test_what_ends_an_intent() -> None:
    """A grant put into the record: whatever was to be sent has been, or is another's affair."""
    assert with_grant(record(OLD, intent=theirs()), grant(2)).intent is None


def test_not_processed_under_a_lease() -> None:
    script: list[Line] = [(INTENT, Saved()), (POST, Response(503)), ("Save *: *as(at1 rt1 +1s)", Saved()), RELEASE]
    renew(script, "Sleep 1")
