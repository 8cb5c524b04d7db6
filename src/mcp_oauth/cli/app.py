"""The command line as a whole: its commands, and its only way out."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from io import TextIOWrapper

import click

from mcp_oauth.cli import commands
from mcp_oauth.cli.failures import MEANINGS, Exit
from mcp_oauth.cli.stores import store

log = logging.getLogger("mcp_oauth")

EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code.value:<3}  {meaning}" for code, meaning in MEANINGS.items())


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EPILOG)
@click.version_option(package_name="mcp-oauth-sansio", prog_name="mcp-oauth")
def cli() -> None:
    """Log in to MCP servers with OAuth, and see, test and end what was granted.

    Logins are kept in your system's keyring, or in encrypted files. Programs that use mcp_oauth with the same store
    and server share them.
    """


for _command in (
    commands.auth, commands.list_, commands.get, commands.test, commands.tools, commands.logout, commands.clear, store
):  # fmt: skip
    cli.add_command(_command)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run it and return the exit code. A traceback is never shown; `--debug` logs the one of a bug."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # what the terminal's encoding lacks is escaped
            stream.reconfigure(errors="backslashreplace")
    try:
        code = cli.main(args=arguments, prog_name="mcp-oauth", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Abort:
        if arguments is None:  # what must not be cut, such as saving a renewed token, ends by itself, and soon
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        click.echo("Interrupted.", err=True)
        return Exit.INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:
        return _nobody_reads()
    except OSError as error:  # of the output: those of stores and servers have types of their own
        log.debug("the output failed", exc_info=error)
        click.echo(f"Error: the output cannot be written: {error.strerror or type(error).__name__}", err=True)
        return _nobody_reads()
    except Exception as error:
        log.debug("this is a bug", exc_info=error)
        click.echo(f"Error: {type(error).__name__}, which is a bug in mcp-oauth; --debug shows where", err=True)
        return Exit.FAILED
    return int(code)


def _nobody_reads() -> int:
    """As `head` leaves it: say nothing more, not even at exit."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return Exit.FAILED
