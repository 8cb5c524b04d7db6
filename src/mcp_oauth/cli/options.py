"""The options that commands share, and where secrets come from.

What says which store and whose logins can come from the environment, too; what a command does is on its line only: a
variable that a shell has long forgotten shall not force a login, or take a password away. A secret comes from the
environment, from a file, or is asked for: a command line is there for every process to read.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from mcp_oauth.cli.failures import CommandError, Exit, code_of
from mcp_oauth.cli.output import LogToScreen, Screen
from mcp_oauth.cli.places import STORES, Settings
from mcp_oauth.cli.session import Session, is_terminal
from mcp_oauth.exceptions import OAuthError, from_failure
from mcp_oauth.io.user import Browser, PasteBack, User
from mcp_oauth.sansio.errors import Reason, failure
from mcp_oauth.store.base import StoreError

Command = Callable[..., Any]
F = TypeVar("F", bound=Command)

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
"""Where a browser can be sent back to."""


FILE: Mapping[str, Any] = {"type": click.Path(path_type=Path), "metavar": "FILE"}
"""Of an option that names a file."""

SECRETS = (
    *("MCP_OAUTH_PASSWORD", "MCP_OAUTH_NEW_PASSWORD", "MCP_OAUTH_CLIENT_SECRET"),
    *("MCP_OAUTH_REDIS_URL", "MCP_OAUTH_REDIS_KEY", "VAULT_TOKEN", "VAULT_SECRET_ID"),
)
"""The variables that a browser must not inherit."""


def setting(name: str, **attributes: Any) -> Callable[[F], F]:
    """An option that the environment can give, too: `--store-dir` as `MCP_OAUTH_STORE_DIR`."""
    variable = "MCP_OAUTH_" + name.lstrip("-").replace("-", "_").upper()
    return click.option(name, envvar=variable, **attributes)


STORE_HELP = "Where logins live: auto, file, keyring, vault or redis.  [default: auto]"

_SHARED = (
    click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output."),
    setting("--store", type=click.Choice([*STORES]), default="auto", metavar="NAME", help=STORE_HELP),
    setting("--store-dir", type=click.Path(path_type=Path), metavar="FOLDER", help="The folder of encrypted files."),
    setting("--password-file", **FILE, help="Holds the store's password in its first line."),
    setting("--account", default="", metavar="LABEL", help="Your label for one of several logins at one server."),
    click.option("-q", "--quiet", is_flag=True, help="No progress on standard error."),
    click.option("-v", "--verbose", is_flag=True, help="The log, on standard error."),
    click.option("--debug", is_flag=True, help="The whole log; secrets are never in it."),
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
            password = _password(password_file)
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
    """A secret from the first line of a file, else from `MCP_OAUTH_<NAME>`; None: from neither."""
    if file is None:
        return _of_environment("MCP_OAUTH_" + name.upper())
    try:
        line = file.read_bytes().decode("utf-8").partition("\n")[0].removesuffix("\r")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise CommandError(Exit.USAGE, f"{file} cannot be read: {why}", "name a file that holds the secret") from None
    if not line:
        raise CommandError(Exit.USAGE, f"{file} has no first line", "write the secret into its first line")
    return line


def _password(file: Path | None) -> str | None:
    """That of the store."""
    if file is None:
        _of_environment("MCP_OAUTH_PASSWORD_FILE")
    return secret("password", file)


def _of_environment(variable: str) -> str | None:
    """Raises `CommandError` for an empty one: where a secret got lost on its way, nothing is done without it."""
    found = os.environ.get(variable)
    if found == "":
        raise CommandError(Exit.USAGE, f"{variable} is set, but empty", "give it its value, or unset it")
    return found


# --- Asking a person --------------------------------------------------------------------------------------------------

browser_option = click.option(
    "--no-browser", is_flag=True, help="Open no browser: paste the address where yours ended up."
)


def user_of(screen: Screen, *, no_browser: bool) -> User:
    """Who logs in: a person at a browser here, or one who pastes an address.

    A browser's process inherits the environment, so its secrets are removed: by now, what they are for has read them.
    """
    for name in SECRETS:
        os.environ.pop(name, None)
    if no_browser:
        return PasteBack(write=lambda text: screen.insist(_for_the_terminal(text)))
    return Browser(tell=lambda text: screen.insist(_for_the_terminal(text)))


def _for_the_terminal(text: str) -> str:
    """What the library tells, in options of this command, and with the address on a line of its own: easy to copy."""
    return text.replace("user=PasteBack()", "--no-browser").replace(": http", ":\nhttp")


def ask(what: str, *, twice: bool = False) -> str:
    """A secret, typed unseen at the terminal. Raises `CommandError` where there is none."""
    if not is_terminal():
        raise CommandError(Exit.USAGE, f"{what}: there is no terminal to ask on", "use the environment or a file")
    answer: str = click.prompt(what, hide_input=True, confirmation_prompt=twice, err=True)
    return answer
