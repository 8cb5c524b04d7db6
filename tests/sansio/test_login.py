"""A login: claimed, discovered, decided by a person, saved; held back, taken over, withdrawn, done again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from msgspec.structs import replace

from mcp_oauth.sansio import login
from mcp_oauth.sansio.attempt import EXPECTED, HEARTBEAT, HOLD_BACK, TWO_LEG
from mcp_oauth.sansio.authorization_code import PATIENCE
from mcp_oauth.sansio.errors import Reason
from mcp_oauth.sansio.grant import Grant, GrantRecord, LoginClaim, Registration, RegistrationRecord, Scopes
from mcp_oauth.sansio.login import MOST_POLLS, MOST_SAVES
from mcp_oauth.sansio.messages import Response
from mcp_oauth.sansio.metadata import ProtectedResourceMetadata
from mcp_oauth.sansio.plan import ClientMetadataDocument, Plan, PreRegistered
from mcp_oauth.sansio.resource import Found
from mcp_oauth.sansio.steps import (
    Allowed,
    AskIssuer,
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
    StoreFailed,
    UserFailed,
    Woke,
)
from tests.sansio.scripts import (
    ELSEWHERE,
    ISSUER,
    KEY,
    SEED,
    SERVER,
    Line,
    each,
    grant,
    play,
    record,
    saved,
    tokens,
    unlike,
)
from tests.sansio.walks import CANARY, LOST, NOW, answer, table, walk
from tests.sansio.worlds import Run

CLAIM = SEED.text("claim")
STATE = SEED.child("authorization", 0).text("state")
CALLBACK = "http://127.0.0.1:5000/callback"
PLAN = Plan(SERVER, preregistered=PreRegistered("client", f"{CANARY}-secret"), holder="pid 1 on host")
ASKED = Need("asked")
STEP_UP = Need("scope", scopes=("b",))
FULL = StoreFailed("disk full")
BACK = Redirected(f"{CALLBACK}?code={CANARY}-code&state={STATE}")
METADATA: dict[str, Any] = {
    "issuer": ISSUER,
    "authorization_endpoint": f"{ISSUER}/authorize",
    "token_endpoint": f"{ISSUER}/token",
    "revocation_endpoint": f"{ISSUER}/revoke",
    "code_challenge_methods_supported": ["S256"],
}
OPENID = {"scopes_supported": ["openid", "offline_access"], "client_id_metadata_document_supported": True}


def resource_metadata(*issuers: str, **more: Any) -> Response:
    return answer(200, resource=SERVER, authorization_servers=list(issuers or (ISSUER,)), **more)


def refuse(error: str) -> Redirected:
    return Redirected(f"{CALLBACK}?error={error}&state={STATE}")


CLAIMED: Line = ("Save *: *claim " + CLAIM, Saved())
RESOURCE: Line = ("GET mcp.example/.well-known/oauth-protected-resource/mcp", resource_metadata())
DISCOVERED: tuple[Line, ...] = (RESOURCE, ("GET as.example/.well-known/*", answer(200, **METADATA)))
LISTENING: Line = ("Listen", Listening(CALLBACK))
OPENED: tuple[Line, ...] = (CLAIMED, *DISCOVERED, LISTENING)
"""As far as the browser."""
EXCHANGED: tuple[Line, ...] = (("OpenBrowser", BACK), ("POST as.example/token", tokens(7)))
WITHDRAWN: Line = ("Save *: *", Saved())


def begin(
    plan: Plan = PLAN, need: Need = ASKED, stored: GrantRecord | None = None, known: Found | None = None
) -> login.Out:
    return login.begin(plan, KEY, need, record=stored, known=known, seed=SEED, now=NOW)


def run(script: Sequence[Line], end: str, **how: Any) -> Run:
    return play(login, begin(**how), script, end)


def records(played: Run) -> list[GrantRecord]:
    """What was to be saved, in order."""
    effects = [step.effect for step in played.steps if isinstance(step, Await)]
    return [effect.record for effect in effects if isinstance(effect, Save) and isinstance(effect.record, GrantRecord)]


def browser_params(played: Run) -> dict[str, list[str]]:
    """What the browser was sent with."""
    (url,) = {step.effect.url for step in played.steps if isinstance(getattr(step, "effect", None), OpenBrowser)}
    return parse_qs(urlsplit(url).query)


def theirs(until: float = 60.0) -> LoginClaim:
    return LoginClaim("theirs", "pid 2 on host", NOW.wall + until)


def reason(played: Run) -> Reason:
    assert isinstance(played.end, Failed)
    return played.end.error.reason


class TestWholeWay:
    def test_design_4_claimed_discovered_decided_exchanged_saved(self) -> None:
        played = run([*OPENED, *EXCHANGED, ("Save *: *as(at7 rt7)", Saved())], "Done login at7")
        assert played.notices == ["issuer-first-used", "logged-in"]
        kept = records(played)[-1]
        assert (kept.login, kept.current, kept.allowed_issuers) == (None, ISSUER, (ISSUER,))
        assert kept.resource_metadata_seen

    def test_fn_8_the_grant_carries_all_that_a_renewal_needs(self) -> None:
        plan = replace(PLAN, scopes=("a",), token_params=(("audience", "x"),))
        played = run([*OPENED, *EXCHANGED, ("Save *", Saved())], "Done login at7", plan=plan)
        (kept,) = records(played)[-1].grants
        assert kept.token_endpoint == f"{ISSUER}/token"
        assert kept.revocation_endpoint == f"{ISSUER}/revoke"
        assert kept.resource == SERVER
        assert (kept.requested, kept.granted) == (("a",), ("a",))
        assert kept.extra_token_params == (("audience", "x"),)
        assert kept.registration == Registration(
            ISSUER, "client", "preregistered", "client_secret_basic", CALLBACK, client_secret=f"{CANARY}-secret"
        )

    def test_rules_4_13_the_claim_is_dated_when_it_is_made(self) -> None:
        """Not when the wait for somebody else's login began."""
        busy = record(login=theirs(90))
        script: list[Line] = [("Sleep 1", Woke()), ("Load", Loaded(busy), 91.0), ("Save r0: claim *", Saved(), 92.0)]
        played = run([*script, *DISCOVERED], "Listen", stored=busy)
        claim = records(played)[0].login
        assert claim == LoginClaim(CLAIM, "pid 1 on host", NOW.wall + 91 + EXPECTED)

    def test_fn_55_two_legs_claim_for_long_and_listen_nowhere(self) -> None:
        played = run([CLAIMED, *DISCOVERED], "OpenBrowser", plan=replace(PLAN, two_leg=True))
        claim = records(played)[0].login
        assert claim is not None
        assert claim.until == NOW.wall + TWO_LEG

    def test_rules_2_17_and_2_18_the_grant_knows_its_end_and_how_it_is_revoked(self) -> None:
        published = answer(200, **METADATA, revocation_endpoint_auth_methods_supported=["none"])
        script = [CLAIMED, RESOURCE, ("GET as*", published), LISTENING, *EXCHANGED, ("Save *", Saved())]
        (kept,) = records(run(script, "Done login at7"))[-1].grants
        assert kept.expires_at == NOW.wall + 3600
        assert kept.revocation_auth_methods == ("none",)

    def test_rules_3_1_known_resource_metadata_is_not_read_again(self) -> None:
        known = Found(ProtectedResourceMetadata(SERVER, (ISSUER,)))
        run([CLAIMED, *DISCOVERED[1:]], "Listen", known=known)

    def test_rules_2_8_a_server_without_metadata_is_its_own_issuer(self) -> None:
        origin = "https://mcp.example"
        metadata = {**METADATA, "issuer": origin}
        script: list[Line] = [
            CLAIMED,
            (RESOURCE[0], answer(404)),
            ("GET mcp.example/.well-known/oauth-protected-resource", answer(404)),
            ("GET mcp.example/.well-known/oauth-authorization-server", answer(200, **metadata)),
            LISTENING,
            *EXCHANGED,
            ("Save *", Saved()),
        ]
        played = run(script, "Done login at7")
        assert not records(played)[-1].resource_metadata_seen

    @table(
        "policy, sent",
        {
            "FN-9-always": ("always", [SERVER]),
            "FN-9-never": ("never", None),
            "FN-9-override": ("https://x.example", ["https://x.example"]),
        },
    )
    def test_resource(self, policy: str, sent: list[str] | None) -> None:
        played = run([*OPENED, *EXCHANGED, ("Save *", Saved())], "Done *", plan=replace(PLAN, resource=policy))
        assert browser_params(played).get("resource") == sent
        assert records(played)[-1].grants[0].resource == (sent[0] if sent else None)


