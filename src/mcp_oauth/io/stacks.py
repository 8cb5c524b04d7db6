"""The HTTP library for programs that leave the choice to us: httpx2, else httpx."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

from mcp_oauth.exceptions import from_failure
from mcp_oauth.io.httpx_like import HttpxPlug
from mcp_oauth.sansio.errors import Reason, failure

STACKS = ("httpx2", "httpx")


class Stack(NamedTuple):
    """An HTTP library, and our driver for it."""

    library: Any
    """The module `httpx2` or `httpx`."""
    oauth: type[HttpxPlug]


def installed() -> Stack:
    """The one to use. Raises `ConfigurationError` where none is installed."""
    name = next((name for name in STACKS if find_spec(name) is not None), None)
    if name is None:
        message = 'no HTTP library is installed: pip install "mcp-oauth-sansio[httpx2]"'
        raise from_failure(failure(Reason.CONFIGURATION, message))
    return Stack(import_module(name), import_module(f"mcp_oauth.io.{name}").OAuth)
