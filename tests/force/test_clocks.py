"""Clocks that jump by an hour or a day, machines that sleep, processes that are stopped: nothing waits for long,
nothing is renewed over and over, and a 401 tells whose clock is wrong (RULES 4.14).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from msgspec.structs import replace

from mcp_oauth.exceptions import AuthorizationError, OAuthError
from mcp_oauth.io import ports
from mcp_oauth.io.httpx2 import OAuth
from mcp_oauth.sansio.exchange import INTENT_SECONDS
from mcp_oauth.sansio.grant import GrantRecord, Intent, LoginClaim, encode
from mcp_oauth.sansio.messages import DEADLINE
from mcp_oauth.sansio.steps import Notice
from mcp_oauth.sansio.values import fingerprint
from mcp_oauth.store import redis as redis_module
from mcp_oauth.store.base import Held, Store
from mcp_oauth.store.lease import elapsed
from mcp_oauth.store.memory import MemoryStore
from tests.force.crowds import STORES
from tests.force.places import ANSWERED, ARRIVED, Place, ledger
from tests.integration.fleet import Member
from tests.io.servers import PATIENCE, Reply, Seen, World, key_of, put_grant, stored, stored_refresh_token
from tests.io.ways import Way
from tests.servers import oidc_provider as npm

HOUR, DAY = 3600.0, 86400.0
JUMPS = {"a day back": -DAY, "an hour back": -HOUR, "an hour on": HOUR, "a day on": DAY}
FAST = 10.0
"""Seconds; what is limited by nothing but the machine takes a tenth of that."""

by_jump = pytest.mark.parametrize("jump", JUMPS.values(), ids=JUMPS)


class Clock:
    """The clocks of this process: `wall` and `elapsed` seconds ahead of the true ones."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall = self.elapsed = 0.0
        wall = SimpleNamespace(time=lambda: time.time() + self.wall, sleep=time.sleep, monotonic=time.monotonic)
        monkeypatch.setattr(ports, "time", wall)
        for module in (ports, redis_module):
            monkeypatch.setattr(module, "elapsed", lambda: elapsed() + self.elapsed)

    def jump(self, seconds: float) -> None:
        """Somebody sets the clock."""
        self.wall += seconds

    def sleep(self, seconds: float) -> None:
        """The machine is suspended: a moment later it is so much later, by both clocks."""
        self.wall += seconds
        self.elapsed += seconds


class Refusing(World):
    """Every token that it has issued."""

    def mcp(self, seen: Seen) -> Reply:
        self.valid.clear()
        return super().mcp(seen)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def world() -> World:
    return World(lifetime=int(HOUR))


@pytest.fixture(scope="module")
def redis_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Store]]:
    """Makes stores that are empty, on one Redis."""
    numbers = iter(range(1000))
    with STORES["redis"](tmp_path_factory.mktemp("redis")) as made:
        module, arguments = made.make, {name: value for name, value in made.arguments.items() if name != "password"}
        assert module.endswith(":RedisStore")
        yield lambda: redis_module.RedisStore(**{**arguments, "key": bytes(32), "prefix": f"clock-{next(numbers)}"})


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest, redis_store: Callable[[], Store]) -> Store:
    """With a lock of the process, and with one that lapses."""
    return MemoryStore() if request.param == "memory" else redis_store()


class Caller:
    """A program whose OAuth traffic goes to `server`, by default where its requests go. `notices`: what it is told."""

    def __init__(
        self, world: World, store: Store, server: Callable[[Seen], Reply] | None = None, **options: Any
    ) -> None:
        self._world, self._way = world, Way(httpx2, "sync")
        self.notices = list[str]()
        self.told: Callable[[str], object] = lambda name: None
        traffic = self._way.mock(server or world)
        ours = {"store": store, "on_notice": self._hear, "user": world.login, "transport": lambda: traffic}
        self.oauth = OAuth(world.url, **{**ours, **options})

    def _hear(self, notice: Notice) -> None:
        self.notices.append(notice.name)
        self.told(notice.name)

    def call(self) -> int:
        """The status of one request, which must not take long."""
        began, options = time.monotonic(), {"transport": self._way.mock(self._world)}
        status: int = self._way.request("GET", self._world.url, each=self.oauth, options=options).status_code
        assert time.monotonic() - began < FAST
        return status


