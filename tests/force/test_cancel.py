"""Callers who are cancelled, at every await of a request that meets an expired token.

The server is real, rotates, and revokes the whole family if a spent refresh token comes back: so one mistake ends the
grant, and every round after it fails.
"""

from __future__ import annotations

import asyncio
import importlib
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, get_args

import anyio
import anyio.lowlevel
import pytest

from mcp_oauth.io.flights import FLIGHTS
from mcp_oauth.store.base import Store
from tests.force.gate import Gate, Place, before, left
from tests.integration.program import Answer, Program, _answer, _message, expire, grant_in, locked, served
from tests.io.plain import settle
from tests.io.servers import PATIENCE
from tests.servers.oidc_provider import OidcProvider

pytestmark = pytest.mark.filterwarnings(
    # On trio httpx itself leaves this generator to the garbage collector when it is cancelled while it sends.
    "ignore:Async generator 'httpx._content.ByteStream:ResourceWarning"
)

Request = Callable[[], Coroutine[Any, Any, Answer]]
Means = Callable[[Request], Awaitable["Answer | None"]]
"""Makes a request and cancels it, or not. None: it was cancelled."""
Limited = Callable[[float, Request], Awaitable["Answer | None"]]
AtAwait = Callable[[int], object]


# --- Cancelling at one await ------------------------------------------------------------------------------------------


@types.coroutine
def watched(coroutine: Coroutine[Any, Any, Answer], at_await: AtAwait) -> Generator[Any, Any, Answer]:
    """Await something, and call `at_await(n)` at its n-th suspension, just before the loop hears of it."""
    n, go_on = 0, partial(coroutine.send, None)
    while True:
        try:
            trap = go_on()
        except StopIteration as end:
            answer: Answer = end.value
            return answer
        at_await(n)
        n += 1
        try:
            go_on = partial(coroutine.send, (yield trap))
        except BaseException as error:
            go_on = partial(coroutine.throw, error)


class Cut:
    """A request that is cancelled at one of its awaits, or at each from there on; or from outside, by `cancel`."""

    def __init__(self, at: int | None = None, *, again: bool = False) -> None:
        self.at, self.again = at, again
        self.cancel: Callable[[], object]
        self.reached = False
        self.in_flight = False
        """A renewal was under way."""

    async def task(self, request: Request) -> Answer | None:
        """By the own means of asyncio. None: it was cancelled."""

        async def run() -> Answer:
            return await watched(request(), self._at_await)

        task = asyncio.create_task(run())
        self.cancel = task.cancel
        try:
            return await task
        except asyncio.CancelledError:
            return None

    async def scope(self, request: Request) -> Answer | None:
        """By a cancel scope, whose cancellation meets every further await."""
        with anyio.CancelScope() as scope:
            self.cancel = scope.cancel
            return await watched(request(), self._at_await)
        return None

    def _at_await(self, n: int) -> None:
        if self.at is not None and (n == self.at or (self.again and n > self.at)):
            self.reached = True
            self.in_flight = self.in_flight or bool(FLIGHTS._by_key)
            self.cancel()


class Way(NamedTuple):
    """How a caller is cancelled."""

    backend: str
    means: Callable[[Cut, Request], Awaitable[Answer | None]]
    again: bool = False


WAYS = {
    "asyncio-task": Way("asyncio", Cut.task),
    "asyncio-task-again-and-again": Way("asyncio", Cut.task, again=True),
    "asyncio-scope": Way("asyncio", Cut.scope),
    "trio-scope": Way("trio", Cut.scope),
}


ONCE = {name: way for name, way in WAYS.items() if not way.again}
LIBRARIES = ("httpx2", "httpx")


class Caller:
    """A program whose access token has run out, and one client of it."""

    def __init__(self, here: Program, library: str) -> None:
        self.stacks = importlib.import_module(library)
        self.here = here.restarted(stack=f"{library}-asyncio")

    def client(self) -> Any:
        return self.stacks.AsyncClient(auth=self.here.oauth, trust_env=False, timeout=PATIENCE)

    async def post(self, client: Any) -> Answer:
        return _answer(await client.post(self.here.url, **_message("whoami")))


