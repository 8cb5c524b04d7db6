"""A real OpenBao (the Vault API) on loopback, in memory, unsealed (`bao server -dev`)."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class OpenBao:
    """Where it is, and its root token."""

    url: str
    token: str


@contextmanager
def serving() -> Generator[OpenBao]:
    raise NotImplementedError
    yield
