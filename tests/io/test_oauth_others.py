"""`BaseOAuth` among others: one run for all, and nothing lost by who leaves, forks or waits (RULES 4)."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import Any

import anyio
import anyio.to_thread
import pytest
from msgspec.structs import replace

from mcp_oauth.io import oauth as module
from mcp_oauth.sansio.errors import Reason
from mcp_oauth.sansio.grant import Token, encode
from mcp_oauth.sansio.keeping import Outcome
from mcp_oauth.sansio.steps import Done, Ensured, How, Need, NotEnsured, Notice
from mcp_oauth.store.base import Held
from mcp_oauth.store.memory import MemoryStore
from tests.io.plain import Nobody, Plain, Slow, Watched, lock_is_free, settle
from tests.io.servers import PATIENCE, World, key_of, put_grant, stored, stored_refresh_token

pytestmark = pytest.mark.usefixtures("nothing_is_left_of_flights")


# --- Others in this process and beside it -----------------------------------------------------------------------------


def landed(token: Token | None, how: How, could_login: bool = False) -> Any:
    return module._Landed(Done(Outcome(how, token)), could_login)


OLD = Token("old", "https://as.example", "old", 0.0, None, ("a",), None)
NEW = Token("new", "https://as.example", "new", 0.0, None, ("a", "b"), None)


@pytest.mark.parametrize(
    ("need", "other", "suits"),
    [
        (Need("expiring", unlike="old"), landed(NEW, "renewed"), True),
        (Need("refused", unlike="new"), landed(NEW, "renewed"), False),
        (Need("scope", unlike="old", scopes=("b",)), landed(NEW, "renewed"), True),
        (Need("scope", scopes=("c",)), landed(NEW, "login"), False),
        (Need("forced"), landed(NEW, "stored"), False),
        (Need("forced"), landed(NEW, "login"), True),
        (Need("refused"), landed(None, "none"), False),
        (Need("refused"), landed(None, "none", could_login=True), False),
        (Need("expiring"), landed(None, "none"), True),
    ],
    ids=[
        "renewed",
        "the-refused-one",
        "scopes",
        "too-few-scopes",
        "no-login",
        "login",
        "none",
        "no-luck",
        "none-asked",
    ],
)
def test_a_caller_takes_what_another_ones_run_brought_if_it_serves(
    world: World, need: Need, other: Any, suits: bool
) -> None:
    trip = module._Trip(Plain(world), need)
    trip.landed(other, False)
    assert (trip.result is not None) is suits


def test_a_caller_whom_others_runs_never_serve_gives_up(world: World) -> None:
    trip = module._Trip(Plain(world), Need("forced"))
    for _ in range(module.MOST_FLIGHTS):
        assert trip.result is None
        trip.landed(landed(NEW, "stored"), False)
    assert isinstance(trip.result, NotEnsured)
    assert trip.result.failure.reason is Reason.STORE_CONTENDED


def test_RULES_4_4_a_busy_lock_is_waited_for_and_another_processs_token_is_taken(world: World) -> None:
    store, told = MemoryStore(), list[str]()
    put_grant(store, world)
    record = stored(store, world)
    lease = store.try_lock(key_of(world))
    assert record is not None
    assert not isinstance(lease, Held)

    def other_process(notice: Notice) -> None:
        """Renews, and lets the lock go."""
        told.append(notice.name)
        access = json.loads(world.issue().body)["access_token"]
        grant = replace(record.grants[0], access_token=access, refresh_token=world.refresh_token, expires_at=None)
        newer = encode(replace(record, revision="second", grants=(grant,)))
        store.save(key_of(world), newer, revision="second", expected="first")

    with lease:
        ensured = Plain(world, store=store, on_notice=other_process).ensure(Need("expiring"))
    assert told == ["lock-busy"]
    assert isinstance(ensured, Ensured)
    assert (ensured.how, world.refreshes) == ("stored", 0)


END = """
import threading
from tests.io.servers import World, key_of, put_grant
from tests.io.plain import Plain, Watched

