"""The language between the core and the world, and how machines nest."""

from __future__ import annotations

import inspect
import re
from typing import Any, get_args

import msgspec
import pytest

from mcp_oauth.sansio import fetching
from mcp_oauth.sansio.errors import Failure, Reason
from mcp_oauth.sansio.fetching import Fetching
from mcp_oauth.sansio.grant import GrantRecord
from mcp_oauth.sansio.messages import Request, Response
from mcp_oauth.sansio.steps import (
    ANSWERS,
    Acquire,
    Acquired,
    Await,
    Busy,
    Done,
    Effect,
    Event,
    Failed,
    Load,
    Misuse,
    Notice,
    OpenBrowser,
    Proceed,
    Save,
    Send,
    SendFailed,
    Sleep,
    Step,
    Table,
    Woke,
    inside,
    noting,
    within,
)
from mcp_oauth.sansio.values import Value


def test_answers_cover_every_effect_and_event() -> None:
    assert set(ANSWERS) == set(get_args(Effect))
    assert {event for events in ANSWERS.values() for event in events} == set(get_args(Event))


@pytest.mark.parametrize("effect", ANSWERS, ids=lambda effect: effect.__name__)
def test_docstrings_tell_the_answers(effect: type[Any]) -> None:
    """`... -> Response, SendFailed.` in an effect's docstring is what ANSWERS has."""
    told = re.search(r"-> ([\w, ]+)\.", inspect.getdoc(effect) or "")
    assert told is not None
    assert tuple(told[1].split(", ")) == tuple(event.__name__ for event in ANSWERS[effect])


def test_effects_and_events_have_tags_of_their_own() -> None:
    tags = [kind.__struct_config__.tag for kind in (*get_args(Effect), *get_args(Event))]
    assert len(set(tags)) == len(tags)


RECORD = GrantRecord("r", "https://h.example", "")
EFFECTS = [
    Send(Request("POST", "https://h.example", (("a", "b"),), b"\xff")),
    OpenBrowser("https://a.example?state=s3cret", "http://127.0.0.1:1/cb", "s3cret", 5.0),
    Sleep(1.5),
    Acquire("k"),
    Load("k"),
    Save("k", RECORD, None),
    Proceed((("authorization", "Bearer s3cret"),)),
]


@pytest.mark.parametrize("effect", EFFECTS, ids=lambda effect: type(effect).__name__)
def test_a_wait_goes_through_json(effect: Any) -> None:
    step = Await(Fetching("https://h.example"), effect, (Notice("renewed", "message"),))
    assert msgspec.json.decode(msgspec.json.encode(step), type=Await[Fetching]) == step
    assert "s3cret" not in repr(step)


@pytest.mark.parametrize("event", [Response(200), SendFailed("x", True), Acquired(RECORD), Busy("pid 1"), Woke()])
def test_an_event_goes_through_json(event: Any) -> None:
    assert msgspec.json.decode(msgspec.json.encode(event), type=Event) == event


def test_limits_of_a_request() -> None:
    """RULES 4.9, FN 30."""
    sent = Send(Request("GET", "https://h.example"))
    assert (sent.max_bytes, sent.seconds) == (1 << 20, 10.0)


def test_misuse_names_both_and_shows_nothing() -> None:
    assert str(Misuse(Fetching("https://h?s3cret"), Woke())) == "Woke does not answer what Fetching waits for"
    assert issubclass(Misuse, Exception)


# --- Nesting ----------------------------------------------------------------------------------------------------------


class Outer(Value, frozen=True):
    inner: str


ONE, TWO = Notice("renewed", "one"), Notice("revoked", "two")
FAILURE = Failure(Reason.NO_S256, "message")


def nest(step: Step[str, int], then: Any = Done, **more: Any) -> Step[Outer, str]:
    return within(step, Outer, then, **more)


def test_a_wait_inside_becomes_ours() -> None:
    assert nest(Await("state", Sleep(1.0), (ONE,))) == Await(Outer("state"), Sleep(1.0), (ONE,))


def test_a_result_goes_on() -> None:
    assert nest(Done(1), lambda n: Done(str(n + 1))) == Done("2")
    assert nest(Done(1), lambda n: Await(Outer(str(n)), Sleep(2.0))) == Await(Outer("1"), Sleep(2.0))
    assert nest(Done(1), lambda n: Failed(FAILURE)) == Failed(FAILURE)


def test_a_failure_ends_us() -> None:
    assert nest(Failed(FAILURE, (ONE,))) == Failed(FAILURE, (ONE,))


def test_a_failure_can_be_caught() -> None:
    assert nest(Failed(FAILURE, (ONE,)), otherwise=lambda error: Done(error.message)) == Done("message", (ONE,))


@pytest.mark.parametrize("after", [Await(Outer("x"), Sleep(1.0), (TWO,)), Done("x", (TWO,)), Failed(FAILURE, (TWO,))])
def test_notices_of_an_end_come_before_those_of_what_follows(after: Any) -> None:
    assert nest(Done(1, (ONE,)), lambda n: after).notices == (ONE, TWO)
    assert nest(Failed(FAILURE, (ONE,)), otherwise=lambda error: after).notices == (ONE, TWO)


def test_noting() -> None:
    assert noting(Done(1, (TWO,)), ONE) == Done(1, (ONE, TWO))
    assert noting(Done(1, (TWO,))) == Done(1, (TWO,))


# --- Tables -----------------------------------------------------------------------------------------------------------


def test_a_state_that_runs_a_machine_waits_for_what_it_waits_for() -> None:
    assert inside(fetching.TABLE, Outer, Done) == ((Send,), {Response: (Outer, Done), SendFailed: (Outer, Done)})
    both: Table = {**fetching.TABLE, Outer: ((Sleep, Send), {})}
    assert inside(both, Done) == ((Send, Sleep), dict.fromkeys((Response, SendFailed, Woke), (Done,)))
