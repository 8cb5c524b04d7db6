"""What goes wrong: at single steps by chance, and at certain times. Each run has a few kinds of it (swarm testing)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from tests.simulation.choices import Choices
from tests.simulation.processes import Cancelled, Process
from tests.simulation.servers import ISSUERS

if TYPE_CHECKING:
    from tests.simulation.world import World

FAULTS_END = 120.0
"""Virtual seconds after which nothing goes wrong any more."""


class Faults:
    """What goes wrong at single steps."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._choices = world.choices

    def _active(self, kind: str) -> bool:
        return kind in self._world.setting.kinds and self._world.scheduler.seconds < FAULTS_END

    def delay(self) -> float:
        """Seconds that something takes."""
        if self._active("slow") and self._choices.happens(0.1):
            self._world.note("slow")
            return self._choices.of(1.5, 0.5)
        return (0.001, 0.003, 0.02, 0.1)[self._choices.pick(4, 0.5)]

    def of_exchange(self) -> str:
        """With a medium: it fails before or after what was asked is done."""
        if not self._active("store"):
            return ""
        return self._noted("store", ("", "before", "after")[self._choices.pick(3, 0.1)])

    def of_request(self) -> str:
        """To a server."""
        fates = [""]
        fates += ["not sent", "answer lost", "cut"] if self._active("network") else []
        fates += ["late answer", "arrives late"] if self._active("late") else []
        return self._noted("network", fates[self._choices.pick(len(fates), 0.25)]) if len(fates) > 1 else ""

    def kills(self, process: Process) -> bool:
        """Whether a process ends here."""
        if not (self._active("kill") and self._choices.happens(0.02)):
            return False
        self._world.restart_later(process)
        return True

    def pauses(self, process: Process) -> None:
        """A process may stand still here."""
        if self._active("stop") and self._choices.happens(0.04):
            process.pause(self._choices.of(3.0, 9.0, 14.0, 30.0))

    def _noted(self, kind: str, fault: str) -> str:
        if fault:
            self._world.note(kind)
        return fault


# --- At certain times -------------------------------------------------------------------------------------------------


def _victim(world: World) -> Process | None:
    living = [process for process in world.living() if not process.main_ended]
    return world.choices.of(*living) if living else None


def _kill(world: World) -> None:
    if victim := _victim(world):
        victim.kill()
        world.restart_later(victim)


def _stop(world: World) -> None:
    if victim := _victim(world):
        victim.pause(world.choices.of(3.0, 9.0, 14.0, 30.0))


def _suspend(world: World) -> None:
    """A machine sleeps: its programs stand still, and so does its monotonic clock."""
    host = world.choices.of(*world.hosts)
    seconds = world.choices.of(14.0, 40.0, 3.0)
    host.suspended += seconds
    for process in world.living():
        if process.host is host:
            process.pause(seconds)


def _jump(world: World) -> None:
    """A wall clock is set."""
    world.note("clock jumped")
    world.disturbed_at = world.scheduler.seconds
    world.choices.of(*world.hosts).skew += world.choices.of(3600.0, -3600.0, 86400.0, -86400.0)
    world.say("a clock jumps")
    world.oracle.taken_back("clock jumped")


def _lose_locks(world: World) -> None:
    world.note("locks lost")
    world.say("all locks are lost")
    world.medium.lose_locks()


def _unavailable(world: World) -> None:
    world.note("unavailable")
    server = world.servers[ISSUERS[0]]
    moods = server.moods
    moods.unavailable = world.choices.of(503, 429, 500)
    moods.retry_after = world.choices.of("", "3")
    moods.processes_first = moods.unavailable == 500 and world.choices.of(False, True)
    world.say(f"{server.issuer} answers {moods.unavailable}{' when it is done' if moods.processes_first else ''}")

    def over() -> None:
        moods.unavailable, moods.processes_first = 0, False

    world.scheduler.at(world.scheduler.seconds + world.choices.of(2.0, 8.0, 30.0), over)


def _refuse(world: World) -> None:
    """The MCP server refuses some good tokens."""
    world.note("refused")
    world.mcp.hiccups += world.choices.of(1, 2, 5, 40)


def _demand(world: World) -> None:
    world.note("scopes")
    world.mcp.demands = world.choices.of("more", "more still")


def _forget_clients(world: World) -> None:
    world.note("clients forgotten")
    world.servers[ISSUERS[0]].clients.clear()


def _change_issuer(world: World) -> None:
    world.note("issuer changed")
    world.mcp.issuer = ISSUERS[1]


def _revoke_elsewhere(world: World) -> None:
    world.note("revoked elsewhere")
    for server in world.servers.values():
        for family in server.families:
            family.revoked = family.revoked or "somebody revoked it"


def _refuse_early(world: World) -> None:
    world.note("refuses early")
    world.servers[ISSUERS[0]].refuses_early = True


def _take_back(world: World) -> None:
    """The store falls back to what it was: a power failure, or a failover to a replica that is behind."""
    world.note("taken back")
    world.say("the store falls back")
    world.disturbed_at = world.scheduler.seconds
    world.take_back(world.choices.of(1, 2, 3))


def _cancel(world: World) -> None:
    waiting = world.unanswered()
    if waiting:
        world.note("cancelled")
        world.scheduler.throw(world.choices.of(*waiting), Cancelled())


def _log_out(world: World) -> None:
    if victim := _victim(world):
        world.note("logged out")
        world.scheduler.spawn(f"{victim} logs out", victim, lambda: victim.log_out(victim.oauths[0]))


def _exit(world: World) -> None:
    """The main thread ends; whoever waited in it is gone."""
    if victim := _victim(world):
        world.note("exited")
        victim.exit()
        for task in world.unanswered():
            if task.machine is victim:
                world.scheduler.throw(task, Cancelled())
        world.restart_later(victim)


def _fork(world: World) -> None:
    if victim := _victim(world):
        world.note("forked")
        world.fork(victim)


EVENTS: Mapping[str, Callable[[World], None]] = {
    "kill": _kill,
    "stop": _stop,
    "suspend": _suspend,
    "jump": _jump,
    "locks lost": _lose_locks,
    "unavailable": _unavailable,
    "hiccups": _refuse,
    "scopes": _demand,
    "forget clients": _forget_clients,
    "issuer": _change_issuer,
    "revoke elsewhere": _revoke_elsewhere,
    "refuses early": _refuse_early,
    "take back": _take_back,
    "cancel": _cancel,
    "log out": _log_out,
    "exit": _exit,
    "fork": _fork,
}
KINDS = (*EVENTS, "network", "late", "store", "slow", "skew")


def kinds(choices: Choices) -> list[str]:
    """What may go wrong in a run."""
    return [kind for kind in KINDS if choices.happens(0.12)] if choices.happens(0.9) else []
