"""Processes of the simulated world: the library as it is, on substitutes for the clock, threads and event loops.

Real are `access`, `upkeep` and `logout`, both drive loops, `BaseOAuth` with its flights, and the stores. What is
substituted is what a process gets from its system: see `substituted`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from mcp_oauth.io import flights, fresh, later, oauth, options, ports
from mcp_oauth.io.flights import Flights
from mcp_oauth.io.later import Later
from mcp_oauth.io.oauth import BaseOAuth
from mcp_oauth.io.ports import Answer
from mcp_oauth.io.sending import BlockingSender, Sender
from mcp_oauth.io.user import UserError
from mcp_oauth.sansio import access
from mcp_oauth.sansio.errors import Failure
from mcp_oauth.sansio.grant import GrantRecord, decode, grant_key
from mcp_oauth.sansio.messages import Request, Response
from mcp_oauth.sansio.steps import Answered, Await, Done, Effect, Ensure, Failed, Notice, Proceed, Send
from mcp_oauth.store import base, lease, memory
from mcp_oauth.store import redis as redis_store
from mcp_oauth.store import vault as vault_store
from mcp_oauth.store.base import Conflict, Held, Lease, Saved, Store, Stored
from mcp_oauth.store.lease import Holder
from mcp_oauth.store.memory import MemoryStore
from tests.simulation.oracle import EPOCH
from tests.simulation.scheduler import Condition, Event, Machine, Mutex, Signal, Task, step_through
from tests.simulation.servers import MCP

if TYPE_CHECKING:
    from tests.simulation.world import World

T = TypeVar("T")
S = TypeVar("S")
R = TypeVar("R")

KEY = grant_key(MCP, "")
LOGIN_SECONDS = 90.0
BOOTED = 1000.0


class Cancelled(BaseException):
    """What a caller's event loop or Ctrl-C throws at it."""


class Host:
    """A machine: its clocks, and whether it is awake."""

    def __init__(self, number: int, skew: float) -> None:
        self.number = number
        self.skew = skew
        """Seconds by which its wall clock is ahead."""
        self.suspended = 0.0
        """Seconds that its monotonic clock has not counted."""