world, store, told = World(), Watched(), threading.Event()
put_grant(store, world)
lease = store.try_lock(key_of(world))
oauth = Plain(world, store=store, on_notice=lambda notice: told.set())
threading.Thread(target=oauth.authorize, daemon=True).start()
assert told.wait(20)
"""


def test_a_program_that_ends_waits_for_nobodys_lock() -> None:
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", END], check=True, timeout=60, capture_output=True)
    assert time.monotonic() - began < 15  # a lock is waited for 30 seconds


# --- Cancellation (acceptance 9) --------------------------------------------------------------------------------------


class Gate:
    """Stops the flight at its n-th event, until the caller has been cancelled."""

    def __init__(self, n: int) -> None:
        self.n, self.numbers = n, count()
        self.event = ""
        self.reached, self.open = threading.Event(), threading.Event()

    def __call__(self, event: str) -> None:
        if next(self.numbers) == self.n:
            self.event = event
            self.reached.set()
            assert self.open.wait(PATIENCE)


async def reached(gate: Gate, ended: threading.Event) -> None:
    """Wait until the flight is at the gate, or has passed them all."""

    def wait() -> None:
        while not (gate.reached.wait(0.01) or ended.is_set()):
            pass

    await anyio.to_thread.run_sync(wait)


async def cancel_task(gate: Gate, call: Callable[[], Any]) -> bool:
    ended = threading.Event()
    task = asyncio.ensure_future(call())
    task.add_done_callback(lambda _: ended.set())
    await reached(gate, ended)
    task.cancel()
    await asyncio.wait([task])
    return not task.cancelled()


async def wait_for(gate: Gate, call: Callable[[], Any]) -> bool:
    try:
        await asyncio.wait_for(call(), 0.02)
    except asyncio.TimeoutError:
        return False
    return True


async def cancel_scope(gate: Gate, call: Callable[[], Any]) -> bool:
    ended = threading.Event()

    async def caller() -> None:
        await call()
        ended.set()

    async with anyio.create_task_group() as group:
        group.start_soon(caller)
        await reached(gate, ended)
        group.cancel_scope.cancel()
    return ended.is_set()


KINDS = [(cancel_task, "asyncio"), (wait_for, "asyncio"), (cancel_scope, "asyncio"), (cancel_scope, "trio")]


def cancelled_at(n: int, cancel: Any, backend: str, seeded: bool, later: bool) -> tuple[str, bool]:
    """Cancel a caller at the n-th event of its flight, judge what is left, and say whether it had ended before."""
    world, store, gate = World(), Watched(), Gate(n)
    if seeded:
        put_grant(store, world)
    oauth = Plain(world, store=store)
    store.watch = world.before = gate

    async def main() -> bool:
        ended: bool = await cancel(gate, oauth.aauthorize)
        gate.open.set()
        if later:
            await anyio.to_thread.run_sync(settle)
        with anyio.fail_after(PATIENCE):
            token = await oauth.aauthorize()
        assert token.access_token in world.valid
        return ended

    ended = anyio.run(main, backend=backend)
    settle()
    assert (world.reuses, stored_refresh_token(store, world)) == (0, world.refresh_token)
    assert world.refreshes == (1 if seeded else 0)
    assert world.logins <= (0 if seeded else 2)
    record = stored(store, world)
    assert record is not None
    assert record.login is None
    assert lock_is_free(store, world)
    return gate.event, ended


@pytest.mark.parametrize(("cancel", "backend"), KINDS, ids=[f"{kind.__name__}-{backend}" for kind, backend in KINDS])
@pytest.mark.parametrize("seeded", [True, False], ids=["renewal", "login"])
@pytest.mark.parametrize("later", [True, False], ids=["next-comes-later", "next-joins"])
def test_a_caller_cancelled_at_any_event_loses_nothing_and_leaves_nothing(
    cancel: Any, backend: str, seeded: bool, later: bool
) -> None:
    events = []
    for n in range(60):
        event, ended = cancelled_at(n, cancel, backend, seeded, later)
        events.append(event)
        if ended:
            break
    assert ended
    assert set(events) > ({"load", "locked", "token", "save", "saved"} if seeded else {"register", "login", "token"})


def test_a_caller_cancelled_before_it_waits_starts_nothing_that_is_lost(world: World) -> None:
    store = MemoryStore()
    put_grant(store, world)
    oauth = Plain(world, store=store)

    async def main() -> None:
        with anyio.move_on_after(0):
            await oauth.aauthorize()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await oauth.aauthorize()
        assert (await oauth.aauthorize()).access_token in world.valid

    for backend in ("asyncio", "trio"):
        anyio.run(main, backend=backend)
    settle()
    assert (world.refreshes, world.reuses) == (1, 0)


# --- Fork -------------------------------------------------------------------------------------------------------------

FORK = """
import os, sys, warnings
from mcp_oauth.io import oauth as module
from mcp_oauth.sansio.steps import Ensured, Need
from tests.io.servers import World, put_grant, stored
from tests.io.plain import Failing, Plain

