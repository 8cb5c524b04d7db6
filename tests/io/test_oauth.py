"""`BaseOAuth` over a world without HTTP: one run for all, nothing lost, nothing told that is secret (RULES 3, 4)."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from typing import Any
from urllib.parse import parse_qs

import anyio
import anyio.to_thread
import pytest
from msgspec.structs import replace

from mcp_oauth.exceptions import (
    AuthorizationRequired,
    ConfigurationError,
    OAuthError,
    TokenRefreshError,
    TokenStorageError,
    from_failure,
)
from mcp_oauth.io import oauth as module
from mcp_oauth.io.flights import FLIGHTS
from mcp_oauth.io.oauth import BaseOAuth, Sender
from mcp_oauth.io.ports import Answer
from mcp_oauth.sansio.errors import Reason, failure
from mcp_oauth.sansio.grant import GrantRecord, Token, encode
from mcp_oauth.sansio.keeping import Outcome
from mcp_oauth.sansio.messages import Response
from mcp_oauth.sansio.plan import Dynamic, PreRegistered
from mcp_oauth.sansio.steps import Done, Ensured, How, Need, NotEnsured, Notice, Send
from mcp_oauth.store.base import Conflict, Held, Lease, Saved, Stored, StoreError
from mcp_oauth.store.choose import AutoStore
from mcp_oauth.store.memory import MemoryStore
from tests.io.servers import PATIENCE, Reply, Seen, World, document, key_of, put_grant, stored, stored_refresh_token


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


@pytest.fixture
def world() -> World:
    return World()


def settle() -> None:
    """Wait until all flights have landed, and see that nothing is left of them."""
    for thread in threading.enumerate():
        if thread.name.startswith("mcp-oauth"):
            thread.join(PATIENCE)
            assert not thread.is_alive(), thread
    assert (FLIGHTS._by_key, list(FLIGHTS._queue), FLIGHTS._slots) == ({}, [], set())


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    settle()
    for thread in set(threading.enumerate()) - before:
        if not thread.daemon:  # trio keeps its idle worker threads for a while
            thread.join(PATIENCE)
            assert not thread.is_alive(), thread
    assert module._unsaved == {}


def lock_is_free(store: Any, world: World) -> bool:
    lease: Lease | Held = MemoryStore.try_lock(store, key_of(world))
    if isinstance(lease, Held):
        return False
    with lease:
        return True


# --- What it is -------------------------------------------------------------------------------------------------------


def test_an_option_that_there_is_not_is_refused(world: World) -> None:
    with pytest.raises(TypeError, match="Plain has no option 'interactiv'"):
        Plain(world, interactiv=False)


@pytest.mark.parametrize(
    "options",
    [
        {"scopes": ['"']},
        {"token_params": {"resource": "x"}},
        {"client": PreRegistered("client", auth_method="client_secret_basic")},
        {"resource": "relative"},
    ],
)
def test_an_option_that_cannot_be_is_refused(world: World, options: Any) -> None:
    with pytest.raises(ConfigurationError):
        Plain(world, **options)


def test_the_server_url_must_be_one() -> None:
    with pytest.raises(ConfigurationError):
        Plain(World("ftp://mcp.example"))


def test_options_become_a_plan(world: World) -> None:
    plan = Plain(world, scopes="a b", client=[PreRegistered("client"), Dynamic("name")], account="me")._plan
    assert (plan.scopes, plan.account, plan.preregistered) == (("a", "b"), "me", PreRegistered("client"))
    assert plan.dynamic == Dynamic("name")
    assert Plain(world, client=PreRegistered("client"))._plan.dynamic is None
    assert Plain(world)._plan.dynamic == Dynamic()


def test_the_given_store_is_used_even_if_it_counts_as_false(world: World) -> None:
    class Sized(MemoryStore):
        def __len__(self) -> int:
            return len(self.keys())

    store = Sized()
    Plain(world, store=store).authorize()
    assert stored_refresh_token(store, world) == world.refresh_token


def test_without_a_store_the_best_of_this_system_is_used(world: World) -> None:
    assert isinstance(Plain(world, store=None)._store, AutoStore)


def test_FN_54_its_repr_shows_no_secret_and_it_cannot_be_copied(world: World) -> None:
    oauth = Plain(world, account="me")
    oauth.authorize()
    assert repr(oauth) == "Plain('https://mcp.example/mcp', account='me')"
    assert "CANARY" not in repr(oauth.token)
    for duplicate in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="holds a token"):
            duplicate(oauth)


@pytest.mark.parametrize("reason", list(Reason))
def test_errors_survive_a_pickle(reason: Reason) -> None:
    error = from_failure(failure(reason, "message", url="https://as.example/x?code=CANARY"))
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.failure, str(again)) == (type(error), error.failure, str(error))
    assert (again.reason, again.stage, again.url) == (reason, reason.stage, "https://as.example/x")
    assert (again.cure, again.status, again.oauth_error, again.attempts) == (reason.cure, None, None, ())


# --- What programs call -----------------------------------------------------------------------------------------------


def test_FN_28_authorize_needs_no_challenge(world: World) -> None:
    oauth = Plain(world)
    token = oauth.authorize()
    assert token == oauth.token == oauth.authorize() == anyio.run(oauth.aauthorize)
    assert world.logins == 1
    assert oauth.authorize(force=True) != token
    assert world.logins == 2


@pytest.mark.parametrize("backend", ["asyncio", "trio", None])
def test_logout_revokes_and_forgets(world: World, backend: str | None) -> None:
    store = MemoryStore()
    oauth = Plain(world, store=store)
    oauth.authorize()
    told = oauth.logout() if backend is None else anyio.run(oauth.alogout, backend=backend)
    assert [one.failure for one in told.revoked] == [None, None]
    record = stored(store, world)
    assert record is not None
    assert record.logged_out
    assert oauth.token is None
    assert len(world.at("/revoke")) == 2


def test_logout_tells_that_the_store_failed(world: World) -> None:
    store = Failing()
    put_grant(store, world)
    store.failing = {"load"}
    with pytest.raises(TokenStorageError):
        Plain(world, store=store).logout()


def test_two_objects_for_one_grant_share_it(world: World) -> None:
    store = MemoryStore()
    one, other = Plain(world, store=store), Plain(world, store=store)
    token = one.authorize()
    assert other.ensure(Need("missing")) == Ensured(token, "stored")
    assert Plain(world, store=store, account="other").ensure(Need("missing")) == Ensured(None, "none")


# --- No person (FN 47) ------------------------------------------------------------------------------------------------


class Nobody:
    """A user who must not be asked."""

    def listen(self, redirect_uri: str, port: int | None) -> Any:
        raise AssertionError


def test_FN_47_interactive_false_raises_before_any_listener(world: World) -> None:
    oauth = Plain(world, user=Nobody(), interactive=False)
    with pytest.raises(AuthorizationRequired):
        oauth.authorize()
    with pytest.raises(AuthorizationRequired):
        anyio.run(oauth.aauthorize)
    assert world.at("/register") == []


class Slow:
    """A person who takes as long as the test wants."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.shown, self.may_answer = threading.Event(), threading.Event()

    def __call__(self, url: str) -> str:
        self.shown.set()
        assert self.may_answer.wait(PATIENCE)
        return self.world.login(url)


