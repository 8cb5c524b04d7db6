"""Many callers at once. An expired token at a server that revokes the family when a spent refresh token comes back is
renewed once for all tasks, threads and processes; and a thousand grants are renewed once each.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import anyio
import anyio.to_thread
import httpx2
import pytest

from mcp_oauth.io.httpx2 import OAuth
from mcp_oauth.sansio.grant import Grant, GrantRecord, Registration, encode, grant_key
from mcp_oauth.store.base import Store
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from mcp_oauth.store.memory import MemoryStore
from tests.force.crowds import STORES, Seats, tasks, threads
from tests.integration.fleet import Member
from tests.integration.program import Person, Program, expire, grant_in, locked, nobody, program, served
from tests.io.servers import PATIENCE, Reply, Seen, document, serving
from tests.io.ways import NO_TLS
from tests.servers.oidc_provider import OidcProvider
from tests.store.peer import Recipe

TASKS = THREADS = 50
PROCESSES = 8
ONE = {"refresh_token": 1}

by_backend = pytest.mark.parametrize("backend", ["asyncio", "trio"])


# --- One grant --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=STORES)
def recipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recipe]:
    with STORES[request.param](tmp_path_factory.mktemp("crowd")) as made:
        yield made


@pytest.fixture(scope="module")
def fleet(recipe: Recipe) -> Iterator[list[Member]]:
    with ExitStack() as members:
        yield [members.enter_context(Member(recipe)) for _ in range(PROCESSES)]


def logged_in(server: OidcProvider, store: Store, account: str) -> Program:
    """A new program whose token has run out, where nobody may be asked; nothing is counted yet."""
    before = program("httpx2-sync", server.mcp, store=store, account=account, user=Person())
    assert served(before.call())
    expire(store, server.mcp, account)
    server.set(reset=True)
    return before.restarted(verify=NO_TLS)


class Crowd:
    """Callers of this process, on threads that are there by the time that they are wanted."""

    def __init__(self, here: Program, backend: str) -> None:
        self._here = here
        self._start = threading.Barrier(3)
        self._pool = ThreadPoolExecutor(2)
        self._asked: list[Future[list[bool]]] = [
            self._pool.submit(self._ask, partial(tasks, count=TASKS, backend=backend)),
            self._pool.submit(self._ask, partial(threads, count=THREADS)),
        ]

    def _ask(self, callers: Callable[[Any, str], list[bool]]) -> list[bool]:
        self._start.wait(PATIENCE)
        return callers(self._here.oauth, self._here.url)

    def begin(self) -> None:
        self._start.wait(PATIENCE)

    def served(self) -> int:
        with self._pool:
            return sum(answer for one in self._asked for answer in one.result(4 * PATIENCE))


def outcome(member: Member) -> str:
    """`answered`, or the reason why not."""
    end = member.end()
    return str(end.get("reason", end["event"]))


def was_renewed_once(server: OidcProvider, here: Program) -> None:
    assert server.stats()["granted"] == ONE
    assert server.stats()["familiesRevoked"] == 0
    account = here.oauth.plan.account
    assert grant_in(here.oauth._store, here.url, account).generation == 1
    expire(here.oauth._store, here.url, account)
    assert served(here.restarted(account=account).call())


@by_backend
class TestOneRenewal:
    def test_RULES_4_6_all_stand_before_the_lock_when_it_is_let_go(
        self, backend: str, recipe: Recipe, fleet: list[Member], strict: OidcProvider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here = logged_in(strict, recipe.store(), f"before the lock/{backend}")
        account, seats, crowd = here.oauth.plan.account, Seats(monkeypatch), Crowd(here, backend)
        with locked(here.oauth._store, here.url, account):
            crowd.begin()
            for member in fleet:
                member.call(here.url, account, interactive=False)
            for member in fleet:
                member.until("lock-busy")
            seats.wait_for(TASKS + THREADS)
        assert [outcome(member) for member in fleet] == ["answered"] * PROCESSES
        assert crowd.served() == TASKS + THREADS
        was_renewed_once(strict, here)

    def test_RULES_4_6_as_they_come(
        self, backend: str, recipe: Recipe, fleet: list[Member], strict: OidcProvider
    ) -> None:
        here = logged_in(strict, recipe.store(), f"as they come/{backend}")
        crowd = Crowd(here, backend)
        crowd.begin()
        for member in fleet:
            member.call(here.url, here.oauth.plan.account, interactive=False)
        assert [outcome(member) for member in fleet] == ["answered"] * PROCESSES
        assert crowd.served() == TASKS + THREADS
        was_renewed_once(strict, here)


@by_backend
def test_RULES_4_6_in_memory_of_one_process(backend: str, strict: OidcProvider) -> None:
    here = logged_in(strict, MemoryStore(), "")
    crowd = Crowd(here, backend)
    crowd.begin()
    assert crowd.served() == TASKS + THREADS
    was_renewed_once(strict, here)


# --- A thousand grants ------------------------------------------------------------------------------------------------

GRANTS = 1000
WORKERS = 40
BOUND = 100.0
"""Seconds in which a thousand grants are renewed on a slow machine that has much else to do."""


class Multitude:
    """An MCP server with many people, and their authorization server, where each refresh token is good for once."""

    def __init__(self, origin: str) -> None:
        self.origin, self.url = origin, f"{origin}/mcp"
        self.renewed = Counter[str]()
        self.reused = 0
        self.answers = threading.Event()
        """Until then nobody gets new tokens."""
        self._mutex = threading.Lock()

    def __call__(self, seen: Seen) -> Reply:
        if seen.path == "/token":
            return self._token(parse_qs(seen.body.decode())["refresh_token"][0])
        return document({}) if (seen.token or "").startswith("Bearer access-2-") else Reply(401)

    def _token(self, presented: str) -> Reply:
        assert self.answers.wait(PATIENCE)
        _, generation, person = presented.split("-")
        with self._mutex:
            self.renewed[person] += 1
            if generation != str(self.renewed[person]):
                self.reused += 1
                return document({"error": "invalid_grant"}, 400)
        tokens = {
            kind: f"{kind.split('_')[0]}-{int(generation) + 1}-{person}" for kind in ("access_token", "refresh_token")
        }
        return document({**tokens, "token_type": "Bearer", "expires_in": 3600})

    def person(self, number: int, store: Store) -> OAuth:
        """A program of somebody whose access token has run out."""
        now, account = time.time(), str(number)
        grant = Grant(
            self.origin,
            Registration(self.origin, "client", "dcr", "none"),
            f"{self.origin}/token",
            f"access-1-{number}",
            now - 3600,
            "lineage",
            expires_at=now - 10,
            refresh_token=f"refresh-1-{number}",
            resource=self.url,
        )
        record = GrantRecord("first", self.url, account, (grant,), self.origin)
        store.save(grant_key(self.url, account), encode(record), revision="first", expected=None)
        return OAuth(self.url, store=store, account=account, user=nobody, interactive=False, verify=NO_TLS)


@pytest.fixture
def multitude() -> Iterator[Multitude]:
    with serving() as server:
        server.handler = made = Multitude(server.origin)
        yield made


@pytest.fixture(params=["memory", "encrypted_file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return MemoryStore() if request.param == "memory" else EncryptedFileStore(tmp_path / "store")


@pytest.mark.slow
def test_a_thousand_grants_through_forty_worker_threads_and_forty_threads(
    multitude: Multitude, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every grant is asked for by a worker thread of anyio, of which there are 40, and by one of 40 threads, in another
    order. All 80 wait before the first answer comes: a renewal that needed one of them would never end.
    """
    everybody = [multitude.person(number, store) for number in range(GRANTS)]
    seats, ended, began = Seats(monkeypatch), list[float](), time.monotonic()

    def answer_when_all_wait() -> None:
        seats.wait_for(2 * WORKERS)
        multitude.answers.set()

    with httpx2.Client(timeout=BOUND, verify=NO_TLS, limits=httpx2.Limits(max_connections=2 * WORKERS)) as client:

        def call(oauth: OAuth) -> bool:
            status: int = client.get(multitude.url, auth=oauth).status_code
            ended.append(time.monotonic() - began)
            return status == 200

        async def through_workers() -> list[bool]:
            answers = list[bool]()

            async def one(oauth: OAuth) -> None:
                answers.append(await anyio.to_thread.run_sync(call, oauth))

            anyio.to_thread.current_default_thread_limiter().total_tokens = WORKERS
            async with anyio.create_task_group() as group:
                for oauth in everybody:
                    group.start_soon(one, oauth)
            return answers

        with ThreadPoolExecutor(1 + WORKERS) as pool:
            waiting = pool.submit(answer_when_all_wait)
            through_threads = [pool.submit(call, oauth) for oauth in random.sample(everybody, GRANTS)]
            assert anyio.run(through_workers) == [True] * GRANTS
            assert [one.result() for one in through_threads] == [True] * GRANTS
            waiting.result()
    assert multitude.renewed == {str(number): 1 for number in range(GRANTS)}
    assert multitude.reused == 0
    assert max(ended) < BOUND
    print(f"{2 * GRANTS} callers of {GRANTS} grants: half in {sorted(ended)[GRANTS]:.1f} s, all in {max(ended):.1f} s")
