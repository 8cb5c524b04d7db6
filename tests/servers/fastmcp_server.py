"""FastMCP's authorization server and MCP server on loopback (`fastmcp_site.py` beside this file)."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.ecosystem.environments import python_of
from tests.servers import tls
from tests.servers.process import running
from tests.servers.tls import PrivateCA


@dataclass(frozen=True)
class FastMcpServer:
    """Where the server is."""

    mcp: str
    issuer: str


@contextmanager
def serving(ca: PrivateCA | None = None, *, upstream: str | None = None) -> Generator[FastMcpServer]:
    """A fresh server; with `ca`, over https; with `upstream`, a proxy of that issuer."""
    command = [str(python_of("fastmcp")), "-m", "tests.servers.fastmcp_site"]
    settings = {} if upstream is None else {"UPSTREAM": upstream}
    with running(command, settings | tls.settings(ca)) as ready:
        yield FastMcpServer(**ready)
