"""The kinds of store that the contract is tried on. Another kind is another line in `SITES`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mcp_oauth.store.base import Store
from mcp_oauth.store.memory import MemoryStore
from tests.store.files import FILE
from tests.store.peer import Peer, Recipe

Again = Callable[[], Store]
"""A store that sees what the others of its site see."""


def _memory(tmp_path: Path) -> Again:
    store = MemoryStore()
    return lambda: store


def _encrypted_file(tmp_path: Path) -> Again:
    return _recipes["encrypted_file"](tmp_path).store


# The stores that other processes can reach, and those that end with this one.
_recipes: dict[str, Callable[[Path], Recipe]] = {
    "encrypted_file": lambda tmp_path: Recipe(FILE, {"folder": str(tmp_path / "store")}),
}
SITES: dict[str, Callable[[Path], Again]] = {"memory": _memory, "encrypted_file": _encrypted_file}


@pytest.fixture(params=SITES)
def again(request: pytest.FixtureRequest, tmp_path: Path) -> Again:
    return SITES[request.param](tmp_path)


@pytest.fixture
def store(again: Again) -> Store:
    return again()


@pytest.fixture(params=_recipes)
def recipe(request: pytest.FixtureRequest, tmp_path: Path) -> Recipe:
    """A store that other processes can reach."""
    return _recipes[request.param](tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the encrypted file store of a test is."""
    return tmp_path / "store"


@pytest.fixture
def start() -> Iterator[Callable[..., Peer]]:
    """Start other processes; they end with the test."""
    with contextlib.ExitStack() as peers:

        def start_one(recipe: Recipe, **setup: int) -> Peer:
            peer = Peer(recipe, **setup)
            peers.callback(peer.kill)
            return peer

        yield start_one
