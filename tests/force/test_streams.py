"""Long response streams: whoever has one open is in nobody's way, and nobody is in its way.

Nothing here is timed: what must not wait for the end of a stream happens while it is open, and it goes on afterwards.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Protocol

import anyio
import pytest

from mcp_oauth.store.memory import MemoryStore
from tests.integration.program import expire
from tests.io.plain import settle
from tests.io.servers import PATIENCE, Seen, World, _Http, put_grant, serving
from tests.io.ways import WAYS, Way

CALLERS = 10
EVENT_STREAM = "text/event-stream"


# --- The server -------------------------------------------------------------------------------------------------------


class Streaming(World):
    """A world that answers with a stream of events where those are asked for, and the token is good."""

    def __init__(self, origin: str) -> None:
        super().__init__(origin)
        self.open: list[queue.Queue[str]] = []

    def say(self, event: str) -> None:
        """One more event on each stream; an empty one ends them."""
        for stream in self.open:
            stream.put(event)


class _Streaming(_Http):
    def do_GET(self) -> None:
        world = self.server.handler
        headers = {name.lower(): value for name, value in self.headers.items()}
        seen = Seen("GET", f"{self.server.origin}{self.path}", headers, b"")
        if headers.get("accept") != EVENT_STREAM or not isinstance(world, Streaming) or world.mcp(seen).status != 200:
            self._answer()
            return
        events: queue.Queue[str] = queue.Queue()
        world.open.append(events)
        self.close_connection = True
        self.send_response_only(200)
        self.send_header("content-type", EVENT_STREAM)
        self.end_headers()
        while event := events.get():
            self.wfile.write(f"data: {event}\n\n".encode())


@pytest.fixture(params=WAYS, ids=[f"{way.stack.__name__}-{way.mode}" for way in WAYS])
def way(request: pytest.FixtureRequest) -> Way:
    found: Way = request.param
    return found


@pytest.fixture
def world() -> Iterator[Streaming]:
    with serving() as server:
        server.RequestHandlerClass = _Streaming
        server.handler = world = Streaming(server.origin)
        yield world
        world.say("")
    settle()


@pytest.fixture
def store(world: Streaming) -> MemoryStore:
    """Holds a grant whose access token has run out."""
    store = MemoryStore()
    put_grant(store, world)
    return store


# --- A client, sync or async ------------------------------------------------------------------------------------------

Events = AsyncIterator[str]


class Client(Protocol):
    """What a test does with one client. That of a sync one never suspends, and so needs no event loop."""

    async def tokens(self, auth: Any, number: int) -> set[str]:
        """The tokens that so many requests at once were served with."""
        ...

    def stream(self, auth: Any) -> AbstractAsyncContextManager[Events]:
        """An open stream: its events."""
        ...


class Tasks:
    def __init__(self, client: Any, url: str) -> None:
        self._client, self._url = client, url

    async def tokens(self, auth: Any, number: int) -> set[str]:
        found: list[str] = []

        async def one() -> None:
            found.append((await self._client.get(self._url, auth=auth)).json()["token"])

        async with anyio.create_task_group() as group:
            for _ in range(number):
                group.start_soon(one)
        assert len(found) == number
        return set(found)

    @asynccontextmanager
    async def stream(self, auth: Any) -> AsyncGenerator[Events]:
        async with self._client.stream("GET", self._url, auth=auth, headers={"Accept": EVENT_STREAM}) as response:
            yield (line async for line in response.aiter_lines() if line)


class Threads:
    def __init__(self, client: Any, url: str) -> None:
        self._client, self._url = client, url

    async def tokens(self, auth: Any, number: int) -> set[str]:
        with ThreadPoolExecutor(number) as threads:
            answers = list(threads.map(lambda _: self._client.get(self._url, auth=auth), range(number)))
        return {answer.json()["token"] for answer in answers}

    @asynccontextmanager
    async def stream(self, auth: Any) -> AsyncGenerator[Events]:
        with self._client.stream("GET", self._url, auth=auth, headers={"Accept": EVENT_STREAM}) as response:
            yield self._events(response)

    async def _events(self, response: Any) -> AsyncGenerator[str]:
        for line in response.iter_lines():
            if line:
                yield line


Use = Callable[[Client], Coroutine[Any, Any, None]]


def run(way: Way, url: str, use: Use, **options: Any) -> None:
    """Use a client of the default size, unless `options` say otherwise."""

    def in_threads(client: Any) -> None:
        with pytest.raises(StopIteration):
            use(Threads(client, url)).send(None)

    way.run(in_threads, lambda client: use(Tasks(client, url)), **options)


# --- The tests --------------------------------------------------------------------------------------------------------


def test_open_streams_delay_no_request_and_no_renewal(way: Way, world: Streaming, store: MemoryStore) -> None:
    """Ten streams, the first of which begins with a renewal, and two renewals while they are open."""
    oauth = way.oauth(world.url, store=store)
    late = way.oauth(world.url, store=store)

    async def use(client: Client) -> None:
        async with AsyncExitStack() as opened:
            streams = [await opened.enter_async_context(client.stream(oauth)) for _ in range(CALLERS)]
            await all_say(streams, world, "begun")
            first = await client.tokens(oauth, CALLERS)
            world.valid.clear()
            refused = await client.tokens(oauth, CALLERS)
            await all_say(streams, world, "after a refused token")
            expire(store, world.url)
            expired = await client.tokens(late, CALLERS)
            await all_say(streams, world, "after an expired token")
            await all_end(streams, world)
        assert [len(first), len(first | refused), len(first | refused | expired)] == [1, 2, 3]

    run(way, world.url, use)
    assert len(world.open) == CALLERS
    assert (world.refreshes, world.reuses, world.logins) == (3, 0, 0)


def test_a_renewal_that_takes_long_delays_no_stream(way: Way, world: Streaming, store: MemoryStore) -> None:
    """Another thread waits for the renewal, with a client of its own and the same `OAuth`."""
    oauth = way.oauth(world.url, store=store)
    asked, may_answer = threading.Event(), threading.Event()

    def hold(stage: str) -> None:
        if stage == "token":
            asked.set()
            assert may_answer.wait(PATIENCE)

    async def use(client: Client) -> None:
        async with client.stream(oauth) as events:
            await all_say([events], world, "begun")
            world.valid.clear()
            world.before = hold
            with ThreadPoolExecutor(1) as other:
                answer = other.submit(Way(way.stack, "sync").request, "GET", world.url, each=oauth)
                assert asked.wait(PATIENCE)
                await all_say([events], world, "while the renewal is held")
                assert not answer.done()
                may_answer.set()
                assert answer.result(PATIENCE).status_code == 200
            await all_say([events], world, "after the renewal")
            await all_end([events], world)

    run(way, world.url, use)
    assert (world.refreshes, world.reuses, world.logins) == (2, 0, 0)


def test_a_renewal_needs_no_place_in_the_callers_pool(way: Way, world: Streaming, store: MemoryStore) -> None:
    """The one connection of the client is taken by a stream."""
    oauth = way.oauth(world.url, store=store)
    late = way.oauth(world.url, store=store)

    async def use(client: Client) -> None:
        async with client.stream(oauth) as events:
            await all_say([events], world, "begun")
            expire(store, world.url)
            token = late.authorize() if way.mode == "sync" else await late.aauthorize()
            assert token.access_token in world.valid
            await all_say([events], world, "after the renewal")
            await all_end([events], world)

    run(way, world.url, use, limits=way.stack.Limits(max_connections=1))
    assert (world.refreshes, world.reuses, world.logins) == (2, 0, 0)


async def all_say(streams: list[Events], world: Streaming, event: str) -> None:
    """The next event comes through on each."""
    world.say(event)
    for events in streams:
        assert await anext(events) == f"data: {event}"


async def all_end(streams: list[Events], world: Streaming) -> None:
    world.say("")
    for events in streams:
        assert [event async for event in events] == []