class Process(Machine):
    """A program with some `OAuth` objects for one server, and callers that use them."""

    def __init__(self, world: World, name: str, host: Host, *, interactive: bool, threads: bool) -> None:
        self.world = world
        self.name = name
        self.host = host
        self.pid = world.new_pid()
        self.interactive = interactive
        self.threads = threads
        """It uses the sync drive and sync callers; else the async ones."""
        self.main_ended = False
        self.died_at = -math.inf
        self.listeners: list[Session] = []
        self.locks: dict[Lease, Task] = {}
        self.tasks: dict[object, Task] = {}
        """Flights, and what they run on."""
        self.enter_first()

    def enter_first(self) -> None:
        """Come into being with nothing of the library's in memory."""
        self.flights = Flights()
        self.later = Later()
        self.unsaved: dict[tuple[str, str], GrantRecord] = {}
        self.inner: Store = self.world.open_store(self)
        self.store: Store = Watched(self.inner, self)
        self.oauths = [SimulatedOAuth(self) for _ in range(self.world.setting.objects)]

    def __repr__(self) -> str:
        return self.name

    def enter(self) -> None:
        """The globals of the library are this process's."""
        for module, name, value in self.globals():
            setattr(module, name, value)

    def globals(self) -> tuple[tuple[ModuleType, str, object], ...]:
        """What the library keeps once for each process."""
        return (
            (oauth, "FLIGHTS", self.flights),
            (oauth, "LATER", self.later),
            (oauth, "_unsaved", self.unsaved),
            (fresh, "LATER", self.later),
        )

    @property
    def place(self) -> str:
        """What it shares with others: the medium; or nothing, so its name."""
        return self.name if isinstance(self.inner, MemoryStore) else self.inner.identity

    def wall(self) -> float:
        return EPOCH + self.world.scheduler.seconds + self.host.skew

    def elapsed(self) -> float:
        return BOOTED * self.host.number + self.world.scheduler.seconds

    def monotonic(self) -> float:
        return self.elapsed() - self.host.suspended

    # --- What may befall it ---------------------------------------------------------------------------------------

    def point(self) -> None:
        """A moment at which the process may be ended or stopped for a while."""
        if self.world.faults.kills(self):
            self.kill()
        self.world.faults.pauses(self)
        if self.dead or self.resumes_at > self.world.scheduler.seconds:
            self.world.scheduler.sleep(0.0)

    def kill(self) -> None:
        """End it at once: no `finally` runs, the system takes its locks and sockets away."""
        self.world.say(f"{self.name} is killed")
        self.dead = True
        self.died_at = self.world.scheduler.seconds
        self.listeners.clear()
        self.locks.clear()
        self.world.medium.died(self)
        self.world.note("killed")
        self.world.oracle.interrupted(self, "killed")

    def pause(self, seconds: float) -> None:
        """Give it no processor for some time."""
        self.world.say(f"{self.name} stops for {seconds:.0f} s")
        self.resumes_at = max(self.resumes_at, self.world.scheduler.seconds + seconds)
        self.world.note("stopped")
        self.world.disturbed_at = self.resumes_at
        self.world.oracle.interrupted(self, "stopped")

    def exit(self) -> None:
        """Its main thread ends; other threads of the library run on to their end."""
        self.world.say(f"{self.name} exits")
        self.main_ended = True

    # --- The outside ----------------------------------------------------------------------------------------------

    def exchange(self, what: str, do: Callable[[], T], broken: Callable[[str], Exception]) -> T:
        """One exchange with the medium of the stores."""
        world = self.world
        fault = world.faults.of_exchange()
        self.point()
        world.scheduler.sleep(world.faults.delay())
        if fault == "before":
            world.say(f"{self.name} {what}: the medium fails")
            raise broken("the medium failed")
        value = do()
        world.say(f"{self.name} {what}{': ' + value.holder if isinstance(value, Held) else ''}")
        self.point()
        world.scheduler.sleep(world.faults.delay())
        if fault == "after":
            world.say(f"{self.name} {what}: the answer is lost")
            raise broken("the medium did not answer")
        return value

    def saved(self) -> None:
        """The save under way has changed the medium."""
        self.world.oracle.committed(self)

    def seconds(self) -> float:
        """The medium's own clock."""
        return self.world.medium_seconds()

    def send(self, effect: Send) -> Answer:
        """OAuth traffic."""
        self.world.oracle.sending(self, effect.request)
        self.point()
        return self.world.wire.send(self, effect)

    # --- Callers --------------------------------------------------------------------------------------------------

    def request(self, client: SimulatedOAuth) -> Response | Failure:
        """One request of a caller, as a plug makes it."""
        if self.threads:
            return self._finished(client, self._request(client))
        return self._finished(client, step_through(self._request_async(client)))

    def _request(self, client: SimulatedOAuth) -> access.Out:
        step = client.begin(replayable=True)
        while isinstance(step, Await):
            if isinstance(step.effect, Ensure):
                step = access.advance(step.state, client.ensure(step.effect.need), now=ports.now())
            else:
                step = access.advance(step.state, self._proceed(client, step.effect), now=ports.now())
        return step

    async def _request_async(self, client: SimulatedOAuth) -> access.Out:
        step = client.begin(replayable=True)
        while isinstance(step, Await):
            if isinstance(step.effect, Ensure):
                step = access.advance(step.state, await client.ensure_async(step.effect.need), now=ports.now())
            else:
                step = access.advance(step.state, self._proceed(client, step.effect), now=ports.now())
        return step

    def _proceed(self, client: SimulatedOAuth, effect: Effect) -> Answered:
        assert isinstance(effect, Proceed)
        self.world.oracle.proceeding(self, effect.headers)
        client.answer = self.world.wire.proceed(self, Request("POST", MCP, tuple(effect.headers)))
        challenges = tuple(value for name, value in client.answer.headers if name == "www-authenticate")
        return Answered(client.answer.status, challenges)

    def _finished(self, client: SimulatedOAuth, step: access.Out) -> Response | Failure:
        if isinstance(step, Failed):
            return step.error
        assert isinstance(step, Done)
        client.finished(step.value.accepted)
        return client.answer

    def log_out(self, client: SimulatedOAuth) -> None:
        """A logout, whose result is for the oracle."""
        key, work = client._logging_out(True)
        end, _ = self.flights.wait(key, work)
        client._token = None
        self.world.oracle.logged_out(self, end)

    def fork(self, name: str) -> Process:
        """A child, with what it finds in its memory."""
        child = Process(self.world, name, self.host, interactive=self.interactive, threads=self.threads)
        if isinstance(self.inner, MemoryStore):
            child.inner = _copy(self.inner)
            child.inner._stored = dict(self.inner._stored)
            memory._living.add(child.inner)
        child.flights, child.later = _copy(self.flights), _copy(self.later)
        child.unsaved = dict(self.unsaved)
        child.store = Watched(child.inner, child)
        child.oauths = [_copy(one) for one in self.oauths]
        for one in child.oauths:
            one.process, one._store = child, child.store
            one._on_notice, one._user = one._notice, Person(child)
        child.in_child()
        self.world.oracle.forked(self, child)
        return child

    def in_child(self) -> None:
        """What the library has registered to be done after a fork."""
        self.flights._reset()
        self.later._reset()
        self.unsaved.clear()
        if isinstance(self.inner, MemoryStore):
            self.inner._begin()


