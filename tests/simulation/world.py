"""One simulated run: a setting, processes with callers, faults for a while, and then a time in which all must heal.

outcome = run(Choices(chance=Random(seed)))
outcome.wrong        # the rule that was broken and how, or None
outcome.trace        # what happened, line by line
outcome.choices      # what replays it
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

from mcp_oauth.sansio.grant import Grant, GrantRecord, Registration, encode
from mcp_oauth.sansio.messages import Request, Response
from mcp_oauth.store.base import Saved, Store
from mcp_oauth.store.memory import MemoryStore
from tests.simulation.choices import Choice, Choices
from tests.simulation.faults import EVENTS, FAULTS_END, Faults, kinds
from tests.simulation.media import Disk, Medium, RedisServer, VaultServer
from tests.simulation.oracle import Oracle
from tests.simulation.processes import (
    EPOCH,
    KEY,
    LOGIN_SECONDS,
    Cancelled,
    Host,
    Process,
    Session,
    SimulatedOAuth,
    substituted,
)
from tests.simulation.scheduler import Scheduler, Task
from tests.simulation.servers import ISSUERS, MCP, POLICIES, AuthorizationServer, Family, McpServer, Policy
from tests.simulation.wire import Wire

HEALED = FAULTS_END + 60.0
"""By then every caller is answered who is not in a login."""
LAST = HEALED + 20 * LOGIN_SECONDS

MEDIA = ("disk", "redis", "vault", "memory")

T = TypeVar("T")


@dataclass
class Setting:
    """What a run is like."""

    medium: str
    policy: Policy
    lifetime: float
    processes: int
    objects: int
    callers: int
    requests: int
    gap: float
    """Seconds between a caller's requests."""
    logged_in: bool
    left: float
    """Seconds that the first token is good for, at most."""
    person: str
    interactive: bool
    kinds: frozenset[str]


def _setting(choices: Choices, only: Collection[str]) -> Setting:
    return Setting(
        medium=choices.of(*_named(MEDIA, only)),
        policy=choices.of(*_named(POLICIES, only)),
        lifetime=choices.of(60.0, 20.0, 300.0),
        processes=choices.of(2, 1, 3),
        objects=choices.of(1, 2),
        callers=choices.of(1, 2, 3),
        requests=choices.of(1, 3, 6),
        gap=choices.of(10.0, 0.1, 30.0),
        logged_in=choices.of(True, True, True, True, True, False),
        left=choices.of(-5.0, -5.0, 3.0, 1000.0),
        person=choices.of("accepts", "accepts", "accepts", "denies", "slow", "never", "absent"),
        interactive=choices.of(True, True, True, False),
        kinds=frozenset(only or kinds(choices)),
    )


def _named(options: tuple[T, ...], only: Collection[str]) -> tuple[T, ...]:
    return tuple(option for option in options if option in only) or options


class Operator:
    """Gets at a medium at once and without faults: what was there before the run began."""

    name = "operator"

    def __init__(self, world: World) -> None:
        self._world = world

    def exchange(self, what: str, do: Callable[[], T], broken: Callable[[str], Exception]) -> T:
        return do()

    def saved(self) -> None: ...

    def seconds(self) -> float:
        return self._world.medium_seconds()


