"""Flights: one run for all who ask, lost by no cancellation, stopped only where that is safe (DESIGN 6)."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import linecache
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from itertools import count
from types import FrameType
from typing import Any
from unittest.mock import Mock

import anyio
import pytest
import trio

from mcp_oauth.io import flights as module
from mcp_oauth.io.flights import Flight, Flights, NeedsUser
from tests.io.servers import PATIENCE

Waiter = Callable[..., tuple[Any, bool]]


class Watched(Flights):
    """Flights with threads to wait in, which say when a waiter has taken its seat."""

    def __init__(self, limit: int, threads: ThreadPoolExecutor) -> None:
        super().__init__(limit)
        self.threads = threads
        self.joins = 0
        self.joined = threading.Condition()

    def _join(self, seat: Any) -> None:
        super()._join(seat)
        with self.joined:
            self.joins += 1
            self.joined.notify_all()

    def await_joins(self, joins: int) -> None:
        with self.joined:
            assert self.joined.wait_for(lambda: self.joins >= joins, PATIENCE)

    def call(self, waiter: Waiter, key: str, work: Any, **how: bool) -> Future[tuple[Any, bool]]:
        """Have somebody wait in a thread, and return once he does."""
        before = self.joins
        future = self.threads.submit(waiter, self, key, work, **how)
        self.await_joins(before + 1)
        return future

    def assert_empty(self) -> None:
        """Nothing is left behind: no flight, no waiter, no slot in use, no thread."""
        for thread in threading.enumerate():
            if thread.name == "mcp-oauth flight":
                thread.join(PATIENCE)
                assert not thread.is_alive()
        assert (self._by_key, list(self._queue), self._slots) == ({}, [], set())


def renew(flight: Flight) -> str:
    return "token"


class Work:
    """A renewal that ends when the test says so."""

    def __init__(self) -> None:
        self.runs = 0
        self.flight: Flight
        self.began, self.may_end = threading.Event(), threading.Event()

    def __call__(self, flight: Flight) -> str:
        self.runs += 1
        self.flight = flight
        self.began.set()
        assert self.may_end.wait(PATIENCE)
        return "token"


class Login(Work):
    """A renewal that fails, then a wait for a person, then `Work`."""

    def __init__(self) -> None:
        super().__init__()
        self.renewal_failed, self.asked, self.answer, self.answered = (threading.Event() for _ in range(4))

    def __call__(self, flight: Flight) -> str:
        self.flight = flight
        assert self.renewal_failed.wait(PATIENCE)
        stopping = flight.ask_user()
        self.asked.set()
        while not stopping and not self.answer.is_set():
            stopping = flight.pause(0.001)
        flight.user_answered()
        self.answered.set()
        return "nobody waits" if stopping else super().__call__(flight)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(64) as threads:
        yield threads


@pytest.fixture(params=[4])
def flights(request: pytest.FixtureRequest, threads: ThreadPoolExecutor) -> Iterator[Watched]:
    watched = Watched(request.param, threads)
    yield watched
    watched.assert_empty()


ONE_SLOT = pytest.mark.parametrize("flights", [1], indirect=True, ids=["one-slot"])


def in_asyncio(flights: Flights, key: str, work: Any, **how: bool) -> tuple[Any, bool]:
    return asyncio.run(flights.wait_async(key, work, **how))


def in_trio(flights: Flights, key: str, work: Any, **how: bool) -> tuple[Any, bool]:
    return trio.run(partial(flights.wait_async, key, work, **how))


in_thread: Waiter = Flights.wait
KINDS = pytest.mark.parametrize("waiter", [in_thread, in_asyncio, in_trio], ids=["thread", "asyncio", "trio"])


async def tasks(waiters: int, flights: Flights, work: Work) -> list[tuple[str, bool]]:
    results: list[tuple[str, bool]] = []

    async def waiter() -> None:
        results.append(await flights.wait_async("key", work))

    async with anyio.create_task_group() as group:
        for _ in range(waiters):
            group.start_soon(waiter)
    return results


def test_140_waiters_of_all_kinds_share_one_run(flights: Watched) -> None:
    work = Work()
    loops = [
        flights.threads.submit(partial(anyio.run, tasks, waiters, flights, work, backend=backend))
        for waiters, backend in [(35, "asyncio"), (35, "asyncio"), (30, "trio")]
    ]
    flights.await_joins(100)
    threads = [flights.call(in_thread, "key", work) for _ in range(40)]
    work.may_end.set()
    results = [thread.result(PATIENCE) for thread in threads]
    for loop in loops:
        results += loop.result(PATIENCE)
    assert work.runs == 1
    assert sorted(results) == [("token", False)] * 139 + [("token", True)]


@KINDS
def test_the_work_sees_its_key_and_its_starters_context(flights: Watched, waiter: Waiter) -> None:
    caller: contextvars.ContextVar[str] = contextvars.ContextVar("caller", default="nobody")

    def work(flight: Flight) -> str:
        seen = f"{flight.key} for {caller.get()}"
        caller.set("the work")
        return seen

    for name in ("alice", "bob"):
        caller.set(name)
        assert waiter(flights, "key", work) == (f"key for {name}", True)
        assert caller.get() == name


def test_trio_as_a_guest_of_asyncio_waits_in_trio(flights: Watched) -> None:
    async def main() -> Any:
        loop, ended = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
        trio.lowlevel.start_guest_run(
            partial(flights.wait_async, "key", lambda flight: "trio"),
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=ended.set_result,
        )
        return await flights.wait_async("other key", lambda flight: "asyncio"), (await ended).unwrap()

    assert asyncio.run(main()) == (("asyncio", True), ("trio", True))


async def cancel_task(wait: Callable[[], Any]) -> None:
    task = asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def time_out_wait_for(wait: Callable[[], Any]) -> None:
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(wait(), 0.001)


async def end_the_loop(wait: Callable[[], Any]) -> None:
    task = asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    assert not task.done()


async def cancel_scope(wait: Callable[[], Any]) -> None:
    with anyio.move_on_after(0.001) as scope:
        await wait()
    assert scope.cancelled_caught


CANCELLATIONS = [(cancel, "asyncio") for cancel in (cancel_task, time_out_wait_for, end_the_loop, cancel_scope)]
CANCELLATIONS += [(cancel_scope, "trio")]


@pytest.mark.parametrize(("cancel", "backend"), CANCELLATIONS)
def test_a_cancelled_caller_of_a_renewal_changes_nothing(flights: Watched, cancel: Any, backend: str) -> None:
    work = Work()
    anyio.run(cancel, partial(flights.wait_async, "key", work), backend=backend)
    flight = flights._by_key["key"]
    assert (len(flight._seats), flight.stopping()) == (0, False)
    staying = flights.call(in_thread, "key", work)
    anyio.run(cancel, partial(flights.wait_async, "key", work), backend=backend)
    assert (len(flight._seats), flight.stopping()) == (1, False)
    work.may_end.set()
    assert staying.result(PATIENCE) == ("token", False)


@pytest.mark.parametrize(("when", "runs_on"), [("asked", False), ("answered", True)])
def test_a_login_stops_without_callers_until_it_is_answered(flights: Watched, when: str, runs_on: bool) -> None:
    login = Login()
    login.renewal_failed.set()
    if runs_on:
        login.answer.set()

    async def main() -> None:
        task = asyncio.ensure_future(flights.wait_async("key", login))
        await asyncio.to_thread(getattr(login, when).wait, PATIENCE)
        await cancel_task(lambda: task)

    asyncio.run(main())
    assert login.flight.stopping() is not runs_on
    login.may_end.set()
    flights.assert_empty()
    assert login.runs == runs_on


def test_a_closed_loop_is_ignored(flights: Watched) -> None:
    work = Work()
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)  # "Task was destroyed but it is pending"
    task = loop.create_task(flights.wait_async("key", work))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    staying = flights.call(in_thread, "key", work)
    work.may_end.set()
    assert staying.result(PATIENCE) == ("token", False)
    del task
    gc.collect()


def test_a_waiter_forgotten_under_the_mutex_does_not_deadlock(flights: Watched) -> None:
    """The garbage collector may end a forgotten waiter at any allocation, also at one made under the mutex."""
    work = Work()

    async def main() -> None:
        waiter = flights.wait_async("key", work)
        waiter.send(None)
        with flights._mutex:
            waiter.close()

    asyncio.run(main())
    assert not flights._by_key["key"]._seats
    work.may_end.set()


class RefusedError(Exception):
    def __init__(self, reason: str) -> None:
        super().__init__(f"refused: {reason}")
        self.reason = reason


class KeywordError(Exception):
    def __init__(self, *, reason: str) -> None:
        super().__init__(reason)


def fail(work: Work, error: BaseException, flight: Flight) -> str:
    work(flight)
    raise error from LookupError("the cause")


ERRORS = [RefusedError("no grant"), OSError(5, "disk", "file"), SystemExit(3), KeywordError(reason="no grant")]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_every_waiter_gets_a_copy_of_the_error_if_it_can_be_copied(flights: Watched, error: BaseException) -> None:
    copied = not isinstance(error, KeywordError)
    work = Work()
    kinds: list[Waiter] = [in_thread, in_asyncio, in_trio] * 2
    waiters = [flights.call(waiter, "key", partial(fail, work, error)) for waiter in kinds]
    work.may_end.set()
    got = [waiter.exception(PATIENCE) for waiter in waiters]
    assert len({id(own) for own in (error, *got)}) == (7 if copied else 1)
    for own in got:
        assert own is not None
        assert (type(own), own.args, str(own), vars(own)) == (type(error), error.args, str(error), vars(error))
        assert isinstance(own.__cause__, LookupError)
        frames = [frame.name for frame in traceback.extract_tb(own.__traceback__)]
        assert frames[-1] == "fail"
        assert frames.count("_raise") == 1 or not copied


def test_more_flights_than_slots_all_land(flights: Watched) -> None:
    four_at_once = threading.Barrier(4)
    running = threading.Semaphore(4)

    def work(flight: Flight) -> str:
        assert running.acquire(blocking=False), "a fifth flight at once"
        four_at_once.wait(PATIENCE)
        running.release()
        return f"token of {flight.key}"

    waiters = [flights.call(in_thread, str(n), work) for n in range(40)]
    assert [waiter.result(PATIENCE) for waiter in waiters] == [(f"token of {n}", True) for n in range(40)]


@ONE_SLOT
def test_a_paused_flight_lends_its_slot(flights: Watched) -> None:
    """A ring of flights, each waiting for the next, gets on with a single slot."""
    landed = [threading.Event() for _ in range(10)]
    running = threading.Semaphore(1)

    def work(flight: Flight) -> str:
        n = int(str(flight.key))
        while not (n == 9 or landed[n + 1].is_set()):
            assert not flight.pause(0.001)
            assert running.acquire(blocking=False), "a second flight at once"
            landed[n + 1].wait(0.001)
            running.release()
        landed[n].set()
        return "token"

    waiters = [flights.call(in_thread, str(n), work) for n in range(10)]
    assert [waiter.result(PATIENCE) for waiter in waiters] == [("token", True)] * 10


@ONE_SLOT
def test_a_person_who_does_not_answer_blocks_no_renewal(flights: Watched) -> None:
    renewed = threading.Event()
    login = flights.call(in_thread, "login", lambda flight: (flight.ask_user(), renewed.wait(PATIENCE)))
    assert flights.call(in_thread, "renewal", renew).result(PATIENCE) == ("token", True)
    renewed.set()
    assert login.result(PATIENCE) == ((False, True), True)


@ONE_SLOT
def test_a_queued_flight_that_nobody_wants_any_more_is_dropped(flights: Watched) -> None:
    flying, queued = Work(), Work()
    staying = flights.call(in_thread, "flying", flying)
    anyio.run(cancel_task, partial(flights.wait_async, "queued", queued))
    assert list(flights._by_key) == ["flying"]
    flying.may_end.set()
    assert staying.result(PATIENCE) == ("token", True)
    assert queued.runs == 0


@KINDS
def test_the_impatient_are_released_when_a_person_is_needed(flights: Watched, waiter: Waiter) -> None:
    login = Login()
    patient = flights.call(in_thread, "key", login)
    impatient = flights.call(waiter, "key", login, patient=False)
    login.renewal_failed.set()
    with pytest.raises(NeedsUser):
        impatient.result(PATIENCE)
    assert login.asked.wait(PATIENCE)
    with pytest.raises(NeedsUser):
        flights.call(waiter, "key", login, patient=False).result(PATIENCE)
    login.answer.set()
    assert login.answered.wait(PATIENCE)
    late = flights.call(waiter, "key", login, patient=False)
    login.may_end.set()
    assert patient.result(PATIENCE) == ("token", True)
    assert late.result(PATIENCE) == ("token", False)


@KINDS
def test_whose_work_it_is_waits_for_the_person(flights: Watched, waiter: Waiter) -> None:
    """Impatience is with the work of others: one's own decides by itself whether to ask anybody."""
    login = Login()
    own = flights.call(waiter, "key", login, patient=False)
    login.renewal_failed.set()
    assert login.asked.wait(PATIENCE)
    login.answer.set()
    login.may_end.set()
    assert own.result(PATIENCE) == ("token", True)


