"""Every Python block of the README and of docs/ runs, against a real server; every link leads somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

import mcp_oauth
from tests.docs.blocks import blocks
from tests.servers import sdk_server
from tests.servers.sdk_server import SdkServer

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = [block.code for block in blocks(README, "python")]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PLACEHOLDER = "https://mcp.example.com/mcp"


@pytest.fixture(scope="module")
def server() -> Iterator[SdkServer]:
    with sdk_server.serving() as running:
        yield running


def run(code: str, server: SdkServer, home: Path) -> str:
    """Run a block as a program of its own: an empty home, and a browser that a script plays."""
    environment = os.environ | {
        "BROWSER": f"{sys.executable} -m tests.servers.consent %s",
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", code.replace(PLACEHOLDER, server.mcp)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_blocks_are_run_here() -> None:
    assert len(BLOCKS) == 4


def test_the_first_program_logs_in_and_remembers(server: SdkServer, tmp_path: Path) -> None:
    quick_start = BLOCKS[0]
    assert PLACEHOLDER in quick_start
    # The server answers 400 to a ping without a session: what matters is that it is no 401.
    assert run(quick_start, server, tmp_path).strip() in ("200", "400")


def test_servers_by_name(server: SdkServer, tmp_path: Path) -> None:
    assert re.fullmatch(r"3[56]\d\d \['Authorization'\]", run(BLOCKS[1], server, tmp_path).strip())


def test_errors_are_told_apart(server: SdkServer, tmp_path: Path) -> None:
    assert run(BLOCKS[2], server, tmp_path).strip() == "a person must log in first"


def test_the_login_by_hand_is_the_tested_example() -> None:
    assert BLOCKS[3] == (ROOT / "examples" / "by_hand.py").read_text("utf-8")


DOCS = [
    pytest.param(block.code, id=f"{page.name}-{block.line}")
    for page in PAGES[1:]
    for block in blocks(page.read_text("utf-8"), "python")
]


@pytest.mark.parametrize("code", DOCS)
def test_blocks_of_docs(code: str, server: SdkServer, tmp_path: Path) -> None:
    run(code.replace("/tmp/", f"{tmp_path}/"), server, tmp_path)


LINKS = [
    pytest.param(page.parent / path.partition("#")[0], id=f"{page.name}-{path}")
    for page in PAGES
    for path in sorted(set(re.findall(r"\]\(([^)h#][^)]*)\)", page.read_text("utf-8"))))
]


@pytest.mark.parametrize("target", LINKS)
def test_links_lead_somewhere(target: Path) -> None:
    assert target.exists()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"^    make (\w+)", README, re.MULTILINE))))
def test_make_targets_exist(target: str) -> None:
    assert re.search(rf"^(\S+ )*{target}( \S+)*:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)


def test_the_version_is_the_distributions() -> None:
    assert mcp_oauth.__version__ == metadata.version("mcp-oauth-sansio")
