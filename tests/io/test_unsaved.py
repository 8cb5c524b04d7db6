"""What a store would not take is saved again by itself, and at exit (RULES 4.11)."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from mcp_oauth.exceptions import TokenStorageError
from mcp_oauth.io import oauth as module
from mcp_oauth.io.flights import FLIGHTS
from mcp_oauth.io.later import LATER
from mcp_oauth.io.two_leg import TwoLeg
from mcp_oauth.sansio.grant import GrantRecord, current_grant, encode
from mcp_oauth.sansio.keeping import Outcome
from mcp_oauth.sansio.plan import PreRegistered
from mcp_oauth.sansio.steps import Need
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from tests.io.clockwork import NO_THREADS_AT_EXIT, Clockwork, Told, later_is_over, tasks, threads
from tests.io.plain import Failing, Nobody, Plain, Slow
from tests.io.servers import PATIENCE, World, key_of, put_grant, stored, stored_refresh_token

pytestmark = pytest.mark.usefixtures("nothing_is_left_of_flights")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clockwork]:
    yield Clockwork(monkeypatch)
    later_is_over()


@pytest.fixture
def store(world: World) -> Failing:
    """It fails from the first request to the authorization server on, until a test says otherwise."""
    store = Failing()
    put_grant(store, world)

    def break_down(stage: str) -> None:
        store.failing = {"save"}
        world.before = lambda stage: None

    world.before = break_down
    return store


def unattended(world: World, store: Any, told: Told | None = None) -> Plain:
    return Plain(world, store=store, interactive=False, user=Nobody(), on_notice=told)


def is_saved(store: Any, world: World) -> bool:
    """And the server has seen no refresh token twice."""
    return stored_refresh_token(store, world) == world.refresh_token and (module._unsaved, world.reuses) == ({}, 0)


# --- By itself --------------------------------------------------------------------------------------------------------


def test_RULES_4_11_it_is_saved_again_with_backoff(world: World, store: Failing, clock: Clockwork) -> None:
    told = Told()
    unattended(world, store, told).authorize()
    for tries in range(1, 10):
        clock.wait_for(tries)
        assert not is_saved(store, world)
        clock.elapse()
    assert clock.wait_for(10) == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0, 60.0]
    store.failing = set()
    clock.elapse()
    told.until("persisted")
    later_is_over()
    assert is_saved(store, world)
    assert world.refreshes == 1
    assert told == ["not-persisted"] * 10 + ["persisted"]


@pytest.mark.parametrize("outage", [{"load"}, {"save"}, {"load", "save"}], ids=["no-load", "no-save", "down"])
@pytest.mark.parametrize("error", [OSError, KeyError], ids=["OSError", "against-its-contract"])
def test_RULES_4_11_whatever_the_store_does(
    world: World, clock: Clockwork, outage: set[str], error: type[Exception]
) -> None:
    told, store = Told(), Failing(error)
    put_grant(store, world)
    world.before = lambda stage: store.failing.update({"save"})
    unattended(world, store, told).authorize()
    store.failing = outage
    clock.elapse()
    clock.wait_for(2)
    store.failing = set()
    clock.elapse()
    told.until("persisted")
    later_is_over()
    assert is_saved(store, world)


def test_RULES_4_11_of_an_object_that_is_gone(world: World, store: Failing, clock: Clockwork) -> None:
    told = Told()
    oauth = unattended(world, store, told)
    oauth.authorize()
    gone = weakref.ref(oauth)
    del oauth
    store.failing = set()
    clock.elapse()
    told.until("persisted")
    later_is_over()
    gc.collect()
    assert is_saved(store, world)
    assert gone() is None


def test_RULES_4_11_one_try_for_each_grant_whoever_uses_it(world: World, store: Failing, clock: Clockwork) -> None:
    told = Told()
    objects = [unattended(world, store, told) for _ in range(5)]
    assert len({oauth.authorize().access_token for oauth in objects}) == 1
    assert (tasks(), threads(), clock.wait_for(1)) == (1, 1, [1.0])
    store.failing = set()
    clock.elapse()
    told.until("persisted")
    later_is_over()
    assert is_saved(store, world)


def test_RULES_4_11_a_request_that_saves_it_ends_the_tries_at_once(
    world: World, store: Failing, clock: Clockwork
) -> None:
    told = Told()
    oauth = unattended(world, store, told)
    oauth.authorize()
    store.failing = set()
    oauth.authorize()
    later_is_over()
    assert is_saved(store, world)
    assert (told, clock.rests) == (["not-persisted", "persisted"], [1.0])


def test_RULES_3_8_a_logout_ends_the_tries_at_once(world: World, store: Failing, clock: Clockwork) -> None:
    oauth = unattended(world, store)
    oauth.authorize()
    store.failing = set()
    oauth.logout()
    later_is_over()
    assert (module._unsaved, clock.rests) == ({}, [1.0])


def test_RULES_4_11_a_logout_that_fails_does_not_end_them(world: World, store: Failing, clock: Clockwork) -> None:
    told = Told()
    oauth = unattended(world, store, told)
    oauth.authorize()
    with pytest.raises(TokenStorageError):
        oauth.logout()
    store.failing = set()
    clock.elapse()
    told.until("persisted")
    later_is_over()
    assert is_saved(store, world)


def test_RULES_4_10_a_logout_elsewhere_is_not_undone(world: World, store: Failing, clock: Clockwork) -> None:
    told = Told()
    unattended(world, store, told).authorize()
    store.failing = set()
    tombstone = GrantRecord("tombstone", world.url, "", logged_out=True)
    store.save(key_of(world), encode(tombstone), revision="tombstone", expected="first")
    clock.elapse()
    later_is_over()
    assert stored(store, world) == tombstone
    assert (module._unsaved, len(world.at("/revoke")), told) == ({}, 2, ["not-persisted"])


def test_RULES_4_10_a_login_elsewhere_stands(world: World, store: Failing, clock: Clockwork) -> None:
    unattended(world, store).authorize()
    store.failing = set()
    before = stored(store, world)
    assert before is not None
    peers = replace(before.grants[0], lineage="peer", access_token="CANARY-peer", expires_at=None)
    record = replace(before, grants=(peers,), revision="peer")
    store.save(key_of(world), encode(record), revision="peer", expected="first")
    clock.elapse()
    later_is_over()
    assert stored(store, world) == record
    assert (module._unsaved, len(world.at("/revoke"))) == ({}, 2)


def test_RULES_4_11_a_try_renews_nothing_and_asks_nobody(store: Failing, clock: Clockwork, world: World) -> None:
    """Also where what is to be saved has expired meanwhile."""
    told = Told()
    world.lifetime = 0
    unattended(world, store, told).ensure(Need("expiring"))
    store.failing = set()
    clock.elapse()
    told.until("persisted")
    later_is_over()
    assert is_saved(store, world)
    assert (world.refreshes, world.logins) == (1, 0)


def test_RULES_4_11_who_joins_a_try_gets_what_he_asked_for(
    store: Failing, clock: Clockwork, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the expired token that was saved."""
    world.lifetime = 0
    oauth = unattended(world, store)
    oauth.ensure(Need("expiring"))
    world.lifetime = 3600
    trying, may_go_on = threading.Event(), threading.Event()

    def hold(event: str) -> None:
        if event == "load" and not trying.is_set():
            trying.set()
            assert may_go_on.wait(PATIENCE)

    store.watch = hold
    clock.elapse()
    assert trying.wait(PATIENCE)
    joined, join = threading.Event(), FLIGHTS._join

    def watched(seat: Any) -> None:
        join(seat)
        joined.set()

    monkeypatch.setattr(FLIGHTS, "_join", watched)
    tokens: list[Any] = []
    asking = threading.Thread(target=lambda: tokens.append(oauth.authorize()))
    asking.start()
    assert joined.wait(PATIENCE)
    may_go_on.set()
    asking.join(PATIENCE)
    later_is_over()
    assert is_saved(store, world)
    assert (tokens[0].access_token in world.valid, tokens[0].expires_at - tokens[0].obtained_at) == (True, 3600)
    assert world.refreshes == 2


