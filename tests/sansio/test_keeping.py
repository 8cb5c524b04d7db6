"""Saving what was obtained: conflicts in every combination, lost answers, a store that fails, a logout between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from mcp_oauth.sansio import keeping
from mcp_oauth.sansio.errors import Reason
from mcp_oauth.sansio.grant import Grant, GrantRecord, LoginClaim, RegistrationRecord, current_grant
from mcp_oauth.sansio.keeping import Keep, begin
from mcp_oauth.sansio.steps import Await, Conflict, Done, Loaded, Misuse, Saved, StoreFailed, Woke
from tests.sansio.scripts import (
    ELSEWHERE,
    ISSUER,
    KEY,
    SEED,
    Line,
    grant,
    parent,
    play,
    record,
    saved,
    token,
    unlike,
    with_scopes,
)
from tests.sansio.walks import NOW, table
from tests.sansio.worlds import Run

FULL = StoreFailed("disk full")
CLAIM = LoginClaim("ours", "pid 1 on host", NOW.wall + 60)
THEIR_CLAIM = LoginClaim("theirs", "pid 2 on host", NOW.wall + 60)

OLD = grant(1)
RENEWED = grant(2, left=3600, obtained_at=NOW.wall)
"""What a renewal of `OLD` brought."""
NEW = grant(5, left=3600, obtained_at=NOW.wall, lineage="new", generation=0, parent=None)
"""What a login brought."""


def theirs(*grants: Grant, revision: str = "r1", **more: Any) -> GrantRecord:
    return record(*grants, revision=revision, **more)


def renewal(script: Sequence[Line], end: str, *, base: GrantRecord | None = None, refused: str | None = None) -> Run:
    base = base or record(OLD)
    keep = Keep(KEY, "renewed", RENEWED, SEED, refused)
    return play(keeping, begin(keep, base, base.revision), script, end)


def login(script: Sequence[Line], end: str, *, mine: Grant = NEW, **more: Any) -> Run:
    base = record(OLD, login=CLAIM, **more)
    keep = Keep(KEY, "login", mine, SEED, unlike(1), "ours")
    return play(keeping, begin(keep, base, base.revision), script, end)


class TestRenewal:
    def test_rules_4_10_saved_over_what_was_read(self) -> None:
        run = renewal([("Save r0: *as(at2 rt2)", Saved())], "Kept renewed at2")
        assert run.notices == ["renewed"]
        assert saved(run)[0] == replace(record(RENEWED), revision=saved(run)[0].revision)

    def test_rules_4_17_not_durable_is_said(self) -> None:
        run = renewal([("Save r0: *as(at2 rt2)", Saved(durable=False))], "Kept renewed at2")
        assert run.notices == ["renewed", "not-durable"]

    @table(
        "stored, again, end",
        {
            "RULES-4.10-only-the-record-changed": (theirs(OLD, login=THEIR_CLAIM), True, ""),
            "RULES-4.10-only-the-grant-was-noted": (theirs(replace(OLD, next_attempt_at=1.0)), True, ""),
            "RULES-4.10-tombstone-of-what-I-renewed": (theirs(replace(OLD, refused=parent(1))), True, ""),
            "RULES-4.10-same-parent-sent-earlier": (theirs(grant(3, parent=parent(1), obtained_at=1.0)), True, ""),
            "RULES-4.10-same-parent-same-time": (theirs(replace(RENEWED, access_token="x")), True, ""),
            "RULES-4.10-same-parent-sent-later": (
                theirs(grant(3, left=9, obtained_at=NOW.wall + 1, parent=parent(1))),
                False,
                "Kept stored at3",
            ),
            "RULES-4.10-higher-generation": (theirs(grant(3, left=9)), False, "Kept stored at3"),
            "RULES-4.10-other-branch": (
                theirs(grant(3, left=9, parent="x", generation=1)),
                False,
                "Kept stored at3",
            ),
            "RULES-4.10-higher-generation-expired": (theirs(grant(3)), False, "Kept none"),
            "RULES-4.10-store-fell-back": (theirs(grant(0, generation=-1, parent=None)), True, ""),
            "RULES-4.10-nothing-there": (None, True, ""),
            "RULES-4.10-foreign-record": (RegistrationRecord("r1"), True, ""),
            "RULES-4.10-another-lineage": (theirs(NEW), False, "Kept stored at5, revoke at2"),
            "RULES-4.10-another-lineage-expired": (
                theirs(replace(NEW, expires_at=1.0)),
                False,
                "Kept none, revoke at2",
            ),
            "RULES-4.10-logout-is-never-undone": (theirs(logged_out=True), False, "Kept logged-out, revoke at2"),
            "RULES-4.10-logout-then-login-under-way": (theirs(login=THEIR_CLAIM), False, "Kept none, revoke at2"),
            "RULES-4.10-logout-then-login-elsewhere": (
                theirs(replace(NEW, issuer=ELSEWHERE)),
                False,
                "Kept stored at5, revoke at2",
            ),
        },
    )
    def test_conflict(self, stored: Any, again: bool, end: str) -> None:
        script: list[Line] = [("Save r0: *as(at2 rt2)", Conflict(stored))]
        if again:
            over = stored.revision if isinstance(stored, GrantRecord) else None
            claim = " claim theirs" if isinstance(stored, GrantRecord) and stored.login else ""
            script.append((f"Save {over}: *as(at2 rt2){claim}", Saved()))
        renewal(script, end or "Kept renewed at2")

    def test_rules_4_6_adopts_no_token_that_will_not_do(self) -> None:
        peers = theirs(grant(3, left=9))
        renewal([("Save r0: *as(at2 rt2)", Conflict(peers))], "Kept none", refused=unlike(3))

    def test_rules_4_1_a_login_elsewhere_stays_in_use(self) -> None:
        """The peer's login is not undone, the renewed grant is not lost, and the caller looks again."""
        other = replace(NEW, issuer=ELSEWHERE)
        script: list[Line] = [
            ("Save r0: *as(at2 rt2)", Conflict(theirs(OLD, other))),
            ("Save r1: *other(at5 rt5) as(at2 rt2)", Saved()),
        ]
        assert saved(renewal(script, "Kept none"))[-1].current == ELSEWHERE

    def test_rules_4_1_grants_of_other_issuers_stay(self) -> None:
        base = record(replace(NEW, issuer=ELSEWHERE), OLD)
        renewal([("Save r0: other(at5 rt5) *as(at2 rt2)", Saved())], "Kept renewed at2", base=base)

    def test_rules_4_10_the_peers_record_is_the_new_base(self) -> None:
        peers = theirs(
            OLD, resource_metadata_seen=True, allowed_issuers=("x",), denied_scopes=(("b",),), no_login_before=7.0
        )
        run = renewal([("Save *", Conflict(peers)), ("Save *", Saved())], "Kept renewed at2")
        kept = saved(run)[-1]
        assert kept == replace(peers, revision=kept.revision, grants=(RENEWED,))


