"""What happens over many requests: the limits of RULES 3.4, loops, short lives, clocks that jump.

Access and upkeep are played together, against servers that never change their mind.
"""

from __future__ import annotations

from collections import Counter

from msgspec.structs import replace

from mcp_oauth.sansio import access, upkeep
from mcp_oauth.sansio.grant import Grant, Record, Token, token_of
from mcp_oauth.sansio.keeping import Outcome
from mcp_oauth.sansio.messages import Response
from mcp_oauth.sansio.steps import (
    Acquire,
    Acquired,
    Answered,
    Await,
    Done,
    Effect,
    Ensure,
    Ensured,
    Event,
    Failed,
    How,
    Listen,
    Listening,
    Load,
    Loaded,
    Need,
    NotEnsured,
    OpenBrowser,
    Release,
    Released,
    Save,
    Saved,
    Send,
    Sleep,
    Woke,
)
from mcp_oauth.sansio.values import Now
from tests.sansio.scripts import KEY, PLAN, SEED, each, grant, logging_in, record, redirected, say, secret, tokens
from tests.sansio.walks import NOW, table

STORED = grant(1, left=3000)
OUTDATED = grant(1)


class Process:
    """A process with a grant, its callers one after another, and a world in which everything but time stands still."""

    def __init__(self, answers: str, *, life: float = 3600, refreshes: bool = True, stored: Record | None = None):
        self.answers, self.life, self.refreshes = answers, life, refreshes
        self.takes = 0.05
        self.stored = stored
        self.now = NOW
        self.minted = 0
        self.token: Token | None = None
        self.how: How = "stored"
        self.accepted = True
        self.count: Counter[str] = Counter()

    def request(self, at_hand: Token | None = None) -> str:
        """One request of a caller, with the token that it may have had since long; how it ended."""
        step = access.begin(at_hand or self.token, now=self.now, never_accepted=not (at_hand or self.accepted))
        while isinstance(step, Await):
            event = self._ensure(step.effect.need) if isinstance(step.effect, Ensure) else self._proceed()
            step = access.advance(step.state, event, now=self.now)
        if isinstance(step, Done) and step.value.accepted is not None:
            self.accepted = True
        return say(step)

    def _proceed(self) -> Event:
        self.count["requests"] += 1
        self.wait(self.takes)
        status = int(self.answers.split()[0])
        return Answered(status, (f'Bearer error="insufficient_scope", scope="{self.answers[4:]}"',))

    def _ensure(self, wanted: Need) -> Event:
        seed = SEED.child("run", self.count["runs"])
        self.count["runs"] += 1
        step = upkeep.begin(PLAN, wanted, seed)
        while isinstance(step, Await):
            step = upkeep.advance(step.state, self._answer(step.effect), now=self.now)
        if isinstance(step, Failed):
            return NotEnsured(step.error)
        return self._take(step.value)

    def _take(self, outcome: Outcome) -> Ensured:
        """A token that no server has accepted yet is still what it was when it came."""
        if outcome.token is not None and outcome.token != self.token:
            self.token, self.how, self.accepted = outcome.token, outcome.how, outcome.how == "stored"
        return Ensured(outcome.token, outcome.how if self.accepted else self.how)

    def _answer(self, effect: Effect) -> Event:
        match effect:
            case Load():
                return Loaded(self.stored)
            case Acquire():
                return Acquired(self.stored)
            case Save(key, saving, expected):
                assert key == KEY
                assert expected == (self.stored.revision if self.stored else None)
                self.stored = saving
                return Saved()
            case Release():
                return Released()
            case Sleep(seconds):
                self.now = Now(self.now.wall + seconds, self.now.elapsed + seconds)
                return Woke()
            case Listen():
                return Listening("http://127.0.0.1:1/callback")
            case OpenBrowser():
                self.count["logins"] += 1
                return redirected(effect)
            case Send(request):
                return self._respond(request.url, request.body)
            case _:
                raise AssertionError(effect)

    def _respond(self, url: str, body: bytes) -> Response:
        if not url.endswith("/token"):
            lines = dict(line[:2] for line in logging_in(1))
            found = lines["GET " + url.removeprefix("https://")]
            assert isinstance(found, Response)
            return found
        self.count["renewals"] += b"grant_type=refresh_token" in body
        self.minted += 1
        refresh_token = secret(self.minted, "rt") if self.refreshes else None
        return tokens(self.minted, expires_in=self.life, refresh_token=refresh_token)

    def wait(self, seconds: float) -> None:
        self.now = Now(self.now.wall + seconds, self.now.elapsed + seconds)


