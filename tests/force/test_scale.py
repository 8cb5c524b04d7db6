"""Many grants: the benchmarks of scale in small, and what they found."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ssl import SSLContext

import httpx2
import pytest
from msgspec.structs import replace

from benchmarks import fleet, scale
from benchmarks.fleet import KILLED, UNEXPLAINED, UNSAVED, Plan, Story, Told
from benchmarks.scale import oauths
from benchmarks.stub import (
    AGAIN,
    DEAD,
    GRANTED,
    REUSED,
    FamilyReport,
    Presentation,
    Report,
    Rules,
    Stub,
    account,
    serving,
)
from mcp_oauth.sansio.grant import GrantRecord
from mcp_oauth.store.memory import MemoryStore
from tests.integration.program import locked, rewrite
from tests.io.plain import Failing
from tests.io.servers import PATIENCE


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    with serving() as server:
        yield server


# --- One process ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", scale.STORES)
def test_every_grant_is_renewed_once_and_none_is_lost(stub: Stub, kind: str) -> None:
    storm = scale.storm(stub, kind, 100)
    assert (storm.lost, set(storm.renewals)) == (0, {1})


def test_BUDGET_a_grant_costs_4_KB(stub: Stub) -> None:
    assert sum(scale.alone(scale.counted, stub, 1_000)) <= scale.BUDGET


@pytest.mark.parametrize("kind", scale.STORES)
def test_the_benchmark_makes_a_row(stub: Stub, kind: str) -> None:
    row = scale.row(stub, kind, 10)
    assert scale.wrong(row) == []
    assert len(scale.cells(row)) == len(scale.COLUMNS)


def test_BUDGET_all_grants_share_what_verifies_certificates(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes 25 ms and 800 KB to make, out of sight of Python's own count."""
    made: list[SSLContext] = []
    make = httpx2.create_ssl_context

    def count() -> SSLContext:
        made.append(make())
        return made[-1]

    monkeypatch.setattr(httpx2, "create_ssl_context", count)
    store = MemoryStore()
    stub.log_in(store, Rules(20), expired=True)
    with ThreadPoolExecutor(20) as threads:
        list(threads.map(scale.first_header, oauths(stub, store, 20)))
    assert len(made) <= 1


def test_RULES_4_4_a_busy_lock_leaves_the_stored_token_that_lives(stub: Stub) -> None:
    """The token at hand is over. A peer has renewed it since, and that token still lives, though not for long."""
    store = MemoryStore()
    stub.log_in(store, Rules(1))
    (oauth,) = oauths(stub, store, 1)
    scale.first_header(oauth)
    oauth._token = replace(oauth._token, expires_at=time.time() - 1) if oauth._token else None
    rewrite(store, stub.mcp, about_to_expire, account(0))
    with locked(store, stub.mcp, account(0)):
        scale.first_header(oauth)


def about_to_expire(record: GrantRecord) -> GrantRecord:
    now = time.time()
    return replace(record, grants=(replace(record.grants[0], obtained_at=now - 580, expires_at=now + 30),))


def test_RULES_4_11_what_could_not_be_saved_is_saved_without_another_request(stub: Stub) -> None:
    """Else a peer presents the spent token as soon as the intent is over, and the grant is lost."""
    store = Failing()
    stub.log_in(store, Rules(1), expired=True)
    store.failing = {"save"}
    scale.first_header(oauths(stub, store, 1)[0])
    store.failing = set()
    live = stub.report().families[0].live
    end = time.monotonic() + PATIENCE
    while stub.stored(store, 0).refresh_token != live:
        assert time.monotonic() < end, "nobody saves it"
        time.sleep(0.05)


# --- A fleet ----------------------------------------------------------------------------------------------------------

HERE, THERE = "127.1.0.1", "127.1.0.2"


def presented(at: float, generation: int, presenter: str, verdict: str) -> Presentation:
    return Presentation(at, 0, generation, presenter, verdict)


SPENT_TWICE = (
    presented(100, 0, THERE, GRANTED),
    presented(120, 1, HERE, GRANTED),
    presented(135, 1, THERE, REUSED),
    presented(136, 1, THERE, DEAD),
)


@pytest.mark.parametrize(
    ("killed_at", "told", "why"),
    [
        pytest.param(120.1, (), KILLED, id="RULES-4.15-killed-before-the-save"),
        pytest.param(120.1, ("renewed",), UNEXPLAINED, id="killed-after-the-save"),
        pytest.param(134, (), UNEXPLAINED, id="killed-long-after"),
        pytest.param(110, (), UNEXPLAINED, id="killed-before-it-was-sent"),
        pytest.param(None, ("not-persisted",), UNSAVED, id="RULES-4.11-not-persisted"),
        pytest.param(120.1, ("not-persisted",), UNSAVED, id="RULES-4.11-not-persisted-then-killed"),
        pytest.param(None, (), UNEXPLAINED, id="alive"),
    ],
)
def test_the_cause_of_a_loss_is_what_became_of_the_first_presenter(
    killed_at: float | None, told: tuple[str, ...], why: str
) -> None:
    events = [Told(at=120.05, family=0, name=name) for name in told]
    others = [Told(at=120.05, family=1, name="renewed"), Told(at=100.05, family=0, name="not-persisted")]
    stories = [Story(THERE, None, ()), Story(HERE, killed_at, [*others, *events])]
    assert fleet.cause(SPENT_TWICE, stories) == why


def test_a_grant_that_is_only_about_to_be_lost_has_the_last_presenter_for_its_cause() -> None:
    assert fleet.cause(SPENT_TWICE[:2], [Story(HERE, 120.1, ()), Story(THERE, None, ())]) == KILLED


@pytest.mark.parametrize(
    ("at", "verdict", "early"),
    [(115.0, GRANTED, 1), (118.0, GRANTED, 0), (115.0, AGAIN, 0), (115.0, REUSED, 0)],
    ids=["early", "in-the-last-tenth", "again-within-grace", "refused"],
)
def test_a_renewal_is_early_unless_the_token_is_in_its_last_tenth(at: float, verdict: str, early: int) -> None:
    presentations = [presented(100.0, 0, HERE, GRANTED), presented(at, 1, HERE, verdict)]
    report = Report((FamilyReport("live", 2),), tuple(presentations), {})
    result = fleet.judged(Plan(Rules(1, lifetime=20), seconds=0, calm=0), 0, [Story(HERE, None, ())], report, [])
    assert result.early == early


@pytest.mark.slow
def test_a_fleet_loses_only_what_was_killed_before_its_save() -> None:
    plan = Plan(Rules(60, lifetime=6, latency=0.02), seconds=30, calm=20, processes=3, rate=10, pause=2, restarts=2)
    result = fleet.run(plan)
    assert fleet.wrong(result) == []
    assert result.killed > 0
    assert result.restarts > 0
    assert result.tokens > plan.rules.families
    assert any(request.outcome == "200" for request in result.requests)
    assert all(fleet.rows(result).values())