class TestHeldBack:
    """What does not even begin."""

    @table(
        "plan, need, stored, expected",
        {
            "FN-47-non-interactive": ({"interactive": False}, ASKED, {}, Reason.AUTHORIZATION_REQUIRED),
            "FN-47-non-interactive-says-so-first": (
                {"interactive": False},
                Need("refused"),
                {"no_login_before": 1.0},
                Reason.AUTHORIZATION_REQUIRED,
            ),
            "RULES-3.4-denied-a-moment-ago": ({}, Need("refused"), {"no_login_before": 1.0}, Reason.LOGIN_HELD_BACK),
            "RULES-3.4-step-up-fruitless": ({}, STEP_UP, {"no_login_before": 1.0}, Reason.LOGIN_HELD_BACK),
            "RULES-3.5-limit": ({"scope_limit": ("a",)}, STEP_UP, {}, Reason.SCOPE_LIMIT),
            "RULES-3.5-denied-before": ({}, STEP_UP, {"denied_scopes": (("b", "a"),)}, Reason.STEP_UP_DENIED),
        },
    )
    def test_refused(self, plan: dict[str, Any], need: Need, stored: dict[str, Any], expected: Reason) -> None:
        stored |= {"no_login_before": NOW.wall + stored["no_login_before"]} if "no_login_before" in stored else {}
        step = begin(replace(PLAN, **plan), need, record(grant(1), **stored))
        assert isinstance(step, Failed)
        assert step.error.reason is expected

    @table(
        "need, stored",
        {
            "RULES-3.4-asked-by-the-program": (ASKED, {"no_login_before": NOW.wall + 1}),
            "RULES-3.4-forced-by-the-program": (Need("forced"), {"no_login_before": NOW.wall + 1}),
            "RULES-3.4-time-is-over": (Need("refused"), {"no_login_before": NOW.wall}),
            "RULES-3.5-another-set-was-denied": (STEP_UP, {"denied_scopes": (("b",),)}),
        },
    )
    def test_begins(self, need: Need, stored: dict[str, Any]) -> None:
        run([], "Save r0: *as(at1 rt1) claim *", need=need, stored=record(grant(1), **stored))

    def test_fn_28_what_is_stored_was_judged_before(self) -> None:
        run([], "Save r0: *as(at1 rt1) claim *", stored=record(grant(1, left=3600)))


