"""The official Python SDK's MCP server and authorization server on loopback (`examples/server`)."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.servers.process import running


@dataclass(frozen=True)
class SdkServer:
    """Where the server is."""

    mcp: str
    issuer: str


@contextmanager
def serving(token_lifetime: int = 3600) -> Generator[SdkServer]:
    """A fresh server; `token_lifetime` is that of an access token, in seconds."""
    command = [sys.executable, "-m", "examples.server", "--token-lifetime", str(token_lifetime)]
    with running(command, {}) as ready:
        yield SdkServer(**ready)