@by_jump
class TestAClockThatJumps:
    def test_between_requests_costs_at_most_one_renewal(
        self, jump: float, clock: Clock, world: World, store: Store
    ) -> None:
        put_grant(store, world, expires_in=HOUR / 2)
        here = Caller(world, store)
        assert here.call() == 200
        clock.jump(jump)
        assert [here.call() for _ in range(5)] == [200] * 5
        assert world.refreshes == (1 if jump > 0 else 0)
        clock.jump(-jump)
        assert [here.call() for _ in range(5)] == [200] * 5
        assert world.refreshes == (1 if jump > 0 else 0)

    def test_in_a_new_process_costs_at_most_one_renewal(
        self, jump: float, clock: Clock, world: World, store: Store
    ) -> None:
        put_grant(store, world, expires_in=HOUR / 2)
        for _ in range(3):
            clock.jump(jump)
            assert Caller(world, store).call() == 200
            clock.jump(-jump)
            assert Caller(world, store).call() == 200
        assert world.refreshes <= 3 if jump > 0 else world.refreshes == 0
        assert world.logins == 0

    def test_while_the_refresh_token_is_on_its_way(self, jump: float, clock: Clock, world: World, store: Store) -> None:
        put_grant(store, world)
        here = Caller(world, store)
        world.before = lambda stage: clock.jump(jump)
        assert here.call() == 200
        world.before = lambda stage: None
        assert [here.call() for _ in range(5)] == [200] * 5
        assert world.refreshes <= 2
        assert (world.reuses, world.logins) == (0, 0)
        assert stored_refresh_token(store, world) == world.refresh_token

    def test_while_a_person_logs_in(self, jump: float, clock: Clock, world: World, store: Store) -> None:
        here = Caller(world, store)
        world.before = lambda stage: clock.jump(jump) if stage == "login" else None
        assert [here.call() for _ in range(5)] == [200] * 5
        assert (world.logins, world.reuses) == (1, 0)
        assert world.refreshes <= 1

    def test_while_somebody_has_the_lock(self, jump: float, clock: Clock, world: World, store: Store) -> None:
        put_grant(store, world)
        here = Caller(world, store)
        lease = store.try_lock(key_of(world))
        assert not isinstance(lease, Held)
        jumped = threading.Event()

        def hear(name: str) -> None:
            if name == "lock-busy":
                clock.jump(jump)
                jumped.set()

        here.told = hear
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(here.call)
            assert jumped.wait(PATIENCE)
            with lease:
                pass
            assert asked.result() == 200
        assert world.refreshes <= 1  # none, where the old token lives again
        assert world.logins == 0

    def test_RULES_3_1_a_401_mends_what_a_wrong_clock_thinks_of_a_token(
        self, jump: float, clock: Clock, world: World, store: Store
    ) -> None:
        put_grant(store, world, expires_in=HOUR / 2)
        here = Caller(world, store)
        assert here.call() == 200
        clock.jump(jump)
        world.valid.clear()
        assert [here.call() for _ in range(5)] == [200] * 5
        assert (world.refreshes, world.logins, world.reuses) == (1, 0, 0)

    def test_RULES_3_4_a_server_that_refuses_everything_brings_no_loop(
        self, jump: float, clock: Clock, store: Store
    ) -> None:
        """The clock jumps to and fro between the requests."""
        world = Refusing()
        put_grant(store, world, expires_in=HOUR / 2)
        here = Caller(world, store, interactive=False)
        for leap in (jump, -jump) * 3:
            with pytest.raises(OAuthError):
                here.call()
            clock.jump(leap)
        assert world.refreshes <= 6
        assert (world.reuses, world.logins) == (0, 0)


