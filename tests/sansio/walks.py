"""Play a machine by a list of events, and hold it to what every machine promises."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import Any

import msgspec
import pytest
from hypothesis import strategies as st

from mcp_oauth.sansio.messages import Response
from mcp_oauth.sansio.steps import (
    ANSWERS,
    Await,
    Done,
    Event,
    Failed,
    Redirected,
    SendFailed,
    StillWaiting,
    UserFailed,
    Woke,
)
from mcp_oauth.sansio.values import Now
from tests.sansio.worlds import Run, round_trip, rows, transitions

CANARY = "canary"
"""Every secret of these tests has it in it, and nothing that is shown may."""
NOW = Now(1_700_000_000.0, 50.0)
LOST = SendFailed("timed out", may_have_arrived=True)
UNSENT = SendFailed("connection refused", may_have_arrived=False)
RESTED: tuple[Event, ...] = (UNSENT, Woke())


def table(names: str, cases: Mapping[str, tuple[Any, ...]]) -> pytest.MarkDecorator:
    """A table of cases by the rule that they prove."""
    return pytest.mark.parametrize(names, list(cases.values()), ids=list(cases))


def answer(status: int, /, **members: Any) -> Response:
    """A JSON answer."""
    return Response(status, (("Content-Type", "application/json"),), msgspec.json.encode(members))


def later(seconds: float) -> Now:
    return Now(NOW.wall + seconds, NOW.elapsed + seconds)


@cache
def asks_for_the_time(machine: ModuleType) -> bool:
    return "now" in inspect.signature(machine.advance).parameters


def advance(machine: ModuleType, step: Any, event: Event, now: Now) -> Any:
    """The machine's own `advance`, with the time if it asks for it."""
    if asks_for_the_time(machine):
        return machine.advance(step.state, event, now=now)
    return machine.advance(step.state, event)


def walk(machine: ModuleType, step: Any, *events: Event) -> Run:
    """Feed these events, the first at `later(1)`, the second at `later(2)`, …"""
    steps = [step]
    for n, event in enumerate(events, 1):
        assert isinstance(steps[-1], Await), f"over before event {n}: {steps[-1]!r}"
        steps.append(advance(machine, steps[-1], event, later(n)))
        assert steps[-1] == advance(machine, steps[-2], event, later(n)), "same state and event, another step"
    run = Run(tuple(steps), events)
    keeps_promises(machine, run)
    return run


def keeps_promises(machine: ModuleType, run: Run, *secrets: str) -> None:
    """Bounded, by its table, JSON at each step, and silent about secrets."""
    waits = [step for step in run.steps if isinstance(step, Await)]
    assert len(waits) <= machine.MOST_EFFECTS
    assert transitions(run) <= rows(machine)
    assert all(round_trip(machine, step) == step for step in waits)
    seen = "".join(map(shown, run.steps)) + "".join(map(repr, run.events))
    assert not [secret for secret in (CANARY, *secrets) if secret in seen]


def shown(step: Any) -> str:
    """All that a log could get of a step."""
    errors = (step.error,) if isinstance(step, Failed) else ()
    return "".join(map(repr, (step, *step.notices))) + "".join(f"{error}{error!r}" for error in errors)


# --- Whatever a peer may send -----------------------------------------------------------------------------------------

MEMBERS = (
    "access_token",
    "client_id",
    "client_secret",
    "client_secret_expires_at",
    "error",
    "error_description",
    "expires_in",
    "message",
    "ok",
    "refresh_token",
    "registration_access_token",
    "registration_client_uri",
    "scope",
    "token_endpoint_auth_method",
    "token_type",
)
TEXT = st.text('ab =&%+:/?#"\\\n\x00\x7fé€\U0001f600', max_size=8)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.sampled_from(
        ["", "0", "3600", "none", "client_secret_post", "Bearer", "invalid_client", "https://as.example/r"]
    ),
    TEXT,
    st.lists(st.none(), max_size=1),
)
BODIES = st.one_of(st.binary(max_size=20), st.dictionaries(st.sampled_from(MEMBERS), VALUES).map(msgspec.json.encode))
HEADERS = st.lists(
    st.tuples(
        st.sampled_from(["content-type", "location", "retry-after"]),
        st.sampled_from(["application/json", "application/x-www-form-urlencoded", "/r", "//evil.example", "3", "-1"]),
    ),
    max_size=3,
).map(tuple)
RESPONSES = st.builds(Response, st.sampled_from([200, 201, 204, 302, 307, 400, 401, 429, 500, 503]), HEADERS, BODIES)


def redirects(state: str) -> st.SearchStrategy[Redirected]:
    """Redirects with and without our `state`."""
    pairs = st.tuples(st.sampled_from(["code", "error", "error_description", "iss", "x"]), TEXT)
    ours = st.lists(pairs, max_size=4).map(lambda rest: [("state", state), *rest])
    whole = st.one_of(ours, st.lists(pairs, max_size=2))
    return whole.map(lambda params: Redirected("http://127.0.0.1/cb?" + "&".join("=".join(pair) for pair in params)))


def play_anything(machine: ModuleType, step: Any, data: st.DataObject, state: str = "") -> Run:
    """Answer each effect with anything that may answer it, until the machine ends."""
    answers: dict[type[Any], st.SearchStrategy[Any]] = {
        Response: RESPONSES,
        SendFailed: st.sampled_from([LOST, UNSENT]),
        Redirected: redirects(state),
        StillWaiting: st.just(StillWaiting()),
        UserFailed: st.just(UserFailed("no browser")),
        Woke: st.just(Woke()),
    }
    steps, events = [step], list[Event]()
    while isinstance(steps[-1], Await):
        kinds = ANSWERS[type(steps[-1].effect)]
        events.append(data.draw(st.one_of([answers[kind] for kind in kinds])))
        steps.append(advance(machine, steps[-1], events[-1], NOW))
        assert len(events) <= machine.MOST_EFFECTS
    assert isinstance(steps[-1], Done | Failed)
    run = Run(tuple(steps), tuple(events))
    keeps_promises(machine, run)
    return run