class TestElsewhere:
    """RULES 4.13: somebody else is logging in."""

    BUSY = record(login=theirs())

    def test_rules_4_13_its_result_is_taken(self) -> None:
        done = record(grant(3, left=3600), revision="r1")
        played = run([("Sleep 1", Woke()), ("Load", Loaded(done))], "Done stored at3", stored=self.BUSY)
        assert played.notices == ["login-elsewhere"]

    def test_rules_4_13_the_wait_is_told_once(self) -> None:
        polls: list[Line] = [("Sleep 1", Woke()), ("Load", Loaded(self.BUSY))] * 2
        assert run(polls, "Sleep 1", stored=self.BUSY).notices == ["login-elsewhere"]

    @table(
        "need, token",
        {
            "RULES-4.6-expired": (ASKED, {"left": 0.0}),
            "RULES-4.6-in-its-leeway": (ASKED, {"left": 59.0}),
            "RULES-4.6-the-refused-one": (Need("refused", unlike(3)), {"left": 3600.0}),
            "RULES-3.5-scopes-missing": (STEP_UP, {"left": 3600.0}),
        },
    )
    def test_a_token_that_will_not_do(self, need: Need, token: dict[str, Any]) -> None:
        done = record(grant(3, **token), revision="r1")
        run([("Sleep 1", Woke()), ("Load", Loaded(done))], "Save r1: * claim *", need=need, stored=self.BUSY)

    def test_rules_3_5_a_token_with_the_scopes(self) -> None:
        for requested in (("a", "b"), ("b",)):
            done = record(grant(3, left=3600, requested=requested), revision="r1")
            run([("Sleep 1", Woke()), ("Load", Loaded(done))], "Done stored at3", need=STEP_UP, stored=self.BUSY)

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
        run([("Sleep 1", Woke()), ("Load", Loaded(after), 1.0)], end, stored=self.BUSY)

    def test_rules_4_13_waits_six_minutes_at_most(self) -> None:
        forever = record(login=theirs(TWO_LEG))
        polls: list[Line] = [("Sleep 1", Woke()), ("Load", Loaded(forever))] * MOST_POLLS
        assert "pid 2 on host" in str(run(polls, "Failed login-elsewhere", stored=forever).end.error)

    def test_rules_4_10_the_store_fails(self) -> None:
        run([("Sleep 1", Woke()), ("Load", FULL)], "Failed store-failed", stored=self.BUSY)
        run([("Save *", FULL)], "Failed store-failed")

    def test_rules_4_10_somebody_else_was_faster(self) -> None:
        run([("Save None: claim *", Conflict(replace(self.BUSY, revision="r9")))], "Sleep 1")

    def test_design_1_conflicts_without_end(self) -> None:
        run([("Save *", Conflict(record()))] * MOST_SAVES, "Failed store-contended")

    def test_rules_4_10_the_record_is_gone(self) -> None:
        run([("Save None: *", Conflict(None)), CLAIMED], "GET *")

    def test_rules_4_2_no_revision_recurs(self) -> None:
        assert len(saved(run([("Save *", Conflict(record())), CLAIMED], "GET *"))) == 2