def test_RULES_4_13_a_login_under_way_stalls_no_renewal_and_nobody_who_cannot_wait(world: World) -> None:
    store = MemoryStore()
    put_grant(store, world, expires_in=0.0)
    person = Slow(world)
    one = Plain(world, store=store, user=person)
    unattended = Plain(world, store=store, user=Nobody(), interactive=False)
    with ThreadPoolExecutor() as threads:
        login = threads.submit(one.ensure, Need("scope", scopes=("more",)))
        assert person.shown.wait(PATIENCE)
        refused = unattended.ensure(Need("asked", may_renew=False))
        renewed = [each.ensure(Need("expiring")) for each in (one, unattended)]
        arenewed = anyio.run(one.ensure_async, Need("expiring"))
        assert not login.done()
        person.may_answer.set()
        stepped_up = login.result(PATIENCE)
    assert isinstance(refused, NotEnsured)
    assert refused.failure.reason is Reason.AUTHORIZATION_REQUIRED
    assert [each.how for each in renewed if isinstance(each, Ensured)] == ["renewed", "stored"]
    assert isinstance(arenewed, Ensured)
    assert arenewed == renewed[0], "it is this process's own until a server has accepted it"
    assert isinstance(stepped_up, Ensured)
    assert stepped_up.token is not None
    assert (world.refreshes, world.reuses, stepped_up.token.requested) == (1, 0, ("more",))


