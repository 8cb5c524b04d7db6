"""The only door to the terminal."""

from __future__ import annotations

import io
import json
import sys
import time
from contextlib import suppress
from typing import Any

import pytest

from mcp_oauth.cli.failures import CommandError, Exit, code_of, document_of
from mcp_oauth.cli.options import user_of
from mcp_oauth.cli.output import MOST, Screen, clean, clean_all, dots, from_now, moment
from mcp_oauth.exceptions import from_failure
from mcp_oauth.io.user import UserError
from mcp_oauth.sansio.errors import Fault, Reason, failure
from tests.cli.site import DANGEROUS, HOSTILE
from tests.io.servers import PATIENCE

DOCUMENT: dict[str, Any] = {"servers": []}
COLUMNS = ("Name", "Server", "Account")
ROWS = [("one", "https://one.example/a-long-path", None), ("two", "https://two.example/" + "x" * 60, "")]


@pytest.mark.parametrize("character", DANGEROUS, ids=[hex(ord(c)) for c in DANGEROUS])
def test_clean_leaves_no_character_that_talks_to_a_terminal(character: str) -> None:
    assert clean(f"a{character}b") == "a b"


def test_clean_all_reaches_every_text() -> None:
    cleaned = clean_all({HOSTILE: [HOSTILE, (HOSTILE, 1, None, True, 1.5)]})
    assert json.loads(json.dumps(cleaned)) == cleaned
    assert not [character for character in DANGEROUS if character in json.dumps(cleaned, ensure_ascii=False)]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.9, "in 0 seconds"), (1.9, "in 1 second"), (59.9, "in 59 seconds"), (61, "in 1 minute"),
        (2530, "in 42 minutes"), (7300, "in 2 hours"), (90000, "in 1 day"), (-61, "1 minute ago"),
        (-200000, "2 days ago"),
        (1e15, "days"),
    ],
)  # fmt: skip
def test_from_now(seconds: float, words: str) -> None:
    assert words in from_now(time.time() + seconds)


@pytest.mark.parametrize("wall", [None, 1e15, float("inf"), float("nan")])
def test_moment_that_no_calendar_has(wall: float | None) -> None:
    assert moment(wall) is None


def test_dots() -> None:
    assert (dots("abcd"), dots(""), dots(None)) == ("...abcd", None, None)


# --- Terminals --------------------------------------------------------------------------------------------------------


class _Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, columns: int, encoding: str = "utf-8", **settings: str) -> str:
    """What a terminal shows of a table and a result."""
    for name, value in {"TERM": "xterm-256color", "COLUMNS": str(columns), **settings}.items():
        monkeypatch.setenv(name, value)
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", _Terminal(raw, encoding=encoding, errors="backslashreplace"))
    screen = Screen()
    screen.show_table(DOCUMENT, COLUMNS, ROWS, "none")
    screen.show(DOCUMENT, "[red]Markup[/red] :bomb: é", [("Server", HOSTILE), ("Missing", None)])
    sys.stdout.flush()
    return raw.getvalue().decode(encoding)


def test_a_terminal_gets_colours_and_a_table_without_empty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, 120)
    assert "\x1b[1m" in text
    assert "Account" not in text
    assert "Missing" not in text
    assert "─" in text


def test_markup_of_others_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, 120)
    assert "[red]Markup[/red] :bomb:" in text
    assert "[red]bold[/red] :bomb:" in text
    assert "\x1b]0;" not in text
    assert "\x1b[2J" not in text


def test_NO_COLOR(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, 120, NO_COLOR="1")
    assert "\x1b[32m" not in text
    assert "\x1b[1;32m" not in text


def test_a_dumb_terminal_gets_no_escape_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b" not in shown(monkeypatch, 120, TERM="dumb")