class TestIssuer:
    """RULES 2.9: at which authorization server."""

    ASKING = replace(PLAN, ask_issuer=True)

    def test_rules_2_9_the_application_allows_it(self) -> None:
        played = run([CLAIMED, *DISCOVERED, ("AskIssuer", Allowed())], "Listen", plan=self.ASKING)
        assert played.notices == []

    def test_rules_2_9_the_application_is_told_what_it_allows(self) -> None:
        played = run([CLAIMED, *DISCOVERED], "AskIssuer", plan=replace(self.ASKING, scopes=("a",)))
        assert played.end.effect == AskIssuer(SERVER, ISSUER, ("a",))

    def test_rules_2_4_the_issuer_in_use_comes_first(self) -> None:
        listed = resource_metadata(ELSEWHERE, ISSUER)
        run([CLAIMED, (RESOURCE[0], listed)], "GET as.example/*", stored=record(grant(1)))

    def test_rules_2_5_a_trusted_issuer_that_is_known_with_another_token_endpoint(self) -> None:
        plan = replace(PLAN, trusted_issuer=((ISSUER, ELSEWHERE),))
        published = answer(200, **{**METADATA, "issuer": ELSEWHERE})
        script = [CLAIMED, RESOURCE, ("GET as*", published), WITHDRAWN]
        run(script, "Failed issuer-mismatch", plan=plan, stored=record(grant(1, issuer=ELSEWHERE)))

    def test_rules_2_9_the_application_refuses(self) -> None:
        script: list[Line] = [CLAIMED, *DISCOVERED, ("AskIssuer", UserFailed("no")), WITHDRAWN]
        played = run(script, "Failed issuer-refused", plan=self.ASKING)
        assert records(played)[-1].no_login_before is None

    def test_rules_2_9_an_issuer_that_was_used_before(self) -> None:
        stored = record(allowed_issuers=(ISSUER,))
        played = run([CLAIMED, *DISCOVERED], "Listen", plan=self.ASKING, stored=stored)
        assert played.notices == []

    def test_rules_2_9_a_client_goes_to_no_other_issuer_than_its_first(self) -> None:
        stored = record(bound_clients=(("other", ISSUER), ("client", ELSEWHERE)))
        played = run([CLAIMED, *DISCOVERED, WITHDRAWN], "Failed client-of-another-issuer", stored=stored)
        assert played.end.error.url == ISSUER

    @each(
        "bound",
        {
            "RULES-2.9-here": ("client", ISSUER),
            "RULES-2.9-another-client": ("other", ELSEWHERE),
        },
    )
    def test_clients_bound_to_nobody_else(self, bound: tuple[str, str]) -> None:
        run([CLAIMED, *DISCOVERED], "Listen", stored=record(bound_clients=(bound,)))

    def test_rules_2_9_a_configured_issuer_decides_by_itself(self) -> None:
        stored = record(bound_clients=(("client", ELSEWHERE),))
        plan = replace(PLAN, preregistered=PreRegistered("client", f"{CANARY}-secret", ISSUER))
        run([CLAIMED, *DISCOVERED], "Listen", plan=plan, stored=stored)

    @table(
        "metadata, allowed, scopes, expected",
        {
            "RULES-2.9-first-use-of-a-document": (OPENID, (), ("a",), ["consent"]),
            "RULES-2.9-later": (OPENID, (ISSUER,), ("a",), None),
            "RULES-2.15-offline-access": (OPENID, (ISSUER,), ("offline_access",), ["consent"]),
            "RULES-2.15-no-openid-provider": (
                {"client_id_metadata_document_supported": True},
                (),
                ("offline_access",),
                None,
            ),
        },
    )
    def test_consent(
        self, metadata: dict[str, Any], allowed: tuple[str, ...], scopes: Scopes, expected: list[str] | None
    ) -> None:
        document = ClientMetadataDocument("https://app.example/client")
        plan = Plan(SERVER, metadata_document=document, scopes=scopes)
        script = [CLAIMED, RESOURCE, ("GET as*", answer(200, **METADATA, **metadata)), LISTENING]
        played = run(script, "OpenBrowser", plan=plan, stored=record(allowed_issuers=allowed))
        params = browser_params(played)
        assert params.get("prompt") == expected
        assert {"client_id", "code_challenge", "redirect_uri", "resource", "state"} <= set(params)


