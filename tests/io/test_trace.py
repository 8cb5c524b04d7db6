"""The log at DEBUG: enough to see what happens, and no secret in it."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from mcp_oauth.io import trace
from mcp_oauth.sansio.messages import Request, Response
from mcp_oauth.sansio.steps import (
    Effect,
    Event,
    Listen,
    Listening,
    Load,
    Loaded,
    OpenBrowser,
    Redirected,
    Send,
    SendFailed,
    StillWaiting,
)
from tests.sansio.scripts import grant, record
from tests.sansio.walks import CANARY

REDIRECT = "http://127.0.0.1:8080/callback"
WELL_KNOWN = "https://as.example/.well-known/oauth-authorization-server"
TOKEN = Request("POST", f"https://as.example/token?key={CANARY}", (("authorization", CANARY),), CANARY.encode())


def browser(opened: bool) -> OpenBrowser:
    return OpenBrowser(f"https://as.example/authorize?state={CANARY}", REDIRECT, CANARY, 5.0, opened)


@pytest.mark.parametrize(
    ("effect", "event", "lines"),
    [
        pytest.param(
            Send(Request("GET", f"{WELL_KNOWN}?key={CANARY}")),
            Response(200, (("set-cookie", CANARY),), CANARY.encode()),
            [f"Discovering OAuth server at {WELL_KNOWN}", f"{WELL_KNOWN} answered HTTP 200"],
            id="discovery",
        ),
        pytest.param(
            Send(TOKEN),
            SendFailed("ConnectError", may_have_arrived=False),
            ["Sending POST https://as.example/token", "https://as.example/token did not answer: ConnectError"],
            id="token-request",
        ),
        pytest.param(
            Listen("http://127.0.0.1/callback"),
            Listening(REDIRECT),
            [f"Starting local callback server at {REDIRECT}"],
            id="listener",
        ),
        pytest.param(
            browser(opened=False),
            Redirected(f"{REDIRECT}?code={CANARY}"),
            ["Found authorization_endpoint: https://as.example/authorize", "Redirected(...)"],
            id="browser",
        ),
        pytest.param(browser(opened=True), StillWaiting(), ["StillWaiting()"], id="still-waiting"),
        pytest.param(Load("grant-1"), Loaded(None), ["Load(key='grant-1')", "Loaded(record=None)"], id="store"),
    ],
)
def test_what_is_logged(effect: Effect, event: Event, lines: list[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "mcp_oauth"):
        trace.asking(effect)
        trace.answered(effect, event)
    assert [entry.getMessage() for entry in caplog.records] == lines
    assert {entry.name for entry in caplog.records} == {"mcp_oauth"}


def test_a_record_shows_no_token(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "mcp_oauth"):
        trace.answered(Load("grant-1"), Loaded(record(grant(1))))
    assert "https://as.example" in caplog.text
    assert CANARY not in caplog.text


def test_nothing_is_said_above_debug(caplog: pytest.LogCaptureFixture) -> None:
    effect: Any = Load("grant-1")
    with caplog.at_level(logging.INFO, "mcp_oauth"):
        trace.asking(effect)
        trace.answered(effect, Loaded(None))
    assert caplog.records == []
