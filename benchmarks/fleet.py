"""A fleet under fire: `python -m benchmarks.fleet --seconds 180`.

Eight processes share 1,000 grants in one real Redis (`appendfsync always`) and serve requests all the time, while
processes are killed and begun anew, and the Redis is killed and begun again on its files. It runs twice: at a stub
server that ends a family when a spent refresh token comes back, and at one with a grace of 30 seconds.

Each process has an address of its own, new with each life, so the server's list of presentations says who presented
what, and each family that was lost has a proven cause. Ends with 1 if one was lost otherwise than by a process that was
killed between sending a refresh token and saving its successor (RULES 4.15), or if a grant was renewed too early.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.to_thread
import httpx2
import msgspec

from benchmarks.scale import percentile, table
from benchmarks.stub import AGAIN, DEAD, GRANTED, REUSED, Presentation, Report, Rules, Stub, account, serving
from mcp_oauth.exceptions import OAuthError
from mcp_oauth.io.httpx2 import OAuth
from mcp_oauth.sansio.messages import DEADLINE
from mcp_oauth.sansio.steps import Notice
from tests.integration.fleet import Site, redis_site
from tests.servers.process import ROOT
from tests.store.peer import Recipe

PATIENCE = 120.0
"""Seconds after which a request has failed."""
LATE = 1.0
"""Seconds after which a request may arrive whose sender was killed."""
KILLED = "process killed between send and save"
UNSAVED = "the store was down at the save"
UNEXPLAINED = "unexplained"


class Plan(NamedTuple):
    """One run."""

    rules: Rules
    seconds: float
    calm: float
    """The last seconds, in which nothing is killed."""
    processes: int = 8
    rate: float = 20.0
    """Requests a second of each process."""
    pause: float = 6.0
    """Seconds between two faults, on average."""
    restarts: int = 4
    """One of so many faults is the Redis's."""
    seed: int = 0


# --- A process of the fleet -------------------------------------------------------------------------------------------


class Orders(msgspec.Struct, frozen=True):
    """What a process is to do until its input ends."""

    recipe: Recipe
    mcp: str
    families: int
    address: str
    rate: float


class Request(msgspec.Struct, frozen=True, tag=True):
    """A request is over."""

    at: float
    """Wall seconds of its end."""
    family: int
    seconds: float
    outcome: str
    """The HTTP status, or why there was none."""


class Told(msgspec.Struct, frozen=True, tag=True):
    """The library gave notice."""

    at: float
    family: int
    name: str


Event = Request | Told


def _say(event: Event) -> None:
    """At once and whole, whatever thread says it and whoever is killed next."""
    os.write(sys.stdout.fileno(), msgspec.json.encode(event) + b"\n")


def _told(family: int, notice: Notice) -> None:
    _say(Told(time.time(), family, notice.name))


