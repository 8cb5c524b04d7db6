"""The network between processes and servers. What arrives is processed, whatever becomes of who asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcp_oauth.sansio.messages import Request, Response
from mcp_oauth.sansio.steps import Send, SendFailed
from tests.simulation.scheduler import Task

if TYPE_CHECKING:
    from tests.simulation.processes import Process
    from tests.simulation.world import World

TOO_LATE = 12.0
"""Seconds that something takes which comes after the deadline of a request."""


class Wire:
    """Requests under way."""

    def __init__(self, world: World) -> None:
        self._world = world

    def send(self, process: Process, effect: Send) -> Response | SendFailed:
        """OAuth traffic, with its deadline."""
        world, request = self._world, effect.request
        fate = world.faults.of_request()
        if fate == "not sent":
            world.say(f"{process} cannot connect to {_where(request)}")
            world.oracle.unsent(process, request)
            return SendFailed("connection refused", may_have_arrived=False)
        deadline = world.scheduler.seconds + effect.seconds
        received = self._dispatch(process, request, fate)
        if fate in ("cut", "answer lost"):
            world.scheduler.sleep(0.5)
        else:
            world.scheduler.wait(deadline)
        world.oracle.answered(process, request, received[0] if received else None)
        if received:
            return received[0]
        world.say(f"{process} has no answer from {_where(request)}")
        return SendFailed("the connection was cut" if fate else "timed out", may_have_arrived=True)

    def _dispatch(self, process: Process, request: Request, fate: str) -> list[Response]:
        """Let a request travel. Returned is where its answer will be, if it comes."""
        world, received, task = self._world, list[Response](), self._world.scheduler.current
        there = world.faults.delay() + (TOO_LATE if fate == "arrives late" else 0.0)
        back = world.faults.delay() + (TOO_LATE if fate == "late answer" else 0.0)

        def arrive() -> None:
            if fate == "arrives late":
                world.oracle.arriving_late(request)
            response = world.answer(process, request)
            world.say(f"{_where(request)} answers {response.status} to {process}")
            if fate != "answer lost":
                world.scheduler.at(world.scheduler.seconds + back, lambda: deliver(response))

        def deliver(response: Response) -> None:
            received.append(response)
            self._wake(task)

        if fate != "cut":
            world.scheduler.at(world.scheduler.seconds + there, arrive)
        return received

    def _wake(self, task: Task) -> None:
        self._world.scheduler.wake(task)

    def proceed(self, process: Process, request: Request) -> Response:
        """A caller's own request: its troubles are not the library's."""
        self._world.scheduler.sleep(self._world.faults.delay())
        response = self._world.mcp.answer(request, self._world.scheduler.seconds)
        self._world.scheduler.sleep(self._world.faults.delay())
        return response


def _where(request: Request) -> str:
    return request.url.removeprefix("https://")
