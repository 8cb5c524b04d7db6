"""What is done for a grant: a stored token, a renewal, a login, in this order; and how often, over many requests."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from mcp_oauth.sansio import login, renewal, resource, upkeep
from mcp_oauth.sansio.exchange import MOST_POLLS
from mcp_oauth.sansio.grant import (
    Grant,
    GrantRecord,
    Intent,
    LoginClaim,
    Record,
    RegistrationRecord,
    current_grant,
)
from mcp_oauth.sansio.messages import Response
from mcp_oauth.sansio.plan import Plan, PreRegistered
from mcp_oauth.sansio.steps import (
    Acquired,
    Await,
    Because,
    Busy,
    Conflict,
    Done,
    Event,
    Loaded,
    Misuse,
    Need,
    Released,
    Saved,
    Woke,
)
from tests.sansio.scripts import (
    ELSEWHERE,
    ISSUER,
    METADATA,
    PLAN,
    SEED,
    SERVER,
    Line,
    each,
    grant,
    logging_in,
    metadata,
    parent,
    play,
    record,
    saved,
    say,
    secret,
    tokens,
    with_scopes,
)
from tests.sansio.upkeeps import (
    DEAD,
    EARLY,
    FIRST_LOGIN,
    FRESH,
    FULL,
    LOGIN,
    OLD,
    POST,
    RELEASE,
    RENEW,
    WITHOUT,
    loaded,
    need,
    run,
)
from tests.sansio.walks import NOW, UNSENT, answer, table

# --- A stored token ---------------------------------------------------------------------------------------------------


@table(
    "wanted, stored, then",
    {
        "DESIGN-4.2-missing": (need("missing"), FRESH, "Done stored at1"),
        "DESIGN-4.2-expiring-a-peer-was-faster": (need("expiring"), FRESH, "Done stored at1"),
        "FN-7-refused-a-newer-one-is-stored": (need("refused", 0), FRESH, "Done stored at1"),
        "FN-7-its-scopes-are-for-a-login": (need("refused", 0, scopes=("z",)), FRESH, "Done stored at1"),
        "FN-28-asked": (need("asked"), FRESH, "Done stored at1"),
        "RULES-3.5-scope-a-peer-stepped-up": (need("scope", 0, scopes=("a",)), FRESH, "Done stored at1"),
        "RULES-3.5-scope-more-than-enough": (
            need("scope", 0, scopes=("a",)),
            with_scopes(FRESH, "b", "a"),
            "Done stored at1",
        ),
        "RULES-3.5-scope-not-asked-for": (need("scope", 0, scopes=("b",)), FRESH, LOGIN),
        "RULES-3.5-scope-nothing-asked-for": (need("scope", 0, scopes=("a",)), replace(FRESH, requested=None), LOGIN),
        "RULES-3.5-scope-granted-and-not-asked-for": (
            need("scope", 0, scopes=("b",)),
            replace(FRESH, granted=("a", "b")),
            LOGIN,
        ),
        "RULES-3.5-scope-this-very-token": (need("scope", 1, scopes=("b",)), FRESH, LOGIN),
        "DESIGN-4.2-in-its-leeway": (need("missing"), EARLY, RENEW),
        "DESIGN-4.2-expired": (need("expiring"), OLD, RENEW),
        "FN-1-asked-expired": (need("asked"), OLD, RENEW),
        "forced": (need("forced"), FRESH, LOGIN),
        "forced-expired": (need("forced"), OLD, LOGIN),
        "RULES-3.5-scope-a-peers-token-has-expired": (need("scope", 0, scopes=("a",)), OLD, RENEW),
        "RULES-3.5-scope-a-peers-token-is-refused-too": (need("scope", 1, scopes=("a",)), FRESH, RENEW),
        "RULES-4.2-tombstone-of-a-refusal": (need("asked"), replace(OLD, refused=parent(1)), LOGIN),
        "RULES-4.2-no-refresh-token": (need("asked"), WITHOUT, LOGIN),
        "DESIGN-4.3-refused-without-refresh-token": (need("refused", 1), replace(FRESH, refresh_token=None), LOGIN),
        "DESIGN-4.3-renewed-already": (need("refused", 1, may_renew=False), FRESH, LOGIN),
        "DESIGN-4.3-scope-renewed-already": (need("scope", 0, scopes=("a",), may_renew=False), OLD, LOGIN),
        "DESIGN-4.3-logged-in-already": (need("refused", 1, may_renew=False, may_login=False), FRESH, "Done none"),
        "RULES-4.12-expired-without-refresh-token-is-the-servers-to-judge": (
            need("missing"),
            WITHOUT,
            "Done stored at1",
        ),
        "RULES-4.12-expired-and-dead-is-the-servers-to-judge": (
            need("expiring"),
            replace(OLD, refused=parent(1)),
            "Done stored at1",
        ),
        "RULES-2.17-clock-set-forward-by-a-day": (
            need("expiring"),
            replace(WITHOUT, expires_at=NOW.wall - 82800),
            "Done stored at1",
        ),
        "RULES-2.17-clock-set-back-by-a-day": (need("missing"), grant(1, left=90000), "Done stored at1"),
        "RULES-2.17-expires-in-absent": (need("missing"), replace(OLD, expires_at=None), "Done stored at1"),
    },
)
def test_what_is_stored_decides(wanted: Need, stored: Grant, then: str) -> None:
    run(wanted, [loaded(stored)], then)


@table(
    "stored, save",
    {
        "nothing": (None, FIRST_LOGIN),
        "RULES-4.2-a-foreign-record": (RegistrationRecord("r0"), FIRST_LOGIN),
        "RULES-4.2-logged-out": (record(FRESH, logged_out=True), LOGIN),
        "RULES-4.1-issuer-in-use-has-no-grant": (record(FRESH, current=ELSEWHERE), LOGIN),
        "RULES-4.1-none-in-use": (record(), "Save r0: claim *"),
    },
)
@table(
    "because, logs_in",
    {
        "missing": ("missing", False),
        "expiring": ("expiring", False),
        "refused": ("refused", True),
        "asked": ("asked", True),
        "scope": ("scope", True),
        "forced": ("forced", True),
    },
)
def test_no_grant(stored: Record | None, save: str, because: Because, logs_in: bool) -> None:
    """Whether a token is needed at all, the server's challenge tells."""
    run(need(because, scopes=("a",)), [("Load", Loaded(stored))], save if logs_in else "Done none")


