"""Renewal and login where the lock is a lease that may lapse, or be lost (Redis, Vault), at a server that revokes the
family when a spent refresh token comes back. One request too many ends a grant, so the server's count is the proof.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple
from uuid import uuid4

import anyio
import httpx2
import pytest

from mcp_oauth.sansio.grant import Grant, current_grant
from mcp_oauth.store.base import Store
from mcp_oauth.store.lease import LEASE_SECONDS
from tests.integration.fleet import ANSWERED, EXTENDING, INTENDED, LOCKED, SITES, Member, Site
from tests.integration.program import (
    DEAD,
    Answer,
    Person,
    Program,
    acalls,
    expire,
    grant_in,
    locked,
    nobody,
    program,
    served,
    stored,
    verdict,
)
from tests.servers import oidc_provider as npm
from tests.servers.oidc_provider import OidcProvider

PROCESSES = 8
TASKS = 50
STACK = "httpx2-sync"
GRACE = 60
"""Seconds in which a forgiving server takes a spent refresh token again."""


@pytest.fixture(scope="module")
def running() -> Iterator[OidcProvider]:
    with npm.serving() as server:
        yield server


@pytest.fixture
def strict(running: OidcProvider) -> OidcProvider:
    """No grace for spent refresh tokens."""
    running.set(reset=True, token=[], refreshGrace=0)
    return running


@pytest.fixture(scope="module", params=SITES)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with SITES[request.param](tmp_path_factory.mktemp("site")) as made:
        yield made


@pytest.fixture(scope="module")
def fleet(site: Site) -> Iterator[list[Member]]:
    """Processes that live as long as the store does."""
    with ExitStack() as members:
        yield [members.enter_context(Member(site.recipe)) for _ in range(PROCESSES)]


@dataclass
class Scene:
    """A person's grant of its own, in a store and at a server."""

    site: Site
    server: OidcProvider
    store: Store
    account: str

    @property
    def url(self) -> str:
        return self.server.mcp

    @property
    def grant(self) -> Grant:
        return grant_in(self.store, self.url, self.account)

    def here(self, **options: Any) -> Program:
        """A program in the test's own process, where nobody may be asked."""
        return program(STACK, self.url, **{"store": self.store, "account": self.account, "user": nobody, **options})

    def expire(self) -> Grant:
        return expire(self.store, self.url, self.account)

    def halt(self, member: Member, at: str) -> None:
        """Let a member renew, and halt."""
        self.expire()
        member.call(self.url, self.account, halt=at, interactive=False)

    def told(self, member: Member, tool: str = "whoami") -> None:
        member.call(self.url, self.account, tool=tool)

    def renewals(self) -> dict[str, int]:
        """What the server granted, and what it took back."""
        stats = self.server.stats()
        revoked = {"families revoked": stats["familiesRevoked"]} if stats["familiesRevoked"] else {}
        return {**stats["granted"], **revoked}

    def lives(self) -> bool:
        """The stored grant can be renewed."""
        self.expire()
        return served(self.here().call())


def scene_of(site: Site, server: OidcProvider) -> Scene:
    """Somebody has just logged in."""
    scene = Scene(site, server, site.recipe.store(), uuid4().hex)
    assert served(scene.here(user=Person()).call())
    return scene


@pytest.fixture
def scene(site: Site, strict: OidcProvider) -> Scene:
    made = scene_of(site, strict)
    strict.set(reset=True)
    return made


ONE = {"refresh_token": 1}


class TestOneRenewal:
    def test_RULES_4_6_of_eight_processes(self, scene: Scene, fleet: list[Member]) -> None:
        """All stand before the lock, which the test holds, when it is let go."""
        scene.expire()
        with locked(scene.store, scene.url, scene.account):
            for member in fleet:
                scene.told(member)
            for member in fleet:
                member.until("lock-busy")
        assert [member.end()["status"] for member in fleet] == [200] * PROCESSES
        assert scene.renewals() == ONE
        assert scene.grant.generation == 1

    def test_RULES_4_6_of_eight_processes_that_come_as_they_come(self, scene: Scene, fleet: list[Member]) -> None:
        for done in range(1, 4):
            scene.expire()
            for member in fleet:
                scene.told(member)
            assert [member.end()["status"] for member in fleet] == [200] * PROCESSES
            assert scene.renewals() == {"refresh_token": done}
        assert scene.lives()

    def test_of_fifty_tasks(self, scene: Scene) -> None:
        scene.expire()
        here = scene.here()
        assert all(map(served, anyio.run(acalls, httpx2, here.oauth, here.url, TASKS)))
        assert here.traffic == ["refresh_token"]
        assert scene.renewals() == ONE


