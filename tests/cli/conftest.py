"""What the tests of the command share: a site, and a folder, an environment and a browser of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from mcp_oauth.cli import main
from mcp_oauth.io import user
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from tests.cli.site import Ran, Run, Site
from tests.io.servers import serving
from tests.servers import consent


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as server:
        server.handler = site = Site(server.origin)
        yield site


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(folder: Path) -> EncryptedFileStore:
    return EncryptedFileStore(folder)


@pytest.fixture
def settings(folder: Path) -> dict[str, str]:
    """The environment of a command that is a process of its own."""
    return {"MCP_OAUTH_STORE": "file", "MCP_OAUTH_STORE_DIR": str(folder)}


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, the_log_stays: None) -> Run:
    """The command in this process, on a store of its own, with a person who agrees to everything."""
    monkeypatch.setenv("MCP_OAUTH_STORE", "file")
    monkeypatch.setenv("MCP_OAUTH_STORE_DIR", str(folder))
    monkeypatch.setenv("BROWSER", "a person")
    monkeypatch.setattr(user, "_open_in_browser", lambda url: bool(consent.visit(url)))

    def run(*arguments: str) -> Ran:
        with patch.dict(os.environ):  # from which a command takes its secrets
            code = main(arguments)
        told = capsys.readouterr()
        return Ran(code, told.out, told.err)

    return run