class TestLogin:
    def test_rules_4_13_ends_its_claim_and_the_hold(self) -> None:
        run = login([("Save r0: *as(at5 rt5)", Saved())], "Kept login at5", no_login_before=7.0)
        kept = saved(run)[-1]
        assert (kept.login, kept.no_login_before, kept.allowed_issuers) == (None, None, (ISSUER,))
        assert run.notices == ["logged-in"]

    def test_rules_2_9_an_issuer_is_allowed_once(self) -> None:
        run = login([("Save *", Saved())], "Kept login at5", allowed_issuers=(ELSEWHERE, ISSUER))
        assert saved(run)[-1].allowed_issuers == (ELSEWHERE, ISSUER)

    @pytest.mark.parametrize("seen", [True, False])
    def test_rules_2_8_metadata_once_seen_is_remembered(self, seen: bool) -> None:
        keep = Keep(KEY, "login", NEW, SEED, None, "ours", resource_metadata_seen=seen)
        run = play(keeping, begin(keep, record(), None), [("Save None: *as(at5 rt5)", Saved())], "Kept login at5")
        assert saved(run)[-1].resource_metadata_seen is seen

    def test_rules_4_1_the_grant_of_the_old_issuer_stays(self) -> None:
        mine = replace(NEW, issuer=ELSEWHERE)
        login([("Save r0: as(at1 rt1) *other(at5 rt5)", Saved())], "Kept login at5", mine=mine)

    @table(
        "stored, again, end",
        {
            "RULES-4.13-claim-stands-renewal-between": (theirs(grant(2, left=99), login=CLAIM), True, ""),
            "RULES-4.13-claim-stands-same-grant": (theirs(OLD, login=CLAIM), True, ""),
            "RULES-4.10-nothing-there": (None, True, ""),
            "RULES-4.10-no-grant-there": (theirs(), True, ""),
            "RULES-4.10-claim-taken-over": (theirs(OLD, login=THEIR_CLAIM), True, ""),
            "RULES-4.10-other-grant-expired": (theirs(grant(2)), True, ""),
            "RULES-4.10-other-token-will-not-do": (theirs(replace(OLD, expires_at=NOW.wall + 99)), True, ""),
            "RULES-4.3-other-grant-lacks-scopes": (theirs(with_scopes(grant(2, left=99), "b")), True, ""),
            "RULES-4.3-other-grant-asked-for-nothing": (
                theirs(replace(grant(2, left=99), requested=None)),
                True,
                "",
            ),
            "RULES-4.3-other-issuer": (theirs(grant(2, left=99, issuer=ELSEWHERE)), True, ""),
            "RULES-4.10-another-login-stands": (
                theirs(with_scopes(grant(2, left=99), "b", "a")),
                False,
                "Kept stored at2, revoke at5",
            ),
            "RULES-4.10-it-was-mine-and-saved": (theirs(NEW), False, "Kept login at5"),
            "RULES-4.10-logout-is-never-undone": (theirs(logged_out=True), False, "Kept logged-out, revoke at5"),
        },
    )
    def test_conflict(self, stored: GrantRecord | None, again: bool, end: str) -> None:
        script: list[Line] = [("Save r0: *as(at5 rt5)", Conflict(stored))]
        if again:
            script.append((f"Save {stored.revision if stored else None}: *as(at5 rt5)", Saved()))
        run = login(script, end or "Kept login at5")
        assert not again or saved(run)[-1].login is None

    def test_rules_4_13_the_peers_record_is_the_new_base(self) -> None:
        other = grant(7, issuer=ELSEWHERE)
        peers = theirs(other, grant(2), login=CLAIM, denied_scopes=(("b",),), bound_clients=(("c", ISSUER),))
        run = login([("Save *", Conflict(peers)), ("Save r1: other(at7 rt7) *as(at5 rt5)", Saved())], "Kept login at5")
        kept = saved(run)[-1]
        assert (kept.denied_scopes, kept.bound_clients) == ((), (("c", ISSUER),)), "a login ends what was denied"

    def test_rules_2_9_a_preregistered_client_is_bound_once(self) -> None:
        mine = replace(NEW, registration=replace(NEW.registration, kind="preregistered"))
        bound = (NEW.registration.client_id, ISSUER)
        for before in ((), (bound,)):
            run = login([("Save *", Saved())], "Kept login at5", mine=mine, bound_clients=before)
            assert saved(run)[-1].bound_clients == (bound,)

    def test_rules_4_3_the_grant_of_another_client_gives_way(self) -> None:
        other = grant(2, left=99)
        other = replace(other, registration=replace(other.registration, client_id="another"))
        login([("Save *", Conflict(theirs(other))), ("Save r1: *as(at5 rt5)", Saved())], "Kept login at5")

    def test_rules_2_15_nothing_asked_for_is_enough_for_nothing_asked_for(self) -> None:
        mine, other = replace(NEW, requested=None), replace(grant(2, left=99), requested=None)
        login([("Save *", Conflict(theirs(other)))], "Kept stored at2, revoke at5", mine=mine)

    def test_expires_in_0_is_kept_and_used_once(self) -> None:
        """RULES 4.12: whatever its expiry says."""
        mine = replace(NEW, expires_at=NOW.wall)
        rival = replace(mine, access_token=grant(7).access_token)
        script: list[Line] = [("Save *", Conflict(theirs(rival))), ("Save *", Saved())]
        login(script, "Kept login at5", mine=mine)