class TestScopes:
    """RULES 2.15 and 3.5: what is asked for."""

    @table(
        "plan, need, earlier, expected",
        {
            "RULES-2.15-none": ({}, ASKED, None, None),
            "RULES-2.15-challenge": ({}, Need("refused", scopes=("b",)), None, ["b"]),
            "RULES-2.15-the-caller's": ({"scopes": ("x",)}, Need("refused", scopes=("b",)), grant(1), ["x"]),
            "RULES-2.15-asked-before-is-asked-again": ({}, Need("refused", scopes=("b",)), grant(1), ["a b"]),
            "RULES-2.15-nothing-more": ({}, ASKED, grant(1), ["a"]),
            "RULES-2.15-nothing-asked-before": ({}, ASKED, grant(1, requested=None), None),
            "RULES-3.5-step-up": ({}, STEP_UP, grant(1), ["a b"]),
            "RULES-3.5-step-up-at-another-issuer": ({}, STEP_UP, grant(1, issuer=ELSEWHERE), ["b"]),
            "RULES-3.5-step-up-within-the-limit": ({"scope_limit": ("b",)}, STEP_UP, grant(1), ["a b"]),
            "RULES-3.5-step-up-to-nothing": ({}, Need("scope"), None, None),
            "RULES-3.5-step-up-beyond-the-caller's": ({"scopes": ("x",)}, STEP_UP, grant(1), ["a b"]),
        },
    )
    def test_requested(
        self, plan: dict[str, Any], need: Need, earlier: Grant | None, expected: list[str] | None
    ) -> None:
        stored = record(earlier) if earlier else None
        played = run(OPENED, "OpenBrowser", plan=replace(PLAN, **plan), need=need, stored=stored)
        assert browser_params(played).get("scope") == expected

    def test_rules_2_15_the_resource_metadata_s(self) -> None:
        script = [CLAIMED, (RESOURCE[0], resource_metadata(scopes_supported=["p"])), DISCOVERED[1], LISTENING]
        assert browser_params(run(script, "OpenBrowser"))["scope"] == ["p"]


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
        renewed = record(grant(2, left=-1), login=LoginClaim(CLAIM, "", NOW.wall + 99), revision="r5")
        script = [*self.WAITED, ("Save *", Conflict(renewed)), *EXCHANGED, ("Save r5: *as(at7 rt7)", Saved())]
        run(script, "Done login at7")

    def test_rules_4_13_somebody_else_took_over_and_has_logged_in(self) -> None:
        done = record(grant(3, left=9999), revision="r5")
        run([*self.WAITED, ("Save *", Conflict(done))], "Done stored at3")

    def test_rules_4_13_somebody_else_took_over(self) -> None:
        """Whoever is faster wins; a login that fails leaves the other's claim alone."""
        over = record(login=theirs(), revision="r5")
        script = [*self.WAITED, ("Save *", Conflict(over)), ("OpenBrowser", refuse("access_denied"))]
        run(script, "Failed access-denied")

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
        played = run(script, "Failed login-timed-out", plan=replace(PLAN, login_seconds=PATIENCE))
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


@each(
    "hold",
    {
        "RULES-3.4-held-back": (HOLD_BACK, "Failed login-held-back"),
        "RULES-4.14-noted-by-a-clock-far-ahead": (HOLD_BACK + 1, "Save *: *claim *"),
    },
)
def test_a_hold(hold: tuple[float, str]) -> None:
    run([], hold[1], need=Need("refused"), stored=record(no_login_before=NOW.wall + hold[0]))


@each(
    "denied",
    {
        "RULES-3.5-two-other-sets": ((("c",), ("d",)), "Save *: *claim *"),
        "RULES-3.5-three-denials-are-enough": ((("c",), ("d",), ("e",)), "Failed step-up-denied"),
    },
)
def test_a_server_that_asks_for_ever_more(denied: tuple[tuple[Scopes, ...], str]) -> None:
    run([], denied[1], need=STEP_UP, stored=record(grant(1), denied_scopes=denied[0]))
