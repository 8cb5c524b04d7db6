"""django-oauth-toolkit on loopback, with a resource that it protects (`django_toolkit_site.py` beside this file)."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.servers.process import running


@dataclass(frozen=True)
class DjangoToolkit:
    """Where the servers are."""

    mcp: str
    issuer: str

    @property
    def named(self) -> str:
        """Another MCP server there, whose challenges say which scope is needed."""
        return f"{self.issuer}/named/mcp"


@contextmanager
def serving() -> Generator[DjangoToolkit]:
    """A fresh site, with one person."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.servers.django_toolkit_site", folder]
        with running(command, {}) as ready:
            yield DjangoToolkit(**ready)
