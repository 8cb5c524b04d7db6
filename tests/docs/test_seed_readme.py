"""Every Python and shell block of the README of the library that this one succeeds, with the names changed, for real.

`seed_readme.md` is a copy of it; `seed_cases` says how each block is run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from mcp_oauth.store.base import WrongPasswordError
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from tests.docs.blocks import Block, blocks
from tests.docs.seed_cases import NOT_PYTHON, PYTHON, SHELL, Case, filled, program
from tests.servers import openbao, secret_service
from tests.servers.process import ROOT, missing, running

README = (Path(__file__).parent / "seed_readme.md").read_text("utf-8")
PYTHON_BLOCKS = blocks(README, "python")
SHELL_BLOCKS = blocks(README, "bash")
HERE = Path(__file__).parent

Values = Mapping[str, str]


@pytest.fixture(scope="module")
def servers() -> Iterator[Values]:
    """The two MCP servers of the page, and one that knows no OAuth."""
    command = [sys.executable, "-m", "tests.docs.seed_server"]
    with running(command, {}) as server, running(command, {}) as other, ExitStack() as ended:
        nothing = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)  # it answers 501
        ended.callback(nothing.shutdown)
        Thread(target=nothing.serve_forever).start()
        nothing_origin = f"http://127.0.0.1:{nothing.server_port}"
        yield {
            "server": server["mcp"],
            "origin": server["issuer"],
            "other": other["mcp"],
            "nothing": f"{nothing_origin}/mcp",
            "nothing_origin": nothing_origin,
        }
        nothing.server_close()


@pytest.fixture(scope="module")
def vault() -> Iterator[openbao.OpenBao]:
    with openbao.serving() as server:
        yield server


@pytest.fixture(scope="module")
def keyring() -> Iterator[secret_service.SecretService]:
    with secret_service.serving() as service:
        yield service


@pytest.fixture
def environment(servers: Values, tmp_path: Path) -> dict[str, str]:
    """A machine without a keyring, whose browser a script plays; the home is empty."""
    taken = ("DBUS_SESSION_BUS_ADDRESS", "DISPLAY", "WAYLAND_DISPLAY", "VAULT_ADDR", "VAULT_TOKEN", "SSH_CONNECTION")
    kept = {name: value for name, value in os.environ.items() if name not in taken}
    browser = f"{sys.executable} -m tests.servers.consent %s"
    return {**kept, "BROWSER": browser, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}


def _denying(request: pytest.FixtureRequest, environment: dict[str, str], home: Path) -> Values:
    environment["BROWSER"] += " --deny"
    return {}


def _keyring(request: pytest.FixtureRequest, environment: dict[str, str], home: Path) -> Values:
    service: secret_service.SecretService = request.getfixturevalue("keyring")
    environment.update(service.environment)
    environment["HOME"] = str(home)
    return _vault(request, environment, home)


def _vault(request: pytest.FixtureRequest, environment: dict[str, str], home: Path) -> Values:
    server: openbao.OpenBao = request.getfixturevalue("vault")
    environment.update({"VAULT_URL": server.url, "VAULT_TOKEN": server.token})
    return {"vault": server.url, "vault_token": server.token}


def _no_folder(request: pytest.FixtureRequest, environment: dict[str, str], home: Path) -> Values:
    (home / ".mcp_oauth").write_text("a file where the folder should be")
    return {}


def _issuer(request: pytest.FixtureRequest, environment: dict[str, str], home: Path) -> Values:
    """The block asks for the metadata below the URL that it is given."""
    servers: Values = request.getfixturevalue("servers")
    return {"server": servers["origin"]}


settings: dict[str, Callable[[pytest.FixtureRequest, dict[str, str], Path], Values]] = {
    "plain": lambda request, environment, home: {},
    "denying": _denying,
    "keyring": _keyring,
    "vault": _vault,
    "no folder": _no_folder,
    "issuer": _issuer,
}


def test_no_block_is_left_out() -> None:
    assert {block.line - 1 for block in PYTHON_BLOCKS} == {*PYTHON, *NOT_PYTHON}
    assert {block.line - 1 for block in SHELL_BLOCKS} == {*SHELL}
    assert all(case.because for case in (*PYTHON.values(), *SHELL.values()) if case.instead)


@pytest.mark.parametrize(
    "block", [pytest.param(one, id=f"line-{one.line - 1}") for one in PYTHON_BLOCKS if one.line - 1 in PYTHON]
)
def test_python_block(
    block: Block, servers: Values, environment: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    case: Case = PYTHON[block.line - 1]
    values = {**servers, "home": str(tmp_path), **settings[case.setting](request, environment, tmp_path)}
    done = subprocess.run(
        [sys.executable, HERE / "program.py"],
        input=program(block.code, case, values),
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    says(done.stdout + done.stderr, case, values)


def test_encrypted_file_as_described(tmp_path: Path) -> None:
    """Line 1064 and "Storage Security Features"; where it is another way here, docs/migrating.md says so."""
    store = EncryptedFileStore(tmp_path / "tokens", password="my-password", kdf="pbkdf2")
    for revision, expected in (("r1", None), ("r2", "r1")):
        store.save("my-server", b"a token", revision=revision, expected=expected)
        (file,) = store_files(tmp_path, "*.enc")
        sealed = file.read_bytes()
        assert b"a token" not in sealed
        assert b"my-server" not in sealed
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    (header,) = store_files(tmp_path, "store.json")
    derived = json.loads(header.read_bytes())["kdf"]
    assert (derived["type"], derived["iterations"]) == ("Pbkdf2", 600_000)
    with pytest.raises(WrongPasswordError):
        EncryptedFileStore(tmp_path / "tokens", password="another").load("my-server")


def test_each_record_has_a_salt_and_a_nonce_of_its_own(tmp_path: Path) -> None:
    store = EncryptedFileStore(tmp_path / "tokens")
    for name in ("one", "two"):
        store.save(name, b"the same", revision="r1", expected=None)
    first, second = (file.read_bytes() for file in store_files(tmp_path, "*.enc"))
    salt, nonce = slice(49, 81), slice(81, 93)  # after magic, format, key id and slot: see `store.sealing`
    assert first[salt] != second[salt]
    assert first[nonce] != second[nonce]


def store_files(home: Path, pattern: str) -> list[Path]:
    return sorted((home / "tokens").glob(pattern))


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout as it is, committed or not, with all extras installed for `uv run`."""
    folder = tmp_path_factory.mktemp("copy") / "mcp-oauth"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".git", ".venv*", "node_modules", ".*cache", "mutants"))
    subprocess.run(["uv", "sync", "--all-extras", "--quiet"], cwd=folder, env=_with_uv(dict(os.environ)), check=True)
    return folder