class TestALockThatIsLost:
    """While one renews; a second one comes at once."""

    def test_RULES_4_10_before_its_intent_is_saved_the_other_one_renews(
        self, scene: Scene, fleet: list[Member]
    ) -> None:
        first, second, *_ = fleet
        scene.halt(first, LOCKED)
        scene.site.lose_lock(scene.url, scene.account)
        scene.told(second)
        assert second.end()["traffic"] == ["refresh_token"]
        first.go_on()
        end = first.end()
        assert (end["status"], end["traffic"]) == (200, [])
        self.nothing_is_lost(scene)

    def test_RULES_4_7_both_have_the_lock_and_one_of_them_an_intent(self, scene: Scene, fleet: list[Member]) -> None:
        first, second, *_ = fleet
        scene.halt(first, LOCKED)
        scene.site.lose_lock(scene.url, scene.account)
        second.call(scene.url, scene.account, halt=INTENDED)
        first.go_on()
        first.until("lock-busy")
        second.go_on()
        assert [member.end()["status"] for member in (first, second)] == [200, 200]
        self.nothing_is_lost(scene)

    @pytest.mark.parametrize("at", [INTENDED, ANSWERED])
    def test_RULES_4_8_after_its_intent_is_saved_the_other_one_waits(
        self, at: str, scene: Scene, fleet: list[Member]
    ) -> None:
        first, second, *_ = fleet
        scene.halt(first, at)
        scene.site.lose_lock(scene.url, scene.account)
        scene.told(second)
        second.until("lock-busy")
        first.go_on()
        ends = [member.end() for member in (first, second)]
        assert [(end["status"], end["traffic"]) for end in ends] == [(200, ["refresh_token"]), (200, [])]
        self.nothing_is_lost(scene)

    def nothing_is_lost(self, scene: Scene) -> None:
        assert scene.renewals() == ONE
        assert scene.grant.generation == 1
        assert scene.lives()


class TestAServerInTrouble:
    def test_RULES_4_9_a_lost_answer_is_asked_for_again_under_a_longer_lease(self, scene: Scene) -> None:
        scene.server.set(token=[{"lose": True}], refreshGrace=GRACE)
        scene.expire()
        here = scene.here()
        assert served(here.call())
        assert here.traffic == ["refresh_token", "refresh_token"]
        scene.server.set(refreshGrace=0)
        assert scene.lives()

    def test_RULES_4_9_where_the_first_is_told_to_wait_nobody_waits_for_its_intent(
        self, scene: Scene, fleet: list[Member]
    ) -> None:
        scene.server.set(token=[{"status": 503}])
        first, second, *_ = fleet
        scene.expire()
        scene.told(first)
        first.until("renewal-postponed")
        scene.told(second)
        assert [member.end()["status"] for member in (first, second)] == [200, 200]
        assert scene.renewals() == ONE


class TestAStoreInTrouble:
    def test_it_restarts_between_two_renewals(self, scene: Scene, fleet: list[Member]) -> None:
        member = fleet[0]
        for done in (1, 2):
            scene.expire()
            scene.told(member)
            assert member.end()["traffic"] == ["refresh_token"]
            assert scene.renewals() == {"refresh_token": done}
            scene.site.go_down()
            scene.site.come_back()

    def test_RULES_4_7_where_it_is_down_nothing_is_sent(self, scene: Scene, fleet: list[Member]) -> None:
        member = fleet[0]
        scene.halt(member, LOCKED)
        scene.site.go_down()
        member.go_on()
        end = member.end()
        assert (end["reason"], end["traffic"]) == ("store-failed", [])
        scene.site.come_back()
        scene.site.lose_lock(scene.url, scene.account)  # as time would: it could not be released
        assert scene.lives()
        assert scene.renewals() == ONE

    def test_RULES_4_11_down_at_the_save_the_token_serves_and_is_saved_by_the_next_run(
        self, scene: Scene, fleet: list[Member]
    ) -> None:
        member = fleet[0]
        scene.halt(member, ANSWERED)
        scene.site.go_down()
        member.go_on()
        member.until("not-persisted")
        assert member.end()["status"] == 200
        scene.told(member)
        end = member.end()
        assert (end["status"], end["traffic"]) == (200, [])
        scene.site.come_back()
        scene.told(member)
        end = member.end()
        assert (end["status"], end["traffic"]) == (200, [])
        assert scene.grant.generation == 1
        assert scene.renewals() == ONE
        scene.site.lose_lock(scene.url, scene.account)
        assert scene.lives()


class Fate(NamedTuple):
    """What becomes of a process that has the lock."""

    at: str
    what: Literal["killed", "stopped"]
    asked_before: int = 0
    """Requests for new tokens that it has sent by then. The server forgives as many."""


FATES = {
    "RULES-4.4-killed-before-its-intent": Fate(LOCKED, "killed"),
    "RULES-4.8-killed-before-its-request": Fate(INTENDED, "killed"),
    "RULES-4.15-killed-with-the-answer": Fate(ANSWERED, "killed", 1),
    "RULES-4.10-stopped-before-its-intent": Fate(LOCKED, "stopped"),
    "RULES-4.9-stopped-before-its-request": Fate(INTENDED, "stopped"),
    "RULES-4.10-stopped-with-the-answer": Fate(ANSWERED, "stopped", 1),
    "RULES-4.9-stopped-when-the-answer-was-lost": Fate(EXTENDING, "stopped", 1),
}


