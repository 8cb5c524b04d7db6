"""Forgetting a registration (FN 31): the tokens stay, and the next login registers anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from mcp_oauth.sansio import forgetting
from mcp_oauth.sansio.attempt import Login, forgotten
from mcp_oauth.sansio.discovery import Discovered
from mcp_oauth.sansio.errors import Reason
from mcp_oauth.sansio.forgetting import MOST_SAVES
from mcp_oauth.sansio.grant import GrantRecord, LoginClaim, RegistrationRecord
from mcp_oauth.sansio.metadata import AuthorizationServerMetadata
from mcp_oauth.sansio.steps import Await, Conflict, Done, Event, Failed, Loaded, Misuse, Need, Saved, StoreFailed, Woke
from tests.sansio.scripts import CLIENT, ELSEWHERE, ISSUER, KEY, PLAN, SEED, each, grant, record, saved, say
from tests.sansio.walks import NOW, table, walk
from tests.sansio.worlds import Run

Turn = tuple[str, Event]
"""An effect, and its answer."""
OTHER = replace(CLIENT, issuer=ELSEWHERE)
PRE = replace(CLIENT, issuer=ELSEWHERE, kind="preregistered")
STORED = record(grant(1))
FULL = StoreFailed("disk full")


def forget(script: Sequence[Turn], end: Done[tuple[str, ...]] | Reason) -> Run:
    """Play by the script to this end."""
    run = walk(forgetting, forgetting.begin(PLAN, SEED), *(event for _, event in script))
    assert [say(step) for step in run.steps[:-1]] == [effect for effect, _ in script]
    assert (run.end.error.reason if isinstance(run.end, Failed) else run.end) == end
    return run


def test_FN_31_the_registration_is_refused_from_now_on_and_the_rest_stays() -> None:
    claim = LoginClaim("theirs", "pid 2 on host", NOW.wall + 5)
    stored = replace(STORED, login=claim, resource_metadata_seen=True, allowed_issuers=(ISSUER,))
    run = forget(
        [("Load", Loaded(stored)), ("Save r0: *as(at1 rt1 client refused) claim theirs", Saved())], Done((ISSUER,))
    )
    (kept,) = saved(run)
    assert kept == replace(stored, revision=kept.revision, grants=(replace(grant(1), client_refused=True),))


def test_FN_31_the_next_login_leaves_that_client() -> None:
    run = forget([("Load", Loaded(STORED)), ("Save r0: *as(at1 rt1 client refused)", Saved())], Done((ISSUER,)))
    found = Discovered(PLAN.server_url, AuthorizationServerMetadata(ISSUER), None, None)
    login = Login(PLAN, KEY, Need("asked"), SEED, STORED, "claim")
    assert forgotten(login, found) is None
    assert forgotten(replace(login, record=saved(run)[0]), found) == CLIENT


@table(
    "stored, told, issuers",
    {
        "FN-31-two-issuers": (
            record(grant(2, issuer=ELSEWHERE), grant(1)),
            "other(at2 rt2 client refused) *as(at1 rt1 client refused)",
            (ELSEWHERE, ISSUER),
        ),
        "FN-31-only-what-registered-itself": (
            record(replace(grant(2, issuer=ELSEWHERE), registration=PRE), grant(1)),
            "other(at2 rt2) *as(at1 rt1 client refused)",
            (ISSUER,),
        ),
        "RULES-2.11-a-mark-of-another-client-stays": (
            record(replace(grant(2, issuer=ELSEWHERE), registration=PRE, client_refused=True), grant(1)),
            "other(at2 rt2 client refused) *as(at1 rt1 client refused)",
            (ISSUER,),
        ),
        "FN-31-again": (
            record(replace(grant(1), client_refused=True)),
            "*as(at1 rt1 client refused)",
            (ISSUER,),
        ),
        "FN-31-also-a-grant-not-in-use": (
            record(grant(1), current=None),
            "as(at1 rt1 client refused)",
            (ISSUER,),
        ),
    },
)
def test_what_is_forgotten(stored: GrantRecord, told: str, issuers: tuple[str, ...]) -> None:
    forget([("Load", Loaded(stored)), (f"Save r0: {told}", Saved())], Done(issuers))


NOTHING = {
    "FN-31-nothing-stored": None,
    "FN-31-no-grant": record(),
    "RULES-4.2-a-tombstone": record(logged_out=True),
    "FN-31-no-dynamic-client": record(replace(grant(1), registration=PRE)),
    "RULES-4.1-another-kind-of-record": RegistrationRecord("r0", (CLIENT,), (KEY,)),
}


@each("stored", NOTHING)
def test_where_there_is_no_registration_nothing_is_saved(stored: Any) -> None:
    forget([("Load", Loaded(stored))], Done(()))


@each("theirs", NOTHING)
def test_a_registration_that_went_meanwhile_is_not_brought_back(theirs: Any) -> None:
    forget([("Load", Loaded(STORED)), ("Save r0: *as(at1 rt1 client refused)", Conflict(theirs))], Done(()))


def test_RULES_4_10_a_renewal_that_came_between_is_kept() -> None:
    renewed = record(grant(2), revision="r1")
    script: list[Turn] = [
        ("Load", Loaded(STORED)),
        ("Save r0: *as(at1 rt1 client refused)", Conflict(renewed)),
        ("Save r1: *as(at2 rt2 client refused)", Saved()),
    ]
    assert len(saved(forget(script, Done((ISSUER,))))) == 2


def test_the_issuers_are_those_of_the_record_that_was_saved() -> None:
    theirs = record(replace(grant(2, issuer=ELSEWHERE), registration=OTHER), revision="r1")
    script: list[Turn] = [
        ("Load", Loaded(STORED)),
        ("Save r0: *as(at1 rt1 client refused)", Conflict(theirs)),
        ("Save r1: *other(at2 rt2 client refused)", Saved()),
    ]
    forget(script, Done((ELSEWHERE,)))


def test_a_store_that_is_never_quiet_ends_it() -> None:
    save = "Save {}: *as(at1 rt1 client refused)"
    script: list[Turn] = [("Load", Loaded(STORED))]
    script += [(save.format(f"r{n}"), Conflict(replace(STORED, revision=f"r{n + 1}"))) for n in range(MOST_SAVES)]
    run = forget(script, Reason.STORE_CONTENDED)
    assert len(run.events) == forgetting.MOST_EFFECTS
    assert len(saved(run)) == MOST_SAVES


@each(
    "script",
    {
        "FN-31-cannot-be-read": [("Load", FULL)],
        "FN-31-cannot-be-saved": [("Load", Loaded(STORED)), ("Save r0: *as(at1 rt1 client refused)", FULL)],
    },
)
def test_a_store_that_fails_is_told(script: list[Turn]) -> None:
    assert "disk full" in forget(script, Reason.STORE_FAILED).end.error.message


def test_misuse() -> None:
    step = forgetting.begin(PLAN, SEED)
    assert isinstance(step, Await)
    for event in (Saved(), Woke()):
        with pytest.raises(Misuse):
            forgetting.advance(step.state, event, now=NOW)
