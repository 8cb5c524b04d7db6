"""Processes that are killed while they renew: what is lost is what no client can save (RULES 4.15), and it is told.

A ledger before the real token endpoint proves what was sent and what was answered; the store shows what was saved.
`MCP_OAUTH_KILLS` says how many processes are killed on each store, with a grace period and without.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest

from mcp_oauth.exceptions import AuthorizationRequired, OAuthError
from mcp_oauth.sansio.grant import Grant, renewable
from tests.force.crowds import STORES
from tests.force.places import ANSWERED, ARRIVED, Nest, Place, Told, ledger
from tests.integration.program import Person
from tests.io.servers import PATIENCE
from tests.servers import oidc_provider as npm

KILLS = int(os.environ.get("MCP_OAUTH_KILLS", "40"))
GRACE = 600
"""Seconds in which the forgiving server takes a spent refresh token again: more than a run takes."""
GRANTS = {"encrypted_file": 10, "redis": 40}
"""How many renewals are cut off before the next callers come. At a lease these wait for 13 seconds, all at once."""
TOLD = "was cut off while it renewed this grant, and new tokens were lost"
"""What a person is told of a process that was killed: its note beside a lock, or its intent in the record, names it."""
BEGUN = "begun"
MOMENTS = (BEGUN, ARRIVED, ANSWERED)
"""A process is killed about `SPREAD` seconds after one of these. A renewal takes about 40 ms."""
SPREAD = 0.01

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120 + 2 * KILLS)]


@pytest.fixture(scope="module", params=GRANTS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with ExitStack() as undo:
        recipe = undo.enter_context(STORES[request.param](tmp_path_factory.mktemp("place")))
        server, book = undo.enter_context(npm.serving()), undo.enter_context(ledger())
        made = Place(recipe, recipe.store(), server, book)
        for account in accounts(request.param):
            made.log_in(account)
        yield made


@pytest.fixture(scope="module")
def people(place: Place) -> list[str]:
    """Accounts with a grant."""
    return accounts("redis" if "Redis" in place.recipe.make else "encrypted_file")


@pytest.fixture(scope="module")
def nest(place: Place) -> Iterator[Nest]:
    with Nest(place.recipe) as made:
        yield made


def accounts(store: str) -> list[str]:
    return [f"person-{number}" for number in range(GRANTS[store])]


class Killed(NamedTuple):
    """What a renewal came to whose process was killed."""

    account: str
    pid: int
    fate: str
    """How far it had come: "nothing was granted" yet, "granted", "saved", or "it was too late" to kill it."""
    before: Grant


def cut_off(place: Place, nest: Nest, account: str, moment: str, seconds: float | None = None) -> Killed:
    """Kill a process so many seconds after this moment of its renewal; None: just then, and nothing passes any more."""
    place.expire(account)
    before = place.grant(account)
    reached, dead = threading.Event(), threading.Event()

    def at(passing: str, stage: str) -> None:
        if (passing, stage) == (account, moment):
            reached.set()
            assert seconds is not None or dead.wait(PATIENCE)

    place.ledger.on = at
    pid = nest.hatch(place.url, account)
    assert moment == BEGUN or reached.wait(PATIENCE)
    time.sleep(seconds or 0)
    os.kill(pid, signal.SIGKILL)
    killed_by = nest.bury()
    dead.set()
    place.ledger.on = lambda passing, stage: None
    saved = place.grant(account).generation > before.generation
    granted = 200 in place.ledger.passed[account]
    fate = "saved" if saved else "granted" if granted else "nothing was granted"
    return Killed(account, pid, fate if killed_by == signal.SIGKILL else "it was too late", before)


def kills(place: Place, nest: Nest, people: list[str]) -> Iterator[tuple[list[Killed], dict[str, Told]]]:
    """Rounds of processes killed at any moment, and what comes of the next callers."""
    dice = random.Random()
    left = KILLS
    while left > 0:
        some = people[:left]
        left -= len(some)
        cut = [cut_off(place, nest, one, dice.choice(MOMENTS), dice.expovariate(1 / SPREAD)) for one in some]
        yield cut, place.calls(some)


def names_as_cause(error: OAuthError | None, killed: Killed) -> bool:
    """A login is needed, because of this process."""
    said = str(error)
    return isinstance(error, AuthorizationRequired) and f" pid {killed.pid} on " in said and TOLD in said


def counted(title: str, killed: list[Killed]) -> None:
    fates = Counter(one.fate for one in killed)
    print(f"{title}: {', '.join(f'{count} {fate}' for fate, count in sorted(fates.items()))}")
    if KILLS >= 40:
        assert len(fates) >= 3, "not spread over the whole renewal"


def test_RULES_4_15_with_a_grace_period_nothing_is_lost_to_kills(place: Place, nest: Nest, people: list[str]) -> None:
    place.server.set(reset=True, refreshGrace=GRACE)
    killed = list[Killed]()
    for cut, next_ones in kills(place, nest, people):
        killed += cut
        assert {account: str(told.error) for account, told in next_ones.items() if not told.served} == {}
    counted("with grace", killed)
    assert place.server.stats()["familiesRevoked"] == 0
    assert place.server.stats()["granted"].keys() == {"refresh_token"}


def test_RULES_4_15_without_a_grace_period_only_what_was_granted_and_not_saved_is_lost(
    place: Place, nest: Nest, people: list[str]
) -> None:
    place.server.set(reset=True, refreshGrace=0)
    killed, lost = list[Killed](), list[str]()
    for cut, next_ones in kills(place, nest, people):
        killed += cut
        gone = [one for one in cut if not next_ones[one.account].served]
        for one in gone:
            assert one.fate != "saved"
            assert place.ledger.passed[one.account] == [200, 400], "it was not granted to the one that was killed"
            assert names_as_cause(next_ones[one.account].error, one)
            assert not renewable(place.grant(one.account))
            place.log_in(one.account)
            place.expire(one.account)
            assert place.call(one.account).served
        lost += [one.account for one in gone]
    counted("without grace", killed)
    print(f"lost: {len(lost)}")
    assert place.server.stats()["familiesRevoked"] == len(lost)


@pytest.mark.parametrize("place", ["encrypted_file"], indirect=True)
def test_RULES_4_15_what_was_lost_is_told_and_takes_one_login(place: Place, nest: Nest, people: list[str]) -> None:
    """A process is killed with the answer, at a server that forgives nothing."""
    account, person = people[0], Person()
    place.server.set(reset=True, refreshGrace=0)
    killed = cut_off(place, nest, account, ANSWERED)
    assert killed.fate == "granted"
    told = place.call(account)
    (said,) = [notice.message for notice in told.notices if notice.name == "grant-refused"]
    why = said.removesuffix(": a login is needed")
    assert "HTTP 400: invalid_grant" in why
    assert names_as_cause(told.error, killed)
    assert str(told.error) == (
        f"{place.url} needs a login, and interactive=False: {why} (a person must log in: allow it with "
        "interactive=True, here or in another program that shares the store)"
    )
    assert str(place.call(account).error) == str(told.error), "every program is told"
    told = place.call(account, user=person, interactive=True)
    assert told.served
    assert person.asked == 1
    place.expire(account)
    assert place.call(account).served