class Met(NamedTuple):
    """A process comes to what another one has left, which was killed, or wakes when all is over."""

    scene: Scene
    answer: Answer
    traffic: list[str]
    seconds: float
    woken: dict[str, Any] | None


@pytest.fixture(scope="module")
def forgiving() -> Iterator[OidcProvider]:
    with npm.serving() as server:
        yield server


@pytest.fixture(scope="module")
def met(site: Site, running: OidcProvider, forgiving: OidcProvider) -> dict[str, Met]:
    """All fates at once, since each takes the 13 seconds of a lease."""
    running.set(reset=True, token=[], refreshGrace=0)
    forgiving.set(reset=True, refreshGrace=GRACE)
    with ExitStack() as stack:
        members = {name: stack.enter_context(Member(site.recipe)) for name in FATES}
        scenes = {name: scene_of(site, forgiving if fate.asked_before else running) for name, fate in FATES.items()}
        for name, member in members.items():
            befall(scenes[name], member, FATES[name])
        with ThreadPoolExecutor(len(FATES)) as threads:
            meetings = list(threads.map(meet, scenes.values(), members.values(), FATES.values()))
    assert [server.stats()["familiesRevoked"] for server in (running, forgiving)] == [0, 0]
    forgiving.set(refreshGrace=0)
    return dict(zip(FATES, meetings, strict=True))


def befall(scene: Scene, member: Member, fate: Fate) -> None:
    if fate.at == EXTENDING:
        scene.server.set(token=[{"lose": True}])
    scene.halt(member, fate.at)
    if fate.what == "killed":
        member.kill()
    else:
        member.stop()


def meet(scene: Scene, member: Member, fate: Fate) -> Met:
    here, start = scene.here(), time.monotonic()
    answer = here.call()
    seconds = time.monotonic() - start
    woken = None
    if fate.what == "stopped":
        member.wake()
        woken = member.end()
    return Met(scene, answer, here.traffic, seconds, woken)


@pytest.mark.slow
@pytest.mark.parametrize("fate", FATES)
class TestAHolderThatIsGone:
    def test_the_next_one_waits_for_its_lease_and_intent_together_and_renews(
        self, fate: str, met: dict[str, Met]
    ) -> None:
        assert served(met[fate].answer)
        assert met[fate].traffic == ["refresh_token"]
        assert met[fate].seconds < LEASE_SECONDS + 5
        assert met[fate].scene.lives()

    def test_if_it_wakes_it_sends_nothing_and_takes_what_is_there(self, fate: str, met: dict[str, Met]) -> None:
        woken = met[fate].woken
        sent = ["refresh_token"] * FATES[fate].asked_before
        assert woken is None or (woken["status"], woken["traffic"]) == (200, sent)


class TestLogins:
    def test_RULES_4_13_one_logs_in_and_the_others_take_the_result(
        self, site: Site, strict: OidcProvider, fleet: list[Member]
    ) -> None:
        scene = Scene(site, strict, site.recipe.store(), uuid4().hex)
        first, *others = fleet[:4]
        scene.told(first)
        first.until("asked")
        for other in others:
            scene.told(other)
            other.until("login-elsewhere")
        first.tell("approve")
        assert [member.end()["status"] for member in (first, *others)] == [200] * 4
        assert scene.renewals() == {"authorization_code": 1}

    def test_RULES_4_13_a_renewal_during_a_step_up(self, scene: Scene, fleet: list[Member]) -> None:
        """The login holds no lock, and its result stands."""
        first, second, *_ = fleet
        scene.told(first, "write")
        first.until("asked")
        before = scene.expire()
        scene.told(second)
        assert second.end()["traffic"] == ["refresh_token"]
        assert scene.grant.lineage == before.lineage
        first.tell("approve")
        assert first.end()["status"] == 200
        assert scene.grant.lineage != before.lineage
        assert scene.renewals() == {"refresh_token": 1, "authorization_code": 1}
        assert scene.lives()

    def test_RULES_4_10_a_step_up_during_a_renewal(self, scene: Scene, fleet: list[Member]) -> None:
        """Another login came between: what was renewed is revoked, and no more than that."""
        first, second, *_ = fleet
        scene.told(second, "write")
        second.until("asked")
        scene.halt(first, ANSWERED)
        second.tell("approve")
        assert second.end()["status"] == 200
        first.go_on()
        assert first.end()["status"] == 200
        assert set(scene.grant.requested or ()) > {"mcp:read", "mcp:write"}
        assert scene.lives()

    @pytest.mark.parametrize("at", [LOCKED, INTENDED, ANSWERED])
    def test_RULES_3_7_a_logout_during_a_renewal_is_never_undone(
        self, at: str, scene: Scene, fleet: list[Member]
    ) -> None:
        member = fleet[0]
        old = scene.grant
        scene.halt(member, at)
        here = scene.here()
        assert [one.failure for one in here.oauth.logout().revoked] == [None, None]
        member.go_on()
        assert member.end()["event"] == "failed"
        record = stored(scene.store, scene.url, scene.account)
        assert record.logged_out
        assert current_grant(record) is None
        assert verdict(scene.url, old) == DEAD