class World:
    """All of it."""

    def __init__(self, choices: Choices, only: Collection[str]) -> None:
        self.choices = choices
        self.setting = setting = _setting(choices, only)
        self.scheduler = Scheduler(choices)
        self.trace: list[str] = []
        self.wrong: tuple[str, str] | None = None
        self.happened: set[str] = set()
        self.disturbed_at = -1.0
        """When a process stood still, or a clock jumped, for the last time."""
        self._entropy = 0
        self._pids = 0
        self._restarts = 0
        self.oracle = Oracle(self)
        self.faults = Faults(self)
        self.wire = Wire(self)
        self.servers = {
            issuer: AuthorizationServer(issuer, setting.policy, setting.lifetime, self.say) for issuer in ISSUERS
        }
        for server in self.servers.values():
            server.reused = self.oracle.reused
            server.hurried = self.oracle.hurried
        self.mcp = McpServer(self.servers)
        self.medium: Medium = {"redis": RedisServer, "vault": VaultServer}.get(setting.medium, Disk)()
        self.medium.durable = "take back" not in setting.kinds
        self.snapshots: list[tuple[Any, dict[Any, GrantRecord]]] = []
        self.hosts = [Host(1, 0.0), Host(2, 8.0 if "skew" in setting.kinds else 0.0)]
        self.processes: list[Process] = []
        self.callers: dict[Task, Process] = {}
        self.waiting: dict[Task, None] = {}
        """Callers in a request."""
        self.scheduler.pausing = self.oracle.pausing

    # --- What others ask ------------------------------------------------------------------------------------------

    @property
    def process(self) -> Process:
        """The one that runs."""
        machine = self.scheduler.current.machine
        assert isinstance(machine, Process)
        return machine

    def say(self, line: str) -> None:
        """A line of the trace."""
        self.trace.append(f"{self.scheduler.seconds:9.3f} {line}")

    def note(self, what: str) -> None:
        """Something has gone wrong, and may explain what comes."""
        self.happened.add(what)

    def violated(self, rule: str, what: str) -> None:
        """A rule is broken: the first one counts."""
        self.say(f"WRONG {rule}: {what}")
        self.wrong = self.wrong or (rule, what)

    def new_pid(self) -> int:
        self._pids += 1
        return self._pids

    def entropy(self, count: int) -> bytes:
        """Bytes that are never given again, and are the same in each replay."""
        self._entropy += 1
        return hashlib.shake_256(str(self._entropy).encode()).digest(count)

    def open_store(self, process: Process) -> Store:
        """The store of a process that begins."""
        return MemoryStore() if self.setting.medium == "memory" else self.medium.store(process)

    def answer(self, process: Process, request: Request) -> Response:
        """What a server says to OAuth traffic."""
        server = self.servers.get(request.url[: request.url.index("/", 8)])
        if server is None:
            return self.mcp.answer(request, self.scheduler.seconds)
        return server.answer(request, process, self.scheduler.seconds)

    def decision(self) -> tuple[float | None, bool]:
        """After how many seconds a person decides (None: never), and how."""
        match self.setting.person:
            case "accepts":
                return 2.0, True
            case "denies":
                self.note("person")
                return 2.0, False
            case "slow":
                return 45.0, True
            case _:
                self.note("person")
                return None, False

    def medium_seconds(self) -> float:
        """The medium's own clock."""
        return self.scheduler.seconds + 7.0

    def sessions(self, place: str) -> list[Session]:
        """The logins that wait for a person, of those who share a store."""
        living = (one for one in self.processes if not one.dead and one.place == place)
        return [session for process in living for session in process.listeners]

    # --- The course of a run --------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Processes and callers, and what will happen to them."""
        setting = self.setting
        count = 1 if setting.medium == "memory" else setting.processes
        processes = [self._start(f"p{number + 1}", self.hosts[number % 2]) for number in range(count)]
        if setting.logged_in:
            before = self.scheduler.spawn("before", processes[0], self._log_in)
            self.scheduler.run(0.0, lambda: before.ended)
        else:
            self.note("new")
        for process in processes:
            self._call_all(process)
        for kind, befall in EVENTS.items():
            if kind in setting.kinds:
                for _ in range(self.choices.of(1, 2, 3)):
                    when = self.choices.of(0.0, 0.05, 0.2, 1.0, 5.0, 13.0, 20.1, 40.0, 61.0, 80.0)
                    self.scheduler.at(when, partial(befall, self))

    def _start(self, name: str, host: Host) -> Process:
        process = Process(
            self,
            name,
            host,
            interactive=self.setting.interactive,
            threads=self.choices.of(False, True),
        )
        self.processes.append(process)
        return process

    def _call_all(self, process: Process) -> None:
        for number in range(self.setting.callers):
            client = process.oauths[number % len(process.oauths)]
            start = self.scheduler.seconds + self.choices.of(0.0, 0.0, 0.05, 1.0, 20.0)
            self.call(process, f"{process} caller {number + 1}", client, start, self.setting.requests)

    def call(self, process: Process, name: str, client: SimulatedOAuth, start: float, requests: int) -> None:
        """A caller, who makes some requests."""

        def caller() -> None:
            self.scheduler.sleep(start - self.scheduler.seconds)
            for _ in range(requests):
                if self.scheduler.seconds < FAULTS_END or requests == 1:
                    self._one_request(process, client)
                    self.scheduler.sleep(self.setting.gap)

        self.callers[self.scheduler.spawn(name, process, caller)] = process

    def _one_request(self, process: Process, client: SimulatedOAuth) -> None:
        task = self.scheduler.current
        self.waiting[task] = None
        try:
            result = process.request(client)
        except Cancelled:
            self.say(f"{task.name} is cancelled")
        else:
            self.oracle.caller_ended(process, result)
        finally:
            self.waiting.pop(task, None)

    def _log_in(self) -> None:
        """A grant that was obtained before the run began."""
        server = self.servers[ISSUERS[0]]
        server.clients["client-0"] = "http://127.0.0.1:5000/callback"
        family = Family(1, "client-0", "", MCP)
        server.families.append(family)
        obtained = min(0.0, self.setting.left - self.setting.lifetime)
        answer = server.issue(family, None, obtained)
        grant = Grant(
            server.issuer,
            Registration(server.issuer, "client-0", "dcr", "none", server.clients["client-0"]),
            f"{server.issuer}/token",
            answer["access_token"],
            EPOCH + obtained,
            "lineage-0",
            logged_in_at=EPOCH - 3600.0,
            expires_at=EPOCH + obtained + self.setting.lifetime,
            refresh_token=answer["refresh_token"],
            resource=MCP,
            revocation_endpoint=f"{server.issuer}/revoke",
        )
        record = GrantRecord("revision-0", MCP, "", (grant,), server.issuer, resource_metadata_seen=True)
        memory = self.setting.medium == "memory"
        store = self.processes[0].inner if memory else self.medium.store(Operator(self))
        assert isinstance(store.save(KEY, encode(record), revision=record.revision, expected=None), Saved)
        self.oracle.found(self.processes[0].place, KEY, record)
        self.remember()

    def restart_later(self, process: Process) -> None:
        """Another process takes the place of one that has ended."""
        self._restarts += 1
        name = f"{process.name.partition('.')[0]}.{self._restarts}"
        wait = self.scheduler.seconds + self.choices.of(0.2, 5.0, 20.0)
        self.scheduler.at(wait, lambda: self._call_all(self._start(name, process.host)))

    def fork(self, parent: Process) -> None:
        """A child of a process, whose callers go on with what they find."""
        child = parent.fork(f"{parent.name}+{len(self.processes)}")
        self.processes.append(child)
        self.call(child, f"{child.name} caller", child.oauths[0], self.scheduler.seconds, self.setting.requests)

    def remember(self) -> None:
        """What the medium has now may be all that it has later."""
        self.snapshots.append((self.medium.snapshot(), dict(self.oracle.truth)))

    def take_back(self, saves: int) -> None:
        """The store falls back by so many saves."""
        if len(self.snapshots) <= saves or self.setting.medium == "memory":
            return
        del self.snapshots[-saves:]
        snapshot, truth = self.snapshots[-1]
        self.medium.restore(snapshot)
        self.oracle.truth = dict(truth)
        self.oracle.taken_back("taken back")

    def heal(self) -> None:
        """Nothing goes wrong from here on."""
        for server in self.servers.values():
            server.moods.unavailable = 0
            server.refuses_early = False
        self.mcp.hiccups = 0
        self.say("all faults end")

    def probe(self) -> None:
        """Once more, a request from a process that has just begun: what is in the store, and does it work?"""
        running = [process for process in self.living() if not process.main_ended]
        process = running[0] if self.setting.medium == "memory" and running else None
        if process is None:
            self.setting.interactive, self.setting.callers = False, 0
            process = self._start("probe", self.hosts[0])
        self.call(process, "probe", process.oauths[0], self.scheduler.seconds, 1)

    def living(self) -> list[Process]:
        return [process for process in self.processes if not process.dead]

    def unanswered(self) -> list[Task]:
        """Callers that still wait."""
        return [task for task in self.waiting if not task.machine.dead]


