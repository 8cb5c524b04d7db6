"""The drive loop: perform the effect, feed the event back. Once for threads, once for event loops."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from mcp_oauth.io import trace
from mcp_oauth.io.ports import Answer, Ports
from mcp_oauth.sansio.steps import Await, Effect, Event, Send, Step
from mcp_oauth.sansio.values import Now

S = TypeVar("S")
R = TypeVar("R", covariant=True)


class Advance(Protocol[S, R]):
    """The second of a machine's two functions."""

    def __call__(self, state: S, event: Event, *, now: Now) -> Step[S, R]:
        """Judge an event."""
        ...


def drive(
    step: Step[S, R],
    advance: Advance[S, R],
    send: Callable[[Send], Answer],
    ports: Ports,
    until: type[Effect] | tuple[()] = (),
) -> Step[S, R]:
    """Run a machine in this thread: to its end, or to the first effect of the kind `until`."""
    with ports:
        while isinstance(step, Await) and not isinstance(step.effect, until):
            _tell(ports, step)
            effect = step.effect
            trace.asking(effect)
            event = send(effect) if isinstance(effect, Send) else ports.perform(effect)
            trace.answered(effect, event)
            step = advance(step.state, event, now=ports.now())
    _tell(ports, step)
    return step


async def drive_async(
    step: Step[S, R],
    advance: Advance[S, R],
    send: Callable[[Send], Awaitable[Answer]],
    ports: Ports,
    until: type[Effect] | tuple[()] = (),
) -> Step[S, R]:
    """The same in an event loop of its own, for an HTTP stack that needs one: only `send` is awaited."""
    with ports:
        while isinstance(step, Await) and not isinstance(step.effect, until):
            _tell(ports, step)
            effect = step.effect
            trace.asking(effect)
            event = await send(effect) if isinstance(effect, Send) else ports.perform(effect)
            trace.answered(effect, event)
            step = advance(step.state, event, now=ports.now())
    _tell(ports, step)
    return step


def _tell(ports: Ports, step: Step[S, R]) -> None:
    for notice in step.notices:
        ports.tell(notice)