def test_design_4_interactive_false_fails_before_anything() -> None:
    plan = replace(PLAN, interactive=False)
    failed = run(need("refused"), [("Load", Loaded(None))], "Failed authorization-required", plan)
    assert failed.end.error.message == f"{SERVER} needs a login, and interactive=False"


@table(
    "because, says",
    {
        "RULES-4.15-why-the-grant-is-dead": ("refused", "needs a login, and interactive=False: It is dead"),
        "RULES-3.5-or-what-is-demanded": ("scope", "needs a login for the scopes b, and interactive=False"),
    },
)
def test_interactive_false_says_why(because: Because, says: str) -> None:
    dead = replace(OLD, refused=parent(1), refused_because="It is dead")
    plan = replace(PLAN, interactive=False)
    failed = run(need(because, scopes=("b",)), [loaded(dead)], "Failed authorization-required", plan)
    assert failed.end.error.message == f"{SERVER} {says}"


def test_the_store_fails() -> None:
    failed = run(need("missing"), [("Load", FULL)], "Failed store-failed")
    assert failed.end.error.message == "disk full"


# --- Renewal ----------------------------------------------------------------------------------------------------------

ACQUIRED: Line = ("Acquire", Acquired(record(OLD)))


def test_fn_1_a_new_process_renews_without_a_browser() -> None:
    script: list[Line] = [loaded(OLD), ACQUIRED, (POST, tokens(2)), ("Save r0: *as(at2 rt2)", Saved()), RELEASE]
    assert run(need("missing"), script, "Done renewed at2").notices == ["renewed"]


