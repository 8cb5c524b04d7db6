"""The renewal protocol: what happens under the lock, in which order, and what is kept when it goes wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl

import pytest
from msgspec.structs import replace

from mcp_oauth.sansio import exchange, renewal
from mcp_oauth.sansio.errors import Failure, Reason
from mcp_oauth.sansio.grant import Grant, GrantRecord, Intent, LoginClaim, Registration, RegistrationRecord
from mcp_oauth.sansio.messages import Response
from mcp_oauth.sansio.steps import (
    Acquired,
    Await,
    Busy,
    Conflict,
    Event,
    Extended,
    Loaded,
    Misuse,
    Release,
    Released,
    Saved,
    Send,
    Sleep,
    StoreFailed,
    Woke,
)
from mcp_oauth.sansio.values import Seed
from tests.sansio.scripts import (
    CLIENT,
    ELSEWHERE,
    ISSUER,
    KEY,
    SEED,
    Line,
    each,
    grant,
    parent,
    play,
    record,
    saved,
    secret,
    tokens,
    unlike,
)
from tests.sansio.walks import LOST, NOW, UNSENT, answer, later, table
from tests.sansio.worlds import Run

OLD = grant(1)
POST = "POST as.example/token rt1"
RELEASE: Line = ("Release", Released())
FULL = StoreFailed("disk full")
BUSY = Busy("pid 7 on host")
DEAD = answer(400, error="invalid_grant", error_description=f"no such token {secret(1, 'rt')}")
FORGOTTEN = answer(401, error="invalid_client")
ODD = answer(400, error="invalid_request")
MOVED = Response(307, (("location", "https://evil.example"),))
PAGE = Response(403, (("content-type", "text/html"),), b"<html>")
EARLY = grant(1, left=30)
"""In its leeway, and alive."""


def begin(one: Grant = OLD, *, refused: str | None = None, seed: Seed = SEED, jitter: float = 0.0) -> renewal.Out:
    return renewal.begin(KEY, one, unlike=refused, seed=seed, jitter=jitter, holder="us")


def renew(
    script: Sequence[Line], end: str, one: Grant = OLD, stored: GrantRecord | None = None, refused: str | None = None
) -> Run:
    """From the moment at which the lock is had; `one` is stored, unless said otherwise."""
    acquired: Line = ("Acquire", Acquired(stored or record(one)))
    return play(renewal, begin(one, refused=refused), [acquired, *script], end)


def error_of(run: Run) -> Failure:
    found: Failure = run.end.error
    return found


# --- The good case ----------------------------------------------------------------------------------------------------


def test_rules_4_11_saved_before_anyone_gets_it_and_released_before_the_end() -> None:
    script: list[Line] = [(POST, tokens(2)), ("Save r0: *as(at2 rt2)", Saved()), RELEASE]
    run = renew(script, "Done renewed at2")
    assert run.notices == ["renewed"]


def test_what_is_sent() -> None:
    one = replace(OLD, extra_token_params=(("audience", "x"),))
    run = renew([(POST, LOST)], POST, one)
    request = run.steps[1].effect.request
    assert (request.method, request.url) == ("POST", f"{ISSUER}/token")  # RULES 1.2, FN 8: as recorded
    assert parse_qsl(request.body.decode()) == [
        ("grant_type", "refresh_token"),  # RULES 2.15: no scope
        ("refresh_token", secret(1, "rt")),
        ("resource", "https://mcp.example/mcp"),  # FN 9: byte for byte
        ("audience", "x"),
        ("client_id", "client"),
        ("client_secret", secret("", "secret")),
    ]


def test_rules_2_11_the_grant_has_its_own_client() -> None:
    one = replace(OLD, registration=Registration(ISSUER, "mine", "cimd", "none"), resource=None)
    run = renew([(POST, LOST)], POST, one)
    assert parse_qsl(run.steps[1].effect.request.body.decode())[2:] == [("client_id", "mine")]


@table(
    "members, expected",
    {
        "FN-1-absolute-expiry-counted-from-the-sending": ({}, {"expires_at": NOW.wall + 3605, "granted": ("a",)}),
        "FN-10-refresh-token-carried-forward": ({"refresh_token": None}, {"refresh_token": secret(1, "rt")}),
        "RULES-3.6-scope-carried-forward": ({"scope": None}, {"granted": ("a",), "requested": ("a",)}),
        "RULES-2.15-scope-of-the-answer": ({"scope": "b c"}, {"granted": ("b", "c"), "requested": ("a",)}),
        "RULES-2.17-expires-in-absent": ({"expires_in": None}, {"expires_at": None}),
        "RULES-2.17-expires-in-0": ({"expires_in": 0}, {"expires_at": NOW.wall + 5}),
    },
)
def test_the_renewed_grant(members: dict[str, Any], expected: dict[str, Any]) -> None:
    spent = replace(OLD, refusals=2, next_attempt_at=NOW.wall - 1, renewals=(NOW.wall - 61, NOW.wall - 50))
    step = begin(spent)
    script: list[Line] = [("Acquire", Acquired(record(spent)), 5), (POST, tokens(2, **members), 8)]
    kept = saved(play(renewal, step, script, "Save r0: *"))[0].grants[0]
    assert kept == replace(
        spent,
        **{
            "access_token": secret(2, "at"),
            "refresh_token": secret(2, "rt"),
            "obtained_at": NOW.wall + 5,
            "expires_at": NOW.wall + 3605,
            "parent": parent(1),
            "generation": 1,
            "refusals": 0,
            "next_attempt_at": None,
            "renewals": (NOW.wall - 50, NOW.wall + 8),
            **expected,
        },
    )


# --- The lock ---------------------------------------------------------------------------------------------------------

NEWER = record(grant(2, left=3600), revision="r1")


@table(
    "stored, refused, end",
    {
        "RULES-4.6-reads-again-under-the-lock": (NEWER, None, "Done stored at2"),
        "RULES-4.3-a-peers-login-is-judged-by-upkeep": (
            record(grant(5, left=99, life=99, lineage="x")),
            None,
            "Done none",
        ),
        "RULES-4.6-not-the-token-that-will-not-do": (NEWER, unlike(2), "Done none"),
        "RULES-4.6-another-refresh-token": (record(grant(2)), None, "Done none"),
        "RULES-4.6-tombstone-of-a-logout": (record(OLD, logged_out=True), None, "Done none"),
        "RULES-4.6-tombstone-of-a-refusal": (record(replace(OLD, refused=parent(1))), None, "Done none"),
        "RULES-4.6-no-refresh-token-any-more": (record(replace(OLD, refresh_token=None)), None, "Done none"),
        "RULES-4.1-another-issuer-in-use": (record(OLD, grant(2, issuer=ELSEWHERE)), None, "Done none"),
        "RULES-4.1-the-issuer-in-use-has-no-grant": (record(OLD, current=ELSEWHERE), None, "Done none"),
        "RULES-4.2-a-foreign-record": (RegistrationRecord("r0"), None, "Done none"),
        "RULES-4.2-nothing": (None, None, "Done none"),
    },
)
def test_under_the_lock(stored: Any, refused: str | None, end: str) -> None:
    """Nothing is sent, and the lock is given back."""
    play(renewal, begin(refused=refused), [("Acquire", Acquired(stored)), RELEASE], end)


@table(
    "stored, then",
    {
        "RULES-4.4-a-newer-token-ends-the-wait": (Loaded(NEWER), "Done stored at2"),
        "RULES-4.4-nothing-new": (Loaded(record(OLD)), "Acquire"),
        "RULES-4.4-expired-again": (Loaded(record(grant(2))), "Acquire"),
        "RULES-4.4-nothing": (Loaded(None), "Acquire"),
        "RULES-4.4-store-fails": (FULL, "Failed store-failed"),
    },
)
def test_waiting(stored: Event, then: str) -> None:
    run = play(renewal, begin(), [("Acquire", BUSY), ("Sleep *", Woke()), ("Load", stored)], then)
    assert run.notices == ["lock-busy"]
    assert "pid 7 on host" in run.steps[1].notices[0].message


def test_rules_4_4_waiting_ends_after_30_seconds() -> None:
    polls: list[Line] = [("Acquire", BUSY), ("Sleep *", Woke()), ("Load", Loaded(record(OLD)))]
    run = play(renewal, begin(), [*polls * 36, ("Acquire", BUSY)], "Failed renewal-busy")
    assert error_of(run).message == "the grant is locked by pid 7 on host"
    waits = [step.effect.seconds for step in run.steps[:-1] if isinstance(step.effect, Sleep)]
    assert 25 < sum(waits) < 35
    assert run.notices == ["lock-busy"]


@pytest.mark.parametrize("seed", [SEED, SEED.child("a"), SEED.child("b")], ids=str)
def test_rules_4_4_polls_grow_from_50_ms_to_1_s_with_jitter(seed: Seed) -> None:
    step, waits = begin(seed=seed), list[float]()
    while isinstance(step, Await) and len(waits) < exchange.MOST_POLLS:
        busy = renewal.advance(step.state, BUSY, now=NOW)
        assert isinstance(busy, Await)
        assert isinstance(busy.effect, Sleep)
        waits.append(busy.effect.seconds)
        looking = renewal.advance(busy.state, Woke(), now=NOW)
        assert isinstance(looking, Await)
        step = renewal.advance(looking.state, Loaded(None), now=NOW)
    bases = [min(1.0, 0.05 * 1.5**n) for n in range(exchange.MOST_POLLS)]
    assert all(0.75 * base <= wait < 1.25 * base for base, wait in zip(bases, waits, strict=True))
    ratios = {wait / base for base, wait in zip(bases, waits, strict=True)}
    assert len(ratios) == len(waits)
    assert min(ratios) < 0.85 < 1.15 < max(ratios)


def test_store_fails_on_the_lock() -> None:
    run = play(renewal, begin(), [("Acquire", FULL)], "Failed store-failed")
    assert error_of(run).message == "disk full"


# --- Early renewal: the leeway ----------------------------------------------------------------------------------------


@table(
    "life, left, jitter, renews",
    {
        "FN-11-hour-before-the-leeway": (3600, 60.1, 0.0, False),
        "FN-11-hour-in-its-leeway": (3600, 60.0, 0.0, True),
        "FN-11-300-s-token": (300, 30.1, 0.0, False),
        "FN-11-300-s-token-in-its-leeway": (300, 30.0, 0.0, True),
        "FN-11-5-s-token": (5, 0.51, 0.0, False),
        "FN-11-5-s-token-in-its-leeway": (5, 0.49, 0.0, True),
        "FN-11-0-s-token": (0, 0.0, 0.0, True),
        "FN-11-jitter-renews-later": (3600, 55.0, 0.5, False),
        "FN-11-jitter-in-its-leeway": (3600, 54.0, 0.5, True),
        "RULES-2.17-clock-set-back-by-a-day": (3600, 86400.0, 0.0, False),
        "RULES-2.17-clock-set-forward-by-a-day": (3600, -82800.0, 0.0, True),
    },
)
def test_leeway(life: float, left: float, jitter: float, renews: bool) -> None:
    one = grant(1, life=life, left=left)
    play(renewal, begin(one, jitter=jitter), [("Acquire", Acquired(record(one)))], POST if renews else "Release")


@table(
    "answers, note",
    {
        "FN-11-invalid-grant-while-it-lives": ([DEAD], "+30s"),
        "FN-11-odd-refusal-is-not-counted": ([ODD], "+5s"),
        "RULES-2.11-dcr-forgotten-while-it-lives": ([FORGOTTEN], "+5s"),
        "FN-11-unavailable": ([Response(503)], "+1s"),
        "FN-11-retry-after": ([Response(429, (("retry-after", "20"),))], "+20s"),
        "FN-11-not-reached": ([UNSENT], "+1s"),
        "FN-11-answers-lost": ([LOST, LOST], "+5s"),
    },
)
def test_rules_4_12_a_failed_early_renewal_keeps_the_token(answers: list[Event], note: str) -> None:
    """And it is not tried again at once."""
    sends: list[Line] = [(POST, event) for event in answers]
    run = renew([*sends, (f"Save r0: *as(at1 rt1 {note})", Saved()), RELEASE], "Done stored at1", EARLY)
    assert run.notices == ["renewal-postponed"]


def test_rules_4_12_an_early_refusal_puts_off_by_a_minute_at_most() -> None:
    """The clock was set back between the request and its answer."""
    script: list[Line] = [("Acquire", Acquired(record(EARLY))), (POST, DEAD, -1e5)]
    play(renewal, begin(EARLY), script, f"Save r0: *as(at1 rt1 +{60 - 1e5:g}s)")


@table(
    "seconds, then",
    {
        "RULES-4.12-put-off": (60.0, "Done stored at1"),
        "RULES-4.12-put-off-a-little": (0.1, "Done stored at1"),
        "RULES-4.12-over": (0.0, POST),
        "RULES-4.12-long-over": (-1e6, POST),
        "RULES-4.12-by-another-clock": (60.1, POST),
        "RULES-4.12-clock-set-back-by-a-day": (86400.0, POST),
    },
)
def test_next_attempt(seconds: float, then: str) -> None:
    one = replace(EARLY, next_attempt_at=NOW.wall + seconds)
    renew([RELEASE] * then.startswith("Done"), then, one)


def test_rules_4_9_put_off_sleeps_without_the_lock() -> None:
    """Somebody else was told to wait; three times, and then the truth."""
    put_off = record(replace(OLD, next_attempt_at=NOW.wall + 10))
    script: list[Line] = [("Acquire", Acquired(put_off)), RELEASE, ("Sleep 10", Woke())] * 3
    run = play(renewal, begin(), [*script, ("Acquire", Acquired(put_off)), RELEASE], "Failed renewal-unavailable")
    assert error_of(run).message == "the next renewal may be tried in 10 s"
    assert error_of(run).url == f"{ISSUER}/token"


# --- Answers ----------------------------------------------------------------------------------------------------------


@table(
    "event, seconds",
    {
        "RULES-3.3-connect-failure": (UNSENT, 1),
        "RULES-3.3-429": (Response(429), 1),
        "RULES-3.3-503": (Response(503), 1),
        "RULES-3.3-retry-after": (Response(429, (("Retry-After", "7"),)), 7),
        "RULES-3.3-retry-after-0": (Response(503, (("Retry-After", "0"),)), 1),
        "RULES-3.3-retry-after-60-at-most": (Response(429, (("Retry-After", "3600"),)), 60),
        "RULES-3.3-retry-after-date": (Response(429, (("Retry-After", "Mon, 23 Nov 2026 00:00:00 GMT"),)), 1),
        "RULES-3.3-503-with-an-error": (answer(503, error="invalid_grant"), 1),
    },
)
def test_certainly_not_processed(event: Event, seconds: int) -> None:
    """RULES 4.9: note it, release, sleep without the lock, start again."""
    script: list[Line] = [
        (POST, event),
        (f"Save r0: *as(at1 rt1 +{seconds}s)", Saved()),
        RELEASE,
        (f"Sleep {seconds}", Woke()),
        ("Acquire", Acquired(NEWER)),
        RELEASE,
    ]
    assert renew(script, "Done stored at2").notices == ["renewal-postponed"]


@table(
    "event, why",
    {
        "RULES-3.3-not-reached": (UNSENT, "connection refused"),
        "RULES-3.3-unavailable": (Response(503), "HTTP 503"),
    },
)
def test_three_retries_after_1_2_and_4_seconds(event: Event, why: str) -> None:
    script: list[Line] = []
    for n, (at, seconds) in enumerate([(0, 1), (1, 2), (3, 4), (7, 4)]):
        noted = replace(OLD, next_attempt_at=NOW.wall + at)
        script += [
            ("Acquire", Acquired(record(noted, revision=f"r{n}")), at),
            (POST, event),
            (f"Save r{n}: *as(at1 rt1 +{at + seconds}s)", Saved()),
            RELEASE,
            (f"Sleep {seconds}", Woke()),
        ]
    run = play(renewal, begin(), script[:-1], "Failed renewal-unavailable")
    assert error_of(run).message == f"the token endpoint is unavailable: {why}"
    assert error_of(run).url == f"{ISSUER}/token"


@each(
    "event",
    {
        "RULES-4.9-timeout": LOST,
        "RULES-4.9-500": Response(500),
        "RULES-4.9-502": Response(502),
        "RULES-4.9-500-with-an-error": answer(500, error="invalid_grant"),
        "RULES-4.9-unreadable": Response(200, (), b"{"),
        "RULES-4.9-html": Response(200, (("content-type", "text/html"),), b"<html>"),
        "RULES-4.9-no-token-in-it": answer(200, token_type="Bearer"),
        "RULES-4.9-token-unfit-for-a-header": answer(200, access_token="a\nb"),
    },
)
def test_ambiguous(event: Event) -> None:
    """RULES 3.3: once more, at once, with the same token, under the same lock; then the grant is kept."""
    script: list[Line] = [(POST, event), (POST, event), ("Save r0: *as(at1 rt1 +5s)", Saved()), RELEASE]
    run = renew(script, "Failed renewal-ambiguous")
    assert error_of(run).message.startswith("the answer to the renewal was lost: ")
    assert "None" not in error_of(run).message
    assert error_of(run).url == f"{ISSUER}/token"
    assert "kept" in str(error_of(run))


def test_rules_3_3_the_second_presentation_may_do() -> None:
    script: list[Line] = [
        ("Acquire", Acquired(record(OLD))),
        (POST, LOST, 5),
        (POST, tokens(2), 9),
        ("Save r0: *as(at2 rt2)", Saved()),
        RELEASE,
    ]
    run = play(renewal, begin(), script, "Done renewed at2")
    assert saved(run)[0].grants[0].obtained_at == NOW.wall + 5


# --- Refusals ---------------------------------------------------------------------------------------------------------

BURIED = "Save r0: *as(at1 rt1 dead)"
FORGET = "Save r0: *as(at1 rt1 dead client refused)"


@pytest.mark.parametrize("noted", [Saved(), Conflict(None), FULL], ids=lambda event: type(event).__name__)
def test_rules_3_2_refusal_after_a_fresh_read(noted: Event) -> None:
    """`invalid_grant`, read again under the lock, still the current one: only now it is dead."""
    run = renew([(POST, DEAD), ("Load", Loaded(record(OLD))), (BURIED, noted), RELEASE], "Done dead")
    assert run.end.value.failure.reason is Reason.RENEWAL_REFUSED
    assert run.end.value.failure.oauth_error == "invalid_grant"
    assert "[hidden]" in run.end.value.failure.message
    assert saved(run)[0].grants[0].refused == parent(1)


@each(
    "stored",
    {
        "RULES-3.2-a-peer-was-faster": NEWER,
        "RULES-3.2-another-refresh-token": record(grant(2)),
        "RULES-3.2-a-logout": record(logged_out=True),
        "RULES-3.2-dead-already": record(replace(OLD, refused=parent(1))),
        "RULES-3.2-nothing": None,
    },
)
def test_refused_but_changed(stored: GrantRecord | None) -> None:
    renew([(POST, DEAD), ("Load", Loaded(stored)), RELEASE], "Done none")


def test_rules_3_2_refused_and_not_read() -> None:
    """What cannot be confirmed is kept."""
    run = renew([(POST, DEAD), ("Load", FULL), RELEASE], "Failed store-failed")
    assert error_of(run).message == "disk full"


def test_rules_3_2_burying_changes_nothing_else() -> None:
    """But why; what a peer has noted meanwhile stays, and the save is versioned."""
    claim = LoginClaim("theirs", "pid 2", NOW.wall + 9)
    peers = record(replace(OLD, refusals=1), revision="r1", login=claim, resource_metadata_seen=True)
    run = renew([(POST, DEAD), ("Load", Loaded(peers))], "Save r1: *as(at1 rt1 dead 1 refusals) claim theirs")
    (buried,) = saved(run)
    dead = replace(peers.grants[0], refused=parent(1), refused_because=buried.grants[0].refused_because)
    assert buried == replace(peers, revision=buried.revision, grants=(dead,))
    assert dead.refused_because


def test_rules_3_2_an_early_token_that_was_refused_is_no_reason_to_keep() -> None:
    script: list[Line] = [(POST, DEAD), ("Load", Loaded(record(EARLY))), (BURIED, Saved()), RELEASE]
    renew(script, "Done dead", EARLY, refused=unlike(1))


KINDS = {kind: replace(OLD, registration=replace(CLIENT, kind=kind)) for kind in ("dcr", "cimd", "preregistered")}
TWICE = {kind: replace(one, refusals=2) for kind, one in KINDS.items()}


@table(
    "one, event, then",
    {
        "RULES-2.11-dcr-forgotten": (KINDS["dcr"], FORGOTTEN, FORGET),
        "RULES-2.11-preregistered-is-kept": (KINDS["preregistered"], FORGOTTEN, "*1 refusals +5s)"),
        "RULES-2.11-cimd-is-kept": (KINDS["cimd"], FORGOTTEN, "*1 refusals +5s)"),
        "RULES-2.11-preregistered-is-kept-for-ever": (TWICE["preregistered"], FORGOTTEN, "*3 refusals +5s)"),
        "RULES-2.11-cimd-is-kept-for-ever": (TWICE["cimd"], FORGOTTEN, "*3 refusals +5s)"),
        "RULES-2.11-bare-401-is-kept": (KINDS["dcr"], Response(401), "*1 refusals +5s)"),
        "FN-5-bare-401-for-ever": (TWICE["dcr"], Response(401), "*rt1 dead client refused 2 refusals)"),
        "FN-5-invalid-request": (OLD, ODD, "*1 refusals +5s)"),
        "RULES-3.2-cannot-just-now": (
            TWICE["dcr"],
            answer(400, error="temporarily_unavailable"),
            "*rt1 2 refusals +5s)",
        ),
        "RULES-3.2-server-error": (TWICE["dcr"], answer(400, error="server_error"), "*rt1 2 refusals +5s)"),
        "RULES-3.2-slow-down": (TWICE["dcr"], answer(400, error="slow_down"), "*rt1 2 refusals +5s)"),
        "FN-5-invalid-request-again": (replace(OLD, refusals=1), ODD, "*2 refusals +5s)"),
        "FN-5-invalid-request-for-ever": (TWICE["dcr"], ODD, "*rt1 dead 2 refusals)"),
        "FN-5-unauthorized-client-for-ever": (
            TWICE["preregistered"],
            answer(400, error="unauthorized_client"),
            "*rt1 dead 2 refusals)",
        ),
        "FN-42-slack": (OLD, answer(200, ok=False, error="token_revoked"), "*1 refusals +5s)"),
        "RULES-3.2-a-gateways-page-is-no-refusal": (OLD, PAGE, "*as(at1 rt1 +5s)"),
        "RULES-3.2-a-gateways-page-for-ever": (TWICE["dcr"], PAGE, "*rt1 2 refusals +5s)"),
        "RULES-1.4-a-redirect-is-not-followed": (OLD, MOVED, "*as(at1 rt1 +5s)"),
        "RULES-3.3-unavailable-does-not-count": (TWICE["dcr"], Response(503), "*rt1 2 refusals +1s)"),
    },
)
def test_refusals(one: Grant, event: Event, then: str) -> None:
    """Nothing is discarded but on invalid_grant; many refusals are, in effect, one (FN 5)."""
    confirmed: list[Line] = [("Load", Loaded(record(one)))] if "dead" in then else []
    renew([(POST, event), *confirmed], then if then.startswith("Save") else f"Save r0: {then}", one)


def test_fn_5_a_refusal_ends_the_renewal_and_keeps_the_grant() -> None:
    run = renew([(POST, ODD), ("Save *", Saved()), RELEASE], "Failed renewal-refused")
    assert (error_of(run).oauth_error, error_of(run).status) == ("invalid_request", 400)


# --- Limits -----------------------------------------------------------------------------------------------------------


@table(
    "ages, refused, then",
    {
        "RULES-3.4-29-in-a-minute": ([1.0] * 29, None, POST),
        "RULES-3.4-30-in-a-minute": ([59.9] * 30, unlike(1), "Release"),
        "RULES-3.4-30-in-a-minute-and-a-bit": ([60.0] + [1.0] * 29, None, POST),
        "RULES-3.4-clock-set-back": ([-1.0] * 30, None, POST),
    },
)
def test_renewals_in_a_minute(ages: list[float], refused: str | None, then: str) -> None:
    renew([], then, replace(OLD, renewals=tuple(NOW.wall - age for age in ages)), refused=refused)


@table(
    "refused, end",
    {
        "RULES-3.4-refused-tokens": (unlike(1), "Failed renewal-too-often"),
        "RULES-4.12-not-refused-used-whatever-its-expiry-says": (None, "Done stored at1"),
    },
)
def test_too_often(refused: str | None, end: str) -> None:
    renew([RELEASE], end, replace(OLD, renewals=(NOW.wall,) * 30), refused=refused)


# --- The save, and after it -------------------------------------------------------------------------------------------


def test_rules_4_10_conflict_with_a_note() -> None:
    noted = record(replace(OLD, next_attempt_at=1.0), revision="r1")
    script: list[Line] = [
        (POST, tokens(2)),
        ("Save r0: *as(at2 rt2)", Conflict(noted)),
        ("Save r1: *as(at2 rt2)", Saved()),
        RELEASE,
    ]
    renew(script, "Done renewed at2")


def test_rules_3_7_a_logout_between_revokes_what_was_received() -> None:
    """Without the lock, and the caller is told."""
    script: list[Line] = [
        (POST, tokens(2)),
        ("Save r0: *as(at2 rt2)", Conflict(record(logged_out=True, revision="r1"))),
        RELEASE,
        ("POST as.example/revoke rt2", Response(200)),
        ("POST as.example/revoke at2", Response(200)),
    ]
    renew(script, "Failed logged-out")


def test_rules_4_10_a_login_between_with_the_refused_token_is_of_no_use() -> None:
    other = record(grant(3, left=9999, lineage="other", revocation_endpoint=None))
    one = replace(OLD, revocation_endpoint=None)
    script: list[Line] = [(POST, tokens(2)), ("Save *", Conflict(other)), RELEASE]
    renew(script, "Done none", one, refused=unlike(3))


def test_rules_4_10_a_login_between_revokes_what_was_received() -> None:
    peers = record(grant(5, left=3600, lineage="x"), revision="r1")
    script: list[Line] = [
        (POST, tokens(2)),
        ("Save *", Conflict(peers)),
        RELEASE,
        ("POST as.example/revoke rt2", UNSENT),
        ("POST as.example/revoke at2", UNSENT),
    ]
    renew(script, "Done stored at5")


def test_rules_4_11_a_store_that_fails_costs_no_token() -> None:
    script: list[Line] = [(POST, tokens(2)), ("Save *", FULL), ("Load", FULL), RELEASE]
    assert renew(script, "Done renewed at2, unsaved").notices == ["not-persisted"]


# --- What holds for every run -----------------------------------------------------------------------------------------


def everything() -> Run:
    """The longest run there is."""
    lease, intent = NOW.elapsed + 99, ("Save *", Saved())
    theirs = record(OLD, intent=Intent("a", parent(1), "pid 7 on host", NOW.wall))
    polls: list[Line] = [("Acquire", Acquired(theirs, lease, exclusive=False)), RELEASE]
    polls += [("Sleep *", Woke()), ("Load", Loaded(record(OLD)))]
    sent: list[Line] = [("Acquire", Acquired(record(OLD), lease, exclusive=False)), intent]
    sent += [(POST, LOST), ("Extend", Extended(lease))]
    rests: list[Line] = [*sent, (POST, UNSENT), ("Save *", Saved()), RELEASE, ("Sleep *", Woke())]
    moved = [record(replace(OLD, next_attempt_at=float(n)), revision=f"r{n + 1}") for n in range(6)]
    saves: list[Line] = [("Save *", Conflict(one)) for one in moved]
    saves += [("Save *", FULL), ("Load", Loaded(record(OLD)))]
    saves += [("Save *", FULL), ("Load", Loaded(record(logged_out=True)))]
    revoked: list[Line] = [("POST as.example/revoke *", Response(503)), ("Sleep *", Woke())]
    revoked += [("POST as.example/revoke *", Response(503))]
    script = [*polls * 36, *rests * 3, *sent, (POST, tokens(2)), *saves, RELEASE, *revoked * 2]
    return play(renewal, begin(), script, "Failed logged-out")


def test_bound_reached() -> None:
    assert len(everything().events) == renewal.MOST_EFFECTS == 190
    assert len(saved(everything())) == 15  # RULES 4.2: and no revision recurs


def test_no_lock_is_held_while_waiting() -> None:
    """RULES 4.9, DESIGN 4: neither over a sleep, nor at the end; nor is anything sent without it but a revocation."""
    run, held = everything(), False
    for step, event in zip(run.steps, run.events, strict=False):
        match step.effect:
            case Sleep():
                assert not held
            case Send(request):
                assert held is request.url.endswith("/token")
        held = isinstance(event, Acquired) or (held and not isinstance(step.effect, Release))
    assert not held


@pytest.mark.parametrize("event", [Response(200), Woke(), Released(), Saved()], ids=lambda event: type(event).__name__)
def test_misuse(event: Event) -> None:
    step = begin()
    assert isinstance(step, Await)
    with pytest.raises(Misuse, match="Locking"):
        renewal.advance(step.state, event, now=later(1))
