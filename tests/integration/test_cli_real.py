"""The command against real servers, on real stores, at a real terminal (tmux), as a new user would try it."""

from __future__ import annotations

import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mcp_oauth.store.encrypted_file import EncryptedFileStore
from tests.cli.site import ROOT, Terminal, environment, in_a_pipe
from tests.integration.program import grant_in
from tests.servers import consent, openbao, redis_server, secret_service
from tests.servers.oidc_provider import OidcProvider
from tests.servers.process import missing
from tests.servers.sdk_server import SdkServer

PERSON = f"{sys.executable} -m tests.servers.consent %s"
"""`BROWSER`: a person who agrees."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def settings(folder: Path) -> dict[str, str]:
    return {"MCP_OAUTH_STORE": "file", "MCP_OAUTH_STORE_DIR": str(folder), "BROWSER": PERSON}


def secrets_in(folder: Path, url: str) -> list[str]:
    grant = grant_in(EncryptedFileStore(folder), url)
    assert grant.refresh_token is not None
    return [grant.access_token, grant.refresh_token]


def test_the_whole_life_of_a_login_in_pipes(settings: dict[str, str], folder: Path, sdk_server: SdkServer) -> None:
    url = sdk_server.mcp
    told = [in_a_pipe("auth", "demo", url, "--debug", **settings)]
    tokens = secrets_in(folder, url)
    for line in ("list", "get demo", "get demo --json", "test demo --debug", "tools demo", f"auth demo {url}"):
        told.append(in_a_pipe(*line.split(), **settings))
    told.append(in_a_pipe("logout", "demo", "--url", url, "--debug", **settings))
    assert [ran.code for ran in told] == [0] * len(told)
    assert told[1].out.startswith(f"demo\t{url}\tvalid\tin 59 minutes\tmcp:tools\t...{tokens[0][-4:]}\t-\n")
    assert told[5].out == "echo\tSay it again.\nwhoami\tSay who is logged in.\n"
    assert told[-1].out == "Here\tforgotten\nRefresh token\trevoked\nAccess token\trevoked\n"
    everything = "".join(ran.all for ran in told)
    for token in tokens:
        assert token[-4:] in everything
        assert token[-5:] not in everything
        assert token[:5] not in everything
    assert in_a_pipe("get", "demo", **settings).code == 4


def test_RULES_3_8_a_registration_that_can_be_deleted(settings: dict[str, str], oidc_provider: OidcProvider) -> None:
    url = oidc_provider.mcp
    assert in_a_pipe("auth", "demo", url, **settings).code == 0
    tried = in_a_pipe("test", "demo", **settings)
    assert tried.code == 0, tried.err
    told = in_a_pipe("logout", "demo", "--json", **settings)
    assert told.code == 0
    assert [one["token"] for one in told.json["revoked"]] == ["refresh_token", "access_token"]
    assert told.json["unregistered"] == [{"ok": True, "message": None}]


def test_a_denied_login(settings: dict[str, str], sdk_server: SdkServer) -> None:
    here = Terminal("auth", "demo", sdk_server.mcp, "--no-browser", **settings)
    shown = here.until("press Enter")
    url = next(word for word in shown.split() if "/authorize?" in word)
    here.type(consent.follow(url, deny=True) + "\n")
    ran = here.end()
    assert ran.code == 3
    assert "denied" in ran.out


# --- Every store ------------------------------------------------------------------------------------------------------


@contextmanager
def redis_settings() -> Iterator[dict[str, str]]:
    with redis_server.serving() as server:
        yield {"MCP_OAUTH_REDIS_URL": server.url, "MCP_OAUTH_REDIS_KEY": secrets.token_hex(32)}


@contextmanager
def vault_settings() -> Iterator[dict[str, str]]:
    with openbao.serving() as server:
        yield {"VAULT_ADDR": server.url, "VAULT_TOKEN": server.token}


@contextmanager
def keyring_settings() -> Iterator[dict[str, str]]:
    with secret_service.serving() as service:
        yield service.environment


STORES = {"redis": redis_settings, "vault": vault_settings, "keyring": keyring_settings, "auto": keyring_settings}


@pytest.mark.parametrize("store", STORES)
def test_it_works_on_every_store(store: str, sdk_server: SdkServer) -> None:
    with STORES[store]() as given:
        settings = {**given, "MCP_OAUTH_STORE": store, "BROWSER": PERSON}
        for line in (f"auth demo {sdk_server.mcp}", "list", "get demo", "test demo", "store check", "logout demo"):
            ran = in_a_pipe(*line.split(), **settings)
            assert ran.code == 0, ran.all
        assert in_a_pipe("get", "demo", **settings).code == 4
        assert in_a_pipe("store", "where", "--json", **settings).json["store"] != "EncryptedFileStore"
        assert in_a_pipe("store", "rekey", **settings).code == 2


# --- The recording ----------------------------------------------------------------------------------------------------

SESSION = (
    "mcp-oauth list",
    "mcp-oauth auth demo {url}",
    "mcp-oauth list",
    "mcp-oauth get demo",
    "mcp-oauth test demo",
    "mcp-oauth tools demo",
    "mcp-oauth get demo | cut -f 2 | head -n 3",
    "mcp-oauth logout demo --url {url}",
    "mcp-oauth get demo; echo $?",
)
DOCS = ROOT / "docs" / "cli.md"

CHANGING = (
    (r"127\.0\.0\.1:\d+/start/[\w-]+", "127.0.0.1:49153/start/4Vb0DJPyRkvJ3GbqsOaBdvcYyCLnLJTgDu3kdzr6LhI"),
    (r"127\.0\.0\.1:(?!49153/start)\d+", "127.0.0.1:49152"),
    (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "3f0c9c4e-5d0e-4f6c-9a51-0a4b7a0d6c11"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", "2026-11-23T10:00:00+00:00"),
    (r"\.\.\.[\w-]{4}(?=\s)", "...b3Xw"),
    (r"\d+ ms", "150 ms"),
)


class Tmux:
    """A shell in a real terminal of 100 columns."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        program = shutil.which("tmux") or missing("tmux", "sudo apt-get install tmux")
        self._command = [program, "-S", str(folder / "tmux"), "-f", "/dev/null"]
        self._prompts = 1
        shell = ["env", "-u", "PROMPT_COMMAND", "PS1=$ ", "bash", "--norc", "--noprofile"]
        self._env = environment(settings)
        self("new-session", "-d", "-x", "100", "-y", "120", *shell)
        self.screen()

    def __call__(self, *command: str) -> str:
        done = subprocess.run(
            [*self._command, *command], env=self._env, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def type(self, line: str) -> None:
        """A line, and wait for the next prompt."""
        self("send-keys", "-l", line)
        self("send-keys", "Enter")
        self._prompts += 1
        self.screen()

    def screen(self) -> str:
        """All that is shown, once the shell waits for the next line."""
        for _ in range(5000):
            shown = self("capture-pane", "-p", "-J").rstrip().splitlines()
            if sum(line.startswith("$") for line in shown) == self._prompts and shown[-1].rstrip() == "$":
                return "\n".join(line.rstrip() for line in shown[:-1])
        raise AssertionError(f"no prompt: {shown}")


@pytest.fixture
def terminal(tmp_path: Path, settings: dict[str, str]) -> Iterator[Tmux]:
    script = tmp_path / "mcp-oauth"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m mcp_oauth.cli "$@"\n')
    script.chmod(0o700)
    path = f"{tmp_path}:{environment({})['PATH']}"
    tmux = Tmux(tmp_path, {**settings, "PATH": path, "PYTHONPATH": str(ROOT), "TZ": "UTC", "LC_ALL": "C.UTF-8"})
    yield tmux
    tmux("kill-server")


def test_the_recording_in_the_docs_is_what_a_user_sees(terminal: Tmux, sdk_server: SdkServer) -> None:
    """Ports, ids, times and tokens aside. When it fails on purpose: the docs take over what is printed here."""
    for line in SESSION:
        terminal.type(line.format(url=sdk_server.mcp))
    shown = terminal.screen()
    for pattern, example in CHANGING:
        shown = re.sub(pattern, example, shown)
    print(shown)
    recorded = re.search(r"<!-- recording -->\n```console\n(.*?)\n```", DOCS.read_text("utf-8"), re.DOTALL)
    assert recorded is not None
    assert recorded[1] == shown