def test_fn_35_a_program_without_a_client_renews_a_grant_of_one_registered_by_hand() -> None:
    plan = Plan(SERVER, any_client=True)
    one = replace(OLD, registration=replace(OLD.registration, kind="preregistered"))
    step = upkeep.begin(plan, need("missing"), SEED)
    play(upkeep, step, [loaded(one), ("Acquire", Acquired(record(one)))], POST)


def test_rules_4_11_what_cannot_be_saved_is_handed_on() -> None:
    script: list[Line] = [loaded(OLD), ACQUIRED, (POST, tokens(2)), ("Save *", FULL), ("Load", FULL), RELEASE]
    run(need("missing"), script, "Done renewed at2, unsaved")


@table(
    "wanted, then",
    {
        "RULES-3.2-then-a-login": (need("refused", 0), LOGIN),
        "RULES-3.2-asked": (need("asked"), LOGIN),
        "RULES-3.2-no-login-unasked": (need("expiring"), "Done stored at1"),
    },
)
@each("buried", {"saved": Saved(), "RULES-3.2-not-presented-again": FULL, "conflict": Conflict(None)})
def test_a_dead_refresh_token(wanted: Need, then: str, buried: Event) -> None:
    """Though its tombstone could not be saved, it is not presented again."""
    script: list[Line] = [loaded(OLD)]
    script += [(METADATA, metadata(ISSUER))] if wanted.because == "refused" else []
    script += [ACQUIRED, (POST, DEAD), loaded(OLD), ("Save r0: *as(at1 rt1 dead)", buried), RELEASE]
    dead = replace(OLD, refused=parent(1)) if isinstance(buried, Saved) else OLD
    run(wanted, [*script, loaded(dead)], then)


def test_rules_4_6_a_peer_changed_the_grant() -> None:
    peers = record(grant(2), revision="r1")
    script: list[Line] = [
        loaded(OLD),
        ("Acquire", Acquired(peers)),
        RELEASE,
        ("Load", Loaded(peers)),
        ("Acquire", Acquired(peers)),
        ("POST as.example/token rt2", tokens(3)),
        ("Save r1: *as(at3 rt3)", Saved()),
        RELEASE,
    ]
    run(need("expiring"), script, "Done renewed at3")


def test_rules_4_10_a_logout_between() -> None:
    script: list[Line] = [loaded(OLD), ("Acquire", Acquired(record(logged_out=True))), RELEASE]
    run(need("expiring"), [*script, loaded(logged_out=True)], "Done none")


def test_bound_a_grant_that_changes_faster_than_it_is_read() -> None:
    script: list[Line] = []
    for n in (1, 3, 5):
        changed = record(grant(n + 1), revision=f"r{n}")
        script += [loaded(grant(n)), ("Acquire", Acquired(changed)), RELEASE]
    failed = run(need("expiring"), script, "Failed store-contended")
    assert len(failed.events) == 3 * upkeep.MOST_ROUNDS


def test_fn_6_a_server_that_renews_with_the_same_access_token() -> None:
    """It was refused, so only a login helps, and nothing is renewed again."""
    same = tokens(2, access_token=secret(1, "at"))
    script: list[Line] = [
        loaded(OLD),
        (METADATA, UNSENT),
        ACQUIRED,
        (POST, same),
        ("Save r0: *as(at1 rt2)", Saved()),
        RELEASE,
        loaded(replace(grant(2), access_token=secret(1, "at"))),
    ]
    run(need("refused", 1), script, LOGIN)


