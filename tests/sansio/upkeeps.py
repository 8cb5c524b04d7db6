"""What the tests of upkeep share: grants of each age, the lines they begin with, and how a run is played."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from mcp_oauth.sansio import upkeep
from mcp_oauth.sansio.grant import Grant, GrantRecord
from mcp_oauth.sansio.plan import Plan
from mcp_oauth.sansio.steps import Because, Loaded, Need, Released, StoreFailed
from tests.sansio.scripts import PLAN, SEED, Line, grant, play, record, unlike
from tests.sansio.walks import answer
from tests.sansio.worlds import Run

FULL = StoreFailed("disk full")
FRESH = grant(1, left=3000)
EARLY = grant(1, left=30)
OLD = grant(1)
WITHOUT = replace(OLD, refresh_token=None)

POST = "POST as.example/token rt1"
LOGIN = "Save r0: *claim *"
FIRST_LOGIN = "Save None: claim *"
RENEW = "Acquire"
RELEASE: Line = ("Release", Released())
DEAD = answer(400, error="invalid_grant")


def need(because: Because, n: int | None = None, **more: Any) -> Need:
    """`n`: the access token that will not do."""
    return Need(because, unlike(n) if n is not None else None, **more)


def loaded(*grants: Grant, **more: Any) -> Line:
    return ("Load", Loaded(record(*grants, **more)))


def run(wanted: Need, script: Sequence[Line], end: str, plan: Plan = PLAN, unsaved: GrantRecord | None = None) -> Run:
    return play(upkeep, upkeep.begin(plan, wanted, SEED, unsaved), script, end)