@contextmanager
def one_renewal(login: Program, strict: OidcProvider, store: Store) -> Generator[None]:
    """The access token has run out. After the block it was renewed once, that is saved, and nothing is left behind."""
    generation = expire(store, login.url).generation
    strict.set(reset=True)
    there = before()
    yield
    assert left(there) == set()
    with locked(store, login.url):
        pass
    stats = strict.stats()
    assert (stats["granted"], stats["refused"], stats["familiesRevoked"]) == ({"refresh_token": 1}, {}, 0)
    assert grant_in(store, login.url).generation == generation + 1


# --- One caller -------------------------------------------------------------------------------------------------------


async def cut_and_call_again(caller: Caller, means: Means, then: Callable[[], object]) -> None:
    """One client: a request that is cancelled, then another one, which is served."""
    tasks = anyio.get_running_tasks()
    async with caller.client() as client:
        request = partial(caller.post, client)
        answer = await means(request)
        assert answer is None or served(answer)
        then()
        with anyio.fail_after(PATIENCE):
            assert served(await request())
    assert anyio.get_running_tasks() == tasks


def nobody_looks() -> None:
    """The next request comes at once."""


@pytest.mark.parametrize("then", [nobody_looks, settle], ids=["then-at-once", "then-after-the-renewal"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_caller_cancelled_at_any_await_loses_nothing(
    library: str, way: Way, then: Callable[[], object], login: Program, strict: OidcProvider, store: Store
) -> None:
    """One renewal for both requests, whichever of them began it."""
    cuts: list[Cut] = []
    while not cuts or cuts[-1].reached:
        cuts.append(Cut(len(cuts), again=way.again))
        with one_renewal(login, strict, store):
            means = partial(way.means, cuts[-1])
            anyio.run(cut_and_call_again, Caller(login, library), means, then, backend=way.backend)
    assert len(cuts) > 4
    assert any(cut.in_flight for cut in cuts)


@pytest.mark.parametrize("then", [nobody_looks, settle], ids=["then-at-once", "then-after-the-renewal"])
@pytest.mark.parametrize("place", get_args(Place))
@pytest.mark.parametrize("way", ONCE.values(), ids=ONCE.keys())
def test_a_caller_cancelled_while_the_server_holds_the_renewal_loses_nothing(
    way: Way,
    place: Place,
    then: Callable[[], object],
    login: Program,
    strict: OidcProvider,
    store: Store,
    gate: Gate,
) -> None:
    """Nobody else waits, and the renewal goes on."""
    gate.close(place)
    cut = Cut()

    async def means(request: Request) -> Answer | None:
        async with anyio.create_task_group() as group:
            group.start_soon(cancel_when_held)
            answer = await way.means(cut, request)
        assert answer is None
        return answer

    async def cancel_when_held() -> None:
        await seated(1)
        gate.wait()
        cut.cancel()
        await seated(0)
        gate.open()

    with one_renewal(login, strict, store):
        anyio.run(cut_and_call_again, Caller(login, "httpx2"), means, then, backend=way.backend)


async def wait_for(seconds: float, request: Request) -> Answer | None:
    try:
        return await asyncio.wait_for(request(), seconds)
    except asyncio.TimeoutError:  # before Python 3.11 not the other one
        return None


async def move_on_after(seconds: float, request: Request) -> Answer | None:
    with anyio.move_on_after(seconds):
        return await request()
    return None


@pytest.mark.parametrize(
    ("backend", "limited"),
    [("asyncio", wait_for), ("asyncio", move_on_after), ("trio", move_on_after)],
    ids=["asyncio-wait_for", "asyncio-move_on_after", "trio-move_on_after"],
)
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_caller_whose_time_is_up_loses_nothing(
    library: str, backend: str, limited: Limited, login: Program, strict: OidcProvider, store: Store
) -> None:
    """A little later each time, from no time at all to enough."""
    seconds, answers = 0.0, list[Answer | None]()
    while not answers or answers[-1] is None:

        async def means(request: Request, seconds: float = seconds) -> Answer | None:
            answers.append(await limited(seconds, request))
            return answers[-1]

        with one_renewal(login, strict, store):
            anyio.run(cut_and_call_again, Caller(login, library), means, nobody_looks, backend=backend)
        seconds = seconds * 1.5 or 0.001
    assert len(answers) > 1


# --- Two callers ------------------------------------------------------------------------------------------------------


class Two:
    """A caller who is cancelled, and one who is not, in one client."""

    def __init__(self, caller: Caller, means: Means) -> None:
        self._caller, self._means = caller, means
        self.witness: Answer | None = None
        self.victim: Answer | None = None

    async def call(self, *, victim_first: bool, meanwhile: Callable[[int], Awaitable[object]]) -> None:
        """Start one, then the other; `meanwhile` is awaited after each, and told how many there are."""
        async with self._caller.client() as client, anyio.create_task_group() as group:
            request = partial(self._caller.post, client)
            both = [self._watch, self._suffer]
            for number, one in enumerate(reversed(both) if victim_first else both, 1):
                group.start_soon(one, request)
                await meanwhile(number)

    async def _watch(self, request: Request) -> None:
        with anyio.fail_after(PATIENCE):
            self.witness = await request()

    async def _suffer(self, request: Request) -> None:
        self.victim = await self._means(request)


@pytest.mark.parametrize("victim_first", [True, False], ids=["victim-first", "witness-first"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("library", LIBRARIES)
def test_another_caller_is_served_by_the_renewal_of_one_cancelled_at_any_await(
    library: str, way: Way, victim_first: bool, login: Program, strict: OidcProvider, store: Store
) -> None:
    async def go_on(number: int) -> None:
        await anyio.lowlevel.checkpoint()

    cuts: list[Cut] = []
    while not cuts or cuts[-1].reached:
        cuts.append(Cut(len(cuts), again=way.again))
        two = Two(Caller(login, library), partial(way.means, cuts[-1]))
        with one_renewal(login, strict, store):
            anyio.run(partial(two.call, victim_first=victim_first, meanwhile=go_on), backend=way.backend)
        assert two.witness is not None
        assert served(two.witness)
    assert len(cuts) > 4


@pytest.mark.parametrize("place", get_args(Place))
@pytest.mark.parametrize("victim_first", [True, False], ids=["victim-first", "witness-first"])
@pytest.mark.parametrize("way", ONCE.values(), ids=ONCE.keys())
@pytest.mark.parametrize("library", LIBRARIES)
def test_another_caller_is_served_by_the_renewal_that_both_waited_for(
    library: str,
    way: Way,
    victim_first: bool,
    place: Place,
    login: Program,
    strict: OidcProvider,
    store: Store,
    gate: Gate,
) -> None:
    """The server holds the renewal while one of them is cancelled, be it the one that began it or the other."""
    gate.close(place)
    cut = Cut()
    two = Two(Caller(login, library), partial(way.means, cut))

    async def cancel_when_both_wait(number: int) -> None:
        await seated(number)
        if number == 2:
            gate.wait()
            cut.cancel()
            await seated(1)
            gate.open()

    with one_renewal(login, strict, store):
        anyio.run(partial(two.call, victim_first=victim_first, meanwhile=cancel_when_both_wait), backend=way.backend)
    assert two.victim is None
    assert two.witness is not None
    assert served(two.witness)


async def seated(number: int) -> None:
    """Until so many wait for the flight."""
    with anyio.fail_after(PATIENCE):
        while [len(flight._seats) for flight in FLIGHTS._by_key.values()] != [number]:
            await anyio.sleep(0.001)