def test_fn_6_the_same_access_token_unsaved() -> None:
    same = tokens(2, access_token=secret(1, "at"))
    script: list[Line] = [
        loaded(OLD),
        (METADATA, UNSENT),
        ACQUIRED,
        (POST, same),
        ("Save *", FULL),
        ("Load", FULL),
        RELEASE,
    ]
    run(need("refused", 1), script, "Done renewed at1, unsaved")


def test_rules_3_5_a_peers_token_without_the_scopes_is_not_adopted() -> None:
    """It was renewed for its scopes, and under the lock a peer's login was found that had asked for others."""
    peers = with_scopes(grant(5, left=3000, lineage="x"), "b")
    script: list[Line] = [loaded(OLD), ("Acquire", Acquired(record(peers))), RELEASE, loaded(peers)]
    run(need("scope", 0, scopes=("a",)), script, LOGIN)


# --- A refused token: is its issuer still the resource's? -------------------------------------------------------------

ROOT = "GET mcp.example/.well-known/oauth-protected-resource"


@table(
    "script, then",
    {
        "RULES-3.1-still-listed": ([(METADATA, metadata(ELSEWHERE, ISSUER))], RENEW),
        "RULES-3.1-unreachable": ([(METADATA, UNSENT)], RENEW),
        "RULES-3.1-unavailable": ([(METADATA, Response(503))], RENEW),
        "RULES-3.1-none-any-more": ([(METADATA, Response(404)), (ROOT, Response(404))], RENEW),
        "RULES-3.1-not-listed-log-in-there": ([(METADATA, metadata(ELSEWHERE))], LOGIN),
        "RULES-2.2-another-resource": (
            [(METADATA, answer(200, resource="https://mcp.example/x", authorization_servers=[ISSUER]))],
            "Failed resource-mismatch",
        ),
        "RULES-2.5-plain-comparison": ([(METADATA, metadata(f"{ISSUER}/"))], LOGIN),
    },
)
def test_refused(script: list[Line], then: str) -> None:
    run(need("refused", 1), [loaded(FRESH), *script], then)


@table(
    "trusted, then",
    {
        "RULES-2.5-trusted-issuer": (((ELSEWHERE, ISSUER),), RENEW),
        "RULES-2.5-trusted-for-another-entry": ((("https://third.example", ISSUER),), LOGIN),
    },
)
def test_trusted_issuer(trusted: tuple[tuple[str, str], ...], then: str) -> None:
    plan = replace(PLAN, trusted_issuer=trusted)
    run(need("refused", 1), [loaded(FRESH), (METADATA, metadata(ELSEWHERE))], then, plan)


def test_rules_3_1_the_old_credentials_stay_with_the_old_issuer() -> None:
    """The login goes on with the metadata that was just read, and keeps the old grant beside the new one."""
    plan = replace(PLAN, preregistered=PreRegistered("client", issuer=ELSEWHERE))
    script: list[Line] = [loaded(FRESH), (METADATA, metadata(ELSEWHERE)), (LOGIN, Saved())]
    script += logging_in(5, ELSEWHERE)[1:]
    run(need("refused", 1), [*script, ("Save *: as(at1 rt1) *other(at5 rt5)", Saved())], "Done login at5", plan)


def test_rfc9728_5_1_the_metadata_that_the_challenge_names() -> None:
    wanted = need("refused", 1, resource_metadata=("https://meta.example/x",))
    run(wanted, [loaded(FRESH), ("GET meta.example/x", metadata(ISSUER))], RENEW)


def test_design_4_3_not_listed_and_no_login_allowed() -> None:
    wanted = need("refused", 1, may_login=False)
    run(wanted, [loaded(FRESH), (METADATA, metadata(ELSEWHERE))], "Done none")


# --- What only the memory has (RULES 4.11) ----------------------------------------------------------------------------

