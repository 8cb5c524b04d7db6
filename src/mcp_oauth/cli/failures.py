"""How the command ends: its exit codes, and what it says when something went wrong."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any

from mcp_oauth.exceptions import OAuthError
from mcp_oauth.sansio.errors import Fault, Reason


class Exit(IntEnum):
    """The exit codes of `mcp-oauth`."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    LOGIN = 3
    UNKNOWN = 4
    STORE = 5
    NETWORK = 6
    NOT_REVOKED = 7
    INTERRUPTED = 130


MEANINGS: Mapping[Exit, str] = {
    Exit.DONE: "done",
    Exit.FAILED: "a server refused, or answered what it should not",
    Exit.USAGE: "the command line, an option or a setting is wrong",
    Exit.LOGIN: "a person must log in first, or did not finish",
    Exit.UNKNOWN: "there is no server of that name",
    Exit.STORE: "the store cannot be used",
    Exit.NETWORK: "a server could not be reached",
    Exit.NOT_REVOKED: "logged out here, but a server did not confirm it",
    Exit.INTERRUPTED: "interrupted with Ctrl-C",
}

_OF_FAULT: Mapping[Fault, Exit] = {
    "caller": Exit.USAGE,
    "resource server": Exit.FAILED,
    "authorization server": Exit.FAILED,
    "user": Exit.LOGIN,
    "network": Exit.NETWORK,
    "store": Exit.STORE,
}

_CURES: Mapping[Reason, str] = {
    Reason.SERVER_UNAVAILABLE: "check the URL and the network, or try again later; nothing was discarded",
    Reason.REGISTRATION_REFUSED: "see what the server says; if it admits known clients only, register one there by "
    "hand, then log in with --client-id",
    Reason.AUTHORIZATION_REQUIRED: "repeat it with --login, or log in with: mcp-oauth auth NAME URL --force",
    Reason.LOGGED_OUT: "log in with: mcp-oauth auth NAME URL",
    Reason.CLIENT_INFORMATION_NEEDED: "the server registers no clients by itself: register one there by hand, then "
    "log in with --client-id",
    Reason.CLIENT_OF_ANOTHER_ISSUER: "register a client at the authorization server that the server names now, then "
    "log in with --client-id and --issuer",
    Reason.USER_UNAVAILABLE: "see the message; --redirect-port takes another port, --no-browser needs none",
    Reason.RENEWAL_AMBIGUOUS: "the login is kept: try again; where the server never says that it spent the refresh "
    "token, log in with: mcp-oauth auth NAME URL --force",
    Reason.LOGIN_TIMED_OUT: "nobody answered in the browser: try again, with a longer --timeout if need be",
    Reason.LOGIN_HELD_BACK: "a login was denied or did not help within the last 10 minutes: mcp-oauth auth asks again",
    Reason.STEP_UP_DENIED: "these scopes were asked for before and not granted: mcp-oauth auth --scope asks again",
}
"""Where the cure of the library is a line of Python, and this command has an option."""


class CommandError(Exception):
    """What the command itself finds wrong."""

    stage = "command"

    def __init__(self, code: Exit, message: str, cure: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.cure = cure
        self.status = status


def code_of(error: OAuthError | CommandError) -> Exit:
    """The exit code, by whose fault it is."""
    return error.code if isinstance(error, CommandError) else _OF_FAULT[error.reason.fault]


def document_of(error: OAuthError | CommandError) -> dict[str, Any]:
    """The member `error` of the JSON output."""
    if isinstance(error, CommandError):
        told = {"reason": error.code.name.lower().replace("_", "-"), "stage": error.stage, "message": error.message}
        return {**told, "cure": error.cure, "url": None, "status": error.status, "oauth_error": None}
    return {
        "reason": error.reason.value,
        "stage": error.stage,
        "message": error.failure.message.removesuffix(", and interactive=False"),
        "cure": _CURES.get(error.reason, error.cure),
        "url": error.url,
        "status": error.status,
        "oauth_error": error.oauth_error,
    }
