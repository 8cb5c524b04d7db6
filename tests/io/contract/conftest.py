"""What the contract's tests start from: every way of every stack, and an authority that nobody else trusts."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme

from tests.io.contract.table import DRIVERS, FOLLOWERS, STACKS, WAYS
from tests.io.contract.ways import Authority, Way
from tests.io.servers import PATIENCE


@pytest.fixture(params=WAYS, ids=[way.name for way in WAYS])
def way(request: pytest.FixtureRequest) -> Way:
    found: Way = request.param
    return found


@pytest.fixture(params=FOLLOWERS, ids=[way.name for way in FOLLOWERS])
def follower(request: pytest.FixtureRequest) -> Way:
    """A way whose client follows redirects by itself."""
    found: Way = request.param
    return found


@pytest.fixture(params=STACKS, ids=[way.stack for way in STACKS])
def stack(request: pytest.FixtureRequest) -> Way:
    """One way of each stack: for OAuth traffic, which is the same in all."""
    found: Way = request.param
    return found


@pytest.fixture(params=DRIVERS, ids=[way.stack for way in DRIVERS])
def driver(request: pytest.FixtureRequest) -> Way:
    """The same, but for the example, which claims less: see `urllib_ways`."""
    found: Way = request.param
    return found


class Private(NamedTuple):
    """A CA, and the context of a server at 127.0.0.1 that it vouches for."""

    authority: Authority
    server: ssl.SSLContext


@pytest.fixture(scope="session")
def private(tmp_path_factory: pytest.TempPathFactory) -> Private:
    ca, path = trustme.CA(), tmp_path_factory.mktemp("ca") / "ca.pem"
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    ca.issue_cert("127.0.0.1").configure_cert(server)
    ca.configure_trust(client)
    ca.cert_pem.write_to_path(str(path))
    return Private(Authority(client, path), server)


@pytest.fixture
def netrc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "netrc"
    path.write_text("default login alice password CANARY\n")
    path.chmod(0o600)
    monkeypatch.setenv("NETRC", str(path))


@pytest.fixture
def nothing_is_left_of_threads() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        if not thread.daemon:  # trio keeps its idle worker threads for a while
            thread.join(PATIENCE)
            assert not thread.is_alive(), thread
