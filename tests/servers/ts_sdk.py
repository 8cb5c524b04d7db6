"""The official TypeScript SDK on loopback: its demo authorization server, its MCP server (`ts_sdk.mjs`)."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.servers import tls
from tests.servers.oidc_provider import node
from tests.servers.process import running
from tests.servers.tls import PrivateCA


@dataclass(frozen=True)
class TsSdk:
    """Where the servers are."""

    issuer: str
    mcp: str


@contextmanager
def serving(ca: PrivateCA | None = None, *, provider: Literal["demo", "renewing"] = "renewing") -> Generator[TsSdk]:
    """Fresh servers: the SDK's `demo` as it is, or `renewing`; with `ca`, over https."""
    command = [str(node()), str(Path(__file__).with_suffix(".mjs"))]
    with running(command, {"PROVIDER": provider, **tls.settings(ca)}) as ready:
        yield TsSdk(**ready)