def test_an_application_that_fails_withdraws_its_login(world: World) -> None:
    """RULES 4.13: the next login need not wait for a claim that nobody keeps."""
    store = MemoryStore()

    def allow(*_: Any) -> bool:
        raise KeyError("CANARY")

    for options in ({"allow_issuer": allow}, {"user": Nobody()}):
        with pytest.raises(OAuthError) as caught:
            Plain(world, store=store, **options).authorize()
        assert "CANARY" not in str(caught.value)
        record = stored(store, world)
        assert record is not None
        assert record.login is None


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
from tests.io.test_oauth import Plain, Watched

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


# --- Stores that fail (RULES 4.11) ------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [StoreError, KeyError], ids=["StoreError", "against-its-contract"])
@pytest.mark.parametrize("outage", [{"save"}, {"save", "load"}], ids=["no-save", "down"])
def test_RULES_4_11_a_rotated_token_is_pinned_and_saved_at_the_next_chance(
    world: World, error: type[Exception], outage: set[str]
) -> None:
    store, told = Failing(error), list[str]()
    put_grant(store, world)
    oauth = Plain(world, store=store, interactive=False, on_notice=lambda notice: told.append(notice.name))

    def break_down(stage: str) -> None:
        store.failing = outage

    world.before = break_down
    token = oauth.authorize()
    assert (told, token.access_token in world.valid) == (["not-persisted"], True)
    assert isinstance(oauth.ensure(Need("refused", unlike=token.fingerprint)), NotEnsured)  # still out of order
    world.before = lambda stage: None
    store.failing = set()
    again = Plain(world, store=store, interactive=False).authorize()
    assert again.access_token in world.valid
    assert (stored_refresh_token(store, world), world.reuses) == (world.refresh_token, 0)


def test_a_store_that_cannot_be_read_gives_the_typed_error(world: World) -> None:
    store = Failing()
    store.failing = {"load"}
    with pytest.raises(TokenStorageError, match="out of order"):
        Plain(world, store=store).authorize()


class Quoting(World):
    """Refuses, and quotes what it was sent."""

    def _token(self, seen: Seen) -> Reply:
        form = parse_qs(seen.body.decode())
        return document({"error": "server_confused", "error_description": form["refresh_token"][0]}, 400)


def test_FN_5_a_renewal_that_is_refused_gives_the_typed_error_and_keeps_the_grant() -> None:
    world, store = Quoting(), MemoryStore()
    put_grant(store, world)
    before = world.refresh_token

    with pytest.raises(TokenRefreshError) as caught:
        Plain(world, store=store, interactive=False).authorize()
    assert "CANARY" not in f"{caught.value!r} {caught.value}"
    assert stored_refresh_token(store, world) == before


# --- What is told (FN 54) ---------------------------------------------------------------------------------------------