class TestStoreFailures:
    def test_rules_4_10_a_lost_answer_is_settled_by_reading(self) -> None:
        script: list[Line] = [("Save r0: *as(at2 rt2)", FULL)]
        written = saved(renewal([*script], "Load"))[0]
        run = renewal([*script, ("Load", Loaded(written))], "Kept renewed at2")
        assert run.notices == ["renewed", "not-durable"]

    @table(
        "stored, end",
        {
            "RULES-4.10-it-was-not-saved": (record(OLD), "Save r0: *as(at2 rt2)"),
            "RULES-4.10-store-was-emptied": (None, "Save None: *as(at2 rt2)"),
            "RULES-4.10-foreign-record": (RegistrationRecord("r1"), "Save None: *as(at2 rt2)"),
            "RULES-4.10-saved-and-announced": (
                theirs(RENEWED, login=THEIR_CLAIM),
                "Kept renewed at2",
            ),
            "RULES-4.10-saved-and-renewed": (theirs(grant(3, left=9)), "Kept stored at3"),
            "RULES-4.10-logout-is-never-undone": (theirs(logged_out=True), "Kept logged-out, revoke at2"),
        },
    )
    def test_settling(self, stored: Any, end: str) -> None:
        renewal([("Save *", FULL), ("Load", Loaded(stored))], end)

    def test_rules_4_11_callers_get_the_token(self) -> None:
        run = renewal([("Save *", FULL), ("Load", StoreFailed("gone"))], "Kept renewed at2, unsaved")
        assert run.notices == ["not-persisted"]
        assert "gone" in run.end.notices[0].message
        unsaved = run.end.value.then.unsaved
        assert (current_grant(unsaved), unsaved.login) == (RENEWED, None)

    def test_rules_4_11_a_login_is_known_again_by_its_claim(self) -> None:
        run = login([("Save *", FULL), ("Load", FULL)], "Kept login at5, unsaved")
        unsaved = run.end.value.then.unsaved
        assert (current_grant(unsaved), unsaved.login.id) == (NEW, "ours")
        assert unsaved.login.until <= 0  # it keeps nobody waiting, should it ever be stored

    def test_rules_4_11_a_failing_store_is_asked_twice(self) -> None:
        unchanged = Loaded(record(OLD))
        run = renewal(
            [("Save *", StoreFailed("slow")), ("Load", unchanged), ("Save *", FULL), ("Load", unchanged)],
            "Kept renewed at2, unsaved",
        )
        assert "disk full" in run.end.notices[0].message

    def test_rules_4_11_what_lost_its_place_is_pinned_as_the_one_in_use(self) -> None:
        """A login elsewhere came between, and then the store failed: the pin is the renewed grant."""
        peers = theirs(OLD, replace(NEW, issuer=ELSEWHERE), login=THEIR_CLAIM)
        run = renewal([("Save *", Conflict(peers)), ("Save *", FULL), ("Load", FULL)], "Kept renewed at2, unsaved")
        unsaved = run.end.value.then.unsaved
        assert (current_grant(unsaved), unsaved.login) == (RENEWED, None)