class Outcome(NamedTuple):
    """What came of a run."""

    choices: Choice
    wrong: tuple[str, str] | None
    trace: tuple[str, ...]
    unsavable: Counter[str]
    reasons: Counter[str]
    happened: frozenset[str]

    @property
    def hash(self) -> str:
        """The same for the same run, on each machine."""
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()


def run(choices: Choices, only: Collection[str] = ()) -> Outcome:
    """One run. `only`: the kinds of faults, the media and policies that it may have, instead of any by chance."""
    world = World(choices, only)
    with substituted(world):
        try:
            world.begin()
            _pass_time(world)
        finally:
            world.scheduler.close()
    oracle = world.oracle
    return Outcome(
        tuple(choices.taken),
        world.wrong,
        tuple(world.trace),
        oracle.unsavable,
        oracle.reasons,
        frozenset(world.happened),
    )


def _pass_time(world: World) -> None:
    scheduler, oracle = world.scheduler, world.oracle
    scheduler.run(FAULTS_END, lambda: world.wrong is not None)
    world.heal()
    scheduler.run(HEALED, lambda: world.wrong is not None)
    oracle.judge_healed()
    scheduler.run(LAST, lambda: world.wrong is not None or not world.unanswered())
    oracle.judge_answered()
    world.probe()
    scheduler.run(scheduler.seconds + LAST, lambda: world.wrong is not None)
    oracle.judge_end()
