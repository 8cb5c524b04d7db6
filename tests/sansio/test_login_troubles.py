"""A login that others, time or a refusal come between: taken over, withdrawn, saved late, done again."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from msgspec.structs import replace

from mcp_oauth.sansio import login
from mcp_oauth.sansio.attempt import HEARTBEAT, HOLD_BACK, TWO_LEG
from mcp_oauth.sansio.authorization_code import PATIENCE
from mcp_oauth.sansio.errors import Reason
from mcp_oauth.sansio.grant import Grant, GrantRecord, LoginClaim, Registration, RegistrationRecord
from mcp_oauth.sansio.login import MOST_POLLS, MOST_SAVES
from mcp_oauth.sansio.plan import Plan
from mcp_oauth.sansio.steps import (
    Await,
    Conflict,
    Failed,
    Listening,
    Loaded,
    Misuse,
    Need,
    OpenBrowser,
    Redirected,
    Save,
    Saved,
    Send,
    StillWaiting,
    UserFailed,
    Woke,
)
from tests.sansio.logins import (
    ASKED,
    BACK,
    CALLBACK,
    CLAIM,
    CLAIMED,
    DISCOVERED,
    EXCHANGED,
    FULL,
    LISTENING,
    METADATA,
    OPENED,
    PLAN,
    RESOURCE,
    STATE,
    STEP_UP,
    WITHDRAWN,
    begin,
    reason,
    records,
    refuse,
    resource_metadata,
    run,
    theirs,
)
from tests.sansio.scripts import ELSEWHERE, ISSUER, KEY, SEED, SERVER, Line, each, grant, parent, record, saved, unlike
from tests.sansio.walks import CANARY, LOST, NOW, answer, table, walk
from tests.sansio.worlds import Run

BUSY = record(login=theirs())
OURS = LoginClaim(CLAIM, "pid 1 on host", NOW.wall + 60)


class TestElsewhere:
    """RULES 4.13: somebody else is logging in."""

    def test_rules_4_13_its_result_is_taken(self) -> None:
        done = record(grant(3, left=3600), revision="r1")
        played = run([("Sleep 1", Woke()), ("Load", Loaded(done))], "Done stored at3", stored=BUSY)
        assert played.notices == ["login-elsewhere"]

    def test_rules_4_13_the_wait_is_told_once(self) -> None:
        polls: list[Line] = [("Sleep 1", Woke()), ("Load", Loaded(BUSY))] * 2
        assert run(polls, "Sleep 1", stored=BUSY).notices == ["login-elsewhere"]

    @table(
        "need, token",
        {
            "RULES-4.6-the-refused-one": (Need("refused", unlike(3)), {"left": 3600.0}),
            "RULES-4.6-the-refused-one-has-run-out": (Need("refused", unlike(3)), {"left": 0.0}),
            "RULES-3.5-scopes-missing": (STEP_UP, {"left": 3600.0}),
            "RULES-3.5-scopes-missing-and-run-out": (STEP_UP, {"left": 0.0}),
            "RULES-4.2-run-out-and-dead": (ASKED, {"left": 0.0, "refused": parent(3)}),
            "RULES-4.2-run-out-without-refresh-token": (ASKED, {"left": 0.0, "refresh_token": None}),
            "RULES-4.3-run-out-and-of-another-plan": (ASKED, {"left": 0.0, "resource": None}),
            "RULES-4.13-run-out-and-of-the-lineage-that-would-not-do": (ASKED, {"left": 0.0, "lineage": "lineage"}),
        },
    )
    def test_a_token_that_will_not_do(self, need: Need, token: dict[str, Any]) -> None:
        before = record(grant(1), login=theirs())
        done = record(grant(3, **{"lineage": "new", **token}), revision="r1")
        run([("Sleep 1", Woke()), ("Load", Loaded(done))], "Save r1: * claim *", need=need, stored=before)

    @table(
        "need, before, token",
        {
            "RULES-4.6-run-out": (ASKED, (), {"left": 0.0}),
            "RULES-4.6-in-its-leeway": (ASKED, (), {"left": 59.0}),
            "RULES-4.13-another-lineage-than-before": (ASKED, (grant(1),), {"left": 0.0}),
            "RULES-3.5-with-the-scopes": (STEP_UP, (grant(1),), {"left": 0.0, "requested": ("a", "b")}),
            "RULES-3.1-refused-another-one": (Need("refused", unlike(1)), (grant(1),), {"left": 0.0}),
        },
    )
    def test_rules_4_13_what_has_run_out_since_is_renewed_without_a_browser(
        self, need: Need, before: tuple[Grant, ...], token: dict[str, Any]
    ) -> None:
        """The login ends without a token: upkeep reads again."""
        done = record(grant(3, lineage="new", **token), revision="r1")
        waited: list[Line] = [("Sleep 1", Woke()), ("Load", Loaded(done))]
        run(waited, "Done none", need=need, stored=record(*before, login=theirs()))
        run([("Save r0: *", Conflict(done))], "Done none", need=need, stored=record(*before))

    def test_rules_3_5_a_token_with_the_scopes(self) -> None:
        for requested in (("a", "b"), ("b",)):
            done = record(grant(3, left=3600, requested=requested), revision="r1")
            run([("Sleep 1", Woke()), ("Load", Loaded(done))], "Done stored at3", need=STEP_UP, stored=BUSY)

    @table(
        "lineage, end",
        {
            "FN-56-forced-is-not-served-by-a-renewal": ("lineage", "Save r1: * claim *"),
            "FN-56-forced-is-served-by-another-login": ("new", "Done stored at3"),
        },
    )
    def test_forced(self, lineage: str, end: str) -> None:
        stored = record(grant(1, left=3600), login=theirs())
        renewed = record(grant(3, left=3600, lineage=lineage), revision="r1")
        run([("Sleep 1", Woke()), ("Load", Loaded(renewed))], end, need=Need("forced"), stored=stored)

    @table(
        "claim, end",
        {
            "RULES-4.13-withdrawn": (None, "Save r1: claim *"),
            "RULES-4.13-lapsed": (theirs(1), "Save r1: claim *"),
            "RULES-4.14-made-by-a-clock-far-ahead": (theirs(TWO_LEG + 2), "Save r1: claim *"),
            "RULES-4.13-our-own": (LoginClaim(CLAIM, "", NOW.wall + 60), "Save r1: claim *"),
            "RULES-4.13-still-there": (theirs(), "Sleep 1"),
        },
    )
    def test_taken_over(self, claim: LoginClaim | None, end: str) -> None:
        after = record(login=claim, revision="r1")
        run([("Sleep 1", Woke()), ("Load", Loaded(after), 1.0)], end, stored=BUSY)

    def test_rules_4_13_waits_six_minutes_at_most(self) -> None:
        forever = record(login=theirs(TWO_LEG))
        polls: list[Line] = [("Sleep 1", Woke()), ("Load", Loaded(forever))] * MOST_POLLS
        assert "pid 2 on host" in str(run(polls, "Failed login-elsewhere", stored=forever).end.error)

    def test_rules_4_10_the_store_fails(self) -> None:
        run([("Sleep 1", Woke()), ("Load", FULL)], "Failed store-failed", stored=BUSY)

    @table(
        "script, end",
        {
            "RULES-4.10-our-claim-stands": (
                [("Load", Loaded(record(login=OURS, revision="r1"))), ("Save r1: claim *", Saved()), *DISCOVERED],
                "Listen",
            ),
            "RULES-4.10-it-does-not": ([("Load", Loaded(None)), CLAIMED, *DISCOVERED], "Listen"),
            "RULES-4.13-somebody-else-claimed": ([("Load", Loaded(BUSY))], "Sleep 1"),
            "RULES-4.13-somebody-else-has-logged-in": (
                [("Load", Loaded(record(grant(3, left=3600))))],
                "Done stored at3",
            ),
            "RULES-4.11-it-fails-again": ([("Load", Loaded(None)), ("Save None: *", FULL)], "Failed store-failed"),
            "RULES-4.11-it-fails-again-after-a-wait": (
                [
                    ("Load", Loaded(BUSY)),
                    ("Sleep 1", Woke()),
                    ("Load", Loaded(record())),
                    ("Save r0: *", FULL),
                    ("Load", Loaded(record())),
                    ("Save r0: *", FULL),
                ],
                "Failed store-failed",
            ),
            "RULES-4.11-it-cannot-be-read": ([("Load", FULL)], "Failed store-failed"),
        },
    )
    def test_a_claim_that_may_or_may_not_have_been_saved(self, script: list[Line], end: str) -> None:
        """A lost answer is settled by reading, once in a row."""
        saved(run([("Save None: claim *", FULL), *script], end))

    def test_rules_4_10_somebody_else_was_faster(self) -> None:
        run([("Save None: claim *", Conflict(replace(BUSY, revision="r9")))], "Sleep 1")

    def test_design_1_conflicts_without_end(self) -> None:
        run([("Save *", Conflict(record()))] * MOST_SAVES, "Failed store-contended")

    def test_rules_4_10_the_record_is_gone(self) -> None:
        run([("Save None: *", Conflict(None)), CLAIMED], "GET *")

    def test_rules_4_2_no_revision_recurs(self) -> None:
        assert len(saved(run([("Save *", Conflict(record())), CLAIMED], "GET *"))) == 2


class TestPersonTakesTime:
    """RULES 4.13: the heartbeat."""

    WAITED: tuple[Line, ...] = (*OPENED, ("OpenBrowser", StillWaiting(), 100.0))

    def test_rules_4_13_the_claim_is_renewed(self) -> None:
        played = run([*self.WAITED, ("Save *: claim *", Saved())], "OpenBrowser")
        assert records(played)[-1].login == LoginClaim(CLAIM, "pid 1 on host", NOW.wall + 100 + HEARTBEAT)
        assert HEARTBEAT >= 3 * PATIENCE
        assert played.end.effect.opened

    def test_rules_4_13_every_beat_has_its_own_revision(self) -> None:
        beats: list[Line] = [("OpenBrowser", StillWaiting()), ("Save *: claim *", Saved())]
        played = run([*OPENED, *beats * 5, *EXCHANGED, ("Save *", Saved())], "Done login at7")
        assert len({one.revision for one in records(played)}) == len(records(played))

    def test_rules_4_10_every_beat_is_saved_over_the_one_before(self) -> None:
        beats: list[Line] = [("OpenBrowser", StillWaiting()), ("Save *: claim *", Saved())]
        played = run([*OPENED, *beats * 2, *EXCHANGED, ("Save *", Saved())], "Done login at7")
        saves = [step.effect for step in played.steps if isinstance(getattr(step, "effect", None), Save)]
        assert [one.expected for one in saves] == [None, *(one.record.revision for one in saves[:-1])]

    def test_rules_2_14_a_redirect_of_another_login_does_not_count_the_beats_anew(self) -> None:
        beat: list[Line] = [("OpenBrowser", StillWaiting()), ("Save *: claim *", Saved())]
        stray: Line = ("OpenBrowser", Redirected(f"{CALLBACK}?code=x&state=other"))
        assert len(saved(run([*OPENED, *beat, stray, *beat, stray], "OpenBrowser"))) == 3

    def test_rules_4_11_a_store_that_fails_stops_nobody(self) -> None:
        script = [*self.WAITED, ("Save *", FULL), ("OpenBrowser", StillWaiting()), ("Save *", Saved()), *EXCHANGED]
        run([*script, ("Save *", Saved())], "Done login at7")

    def test_rules_4_10_a_renewal_came_between(self) -> None:
        """The same lineage as before: it will not do, and the person goes on."""
        renewed = record(grant(2, left=-1), login=LoginClaim(CLAIM, "", NOW.wall + 99), revision="r5")
        script = [*self.WAITED, ("Save *", Conflict(renewed)), *EXCHANGED, ("Save r5: *as(at7 rt7)", Saved())]
        run(script, "Done login at7", stored=record(grant(1)))

    @table(
        "left, end", {"RULES-4.13-adopted": (9999.0, "Done stored at3"), "RULES-4.13-to-be-renewed": (0.0, "Done none")}
    )
    def test_somebody_else_took_over_and_has_logged_in(self, left: float, end: str) -> None:
        run([*self.WAITED, ("Save *", Conflict(record(grant(3, left=left), revision="r5")))], end)

    OVER = record(login=theirs(130), revision="r5")
    TAKEN_OVER: tuple[Line, ...] = (*WAITED, ("Save *", Conflict(OVER)))

    @each(
        "ours", {"lasts": theirs(130), "lapsed": theirs(60), "RULES-4.14-of-a-clock-far-ahead": theirs(TWO_LEG + 101)}
    )
    def test_rules_4_13_somebody_else_took_over_and_ours_fails(self, ours: LoginClaim) -> None:
        """A login that fails leaves the other's claim alone."""
        over = record(login=ours, revision="r5")
        script = [*self.WAITED, ("Save *", Conflict(over)), ("OpenBrowser", refuse("access_denied"))]
        run(script, "Failed access-denied")

    def test_rules_4_13_somebody_else_took_over_and_ours_is_faster(self) -> None:
        run([*self.TAKEN_OVER, *EXCHANGED, ("Save r5: *as(at7 rt7)", Saved())], "Done login at7")

    @table(
        "until, at, then",
        {
            "RULES-4.13-it-lasts": (130.0, 129.9, "Load"),
            "RULES-4.13-it-lapsed": (130.0, 130.0, f"Save r5: claim {CLAIM}"),
            "RULES-4.14-of-a-clock-far-ahead": (TWO_LEG + 130.1, 130.0, f"Save r5: claim {CLAIM}"),
        },
    )
    def test_a_claim_of_whoever_took_over_is_not_overwritten(self, until: float, at: float, then: str) -> None:
        over = record(login=theirs(until), revision="r5")
        run([*self.WAITED, ("Save *", Conflict(over)), ("OpenBrowser", StillWaiting(), at)], then)

    def test_rules_4_13_when_it_lapses_we_beat_again_and_see_whether_it_was_renewed(self) -> None:
        renewed = record(login=theirs(150), revision="r6")
        script: list[Line] = [
            *self.TAKEN_OVER,
            *self.watched(self.OVER, 125.0),
            ("OpenBrowser", StillWaiting(), 130.0),
            ("Save r5: claim *", Conflict(renewed)),
            *self.watched(renewed, 135.0),
        ]
        run([*script, ("OpenBrowser", StillWaiting(), 150.0)], f"Save r6: claim {CLAIM}")

    @staticmethod
    def watched(found: GrantRecord | None, at: float = 105.0) -> list[Line]:
        """A heartbeat while the claim is another's."""
        return [("OpenBrowser", StillWaiting(), at), ("Load", Loaded(found))]

    @table(
        "found, then",
        {
            "RULES-4.13-his-login-is-adopted": (record(grant(3, left=9999), revision="r6"), "Done stored at3"),
            "RULES-4.13-his-login-is-to-be-renewed": (record(grant(3, left=0), revision="r6"), "Done none"),
            "RULES-4.10-a-logout-came-between": (record(logged_out=True, revision="r6"), "Failed logged-out"),
            "RULES-4.13-he-is-still-at-it": (OVER, "OpenBrowser"),
            "RULES-4.13-he-has-given-up": (record(revision="r6"), "OpenBrowser"),
            "RULES-4.10-the-record-is-gone": (None, "OpenBrowser"),
        },
    )
    def test_whoever_took_over_is_watched(self, found: GrantRecord | None, then: str) -> None:
        run([*self.TAKEN_OVER, *self.watched(found)], then)

    @table(
        "found, save",
        {
            "RULES-4.13-when-he-has-given-up": (record(revision="r6"), f"Save r6: claim {CLAIM}"),
            "RULES-4.10-when-the-record-is-gone": (None, f"Save None: claim {CLAIM}"),
        },
    )
    def test_the_claim_is_made_anew(self, found: GrantRecord | None, save: str) -> None:
        run([*self.TAKEN_OVER, *self.watched(found), ("OpenBrowser", StillWaiting())], save)

    def test_rules_4_13_a_later_claim_of_his_is_seen(self) -> None:
        """Renewed until after the one that we knew has lapsed."""
        renewed = record(login=theirs(150), revision="r6")
        run([*self.TAKEN_OVER, *self.watched(renewed, 125.0), *self.watched(renewed, 145.0)], "OpenBrowser")

    def test_rules_4_11_a_store_that_cannot_be_read_stops_nobody(self) -> None:
        script: list[Line] = [*self.TAKEN_OVER, ("OpenBrowser", StillWaiting()), ("Load", FULL), *self.watched(None)]
        run([*script, *EXCHANGED, ("Save None: *as(at7 rt7)", Saved())], "Done login at7")

    @table(
        "answers, end",
        {
            "RULES-4.13-his-claim-is-left-alone": ([("Load", Loaded(OVER))], "Failed login-timed-out"),
            "RULES-4.11-what-cannot-be-read-too": ([("Load", FULL)], "Failed login-timed-out"),
            "RULES-4.10-ours-that-stands-again-is-withdrawn": (
                [("Load", Loaded(record(login=OURS, revision="r4"))), ("Save r4: ", Saved())],
                "Failed login-timed-out",
            ),
        },
    )
    def test_nobody_comes_while_another_is_watched(self, answers: list[Line], end: str) -> None:
        script = [*self.TAKEN_OVER, ("OpenBrowser", StillWaiting()), *answers]
        run(script, end, plan=replace(PLAN, login_seconds=2 * PATIENCE))

    def test_rules_4_13_it_lapsed_and_the_claim_is_ours_again(self) -> None:
        script = [*self.TAKEN_OVER, ("OpenBrowser", StillWaiting(), 130.0), (f"Save r5: claim {CLAIM}", Saved())]
        played = run([*script, ("OpenBrowser", refuse("access_denied")), WITHDRAWN], "Failed access-denied")
        assert records(played)[-1].login is None

    def test_rules_4_10_a_logout_came_between(self) -> None:
        run([*self.WAITED, ("Save *", Conflict(record(logged_out=True)))], "Failed logged-out")

    def test_rules_4_10_a_login_after_a_logout_is_not_stopped_by_it(self) -> None:
        """Not even if a heartbeat was lost."""
        gone = record(logged_out=True)
        played = run([CLAIMED], "GET *", stored=gone)
        ours = records(played)[0]
        script = [*self.WAITED, ("Save *", FULL), ("OpenBrowser", StillWaiting()), ("Save *", Conflict(ours))]
        run([*script, *EXCHANGED, ("Save *", Saved())], "Done login at7", stored=gone)

    def test_rules_4_10_the_record_is_gone(self) -> None:
        run([*self.WAITED, ("Save *", Conflict(None)), ("OpenBrowser", StillWaiting())], "Save None: claim *")

    def test_rules_4_10_the_record_is_gone_at_the_end(self) -> None:
        run([*self.WAITED, ("Save *", Conflict(None)), *EXCHANGED], "Save None: *as(at7 rt7)")

    def test_fn_30_nobody_comes(self) -> None:
        plan = replace(PLAN, login_seconds=2 * PATIENCE)
        beats: list[Line] = [("OpenBrowser", StillWaiting(), 0.0), ("Save *", Saved())]
        played = run([*OPENED, *beats * 2, WITHDRAWN], "Failed login-timed-out", plan=plan)
        assert records(played)[-1].no_login_before == NOW.wall + HOLD_BACK

    def test_fn_30_nobody_comes_and_a_renewal_came_between(self) -> None:
        renewed = record(grant(2), login=LoginClaim(CLAIM, "", NOW.wall + 99), revision="r5")
        script = [*OPENED, ("OpenBrowser", StillWaiting(), 0.0), ("Save *", Conflict(renewed)), WITHDRAWN]
        plan = replace(PLAN, login_seconds=PATIENCE)
        played = run(script, "Failed login-timed-out", plan=plan, stored=record(grant(1)))
        assert records(played)[-1].no_login_before == NOW.wall + HOLD_BACK