@by_jump
class TestWhatAWrongClockHasNoted:
    """By a process whose clock is wrong, for others whose clocks are right."""

    def test_the_next_attempt(self, jump: float, clock: Clock, world: World, store: Store) -> None:
        put_grant(store, world, expires_in=HOUR / 2)
        clock.jump(jump)
        wrong = Caller(world, store, server=lambda seen: Reply(503))
        record = stored(store, world)
        assert record is not None
        early = replace(record.grants[0], obtained_at=ports.now().wall - HOUR, expires_at=ports.now().wall + 30)
        put(store, world, replace(record, grants=(early,)))
        assert wrong.call() == 200
        assert wrong.notices == ["renewal-postponed"]
        clock.jump(-jump)
        world.valid.clear()
        assert Caller(world, store).call() == 200
        assert (world.refreshes, world.logins) == (1, 0)

    def test_that_no_login_is_tried_before(self, jump: float, clock: Clock, world: World, store: Store) -> None:
        def denies(url: str) -> str:
            return f"{world.login(url).split('?')[0]}?error=access_denied&state={url.split('state=')[1].split('&')[0]}"

        clock.jump(jump)
        wrong = Caller(world, store, user=denies)
        with pytest.raises(AuthorizationError):
            wrong.call()
        record = stored(store, world)
        assert record is not None
        assert record.no_login_before is not None
        clock.jump(-jump)
        assert Caller(world, store).call() == 200

    def test_RULES_4_13_the_claim_of_a_login(self, jump: float, clock: Clock, world: World, store: Store) -> None:
        claim = LoginClaim("somebody's", "somebody", time.time() + jump + 20)
        store.save(
            key_of(world),
            encode(GrantRecord("r", world.url, "", login=claim)),
            revision="r",
            expected=None,
        )
        assert Caller(world, store).call() == 200
        assert world.logins == 1

    def test_RULES_3_4_the_renewals_of_the_last_minute(
        self, jump: float, clock: Clock, world: World, store: Store
    ) -> None:
        put_grant(store, world)
        record = stored(store, world)
        assert record is not None
        many = replace(record.grants[0], renewals=tuple(time.time() + jump + n for n in range(30)))
        put(store, world, replace(record, grants=(many,)))
        assert Caller(world, store).call() == 200
        assert world.refreshes == 1

    def test_RULES_4_8_an_intent(
        self, jump: float, clock: Clock, world: World, redis_store: Callable[[], Store]
    ) -> None:
        """One that is over for long is not waited for; else for as long as a request takes, by one's own clock."""
        store = redis_store()
        put_grant(store, world)
        record, token = stored(store, world), stored_refresh_token(store, world)
        assert record is not None
        assert token is not None
        put(store, world, replace(record, intent=Intent("attempt", fingerprint(token), "somebody", time.time() + jump)))
        here = Caller(world, store)
        here.told = lambda name: clock.sleep(INTENT_SECONDS) if name == "lock-busy" else None
        assert here.call() == 200
        assert here.notices == (["lock-busy", "renewed"] if jump > 0 else ["renewed"])
        assert world.refreshes == 1


def put(store: Store, world: World, record: GrantRecord) -> None:
    """In place of what is there."""
    there = stored(store, world)
    assert there is not None
    new = replace(record, revision=f"{there.revision}'")
    store.save(key_of(world), encode(new), revision=new.revision, expected=there.revision)


NIGHT = 8 * HOUR


