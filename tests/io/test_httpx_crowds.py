"""The drivers for httpx and httpx2 with many callers at once, and with callers that go away."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import anyio
import pytest

from mcp_oauth.io.flights import FLIGHTS
from mcp_oauth.store.memory import MemoryStore
from tests.io.servers import PATIENCE, Reply, Seen, World, document, put_grant, serving, stored, stored_refresh_token
from tests.io.ways import DRIVERS, Way

pytestmark = pytest.mark.usefixtures("nothing_is_left_of_threads")


# --- Many at once (acceptance 7) --------------------------------------------------------------------------------------

CROWD = 50


def crowd_server(barrier: threading.Barrier, seconds: float) -> Callable[[Seen], Reply]:
    """Answers when all are there, and after a while."""

    def handler(seen: Seen) -> Reply:
        barrier.wait(PATIENCE)
        time.sleep(seconds)  # the 50 ms that a request takes
        return document({"token": seen.token})

    return handler


@pytest.mark.parametrize("mode", ["asyncio", "trio"])
def test_50_requests_are_under_way_at_once_and_take_no_longer_than_without(stack: Any, mode: str) -> None:
    with serving(crowd_server(threading.Barrier(CROWD), 0.05)) as server:
        world, store = World(server.origin), MemoryStore()
        put_grant(store, world, expires_in=1000)
        oauth = DRIVERS[stack](world.url, store=store)

        async def crowd(auth: Any) -> float:
            limits = stack.Limits(max_connections=CROWD)
            async with stack.AsyncClient(auth=auth, timeout=PATIENCE, limits=limits) as client:

                async def one() -> None:
                    assert ((await client.get(world.url)).json()["token"] is None) is (auth is None)

                took = []
                for _ in range(4):
                    began = time.perf_counter()
                    async with anyio.create_task_group() as group:
                        for _ in range(CROWD):
                            group.start_soon(one)
                    took.append(time.perf_counter() - began)
                return median(took[1:])

        without, with_oauth = (anyio.run(crowd, auth, backend=mode) for auth in (None, oauth))
    print(f"{stack.__name__} on {mode}: {with_oauth / without:.2f} x")
    assert with_oauth < 2 * without


def test_FN_12_50_callers_of_all_kinds_with_an_expired_token_cause_one_refresh(
    stack: Any, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks of three loops and threads, with two `OAuth` objects on one store."""
    store, tokens = MemoryStore(), list[str]()
    put_grant(store, world)
    join, asked = FLIGHTS._join, threading.Semaphore(0)

    def watched(seat: Any) -> None:
        join(seat)
        asked.release()

    monkeypatch.setattr(FLIGHTS, "_join", watched)
    world.before = lambda stage: [asked.acquire(timeout=PATIENCE) for _ in range(CROWD)]
    way = Way(stack, "")
    both = [way.oauth(world.url, world, store=store) for _ in range(2)]

    async def tasks(number: int) -> None:
        async with stack.AsyncClient(transport=way.mock(world)) as client, anyio.create_task_group() as group:

            async def one(auth: Any) -> None:
                tokens.append((await client.get(world.url, auth=auth)).json()["token"])

            for n in range(number):
                group.start_soon(one, both[n % 2])

    def thread(auth: Any) -> None:
        with stack.Client(transport=way.mock(world), auth=auth) as client:
            tokens.append(client.get(world.url).json()["token"])

    threads = [threading.Thread(target=thread, args=(both[n % 2],)) for n in range(14)]
    loops = [("asyncio", 12), ("asyncio", 12), ("trio", 12)]
    threads += [threading.Thread(target=partial(anyio.run, tasks, number, backend=mode)) for mode, number in loops]
    for each in threads:
        each.start()
    for each in threads:
        each.join(PATIENCE)
    assert (len(tokens), len(set(tokens))) == (CROWD, 1)
    assert (world.refreshes, world.reuses, world.logins) == (1, 0, 0)


# --- Cancellation (acceptance 9): the caller's own awaits -------------------------------------------------------------


class CancelAt:
    """Awaits something, and cancels it at its n-th suspension."""

    def __init__(self, coroutine: Any, n: int) -> None:
        self.coroutine, self.n = coroutine, n

    def __await__(self) -> Any:
        inner = self.coroutine.__await__()
        suspensions = 0
        while True:
            try:
                future = inner.send(None)
            except StopIteration as end:
                return end.value
            suspensions += 1
            if suspensions > self.n:
                if future is not None:
                    future._asyncio_future_blocking = False
                inner.throw(asyncio.CancelledError())
            yield future


@pytest.mark.parametrize("expires_in", [-10.0, None], ids=["renewal", "login"])
def test_a_caller_cancelled_at_any_of_its_awaits_leaves_nothing_behind(stack: Any, expires_in: float | None) -> None:
    finished = False
    n = 0
    while not finished:
        world, store = World(), MemoryStore()
        if expires_in is not None:
            put_grant(store, world, expires_in=expires_in)
        way = Way(stack, "asyncio")
        oauth = way.oauth(world.url, world, store=store)
        inner = way.mock(world)

        async def slowly(request: Any, inner: Any = inner) -> Any:
            for _ in range(3):
                await asyncio.sleep(0)
            return await inner.handle_async_request(request)

        async def main(oauth: Any = oauth, world: World = world, n: int = n, slowly: Any = slowly) -> bool:
            async with stack.AsyncClient(auth=oauth, transport=stack.MockTransport(slowly)) as client:
                try:
                    await CancelAt(client.get(world.url), n)
                    finished = True
                except asyncio.CancelledError:
                    finished = False
                assert (await client.get(world.url)).status_code == 200
                return finished

        finished = asyncio.run(main())
        for thread in threading.enumerate():
            if thread.name == "mcp-oauth flight":
                thread.join(PATIENCE)
        assert stored_refresh_token(store, world) == world.refresh_token
        assert world.reuses == 0
        assert world.refreshes + world.logins <= (2 if expires_in is None else 1)  # a login nobody waits for ends
        record = stored(store, world)
        assert record is not None
        assert record.login is None
        n += 1
    assert n > 4


def test_move_on_after_0_and_wait_for_0_change_nothing(stack: Any, world: World) -> None:
    store = MemoryStore()
    put_grant(store, world)
    way = Way(stack, "trio")
    oauth = way.oauth(world.url, world, store=store)

    async def main() -> None:
        async with stack.AsyncClient(auth=oauth, transport=way.mock(world)) as client:
            with anyio.move_on_after(0):
                await client.get(world.url)
            with anyio.fail_after(PATIENCE):
                assert (await client.get(world.url)).status_code == 200

    for backend in ("asyncio", "trio"):
        anyio.run(main, backend=backend)
    assert (world.refreshes, world.reuses) == (1, 0)