class TestFails:
    """The claim is taken back; what troubled a person in vain is not repeated unasked (RULES 3.4)."""

    @table(
        "script, expected, held_back",
        {
            "RULES-3.4-denied": ((("OpenBrowser", refuse("access_denied")),), Reason.ACCESS_DENIED, True),
            "RULES-3.4-error": ((("OpenBrowser", refuse("server_error")),), Reason.CALLBACK_ERROR, True),
            "RULES-3.4-exchange-refused": (
                (("OpenBrowser", BACK), ("POST *", answer(400, error="invalid_grant"))),
                Reason.EXCHANGE_REFUSED,
                True,
            ),
            "RULES-3.4-unreadable": ((("OpenBrowser", BACK), ("POST *", answer(200))), Reason.TOKEN_UNREADABLE, True),
            "RULES-2.11-preregistered-is-not-registered-again": (
                (("OpenBrowser", BACK), ("POST *", answer(401, error="invalid_client"))),
                Reason.CLIENT_REFUSED,
                True,
            ),
            "RULES-2.14-exchange-lost": ((("OpenBrowser", BACK), ("POST *", LOST)), Reason.EXCHANGE_LOST, False),
            "FN-47-no-browser": ((("OpenBrowser", UserFailed("none")),), Reason.USER_UNAVAILABLE, False),
        },
    )
    def test_after_the_browser(self, script: tuple[Line, ...], expected: Reason, held_back: bool) -> None:
        played = run([*OPENED, *script, WITHDRAWN], f"Failed {expected.value}")
        withdrawn = records(played)[-1]
        assert withdrawn.login is None
        assert (withdrawn.no_login_before is not None) == held_back
        assert not withdrawn.denied_scopes

    def test_fn_53_before_the_browser(self) -> None:
        played = run([CLAIMED, (RESOURCE[0], LOST), WITHDRAWN], "Failed server-unavailable")
        assert records(played)[-1].no_login_before is None

    def test_rules_2_9_no_client(self) -> None:
        script = [CLAIMED, *DISCOVERED, WITHDRAWN]
        run(script, "Failed client-information-needed", plan=Plan(SERVER, dynamic=None))

    def test_rules_3_5_a_denied_step_up_is_remembered_and_holds_back_nothing_else(self) -> None:
        script = [*OPENED, ("OpenBrowser", refuse("access_denied")), WITHDRAWN]
        played = run(script, "Failed access-denied", need=STEP_UP, stored=record(grant(1)))
        withdrawn = records(played)[-1]
        assert withdrawn.denied_scopes == (("a", "b"),)
        assert withdrawn.no_login_before is None
        again = begin(PLAN, STEP_UP, withdrawn)
        assert isinstance(again, Failed)
        assert again.error.reason is Reason.STEP_UP_DENIED

    @table(
        "need, error",
        {
            "RULES-3.5-denied-and-no-step-up": (ASKED, "access_denied"),
            "RULES-3.5-step-up-failed-and-not-denied": (STEP_UP, "server_error"),
        },
    )
    def test_no_denied_step_up(self, need: Need, error: str) -> None:
        script = [*OPENED, ("OpenBrowser", refuse(error)), WITHDRAWN]
        withdrawn = records(run(script, "Failed *", need=need, stored=record(grant(1))))[-1]
        assert not withdrawn.denied_scopes
        assert withdrawn.no_login_before is not None

    def test_rules_3_4_what_was_held_back_stays_so(self) -> None:
        stored = record(no_login_before=NOW.wall + 5)
        played = run([*OPENED, ("OpenBrowser", UserFailed("none")), WITHDRAWN], "Failed *", stored=stored)
        assert records(played)[-1].no_login_before == NOW.wall + 5

    @each(
        "answers",
        {
            "RULES-4.13-the-store-fails": [("Save *", FULL)],
            "RULES-4.13-somebody-else's-claim-by-now": [("Save *", Conflict(record(login=theirs())))],
            "RULES-4.13-no-claim-any-more": [("Save *", Conflict(record()))],
            "RULES-4.13-no-record-any-more": [("Save *", Conflict(None))],
            "RULES-4.13-a-renewal-came-between": [
                ("Save *", Conflict(record(grant(2), login=LoginClaim(CLAIM, "", 0.0), revision="r5"))),
                ("Save r5: *as(at2 rt2)", Saved()),
            ],
        },
    )
    def test_withdrawing(self, answers: list[Line]) -> None:
        run([*OPENED, ("OpenBrowser", refuse("access_denied")), *answers], "Failed access-denied")

    def test_design_1_conflicts_without_end(self) -> None:
        ours = record(login=LoginClaim(CLAIM, "", 0.0))
        conflicts: list[Line] = [("Save *", Conflict(ours))] * (2 * MOST_SAVES - 1)
        run([*OPENED, ("OpenBrowser", refuse("access_denied")), *conflicts], "Failed access-denied")

    def test_design_1_misuse(self) -> None:
        step = begin()
        assert isinstance(step, Await)
        with pytest.raises(Misuse):
            login.advance(step.state, Woke(), now=NOW)

    def test_design_1_nobody_waits_for_a_person_while_the_code_is_exchanged(self) -> None:
        played = run([*OPENED, ("OpenBrowser", BACK)], "POST as.example/token")
        with pytest.raises(Misuse):
            login.advance(played.end.state, StillWaiting(), now=NOW)