RENEWED = grant(2, left=3000)
PINNED = record(RENEWED, revision="never stored")
NEW = grant(5, left=3000, obtained_at=NOW.wall, lineage="new", generation=0, parent=None)
PINNED_LOGIN = record(NEW, revision="never stored", login=LoginClaim("ours", "", 0.0))
CLAIM = LoginClaim("ours", "pid 1", NOW.wall + 60)
RESTORE = "Save r0: *as(at2 rt2)"


@table(
    "pinned, stored, save",
    {
        "RULES-4.11-renewed": (PINNED, record(OLD), RESTORE),
        "RULES-4.11-store-emptied": (PINNED, None, "Save None: *as(at2 rt2)"),
        "RULES-4.11-logged-in-claim-stands": (PINNED_LOGIN, record(FRESH, login=CLAIM), "Save r0: *as(at5 rt5)"),
        "RULES-4.11-logged-in-store-emptied": (PINNED_LOGIN, None, "Save None: *as(at5 rt5)"),
        "RULES-4.11-logged-in-claim-gone-old-one-dead": (PINNED_LOGIN, record(OLD), "Save r0: *as(at5 rt5)"),
        "RULES-4.11-renewed-twice-of-one-token": (PINNED, record(grant(6, parent=RENEWED.parent)), RESTORE),
    },
)
def test_restoring(pinned: GrantRecord, stored: GrantRecord | None, save: str) -> None:
    """Saved before anything else, then read again."""
    script: list[Line] = [("Load", Loaded(stored)), (save, Saved()), loaded(*pinned.grants)]
    end = f"Done stored {'at5' if pinned is PINNED_LOGIN else 'at2'}"
    restored = run(need("missing"), script, end, unsaved=pinned)
    assert restored.end.value.unsaved is None
    assert restored.notices == ["persisted"]


@table(
    "pinned, more, then",
    {
        "RULES-4.11-saved-after-all": (RENEWED, {}, "Done stored at2"),
        "RULES-4.8-a-peers-intent-stands": (
            RENEWED,
            {"intent": Intent("attempt", parent(2), "peer", NOW.wall + 13)},
            "Done stored at2",
        ),
        "RULES-4.2-a-refusal-stands": (grant(2), {}, LOGIN),
    },
)
def test_what_is_there_after_all_is_not_written_again(pinned: Grant, more: dict[str, Any], then: str) -> None:
    """Its save had succeeded, though nobody heard so; what peers have noted since stands."""
    noted = pinned if then != LOGIN else replace(pinned, refused=parent(2))
    script = [("Load", Loaded(record(noted, **more)))]
    restored = run(need("asked"), script, then, unsaved=record(pinned, revision="never stored"))
    assert restored.notices[0] == "persisted"


@table(
    "stored, script, end",
    {
        "RULES-4.11-saved-and-not-renewed": (OLD, [(RESTORE, Saved()), loaded(grant(2))], "Done stored at2"),
        "RULES-4.10-a-peers-login-stands": (
            replace(grant(7, left=3000), lineage="other"),
            [
                ("POST as.example/revoke rt2", Response(200)),
                ("POST as.example/revoke at2", Response(200)),
                loaded(replace(grant(7, left=3000), lineage="other")),
            ],
            "Done stored at7",
        ),
        "RULES-4.11-still-not-writable": (OLD, [(RESTORE, FULL), ("Load", FULL)], "Failed store-failed"),
    },
)
def test_restoring_alone_renews_nothing_and_asks_nobody(stored: Grant, script: list[Line], end: str) -> None:
    """Though the access token that was pinned has expired meanwhile."""
    expired = record(grant(2), revision="never stored")
    play(upkeep, upkeep.begin_restoring(PLAN, SEED, expired), [loaded(stored), *script], end)


def test_restoring_alone_with_nothing_to_restore_reads() -> None:
    """Another run was faster: a dead grant is left to whoever needs it."""
    play(upkeep, upkeep.begin_restoring(PLAN, SEED, None), [loaded(replace(OLD, refused=parent(1)))], "Done stored at1")
    play(upkeep, upkeep.begin_restoring(PLAN, SEED, None), [("Load", Loaded(None))], "Done none")


