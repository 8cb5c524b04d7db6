"""Stores on the one OpenBao of the run, below a path of the test's own."""

from __future__ import annotations

from uuid import uuid4

import pytest

from mcp_oauth.store.vault import VaultStore
from tests.servers.openbao import OpenBao
from tests.store.vaults import Clock, Make, counted, maker


@pytest.fixture
def bao(openbao_server: OpenBao) -> OpenBao:
    return openbao_server


@pytest.fixture
def prefix() -> str:
    return f"test/{uuid4().hex}"


@pytest.fixture
def make(bao: OpenBao, prefix: str) -> Make:
    return maker(bao, prefix)


@pytest.fixture
def store(make: Make) -> VaultStore:
    return make()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return counted(monkeypatch)