class TestSaves:
    """RULES 4.10: what a conflict at the end means is `keeping`'s; what nobody may use is revoked."""

    SAVING: tuple[Line, ...] = (*OPENED, *EXCHANGED)

    def test_rules_4_11_only_in_memory(self) -> None:
        played = run([*self.SAVING, ("Save *", FULL), ("Load", FULL)], "Done login at7, unsaved")
        assert played.notices[-1] == "not-persisted"

    def test_rules_4_10_a_logout_came_between(self) -> None:
        script = [*self.SAVING, ("Save *", Conflict(record(logged_out=True)))]
        revoked: list[Line] = [("POST as.example/revoke rt7", answer(200)), ("POST as.example/revoke at7", LOST)]
        run([*script, *revoked], "Failed logged-out")

    def test_rules_4_10_another_login_was_faster(self) -> None:
        other = record(grant(3, left=9999, lineage="other"))
        script = [*self.SAVING, ("Save *", Conflict(other)), ("POST *", answer(200)), ("POST *", answer(200))]
        run(script, "Done stored at3")

    def test_rules_4_10_another_login_whose_token_is_the_refused_one_gives_way(self) -> None:
        other = record(grant(3, left=9999, lineage="other"))
        script: list[Line] = [*self.SAVING, ("Save *", Conflict(other))]
        run(script, "Save r0: *as(at7 rt7)", need=Need("refused", unlike(3)))

    def test_rules_4_10_another_login_of_no_revocation_endpoint(self) -> None:
        metadata = {name: value for name, value in METADATA.items() if name != "revocation_endpoint"}
        opened = [CLAIMED, RESOURCE, ("GET as*", answer(200, **metadata)), LISTENING, *EXCHANGED]
        run([*opened, ("Save *", Conflict(record(logged_out=True)))], "Failed logged-out")

    def test_rules_6_4_a_dump_after_the_exchange_holds_neither_verifier_nor_seed(self) -> None:
        played = run(self.SAVING, "Save *")
        assert not [name for name in ("seed", "verifier") if hasattr(played.end.state, name)]