def test_RULES_4_13_a_try_does_not_wait_for_a_person(store: Failing, clock: Clockwork, world: World) -> None:
    """A step-up is under way in the browser when a renewal beside it cannot be saved."""
    told, person = Told(), Slow(world)
    store.failing, break_down = set(), world.before
    world.before = lambda stage: None
    stepping_up = Plain(world, store=store, user=person, on_notice=told)
    login = threading.Thread(target=stepping_up.ensure, args=(Need("scope", scopes=("more",)),))
    login.start()
    assert person.shown.wait(PATIENCE)
    world.before = break_down
    unattended(world, store, told).ensure(Need("expiring"))
    told.until("not-persisted")
    store.failing = set()
    clock.elapse()
    told.until("persisted")
    later_is_over()
    assert is_saved(store, world)
    assert login.is_alive()
    person.may_answer.set()
    login.join(PATIENCE)
    assert (told[-1], world.reuses) == ("logged-in", 0)


def test_RULES_4_11_a_login_is_saved_again_too(world: World, clock: Clockwork) -> None:
    told, store = Told(), Failing()

    def break_down(stage: str) -> None:
        if stage == "token":
            store.failing = {"save"}

    world.before = break_down
    token = Plain(world, store=store, on_notice=told).authorize()
    store.failing = set()
    clock.elapse()
    told.until("persisted")
    later_is_over()
    assert is_saved(store, world)
    assert Plain(world, store=store, interactive=False).authorize() == token


