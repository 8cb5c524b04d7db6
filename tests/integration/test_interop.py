"""Every row of docs/interop.md has its test, and the servers are of the versions that it names, or newer."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from tests.ecosystem.environments import python_of
from tests.servers.process import ROOT, missing

PAGE = (ROOT / "docs" / "interop.md").read_text("utf-8")
NAMED = sorted(set(re.findall(r"`(test_\w+\.py(?:::\w+)+)`", PAGE)))


def names(source: Path) -> set[str]:
    """The tests of a file, as pytest names them, without parameters."""
    found: set[str] = set()
    for one in ast.parse(source.read_text("utf-8")).body:
        if isinstance(one, ast.FunctionDef):
            found.add(one.name)
        elif isinstance(one, ast.ClassDef):
            found.update(f"{one.name}::{inner.name}" for inner in one.body if isinstance(inner, ast.FunctionDef))
    return found


@pytest.mark.parametrize("test", NAMED)
def test_the_test_is_there(test: str) -> None:
    file, _, name = test.partition("::")
    assert name in names(ROOT / "tests" / "integration" / file)


def test_no_row_is_without_a_test() -> None:
    """But those of the matrix of features, whose tests stand in the table below it."""
    tables = [table.splitlines() for table in re.findall(r"^\|.*?(?=\n\n|\Z)", PAGE, re.MULTILINE | re.DOTALL)]
    matrix = [table for table in tables if table[0].startswith("| |")]
    assert (len(tables), len(matrix)) == (5, 1)
    rows = [row for table in tables if table not in matrix for row in table[2:]]
    assert [row for row in rows if "`test_" not in row] == []


VERSIONS = [
    ("oidc-provider", "oidc-provider", "npm"),
    ("django-oauth-toolkit", "django-oauth-toolkit", "pip"),
    ("official Python SDK", "mcp", "pip"),
    ("official TypeScript SDK", "@modelcontextprotocol/sdk", "npm"),
    ("FastMCP, in memory", "fastmcp", "fastmcp"),
]


@pytest.mark.parametrize(("row", "package", "where"), VERSIONS)
def test_the_version_is_installed_or_a_newer_one(row: str, package: str, where: str) -> None:
    named = re.search(rf"^\| \[?{re.escape(row)}.*?\| ([\d.]+) \|", PAGE, re.MULTILINE)
    assert named
    assert ordered(installed(package, where)) >= ordered(named[1])


def installed(package: str, where: str) -> str:
    if where == "pip":
        return metadata.version(package)
    if where == "npm":
        manifest = ROOT / "node_modules" / package / "package.json"
        if not manifest.exists():
            missing(f"npm {package}", "run `make node_modules`")
        return str(json.loads(manifest.read_text("utf-8"))["version"])
    code = f"from importlib import metadata; print(metadata.version({package!r}))"
    command = [str(python_of(where)), "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def ordered(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
