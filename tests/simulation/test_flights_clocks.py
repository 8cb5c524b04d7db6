"""Flights under real event loops with virtual clocks: callers come and are cancelled by the hundred, in no time.

The flights' threads are real. What they do waits for the loop, and the loop for them, so that no virtual second
depends on how fast a thread is.
"""

from __future__ import annotations

import asyncio
import random
import selectors
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
import pytest
from trio.testing import MockClock

from mcp_oauth.io.flights import Flight, Flights, NeedsUser
from tests.io.servers import PATIENCE

Wait = Callable[[], Coroutine[Any, Any, None]]

CALLERS = 100
PERIOD = 5.0
"""Virtual seconds: whoever runs then lands."""

SEEDS = pytest.mark.parametrize("seed", range(10))


class Clockwork(selectors.SelectSelector):
    """Virtual time, which passes when the loop would sleep; who waits for other threads alone waits really."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        came = super().select(PATIENCE if timeout is None else 0)
        if not came and timeout is not None:
            self.now += max(timeout, 0)
        return came


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.clock = Clockwork()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now


def on_asyncio(main: Callable[[], Awaitable[None]]) -> None:
    anyio.run(main, backend="asyncio", backend_options={"loop_factory": VirtualLoop})


def on_trio(main: Callable[[], Awaitable[None]]) -> None:
    anyio.run(main, backend="trio", backend_options={"clock": MockClock(autojump_threshold=0)})


async def by_scope(seconds: float, wait: Wait) -> None:
    with anyio.move_on_after(seconds):
        await wait()


async def by_a_scope_further_out(seconds: float, wait: Wait) -> None:
    with anyio.move_on_after(seconds), anyio.move_on_after(1000):
        async with anyio.create_task_group() as group:
            group.start_soon(wait)


async def by_wait_for(seconds: float, wait: Wait) -> None:
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(wait(), seconds)


async def by_cancel(seconds: float, wait: Wait) -> None:
    task = asyncio.ensure_future(wait())
    asyncio.get_running_loop().call_later(seconds, task.cancel)
    with suppress(asyncio.CancelledError):
        await task


WAYS = pytest.mark.parametrize(
    ("run", "cancelled"),
    [
        (on_trio, by_scope),
        (on_trio, by_a_scope_further_out),
        (on_asyncio, by_scope),
        (on_asyncio, by_a_scope_further_out),
        (on_asyncio, by_wait_for),
        (on_asyncio, by_cancel),
    ],
)


def join_flights() -> None:
    """Let what may land do so while no virtual time passes."""
    for thread in threading.enumerate():
        if thread.name == "mcp-oauth flight":
            thread.join(PATIENCE)
            assert not thread.is_alive()


def assert_empty(flights: Flights) -> None:
    join_flights()
    assert (flights._by_key, list(flights._queue), flights._slots) == ({}, [], set())


@dataclass
class Caller:
    """One who comes at a time, and has patience for so long."""

    comes: float
    patience: float
    result: tuple[str, bool] | None = None

    @property
    def period(self) -> int:
        return int(self.comes // PERIOD)

    @property
    def leaves(self) -> bool:
        return self.comes + self.patience < (self.period + 1) * PERIOD


@WAYS
@SEEDS
def test_who_has_patience_gets_the_token(run: Any, cancelled: Any, seed: int) -> None:
    """And who has not changes nothing, though it may be he whose work it is."""
    dice = random.Random(seed)
    callers = [Caller(dice.uniform(0, 3 * PERIOD), dice.uniform(0, 2 * PERIOD)) for _ in range(CALLERS)]
    flights = Flights()
    may_land = [threading.Event() for _ in range(3)]
    runs: list[int] = []

    def work(period: int, flight: Flight) -> str:
        runs.append(period)
        assert may_land[period].wait(PATIENCE)
        return f"token {period}"

    async def call(caller: Caller) -> None:
        async def wait() -> None:
            caller.result = await flights.wait_async("key", partial(work, caller.period))

        await anyio.sleep(caller.comes)
        await cancelled(caller.patience, wait)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for caller in callers:
                group.start_soon(call, caller)
            for event in may_land:
                await anyio.sleep(PERIOD)
                event.set()
                join_flights()

    run(main)
    assert_empty(flights)
    assert runs == [0, 1, 2]
    for period in runs:
        came = sorted((caller for caller in callers if caller.period == period), key=lambda caller: caller.comes)
        expected = [None if caller.leaves else (f"token {period}", caller is came[0]) for caller in came]
        assert [caller.result for caller in came] == expected


@WAYS
@SEEDS
def test_a_login_lasts_as_long_as_the_last_who_waits(run: Any, cancelled: Any, seed: int) -> None:
    dice = random.Random(seed)
    patience = [dice.uniform(0.1, 100) for _ in range(CALLERS)]
    flights = Flights()
    all_came, asked = threading.Event(), threading.Event()
    login: list[Flight] = []
    ended: list[bool] = []
    sent_away: list[int] = []
    gone: list[int] = []

    def log_in(flight: Flight) -> None:
        login.append(flight)
        assert all_came.wait(PATIENCE)
        flight.ask_user()
        asked.set()
        ended.append(flight.pause(PATIENCE))

    async def call(number: int) -> None:
        async def wait() -> None:
            try:
                await flights.wait_async("key", log_in, patient=number % 2 == 0)
            except NeedsUser:
                sent_away.append(number)

        await cancelled(patience[number], wait)
        if number % 2 == 0:
            gone.append(number)
            assert login[0].stopping() == (len(gone) == CALLERS / 2)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(call, 0)
            await anyio.sleep(0.01)  # whose work it is, is known
            for number in range(1, CALLERS):
                group.start_soon(call, number)
            await anyio.sleep(0.01)
            all_came.set()
            assert asked.wait(PATIENCE)

    run(main)
    assert_empty(flights)
    assert ended == [True]
    assert sorted(sent_away) == list(range(1, CALLERS, 2))
