"""A login: claimed, discovered, decided by a person, saved; or held back before it begins."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from mcp_oauth.sansio.attempt import EXPECTED, HOLD_BACK, TWO_LEG
from mcp_oauth.sansio.errors import Reason
from mcp_oauth.sansio.grant import Grant, LoginClaim, Registration, Scopes
from mcp_oauth.sansio.metadata import ProtectedResourceMetadata
from mcp_oauth.sansio.plan import ClientMetadataDocument, Plan, PreRegistered
from mcp_oauth.sansio.resource import Found
from mcp_oauth.sansio.steps import Allowed, AskIssuer, Failed, Loaded, Need, Saved, UserFailed, Woke
from tests.sansio.logins import (
    ASKED,
    CLAIM,
    CLAIMED,
    DISCOVERED,
    EXCHANGED,
    LISTENING,
    METADATA,
    OPENED,
    OPENID,
    PLAN,
    RESOURCE,
    STEP_UP,
    WITHDRAWN,
    begin,
    browser_params,
    records,
    resource_metadata,
    run,
    theirs,
)
from tests.sansio.scripts import ELSEWHERE, ISSUER, SERVER, Line, each, grant, record
from tests.sansio.walks import CANARY, NOW, answer, table


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
            ISSUER, "client", "preregistered", "client_secret_basic", client_secret=f"{CANARY}-secret"
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
