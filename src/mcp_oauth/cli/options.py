"""The options that commands share. Each has its environment variable, `MCP_OAUTH_` and its name; secrets only that.

A secret comes from the environment, from a file, or is asked for: a command line is there for every process to read.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from mcp_oauth.cli.failures import CommandError, Exit, code_of
from mcp_oauth.cli.output import LogToScreen, Screen
from mcp_oauth.cli.session import STORES, Session, Settings, is_terminal
from mcp_oauth.exceptions import OAuthError, from_failure
from mcp_oauth.io.user import Browser, PasteBack, User
from mcp_oauth.sansio.errors import Reason, failure
from mcp_oauth.store.base import StoreError

Command = Callable[..., Any]
F = TypeVar("F", bound=Command)

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
"""Where a browser can be sent back to."""


def option(*names: str, **attributes: Any) -> Callable[[F], F]:
    """A click option with its environment variable."""
    long = next(name for name in names if name.startswith("--"))
    variable = "MCP_OAUTH_" + long.lstrip("-").replace("-", "_").upper()
    return click.option(*names, envvar=variable, show_envvar=False, **attributes)


_SHARED = (
    option("--json", "as_json", is_flag=True, help="One JSON document on standard output."),
    option("--store", type=click.Choice(sorted(STORES)), default="auto", show_default=True, help="Where logins live."),
    option("--store-dir", type=click.Path(path_type=Path), help="The folder of encrypted files."),
    option("--password-file", type=click.Path(path_type=Path), help="Holds the store's password in its first line."),
    option("--account", default="", help="Your label for one of several logins at one server."),
    option("-q", "--quiet", is_flag=True, help="No progress on standard error."),
    option("-v", "--verbose", is_flag=True, help="The log, on standard error."),
    option("--debug", is_flag=True, help="The whole log; secrets are never in it."),
)


def shared(command: Callable[..., Exit]) -> Command:
    """A command with the shared options: it gets a `Session`, and its errors become messages and exit codes."""

    @functools.wraps(command)
    def run(
        *, as_json: bool, quiet: bool, verbose: bool, debug: bool, store: str, store_dir: Path | None,
        password_file: Path | None, account: str, **rest: Any,
    ) -> Exit:  # fmt: skip
        screen = Screen(as_json=as_json, quiet=quiet)
        _log_to(screen, debug=debug, verbose=verbose)
        try:
            password = secret("password", password_file)
            return command(Session(screen, Settings(store, store_dir, password, account)), **rest)
        except StoreError as error:
            return _failed(screen, from_failure(failure(Reason.STORE_FAILED, str(error))))
        except (OAuthError, CommandError) as error:
            return _failed(screen, error)

    return _with(_SHARED, run)


def _failed(screen: Screen, error: OAuthError | CommandError) -> Exit:
    screen.failed(error)
    return code_of(error)


def _with(options: tuple[Callable[[Command], Command], ...], command: Command) -> Command:
    for add in reversed(options):
        command = add(command)
    return command


def _log_to(screen: Screen, *, debug: bool, verbose: bool) -> None:
    log = logging.getLogger("mcp_oauth")
    for handler in [known for known in log.handlers if isinstance(known, LogToScreen)]:
        log.removeHandler(handler)
    log.addHandler(LogToScreen(screen))
    log.setLevel(logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING)


def secret(name: str, file: Path | None = None) -> str | None:
    """A secret from a file, else from `MCP_OAUTH_<NAME>`; None: from neither."""
    if file is None:
        return os.environ.get("MCP_OAUTH_" + name.upper()) or None
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise CommandError(Exit.USAGE, f"{file} cannot be read: {why}", "name a file that holds the secret") from None
    if not lines or not lines[0]:
        raise CommandError(Exit.USAGE, f"{file} has no first line", "write the secret into its first line")
    return lines[0]


# --- Asking a person --------------------------------------------------------------------------------------------------

browser_option = option("--no-browser", is_flag=True, help="Open none: paste the address where yours ended up.")


def user_of(screen: Screen, *, no_browser: bool) -> User:
    """Who logs in: a person at a browser here, or one who pastes an address."""
    if no_browser:
        return PasteBack(write=screen.insist)
    return Browser(tell=lambda text: screen.insist(text.replace("user=PasteBack()", "--no-browser")))


def ask(what: str, *, twice: bool = False) -> str:
    """A secret, typed unseen at the terminal. Raises `CommandError` where there is none."""
    if not is_terminal():
        raise CommandError(Exit.USAGE, f"{what}: there is no terminal to ask on", "use the environment or a file")
    answer: str = click.prompt(what, hide_input=True, confirmation_prompt=twice, err=True)
    return answer
