"""One request of a caller: its header, its budget, and whose the last answer is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from mcp_oauth.sansio import access
from mcp_oauth.sansio.access import begin
from mcp_oauth.sansio.errors import Reason, failure
from mcp_oauth.sansio.grant import Token
from mcp_oauth.sansio.steps import Answered, Await, Ensure, Ensured, Event, How, Misuse, NotEnsured, Proceed
from tests.sansio.scripts import Line, each, play, secret, token
from tests.sansio.walks import NOW, later, table
from tests.sansio.worlds import Run

FRESH = token(1, left=3000)
EARLY = token(1, left=30)
EXPIRED = token(1)
OK = Answered(200)
UNAUTHORIZED = Answered(401, ('Bearer error="invalid_token"',))


def forbidden(*scopes: str) -> Answered:
    return Answered(403, (f'Bearer error="insufficient_scope", scope="{" ".join(scopes)}"',))


def ensured(n: int, how: How, *scopes: str) -> Ensured:
    return Ensured(token(n, left=3000, requested=scopes or ("a",)), how)


def failed(reason: Reason) -> NotEnsured:
    return NotEnsured(failure(reason, "no"))


def request(script: Sequence[Line], end: str, at_hand: Token | None = FRESH, **options: Any) -> Run:
    return play(access, begin(at_hand, now=NOW, **options), script, end)


class TestBeforeTheRequest:
    def test_design_4_1_a_usable_token_goes_at_once(self) -> None:
        run = request([("Proceed at1", OK)], "Finished, accepted at1")
        assert run.steps[0].effect.headers == (("authorization", f"Bearer {secret(1, 'at')}"),)

    @table(
        "life, left, jitter, fresh",
        {
            "FN-11-hour": (3600, 60.5, 0.0, True),
            "FN-11-hour-in-its-leeway": (3600, 60.0, 0.0, False),
            "FN-11-300-s": (300, 30.5, 0.0, True),
            "FN-11-300-s-in-its-leeway": (300, 30.0, 0.0, False),
            "FN-11-5-s": (5, 0.6, 0.0, True),
            "FN-11-5-s-in-its-leeway": (5, 0.5, 0.0, False),
            "FN-11-0-s": (0, 0.0, 0.0, False),
            "FN-11-jitter": (3600, 48.5, 0.999, True),
            "FN-11-jitter-in-its-leeway": (3600, 47.5, 0.999, False),
        },
    )
    def test_leeway(self, life: float, left: float, jitter: float, fresh: bool) -> None:
        at_hand = token(1, life=life, left=left)
        request([], "Proceed at1" if fresh else "Ensure expiring", at_hand, jitter=jitter)

    def test_rules_2_17_unknown_expiry_is_used_until_refused(self) -> None:
        request([], "Proceed at1", token(1, expires_at=None))

    @table(
        "at_hand, event, then",
        {
            "DESIGN-4.2-renewed": (EXPIRED, ensured(2, "renewed"), "Proceed at2"),
            "DESIGN-4.2-stored-by-a-peer": (EXPIRED, ensured(2, "stored"), "Proceed at2"),
            "DESIGN-4.2-the-same-one": (EARLY, ensured(1, "stored"), "Proceed at1"),
            "DESIGN-4.2-failed-early-renewal": (EARLY, failed(Reason.RENEWAL_UNAVAILABLE), "Proceed at1"),
            "DESIGN-4.2-the-store-fails": (EARLY, failed(Reason.STORE_FAILED), "Proceed at1"),
            "RULES-4.4-busy": (EARLY, failed(Reason.RENEWAL_BUSY), "Proceed at1"),
            "RULES-3.7-not-after-a-logout": (EARLY, failed(Reason.LOGGED_OUT), "Failed logged-out"),
            "DESIGN-4.2-failed-renewal": (EXPIRED, failed(Reason.RENEWAL_UNAVAILABLE), "Failed renewal-unavailable"),
            "DESIGN-4.2-none-any-more": (EXPIRED, Ensured(None, "none"), "Proceed"),
        },
    )
    def test_expiring(self, at_hand: Token, event: Event, then: str) -> None:
        request([("Ensure expiring", event)], then, at_hand)

    @table(
        "event, then",
        {
            "DESIGN-4.2-stored": (ensured(2, "stored"), "Proceed at2"),
            "DESIGN-4.2-renewed": (ensured(2, "renewed"), "Proceed at2"),
            "SPEC-without-a-token-first": (Ensured(None, "none"), "Proceed"),
            "DESIGN-4.2-the-store-fails": (failed(Reason.STORE_FAILED), "Failed store-failed"),
            "RULES-4.4-busy": (failed(Reason.RENEWAL_BUSY), "Failed renewal-busy"),
            "DESIGN-4.4-no-answer-yet-to-be-the-callers": (failed(Reason.SCOPE_LIMIT), "Failed scope-limit"),
        },
    )
    def test_missing(self, event: Event, then: str) -> None:
        request([("Ensure missing", event)], then, None)

    def test_rules_4_12_used_once_whatever_its_expiry_says(self) -> None:
        renewed = Ensured(token(2, life=0, left=0), "renewed")
        request([("Ensure expiring", renewed), ("Proceed at2", OK)], "Finished, accepted at2", EXPIRED)

    def test_the_deadline_of_the_token_at_hand_may_pass_while_waiting(self) -> None:
        request([("Ensure expiring", failed(Reason.RENEWAL_BUSY), 30)], "Failed renewal-busy", EARLY)


class TestAnswers:
    @table(
        "event, end",
        {
            "200": (OK, "Finished, accepted at1"),
            "404": (Answered(404), "Finished, accepted at1"),
            "500": (Answered(500), "Finished, accepted at1"),
            "SPEC-403-without-a-challenge": (Answered(403), "Finished, accepted at1"),
            "SPEC-403-of-another-kind": (
                Answered(403, ('Bearer error="invalid_token", scope="b"',)),
                "Finished, accepted at1",
            ),
            "SPEC-200-with-a-challenge": (
                Answered(200, ('Bearer error="insufficient_scope", scope="b"',)),
                "Finished, accepted at1",
            ),
            "SPEC-403-names-no-scope": (
                Answered(403, ('Bearer error="insufficient_scope"',)),
                "Finished, accepted at1",
            ),
            "SPEC-403-asked-for-already": (forbidden("a"), "Finished, accepted at1"),
            "RFC9110-other-scheme": (
                Answered(403, ('Basic error="insufficient_scope", scope="b"',)),
                "Finished, accepted at1",
            ),
            "RULES-1.1-401-from-elsewhere": (Answered(401, (), ours=False), "Finished"),
            "RULES-1.1-403-from-elsewhere": (
                Answered(403, ('Bearer error="insufficient_scope", scope="b"',), ours=False),
                "Finished",
            ),
            "RULES-1.1-200-from-elsewhere": (Answered(200, ours=False), "Finished"),
        },
    )
    def test_the_answer_is_the_callers(self, event: Answered, end: str) -> None:
        request([("Proceed at1", event)], end)

    def test_a_request_without_a_token(self) -> None:
        request([("Ensure missing", Ensured(None, "none")), ("Proceed", OK)], "Finished", None)

    def test_rfc6750_3_1_403_without_a_token_sent(self) -> None:
        request([("Ensure missing", Ensured(None, "none")), ("Proceed", forbidden("b"))], "Finished", None)

    @table(
        "challenges, need",
        {
            "RFC6750-3.1-no-challenge": ((), "Ensure refused, unlike at1"),
            "RFC6750-3-scope": (('Bearer scope="a b"',), "Ensure refused, unlike at1, scopes a b"),
            "RFC9449-7.1-dpop": (('DPoP scope="b"',), "Ensure refused, unlike at1, scopes b"),
            "RFC9110-other-scheme": (('Basic realm="x"',), "Ensure refused, unlike at1"),
        },
    )
    def test_what_a_challenge_asks_for(self, challenges: tuple[str, ...], need: str) -> None:
        request([("Proceed at1", Answered(401, challenges))], need)

    def test_fn_25_every_metadata_url(self) -> None:
        challenges = (
            'Bearer resource_metadata="https://a.example/x", Bearer resource_metadata="https://b.example"',
            "Basic",
        )
        run = request([("Proceed at1", Answered(401, challenges))], "Ensure *")
        assert run.end.effect.need.resource_metadata == ("https://a.example/x", "https://b.example")

    def test_rules_3_5_a_step_up_names_its_metadata_too(self) -> None:
        challenge = 'Bearer error="insufficient_scope", scope="b", resource_metadata="https://a.example"'
        run = request([("Proceed at1", Answered(403, (challenge,)))], "Ensure scope, unlike at1, scopes b")
        assert run.end.effect.need.resource_metadata == ("https://a.example",)


REFUSED = ("Proceed at1", UNAUTHORIZED)
FOR_EVER = Ensured(token(2, expires_at=None), "renewed")
TWICE: list[Line] = [
    ("Ensure expiring", ensured(2, "renewed")),
    ("Proceed at2", UNAUTHORIZED, 3000.0),
    ("Ensure refused, unlike at2, never accepted", Ensured(token(3, left=9000), "renewed")),
]
"""Renewed, and once more because it ran out on its way."""


class TestUnauthorized:
    """DESIGN 4.3: a newer stored token, else one renewal, else one login, each at most once."""

    @table(
        "script, end",
        {
            "RULES-3.4-adopted": (
                [("Ensure refused, unlike at1", ensured(2, "stored")), ("Proceed at2", OK)],
                "Finished, accepted at2",
            ),
            "FN-7-adopted-then-renewed": (
                [
                    ("Ensure refused, unlike at1", ensured(2, "stored")),
                    ("Proceed at2", UNAUTHORIZED),
                    ("Ensure refused, unlike at2", ensured(3, "renewed")),
                    ("Proceed at3", OK),
                ],
                "Finished, accepted at3",
            ),
            "DESIGN-4.3-adopted-then-renewed-by-a-peer": (
                [
                    ("Ensure refused, unlike at1", ensured(2, "stored")),
                    ("Proceed at2", UNAUTHORIZED),
                    ("Ensure refused, unlike at2", ensured(3, "stored")),
                    ("Proceed at3", OK),
                ],
                "Finished, accepted at3",
            ),
            "DESIGN-4.3-adopted-once-and-renewed-by-a-peer-once": (
                [
                    ("Ensure refused, unlike at1", ensured(2, "stored")),
                    ("Proceed at2", UNAUTHORIZED),
                    ("Ensure refused, unlike at2", ensured(3, "stored")),
                    ("Proceed at3", UNAUTHORIZED),
                    ("Ensure refused, unlike at3, no renewal", ensured(4, "stored")),
                ],
                "Finished",
            ),
            "DESIGN-4.3-renewed-once": (
                [
                    ("Ensure refused, unlike at1", ensured(2, "renewed")),
                    ("Proceed at2", UNAUTHORIZED),
                ],
                "Ensure refused, unlike at2, never accepted, no renewal",
            ),
            "DESIGN-4.3-logged-in-once": (
                [("Ensure refused, unlike at1", ensured(2, "login")), ("Proceed at2", UNAUTHORIZED)],
                "Finished",
            ),
            "FN-6-each-once-and-the-last-401-is-the-callers": (
                [
                    ("Ensure refused, unlike at1", ensured(2, "stored")),
                    ("Proceed at2", UNAUTHORIZED),
                    ("Ensure refused, unlike at2", ensured(3, "renewed")),
                    ("Proceed at3", UNAUTHORIZED),
                    ("Ensure refused, unlike at3, never accepted, no renewal", ensured(4, "login")),
                    ("Proceed at4", UNAUTHORIZED),
                ],
                "Finished",
            ),
            "DESIGN-4.3-renewed-and-nothing-else-allowed": (
                [
                    ("Ensure refused, unlike at1", ensured(2, "renewed")),
                    ("Proceed at2", UNAUTHORIZED),
                    ("Ensure refused, unlike at2, never accepted, no renewal", Ensured(None, "none")),
                ],
                "Finished",
            ),
            "FN-7-renewed-then-adopted": (
                [
                    ("Ensure refused, unlike at1", ensured(2, "renewed")),
                    ("Proceed at2", UNAUTHORIZED),
                    ("Ensure refused, unlike at2, never accepted, no renewal", ensured(3, "stored")),
                    ("Proceed at3", UNAUTHORIZED),
                ],
                "Ensure refused, unlike at3, no renewal",
            ),
            "SPEC-401-asks-for-no-step-up": (
                [
                    ("Ensure refused, unlike at1", ensured(2, "login")),
                    ("Proceed at2", Answered(401, ('Bearer error="insufficient_scope", scope="b"',))),
                ],
                "Finished",
            ),
            "DESIGN-4.3-the-same-token-again": (
                [("Ensure refused, unlike at1", ensured(1, "renewed"))],
                "Finished",
            ),
            "DESIGN-4-no-token-to-be-had": (
                [("Ensure refused, unlike at1", failed(Reason.AUTHORIZATION_REQUIRED))],
                "Failed authorization-required",
            ),
            "RULES-3.4-held-back": (
                [("Ensure refused, unlike at1", failed(Reason.LOGIN_HELD_BACK))],
                "Failed login-held-back",
            ),
            "DESIGN-4-a-valid-token-is-no-use-when-refused": (
                [("Ensure refused, unlike at1", failed(Reason.RENEWAL_UNAVAILABLE))],
                "Failed renewal-unavailable",
            ),
        },
    )
    def test_order(self, script: list[Line], end: str) -> None:
        request([REFUSED, *script], end)

    def test_spec_first_contact(self) -> None:
        script: list[Line] = [
            ("Ensure missing", Ensured(None, "none")),
            ("Proceed", UNAUTHORIZED),
            ("Ensure refused", ensured(1, "login")),
            ("Proceed at1", OK),
        ]
        request(script, "Finished, accepted at1", None)

    def test_rules_3_4_an_early_renewal_is_the_one_renewal(self) -> None:
        """What was renewed before the request was sent is not renewed again after it."""
        script: list[Line] = [("Ensure expiring", ensured(2, "renewed")), ("Proceed at2", UNAUTHORIZED)]
        request(script, "Ensure refused, unlike at2, never accepted, no renewal", EARLY)

    def test_fn_7_what_was_stored_before_the_request_may_be_outdated(self) -> None:
        script: list[Line] = [
            ("Ensure expiring", ensured(2, "stored")),
            ("Proceed at2", UNAUTHORIZED),
            ("Ensure refused, unlike at2", ensured(3, "stored")),
            ("Proceed at3", OK),
        ]
        request(script, "Finished, accepted at3", EARLY)

    @table(
        "script, at_hand, need",
        {
            "RULES-3.4-at-hand": ([REFUSED], FRESH, "Ensure refused, unlike at1, never accepted"),
            "RULES-3.4-at-hand-and-kept": (
                [("Ensure expiring", ensured(1, "stored")), REFUSED],
                EARLY,
                "Ensure refused, unlike at1, never accepted",
            ),
            "RULES-3.4-at-hand-and-renewal-failed": (
                [("Ensure expiring", failed(Reason.RENEWAL_BUSY)), REFUSED],
                EARLY,
                "Ensure refused, unlike at1, never accepted",
            ),
            "RULES-3.4-at-hand-since-our-login": (
                [("Ensure expiring", ensured(1, "login")), REFUSED],
                EARLY,
                "Ensure refused, unlike at1, never accepted",
            ),
            "RULES-3.4-a-peer-may-know-better": (
                [("Ensure expiring", ensured(2, "stored")), ("Proceed at2", UNAUTHORIZED)],
                EARLY,
                "Ensure refused, unlike at2",
            ),
            "RULES-3.4-adopted-later": (
                [REFUSED, ("Ensure *", ensured(2, "stored")), ("Proceed at2", UNAUTHORIZED)],
                FRESH,
                "Ensure refused, unlike at2",
            ),
        },
    )
    def test_never_accepted(self, script: list[Line], at_hand: Token, need: str) -> None:
        request(script, need, at_hand, never_accepted=True)

    @table(
        "script, at_hand, need",
        {
            "RULES-3.4-renewed-and-ran-out": (
                [("Ensure expiring", ensured(2, "renewed")), ("Proceed at2", UNAUTHORIZED, 3000.0)],
                EARLY,
                "Ensure refused, unlike at2, never accepted",
            ),
            "RULES-3.4-renewed-and-about-to-run-out": (
                [("Ensure expiring", ensured(2, "renewed")), ("Proceed at2", UNAUTHORIZED, 2999.9)],
                EARLY,
                "Ensure refused, unlike at2, never accepted, no renewal",
            ),
            "RULES-2.17-expires-in-absent": (
                [("Ensure expiring", FOR_EVER), ("Proceed at2", UNAUTHORIZED, 1e9)],
                EARLY,
                "Ensure refused, unlike at2, never accepted, no renewal",
            ),
            "RULES-3.4-at-hand-and-ran-out": (
                [("Proceed at1", UNAUTHORIZED, 3000.0)],
                FRESH,
                "Ensure refused, unlike at1, never accepted",
            ),
            "RULES-3.4-once-more-and-no-oftener": (
                [*TWICE, ("Proceed at3", UNAUTHORIZED, 9000.0)],
                EARLY,
                "Ensure refused, unlike at3, never accepted, no renewal, no login",
            ),
            "RULES-3.4-the-second-one-was-refused-while-it-lived": (
                [*TWICE, ("Proceed at3", UNAUTHORIZED)],
                EARLY,
                "Ensure refused, unlike at3, never accepted, no renewal",
            ),
            "RULES-3.5-more-scopes-and-ran-out": (
                [("Ensure expiring", ensured(2, "renewed")), ("Proceed at2", forbidden("b"), 3000.0)],
                EARLY,
                "Ensure scope, unlike at2, scopes b",
            ),
            "DESIGN-4.3-logged-in-once-though-it-ran-out": (
                [
                    ("Proceed at1", UNAUTHORIZED),
                    ("Ensure *", ensured(2, "login")),
                    ("Proceed at2", UNAUTHORIZED, 3000.0),
                ],
                FRESH,
                "Ensure refused, unlike at2, never accepted, no login",
            ),
        },
    )
    def test_ran_out_on_its_way(self, script: list[Line], at_hand: Token, need: str) -> None:
        """The machine slept: a refusal by then says nothing against the grant, and it may be renewed once more."""
        request(script, need, at_hand, never_accepted=True)

    def test_rules_3_4_accepted_once(self) -> None:
        request([("Ensure expiring", ensured(1, "stored")), REFUSED], "Ensure refused, unlike at1", EARLY)


class TestForbidden:
    """Spec, "Step-Up Authorization Flow"."""

    STEP_UP = ("Proceed at1", forbidden("b"))

    @table(
        "script, end",
        {
            "SPEC-step-up": (
                [("Ensure scope, unlike at1, scopes b", ensured(2, "login", "a", "b")), ("Proceed at2", OK)],
                "Finished, accepted at2",
            ),
            "RULES-3.5-a-peers-step-up": (
                [("Ensure scope, unlike at1, scopes b", ensured(2, "stored", "a", "b")), ("Proceed at2", OK)],
                "Finished, accepted at2",
            ),
            "SPEC-an-eternal-403-gives-one-step-up": (
                [
                    ("Ensure scope, unlike at1, scopes b", ensured(2, "login", "a", "b")),
                    ("Proceed at2", forbidden("b")),
                ],
                "Finished, accepted at2",
            ),
            "SPEC-once-for-each-set": (
                [
                    ("Ensure scope, unlike at1, scopes b", ensured(2, "login", "a", "b")),
                    ("Proceed at2", forbidden("a", "c")),
                ],
                "Ensure scope, unlike at2, scopes a c, no renewal",
            ),
            "RULES-3.5-beyond-the-limit-the-403-is-the-callers": (
                [("Ensure *", failed(Reason.SCOPE_LIMIT))],
                "Finished, accepted at1",
            ),
            "RULES-3.5-denied-before-the-403-is-the-callers": (
                [("Ensure *", failed(Reason.STEP_UP_DENIED))],
                "Finished, accepted at1",
            ),
            "DESIGN-4-interactive-false": (
                [("Ensure *", failed(Reason.AUTHORIZATION_REQUIRED))],
                "Failed authorization-required",
            ),
            "RULES-3.5-denied-now": ([("Ensure *", failed(Reason.ACCESS_DENIED))], "Failed access-denied"),
            "DESIGN-4.4-nothing-came": ([("Ensure *", Ensured(None, "none"))], "Finished, accepted at1"),
            "DESIGN-4.4-the-same-token": ([("Ensure *", ensured(1, "stored"))], "Finished, accepted at1"),
            "DESIGN-4.4-refused-after-two-step-ups": (
                [
                    ("Ensure *", ensured(2, "login", "a", "b")),
                    ("Proceed at2", forbidden("c")),
                    ("Ensure *", ensured(3, "stored", "a", "c")),
                    ("Proceed at3", UNAUTHORIZED),
                ],
                "Finished",
            ),
            "DESIGN-4.4-refused-after-a-step-up": (
                [("Ensure *", ensured(2, "login", "a", "b")), ("Proceed at2", UNAUTHORIZED)],
                "Finished",
            ),
        },
    )
    def test_step_up(self, script: list[Line], end: str) -> None:
        request([self.STEP_UP, *script], end)

    def test_spec_step_up_after_the_login_of_the_same_request(self) -> None:
        script: list[Line] = [
            ("Ensure missing", Ensured(None, "none")),
            ("Proceed", Answered(401, ('Bearer scope="a"',))),
            ("Ensure refused, scopes a", ensured(1, "login")),
            ("Proceed at1", forbidden("b")),
            ("Ensure scope, unlike at1, scopes b, no renewal", ensured(2, "login", "a", "b")),
            ("Proceed at2", OK),
        ]
        request(script, "Finished, accepted at2", None)

    def test_rules_3_5_adopted_after_a_401_and_again_for_its_scopes(self) -> None:
        script: list[Line] = [
            REFUSED,
            ("Ensure refused, unlike at1", ensured(2, "stored")),
            ("Proceed at2", forbidden("b")),
            ("Ensure scope, unlike at2, scopes b", ensured(3, "stored", "a", "b")),
            ("Proceed at3", OK),
        ]
        request(script, "Finished, accepted at3")


class TestReplaying:
    @each("event", {"401": UNAUTHORIZED, "403": forbidden("b")})
    def test_design_4_5_a_body_that_cannot_be_sent_twice(self, event: Answered) -> None:
        """The token is fetched all the same, so that the next request has it."""
        script: list[Line] = [("Proceed at1", event), ("Ensure *", ensured(2, "login", "a", "b"))]
        run = request(script, "Failed body-not-replayable", replayable=False)
        assert "send the request again" in str(run.end.error)

    @each(
        "script",
        {
            "DESIGN-4.5-no-other-token": [REFUSED, ("Ensure *", Ensured(None, "none"))],
            "DESIGN-4.5-logged-in": [("Proceed at1", Answered(401, ours=False))],
        },
    )
    def test_design_4_5_the_answer_is_the_callers(self, script: list[Line]) -> None:
        request(script, "Finished", replayable=False)

    def test_design_4_5_before_the_first_send_nothing_is_lost(self) -> None:
        script: list[Line] = [("Ensure expiring", ensured(2, "renewed")), ("Proceed at2", OK)]
        request(script, "Finished, accepted at2", EXPIRED, replayable=False)


# --- Bounds -----------------------------------------------------------------------------------------------------------


def longest() -> Run:
    """Everything once, and a server that wants other scopes each time."""
    script: list[Line] = [("Ensure expiring", ensured(2, "stored"))]
    script += [("Proceed at2", UNAUTHORIZED), ("Ensure *", ensured(3, "stored"))]
    script += [("Proceed at3", UNAUTHORIZED), ("Ensure *", ensured(4, "renewed"))]
    script += [("Proceed at4", UNAUTHORIZED), ("Ensure *", ensured(5, "login"))]
    script += [("Proceed at5", forbidden("b")), ("Ensure *", ensured(6, "login", "a", "b"))]
    script += [("Proceed at6", forbidden("c")), ("Ensure *", ensured(7, "login", "a", "b", "c"))]
    script += [("Proceed at7", forbidden("d"))]
    return request(script, "Finished, accepted at7", EXPIRED)


def test_bound_reached() -> None:
    effects = [type(step.effect) for step in longest().steps[:-1]]
    assert (effects.count(Proceed), effects.count(Ensure)) == (access.MOST_REPEATS + 1, access.MOST_REPEATS + 1)
    assert len(effects) == access.MOST_EFFECTS == 12


@table(
    "passed, most, renewals, allowed_at_last",
    {
        "FN-6-at-once": (0.0, 4, 1, {(True, True), (False, True)}),
        "RULES-3.4-each-token-runs-out-on-its-way": (3000.0, 4, 2, {(True, True), (True, False), (False, False)}),
    },
)
def test_the_most_under_an_eternal_401(
    passed: float, most: int, renewals: int, allowed_at_last: set[tuple[bool, bool]]
) -> None:
    """Whatever the upkeep brings: a newer token, a login; a renewal more if time has passed, and no login then."""
    sent, renewed, allowed = 0, 0, set[tuple[bool, bool]]()
    todo = [(begin(FRESH, now=NOW), 2, 0, 0)]
    while todo:
        step, n, requests, renewals_of_it = todo.pop()
        sent, renewed = max(sent, requests), max(renewed, renewals_of_it)
        if not isinstance(step, Await):
            continue
        if isinstance(step.effect, Proceed):
            after = access.advance(step.state, UNAUTHORIZED, now=later(passed))
            todo.append((after, n, requests + 1, renewals_of_it))
            continue
        assert isinstance(step.effect, Ensure)
        need = step.effect.need
        allowed.add((need.may_renew, need.may_login))
        ways: tuple[tuple[How, bool], ...] = (("stored", True), ("renewed", need.may_renew), ("login", need.may_login))
        for how in (how for how, allowed_now in ways if allowed_now):
            after = access.advance(step.state, ensured(n, how), now=NOW)
            todo.append((after, n + 1, requests, renewals_of_it + (how == "renewed")))
    assert (sent, renewed) == (most, renewals)
    assert allowed == allowed_at_last


@table(
    "at_hand, event",
    {
        "ensuring": (None, OK),
        "ensuring-before": (EARLY, UNAUTHORIZED),
        "proceeding": (FRESH, ensured(2, "stored")),
        "proceeding-failed": (FRESH, failed(Reason.STORE_FAILED)),
    },
)
def test_misuse(at_hand: Token | None, event: Event) -> None:
    step = begin(at_hand, now=NOW)
    assert isinstance(step, Await)
    with pytest.raises(Misuse):
        access.advance(step.state, event, now=NOW)