@KINDS
def test_who_joins_a_flight_given_up_gets_a_run_of_his_own(flights: Watched, waiter: Waiter) -> None:
    left, asked, landing = threading.Event(), threading.Event(), threading.Event()
    told_to_stop: list[bool] = []

    def given_up(flight: Flight) -> None:
        assert left.wait(PATIENCE)
        told_to_stop.append(flight.ask_user())
        asked.set()
        assert landing.wait(PATIENCE)

    with pytest.raises((TimeoutError, asyncio.TimeoutError)):
        asyncio.run(asyncio.wait_for(flights.wait_async("key", given_up), 0.01))
    left.set()
    assert asked.wait(PATIENCE)
    joined = flights.call(waiter, "key", renew)
    landing.set()
    assert joined.result(PATIENCE) == ("token", True)
    assert told_to_stop == [True]


NO_THREADS = Mock(side_effect=RuntimeError("can't start new thread"))


@KINDS
def test_without_threads_the_callers_own_does_the_work(
    flights: Watched, monkeypatch: pytest.MonkeyPatch, waiter: Waiter
) -> None:
    monkeypatch.setattr(threading.Thread, "start", NO_THREADS)
    assert waiter(flights, "key", lambda flight: threading.get_ident()) == (threading.get_ident(), True)