class TestAMachineThatSleeps:
    """For a night. Both clocks see that, and the server too."""

    def test_with_a_token_at_hand(self, clock: Clock, world: World, store: Store) -> None:
        put_grant(store, world, expires_in=HOUR / 2)
        here = Caller(world, store)
        assert here.call() == 200
        clock.sleep(NIGHT)
        world.valid.clear()
        assert [here.call() for _ in range(5)] == [200] * 5
        assert (world.refreshes, world.logins) == (1, 0)

    @pytest.mark.parametrize("call", ["try_lock", "load", "save"])
    @pytest.mark.parametrize("nth", [1, 2, 3])
    def test_right_after_a_call_of_the_store(
        self, nth: int, call: str, clock: Clock, world: World, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """So also between the lock and the request, and between the answer and its save."""
        put_grant(store, world)
        real, calls = getattr(store, call), 0

        def sleepy(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            answer = real(*arguments, **named)
            calls += 1
            if calls == nth:
                clock.sleep(NIGHT)
                world.valid.clear()
            return answer

        monkeypatch.setattr(store, call, sleepy)
        here = Caller(world, store)
        assert [here.call() for _ in range(5)] == [200] * 5
        assert world.refreshes <= 2
        assert (world.logins, world.reuses) == (0, 0)
        assert stored_refresh_token(store, world) == world.refresh_token

    def test_while_the_refresh_token_is_on_its_way(self, clock: Clock, world: World, store: Store) -> None:
        """The answer has come meanwhile; the lease has lapsed. It is saved, and renewed once more."""
        put_grant(store, world)
        world.before = lambda stage: clock.sleep(NIGHT) if world.refreshes == 0 else None
        here = Caller(world, store)
        assert [here.call() for _ in range(5)] == [200] * 5
        assert world.refreshes <= 2
        assert (world.logins, world.reuses) == (0, 0)


# --- Processes that are stopped ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["encrypted_file", "redis"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with ExitStack() as undo:
        recipe = undo.enter_context(STORES[request.param](tmp_path_factory.mktemp("place")))
        server, book = undo.enter_context(npm.serving()), undo.enter_context(ledger())
        yield Place(recipe, recipe.store(), server, book)


@pytest.fixture(scope="module")
def two(place: Place) -> Iterator[tuple[Member, Member]]:
    with Member(place.recipe) as first, Member(place.recipe) as second:
        yield first, second
        for member in (first, second):
            member.wake()  # a test may have failed


@dataclass
class Stop:
    """A process is stopped when its request has come to a place on its way; what it has sent goes on without it."""

    place: Place
    member: Member
    account: str
    moment: str
    came: threading.Event = field(default_factory=threading.Event)

    def begin(self) -> None:
        self.place.log_in(self.account)
        self.place.expire(self.account)
        self.member.call(self.place.url, self.account, interactive=False)

    def at(self, account: str, moment: str) -> None:
        if (account, moment) == (self.account, self.moment) and not self.came.is_set():
            pid = self.member.process.pid
            os.kill(pid, signal.SIGSTOP)
            assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
            self.came.set()

    def was_renewed_once(self) -> None:
        """And the server has taken nothing back."""
        assert self.place.ledger.passed[self.account] == [200]
        self.place.expire(self.account)
        assert self.place.call(self.account).served


class TestAProcessThatIsStopped:
    """And goes on: a container is frozen, a virtual machine paused, a job suspended. The server forgives nothing."""

    @pytest.mark.parametrize("moment", [ARRIVED, ANSWERED])
    def test_the_other_waits_for_it(self, moment: str, place: Place, two: tuple[Member, Member]) -> None:
        stopped, other = two
        stop = Stop(place, stopped, f"short-{moment}", moment)
        place.ledger.on = stop.at
        stop.begin()
        assert stop.came.wait(PATIENCE)
        other.call(place.url, stop.account, interactive=False)
        other.until("lock-busy")
        stopped.wake()
        assert [one.end()["event"] for one in two] == ["answered", "answered"]
        stop.was_renewed_once()

    @pytest.mark.slow
    @pytest.mark.parametrize("place", ["redis"], indirect=True)
    def test_for_longer_than_an_answer_may_take_it_reads_what_has_come(
        self, place: Place, two: tuple[Member, Member]
    ) -> None:
        stops = [
            Stop(place, member, f"long-{moment}", moment)
            for member, moment in zip(two, (ARRIVED, ANSWERED), strict=True)
        ]

        def at(account: str, moment: str) -> None:
            for stop in stops:
                stop.at(account, moment)

        place.ledger.on = at
        for stop in stops:
            stop.begin()
        assert all(stop.came.wait(PATIENCE) for stop in stops)
        time.sleep(DEADLINE + 1)
        for stop in stops:
            stop.member.wake()
        assert [member.end()["traffic"] for member in two] == [["refresh_token"]] * 2
        for stop in stops:
            stop.was_renewed_once()
