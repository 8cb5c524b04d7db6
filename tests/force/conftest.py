"""What the tests by force start from: a real server that forgives nothing, and a program that is logged in there.

- `strict`: npm oidc-provider, one for the whole run. No grace for spent refresh tokens; counts from nothing.
- `store`: encrypted files in a folder of the test.
- `login`: a program on that store that is logged in. Its login is not counted.
- `gate`: stands before the token endpoint of that grant, and holds requests where the test wants (`tests.force.gate`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mcp_oauth.store.base import Store
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from tests.force.gate import Gate
from tests.integration.program import Person, Program, program, served
from tests.io.servers import serving
from tests.servers import oidc_provider as npm
from tests.servers.oidc_provider import OidcProvider


@pytest.fixture(scope="session")
def running() -> Iterator[OidcProvider]:
    with npm.serving() as server:
        yield server


@pytest.fixture
def strict(running: OidcProvider) -> OidcProvider:
    running.set(reset=True, token=[], refreshGrace=0, accessTokenTtl=3600)
    return running


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return EncryptedFileStore(tmp_path / "store")


@pytest.fixture
def login(strict: OidcProvider, store: Store) -> Program:
    here = program("httpx2-sync", strict.mcp, store=store, user=Person())
    assert served(here.call())
    strict.set(reset=True)
    here.traffic.clear()
    return here


@pytest.fixture
def gate(login: Program, store: Store) -> Iterator[Gate]:
    with serving() as server:
        server.handler = gate = Gate(server.origin)
        gate.stand_before(store, login.url)
        yield gate
        gate.open()