def test_rules_4_11_restored_and_renewed() -> None:
    """The one that was pinned has expired meanwhile."""
    expired = record(grant(2), revision="never stored")
    script: list[Line] = [loaded(OLD), (RESTORE, Saved()), loaded(grant(2)), ("Acquire", Acquired(record(grant(2))))]
    script += [("POST as.example/token rt2", tokens(3)), ("Save r0: *as(at3 rt3)", Saved()), RELEASE]
    run(need("expiring"), script, "Done renewed at3", unsaved=expired)


def test_rules_4_10_a_peer_renews_it_meanwhile() -> None:
    peers = record(grant(3, left=3000), revision="r1")
    script: list[Line] = [loaded(OLD), (RESTORE, Conflict(peers)), ("Load", Loaded(peers))]
    run(need("missing"), script, "Done stored at3", unsaved=PINNED)


def test_rules_4_10_another_login_whose_token_is_the_refused_one_gives_way() -> None:
    run(need("refused", 1), [loaded(replace(FRESH, lineage="other"))], "Save r0: *as(at5 rt5)", unsaved=PINNED_LOGIN)


def test_rules_4_2_each_renewal_of_a_run_has_its_own_seed() -> None:
    """No revision recurs when a run begins again."""
    other: Line = ("Acquire", Acquired(record(grant(2))))
    script: list[Line] = [loaded(OLD), other, RELEASE, loaded(grant(2))]
    waits = [step for step in run(need("asked"), script, RENEW).steps if say(step) == RENEW]
    assert len({step.state.inner.task.seed for step in waits}) == 2


def test_rules_4_10_a_peer_has_renewed_it() -> None:
    peers = grant(3, left=3000)
    run(need("missing"), [loaded(peers), loaded(peers)], "Done stored at3", unsaved=PINNED)


@table(
    "stored, end",
    {
        "RULES-4.10-logout-is-never-undone": (record(logged_out=True), "Done none"),
        "RULES-4.10-another-login-stands": (record(replace(NEW, lineage="other")), "Done stored at5"),
    },
)
def test_what_was_pinned_is_revoked(stored: GrantRecord, end: str) -> None:
    script: list[Line] = [
        ("Load", Loaded(stored)),
        ("POST as.example/revoke rt2", Response(200)),
        ("POST as.example/revoke at2", Response(200)),
        ("Load", Loaded(stored)),
    ]
    run(need("missing"), script, end, unsaved=PINNED)


def test_without_a_revocation_endpoint_it_is_read_again() -> None:
    pinned = record(replace(RENEWED, revocation_endpoint=None))
    run(need("missing"), [loaded(logged_out=True), loaded(logged_out=True)], "Done none", unsaved=pinned)


def test_a_pin_without_a_grant_is_none() -> None:
    run(need("missing"), [loaded(FRESH)], "Done stored at1", unsaved=record(FRESH, current=None))


STILL_FULL: list[Line] = [loaded(OLD), (RESTORE, FULL), ("Load", FULL)]


@table(
    "script, wanted, end",
    {
        "RULES-4.11-unreadable": ([("Load", FULL)], need("missing"), "Done stored at2, unsaved"),
        "RULES-4.11-not-writable": (STILL_FULL, need("missing"), "Done stored at2, unsaved"),
        "RULES-4.11-unreadable-and-refused": ([("Load", FULL)], need("refused", 2), "Failed store-failed"),
        "RULES-4.7-not-writable-and-refused": (STILL_FULL, need("refused", 2), "Failed store-failed"),
        "RULES-4.7-not-writable-and-forced": (STILL_FULL, need("forced"), "Failed store-failed"),
    },
)
def test_the_store_still_fails(script: list[Line], wanted: Need, end: str) -> None:
    """The token serves, and stays pinned; no successor of it is asked for that could not be saved."""
    failing = run(wanted, script, end, unsaved=PINNED)
    if isinstance(failing.end, Done):
        assert current_grant(failing.end.value.unsaved) == RENEWED


