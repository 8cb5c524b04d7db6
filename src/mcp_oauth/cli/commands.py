"""The commands for servers: log in, look, try, log out. Each returns its exit code, and raises what went wrong."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import click

from mcp_oauth.cli import views
from mcp_oauth.cli.failures import CommandError, Exit
from mcp_oauth.cli.mcp import WRONG_PLACE, Connection, Tool
from mcp_oauth.cli.options import FILE, LOOPBACK, ask, browser_option, secret, shared, user_of
from mcp_oauth.cli.output import clean
from mcp_oauth.cli.session import CLIENT_NAME, Session, Target, canonical, unknown
from mcp_oauth.io.httpx_like import DIRECT
from mcp_oauth.io.options import Client
from mcp_oauth.io.stacks import installed
from mcp_oauth.sansio.logout import LoggedOut
from mcp_oauth.sansio.plan import ClientMetadataDocument, Dynamic, PreRegistered

LONGEST_DESCRIPTION = 200
"""Characters; with `--json` there is all of it."""

REDIRECT_HELP = "Where the browser is sent back to: 127.0.0.1 (default), localhost or [::1]."
TIMEOUT_HELP = "How long the login may take.  [default: 300]"

name_argument = click.argument("name")
url_option = click.option("--url", metavar="URL", help="The server's URL, for a name that stands for none yet.")
login_option = click.option("--login", is_flag=True, help="Log in if that is needed, instead of failing.")
call_timeout = click.option(
    "--timeout", type=click.FloatRange(min=0.1), default=30.0, metavar="SECONDS", help="For each answer.  [default: 30]"
)


# --- Logging in -------------------------------------------------------------------------------------------------------


@click.command()
@name_argument
@click.argument("url")
@click.option(
    "--scopes",
    "--scope",
    multiple=True,
    metavar="SCOPE",
    help="Ask for these, not for what the server suggests; repeatable.",
)
@click.option("--force", is_flag=True, help="Log in anew even where a login is there.")
@browser_option
@click.option(
    "--client-id", metavar="ID", help="A client registered by hand, or the https URL of a client metadata document."
)
@click.option("--client-secret-file", **FILE, help="Holds the client secret in its first line.")
@click.option("--client-secret-prompt", is_flag=True, help="Ask for the client secret.")
@click.option("--issuer", metavar="URL", help="The authorization server to use, where that client is registered.")
@click.option("--redirect-host", type=click.Choice(LOOPBACK), metavar="HOST", help=REDIRECT_HELP)
@click.option("--redirect-port", type=click.IntRange(1, 65535), metavar="PORT", help="Instead of any free port.")
@click.option("--timeout", type=click.FloatRange(min=1), default=300.0, metavar="SECONDS", help=TIMEOUT_HELP)
@shared
def auth(
    session: Session, name: str, url: str, scopes: tuple[str, ...], force: bool, no_browser: bool,
    client_id: str | None, client_secret_file: Path | None, client_secret_prompt: bool, issuer: str | None,
    redirect_host: str | None, redirect_port: int | None, timeout: float,
) -> Exit:  # fmt: skip
    """Log in to the MCP server at URL, and call it NAME.

    A login that is there and good is used as it is.
    """
    _check_name(name)
    server_url = canonical(url)
    client_secret = ask("Client secret") if client_secret_prompt else secret("client_secret", client_secret_file)
    session.screen.say(f"Logging in to {name} at {server_url}")
    oauth = session.oauth(
        server_url,
        _client(client_id, client_secret, issuer, _redirect_uri(redirect_host, redirect_port)),
        scopes=_scopes(scopes),
        user=user_of(session.screen, no_browser=no_browser),
        prefer_issuer=issuer,
        login_seconds=timeout,
    )
    oauth.authorize(force=force)
    _compare(session, server_url, client_id, issuer)
    _rename(session, name, server_url)
    fresh = "logged-in" in session.noticed
    return _shown(session, Target(name, server_url), "Logged in to {}" if fresh else "Already logged in to {}")


def _check_name(name: str) -> None:
    if "://" in name:
        raise CommandError(Exit.USAGE, f"{name} is a URL, and no name", "the name comes first: mcp-oauth auth NAME URL")
    if not clean(name).strip():
        raise CommandError(Exit.USAGE, "the name is empty", "give any name: mcp-oauth auth NAME URL")


def _rename(session: Session, name: str, server_url: str) -> None:
    before = session.manager.server_url(name)
    if before is not None and before != server_url:
        session.screen.say(f"{name} was {before} until now; what was granted there is still kept under that URL")
    session.manager.bind(name, server_url)


def _compare(session: Session, url: str, client_id: str | None, issuer: str | None) -> None:
    """Say what is not as it was asked for: the server decides where logins are, and what clients it takes."""
    grant = session.grant(url)
    if grant is None:
        return
    if issuer not in (None, grant.issuer):
        session.screen.insist(f"Note: the server does not name {issuer}, so the login is at {clean(grant.issuer)}")
    used = grant.registration.client_id
    if client_id not in (None, used):
        session.screen.insist(f"Note: no client metadata documents are taken there, so the client is {clean(used)}")


def _scopes(given: Iterable[str]) -> tuple[str, ...] | None:
    return tuple(dict.fromkeys(scope for some in given for scope in some.replace(",", " ").split())) or None


def _redirect_uri(host: str | None, port: int | None) -> str | None:
    if host is None and port is None:
        return None
    return f"http://{host or LOOPBACK[0]}{'' if port is None else f':{port}'}/callback"


def _client(client_id: str | None, secret: str | None, issuer: str | None, redirect: str | None) -> Client | None:
    """The client that the options describe; None: the one of the stored grant, else a dynamic one."""
    if client_id is None:
        if secret is not None:
            raise CommandError(Exit.USAGE, "there is a client secret, but no --client-id", "give both or none")
        return None if redirect is None else Dynamic(CLIENT_NAME, redirect)
    if client_id.startswith("https://") and secret is None:
        return ClientMetadataDocument(client_id, **({} if redirect is None else {"redirect_uri": redirect}))
    return PreRegistered(client_id, secret, issuer, redirect)


# --- Looking ----------------------------------------------------------------------------------------------------------


@click.command("list", short_help="List all servers.")
@shared
def list_(session: Session) -> Exit:
    """List all servers: those with a name, and those that programs logged in to."""
    entries = session.manager.list_servers()
    document = {"servers": [{**views.entry_document(entry), "key": entry.key} for entry in entries]}
    empty = "No logins yet: mcp-oauth auth NAME URL"
    session.screen.show_table(document, views.COLUMNS, [views.entry_row(entry) for entry in entries], empty)
    return Exit.DONE


@click.command(short_help="Show what is known of the login at NAME.")
@name_argument
@shared
def get(session: Session, name: str) -> Exit:
    """Show what is known of the login at NAME (a name or a URL); of its tokens the last four characters at most."""
    return _shown(session, session.target(name), "{}")


def _shown(session: Session, target: Target, headline: str) -> Exit:
    entry = session.entry(target)
    if entry is None:
        raise unknown(target.title)
    document = views.server_document(entry, session.grant(target.url), session.store_name)
    session.screen.show(document, headline.format(target.title), views.server_fields(document))
    return Exit.DONE if entry.state in ("valid", "refreshable") else Exit.LOGIN


# --- Trying -----------------------------------------------------------------------------------------------------------


@click.command(short_help="Make a real MCP call to NAME.")
@name_argument
@url_option
@login_option
@browser_option
@call_timeout
@shared
def test(session: Session, name: str, url: str | None, login: bool, no_browser: bool, timeout: float) -> Exit:
    """Make a real MCP call to NAME, with its token, and say what came back."""
    target = session.target(name, url)
    begun = time.monotonic()
    with _connected(session, target, login=login, no_browser=no_browser, seconds=timeout) as connection:
        server = connection.connect()
        tools = connection.tools()
    milliseconds = round((time.monotonic() - begun) * 1000)
    document = views.test_document(target, server, len(tools), milliseconds)
    session.screen.show(document, f"{target.title} answers", views.test_fields(document))
    return Exit.DONE


@click.command()
@name_argument
@url_option
@login_option
@browser_option
@call_timeout
@shared
def tools(session: Session, name: str, url: str | None, login: bool, no_browser: bool, timeout: float) -> Exit:
    """List the tools of NAME."""
    target = session.target(name, url)
    with _connected(session, target, login=login, no_browser=no_browser, seconds=timeout) as connection:
        connection.connect()
        found = connection.tools()
    document = {"name": target.name, "server_url": target.url, "tools": [tool._asdict() for tool in found]}
    session.screen.show_table(document, ("Tool", "Description"), [_row(tool) for tool in found], "It has no tools.")
    return Exit.DONE


def _row(tool: Tool) -> tuple[str, str]:
    """A tool as a line; some describe themselves on a page."""
    return tool.name, shorten(clean(tool.description or ""), LONGEST_DESCRIPTION, placeholder=" ...")


@contextmanager
def _connected(
    session: Session, target: Target, *, login: bool, no_browser: bool, seconds: float
) -> Generator[Connection]:
    """A conversation with the server, with the token that is there; a login comes before it, and not within it."""
    if target.url is None:
        cure = "say where they belong: --url URL"
        raise CommandError(Exit.USAGE, f"{target.title} has tokens, but no server yet", cure)
    user = user_of(session.screen, no_browser=no_browser)
    oauth = session.oauth(target.url, interactive=login, user=user)
    saved = session.manager.usable_tokens(target.name, target.url) if target.name else None
    if saved is not None:
        credentials: dict[str, Any] = {"headers": {"authorization": saved.get_authorization_header()}}
    else:
        credentials = {"auth": oauth}
        if login:
            oauth.authorize()
    library = installed().library
    credentials |= {"follow_redirects": False, "mounts": DIRECT}
    with _told(library, target.url, seconds), library.Client(**credentials) as client:
        connection = Connection(client, target.url, seconds=seconds)
        try:
            yield connection
        finally:
            connection.close()


@contextmanager
def _told(library: Any, url: str, seconds: float) -> Generator[None]:
    """What the HTTP library raises as what we raise."""
    try:
        yield
    except library.TimeoutException:
        raise CommandError(Exit.NETWORK, f"no answer within {seconds:g} seconds", "try a longer --timeout") from None
    except (library.NetworkError, library.ProxyError) as error:
        message = f"{url} cannot be reached: {error or type(error).__name__}"
        raise CommandError(Exit.NETWORK, message, "check the URL and the network") from None
    except library.HTTPError as error:
        raise CommandError(Exit.FAILED, f"the server's answer cannot be read: {error}", WRONG_PLACE) from None


# --- Ending -----------------------------------------------------------------------------------------------------------


@click.command(short_help="Revoke the tokens of NAME, and forget them here.")
@name_argument
@url_option
@shared
def logout(session: Session, name: str, url: str | None) -> Exit:
    """Revoke the tokens of NAME at its server, and forget them here, whatever the server says."""
    target = session.target(name, url)
    entry = session.entry(target)
    if entry is None:
        raise unknown(target.title)
    told = session.oauth(target.url).logout() if target.url else LoggedOut()
    if target.name is not None:
        session.manager.delete_tokens(target.name)
    document = views.logout_document(target, entry, told)
    session.screen.show(document, f"Logged out of {target.title}", views.logout_fields(document, entry))
    return Exit.NOT_REVOKED if document["confirmed"] is False else Exit.DONE


@click.command(short_help="Forget NAME here only; no server is told.")
@name_argument
@shared
def clear(session: Session, name: str) -> Exit:
    """Forget NAME here only: its server is not told, and its tokens stay valid there.

    Where nothing is kept for it, that is well, too.
    """
    known = "://" in name or session.manager.server_url(name) is not None
    target = session.target(name) if known else Target(name, None)
    cleared = session.entry(target) is not None
    if target.name is not None:
        session.manager.delete_tokens(target.name)
    elif cleared:
        session.oauth(target.title).logout(revoke=False)
    document = {"name": target.name, "server_url": target.url, "cleared": cleared, "server_told": False}
    if not cleared:
        session.screen.show(document, f"Nothing is kept for {target.title}", [("Here", "nothing was kept")])
        return Exit.DONE
    told = "not told: the tokens stay valid until they expire (mcp-oauth logout revokes them)"
    session.screen.show(document, f"Cleared {target.title}", [("Here", "forgotten"), ("Server", told)])
    return Exit.DONE
