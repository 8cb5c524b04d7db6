"""The ports: each effect, what the store, the person and the clock make of it, and what is left at the end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

import pytest

from mcp_oauth.io.ports import NOBODY_WAITS, Ports, Stopped, WallClock, now
from mcp_oauth.io.user import UserError
from mcp_oauth.sansio.grant import GrantRecord, encode
from mcp_oauth.sansio.steps import (
    Acquire,
    Acquired,
    Allowed,
    AskIssuer,
    Busy,
    Conflict,
    Effect,
    Event,
    Extend,
    Extended,
    Listen,
    Listening,
    Load,
    Loaded,
    OpenBrowser,
    Proceed,
    Redirected,
    Release,
    Released,
    Save,
    Saved,
    Sleep,
    StillWaiting,
    StoreFailed,
    UserFailed,
    Woke,
)
from mcp_oauth.store.base import Held, ProcessLease, StoreError
from mcp_oauth.store.memory import MemoryStore

RECORD = GrantRecord("r1", "https://mcp.example/mcp", "")
NEWER = GrantRecord("r2", "https://mcp.example/mcp", "")
LISTEN = Listen("http://127.0.0.1/callback")
ASK = AskIssuer("https://mcp.example/mcp", "https://as.example", ("a",))


def browser(seconds: float = 0.0, opened: bool = False) -> OpenBrowser:
    return OpenBrowser("https://as.example/authorize?x", "http://127.0.0.1:1/callback", "state", seconds, opened)


class Person:
    """A user and its session; `answers` are the results of each wait."""

    redirect_uri = "http://127.0.0.1:1/callback"

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.told: list[object] = []

    def listen(self, redirect_uri: str, port: int | None) -> Person:
        self.told.append(("listen", redirect_uri, port))
        return self

    def __enter__(self) -> Person:
        self.told.append("enter")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.told.append("exit")

    def show(self, url: str, state: str, /) -> None:
        self.told.append(("show", url, state))

    def wait(self, seconds: float) -> str | None:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        assert answer is None or isinstance(answer, str)
        return answer


class Counted(WallClock):
    """Says for `stops` looks that it is not yet time to stop."""

    def __init__(self, looks: int = 10**6) -> None:
        self.looks = looks
        self.told: list[str] = []

    def sleep(self, seconds: float) -> None:
        self.told.append(f"sleep {seconds}")
        if self.stopping():
            raise Stopped

    def ask_user(self) -> None:
        self.told.append("ask")

    def user_answered(self) -> None:
        self.told.append("answered")

    def stopping(self) -> bool:
        self.looks -= 1
        return self.looks < 0


def ports(store: Any = None, user: Any = None, clock: Any = None, allow: Any = None) -> Ports:
    return Ports(store or MemoryStore(), user or Person(), clock or Counted(), tell=print, allow_issuer=allow)


def perform(at: Ports, *effects: Effect) -> list[Event]:
    with at:
        return [at.perform(effect) for effect in effects]


# --- The store --------------------------------------------------------------------------------------------------------


def test_load_and_save() -> None:
    assert perform(
        ports(),
        Load("key"),
        Save("key", RECORD, None),
        Load("key"),
        Save("key", NEWER, None),
        Save("key", NEWER, "r1"),
        Load("key"),
    ) == [Loaded(None), Saved(), Loaded(RECORD), Conflict(RECORD), Saved(), Loaded(NEWER)]


def test_the_lock_is_tried_once_and_ends_with_the_machine() -> None:
    store = MemoryStore()
    store.save("key", encode(RECORD), revision="r1", expected=None)
    with ports(store) as holder:
        assert holder.perform(Acquire("key")) == Acquired(RECORD)
        (busy,) = perform(ports(store), Acquire("key"))
        assert isinstance(busy, Busy)
        assert "MainThread" in busy.holder
        assert holder.perform(Release()) == Released()
        assert perform(ports(store), Acquire("key")) == [Acquired(RECORD)]
        assert holder.perform(Acquire("key")) == Acquired(RECORD)
        assert holder.perform(Release()) == Released()
        assert holder.perform(Release()) == Released()


class Leased(MemoryStore):
    """Its locks lapse."""

    def __init__(self, *extends: bool) -> None:
        super().__init__()
        self.extends = list(extends)

    def try_lock(self, key: str) -> Any:
        store = self

        class Lease(ProcessLease):
            valid_until = 13.0
            exclusive = False

            def extend(self) -> bool:
                self.valid_until = 26.0
                return store.extends.pop(0)

        return Lease(lambda: None)


def test_RULES_4_9_a_lease_is_extended_until_it_is_lost() -> None:
    events = perform(ports(Leased(True, False)), Acquire("key"), Extend(), Extend())
    assert events == [Acquired(None, 13.0, exclusive=False), Extended(26.0), Extended(None)]


def test_without_a_lease_nothing_is_extended() -> None:
    assert perform(ports(), Extend()) == [Extended(None)]


def test_the_lock_ends_however_the_machine_ends() -> None:
    store = MemoryStore()
    with suppress(ZeroDivisionError), ports(store) as at:
        at.perform(Acquire("key"))
        raise ZeroDivisionError
    assert not isinstance(store.try_lock("key"), Held)


def test_a_record_of_a_newer_version_is_left_alone_and_its_lock_is_free() -> None:
    store = MemoryStore()
    store.save("key", b'{"type":"grants-9"}', revision="r1", expected=None)
    loaded, acquired, saved = perform(ports(store), Load("key"), Acquire("key"), Save("key", RECORD, None))
    assert isinstance(loaded, StoreFailed)
    assert "upgrade" in loaded.reason
    assert loaded == acquired == saved
    assert not isinstance(store.try_lock("key"), Held)


class Broken(MemoryStore):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def load(self, key: str) -> Any:
        raise self.error

    def save(self, key: str, value: bytes, *, revision: str, expected: str | None) -> Any:
        raise self.error

    def try_lock(self, key: str) -> Any:
        raise self.error


@pytest.mark.parametrize(
    ("error", "reason"),
    [(StoreError("the disk is full"), "the disk is full"), (KeyError("CANARY"), "the store raised KeyError")],
    ids=["RULES-4.11-StoreError", "RULES-4.11-against-its-contract"],
)
def test_a_failing_store_is_an_event(error: Exception, reason: str) -> None:
    answers = perform(ports(Broken(error)), Load("key"), Save("key", RECORD, None), Acquire("key"))
    assert answers == [StoreFailed(reason)] * 3


# --- The person -------------------------------------------------------------------------------------------------------


def test_a_login_listens_shows_waits_and_closes() -> None:
    person, clock = Person(None, None, "http://127.0.0.1:1/callback?code=c"), Counted()
    assert perform(ports(user=person, clock=clock), LISTEN, browser(60)) == [
        Listening(person.redirect_uri),
        Redirected("http://127.0.0.1:1/callback?code=c"),
    ]
    show = ("show", "https://as.example/authorize?x", "state")
    assert person.told == [("listen", LISTEN.redirect_uri, None), "enter", show, "exit"]
    assert clock.told == ["ask", "answered"]


def test_who_goes_on_waiting_shows_nothing_again() -> None:
    person = Person("http://127.0.0.1:1/callback?code=c")
    _, waiting, answered = perform(ports(user=person), LISTEN, browser(0), browser(60, opened=True))
    assert (waiting, isinstance(answered, Redirected)) == (StillWaiting(), True)
    assert person.told.count(("show", "https://as.example/authorize?x", "state")) == 1


def test_listening_anew_ends_the_first_listener() -> None:
    person = Person()
    perform(ports(user=person), LISTEN, LISTEN)
    listen = ("listen", LISTEN.redirect_uri, None)
    assert person.told == [listen, "enter", "exit", listen, "enter", "exit"]


@pytest.mark.parametrize(
    ("looks", "effects", "answers"),
    [
        (0, [LISTEN], [UserFailed(NOBODY_WAITS)]),
        (1, [LISTEN, browser()], [Listening(Person.redirect_uri), UserFailed(NOBODY_WAITS)]),
        (3, [LISTEN, browser(60)], [Listening(Person.redirect_uri), StillWaiting()]),
    ],
    ids=["before-listening", "before-the-browser", "while-waiting"],
)
def test_a_login_that_nobody_waits_for_ends_so_that_it_can_be_withdrawn(
    looks: int, effects: list[Effect], answers: list[Event]
) -> None:
    person = Person(None, None)
    assert perform(ports(user=person, clock=Counted(looks)), *effects) == answers
    assert person.told.count("enter") == person.told.count("exit")


def test_nothing_is_shown_where_nothing_listens() -> None:
    assert perform(ports(), browser()) == [UserFailed("nothing listens for the redirect")]


@pytest.mark.parametrize(
    ("error", "reason"),
    [(UserError("closed"), "closed"), (KeyError("CANARY"), "the application raised KeyError")],
    ids=["UserError", "the-applications-own"],
)
def test_a_failing_user_is_an_event(error: Exception, reason: str) -> None:
    def fail(*_: Any) -> Any:
        raise error

    assert perform(ports(user=Person(error)), LISTEN, browser(60))[1] == UserFailed(reason)
    assert perform(ports(allow=fail), ASK) == [UserFailed(reason)]


@pytest.mark.parametrize(
    ("allow", "answer"),
    [
        (None, Allowed()),
        (lambda *asked: asked == ("https://mcp.example/mcp", "https://as.example", ("a",)), Allowed()),
        (lambda *asked: False, UserFailed("https://as.example was not allowed for https://mcp.example/mcp")),
        (lambda *asked: object(), UserFailed("https://as.example was not allowed for https://mcp.example/mcp")),
    ],
    ids=["RULES-2.9-not-asked", "RULES-2.9-allowed", "RULES-2.9-refused", "RULES-2.9-a-coroutine-allows-nothing"],
)
def test_the_application_is_asked_about_an_issuer(allow: Callable[..., bool] | None, answer: Event) -> None:
    assert perform(ports(allow=allow), ASK) == [answer]


# --- The clock --------------------------------------------------------------------------------------------------------


def test_RULES_4_14_both_clocks_go_forward() -> None:
    first, at = now(), ports(clock=WallClock())
    assert perform(at, Sleep(0.0)) == [Woke()]
    second = at.now()
    assert second.elapsed >= first.elapsed > 0
    assert abs(second.wall - first.wall) < 60


def test_the_wall_clock_stops_for_nobody() -> None:
    clock = WallClock()
    clock.ask_user()
    clock.user_answered()
    assert not clock.stopping()


def test_a_sleep_is_the_clocks_and_may_end_the_run() -> None:
    assert perform(ports(clock=Counted()), Sleep(2.0)) == [Woke()]
    with pytest.raises(Stopped):
        perform(ports(clock=Counted(0)), Sleep(2.0))


def test_what_is_the_drivers_own_is_not_performed_here() -> None:
    with pytest.raises(TypeError, match="no driver for Proceed"):
        perform(ports(), Proceed(()))