class TestRegisteredAgain:
    """RULES 2.11: a dynamic client that the server has forgotten, once."""

    DCR: tuple[Any, ...] = (
        Saved(),
        resource_metadata(),
        answer(200, **METADATA, registration_endpoint=f"{ISSUER}/register"),
    )
    FORGOTTEN = refuse("invalid_client")

    def walked(self, *events: Any, **how: Any) -> Run:
        return walk(login, begin(plan=Plan(SERVER), **how), *self.DCR, *events)

    def first(self) -> tuple[Any, ...]:
        return (Loaded(None), Listening(CALLBACK), answer(201, client_id="old"), Saved())

    def second(self) -> tuple[Any, ...]:
        return (Loaded(None), Listening(CALLBACK), answer(201, client_id="new"), Saved())

    def test_rules_2_11_once(self) -> None:
        again = self.walked(*self.first(), self.FORGOTTEN, *self.second())
        assert again.notices == ["issuer-first-used", "registered", "registered-again", "registered"]
        assert parse_qs(urlsplit(again.end.effect.url).query)["client_id"] == ["new"]
        assert again.end.effect.state != STATE

    def test_rules_2_11_a_recalled_one_is_forgotten(self) -> None:
        again = self.walked(*self.RECALLED, self.FORGOTTEN, self.RECALLED[0])
        assert again.end.effect.record.registrations == ()

    def test_rules_4_2_no_revision_recurs_in_the_second_round(self) -> None:
        beat = (StillWaiting(), Saved())
        assert saved(self.walked(*self.first(), *beat, self.FORGOTTEN, *self.second(), *beat))

    def test_rules_2_10_registered_with_the_scopes_that_will_be_asked_for(self) -> None:
        step = begin(plan=Plan(SERVER, scopes=("a",)))
        played = walk(login, step, *self.DCR, Loaded(None), Listening(CALLBACK))
        assert b'"scope":"a"' in played.end.effect.request.body

    def test_rules_2_10_a_recalled_secret_lasts_long_enough(self) -> None:
        lasting = replace(self.OLD, client_secret=f"{CANARY}-s", client_secret_expires_at=NOW.wall + 1e5)
        events = (Loaded(RegistrationRecord("r", (lasting,), (KEY,))), Listening(CALLBACK))
        assert isinstance(self.walked(*events).end.effect, OpenBrowser)

    def test_rules_2_11_not_twice(self) -> None:
        state = SEED.child("authorization", 1).text("state")
        twice = Redirected(f"{CALLBACK}?error=invalid_client&state={state}")
        again = self.walked(*self.first(), self.FORGOTTEN, *self.second(), twice, Saved())
        assert reason(again) is Reason.CLIENT_REFUSED

    def test_rules_2_11_at_the_token_endpoint(self) -> None:
        refused = answer(401, error="invalid_client")
        again = self.walked(*self.first(), BACK, refused, *self.second())
        assert isinstance(again.end.effect, OpenBrowser)

    @table(
        "refused, asks",
        {"RULES-2.11-forgotten-at-the-last-renewal": (True, Send), "RULES-2.9-known": (False, OpenBrowser)},
    )
    def test_the_client_of_the_earlier_grant(self, refused: bool, asks: type[Any]) -> None:
        old = Registration(ISSUER, "old", "dcr", "none", CALLBACK)
        stored = record(replace(grant(1, client_refused=refused, requested=None), registration=old))
        clients = RegistrationRecord("r", (old,), (KEY,))
        events = (Loaded(clients), *((Saved(),) if refused else ()), Listening(CALLBACK))
        assert isinstance(self.walked(*events, stored=stored).end.effect, asks)

    OLD = Registration(ISSUER, "old", "dcr", "none", CALLBACK)
    RECALLED: tuple[Any, ...] = (Loaded(RegistrationRecord("r", (OLD,), (KEY,))), Listening(CALLBACK))
    ONE_ROUND = Plan(SERVER, login_seconds=PATIENCE)

    def timed_out(self, *events: Any) -> GrantRecord:
        played = walk(login, begin(plan=self.ONE_ROUND), *self.DCR, *events, StillWaiting(), Saved(), Saved())
        assert reason(played) is Reason.LOGIN_TIMED_OUT
        return records(played)[-1]

    def test_fn_31_a_recalled_client_is_doubted_after_silence(self) -> None:
        assert self.timed_out(*self.RECALLED).doubted == self.OLD

    def test_fn_31_a_new_client_is_not(self) -> None:
        assert self.timed_out(*self.first()).doubted is None

    @table(
        "issuer, asks", {"FN-31-registered-anew": (ISSUER, Send), "FN-32-at-its-own-issuer": (ELSEWHERE, OpenBrowser)}
    )
    def test_a_doubted_client(self, issuer: str, asks: type[Any]) -> None:
        stored = replace(record(), doubted=replace(self.OLD, issuer=issuer))
        events = (self.RECALLED[0], *((Saved(),) if asks is Send else ()), self.RECALLED[1])
        assert isinstance(self.walked(*events, stored=stored).end.effect, asks)

    def test_fn_31_a_login_ends_the_doubt(self) -> None:
        stored = replace(record(), doubted=self.OLD)
        registered = (*self.RECALLED[:1], Saved(), Listening(CALLBACK), answer(201, client_id="new"), Saved())
        done = self.walked(*registered, BACK, answer(200, access_token="at", token_type="Bearer"), stored=stored)
        assert records(done)[-1].doubted is None