async def _serve(orders: Orders) -> None:
    store = orders.recipe.store()
    transport = partial(httpx2.AsyncHTTPTransport, local_address=orders.address)
    oauths = [
        OAuth(
            orders.mcp,
            account=account(family),
            store=store,
            interactive=False,
            transport=transport,
            on_notice=partial(_told, family),
        )
        for family in range(orders.families)
    ]
    async with (
        httpx2.AsyncClient(transport=transport(), timeout=PATIENCE) as client,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(_until_told, tasks.cancel_scope)
        while True:
            family = random.randrange(orders.families)
            tasks.start_soon(_request, client, oauths[family], family)
            await anyio.sleep(random.expovariate(orders.rate))


async def _until_told(scope: anyio.CancelScope) -> None:
    await anyio.to_thread.run_sync(sys.stdin.read)
    scope.cancel()


async def _request(client: httpx2.AsyncClient, oauth: OAuth, family: int) -> None:
    begun = time.monotonic()
    try:
        outcome = str((await client.post(oauth.server_url, auth=oauth)).status_code)
    except OAuthError as error:
        outcome = error.reason.value
    except httpx2.HTTPError as error:
        outcome = type(error).__name__
    _say(Request(time.time(), family, time.monotonic() - begun, outcome))


class Story(NamedTuple):
    """What became of a process."""

    address: str
    killed_at: float | None
    events: Sequence[Event]


# --- The fleet --------------------------------------------------------------------------------------------------------


class Life:
    """One process, from its beginning to its end."""

    def __init__(self, orders: Orders) -> None:
        self._address = orders.address
        self._killed_at: float | None = None
        self._events: list[Event] = []
        command = [sys.executable, "-m", "benchmarks.fleet", "--member"]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(orders) + b"\n")
        self._process.stdin.flush()
        self._listening = threading.Thread(target=self._listen)
        self._listening.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        decoder = msgspec.json.Decoder(Event)
        self._events.extend(map(decoder.decode, self._process.stdout))

    @property
    def story(self) -> Story:
        """Whole once it has ended."""
        return Story(self._address, self._killed_at, self._events)

    def kill(self) -> None:
        """Without a chance to tidy up."""
        self._process.kill()
        self._process.wait()
        self._killed_at = time.time()
        self._end()

    def end(self) -> None:
        """As a program ends: no more requests, then the end of what is under way."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)
        self._end()

    def _end(self) -> None:
        self._listening.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


class Fleet:
    """Its processes, the living and the dead."""

    def __init__(self, plan: Plan, site: Site, stub: Stub) -> None:
        self._plan = plan
        self._site = site
        self._stub = stub
        self.lives: list[Life] = []
        self.restarts = 0
        self._alive = [self._begin() for _ in range(plan.processes)]

    def _begin(self) -> Life:
        number = len(self.lives)
        address = f"127.1.{number // 250}.{number % 250 + 1}"
        orders = Orders(self._site.recipe, self._stub.mcp, self._plan.rules.families, address, self._plan.rate)
        self.lives.append(Life(orders))
        return self.lives[-1]

    def run(self) -> None:
        """Let it work, and let things befall it, and then let it work in peace."""
        plan, fate = self._plan, random.Random(self._plan.seed)
        end = time.monotonic() + plan.seconds
        number = 0
        while time.monotonic() + plan.calm + plan.pause < end:
            time.sleep(plan.pause * fate.uniform(0.5, 1.5))
            number += 1
            if number % plan.restarts == 0:
                self._restart_store(fate.uniform(0.2, 2.0))
            else:
                self._replace(fate.randrange(plan.processes))
        time.sleep(max(0.0, end - time.monotonic()))

    def _replace(self, place: int) -> None:
        self._alive[place].kill()
        self._alive[place] = self._begin()

    def _restart_store(self, seconds: float) -> None:
        self.restarts += 1
        self._site.go_down()
        time.sleep(seconds)
        self._site.come_back()

    def end(self) -> None:
        """Let all processes end."""
        for life in self._alive:
            life.end()


@contextmanager
def _fleet(plan: Plan, site: Site, stub: Stub) -> Iterator[Fleet]:
    with ExitStack() as undo:
        fleet = Fleet(plan, site, stub)
        undo.callback(fleet.end)
        yield fleet


# --- What came of it --------------------------------------------------------------------------------------------------


class Result(NamedTuple):
    """One run, looked at from all sides."""

    plan: Plan
    killed: int
    restarts: int
    requests: tuple[Request, ...]
    verdicts: Mapping[str, int]
    """Of the presentations of refresh tokens."""
    tokens: int
    """Refresh tokens that were presented, each counted once."""
    early: int
    """Renewals of a token that was good for long."""
    causes: Mapping[str, int]
    """Grants that were lost, by cause."""
    taken_over: tuple[float, ...]
    """Seconds from the first presentation of a token to that by another process."""
    not_persisted: int
    """Times that renewed tokens could not be saved at first."""


def run(plan: Plan) -> Result:
    """Have a fleet, a Redis and a server, and see what comes of them."""
    with serving() as stub, tempfile.TemporaryDirectory() as folder, redis_site(Path(folder)) as site:
        store = site.recipe.store()
        stub.log_in(store, plan.rules)
        with _fleet(plan, site, stub) as fleet:
            fleet.run()
        report = stub.report()
        stored = [stub.stored(store, family).refresh_token for family in range(plan.rules.families)]
    lost = [family for family, state in enumerate(report.families) if state.live != stored[family]]
    return judged(plan, fleet.restarts, [life.story for life in fleet.lives], report, lost)


def judged(plan: Plan, restarts: int, stories: Sequence[Story], report: Report, lost: Sequence[int]) -> Result:
    """Put together what the server and the processes say. `lost`: families whose stored refresh token is no good."""
    events = [event for story in stories for event in story.events]
    by_family: list[list[Presentation]] = [[] for _ in report.families]
    for presentation in report.presentations:
        by_family[presentation.family].append(presentation)
    return Result(
        plan,
        killed=sum(story.killed_at is not None for story in stories),
        restarts=restarts,
        requests=tuple(event for event in events if isinstance(event, Request)),
        verdicts=Counter(presentation.verdict for presentation in report.presentations),
        tokens=len({(presentation.family, presentation.generation) for presentation in report.presentations}),
        early=sum(_early(presentations, plan.rules.lifetime) for presentations in by_family),
        causes=Counter(cause(by_family[family], stories) for family in lost),
        taken_over=tuple(seconds for presentations in by_family for seconds in _taken_over(presentations)),
        not_persisted=sum(isinstance(event, Told) and event.name == "not-persisted" for event in events),
    )


def _early(presentations: Sequence[Presentation], lifetime: float) -> int:
    """A token may be renewed in the last tenth of its life, which begins when its predecessor is presented."""
    pairs = pairwise(each for each in presentations if each.verdict in (GRANTED, AGAIN))
    return sum(after.verdict == GRANTED and after.at - before.at < 0.8 * lifetime for before, after in pairs)


def _taken_over(presentations: Sequence[Presentation]) -> Iterator[float]:
    first: dict[int, Presentation] = {}
    for each in presentations:
        before = first.setdefault(each.generation, each)
        if each.presenter != before.presenter:
            yield each.at - before.at


def cause(presentations: Sequence[Presentation], stories: Sequence[Story]) -> str:
    """Why the successor of a spent token was not in the store: what became of the process that got it."""
    reused = next((each for each in presentations if each.verdict == REUSED), None)
    granted = [each for each in presentations if each.verdict in (GRANTED, AGAIN)]
    if reused is not None:
        granted = [each for each in granted if each.generation == reused.generation]
    if not granted:
        return UNEXPLAINED
    spent = granted[-1]
    (holder,) = (story for story in stories if story.address == spent.presenter)
    told = {
        event.name
        for event in holder.events
        if isinstance(event, Told) and event.family == spent.family and event.at > spent.at
    }
    if "not-persisted" in told:
        return UNSAVED
    killed = holder.killed_at is not None and -LATE < holder.killed_at - spent.at < DEADLINE
    return KILLED if killed and "renewed" not in told else UNEXPLAINED


def wrong(result: Result) -> list[str]:
    """What must not be."""
    found = [f"{count} grants lost: {why}" for why, count in result.causes.items() if why != KILLED]
    return found + ([f"{result.early} renewals too early"] if result.early else [])


def rows(result: Result) -> dict[str, str]:
    """What is told of a run."""
    served = [request.seconds for request in result.requests if request.outcome == "200"]
    failed = Counter(request.outcome for request in result.requests if request.outcome != "200")
    presented = sum(result.verdicts.values())
    plan = result.plan
    return {
        "processes": str(plan.processes),
        "grants": f"{plan.rules.families:,}",
        "seconds": f"{plan.seconds:.0f}",
        "an access token lives, s": f"{plan.rules.lifetime:.0f}",
        "processes killed": str(result.killed),
        "Redis killed": str(result.restarts),
        "renewals": str(result.verdicts[GRANTED]),
        "refresh requests for each expired token": f"{presented / max(1, result.tokens):.4f}",
        "presented by another process after, s: p50": f"{percentile(result.taken_over, 50):.1f}",
        "longest": f"{max(result.taken_over, default=0.0):.1f}",
        "presented again within grace": str(result.verdicts[AGAIN]),
        "presented to a dead family": str(result.verdicts[DEAD]),
        "renewed too early": str(result.early),
        "not saved at first": str(result.not_persisted),
        **{f"lost: {why}": str(result.causes[why]) for why in (KILLED, UNSAVED, UNEXPLAINED)},
        "requests served": str(len(served)),
        "requests failed": ", ".join(f"{why} {count}" for why, count in sorted(failed.items())) or "0",
        "served after, ms: p50": f"{percentile(served, 50) * 1e3:.1f}",
        "p99": f"{percentile(served, 99) * 1e3:.0f}",
        "p99.9": f"{percentile(served, 99.9) * 1e3:.0f}",
        "longest wait of any caller, s": f"{max((request.seconds for request in result.requests), default=0.0):.1f}",
    }


def main(seconds: float) -> int:
    """Run both and print; 1 if something is wrong."""
    calm = min(40.0, seconds / 3)
    plans = {
        "strict": Plan(Rules(1_000, lifetime=20, latency=0.05), seconds, calm),
        "grace of 30 s": Plan(Rules(1_000, lifetime=20, grace=30, latency=0.05), seconds, calm),
    }
    results = {name: run(plan) for name, plan in plans.items()}
    columns = [rows(result) for result in results.values()]
    print(table(["", *results], [[name, *(column[name] for column in columns)] for name in columns[0]]))
    found = [f"{name}: {what}" for name, result in results.items() for what in wrong(result)]
    print("\n".join(found), file=sys.stderr)
    return min(len(found), 1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet")
    parser.add_argument("--seconds", type=float, default=180.0, help="of each of the two runs")
    parser.add_argument("--member", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    options = _options()
    if options.member:
        logging.disable()  # the notices are told in another way
        anyio.run(_serve, msgspec.json.decode(sys.stdin.readline(), type=Orders))
    else:
        sys.exit(main(options.seconds))