def test_notices_go_to_the_logger_and_to_on_notice(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    told: list[Notice] = []
    oauth = Plain(world, on_notice=told.append)
    oauth.authorize()
    oauth.logout()
    assert [notice.name for notice in told] == ["issuer-first-used", "registered", "logged-in", "revoked", "revoked"]
    logged = [
        record.message for record in caplog.records if record.name == "mcp_oauth" and record.levelno > logging.DEBUG
    ]
    assert logged == [f"{notice.name}: {notice.message}" for notice in told]
    assert "CANARY" not in caplog.text


def test_an_on_notice_that_fails_ends_no_run(world: World, caplog: pytest.LogCaptureFixture) -> None:
    def fail(notice: Notice) -> None:
        raise ZeroDivisionError

    assert Plain(world, on_notice=fail).authorize().access_token in world.valid
    assert "on_notice failed" in caplog.text


# --- Fork -------------------------------------------------------------------------------------------------------------

FORK = """
import os, sys, warnings
from mcp_oauth.io import oauth as module
from mcp_oauth.sansio.steps import Ensured, Need
from tests.io.servers import World, put_grant, stored
from tests.io.test_oauth import Failing, Plain

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


# --- Forgetting a client, and what is only in memory ------------------------------------------------------------------


class TestEnds:
    @pytest.mark.parametrize("backend", [None, "asyncio", "trio"])
    def test_FN_31_forget_client_keeps_the_tokens_and_the_next_login_registers_anew(
        self, world: World, backend: str | None
    ) -> None:
        oauth = Plain(world)
        token = oauth.authorize()
        oauth.authorize(force=True)
        assert len(world.at("/register")) == 1
        token = oauth.authorize()
        forgotten = oauth.forget_client() if backend is None else anyio.run(oauth.aforget_client, backend=backend)
        assert forgotten == (world.origin,)
        assert oauth.authorize() == token == oauth.token
        assert len(world.at("/register")) == 1
        oauth.authorize(force=True)
        assert len(world.at("/register")) == 2
        oauth.authorize(force=True)
        assert len(world.at("/register")) == 2

    def test_FN_31_without_a_registration_there_is_none_to_forget(self, world: World) -> None:
        assert Plain(world).forget_client() == ()
        oauth = Plain(world, client=PreRegistered("client", redirect_uri="http://127.0.0.1/callback"))
        oauth.authorize()
        assert anyio.run(oauth.aforget_client) == ()

    def test_FN_31_forget_client_tells_that_the_store_failed(self, world: World) -> None:
        store = Failing()
        put_grant(store, world)
        store.failing = {"save"}
        oauth = Plain(world, store=store)
        with pytest.raises(TokenStorageError):
            oauth.forget_client()
        with pytest.raises(TokenStorageError):
            anyio.run(oauth.aforget_client)

    @pytest.mark.parametrize("backend", [None, "asyncio", "trio"])
    def test_FN_52_a_logout_revokes_what_the_store_would_not_take(self, world: World, backend: str | None) -> None:
        store = Failing()
        put_grant(store, world)
        oauth = Plain(world, store=store)

        def break_down(stage: str) -> None:
            store.failing = {"save"}

        world.before = break_down
        token = oauth.authorize()
        assert stored_refresh_token(store, world) != world.refresh_token
        world.before, store.failing = lambda stage: None, set()
        told = oauth.logout() if backend is None else anyio.run(oauth.alogout, backend=backend)
        assert [one.failure for one in told.revoked] == [None, None]
        revoked = [parse_qs(seen.body.decode())["token"] for seen in world.at("/revoke")]
        assert revoked == [[world.refresh_token], [token.access_token]]
        assert stored_refresh_token(store, world) is None
        assert module._unsaved == {}

    def test_RULES_4_11_a_logout_that_fails_keeps_what_the_store_would_not_take(self, world: World) -> None:
        store = Failing()
        put_grant(store, world)
        oauth = Plain(world, store=store, interactive=False)

        def break_down(stage: str) -> None:
            store.failing = {"save"}

        world.before = break_down
        token = oauth.authorize()
        with pytest.raises(TokenStorageError):
            oauth.logout()
        world.before, store.failing = lambda stage: None, set()
        assert oauth.authorize() == token
        assert (stored_refresh_token(store, world), world.reuses) == (world.refresh_token, 0)

    @pytest.mark.parametrize("backend", [None, "asyncio", "trio"])
    def test_RULES_3_8_every_object_that_logs_out_lets_its_token_go(self, world: World, backend: str | None) -> None:
        """Also the one that only joined the logout of another."""
        store = MemoryStore()
        one, other = Plain(world, store=store), Plain(world, store=store)
        assert one.authorize() == other.authorize()
        for each in (one, other):
            if backend is None:
                each.logout()
            else:
                anyio.run(each.alogout, backend=backend)
        assert (one.token, other.token) == (None, None)

    def test_RULES_4_11_a_run_settles_only_the_record_that_it_was_given(self, world: World) -> None:
        oauth = Plain(world)
        pin = (oauth._store.identity, oauth._key)
        given, newer = (GrantRecord(revision, world.url, "") for revision in ("given", "newer"))
        module._unsaved[pin] = newer
        oauth.pin(Outcome(), given)
        assert module._unsaved[pin] is newer
        oauth.pin(Outcome(), newer)
        assert pin not in module._unsaved
