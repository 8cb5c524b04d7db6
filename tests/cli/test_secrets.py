"""Where secrets and settings come from, and where they do not go."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click
import pytest

from mcp_oauth.cli.app import cli
from mcp_oauth.cli.options import SECRETS
from mcp_oauth.cli.stores import store as store_commands
from mcp_oauth.sansio.grant import current_grant
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from tests.cli.site import Run, Site, in_a_pipe
from tests.io.servers import stored

PASSWORD = "CANARY-password"
REDIS = {"MCP_OAUTH_REDIS_URL": "redis://:CANARY@127.0.0.1:1", "MCP_OAUTH_REDIS_KEY": "00" * 32}
VAULT = {"VAULT_ADDR": "http://127.0.0.1:1", "VAULT_TOKEN": "CANARY", "VAULT_ROLE_ID": "x", "VAULT_SECRET_ID": "CANARY"}

COMMANDS = {**cli.commands, **store_commands.commands}
del COMMANDS["store"]  # the group


# --- What the environment may say -------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_only_which_store_and_whose_logins_come_from_the_environment(command: click.Command) -> None:
    assert {parameter.envvar for parameter in command.params if parameter.envvar} == {
        "MCP_OAUTH_STORE", "MCP_OAUTH_STORE_DIR", "MCP_OAUTH_PASSWORD_FILE", "MCP_OAUTH_ACCOUNT",
    }  # fmt: skip


def test_a_variable_does_not_remove_the_password(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    EncryptedFileStore(folder, password=PASSWORD).keys()
    monkeypatch.setenv("MCP_OAUTH_PASSWORD", PASSWORD)
    monkeypatch.setenv("MCP_OAUTH_NEW_PASSWORD", "CANARY-another")
    monkeypatch.setenv("MCP_OAUTH_REMOVE", "1")
    assert run("store", "password", "--json").json["password"] is True


# --- Where a secret comes from ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_no_option_takes_a_secret(command: click.Command) -> None:
    options = {option for parameter in command.params for option in parameter.opts}
    assert not options & {"--client-secret", "--password", "--new-password", "--token", "--key"}


def test_the_client_secret_from_the_environment(
    run: Run, site: Site, store: EncryptedFileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCP_OAUTH_CLIENT_SECRET", "CANARY-client-secret")
    assert run("auth", "demo", site.url, "--client-id", "by-hand").code == 0
    grant = current_grant(stored(store, site))
    assert grant is not None
    assert grant.registration.client_secret == "CANARY-client-secret"


def test_a_client_secret_without_its_client_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCP_OAUTH_CLIENT_SECRET", "CANARY-client-secret")
    ran = run("auth", "demo", "https://mcp.example/mcp")
    assert ran.code == 2
    assert "CANARY" not in ran.all


@pytest.mark.parametrize("variable", ["MCP_OAUTH_PASSWORD", "MCP_OAUTH_PASSWORD_FILE"])
def test_an_empty_password_is_none_and_no_store_is_made_without_it(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "")
    ran = run("store", "check")
    assert ran.code == 2
    assert f"{variable} is set, but empty" in ran.err
    assert not folder.exists()


@pytest.mark.parametrize(
    ("command", "variable"),
    [("auth demo https://mcp.example/mcp", "MCP_OAUTH_CLIENT_SECRET"), ("store password", "MCP_OAUTH_NEW_PASSWORD")],
)
def test_other_empty_secrets_are_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str, variable: str
) -> None:
    monkeypatch.setenv(variable, "")
    ran = run(*command.split())
    assert ran.code == 2
    assert f"{variable} is set, but empty" in ran.err


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\nand another line\n"])
@pytest.mark.parametrize("odd", ["\f", "\x0b", "\x1c", "\x85", "\u2028", " ", "\r."])
def test_of_a_file_all_of_the_first_line_is_the_secret(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: str, end: str
) -> None:
    password = f"CANARY{odd}{odd}password{odd}"
    file = tmp_path / "password"
    file.write_bytes(f"{password}{end}".encode())
    monkeypatch.setenv("MCP_OAUTH_PASSWORD_FILE", str(file))
    assert run("store", "check").code == 0
    assert EncryptedFileStore(folder, password=password).keys() != ()


# --- Where it does not go ---------------------------------------------------------------------------------------------


def test_the_browser_inherits_no_secret(settings: dict[str, str], site: Site, tmp_path: Path) -> None:
    """Its process, and whatever it starts, lives longer than the command, and is none of its business."""
    inherited, browser = tmp_path / "inherited", tmp_path / "browser"
    visit = shlex.join([sys.executable, "-m", "tests.servers.consent"])
    browser.write_text(f'#!/bin/sh\nenv > {shlex.quote(str(inherited))}\nexec {visit} "$1"\n')
    browser.chmod(0o700)
    settings |= dict.fromkeys(SECRETS, "CANARY") | REDIS | VAULT | {"BROWSER": f"{browser} %s"}
    assert in_a_pipe("auth", "demo", site.url, "--client-id", "by-hand", **settings).code == 0
    told = inherited.read_text("utf-8")
    assert "MCP_OAUTH_STORE=file\n" in told
    assert [name for name in SECRETS if f"{name}=" in told] == []
    assert "CANARY" not in told


@pytest.mark.parametrize(("store", "given"), [("redis", REDIS), ("vault", VAULT)])
def test_a_store_is_made_before_its_secrets_are_gone(
    run: Run, site: Site, monkeypatch: pytest.MonkeyPatch, store: str, given: dict[str, str]
) -> None:
    """These are out of reach, but that is found out when they are used."""
    monkeypatch.delenv("MCP_OAUTH_STORE_DIR")
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    ran = run("auth", "demo", site.url, "--store", store)
    assert ran.code == 5
    assert "127.0.0.1:1" in ran.err
    assert "CANARY" not in ran.all