def test_RULES_4_11_a_two_leg_login_is_saved_again_too(world: World, clock: Clockwork) -> None:
    told, store = Told(), Failing()
    client = PreRegistered("client", redirect_uri="https://app.example/callback")
    oauth = Plain(world, store=store, client=client, on_notice=told)
    two_leg = TwoLeg(oauth, bytes(32))
    leg = two_leg.begin("cookie")
    redirected = world.login(leg.url)
    store.failing = {"save"}
    two_leg.finish(leg.sealed, redirected, "cookie")
    store.failing = set()
    clock.elapse()
    told.until("persisted")
    later_is_over()
    assert is_saved(store, world)


def test_RULES_4_11_an_application_that_fails_is_tried_again(
    world: World, store: Failing, clock: Clockwork, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> Any:
        raise ZeroDivisionError("CANARY")

    told = Told()
    unattended(world, store, told).authorize()
    store.failing = set()
    with monkeypatch.context() as patched:
        patched.setattr(Plain, "open_sender", fail)
        clock.elapse()
        clock.wait_for(2)
    assert [entry.getMessage() for entry in caplog.records][-1] == "saving tokens again raised ZeroDivisionError"
    clock.elapse()
    told.until("persisted")
    later_is_over()
    assert is_saved(store, world)


def test_a_pin_that_comes_while_another_is_settled_is_tried(
    world: World, store: Failing, clock: Clockwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run of the grant pins between the two halves of settling."""
    told = Told()
    oauth = unattended(world, store, told)
    oauth.authorize()
    pin, record = (store.identity, oauth._key), module._unsaved[store.identity, oauth._key]
    drop: Callable[..., None] = LATER.drop

    def pinned_meanwhile(key: Any) -> None:
        monkeypatch.undo()
        module._unsaved[pin] = record
        oauth._save_later(pin)
        drop(key)

    store.failing = set()
    with monkeypatch.context() as patched:
        patched.setattr(LATER, "drop", pinned_meanwhile)
        oauth._settle(pin)
    assert tasks() == 1
    LATER.drop(pin)
    oauth._save_later(pin)
    oauth.authorize()
    later_is_over()
    assert is_saved(store, world)


def test_DESIGN_8_a_thousand_grants_are_one_thread(clock: Clockwork) -> None:
    worlds = [World(f"https://mcp{n}.example") for n in range(1000)]
    store, told = Failing(), Told()
    for world in worlds:
        put_grant(store, world)
    store.failing = {"save"}
    for world in worlds:
        oauth = unattended(world, store, told)
        record = stored(store, world)
        assert record is not None
        grant = current_grant(record)
        assert grant is not None
        grant = replace(grant, refresh_token=f"CANARY-refresh-{world.origin}", generation=1, parent="parent")
        world.refresh_token = grant.refresh_token
        oauth.pin(Outcome("renewed", unsaved=replace(record, grants=(grant,))))
    assert (tasks(), threads(), threads("mcp-oauth flight")) == (1000, 1, 0)
    store.failing = set()
    clock.elapse()
    told.until("persisted", 1000)
    later_is_over()
    assert all(is_saved(store, world) for world in worlds)


# --- At exit ----------------------------------------------------------------------------------------------------------

PROGRAM = """
import contextlib, gc, logging, os, sys, threading
from mcp_oauth.io import oauth as module
from mcp_oauth.sansio.steps import Need
from mcp_oauth.store.base import StoreError
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from tests.io.plain import Plain
from tests.io.servers import World, put_grant, stored_refresh_token

logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stderr)
module.SAVE_AGAIN = (3600.0,)
main = threading.main_thread()

class Store(EncryptedFileStore):
    works = True
    def save(self, *args, **options):
        if not self.works:
            raise StoreError("read-only")
        return super().save(*args, **options)

store = Store(sys.argv[1])
world = World()
put_grant(store, world)
def break_down(stage):
    store.works = False
world.before = break_down
oauth = Plain(world, store=store, interactive=False)
"""
RENEW = """
oauth.ensure(Need("expiring"))
sys.stdout.write(world.refresh_token)
sys.stdout.flush()
"""
STEP_UP = """
class Person:
    redirect_uri = "http://127.0.0.1:1/"
    shown = threading.Event()
    @contextlib.contextmanager
    def listen(self, redirect_uri, port):
        yield self
    def show(self, url, state):
        self.shown.set()
    def wait(self, seconds):
        main.join(seconds)

world.before = lambda stage: None
step_up = Plain(world, store=store, user=Person())
threading.Thread(target=step_up.ensure, args=(Need("scope", scopes=("more",)),), daemon=True).start()
assert Person.shown.wait(10)
world.before = break_down
"""


RENEW_AT_EXIT = """
failing = [StoreError("read-only"), StoreError("read-only")]
def save(self, *args, **options):
    if failing:
        raise failing.pop()
    return EncryptedFileStore.save(self, *args, **options)

Store.save = save
world.before = lambda stage: main.join()
def renew():
    oauth.ensure(Need("expiring"))
    sys.stdout.write(world.refresh_token)

threading.Thread(target=renew).start()
"""


def end_of_program(folder: Path, ending: str, *, renewal: str = RENEW) -> tuple[str, list[str]]:
    """The refresh token that the server gave, and what was logged."""
    command = [
        sys.executable,
        "-W",
        "ignore:This process:DeprecationWarning",
        "-c",
        PROGRAM + renewal + ending,
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    assert "CANARY" not in done.stderr
    return done.stdout, done.stderr.splitlines()


def test_RULES_4_11_at_exit_it_is_saved(tmp_path: Path) -> None:
    refresh_token, logged = end_of_program(tmp_path, "store.works = True")
    assert stored_refresh_token(EncryptedFileStore(tmp_path), World()) == refresh_token
    assert [line.partition(":")[0] for line in logged] == ["ERROR not-persisted"]


def test_RULES_4_11_at_exit_it_is_saved_also_if_the_object_is_gone(tmp_path: Path) -> None:
    refresh_token, _ = end_of_program(tmp_path, "store.works = True\ndel oauth\ngc.collect()")
    assert stored_refresh_token(EncryptedFileStore(tmp_path), World()) == refresh_token


def test_RULES_4_11_at_exit_by_an_exception_too(tmp_path: Path) -> None:
    refresh_token, _ = end_of_program(tmp_path, "store.works = True\nsys.exit(0)")
    assert stored_refresh_token(EncryptedFileStore(tmp_path), World()) == refresh_token


def test_RULES_4_11_at_exit_while_somebody_logs_in(tmp_path: Path) -> None:
    """The renewal beside the login could not be saved. Nobody waits for the login, which ends with the program."""
    refresh_token, _ = end_of_program(tmp_path, "store.works = True", renewal=STEP_UP + RENEW)
    assert stored_refresh_token(EncryptedFileStore(tmp_path), World()) == refresh_token


def test_RULES_4_11_at_exit_what_was_renewed_only_then_is_tried_once_more(tmp_path: Path) -> None:
    """But for the Pythons that start no thread then: there it is said, and not tried."""
    refresh_token, logged = end_of_program(tmp_path, "", renewal=RENEW_AT_EXIT)
    saved = stored_refresh_token(EncryptedFileStore(tmp_path), World()) == refresh_token
    assert saved is not NO_THREADS_AT_EXIT
    assert logged[0].startswith("ERROR not-persisted")
    assert len(logged) == 1 + NO_THREADS_AT_EXIT


def test_RULES_4_11_at_exit_it_is_said_where_it_is_lost(tmp_path: Path) -> None:
    _, logged = end_of_program(tmp_path, "")
    assert {line.partition(":")[0] for line in logged} == {"ERROR not-persisted"}
    assert "https://mcp.example/mcp" in logged[-1]
    assert f"file:{tmp_path}" in logged[-1]


def test_a_forked_child_tries_nothing(tmp_path: Path) -> None:
    refresh_token, logged = end_of_program(
        tmp_path,
        """
pid = os.fork()
store.works = True
if not pid:
    assert not module.LATER._entries
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert stored_refresh_token(store, world) != world.refresh_token
""",
    )
    assert stored_refresh_token(EncryptedFileStore(tmp_path), World()) == refresh_token
    assert len(logged) == 1
