"""How the contract's tests speak to every stack alike.

A test is a script: a generator that yields a `Call`, or several in a list to have them sent at once, or a function to
be called while the client stays open, and is sent what came of it. A `Way` is a stack and what runs it (threads,
asyncio, trio); it plays a script with a client as its users make it. Each stack has its adapter in a file of its own.
"""

from __future__ import annotations

import ssl
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import anyio
import anyio.to_thread
import msgspec

from mcp_oauth.io.ports import Answer as Outcome
from mcp_oauth.sansio.messages import Request
from mcp_oauth.sansio.steps import Send
from mcp_oauth.store.memory import MemoryStore
from tests.io.servers import PATIENCE

T = TypeVar("T")
Script = Generator[Any, Any, T]

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Trusts nobody, and is there at once: what most clients here reach is http on loopback."""
PAYLOAD = {"a": "1"}
"""What is sent as JSON and as a form."""
CONTENT = b"\x00 bytes \xff"
"""What is sent as everything else."""
CROWD = 50
REDIRECTS = [301, 302, 303, 307, 308]


@dataclass(frozen=True)
class Authority:
    """A private CA, as some stacks want it and as others do."""

    context: ssl.SSLContext
    path: Path


@dataclass(frozen=True)
class Call:
    """One request of a caller."""

    method: str
    url: str
    body: str = "none"
    """One of the kinds in `Way.replayable` and `Way.once`."""
    headers: Mapping[str, str] = field(default_factory=dict)
    auth: Any = None
    """Of this request alone."""
    follow: bool = False
    """Redirects."""
    on_chunk: Callable[[bytes], object] | None = None
    """Told what comes of the answer as it comes, in the thread that reads it."""


@dataclass(frozen=True)
class Answer:
    """What the caller got at last."""

    status: int
    url: str
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return msgspec.json.decode(self.body)


@dataclass(frozen=True)
class Caller:
    """The caller's client."""

    auth: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cookies: Mapping[str, str] = field(default_factory=dict)
    touched: Callable[[str], object] | None = None
    """A hook or an event of the stack's, told of the URL of each request."""
    authority: Authority | None = None
    environment: bool = False
    """Obeys `.netrc`, where the stack can."""


class Way(ABC):
    """A stack, and what runs it."""

    stack: str
    mode: str
    """`sync`, `asyncio` or `trio`."""
    levels: ClassVar[tuple[str, ...]] = ("client", "request")
    """Where the stack takes an auth."""
    follows: ClassVar[bool] = True
    """The stack can follow redirects."""
    replayable: ClassVar[tuple[str, ...]]
    """The kinds of bodies that our driver sends again."""
    once: ClassVar[tuple[str, ...]]
    """The kinds that it cannot."""

    @property
    def name(self) -> str:
        return f"{self.stack}-{self.mode}"

    @property
    @abstractmethod
    def driver(self) -> Any:
        """The class `OAuth`."""

    def oauth(self, url: str, **options: Any) -> Any:
        return self.driver(url, **{"store": MemoryStore()} | options)

    @abstractmethod
    def beneath(self, used: Callable[[], object]) -> dict[str, Any]:
        """Options of an `OAuth`: the stack's own transport of OAuth traffic, which calls `used` before it acts."""

    @abstractmethod
    def unmakeable(self, make: Callable[[], Any]) -> dict[str, Any]:
        """Options of an `OAuth` with this factory of such a transport."""

    @abstractmethod
    def trusting(self, authority: Authority) -> dict[str, Any]:
        """Options of an `OAuth` that trusts a private CA."""

    @abstractmethod
    def run(self, script: Script[T], caller: Caller = Caller()) -> T:
        """Play a script."""

    def call(self, call: Call, caller: Caller = Caller()) -> Answer:
        """One request with a client of its own."""

        def script() -> Script[Answer]:
            answer: Answer = yield call
            return answer

        return self.run(script(), caller)

    def at_level(self, level: str, call: Call, auth: Any) -> Answer:
        """One request whose auth is the client's or its own."""
        if level == "client":
            return self.call(call, Caller(auth))
        return self.call(replace(call, auth=auth))

    def naive(self, token: str) -> Any:
        """What a user would write who has a token and no more: it leaks."""
        raise NotImplementedError

    @abstractmethod
    def residue(self, oauth: Any, url: str) -> Sequence[object]:
        """After a request with a token: all that is left of it in the caller's hands, but the header as it was sent."""

    def oauth_send(
        self, request: Request, *, seconds: float = PATIENCE, most: int = 1 << 20, **options: Any
    ) -> Outcome:
        """Perform one `Send`, as a flight does."""
        (answer,) = exchange(self.oauth("https://mcp.example/mcp", **options), Send(request, most, seconds))
        return answer


def generated() -> Iterator[bytes]:
    yield CONTENT


async def agenerated() -> AsyncIterator[bytes]:
    yield CONTENT


def exchange(oauth: Any, *effects: Send) -> list[Outcome]:
    """Perform what one run asks for, with the sender of a driver, which blocks or awaits."""
    opened = oauth.open_sender()
    if isinstance(opened, AbstractContextManager):
        with opened as send:
            return [send(effect) for effect in effects]

    async def main() -> list[Outcome]:
        async with opened as send:
            return [await send(effect) for effect in effects]

    return anyio.run(main)


# --- Playing a script -------------------------------------------------------------------------------------------------


class SyncWay(Way):
    """Calls block; those in a list have a thread each."""

    mode = "sync"

    @abstractmethod
    def open(self, caller: Caller) -> AbstractContextManager[Any]:
        """The caller's client."""

    @abstractmethod
    def send(self, client: Any, call: Call) -> Answer:
        """One request."""

    def run(self, script: Script[T], caller: Caller = Caller()) -> T:
        with self.open(caller) as client, ThreadPoolExecutor(CROWD) as threads:

            def perform(wish: Any) -> Any:
                if isinstance(wish, list):
                    return [each.result() for each in [threads.submit(self.send, client, call) for call in wish]]
                return self.send(client, wish) if isinstance(wish, Call) else wish()

            go_on = partial(next, script)
            while True:
                try:
                    wish = go_on()
                except StopIteration as end:
                    value: T = end.value
                    return value
                try:
                    go_on = partial(script.send, perform(wish))
                except Exception as error:
                    go_on = partial(script.throw, error)


class AsyncWay(Way):
    """Calls are awaited; those in a list have a task each."""

    @abstractmethod
    def open(self, caller: Caller) -> AbstractAsyncContextManager[Any]:
        """The caller's client."""

    @abstractmethod
    async def send(self, client: Any, call: Call) -> Answer:
        """One request."""

    def run(self, script: Script[T], caller: Caller = Caller()) -> T:
        return anyio.run(self._run, script, caller, backend=self.mode)

    async def _run(self, script: Script[T], caller: Caller) -> T:
        async with self.open(caller) as client:
            go_on = partial(next, script)
            while True:
                try:
                    wish = go_on()
                except StopIteration as end:
                    value: T = end.value
                    return value
                try:
                    go_on = partial(script.send, await self._perform(client, wish))
                except Exception as error:
                    go_on = partial(script.throw, error)

    async def _perform(self, client: Any, wish: Any) -> Any:
        if isinstance(wish, Call):
            return await self.send(client, wish)
        if not isinstance(wish, list):
            return await anyio.to_thread.run_sync(wish)
        answers: list[Any] = [None] * len(wish)

        async def one(n: int, call: Call) -> None:
            answers[n] = await self.send(client, call)

        async with anyio.create_task_group() as tasks:
            for n, call in enumerate(wish):
                tasks.start_soon(one, n, call)
        return answers
