"""A scripted world: what each URL answers. `run` plays a machine in it and keeps what was asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import msgspec

from mcp_oauth.sansio.messages import Response
from mcp_oauth.sansio.steps import ANSWERS, Await, Done, Event, Failed, Send, SendFailed

World = Mapping[str, Response | SendFailed]
Advance = Callable[[Any, Event], Any]

DOWN = SendFailed("no route to host", may_have_arrived=False)
HTML = Response(200, (("content-type", "text/html"),), b"<!doctype html><title>Sign in</title>")


class Run(NamedTuple):
    """How a machine went, from its first step to its last."""

    steps: tuple[Any, ...]
    events: tuple[Event, ...]

    @property
    def end(self) -> Any:
        return self.steps[-1]

    @property
    def asked(self) -> list[str]:
        """The URLs asked, in order."""
        return [step.effect.request.url for step in self.steps[:-1]]

    @property
    def notices(self) -> list[str]:
        """The names of the notices, in order."""
        return [notice.name for step in self.steps for notice in step.notices]


def document(members: Mapping[str, Any] | None = None, /, **more: Any) -> Response:
    """A JSON document with these members."""
    return Response(200, (("content-type", "application/json"),), msgspec.json.encode({**(members or {}), **more}))


def redirect(location: str, status: int = 302) -> Response:
    return Response(status, (("Location", location),))


def run(step: Any, advance: Advance, world: World) -> Run:
    """Play the machine until its end, for at most 200 effects; what the world does not have is 404."""
    steps, events = [step], list[Event]()
    while isinstance(step, Await) and len(events) < 200:
        assert isinstance(step.effect, Send)
        events.append(world.get(step.effect.request.url, Response(404)))
        step = advance(step.state, events[-1])
        steps.append(step)
    assert isinstance(step, Done | Failed)
    return Run(tuple(steps), tuple(events))


def play(machine: ModuleType, step: Any, world: World) -> Run:
    """`run`, and hold the machine to its promises: its bound, its table, its JSON, no query and no secret shown."""
    played = run(step, machine.advance, world)
    assert len(played.events) <= machine.MOST_EFFECTS
    assert transitions(played) <= rows(machine)
    assert all(step == round_trip(machine, step) for step in played.steps[:-1])
    assert "?" not in "".join(map(repr, played.steps))
    assert "?" not in "".join(notice.message for step in played.steps for notice in step.notices)
    if isinstance(played.end, Failed):
        assert "?" not in str(played.end.error) + "".join(map(str, played.end.error.attempts))
    return played


def round_trip(machine: ModuleType, step: Any) -> Any:
    """The step after a journey through JSON."""
    wait: Any = Await
    return msgspec.json.decode(msgspec.json.encode(step), type=wait[machine.State])


def transitions(played: Run) -> set[tuple[type, type, type, type]]:
    """(state, effect, event, next state or end), for each step taken."""
    return {
        (type(step.state), type(step.effect), type(event), type(getattr(after, "state", after)))
        for step, event, after in zip(played.steps, played.events, played.steps[1:], strict=False)
    }


def rows(machine: ModuleType) -> set[tuple[type, type, type, type]]:
    """The same, as the machine's table declares it."""
    return {
        (state, effect, event, after)
        for state, (effects, row) in machine.TABLE.items()
        for effect in effects
        for event in ANSWERS[effect]
        for after in row[event]
    }
