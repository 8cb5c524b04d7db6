"""Renewal at real servers that revoke a whole family when a spent refresh token comes back: one mistake ends a grant.

The number of renewals is the servers' own (npm oidc-provider counts), or that of the requests that went out (SDK).
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from mcp_oauth.exceptions import AuthorizationRequired, TokenRefreshError
from mcp_oauth.sansio.errors import Reason
from mcp_oauth.sansio.grant import GrantRecord, current_grant, with_grant
from mcp_oauth.store.base import Store
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from tests.integration.program import (
    DEAD,
    STACKS,
    Answer,
    Peer,
    Person,
    Program,
    acalls,
    expire,
    grant_in,
    locked,
    nobody,
    program,
    refreshed_by_hand,
    rewrite,
    verdict,
)
from tests.servers import oidc_provider as npm
from tests.servers.oidc_provider import OidcProvider
from tests.servers.sdk_server import SdkServer

CALLERS = 50
ROUNDS = 3


@pytest.fixture(scope="module")
def running() -> Iterator[OidcProvider]:
    with npm.serving() as server:
        yield server


@pytest.fixture
def strict(running: OidcProvider) -> OidcProvider:
    """No grace for spent refresh tokens. Counts from nothing, and as it comes."""
    running.set(reset=True, token=[], refreshGrace=0, accessTokenTtl=3600)
    return running


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return EncryptedFileStore(tmp_path)


@pytest.fixture
def person() -> Person:
    return Person()


@pytest.fixture
def login(strict: OidcProvider, store: Store, person: Person) -> Program:
    """A program that is logged in; the login is not counted."""
    here = program("httpx2-sync", strict.mcp, store=store, user=person)
    assert served(here.call())
    strict.set(reset=True)
    here.traffic.clear()
    return here


@pytest.fixture(params=["oidc_provider", "sdk_server"])
def mcp(request: pytest.FixtureRequest) -> str:
    server: OidcProvider | SdkServer = request.getfixturevalue(request.param)
    return server.mcp


def served(answer: Answer) -> bool:
    return answer.status == 200 and "alice" in answer.text


class TestOneProgram:
    def test_RULES_3_6_each_renewal_has_the_next_refresh_token(self, mcp: str, store: Store) -> None:
        here = program("httpx2-asyncio", mcp, store=store, user=Person())
        assert served(here.call())
        spent = {expire(store, mcp).refresh_token}
        for generation in range(1, ROUNDS + 1):
            assert served(here.restarted().call())
            grant = grant_in(store, mcp)
            assert grant.generation == generation
            assert grant.refresh_token not in spent
            spent.add(expire(store, mcp).refresh_token)

    def test_a_refused_token_is_renewed_once(self, login: Program, strict: OidcProvider) -> None:
        strict.set(forgetAccessTokens=True)
        assert served(login.call())
        assert login.traffic == ["/.well-known/oauth-protected-resource/mcp", "refresh_token"]
        assert strict.stats()["granted"] == {"refresh_token": 1}

    def test_a_short_life_is_renewed_before_it_ends(self, login: Program, store: Store, strict: OidcProvider) -> None:
        """A second of life: each token serves at least the request that it was renewed for (RULES 4.12)."""
        strict.set(accessTokenTtl=1)
        expire(store, strict.mcp)
        again = login.restarted()
        assert served(again.call())
        expire(store, strict.mcp)
        assert served(login.restarted().call())
        assert strict.stats()["granted"] == {"refresh_token": 2}

    def test_a_server_that_forgives_nothing_revokes_the_family(self, mcp: str, store: Store) -> None:
        """What the tests below would come to, if a token were spent twice."""
        here = program("httpx2-sync", mcp, store=store, user=Person())
        assert served(here.call())
        old = expire(store, mcp)
        assert served(here.restarted().call())
        assert refreshed_by_hand(old)["error"] == "invalid_grant"
        assert verdict(mcp, grant_in(store, mcp)) == DEAD

    def test_RULES_3_2_a_revoked_family_asks_for_a_login(self, login: Program, store: Store, person: Person) -> None:
        refreshed_by_hand(grant_in(store, login.url))
        expire(store, login.url)
        with pytest.raises(AuthorizationRequired):
            login.restarted(interactive=False).call()
        assert person.asked == 1
        assert served(login.restarted(user=person).call())
        assert person.asked == 2


class TestManyCallers:
    @pytest.mark.parametrize("stale", ["expired", "refused"])
    def test_one_renewal_for_all(self, stale: str, login: Program, strict: OidcProvider, store: Store) -> None:
        """Tasks of asyncio and trio on each HTTP library, and threads, all in one process."""
        callers = [login.restarted(stack=stack) for stack in STACKS]
        if stale == "expired":
            expire(store, strict.mcp)
        else:
            strict.set(forgetAccessTokens=True)
        answers = at_once(callers)
        assert len(answers) == CALLERS
        assert all(served(answer) for answer in answers)
        assert strict.stats()["granted"] == {"refresh_token": 1}
        assert strict.stats()["familiesRevoked"] == 0
        self.lives(login, store)

    def test_one_renewal_for_all_at_the_sdk_server(self, sdk_server: SdkServer, store: Store) -> None:
        here = program("httpx2-sync", sdk_server.mcp, store=store, user=Person())
        assert served(here.call())
        callers = [here.restarted(stack=stack) for stack in STACKS]
        expire(store, sdk_server.mcp)
        assert all(served(answer) for answer in at_once(callers))
        assert [request for caller in callers for request in caller.traffic] == ["refresh_token"]
        self.lives(here, store)

    def lives(self, here: Program, store: Store) -> None:
        expire(store, here.url)
        assert served(here.restarted().call())


def at_once(callers: list[Program]) -> list[Answer]:
    """50 requests, shared out among the programs, each of which makes its share at once."""
    shares = [CALLERS // len(callers) + (number < CALLERS % len(callers)) for number in range(len(callers))]
    with ThreadPoolExecutor(CALLERS) as threads:
        running = [
            threads.submit(work)
            for caller, share in zip(callers, shares, strict=True)
            for work in (_share(caller, share))
        ]
        return [answer for one in running for answer in one.result()]


def _share(caller: Program, share: int) -> list[Callable[[], list[Answer]]]:
    """Threads of one request each, or one event loop with a task for each request."""
    way = caller.stack.split("-")[1]
    if way == "sync":
        return [lambda: [caller.call()]] * share
    stack = importlib.import_module(caller.stack.split("-")[0])
    return [lambda: anyio.run(acalls, stack, caller.oauth, caller.url, share, backend=way)]


class TestTrouble:
    def test_RULES_4_9_a_lost_answer_within_the_grace_costs_nothing(
        self, login: Program, strict: OidcProvider, store: Store
    ) -> None:
        expire(store, strict.mcp)
        strict.set(token=[{"lose": True}], refreshGrace=30)
        again = login.restarted()
        assert served(again.call())
        assert again.traffic == ["refresh_token", "refresh_token"]
        strict.set(refreshGrace=0)
        expire(store, strict.mcp)
        assert served(login.restarted().call())

    def test_RULES_4_15_a_lost_answer_without_grace_is_beyond_help_and_told(
        self, login: Program, strict: OidcProvider, store: Store, person: Person
    ) -> None:
        expire(store, strict.mcp)
        strict.set(token=[{"lose": True}])
        with pytest.raises(AuthorizationRequired):
            login.restarted(interactive=False).call()
        assert served(login.restarted(user=person).call())
        assert person.asked == 2

    def test_RULES_3_3_unavailable_is_tried_three_times_more_and_the_grant_is_kept(
        self, login: Program, strict: OidcProvider, store: Store
    ) -> None:
        old = expire(store, strict.mcp)
        strict.set(token=[{"status": 503}] * 4)
        again = login.restarted()
        with pytest.raises(TokenRefreshError) as unavailable:
            again.call()
        assert unavailable.value.reason is Reason.RENEWAL_UNAVAILABLE
        assert again.traffic == ["refresh_token"] * 4
        assert grant_in(store, strict.mcp).refresh_token == old.refresh_token
        rewrite(store, strict.mcp, _rested)
        assert served(login.restarted().call())

    def test_FN_11_an_early_renewal_that_fails_leaves_the_living_token_in_use(
        self, login: Program, strict: OidcProvider, store: Store
    ) -> None:
        rewrite(store, strict.mcp, _about_to_expire)
        strict.set(token=[{"status": 503}] * 4)
        again = login.restarted()
        assert served(again.call())
        assert again.traffic == ["refresh_token"]


def _rested(record: GrantRecord) -> GrantRecord:
    """The time of the next attempt has come."""
    return replace(record, grants=tuple(replace(grant, next_attempt_at=None) for grant in record.grants))


def _about_to_expire(record: GrantRecord) -> GrantRecord:
    grant = current_grant(record)
    assert grant is not None
    return with_grant(record, replace(grant, obtained_at=time.time() - 3590, expires_at=time.time() + 10))


class TestTwoProcesses:
    def test_RULES_4_6_one_renewal_in_all(
        self, login: Program, strict: OidcProvider, store: Store, tmp_path: Path
    ) -> None:
        """Both stand before the lock, which the test holds, when it is let go."""
        with Peer("httpx2-asyncio", strict.mcp, tmp_path) as first, Peer("httpx-sync", strict.mcp, tmp_path) as second:
            for done in range(ROUNDS):
                expire(store, strict.mcp)
                with locked(store, strict.mcp):
                    for peer in (first, second):
                        peer.tell("call")
                        peer.until("lock-busy")
                assert [peer.until("answered")["status"] for peer in (first, second)] == [200, 200]
                assert strict.stats()["granted"] == {"refresh_token": done + 1}
        assert strict.stats()["familiesRevoked"] == 0
        assert grant_in(store, strict.mcp).generation == ROUNDS

    def test_RULES_4_9_one_renewal_in_all_where_the_first_is_told_to_wait(
        self, login: Program, strict: OidcProvider, store: Store, tmp_path: Path
    ) -> None:
        with Peer("httpx2-trio", strict.mcp, tmp_path) as first, Peer("httpx-asyncio", strict.mcp, tmp_path) as second:
            expire(store, strict.mcp)
            strict.set(token=[{"status": 503}])
            first.tell("call")
            first.until("renewal-postponed")
            second.tell("call")
            answers = [peer.until("answered") for peer in (first, second)]
        assert [answer["status"] for answer in answers] == [200, 200]
        assert strict.stats()["granted"] == {"refresh_token": 1}
        assert strict.stats()["requests"]["POST /token"] == 2

    def test_RULES_4_8_a_process_that_is_killed_leaves_the_lock_free(
        self, login: Program, strict: OidcProvider, store: Store, tmp_path: Path
    ) -> None:
        expire(store, strict.mcp)
        strict.set(token=[{"status": 503}])
        with Peer("httpx2-sync", strict.mcp, tmp_path) as killed:
            killed.tell("call")
            killed.until("renewal-postponed")
            killed.kill()
        assert served(login.restarted(user=nobody).call())
        assert strict.stats()["granted"] == {"refresh_token": 1}