@ONE_SLOT
def test_without_threads_a_pause_runs_who_is_queued(flights: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    running = Work()

    def pausing(flight: Flight) -> int:
        running(flight)
        flight.pause(0)
        return threading.get_ident()

    waiters = [flights.call(in_thread, "pausing", pausing)]
    waiters += [flights.call(in_thread, "queued", lambda flight: threading.get_ident())]
    monkeypatch.setattr(threading.Thread, "start", NO_THREADS)
    running.may_end.set()
    assert len({waiter.result(PATIENCE) for waiter in waiters}) == 1


@ONE_SLOT
def test_after_the_main_thread_nobody_pauses_or_queues(flights: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Work()
    waiting = flights.call(in_thread, "pausing", lambda flight: flight.pause(3600))
    holding_the_slot = flights.call(in_thread, "other", other)
    assert other.began.wait(PATIENCE)
    monkeypatch.setattr(threading, "main_thread", threading.Thread)  # one that does not run
    assert waiting.result(PATIENCE) == (True, True)
    other.may_end.set()
    assert holding_the_slot.result(PATIENCE) == ("token", True)


def at_line(n: int, hook: Callable[[FrameType], None], call: Callable[[], tuple[str, bool]]) -> bool:
    """Run `call`, and `hook` before the n-th line of the module, counted over all threads; False: it has fewer."""
    lines = count()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename != module.__file__:
            return None
        if event == "line" and next(lines) == n:
            hook(frame)
        return trace

    before, before_in_threads = sys.gettrace(), threading.gettrace()
    sys.settrace(trace)
    threading.settrace(trace)
    try:
        assert call()[0] == "token"
    finally:
        sys.settrace(before)
        threading.settrace(before_in_threads)
    return next(lines) > n


def renew_then_log_in(flight: Flight) -> str:
    stopping = flight.pause(0) or flight.ask_user()
    flight.user_answered()
    return "stopped" if stopping else "token"


def leave(flights: Flights, key: str, work: Any) -> tuple[str, bool]:
    with suppress(NeedsUser):
        asyncio.run(cancel_task(partial(flights.wait_async, key, work, patient=False)))
    return "token", False


@pytest.mark.parametrize("other", [in_thread, in_asyncio, leave])
@pytest.mark.parametrize("key", ["key", "other key"])
def test_another_caller_at_every_line(threads: ThreadPoolExecutor, other: Waiter, key: str) -> None:
    for n in count():
        flights = Watched(1, threads)
        waiting: list[Future[tuple[Any, bool]]] = []

        def interfere(frame: FrameType, flights: Watched = flights, waiting: list[Any] = waiting) -> None:
            waiting.append(flights.threads.submit(other, flights, key, renew_then_log_in))
            wait(waiting, timeout=0.005)  # as far as it gets: this thread may hold the mutex

        came = at_line(n, interfere, partial(flights.wait, "key", renew_then_log_in))
        assert all(future.result(PATIENCE)[0] == "token" for future in waiting)
        flights.assert_empty()
        if not came:
            break


def test_ctrl_c_at_every_line(threads: ThreadPoolExecutor) -> None:
    def interrupt(frame: FrameType) -> None:
        line = linecache.getline(module.__file__, frame.f_lineno).lstrip()
        own_thread = threading.current_thread() is threading.main_thread()
        if own_thread and not line.startswith("with "):  # at a block's end CPython lets no signal in
            raise KeyboardInterrupt

    for n in count():
        came, flights = True, Watched(1, threads)
        with suppress(KeyboardInterrupt):
            came = at_line(n, interrupt, partial(flights.wait, "key", renew))
        assert flights.threads.submit(flights.wait, "key", renew).result(PATIENCE)[0] == "token"
        flights.assert_empty()
        if not came:
            break
