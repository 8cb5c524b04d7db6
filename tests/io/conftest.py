"""What the tests of the drivers start from."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import httpx
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from mcp_oauth.io import oauth as module
from mcp_oauth.io.callback import LIMITS, Callback, Limits, bind, serve
from tests.io.listeners import AUTHORIZE, SECOND, STATE, Login, Start
from tests.io.plain import settle
from tests.io.servers import PATIENCE, World
from tests.io.ways import WAYS, Way


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def nothing_is_left_of_flights() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    settle()
    for thread in set(threading.enumerate()) - before:
        if not thread.daemon:  # trio keeps its idle worker threads for a while
            thread.join(PATIENCE)
            assert not thread.is_alive(), thread
    assert module._unsaved == {}


@pytest.fixture(params=WAYS, ids=[f"{way.stack.__name__}-{way.mode}" for way in WAYS])
def way(request: pytest.FixtureRequest) -> Way:
    found: Way = request.param
    return found


@pytest.fixture
def nothing_is_left_of_threads() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE)
        assert not thread.is_alive(), thread


@pytest.fixture(params=["asyncio", "trio"])
def portal(request: pytest.FixtureRequest) -> Iterator[BlockingPortal]:
    with start_blocking_portal(request.param) as portal:
        yield portal


@pytest.fixture
def start(portal: BlockingPortal) -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def start(host: str = "127.0.0.1", *, limits: Limits = LIMITS, shown: bool = True) -> Login:
            sockets = [stack.enter_context(sock) for sock in bind(host)]
            port = sockets[0].getsockname()[1]
            callback = Callback(f"http://{host}:{port}/callback/abc")
            if shown:
                callback.expect(AUTHORIZE, STATE)
            serving = portal.start_task_soon(serve, callback, sockets, limits)
            stack.callback(serving.cancel)
            browser = stack.enter_context(httpx.Client(trust_env=False, timeout=SECOND))
            return Login(callback, browser, serving, f"http://{host}:{port}", port)

        yield start
