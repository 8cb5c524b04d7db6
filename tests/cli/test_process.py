"""The command as a process: in pipes, at a terminal, interrupted, and where its extra is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from threading import Event

import click
import pytest

import mcp_oauth.cli
from mcp_oauth.cli.app import cli
from mcp_oauth.cli.failures import MEANINGS, Exit
from mcp_oauth.cli.session import Session
from mcp_oauth.cli.stores import store as store_commands
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from mcp_oauth.token_manager import TokenManager
from mcp_oauth.tokens import OAuthTokens
from tests.cli.site import COMMAND, ROOT, Ran, Run, Site, Terminal, environment, in_a_pipe
from tests.io.servers import PATIENCE, Reply, serving

PASSWORD = "CANARY-password"


# --- Installed without the extra --------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["click", "rich"])
def test_without_the_extra_it_says_how_to_get_it(package: str) -> None:
    program = f"import sys; sys.modules[{package!r}] = None; from mcp_oauth.cli import main; sys.exit(main(['list']))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == f'mcp-oauth needs the package {package}: pip install "mcp-oauth-sansio[cli]"\n'


def test_a_module_of_ours_that_is_missing_is_not_mistaken_for_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp_oauth.cli.app", None)
    with pytest.raises(ModuleNotFoundError):
        mcp_oauth.cli.main(["list"])


def test_importing_it_loads_neither() -> None:
    program = "import sys, mcp_oauth.cli; print(sorted({'click', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


# --- Usage ------------------------------------------------------------------------------------------------------------


def test_help_lists_the_exit_codes(run: Run) -> None:
    ran = run("--help")
    assert ran.code == 0
    words = " ".join(ran.out.split())
    for code, meaning in MEANINGS.items():
        assert f"{code.value} {meaning}" in words


def test_version(run: Run) -> None:
    assert run("--version").out.startswith("mcp-oauth, version ")


@pytest.mark.parametrize(
    "line",
    ["auth", "auth demo", "nonsense", "get", "list --store nowhere", "auth demo ftp://x", "auth demo mcp.example.com",
     "list --password-file /nonexistent", "auth demo https://x.example --client-secret-file /dev/null"],
)  # fmt: skip
def test_usage_errors(run: Run, line: str) -> None:
    ran = run(*line.split())
    assert (ran.code, ran.out) == (2, "")
    assert "Error: " in ran.err


@pytest.mark.parametrize("command", ["get", "test", "tools", "logout"])
def test_an_unknown_name(run: Run, command: str) -> None:
    ran = run(command, "nobody")
    assert ran.code == 4
    assert "no server is called nobody" in ran.err


@pytest.mark.parametrize("command", ["get", "logout"])
def test_an_unknown_url(run: Run, command: str) -> None:
    assert run(command, "https://nobody.example/mcp").code == 4


def test_an_unreachable_server(run: Run) -> None:
    assert run("auth", "demo", "http://127.0.0.1:1/mcp").code == 6
    ran = run("test", "http://127.0.0.1:1/mcp")
    assert ran.code == 6
    assert "cannot be reached" in ran.err


def test_a_server_that_never_answers(run: Run) -> None:
    end = Event()
    with serving(lambda seen: Reply(200 if end.wait(PATIENCE) else 500)) as server:
        ran = run("test", f"{server.origin}/mcp", "--timeout", "0.2")
        end.set()
    assert ran.code == 6
    assert "no answer within 0.2 seconds" in ran.err


def test_without_a_display_it_names_its_own_option(run: Run, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    ran = run("auth", "demo", site.url, "--timeout", "1")
    assert ran.code == 3
    assert "--no-browser" in ran.err
    assert "PasteBack" not in ran.err


def test_a_bug_shows_no_traceback_unless_asked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Session, target: object) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(Session, "entry", broken)
    ran = run("get", "https://mcp.example/mcp")
    assert (ran.code, ran.out) == (1, "")
    assert "RuntimeError" in ran.err
    assert "Traceback" not in ran.err
    assert "Traceback" in run("get", "https://mcp.example/mcp", "--debug").err


def test_output_that_cannot_be_written_is_no_bug(settings: dict[str, str]) -> None:
    with Path("/dev/full").open("w") as full:
        told = subprocess.run(
            [*COMMAND, "store", "where"],
            stdout=full, stderr=subprocess.PIPE, cwd=ROOT, env=environment(settings), text=True, timeout=60,
        )  # fmt: skip
    assert (told.returncode, told.stderr) == (1, "Error: the output cannot be written: No space left on device\n")


# --- In pipes ---------------------------------------------------------------------------------------------------------


def test_a_pipe_gets_plain_lines(settings: dict[str, str], store: EncryptedFileStore) -> None:
    TokenManager(store=store).save_tokens("mine", OAuthTokens("CANARY-by-hand-1234"))
    assert in_a_pipe("list", **settings) == Ran(0, "mine\t-\tvalid\t-\t-\t...1234\t-\n", "")


def test_a_reader_that_goes_away_is_no_error_message(settings: dict[str, str]) -> None:
    child = subprocess.Popen(
        [*COMMAND, "store", "where"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=environment(settings),
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stderr is not None
    with child, child.stdout, child.stderr:
        child.stdout.close()
        assert child.stderr.read() == b""


def test_the_password_is_not_asked_for_in_a_pipe(settings: dict[str, str], folder: Path) -> None:
    EncryptedFileStore(folder, password=PASSWORD).keys()
    ran = in_a_pipe("list", **settings)
    assert ran.code == 5
    assert "needs its password" in ran.err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_an_output_without_UTF_8(settings: dict[str, str], store: EncryptedFileStore, encoding: str) -> None:
    TokenManager(store=store).save_tokens("snow \u2603 \U0001f510", OAuthTokens("CANARY-by-hand-1234"))
    ran = in_a_pipe("list", PYTHONIOENCODING=f"{encoding}:strict", **settings)
    assert ran.code == 0
    assert "\\u2603 \\U0001f510" in ran.out


# --- At a terminal ----------------------------------------------------------------------------------------------------


def test_a_terminal_gets_colours_and_a_pipe_none(settings: dict[str, str], site: Site) -> None:
    shown = Terminal("store", "where", **settings).end()
    assert shown.code == 0
    assert "\x1b[" in shown.out
    assert "\x1b[" not in in_a_pipe("store", "where", **settings).all


def test_the_password_is_asked_for_and_never_shown(settings: dict[str, str], folder: Path) -> None:
    EncryptedFileStore(folder, password=PASSWORD).keys()
    here = Terminal("list", **settings)
    here.until("Password of the store")
    here.type("wrong\n")
    here.until("another password")
    here.until("Password of the store")
    here.type(f"{PASSWORD}\n")
    ran = here.end()
    assert ran.code == 0
    assert "No logins yet" in ran.out
    assert "CANARY" not in ran.out


def test_a_password_that_is_never_right(settings: dict[str, str], folder: Path) -> None:
    EncryptedFileStore(folder, password=PASSWORD).keys()
    here = Terminal("list", **settings)
    for _ in range(3):
        here.until("Password of the store")
        here.type("wrong\n")
    ran = here.end()
    assert ran.code == 5
    assert "Error: " in ran.out


def test_a_new_password_is_typed_twice(settings: dict[str, str], folder: Path) -> None:
    here = Terminal("store", "password", **settings)
    here.until("New password of the store")
    here.type(f"{PASSWORD}\n")
    here.until("Repeat for confirmation")
    here.type(f"{PASSWORD}\n")
    ran = here.end()
    assert ran.code == 0
    assert "CANARY" not in ran.out
    assert EncryptedFileStore(folder, password=PASSWORD).keys() == ()


def test_the_client_secret_is_asked_for(settings: dict[str, str], site: Site) -> None:
    here = Terminal("auth", "demo", site.url, "--client-id", "by-hand", "--client-secret-prompt", "--no-browser",
                    **settings)  # fmt: skip
    here.until("Client secret")
    here.type("CANARY-client-secret\n")
    here.until("press Enter")
    here.press_ctrl_c()
    assert "CANARY" not in here.end().out


def test_paste_back(settings: dict[str, str], site: Site) -> None:
    here = Terminal("auth", "demo", site.url, "--no-browser", **{**settings, "COLUMNS": "40"})
    shown = here.until("press Enter")
    url = next(word for word in shown.split() if word.startswith(f"{site.origin}/authorize"))
    here.type(site.login(url) + "\n")
    ran = here.end()
    assert ran.code == 0
    assert "Logged in to demo" in ran.out


@pytest.mark.parametrize("form", [[], ["--json"], ["--debug"]], ids=["plain", "json", "debug"])
@pytest.mark.parametrize(("way", "shown"), [(["--no-browser"], "press Enter"), ([], "Opening the browser")])
def test_ctrl_c_ends_a_login_cleanly(
    settings: dict[str, str], site: Site, form: list[str], way: list[str], shown: str
) -> None:
    here = Terminal("auth", "demo", site.url, *way, *form, **settings, BROWSER="true")
    here.until(shown)
    here.press_ctrl_c()
    ran = here.end()
    assert ran.code == 130
    assert "Interrupted." in ran.out
    assert "Traceback" not in ran.out


# --- The documentation ------------------------------------------------------------------------------------------------

DOCS = (ROOT / "docs" / "cli.md").read_text("utf-8")


@pytest.mark.parametrize("code", Exit)
def test_the_docs_list_the_exit_codes(code: Exit) -> None:
    assert f"| {code.value} | {MEANINGS[code]} |" in DOCS


def test_the_docs_list_every_command_and_option() -> None:
    for command in [*cli.commands.values(), *store_commands.commands.values()]:
        name = f"store {command.name}" if command.name in store_commands.commands else command.name
        assert command is store_commands or f"`mcp-oauth {name}" in DOCS
        for parameter in command.params:
            for option in parameter.opts if isinstance(parameter, click.Option) else ():
                assert f"`{option}" in DOCS
                assert parameter.envvar is None or f"`{parameter.envvar}`" in DOCS


@pytest.mark.parametrize("line", ["list", "get demo", "auth demo URL", "test demo", "tools demo", "logout demo"])
def test_the_docs_list_the_members_of_JSON(run: Run, site: Site, line: str) -> None:
    run("auth", "demo", site.url)
    told = run(*line.replace("URL", site.url).split(), "--json").json
    for member in (*told, *told.get("servers", [{}])[0]):
        assert f"`{member}`" in DOCS