def moving(n: int) -> GrantRecord:
    return theirs(replace(OLD, next_attempt_at=float(n)), revision=f"r{n}")


def test_bound_eternal_conflicts() -> None:
    script: list[Line] = [(f"Save r{n}: *as(at2 rt2)", Conflict(moving(n + 1))) for n in range(keeping.MOST_ROUNDS)]
    run = renewal(script, "Kept renewed at2, unsaved")
    assert len(saved(run)) == keeping.MOST_ROUNDS == 8
    assert "kept changing" in run.end.notices[0].message


def test_bound_reached() -> None:
    script: list[Line] = [("Save *", Conflict(moving(n + 1))) for n in range(keeping.MOST_ROUNDS - 2)]
    script += [("Save *", FULL), ("Load", Loaded(record(OLD)))] * 2
    run = renewal(script, "Kept renewed at2, unsaved")
    assert len(run.events) == keeping.MOST_EFFECTS == 10


def test_no_revision_recurs() -> None:
    revisions = {keep.revision for keep in saved(renewal([("Save *", Conflict(theirs(OLD)))], "Save *"))}
    others = {begin_revision(seed) for seed in (SEED, SEED.child("a"), SEED.child("b"))}
    assert len(revisions | others) == 4


def begin_revision(seed: Any) -> str:
    step = begin(Keep(KEY, "renewed", RENEWED, seed, None), record(OLD), "r0")
    assert isinstance(step, Await)
    return step.state.record.revision


@pytest.mark.parametrize("event", [Woke(), Loaded(None)])
def test_misuse(event: Any) -> None:
    step = begin(Keep(KEY, "renewed", RENEWED, SEED, None), record(OLD), "r0")
    assert isinstance(step, Await)
    with pytest.raises(Misuse, match="Saving"):
        keeping.advance(step.state, event, now=NOW)


def test_what_is_told_of_a_logout() -> None:
    run = renewal([("Save *", Conflict(theirs(logged_out=True)))], "Kept logged-out, revoke at2")
    assert isinstance(run.end, Done)
    assert run.end.value.then.reason is Reason.LOGGED_OUT
    assert "logout" in run.end.value.then.message
    assert token(1).fingerprint not in run.end.value.then.message