def _copy(thing: T) -> T:
    copied = object.__new__(type(thing))
    copied.__dict__.update(thing.__dict__)
    return copied


class SimulatedOAuth(BaseOAuth):
    """The driver of the simulated HTTP stack."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.answer = Response(0)
        """The last one to a caller."""
        super().__init__(
            MCP,
            store=process.store,
            user=Person(process),
            interactive=process.interactive,
            on_notice=self._notice,
            login_seconds=LOGIN_SECONDS,
        )

    def _notice(self, notice: Notice) -> None:
        self.process.world.oracle.told(self.process, notice)

    def open_sender(self) -> AbstractAsyncContextManager[Sender] | AbstractContextManager[BlockingSender]:
        """With threads, that of a stack that blocks."""
        return nullcontext(self.process.send) if self.process.threads else self._sender()

    @asynccontextmanager
    async def _sender(self) -> AsyncGenerator[Sender, None]:
        async def send(effect: Send) -> Answer:
            return self.process.send(effect)

        yield send


# --- The store, as the oracle sees it ---------------------------------------------------------------------------------


class Watched:
    """A store of which is known what it is asked to save, and which task holds its locks."""

    def __init__(self, inner: Store, process: Process) -> None:
        self.inner = inner
        self._process = process

    @property
    def identity(self) -> str:
        return self.inner.identity

    def load(self, key: str) -> Stored | None:
        return self.inner.load(key)

    def keys(self) -> tuple[str, ...]:
        return self.inner.keys()

    def save(self, key: str, value: bytes, *, revision: str, expected: str | None) -> Saved | Conflict:
        process = self._process
        process.world.oracle.saving(process.world.scheduler.current, key, decode(value), expected)
        if isinstance(self.inner, MemoryStore):
            process.point()
            process.world.scheduler.sleep(process.world.faults.delay())
        answer = self.inner.save(key, value, revision=revision, expected=expected)
        if isinstance(self.inner, MemoryStore) and isinstance(answer, Saved):
            process.saved()
        return answer

    def try_lock(self, key: str) -> Lease | Held:
        lease = self.inner.try_lock(key)
        return lease if isinstance(lease, Held) else _WatchedLease(lease, self._process)


class _WatchedLease:
    def __init__(self, inner: Lease, process: Process) -> None:
        self._inner = inner
        self._process = process
        self.valid_until = inner.valid_until
        self.left_by = inner.left_by
        process.locks[self] = process.world.scheduler.current

    @property
    def exclusive(self) -> bool:
        return self._inner.exclusive

    def extend(self) -> bool:
        extended = self._inner.extend()
        self.valid_until = self._inner.valid_until
        return extended

    def __enter__(self) -> Lease:
        self._inner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._process.locks.pop(self, None)
        self._inner.__exit__(kind, error, trace)


# --- The person -------------------------------------------------------------------------------------------------------


class Person:
    """Who sits at a process."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def listen(self, redirect_uri: str, port: int | None) -> Session:
        if self._process.world.setting.person == "absent":
            self._process.world.note("person")
            raise UserError("there is no browser")
        return Session(self._process.world, redirect_uri.replace("127.0.0.1", f"127.0.0.1:{port or 5000}", 1))


class Session:
    """A login in a browser."""

    def __init__(self, world: World, redirect_uri: str) -> None:
        self._world = world
        task = world.scheduler.current
        assert isinstance(task.machine, Process)
        self.process, self._task = task.machine, task
        self.redirect_uri = redirect_uri
        self._redirect: str | None = None
        self.claimed = False
        """It is announced to others, and open."""
        self.opened_at = 0.0

    def __enter__(self) -> Session:
        self.process.listeners.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if self in self.process.listeners:
            self.process.listeners.remove(self)

    def show(self, url: str, state: str, /) -> None:
        world = self._world
        self.opened_at = world.scheduler.seconds
        world.say(f"{self.process} opens a browser")
        world.oracle.browser_opened(self)
        seconds, allow = world.decision()
        if seconds is not None:
            world.scheduler.at(world.scheduler.seconds + seconds, lambda: self._decided(url, allow))

    def _decided(self, url: str, allow: bool) -> None:
        server = next(server for server in self._world.servers.values() if url.startswith(server.issuer))
        self._world.say(f"the person {'allows' if allow else 'denies'} it")
        if self in self.process.listeners:
            self._redirect = server.authorize(url, allow)
            self.claimed = self._redirect is None
            self._world.scheduler.wake(self._task)

    def wait(self, seconds: float) -> str | None:
        if self._redirect is None:
            self._world.scheduler.wait(self._world.scheduler.seconds + seconds)
        return self._redirect


