"""The examples for other programs, run as their readers would: each twice, against the real server, with one login."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from mcp_oauth.adapters import mcp_sdk
from mcp_oauth.adapters.key_value import KeyValue
from mcp_oauth.adapters.mcp_sdk import TokenStorage
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from tests.docs.blocks import blocks
from tests.ecosystem.environments import HERE, python_of
from tests.servers import consent, sdk_server
from tests.servers.process import ROOT, stop

PERSON = f"{sys.executable} -m tests.servers.consent %s"
PATIENT = f"{sys.executable} -m tests.ecosystem.person %s &"
"""For programs that listen only when the page is open."""
NOBODY = "false"
"""A browser that does not open."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with sdk_server.serving() as server:
        yield server.mcp


@dataclass(frozen=True)
class Program:
    """A program of an example, and the home folder of whoever runs it."""

    path: str
    environment: str | None
    home: Path
    url: str

    def run(self, browser: str = NOBODY, given: str = "") -> list[str]:
        """What it says, if all goes well; `given` is its standard input."""
        ran: subprocess.CompletedProcess[str] = subprocess.run(
            **self._as(browser), input=given, capture_output=True, timeout=60
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.splitlines()

    def run_and_paste(self) -> list[str]:
        """The same, with a person who opens the address that it names, and brings the redirect back."""
        child = subprocess.Popen(**self._as(NOBODY), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            assert child.stdout is not None
            shown = next(filter(None, (re.search(r"https?://\S+", line) for line in child.stdout)))
            said, _ = child.communicate(consent.follow(shown.group()) + "\n", timeout=60)
        finally:
            stop(child)
        assert child.returncode == 0
        return [line for line in said.splitlines() if line and not line.endswith(":")]

    def _as(self, browser: str) -> dict[str, Any]:
        python = sys.executable if self.environment is None else str(python_of(self.environment))
        own = {"HOME": str(self.home), "BROWSER": browser, "PYTHON_KEYRING_BACKEND": "keyring.backends.null.Keyring"}
        return {"args": [python, self.path, self.url], "env": os.environ | own, "cwd": ROOT, "text": True}


class TestOurLogin:
    """`OAuth` of ours in their clients."""

    @pytest.mark.parametrize(
        ("name", "environment", "says"),
        [
            ("with_mcp_sdk", None, ["echo", "whoami"]),
            ("with_fastmcp", "fastmcp", ["echo", "whoami"]),
            ("with_pydantic_ai", "fastmcp", ['{"echo":"a","whoami":"alice"}']),
            ("with_langchain", "mcp1", ["echo", "whoami"]),
        ],
    )
    def test_it_logs_in_once(
        self, name: str, environment: str | None, says: list[str], url: str, tmp_path: Path
    ) -> None:
        program = Program(f"examples/{name}.py", environment, tmp_path, url)
        assert program.run(PERSON) == says
        assert program.run() == says


class TestTheirLogin:
    """Their own login, its tokens in a store of ours."""

    @pytest.mark.parametrize(
        ("path", "environment"),
        [
            pytest.param("examples/stores_in_mcp_sdk.py", None, id="2.x"),
            pytest.param("tests/ecosystem/sdk1_stores.py", "mcp1", id="1.x"),
        ],
    )
    def test_of_the_official_sdk(self, path: str, environment: str | None, url: str, tmp_path: Path) -> None:
        program = Program(path, environment, tmp_path, url)
        assert program.run_and_paste() == ["echo", "whoami"]
        store = EncryptedFileStore(tmp_path / ".stores_in_mcp_sdk")
        first = run(TokenStorage(store, url).get_tokens)
        assert program.run() == ["echo", "whoami"]
        assert run(TokenStorage(store, url).get_tokens).access_token == first.access_token

        run(expire, store, TokenStorage(store, url)._key, mcp_sdk.TOKENS)
        assert program.run() == ["echo", "whoami"]
        renewed = run(TokenStorage(store, url).get_tokens)
        assert renewed.access_token not in ("", first.access_token)
        assert renewed.refresh_token != first.refresh_token

    def test_of_fastmcp(self, url: str, tmp_path: Path) -> None:
        program = Program("examples/stores_in_fastmcp.py", "fastmcp", tmp_path, url)
        assert program.run(PATIENT) == ["echo", "whoami"]
        store = EncryptedFileStore(tmp_path / ".stores_in_fastmcp")
        tokens = partial(KeyValue(store).get, f"{url}/tokens", collection="mcp-oauth-token")
        first = run(tokens)
        assert program.run() == ["echo", "whoami"]
        assert run(tokens) == first

        run(expire, store, f"{url}/token_expiry", "mcp-oauth-token-expiry")
        assert program.run() == ["echo", "whoami"]
        assert run(tokens)["access_token"] != first["access_token"]


def run(call: Any, *arguments: Any) -> Any:
    return anyio.run(call, *arguments)


async def expire(store: EncryptedFileStore, key: str, collection: str) -> None:
    """The access token has expired, as far as the program knows."""
    kept = await KeyValue(store).get(key, collection=collection)
    assert kept is not None
    assert kept["expires_at"] > time.time()
    await KeyValue(store).put(key, kept | {"expires_at": time.time() - 1}, collection=collection)


class TestPage:
    """docs/ecosystem.md. Its blocks are `py`, for those of `python` all run in the tests' own environment."""

    TEXT = (ROOT / "docs" / "ecosystem.md").read_text()
    PLACES = (
        (None, PERSON),
        ("fastmcp", PERSON),
        ("fastmcp", PERSON),
        ("mcp1", PERSON),
        (None, NOBODY),
        ("fastmcp", PATIENT),
    )
    """Where each block runs, and who is there."""
    GIVEN = "client_metadata = redirect_handler = callback_handler = None\n"
    """What the text leaves to its reader."""

    @pytest.mark.parametrize("number", range(len(PLACES)))
    def test_its_blocks_run(self, number: int, url: str, tmp_path: Path) -> None:
        code = blocks(self.TEXT, "py")[number].code.replace("https://mcp.example.com/mcp", url)
        environment, person = self.PLACES[number]
        program = Program("tests/docs/program.py", environment, tmp_path, url)
        program.run(person, self.GIVEN + code.replace("/tmp/", f"{tmp_path}/"))

    def test_these_are_all(self) -> None:
        assert len(blocks(self.TEXT, "py", "python")) == len(self.PLACES)

    def test_it_names_the_versions(self) -> None:
        for name, version in pins():
            assert f"{name} {version}" in self.TEXT


class TestVersions:
    """What an example says that it ran with is what it runs with here."""

    @pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
    def test_of_the_examples(self, path: Path) -> None:
        for name, version in pins():
            said = re.findall(rf"(?<![\w-]){name} (\d[\d.]*\d)", path.read_text())
            assert set(said) <= {version}, name


def pins() -> list[tuple[str, str]]:
    """What the environments are made of, with the version."""
    pinned = re.compile(r"^([\w-]+)(?:\[.*\])?==(\S+)$", re.MULTILINE)
    return [pin for requirements in HERE.glob("*.txt") for pin in pinned.findall(requirements.read_text())]
