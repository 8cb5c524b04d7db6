"""A person who pastes, and an application that asks him itself."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import anyio
import pytest

from mcp_oauth.io.user import PasteBack, UserError, UserSession, as_user
from tests.io.people import ANSWER, ANY_PORT, AUTHORIZE, SOON, STATE

pytestmark = pytest.mark.usefixtures("nothing_is_left_of_threads")


# --- Paste ------------------------------------------------------------------------------------------------------------


class Terminal:
    """A person at a terminal."""

    def __init__(self, *lines: str) -> None:
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.written: list[str] = []
        for line in lines:
            self.lines.put(line)

    def session(self, uri: str = ANY_PORT) -> UserSession:
        return PasteBack(lambda: self.lines.get(timeout=SOON), self.written.append).listen(uri, None)


def test_fn_45_what_is_pasted_is_handed_on_as_it_is() -> None:
    terminal = Terminal(f"  {ANSWER}\n")
    with terminal.session() as session:
        session.show(AUTHORIZE, STATE)
        assert session.wait(SOON) == f"  {ANSWER}\n"
    (text,) = terminal.written
    assert AUTHORIZE in text
    assert session.redirect_uri in text


def test_fn_45_a_wrong_paste_is_asked_for_again() -> None:
    terminal = Terminal("wrong\n", ANSWER)
    with terminal.session() as session:
        session.show(AUTHORIZE, STATE)
        assert session.wait(SOON) == "wrong\n"
        assert session.wait(SOON) == ANSWER
    assert len(terminal.written) == 2


def test_waiting_for_a_paste_is_bounded_and_asks_once() -> None:
    terminal = Terminal()
    with terminal.session() as session:
        session.show(AUTHORIZE, STATE)
        assert session.wait(0.01) is None
        assert session.wait(0.01) is None
        terminal.lines.put(ANSWER)
        assert session.wait(SOON) == ANSWER
    assert len(terminal.written) == 1


def test_a_paste_that_comes_after_the_end_is_dropped() -> None:
    terminal = Terminal()
    with ThreadPoolExecutor(1) as pool:
        with terminal.session() as session:
            session.show(AUTHORIZE, STATE)
            waiting = pool.submit(session.wait, 60.0)
        with pytest.raises(UserError, match="closed"):
            waiting.result(SOON)
    terminal.lines.put(ANSWER)
    with pytest.raises(UserError, match="closed"):
        session.wait(SOON)


def test_nothing_can_be_waited_for_before_it_is_shown() -> None:
    with Terminal().session() as session, pytest.raises(UserError, match="nothing has been shown"):
        session.wait(0)


@contextlib.contextmanager
def standard_input(monkeypatch: pytest.MonkeyPatch, data: bytes) -> Iterator[None]:
    read, write = os.pipe()
    os.write(write, data)
    os.close(write)
    with os.fdopen(read) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield


def test_lines_are_read_from_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with standard_input(monkeypatch, b"first\nsecond \xff\nlast"), PasteBack().listen(ANY_PORT, None) as session:
        session.show(AUTHORIZE, STATE)
        assert [session.wait(SOON) for _ in range(3)] == ["first\n", "second \N{REPLACEMENT CHARACTER}\n", "last"]
        with pytest.raises(UserError, match="standard input is at its end"):
            session.wait(SOON)
    assert AUTHORIZE in capsys.readouterr().err


def test_a_program_that_gives_up_waiting_for_a_paste_ends_cleanly() -> None:
    """A thread left in `input()` would hold the lock of standard input, and abort the interpreter (exit code 134)."""
    program = f"""
from mcp_oauth.io.user import PasteBack
with PasteBack().listen({ANY_PORT!r}, None) as session:
    session.show({AUTHORIZE!r}, "s")
    assert session.wait(0.05) is None
"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.wait(60) == 0


# --- The application's own function -----------------------------------------------------------------------------------


async def async_agent(url: str) -> str:
    await anyio.sleep(0)
    return url + ANSWER


class Agent:
    async def __call__(self, url: str) -> str:
        return await async_agent(url)


@pytest.mark.parametrize("agent", [lambda url: url + ANSWER, async_agent, Agent()], ids=["sync", "async", "object"])
def test_a_function_is_a_user(agent: Callable[[str], str]) -> None:
    with as_user(agent).listen(ANY_PORT, None) as session:
        session.show(AUTHORIZE, STATE)
        assert session.wait(SOON) == AUTHORIZE + ANSWER


def fails(url: str) -> str:
    raise RuntimeError(url)


async def async_fails(url: str) -> str:
    raise RuntimeError(url)


def exits(url: str) -> str:
    raise SystemExit(url)


def times_out(url: str) -> str:
    raise TimeoutError(url)


def gives_none(url: str) -> None:
    return None


async def async_gives_none(url: str) -> None:
    return None


@pytest.mark.parametrize(
    ("agent", "reason"),
    [
        (fails, "the user agent failed: RuntimeError"),
        (async_fails, "the user agent failed: RuntimeError"),
        (exits, "the user agent failed: SystemExit"),
        (times_out, "the user agent failed: TimeoutError"),
        (gives_none, "the user agent failed: TypeError"),
        (async_gives_none, "the user agent gave no URL"),
    ],
)
def test_a_function_that_fails_is_named_without_what_it_said(agent: Callable[[str], str], reason: str) -> None:
    with as_user(agent).listen(ANY_PORT, None) as session:
        session.show(AUTHORIZE, STATE)
        with pytest.raises(UserError) as caught:
            session.wait(SOON)
    assert str(caught.value) == reason
    assert STATE not in "".join(traceback.format_exception(caught.value))


def test_a_function_may_say_why_it_failed() -> None:
    def declines(_url: str) -> str:
        raise UserError("the kiosk is closed")

    with as_user(declines).listen(ANY_PORT, None) as session:
        session.show(AUTHORIZE, STATE)
        with pytest.raises(UserError, match="the kiosk is closed"):
            session.wait(SOON)
