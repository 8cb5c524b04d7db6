"""Options of the drivers that are no such thing: found at once, named, with what to give."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest

from mcp_oauth.exceptions import ConfigurationError
from mcp_oauth.sansio.steps import Notice

SERVER = "https://mcp.example.com/mcp"

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("httpx", {"verify": False}, "verify: give an ssl.SSLContext"),
    ("httpx2", {"verify": "ca.pem"}, "verify: give an ssl.SSLContext"),
    ("httpx2", {"transport": object()}, "transport: give a function"),
    ("aiohttp", {"ssl": False}, "ssl: give an ssl.SSLContext"),
    ("aiohttp", {"connector": object()}, "connector: give a function"),
    ("requests", {"verify": False}, "verify: give the path"),
    ("requests", {"adapter": object()}, "adapter: give a function"),
    ("anyio", {"ssl_context": False}, "ssl_context: give an ssl.SSLContext"),
    ("anyio", {"client": "my-client"}, "client: give PreRegistered"),
]


@pytest.mark.parametrize(
    ("stack", "options", "message"),
    [pytest.param(*row, id="-".join([row[0], *row[1]]) + f"-{n}") for n, row in enumerate(WRONG)],
)
def test_TLS_is_verified_and_layers_are_made_anew(stack: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        import_module(f"mcp_oauth.io.{stack}").OAuth(SERVER, **options)


def test_an_option_of_another_driver_is_none_of_this_one() -> None:
    with pytest.raises(TypeError, match=r"mcp_oauth\.io\.aiohttp\.OAuth has no option 'verify'"):
        import_module("mcp_oauth.io.aiohttp").OAuth(SERVER, verify=None)


def test_a_notice_can_be_printed() -> None:
    assert (
        str(Notice("registered", "registered at https://as.example.com"))
        == "registered: registered at https://as.example.com"
    )
