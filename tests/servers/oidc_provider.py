"""npm `oidc-provider` on loopback, with an MCP server that it protects (`oidc_provider.mjs` beside this file)."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx

from tests.servers.process import ROOT, missing, running

CURE = "run `make node_modules`"


@dataclass(frozen=True)
class OidcProvider:
    """Where the servers are, and their test controls."""

    issuer: str
    mcp: str
    control: str

    def stats(self) -> dict[str, Any]:
        """What the servers counted: `requests` by "METHOD /path", `granted` and `refused` by grant type, and more."""
        counted: dict[str, Any] = httpx.get(f"{self.control}/__stats", trust_env=False).json()
        return counted

    def set(self, **knobs: object) -> None:
        """Turn the knobs that `oidc_provider.mjs` lists at its head."""
        httpx.post(f"{self.control}/__control", json=knobs, trust_env=False).raise_for_status()


def node() -> Path:
    """The Node that runs the npm packages: the one from npm, else the machine's."""
    if not (ROOT / "node_modules" / "oidc-provider").is_dir():
        missing("npm oidc-provider", CURE)
    shipped = ROOT / "node_modules" / ".bin" / "node"
    found = str(shipped) if shipped.exists() else shutil.which("node")
    return Path(found) if found else missing("Node 22 or newer", CURE)


@contextmanager
def serving(access_token_ttl: int = 3600, token_format: Literal["opaque", "jwt"] = "opaque") -> Generator[OidcProvider]:
    """A fresh authorization server and MCP server; `access_token_ttl` in seconds."""
    settings = {"ACCESS_TOKEN_TTL": str(access_token_ttl), "ACCESS_TOKEN_FORMAT": token_format}
    program = Path(__file__).with_suffix(".mjs")
    with running([str(node()), str(program)], settings) as ready:
        yield OidcProvider(**ready)