def test_rules_4_7_an_expired_pin_is_not_renewed() -> None:
    expired = record(grant(2), revision="never stored")
    run(need("expiring"), STILL_FULL, "Failed store-failed", unsaved=expired)


# --- What holds for every run -----------------------------------------------------------------------------------------


def test_bound() -> None:
    a_round = 1 + resource.MOST_EFFECTS + renewal.MOST_EFFECTS + login.MOST_EFFECTS
    assert upkeep.MOST_EFFECTS == upkeep.MOST_ROUNDS * a_round == 12255


def test_rules_4_2_no_revision_recurs_between_rounds() -> None:
    """Two renewals of one run."""
    script: list[Line] = [
        loaded(OLD),
        ACQUIRED,
        (POST, DEAD),
        loaded(OLD),
        ("Save r0: *dead)", Saved()),
        RELEASE,
        loaded(replace(OLD, refresh_token=secret(2, "rt"))),
        ("Acquire", Acquired(record(grant(2)))),
    ]
    saved(run(need("expiring"), script[:6], "Load"))


@pytest.mark.parametrize("event", [Saved(), Woke(), Released()], ids=lambda event: type(event).__name__)
def test_misuse(event: Event) -> None:
    step = upkeep.begin(PLAN, need("missing"), SEED)
    assert isinstance(step, Await)
    with pytest.raises(Misuse, match="Reading"):
        upkeep.advance(step.state, event, now=NOW)


# --- Programs with other plans share the store (RULES 4.3) ------------------------------------------------------------


@each(
    "script",
    {
        "RULES-4.3-missing-it-is-as-if-there-were-none": (need("missing"), "Done none"),
        "RULES-4.3-expiring-neither": (need("expiring"), "Done none"),
        "RULES-4.3-asked-a-login": (need("asked"), LOGIN),
        "RULES-4.3-refused-a-login": (need("refused", 9), LOGIN),
    },
)
def test_a_grant_that_another_plan_got(script: tuple[Need, str]) -> None:
    other = replace(PLAN, preregistered=PreRegistered("another-client"))
    run(script[0], [("Load", Loaded(record(FRESH)))], script[1], plan=other)


def test_rules_2_18_a_secret_that_was_changed_is_used_and_kept() -> None:
    """The grant of a pre-registered client is renewed with the secret that is configured now."""
    before = replace(OLD, registration=replace(OLD.registration, kind="preregistered"))
    plan = replace(PLAN, preregistered=PreRegistered("client", "changed", auth_method="client_secret_post"))

    def renewed(effect: Any) -> Event:
        assert b"client_secret=changed" in effect.request.body
        return tokens(2)

    script: list[Line] = [loaded(before), ("Acquire", Acquired(record(before))), (POST, renewed), ("Save *", Saved())]
    played = run(need("missing"), [*script, RELEASE], "Done renewed at2", plan=plan)
    assert saved(played)[-1].grants[0].registration.client_secret == "changed"


@each(
    "stored",
    {
        "RULES-4.4-with-the-still-valid-token-it-does-not-wait-long": (EARLY, 3, "Done stored at1"),
        "RULES-4.4-without-one-it-does": (OLD, MOST_POLLS, "Failed renewal-busy"),
    },
)
def test_a_busy_lock(stored: tuple[Grant, int, str]) -> None:
    one, polls, end = stored
    poll: list[Line] = [("Acquire", Busy("pid 7 on host")), ("Sleep *", Woke()), loaded(one)]
    script = [loaded(one), *poll * polls, ("Acquire", Busy("pid 7 on host"))]
    run(need("expiring"), script, end)