# --- Substitutes ------------------------------------------------------------------------------------------------------


class _Threading:
    """The module `threading`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.RLock = self.Lock = Mutex

    def Event(self) -> Event:
        return Event(self._world.scheduler)

    def Condition(self, lock: object = None) -> Condition:
        return Condition(self._world.scheduler)

    def Thread(
        self, target: Callable[..., object], name: str, args: tuple[Any, ...] = (), daemon: bool = False
    ) -> _Thread:
        return _Thread(self._world, target, name, args)

    def main_thread(self) -> _MainThread:
        return _MainThread(self._world.process)

    def current_thread(self) -> _MainThread:
        return _MainThread(self._world.process)


class _MainThread:
    name = "a thread"

    def __init__(self, process: Process) -> None:
        self._process = process

    def is_alive(self) -> bool:
        return not self._process.main_ended


class _Thread:
    def __init__(self, world: World, target: Callable[..., object], name: str, args: tuple[Any, ...]) -> None:
        self._world = world
        self._run = lambda: target(*args)
        self._name = name
        self._args = args

    def start(self) -> None:
        process = self._world.process
        self.task = self._world.scheduler.spawn(f"{process.name} {self._name}", process, self._run)
        for flight in self._args:
            process.tasks[flight] = self.task


class _Time:
    """The module `time`."""

    def __init__(self, world: World) -> None:
        self._world = world

    def time(self) -> float:
        return self._world.process.wall()

    def monotonic(self) -> float:
        return self._world.process.monotonic()


class _Os:
    """The module `os`."""

    def __init__(self, world: World) -> None:
        self._world = world

    def urandom(self, count: int) -> bytes:
        return self._world.entropy(count)

    def getpid(self) -> int:
        return self._world.process.pid


@contextmanager
def substituted(world: World) -> Generator[None, None, None]:
    """While it lasts, the library's clocks, threads, loops and randomness are the world's."""

    def elapsed() -> float:
        return world.process.elapsed()

    def this_process() -> Holder:
        return Holder(world.process.pid, f"host-{world.process.host.number}", "")

    def in_loop(fly: Callable[[], Awaitable[T]]) -> T:
        return step_through(fly())

    def signal() -> tuple[Callable[[], object], Callable[[], Awaitable[object]]]:
        made = Signal(world.scheduler)

        async def woken() -> None:
            await made

        return made.set, woken

    fakes: list[tuple[ModuleType, str, Any]] = [
        (flights, "threading", _Threading(world)),
        (flights, "monotonic", lambda: world.process.monotonic()),
        (flights, "_SLICE", 5.0),
        (flights, "_signal", signal),
        (later, "threading", _Threading(world)),
        (later, "monotonic", lambda: world.process.monotonic()),
        (later, "_SLICE", 5.0),
        (ports, "time", _Time(world)),
        (ports, "elapsed", elapsed),
        (ports, "SLICE", 5.0),
        (oauth, "os", _Os(world)),
        (oauth, "_in_loop", in_loop),
        (oauth, "holder", lambda: world.process.name),
        (oauth, "JITTER", 0.0),
        (options, "JITTER", 0.0),
        (oauth, "FLIGHTS", None),
        (oauth, "LATER", None),
        (fresh, "LATER", None),
        (oauth, "_unsaved", None),
        (base, "os", _Os(world)),
        (lease, "os", _Os(world)),
        (redis_store, "elapsed", elapsed),
        (redis_store, "this_process", this_process),
        (vault_store, "elapsed", elapsed),
        (vault_store, "this_process", this_process),
        (vault_store, "time", _Time(world)),
    ]
    real = [(module, name, getattr(module, name)) for module, name, _ in fakes]
    log = logging.getLogger("mcp_oauth")
    disabled, log.disabled = log.disabled, True
    try:
        for module, name, fake in fakes:
            setattr(module, name, fake)
        yield
    finally:
        log.disabled = disabled
        for module, name, value in real:
            setattr(module, name, value)


__all__ = ["EPOCH", "KEY", "LOGIN_SECONDS", "Cancelled", "Host", "Process", "Session", "SimulatedOAuth", "substituted"]