world, store = World(), Failing()
put_grant(store, world)
def break_down(stage): store.failing = {"save"}
world.before = break_down
one = Plain(world, store=store, interactive=False)
one.authorize()
assert len(module._unsaved) == 1
store.failing = set()
warnings.simplefilter("ignore")
child = os.fork()
if child == 0:
    assert (module._unsaved, stored(store, world)) == ({}, None)
    assert one.ensure(Need("missing")) == Ensured(None, "none")
    Plain(world).authorize()
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
Plain(world, store=store, interactive=False).authorize()
assert module._unsaved == {} and world.reuses == 0
"""


def test_a_forked_child_owns_no_token_and_works() -> None:
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=60)


# --- A refused token while another request's login waits in the browser (RULES 4.13) ----------------------------------


def ask(oauth: Plain, need: Need, backend: str | None) -> Ensured | NotEnsured:
    return oauth.ensure(need) if backend is None else anyio.run(oauth.ensure_async, need, backend=backend)


@pytest.mark.parametrize("backend", [None, "asyncio", "trio"])
class TestRefusedDuringALogin:
    @pytest.fixture
    def store(self, world: World) -> MemoryStore:
        store = MemoryStore()
        put_grant(store, world, expires_in=3600.0)
        return store

    @pytest.fixture
    def person(self, world: World) -> Slow:
        return Slow(world)

    @pytest.fixture
    def login(self, world: World, store: MemoryStore, person: Slow) -> Iterator[Future[Ensured | NotEnsured]]:
        """A step-up that waits in the browser, for as long as the person does."""
        oauth = Plain(world, store=store, user=person)
        with ThreadPoolExecutor() as threads:
            waiting = threads.submit(oauth.ensure, Need("scope", scopes=("more",)))
            assert person.shown.wait(PATIENCE)
            try:
                yield waiting
            finally:
                person.may_answer.set()

    @pytest.fixture
    def refused(self, world: World, store: MemoryStore) -> Need:
        """The server refuses the stored token."""
        token = Plain(world, store=store).ensure(Need("missing"))
        assert isinstance(token, Ensured)
        assert token.token is not None
        world.valid.clear()
        return Need("refused", unlike=token.token.fingerprint)

    @pytest.mark.parametrize("interactive", [True, False], ids=["RULES-4.13-attended", "RULES-4.13-unattended"])
    def test_it_is_renewed_at_once(
        self,
        world: World,
        store: MemoryStore,
        person: Slow,
        refused: Need,
        login: Future[Ensured | NotEnsured],
        interactive: bool,
        backend: str | None,
    ) -> None:
        renewed = ask(Plain(world, store=store, user=Nobody(), interactive=interactive), refused, backend)
        assert not login.done()
        assert isinstance(renewed, Ensured)
        assert renewed.token is not None
        assert (renewed.how, renewed.token.access_token in world.valid) == ("renewed", True)
        person.may_answer.set()
        stepped_up = login.result(PATIENCE)
        assert isinstance(stepped_up, Ensured)
        assert stepped_up.token is not None
        assert (stepped_up.how, stepped_up.token.requested) == ("login", ("more",))
        assert (world.refreshes, world.reuses, world.logins) == (1, 0, 1)
        assert stored_refresh_token(store, world) == world.refresh_token

    def test_RULES_4_13_where_that_brings_nothing_the_login_is_waited_for(
        self,
        world: World,
        store: MemoryStore,
        person: Slow,
        refused: Need,
        login: Future[Ensured | NotEnsured],
        backend: str | None,
    ) -> None:
        world.refresh_token = "CANARY-revoked"
        oauth = Plain(world, store=store, user=Nobody())
        asked: list[str] = []

        def answer(stage: str) -> None:
            """The person answers no sooner than the refresh token is presented."""
            asked.append(stage)
            if stage == "token":
                person.may_answer.set()

        world.before = answer
        ensured, stepped_up = ask(oauth, refused, backend), login.result(PATIENCE)
        assert sorted(asked[-3:]) == ["login", "token", "token"]
        assert isinstance(ensured, Ensured)
        assert isinstance(stepped_up, Ensured)
        assert (ensured.token, stepped_up.how) == (oauth.token, "login")
        assert ensured.token == stepped_up.token
        assert (world.refreshes, world.reuses, world.logins) == (0, 1, 1)

    def test_FN_47_unattended_it_waits_for_nobody(
        self,
        world: World,
        store: MemoryStore,
        refused: Need,
        login: Future[Ensured | NotEnsured],
        backend: str | None,
    ) -> None:
        world.refresh_token = "CANARY-revoked"
        oauth = Plain(world, store=store, user=Nobody(), interactive=False)
        ensured = ask(oauth, refused, backend)
        assert not login.done()
        assert isinstance(ensured, NotEnsured)
        assert ensured.failure.reason is Reason.AUTHORIZATION_REQUIRED
        assert (world.reuses, world.logins) == (1, 0)


@pytest.mark.parametrize("backend", [None, "asyncio", "trio"])
@pytest.mark.parametrize("interactive", [True, False], ids=["RULES-4.13-attended", "RULES-4.13-unattended"])
def test_during_the_first_login_a_request_goes_out_without_a_token(
    world: World, interactive: bool, backend: str | None
) -> None:
    store, person = MemoryStore(), Slow(world)
    with ThreadPoolExecutor() as threads:
        login = threads.submit(Plain(world, store=store, user=person).authorize)
        assert person.shown.wait(PATIENCE)
        oauth = Plain(world, store=store, user=Nobody(), interactive=interactive)
        assert ask(oauth, Need("missing"), backend) == Ensured(None, "none")
        assert not login.done()
        person.may_answer.set()
        assert login.result(PATIENCE).access_token in world.valid