@pytest.mark.parametrize("columns", [1, 10, 40, 71])
def test_a_narrow_terminal_gets_a_list_with_everything(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    text = shown(monkeypatch, columns)
    for name, server, _ in ROWS:
        assert name in text
        assert server in text


@pytest.mark.parametrize(("columns", "table"), [(72, False), (88, False), (89, True)])
def test_a_table_never_cuts_an_address(monkeypatch: pytest.MonkeyPatch, columns: int, table: bool) -> None:
    text = shown(monkeypatch, columns)
    assert all(server in text for _, server, _ in ROWS)
    assert ("─" in text) is table


def test_a_terminal_without_UTF_8_gets_escapes_and_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, 120, "ascii")
    assert "\\xe9" in text
    assert "one" in text


# --- How much ---------------------------------------------------------------------------------------------------------

LONG = f"https://as.example/authorize?scope={'s' * 5000}&state=the-end"


def test_what_the_command_says_itself_is_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    """An authorization URL without its end is none."""
    user = user_of(Screen(), no_browser=True)
    with user.listen("https://app.example/callback", None) as login, suppress(UserError):
        login.show(LONG, "the-end")
        login.wait(PATIENCE)  # nobody pastes anything
    assert f"\n{LONG}\n" in capsys.readouterr().err


def test_of_what_others_say_a_person_is_shown_a_part(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    screen.show(DOCUMENT, "", [("Server", "x" * 9000)])
    screen.failed(CommandError(Exit.FAILED, "x" * 9000, "look"))
    told = capsys.readouterr()
    assert (told.out, told.err) == (f"Server\t{'x' * MOST}\n", f"Error: {'x' * MOST}\nWhat to do: look\n")


def test_JSON_has_all_of_it_with_its_line_ends(capsys: pytest.CaptureFixture[str]) -> None:
    text = "one line,\n\tand more" * 1000
    Screen(as_json=True).show({"description": text}, "", [])
    assert json.loads(capsys.readouterr().out)["description"] == text


# --- Pipes and JSON ---------------------------------------------------------------------------------------------------


def test_a_pipe_gets_tabs_and_whole_lines(capsys: pytest.CaptureFixture[str]) -> None:
    Screen().show_table(DOCUMENT, COLUMNS, ROWS, "none")
    assert capsys.readouterr().out == "".join(f"{name}\t{server}\t-\n" for name, server, _ in ROWS)


def test_JSON_is_ASCII(capsys: pytest.CaptureFixture[str]) -> None:
    Screen(as_json=True).show({"name": "é\u202e"}, "", [])
    assert capsys.readouterr().out == '{\n  "name": "\\u00e9 "\n}\n'


# --- Failures ---------------------------------------------------------------------------------------------------------

CODES: dict[Fault, int] = {
    "caller": 2, "resource server": 1, "authorization server": 1, "user": 3, "network": 6, "store": 5
}  # fmt: skip


@pytest.mark.parametrize("reason", Reason)
def test_the_exit_code_is_by_whose_fault_it_is(reason: Reason) -> None:
    error = from_failure(failure(reason, "this happened"))
    assert code_of(error) == CODES[reason.fault]
    told = document_of(error)
    assert told["reason"] == reason.value
    assert "=True" not in told["cure"] or reason.stage == "discovery", "the cure is a line of Python"


def test_a_failure_is_told_with_its_place_and_cure(capsys: pytest.CaptureFixture[str]) -> None:
    Screen().failed(from_failure(failure(Reason.NO_S256, HOSTILE, url="https://as.example/token?secret=1")))
    told = capsys.readouterr()
    assert told.out == ""
    assert "Where: stage discovery, url https://as.example/token\n" in told.err
    assert "What to do: " in told.err
    assert not [character for character in DANGEROUS if character in told.err]


def test_a_failure_in_JSON_is_the_only_output(capsys: pytest.CaptureFixture[str]) -> None:
    Screen(as_json=True).failed(CommandError(Exit.UNKNOWN, "no such server", "look"))
    told = capsys.readouterr()
    assert told.err == ""
    assert json.loads(told.out) == {
        "ok": False,
        "error": {
            "reason": "unknown", "stage": "command", "message": "no such server", "cure": "look",
            "url": None, "status": None, "oauth_error": None,
        },
    }  # fmt: skip
