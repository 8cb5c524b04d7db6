"""Two processes and one fault, at every point of a renewal under a lease: nothing is lost that a client can save."""

from __future__ import annotations

import pytest

from mcp_oauth.sansio.keeping import Outcome
from mcp_oauth.sansio.steps import Done, Send, Sleep
from tests.sansio.leases import LEASE, Process, Server, World
from tests.sansio.walks import table

LONGEST = 8
"""Effects of a renewal whose first answer gets lost."""

at_every_point = pytest.mark.parametrize("done", range(LONGEST))


def begun(done: int, *, grace: float, lost: int) -> tuple[World, Process, bool]:
    """A renewal that has done so many effects; and whether no client can save the grant if it stops here for long.

    That is (RULES 4.15) between the last look at the clock and the request, and from there until the answer is saved,
    where the server has no grace.
    """
    world = World(Server(grace, lost))
    first = world.process("first")
    first.go(done)
    beyond_help = isinstance(first.effect, Send) or (world.server.given > 1 and not world.lives())
    return world, first, beyond_help and not grace


def ended_well(process: Process) -> bool:
    """With a token, or by looking again at what a peer has saved."""
    return isinstance(process.step, Done) and isinstance(process.step.value, Outcome)


def second_comes(world: World) -> Process:
    second = world.process("second")
    second.go()
    return second


@at_every_point
@table("grace, lost", {"strict": (0.0, 0), "grace": (60.0, 0), "answer-lost": (60.0, 1)})
class TestOneFault:
    def test_RULES_4_8_killed(self, done: int, grace: float, lost: int) -> None:
        world, _, _ = begun(done, grace=grace, lost=lost)
        spent = world.server.given > 1 and not world.lives()
        start = world.seconds
        second = second_comes(world)
        if not spent or grace:
            assert world.lives()
            assert ended_well(second)
        assert world.seconds - start < LEASE + 2

    def test_RULES_4_10_stopped_for_long(self, done: int, grace: float, lost: int) -> None:
        world, first, beyond_help = begun(done, grace=grace, lost=lost)
        second = second_comes(world)
        world.seconds += LEASE
        first.go()
        if not beyond_help:
            assert world.lives()
            assert ended_well(first)
            assert ended_well(second)

    def test_RULES_4_7_its_lock_is_lost(self, done: int, grace: float, lost: int) -> None:
        """The second one does what it can until it waits; then the first goes on.

        Where its answer was lost as well, it fails, and the second one saves the grant within the server's grace.
        """
        world, first, _ = begun(done, grace=grace, lost=lost)
        world.lock = None
        second = world.process("second")
        second.go(until=Sleep)
        first.go()
        second.go()
        assert world.lives()
        assert lost or ended_well(first)
        assert ended_well(second)
