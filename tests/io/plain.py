"""A driver without HTTP, stores that fail, people who take their time: what the tests of `BaseOAuth` share."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from mcp_oauth.io.flights import FLIGHTS
from mcp_oauth.io.oauth import BaseOAuth
from mcp_oauth.io.ports import Answer
from mcp_oauth.io.sending import Sender
from mcp_oauth.sansio.messages import Response
from mcp_oauth.sansio.steps import Send
from mcp_oauth.store.base import Conflict, Held, Lease, Saved, Stored, StoreError
from mcp_oauth.store.memory import MemoryStore
from tests.io.servers import PATIENCE, Seen, World, key_of


class Plain(BaseOAuth):
    """A driver whose OAuth traffic goes straight into a world."""

    def __init__(self, world: World, **options: Any) -> None:
        options.setdefault("store", MemoryStore())
        options.setdefault("user", world.login)
        super().__init__(world.url, **options)
        self.world = world

    def open_sender(self) -> AbstractAsyncContextManager[Sender]:
        return self._open()

    @asynccontextmanager
    async def _open(self) -> AsyncGenerator[Sender]:
        async def send(effect: Send) -> Answer:
            request = effect.request
            reply = self.world(Seen(request.method, request.url, dict(request.headers), request.body))
            return Response(reply.status, reply.headers, reply.body)

        yield send


class Watched(MemoryStore):
    """A store that tells what is done to it, before and after, and may fail."""

    def __init__(self) -> None:
        super().__init__()
        self.watch: Callable[[str], object] = lambda event: None

    def load(self, key: str) -> Stored | None:
        self.watch("load")
        return super().load(key)

    def save(self, key: str, value: bytes, *, revision: str, expected: str | None) -> Saved | Conflict:
        self.watch("save")
        answer = super().save(key, value, revision=revision, expected=expected)
        self.watch("saved")
        return answer

    def try_lock(self, key: str) -> Any:
        self.watch("lock")
        lease = super().try_lock(key)
        self.watch("locked")
        return lease


class Failing(Watched):
    """Raises in whatever is named."""

    def __init__(self, error: type[Exception] = StoreError) -> None:
        super().__init__()
        self.failing: set[str] = set()
        self.watch = lambda event: self.fail(event, error)

    def fail(self, event: str, error: type[Exception]) -> None:
        if event in self.failing:
            raise error("out of order")


class Nobody:
    """A user who must not be asked."""

    def listen(self, redirect_uri: str, port: int | None) -> Any:
        raise AssertionError


class Slow:
    """A person who takes as long as the test wants."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.shown, self.may_answer = threading.Event(), threading.Event()

    def __call__(self, url: str) -> str:
        self.shown.set()
        assert self.may_answer.wait(PATIENCE)
        return self.world.login(url)


def settle() -> None:
    """Wait until all flights have landed, and see that nothing is left of them."""
    for thread in threading.enumerate():
        if thread.name.startswith("mcp-oauth"):
            thread.join(PATIENCE)
            assert not thread.is_alive(), thread
    assert (FLIGHTS._by_key, list(FLIGHTS._queue), FLIGHTS._slots) == ({}, [], set())


def lock_is_free(store: Any, world: World) -> bool:
    lease: Lease | Held = MemoryStore.try_lock(store, key_of(world))
    if isinstance(lease, Held):
        return False
    with lease:
        return True