def test_a_server_that_is_content() -> None:
    process = Process("200")
    process.stored, process.minted = record(OUTDATED), 1
    assert [process.request() for _ in range(3)] == ["Finished, accepted at2"] * 3
    assert process.count == {"requests": 3, "renewals": 1, "runs": 1}


def test_fn_6_an_eternal_401_ends() -> None:
    """A request a second for 19 minutes: a renewal and a login in 10 minutes."""
    process = Process("401", stored=record(STORED))
    process.minted = 1
    ends = Counter[str]()
    while process.now.elapsed < NOW.elapsed + 1140:
        ends[process.request()] += 1
        process.wait(1)
    assert (process.count["renewals"], process.count["logins"]) == (2, 2)
    assert ends.keys() == {"Finished", "Failed login-held-back"}


@each("stored", {"with-refresh-token": STORED, "without": replace(STORED, refresh_token=None)})
def test_rules_3_4_an_eternal_401_for_fifty_callers(stored: Grant) -> None:
    """All had the same token: what one brings, the others try, and that is all."""
    process = Process("401", refreshes=stored.refresh_token is not None, stored=record(stored))
    process.minted = 1
    assert {process.request(token_of(stored)) for _ in range(50)} == {"Finished"}
    assert process.count["logins"] == 1
    assert process.count["renewals"] == int(process.refreshes)


@each("life", {"hour": 3600.0, "minute": 60.0, "RULES-2.17-0-s": 0.0})
@each("processes", {"alone": 1, "with-a-peer": 2})
def test_rules_3_4_an_eternal_401_asks_for_one_login_in_10_minutes(life: float, processes: int) -> None:
    """However short the tokens live, and whoever shares the grant."""
    peers = [Process("401", life=life) for _ in range(processes)]
    first = peers[0]
    while first.now.elapsed < NOW.elapsed + 1140:
        for process in peers:
            process.now, process.stored, process.minted = first.now, first.stored, first.minted
            process.request()
            first.now, first.stored, first.minted = process.now, process.stored, process.minted
        first.wait(1)
    assert sum(process.count["logins"] for process in peers) == 2


@each("refreshes", {"with-refresh-tokens": True, "without": False})
def test_rules_3_4_neither_if_each_token_runs_out_on_its_way(refreshes: bool) -> None:
    """A server that takes longer to refuse a token than it lives."""
    process = Process("401", life=5, refreshes=refreshes)
    process.takes = 6
    while process.now.elapsed < NOW.elapsed + 1140:
        process.request()
    assert process.count["logins"] == 2


class Sleeper(Process):
    """A machine that sleeps while its first request is on the way: the server has not seen its token in time."""

    def __init__(self, sleeps: float, stored: Record):
        super().__init__("200", stored=stored)
        self.minted, self.sleeps = 1, sleeps

    def _proceed(self) -> Event:
        if self.count["requests"]:
            return super()._proceed()
        self.count["requests"] += 1
        self.wait(self.sleeps)
        return Answered(401)


def test_rules_3_4_a_token_renewed_before_the_machine_slept_is_renewed_once_more() -> None:
    process = Sleeper(3600, record(OUTDATED))
    assert process.request() == "Finished, accepted at3"
    assert process.count == {"requests": 2, "runs": 2, "renewals": 2}


