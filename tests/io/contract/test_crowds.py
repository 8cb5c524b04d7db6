"""Every driver with many callers at once, and with callers that go away."""

from __future__ import annotations

import asyncio
import threading
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import Any

import anyio
import pytest

from mcp_oauth.io.flights import FLIGHTS
from mcp_oauth.store.memory import MemoryStore
from tests.io.contract.table import WAYS
from tests.io.contract.ways import CROWD, Answer, AsyncWay, Call, Caller, Script, Way
from tests.io.plain import settle
from tests.io.servers import (
    PATIENCE,
    Reply,
    Seen,
    World,
    document,
    put_grant,
    serving,
    stored,
    stored_refresh_token,
    world_on_loopback,
)

pytestmark = pytest.mark.usefixtures("nothing_is_left_of_threads")


# --- Many at once -----------------------------------------------------------------------------------------------------


def test_50_requests_are_under_way_at_once(way: Way) -> None:
    """The server answers when all are there: would they wait for each other, none would be answered."""
    barrier = threading.Barrier(CROWD)

    def handler(seen: Seen) -> Reply:
        barrier.wait(PATIENCE)
        return document({"token": seen.token})

    with serving(handler) as server:
        world, store = World(server.origin), MemoryStore()
        put_grant(store, world, expires_in=1000)

        def script() -> Script[list[Answer]]:
            answers: list[Answer] = yield [Call("GET", world.url)] * CROWD
            return answers

        answers = way.run(script(), Caller(way.oauth(world.url, store=store)))
    assert [answer.json()["token"] for answer in answers] == ["Bearer CANARY-access-1"] * CROWD


def test_FN_12_50_callers_of_all_stacks_with_an_expired_token_cause_one_refresh(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Threads, and tasks of many loops, with two `OAuth` objects for each way on one store."""
    store, tokens = MemoryStore(), list[str]()
    join, asked = FLIGHTS._join, threading.Semaphore(0)

    def watched(seat: Any) -> None:
        join(seat)
        asked.release()

    def callers(way: Way, number: int) -> None:
        def script() -> Script[None]:
            for answer in (yield [Call("GET", world.url)] * number):
                tokens.append(answer.json()["token"])

        way.run(script(), Caller(way.oauth(world.url, store=store)))

    seats = [(way, len(range(n, CROWD, 2 * len(WAYS)))) for n, way in enumerate([*WAYS, *WAYS])]
    with world_on_loopback() as world:
        put_grant(store, world)
        world.before = lambda stage: [asked.acquire(timeout=PATIENCE) for _ in range(CROWD)]
        monkeypatch.setattr(FLIGHTS, "_join", watched)
        threads = [threading.Thread(target=callers, args=seat) for seat in seats]
        for each in threads:
            each.start()
        for each in threads:
            each.join(PATIENCE)
    assert (len(tokens), len(set(tokens))) == (CROWD, 1)
    assert (world.refreshes, world.reuses, world.logins) == (1, 0, 0)


# --- Callers who are cancelled, at any of their awaits ----------------------------------------------------------------


@types.coroutine
def watched(coroutine: Coroutine[Any, Any, Any], at_await: Callable[[int], object]) -> Generator[Any, Any, Any]:
    """Await something, and call `at_await(n)` at its n-th suspension, just before the loop hears of it."""
    n, go_on = 0, partial(coroutine.send, None)
    while True:
        try:
            trap = go_on()
        except StopIteration as end:
            return end.value
        at_await(n)
        n += 1
        try:
            go_on = partial(coroutine.send, (yield trap))
        except BaseException as error:
            go_on = partial(coroutine.throw, error)


Cut = Callable[[Callable[[], Coroutine[Any, Any, Any]], int], Awaitable[bool]]
"""Awaits something and cancels it at its n-th await. True: it came to its end before."""


async def cut_task(do: Callable[[], Coroutine[Any, Any, Any]], n: int) -> bool:
    async def run() -> None:
        await watched(do(), lambda at: task.cancel() if at == n else None)

    task = asyncio.create_task(run())
    try:
        await task
    except asyncio.CancelledError:
        return False
    return True


async def cut_scope(do: Callable[[], Coroutine[Any, Any, Any]], n: int) -> bool:
    with anyio.CancelScope() as scope:
        await watched(do(), lambda at: scope.cancel() if at == n else None)
        return True
    return False


TASKS = [way for way in WAYS if isinstance(way, AsyncWay)]
CUTS = [
    pytest.param(way, cut, id=f"{way.name}-{cut.__name__}")
    for way in TASKS
    for cut in ([cut_task, cut_scope] if way.mode == "asyncio" else [cut_scope])
]


@pytest.mark.parametrize(("way", "cut"), CUTS)
@pytest.mark.parametrize("expires_in", [-10.0, None], ids=["renewal", "login"])
def test_a_caller_cancelled_at_any_of_his_awaits_leaves_nothing_behind(
    way: AsyncWay, cut: Cut, expires_in: float | None
) -> None:
    """And the next request of the same client is served."""

    async def main(oauth: Any, n: int) -> bool:
        async with way.open(Caller(oauth)) as client:
            finished = await cut(lambda: way.send(client, Call("GET", oauth.server_url)), n)
            with anyio.fail_after(PATIENCE):
                assert (await way.send(client, Call("GET", oauth.server_url))).status == 200
        return finished

    with serving() as server:
        for n in range(100):
            server.handler = world = World(server.origin)
            store = MemoryStore()
            if expires_in is not None:
                put_grant(store, world, expires_in=expires_in)
            oauth = way.oauth(world.url, store=store, user=world.login)
            finished = anyio.run(main, oauth, n, backend=way.mode)
            settle()
            assert stored_refresh_token(store, world) == world.refresh_token
            assert world.reuses == 0
            assert world.refreshes + world.logins <= (2 if expires_in is None else 1)  # a login nobody waits for ends
            record = stored(store, world)
            assert record is not None
            assert record.login is None
            if finished:
                break
    assert finished
    assert n > 3


@pytest.mark.parametrize("way", TASKS, ids=[way.name for way in TASKS])
def test_move_on_after_0_changes_nothing(way: AsyncWay) -> None:
    async def main(oauth: Any) -> None:
        async with way.open(Caller(oauth)) as client:
            with anyio.move_on_after(0):
                await way.send(client, Call("GET", oauth.server_url))
            with anyio.fail_after(PATIENCE):
                assert (await way.send(client, Call("GET", oauth.server_url))).status == 200

    with world_on_loopback() as world:
        store = MemoryStore()
        put_grant(store, world)
        anyio.run(main, way.oauth(world.url, store=store), backend=way.mode)
    assert (world.refreshes, world.reuses) == (1, 0)