def _with_uv(environment: dict[str, str]) -> dict[str, str]:
    """`uv`, and the command `mcp-oauth`, of the environment that runs these tests; what uv has fetched serves all."""
    here = Path(sys.executable).parent
    if not (here / "uv").exists():
        missing("uv", "pip install uv")
    kept = {name: value for name, value in environment.items() if name != "VIRTUAL_ENV"}
    path = f"{here}{os.pathsep}{kept['PATH']}"
    kept.setdefault("UV_CACHE_DIR", str(Path.home() / ".cache" / "uv"))
    return {**kept, "PATH": path, "UV_PYTHON": sys.executable, "UV_PYTHON_DOWNLOADS": "never"}


@pytest.mark.slow
@pytest.mark.parametrize("block", [pytest.param(one, id=f"line-{one.line - 1}") for one in SHELL_BLOCKS])
def test_shell_block(
    block: Block, servers: Values, environment: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    case = SHELL[block.line - 1]
    values = {**servers, "checkout": str(ROOT), "python": sys.executable, "home": str(tmp_path)}
    if "$copy" in case.before:
        values["copy"] = str(request.getfixturevalue("copy"))
    work = tmp_path / "work"
    work.mkdir()
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", program(block.code, case, values)],
        env=_with_uv(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=110,
        cwd=work,
    )
    assert done.returncode == 0, done.stdout
    says(done.stdout, case, values)


def says(said: str, case: Case, values: Values) -> None:
    for expected in case.says:
        found = re.search(filled(expected, values), said)
        assert found, f"{expected!r} was not said, or not in this place: {said}"
        said = said[found.end() :]