@each("generation", {"logged-in": 0, "renewed": 1})
def test_rules_3_4_a_short_token_that_was_never_accepted_is_renewed_after_the_machine_slept(generation: int) -> None:
    """It was obtained a moment ago, and refused, and nobody holds that against its grant."""
    one = grant(1, life=30, left=30, generation=generation, logged_in_at=NOW.wall)
    process = Sleeper(40, record(one))
    process.token, process.accepted, process.how = token_of(one), False, "renewed" if generation else "login"
    assert process.request() == "Finished, accepted at2"
    assert (process.count["renewals"], process.count["logins"]) == (1, 0)


def test_spec_an_eternal_403_gives_one_step_up() -> None:
    process = Process("403 b", stored=record(STORED))
    process.minted = 1
    assert process.request() == "Finished, accepted at2"
    assert [process.request() for _ in range(9)] == ["Finished, accepted at2"] * 9
    assert process.count["logins"] == 1
    assert process.token is not None
    assert process.token.requested == ("a", "b")


def test_rules_3_5_a_step_up_after_the_first_login() -> None:
    process = Process("403 b")
    process.request()
    process.answers = "401"
    process.request()
    process.answers = "403 b"
    assert process.count["logins"] == 1
    assert process.request() == "Finished, accepted at2"
    assert process.count["logins"] == 2


@table(
    "life, refreshes, renewals",
    {
        "RULES-2.17-expires-in-0": (0, True, 30),
        "RULES-2.17-expires-in-0-without-refresh-token": (0, False, 0),
        "FN-11-5-s": (5, True, 12),
        "FN-11-5-s-without-refresh-token": (5, False, 0),
    },
)
def test_short_lives(life: float, refreshes: bool, renewals: int) -> None:
    """Two requests a second for most of a minute: every one is served, and nobody is asked to log in again."""
    process = Process("200", life=life, refreshes=refreshes, stored=record(grant(1)) if refreshes else None)
    if not refreshes:
        process.answers = "401"
        process.request()
        process.answers = "200"
    process.count.clear()
    for _ in range(100):
        assert process.request().startswith("Finished, accepted at")
        process.wait(0.45)
    assert (process.count["renewals"], process.count["logins"]) == (renewals, 0)


def test_rules_3_4_thirty_renewals_a_minute_whatever_expires_in_says() -> None:
    """Two requests a second for two minutes, and a server whose tokens live 0 s."""
    process = Process("200", life=0, stored=record(OUTDATED))
    renewals = list[float]()
    while process.now.elapsed < NOW.elapsed + 120:
        before = process.count["renewals"]
        assert process.request().startswith("Finished, accepted at")
        renewals += [process.now.elapsed] * (process.count["renewals"] - before)
        process.wait(0.45)
    assert max(sum(start <= at < start + 60 for at in renewals) for start in renewals) == 30
    assert len(renewals) == 60


@each("jump", {"forwards-by-a-day": 86400.0, "backwards-by-a-day": -86400.0, "backwards-by-an-hour": -3600.0})
def test_rules_4_14_a_clock_that_jumps(jump: float) -> None:
    """At most one renewal for a jump, and never a browser; the server accepts by its own clock."""
    process = Process("200", stored=record(OUTDATED))
    process.minted = 1
    for second in range(40):
        if second in (10, 30):
            process.now = Now(process.now.wall + jump, process.now.elapsed)
        if second == 20:
            process.answers = "401"
            process.request()
            process.answers = "200"
        assert process.request().startswith("Finished, accepted at")
        process.wait(1)
    assert process.count["logins"] <= 1
    assert process.count["renewals"] <= 4


@each("jump", {"backwards-by-a-day": -86400.0, "forwards-by-a-day": 86400.0})
def test_rules_4_12_a_clock_that_jumps_after_a_failed_renewal(jump: float) -> None:
    """What was put off by the old clock is not put off for a day."""
    noted = replace(OUTDATED, next_attempt_at=NOW.wall + 4, renewals=(NOW.wall - 1,) * 30)
    process = Process("200", stored=record(noted))
    process.minted = 1
    process.now = Now(NOW.wall + jump, NOW.elapsed)
    if jump < 0:
        process.stored = record(replace(noted, expires_at=process.now.wall))
    assert process.request() == "Finished, accepted at2"
    assert process.now.elapsed - NOW.elapsed < 1
