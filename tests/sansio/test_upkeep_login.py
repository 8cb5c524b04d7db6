"""When upkeep logs in, whose login it takes, and when it must not (RULES 3.4)."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from mcp_oauth.sansio import upkeep
from mcp_oauth.sansio.grant import Grant
from mcp_oauth.sansio.steps import Acquired, Conflict, Loaded, Need, Saved
from tests.sansio.scripts import (
    ISSUER,
    METADATA,
    SERVER,
    Line,
    grant,
    logging_in,
    metadata,
    parent,
    record,
    saved,
    tokens,
)
from tests.sansio.upkeeps import DEAD, FIRST_LOGIN, FRESH, FULL, LOGIN, RELEASE, WITHOUT, loaded, need, run
from tests.sansio.walks import NOW, table


def test_first_login() -> None:
    script: list[Line] = [("Load", Loaded(None)), (FIRST_LOGIN, Saved()), *logging_in(1)]
    logged_in = run(need("refused"), [*script, ("Save *: *as(at1 rt1)", Saved())], "Done login at1")
    assert logged_in.notices == ["issuer-first-used", "logged-in"]
    assert saved(logged_in)[-1].grants[0].generation == 0


def test_rules_4_13_a_peers_login_is_adopted() -> None:
    """The claim met another; its result is there."""
    peers = record(grant(5, left=3000), revision="r1")
    run(need("refused", 1), [loaded(WITHOUT), (LOGIN, Conflict(peers))], "Done stored at5")


RUN_OUT = record(grant(5, lineage="new"), revision="r1")
"""A peer's login, a token's life ago."""


@table(
    "wanted, checked",
    {
        "RULES-3.2-refused": (need("refused", 1), [(METADATA, metadata(ISSUER))]),
        "FN-28-asked": (need("asked"), []),
        "RULES-3.5-scope": (need("scope", 1, scopes=("a",)), []),
    },
)
def test_rules_4_13_a_peers_login_that_has_run_out_is_renewed(wanted: Need, checked: list[Line]) -> None:
    """A machine slept while the peer's browser was open: no second one."""
    script: list[Line] = [loaded(WITHOUT), (LOGIN, Conflict(RUN_OUT)), ("Load", Loaded(RUN_OUT)), *checked]
    script += [("Acquire", Acquired(RUN_OUT)), ("POST as.example/token rt5", tokens(6))]
    run(wanted, [*script, ("Save r1: *as(at6 rt6)", Saved()), RELEASE], "Done renewed at6")


def test_rules_3_2_a_peers_login_that_has_run_out_and_is_dead_takes_one_login() -> None:
    dead = record(replace(RUN_OUT.grants[0], refused=parent(5)), revision="r2")
    script: list[Line] = [loaded(WITHOUT), (LOGIN, Conflict(RUN_OUT)), ("Load", Loaded(RUN_OUT))]
    script += [("Acquire", Acquired(RUN_OUT)), ("POST as.example/token rt5", DEAD), ("Load", Loaded(RUN_OUT))]
    script += [("Save r1: *as(at5 rt5 dead)", Saved()), RELEASE, ("Load", Loaded(dead))]
    run(need("asked"), script, "Save r2: *as(at5 rt5 dead) claim *")


def test_bound_logins_of_others_that_run_out_faster_than_they_are_read() -> None:
    script: list[Line] = [loaded(WITHOUT), (LOGIN, Conflict(RUN_OUT))] * upkeep.MOST_ROUNDS
    run(need("asked"), script, "Failed store-contended")


def test_rules_4_11_no_login_without_a_store() -> None:
    run(need("refused", 1), [loaded(WITHOUT), (LOGIN, FULL), loaded(WITHOUT), (LOGIN, FULL)], "Failed store-failed")


# --- Limits across requests (RULES 3.4) -------------------------------------------------------------------------------

REFUSED = need("refused", 1, never_accepted=True)


def obtained(generation: int, age: float, **more: Any) -> Grant:
    """The login was long ago, unless this is its token."""
    members = {"logged_in_at": NOW.wall - (86400 if generation else age), **more}
    return replace(FRESH, generation=generation, obtained_at=NOW.wall - age, **members)


@table(
    "wanted, stored, then",
    {
        "RULES-3.4-renewed-60-s-ago": (REFUSED, obtained(1, 60), METADATA),
        "RULES-3.4-renewed-59-s-ago": (REFUSED, obtained(1, 59), LOGIN),
        "RULES-3.4-renewed-now": (REFUSED, obtained(7, 0), LOGIN),
        "RULES-3.4-accepted-once": (need("refused", 1), obtained(1, 0), METADATA),
        "RULES-3.4-renewed-by-another-clock": (REFUSED, obtained(1, -86400), METADATA),
        "RULES-3.4-logged-in-600-s-ago": (REFUSED, obtained(0, 600), METADATA),
        "RULES-3.4-logged-in-599-s-ago": (REFUSED, obtained(0, 599), "Failed login-held-back"),
        "RULES-3.4-logged-in-now": (REFUSED, obtained(0, 0), "Failed login-held-back"),
        "RULES-3.4-logged-in-without-refresh-token": (
            REFUSED,
            obtained(0, 599, refresh_token=None),
            "Failed login-held-back",
        ),
        "RULES-3.4-logged-in-600-s-ago-without": (REFUSED, obtained(0, 600, refresh_token=None), LOGIN),
        "RULES-3.4-logged-in-and-accepted": (need("refused", 1), obtained(0, 0, refresh_token=None), LOGIN),
        "RULES-3.4-logged-in-by-another-clock": (REFUSED, obtained(0, -86400, refresh_token=None), LOGIN),
        "RULES-3.4-a-newer-one-is-stored": (need("refused", 0, never_accepted=True), obtained(0, 0), "Done stored at1"),
        "RULES-3.4-another-one-is-stored": (
            need("refused", 0, never_accepted=True),
            obtained(0, 0, expires_at=NOW.wall),
            METADATA,
        ),
        "RULES-3.4-no-login-is-wanted": (
            need("refused", 1, never_accepted=True, may_login=False),
            obtained(0, 0),
            "Done none",
        ),
        "RULES-3.4-renewed-after-a-login-that-did-not-help": (
            REFUSED,
            obtained(3, 0, logged_in_at=NOW.wall - 599),
            "Failed login-held-back",
        ),
        "RULES-3.4-renewed-long-after-the-login": (REFUSED, obtained(3, 0, logged_in_at=NOW.wall - 600), LOGIN),
        "RULES-3.4-renewed-after-a-login-and-accepted": (
            need("refused", 1, may_renew=False),
            obtained(3, 0, logged_in_at=NOW.wall - 5),
            LOGIN,
        ),
        "RULES-3.4-login-of-another-time": (REFUSED, obtained(3, 0, logged_in_at=None), LOGIN),
        "RULES-3.4-forced-all-the-same": (need("forced"), obtained(0, 0), LOGIN),
    },
)
def test_fruitless(wanted: Need, stored: Grant, then: str) -> None:
    run(wanted, [loaded(stored)], then)


def test_rules_3_4_held_back_says_why() -> None:
    held_back = run(REFUSED, [loaded(obtained(0, 0))], "Failed login-held-back")
    assert held_back.end.error.message == f"{SERVER} refuses the token of the last login"
