"""`keep_fresh()`: renewal in the background, by itself, on one thread for all."""

from __future__ import annotations

import gc
import json
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import anyio
import pytest

from mcp_oauth.io import fresh, ports
from mcp_oauth.io.options import JITTER
from mcp_oauth.sansio.keeping import Outcome
from mcp_oauth.sansio.steps import Need
from mcp_oauth.sansio.values import Now
from mcp_oauth.store.memory import MemoryStore
from tests.io.clockwork import Clockwork, Told, has_ended, later_is_idle, later_is_over, tasks, threads
from tests.io.plain import Failing, Nobody, Plain, Slow, settle
from tests.io.servers import PATIENCE, Reply, Seen, World, document, put_grant, stored_refresh_token
from tests.io.test_flights_processes import run

pytestmark = pytest.mark.usefixtures("nothing_is_left_of_flights")

LEEWAY = 1 - JITTER / 5
"""What jitter leaves of it."""


class Time(Clockwork):
    """All clocks: that of `LATER`, and the one on the wall."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(monkeypatch)
        self.passed = 0.0
        for module in (ports, fresh):
            monkeypatch.setattr(module, "now", lambda: Now(time.time() + self.passed, time.monotonic() + self.passed))

    def elapse(self, seconds: float | None = None) -> float:
        self.passed += self.rests[-1] if seconds is None else seconds
        return super().elapse(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Time]:
    yield Time(monkeypatch)
    later_is_over()


@pytest.fixture
def store(world: World) -> Failing:
    """With a grant whose access token has expired."""
    store = Failing()
    put_grant(store, world)
    return store


def unattended(world: World, store: Any, told: Told | None = None) -> Plain:
    return Plain(world, store=store, user=Nobody(), on_notice=told)


def is_good(oauth: Plain) -> bool:
    return oauth.token is not None and oauth.token.access_token in oauth.world.valid


# --- It renews --------------------------------------------------------------------------------------------------------


def test_a_stored_token_that_has_expired_is_renewed_before_any_request(
    world: World, store: Failing, clock: Time
) -> None:
    told = Told()
    oauth = unattended(world, store, told)
    with oauth.keep_fresh():
        assert clock.wait_for(2) == [0.0, fresh.LOOK]
        assert is_good(oauth)
    assert (world.refreshes, world.reuses, told) == (1, 0, ["renewed"])


@pytest.mark.parametrize("lifetime", [20, 100, 300], ids=["20s", "100s", "5min"])
def test_it_is_renewed_each_time_that_it_enters_its_leeway(
    world: World, store: Failing, clock: Time, lifetime: int
) -> None:
    world.lifetime = lifetime
    oauth = unattended(world, store)
    with oauth.keep_fresh():
        for renewals in range(1, 4):
            looks, began = len(clock.wait_for(2)), clock.passed
            while world.refreshes < renewals + 1:
                looks += 1
                clock.elapse()
                assert max(clock.wait_for(looks)) <= fresh.LOOK
            assert clock.passed - began == pytest.approx(lifetime - min(60.0, lifetime / 10) * LEEWAY, abs=1.0)
            assert is_good(oauth)
    assert world.reuses == 0


def test_RULES_3_4_however_short_its_life(world: World, store: Failing, clock: Time) -> None:
    world.lifetime = 1
    with unattended(world, store).keep_fresh():
        for looks in range(2, 6):
            assert clock.wait_for(looks)[1:] == [5.0] * (looks - 1)
            assert world.refreshes == looks - 1
            clock.elapse()
        clock.wait_for(6)


def test_a_token_at_hand_that_is_fresh_asks_the_store_for_nothing(world: World, store: Failing, clock: Time) -> None:
    oauth = unattended(world, store)
    oauth.authorize()
    events: list[str] = []
    store.watch = events.append
    with oauth.keep_fresh():
        clock.wait_for(2)
        clock.elapse()
        clock.wait_for(3)
    assert (events, world.refreshes) == ([], 1)


def test_a_token_of_unknown_life_is_left_alone(clock: Time) -> None:
    class Silent(World):
        def issue(self) -> Reply:
            tokens = json.loads(super().issue().body)
            del tokens["expires_in"]
            return document(tokens)

    world = Silent()
    oauth = Plain(world)
    oauth.authorize()
    with oauth.keep_fresh():
        for looks in (2, 3, 4):
            assert clock.wait_for(looks)[1:] == [fresh.LOOK] * (looks - 1)
            clock.elapse()
        clock.wait_for(5)
    assert world.refreshes == 0


def test_a_peers_token_is_adopted(world: World, store: Failing, clock: Time) -> None:
    world.lifetime = 300
    oauth, peer = unattended(world, store), unattended(world, store)
    with oauth.keep_fresh():
        clock.wait_for(2)
        clock.passed += 280.0
        renewed = peer.authorize()
        clock.elapse(fresh.LOOK)
        clock.wait_for(3)
        assert oauth.token == renewed
    assert world.refreshes == 2


@pytest.mark.parametrize("jump", [3600.0, 86400.0], ids=["an-hour", "a-day"])
def test_a_clock_that_jumps_or_a_machine_that_slept_is_noticed_within_a_minute(
    world: World, store: Failing, clock: Time, jump: float
) -> None:
    oauth = unattended(world, store)
    with oauth.keep_fresh():
        assert max(clock.wait_for(2)) <= 60.0
        clock.passed += jump
        clock.elapse(60.0)
        clock.wait_for(3)
        assert is_good(oauth)
        assert world.refreshes == 2
        clock.passed -= jump  # and back: the token lives longer than it seems, and is not renewed in vain
        clock.elapse(60.0)
        clock.wait_for(4)
        assert world.refreshes == 2


# --- It fails ---------------------------------------------------------------------------------------------------------


def test_a_failure_is_one_notice_and_is_tried_again_with_backoff(world: World, store: Failing, clock: Time) -> None:
    told = Told()
    oauth = unattended(world, store, told)
    store.failing = {"load"}
    with oauth.keep_fresh():
        for looks in range(2, 9):
            clock.wait_for(looks)
            assert told == ["not-fresh"]
            clock.elapse()
        assert clock.wait_for(9) == [0.0, 5.0, 10.0, 20.0, 40.0, 60.0, 60.0, 60.0, 60.0]
        store.failing = set()
        clock.elapse()
        clock.wait_for(10)
        assert is_good(oauth)
        store.failing = {"load"}
        clock.elapse(3600.0)
        assert clock.wait_for(11)[-1] == 5.0
    assert told == ["not-fresh", "renewed", "not-fresh"]
    assert told.messages[0].endswith("was not renewed in the background: out of order")


class Refusing(World):
    """Has no tokens to give any more."""

    busy = dead = False
    asked = 0

    def _token(self, seen: Seen) -> Reply:
        self.asked += 1
        if self.busy:
            return Reply(503, (("retry-after", "50"),))
        return document({"error": "invalid_grant"}, 400) if self.dead else super()._token(seen)


def test_FN_5_a_server_that_says_when_is_not_asked_before(clock: Time) -> None:
    """Though there is a look at 5 and at 15 seconds: the record knows when (`next_attempt_at`)."""
    world, store = Refusing(lifetime=1000), MemoryStore()
    put_grant(store, world)
    oauth = unattended(world, store)
    with oauth.keep_fresh():
        clock.wait_for(2)
        world.busy, world.asked = True, 0
        clock.elapse(960.0)  # with any jitter it is in its leeway, and alive
        for looks in (3, 4, 5):
            clock.wait_for(looks)
            assert world.asked == 1
            if looks < 5:
                clock.elapse()
    assert is_good(oauth)


def test_a_dead_grant_waits_for_a_login_that_others_do(clock: Time) -> None:
    told, world, store = Told(), Refusing(), MemoryStore()
    put_grant(store, world)
    world.dead = True
    oauth = unattended(world, store, told)
    with oauth.keep_fresh():
        for looks in range(2, 5):
            clock.wait_for(looks)
            clock.elapse()
        clock.wait_for(5)
        assert (told.count("not-fresh"), world.asked) == (1, 1)
        world.dead = False
        token = Plain(world, store=store).authorize(force=True)
        clock.elapse()
        clock.wait_for(6)
        assert oauth.token == token


def test_an_application_that_fails_is_tried_again(
    world: World, store: Failing, clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> Any:
        raise ZeroDivisionError("CANARY")

    told = Told()
    oauth = unattended(world, store, told)
    with oauth.keep_fresh():
        with monkeypatch.context() as patched:
            clock.wait_for(2)
            patched.setattr(Plain, "open_sender", fail)
            clock.passed += 7200
            clock.elapse()
            clock.wait_for(3)
        assert told.messages[-1].endswith("the application raised ZeroDivisionError")
        clock.elapse()
        clock.wait_for(4)
        assert is_good(oauth)


# --- It asks nobody ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interactive", [True, False])
def test_FN_47_without_a_grant_it_waits_for_the_programs_own_login(
    world: World, clock: Time, interactive: bool
) -> None:
    store = Failing()
    oauth = Plain(world, store=store, user=Nobody(), interactive=interactive)
    with oauth.keep_fresh():
        clock.wait_for(2)
        store.failing = {"load"}  # it is asked for no more
        for looks in (3, 4):
            clock.elapse()
            assert clock.wait_for(looks)[-1] == fresh.LOOK
        assert (oauth.token, world.logins) == (None, 0)
        store.failing = set()
        oauth.take(Outcome("login", Plain(world, store=store).authorize()))
        clock.elapse(7200.0)
        clock.wait_for(5)
        assert is_good(oauth)
        assert world.refreshes == 1


def test_RULES_4_13_a_login_under_way_does_not_stop_it(world: World, store: Failing, clock: Time) -> None:
    oauth = unattended(world, store)
    person = Slow(world)
    with oauth.keep_fresh():
        clock.wait_for(2)
        stepping_up = Plain(world, store=store, user=person)
        login = threading.Thread(target=stepping_up.ensure, args=(Need("scope", scopes=("more",)),))
        login.start()
        assert person.shown.wait(PATIENCE)
        clock.elapse(3600.0)
        clock.wait_for(3)
        assert (world.refreshes, login.is_alive(), is_good(oauth)) == (2, True, True)
        person.may_answer.set()
        login.join(PATIENCE)


def test_RULES_3_8_a_logout_is_not_undone(world: World, store: Failing, clock: Time) -> None:
    oauth = unattended(world, store)
    with oauth.keep_fresh():
        clock.wait_for(2)
        oauth.logout()
        clock.elapse()
        clock.wait_for(3)
        assert oauth.token is None
    assert world.refreshes == 1


# --- Its life ---------------------------------------------------------------------------------------------------------


def test_programs_that_never_call_it_start_no_thread(world: World, store: Failing) -> None:
    oauth = unattended(world, store)
    oauth.authorize()
    assert oauth.keep_fresh() is not None
    assert (tasks(), threads()) == (0, 0)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_it_ends_with_its_context(world: World, store: Failing, clock: Time, backend: str) -> None:
    oauth = unattended(world, store)

    async def main() -> None:
        async with oauth.keep_fresh():
            clock.wait_for(2)
            assert (tasks(), threads()) == (1, 1)

    anyio.run(main, backend=backend)
    later_is_over()
    with pytest.raises(ZeroDivisionError), oauth.keep_fresh():
        raise ZeroDivisionError
    later_is_over()


def test_it_is_nestable_and_each_context_ends_its_own(world: World, store: Failing, clock: Time) -> None:
    oauth = unattended(world, store)
    kept = oauth.keep_fresh()
    with oauth.keep_fresh():
        with kept, kept:
            clock.wait_for(6)
            assert (tasks(), threads()) == (3, 1)
        assert tasks() == 1
        clock.elapse(3600.0)
        clock.wait_for(7)
        assert is_good(oauth)
    later_is_over()
    with kept:
        assert tasks() == 1
    assert world.refreshes == 2


def test_a_renewal_that_is_under_way_at_the_end_is_finished(world: World, store: Failing, clock: Time) -> None:
    asked, may_answer = threading.Event(), threading.Event()

    def hold(stage: str) -> None:
        asked.set()
        assert may_answer.wait(PATIENCE)

    world.before = hold
    oauth = unattended(world, store)
    with oauth.keep_fresh():
        assert asked.wait(PATIENCE)
    may_answer.set()
    settle()
    assert is_good(oauth)
    assert stored_refresh_token(store, world) == world.refresh_token


def test_an_object_that_everybody_has_forgotten_is_not_kept(world: World, store: Failing, clock: Time) -> None:
    oauth = unattended(world, store)
    kept = oauth.keep_fresh()
    kept.__enter__()
    clock.wait_for(2)
    has_ended("mcp-oauth flight")
    later_is_idle()
    gone = weakref.ref(oauth)
    del oauth, kept
    gc.collect()
    assert gone() is None
    clock.elapse(fresh.LOOK)
    later_is_over()


def test_many_threads_may_enter_it_at_once(world: World, store: Failing, clock: Time) -> None:
    oauth = unattended(world, store)
    kept = oauth.keep_fresh()
    barrier = threading.Barrier(20)

    def use(_: int) -> None:
        barrier.wait(PATIENCE)
        with kept:
            barrier.wait(PATIENCE)

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(use, range(20)))
    later_is_over()
    settle()
    assert world.refreshes <= 1


def test_DESIGN_8_ten_thousand_grants_are_one_idle_thread(world: World, clock: Time) -> None:
    store = MemoryStore()
    token = Plain(world, store=store).authorize()
    objects = [Plain(world, store=store, account=str(n)) for n in range(10_000)]
    with ExitStack() as kept:
        for oauth in objects:
            oauth.take(Outcome("stored", token))
            kept.enter_context(oauth.keep_fresh())
        clock.wait_for(20_000)
        assert (tasks(), threads(), threads("mcp-oauth flight")) == (10_000, 1, 0)


AT_EXIT = """
from mcp_oauth.io.later import LATER
from tests.io.plain import Plain
from tests.io.servers import World, put_grant
from mcp_oauth.store.memory import MemoryStore
world, store, renewed = World(lifetime=20), MemoryStore(), threading.Event()
put_grant(store, world)
oauth = Plain(world, store=store, on_notice=lambda notice: renewed.set())
oauth.keep_fresh().__enter__()
assert renewed.wait(10)
"""


def test_it_keeps_no_program_alive() -> None:
    assert run(AT_EXIT + "say('end')") == "end\n"


def test_a_forked_child_begins_its_own() -> None:
    said = run(
        AT_EXIT
        + """
kept = oauth.keep_fresh()
with kept:
    pid = os.fork()
    if not pid:
        assert not LATER._entries
if not pid:
    with oauth.keep_fresh():
        say("child", len(LATER._entries))
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
say("parent", len(LATER._entries))
"""
    )
    assert said.splitlines() == ["child 1", "parent 1"]
