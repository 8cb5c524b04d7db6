"""The main job, narrated: `make demo`, or `python -m examples.demo`.

It starts a real MCP server with a real authorization server on loopback (the official SDK's), and runs itself twice
as a client, each time in a new process, with one encrypted store in a temporary folder.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.types import TextContent

from mcp_oauth.exceptions import AuthorizationRequired
from mcp_oauth.io.httpx2 import OAuth
from mcp_oauth.io.user import Browser, User, headless
from mcp_oauth.sansio.steps import Notice
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from tests.servers import consent

LIFETIME = 4
"""Seconds that an access token lives, so that a refresh can be watched."""


def say(text: str) -> None:
    print(text, flush=True)


class Narrator(httpx2.AsyncHTTPTransport):
    """Shows each request that it carries: without query, headers and body, which hold secrets."""

    def __init__(self, who: str) -> None:
        super().__init__()
        self._who = who

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().handle_async_request(request)
        bearer = "with a token" if "authorization" in request.headers else "without a token"
        note = f" ({bearer})" if self._who == "program" else ""
        url = request.url.copy_with(query=None)
        say(f"    {self._who:>7}  {request.method:<6} {url}  ->  {response.status_code}{note}")
        return response


def person() -> User:
    """A browser where there is one; else the consent page is followed over HTTP, through the same listener."""
    missing = headless(os.environ, sys.platform)
    if missing is None:
        return Browser()
    say(f"    ({missing}: the demo plays the person, and clicks Approve)")
    return Browser(opener=lambda url: bool(consent.visit(url)), tell=lambda _: None)


def notice(told: Notice) -> None:
    say(f"    mcp_oauth: {told.message}")


def connect(url: str, folder: str, *, user: User | None = None, interactive: bool) -> OAuth:
    store = EncryptedFileStore(Path(folder))
    return OAuth(
        url,
        store=store,
        user=user,
        interactive=interactive,
        on_notice=notice,
        transport=lambda: Narrator("oauth"),
    )


async def call(url: str, oauth: OAuth, text: str) -> str:
    """Call the tool `echo` with the official SDK's client, whose HTTP client has our `auth`."""
    async with (
        httpx2.AsyncClient(auth=oauth, transport=Narrator("program")) as http,
        streamable_http_client(url, http_client=http) as (read, write, *_),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        result = await session.call_tool("echo", {"text": text})
        (content,) = result.content
        assert isinstance(content, TextContent)
        return content.text


async def first(url: str, folder: str) -> None:
    say("\n1. A program calls a tool. Nobody has logged in yet.")
    oauth = connect(url, folder, user=person(), interactive=True)
    say(f"    the tool says: {await call(url, oauth, 'hello')}")

    say(f"\n2. {LIFETIME} seconds later the access token has expired. The next call renews it, without a person.")
    await asyncio.sleep(LIFETIME)
    say(f"    the tool says: {await call(url, oauth, 'hello again')}")


async def second(url: str, folder: str) -> None:
    say("\n3. A new process, the token expired again: one refresh, and no browser (interactive=False forbids it).")
    oauth = connect(url, folder, interactive=False)
    say(f"    the tool says: {await call(url, oauth, 'hello from another process')}")

    say("\n4. Logout: the tokens are revoked, refresh token first.")
    token = await oauth.aauthorize()
    headers = await bearer(url, oauth)
    await oauth.alogout()

    say("\n5. The old access token is refused now, and the store is empty.")
    async with httpx2.AsyncClient(transport=Narrator("program")) as client:
        response = await client.post(url, headers=headers, json={})
    assert response.status_code == 401, response.status_code
    left = (token.expires_at or 0) - time.time()
    assert left > 0, "the machine is too slow to tell a revoked token from an expired one"
    say(f"    without the logout it would have lived for {left:.1f} more seconds")
    try:
        await oauth.aauthorize()
    except AuthorizationRequired as error:
        say(f"    a program would have to log in anew: {error}")
    else:
        raise AssertionError("a grant survived the logout")


async def bearer(url: str, oauth: OAuth) -> dict[str, str]:
    """The header of the token in use, taken from a request on its way."""
    taken: dict[str, str] = {}

    async def take(request: httpx2.Request) -> None:
        taken["Authorization"] = request.headers["authorization"]

    async with httpx2.AsyncClient(auth=oauth, event_hooks={"request": [take]}) as client:
        await client.get(url, headers={"Accept": "application/json"})
    return taken


@contextmanager
def server() -> Iterator[str]:
    """The real server, in a process of its own."""
    command = [sys.executable, "-m", "examples.server", "--token-lifetime", str(LIFETIME)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            ready: dict[str, Any] = json.loads(process.stdout.readline().removeprefix("READY "))
            yield ready["mcp"]
        finally:
            process.terminate()


def main() -> None:
    with server() as url, tempfile.TemporaryDirectory() as folder:
        say(f"A real MCP server, protected by a real authorization server, listens at {url}")
        for part in ("first", "second"):
            subprocess.run([sys.executable, "-m", "examples.demo", part, url, folder], check=True)
            if part == "first":
                say(f"    (that process has ended; waiting {LIFETIME} seconds)")
                asyncio.run(asyncio.sleep(LIFETIME))
    say("\nDone: discovered, registered, logged in, called, renewed, restarted, logged out.")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["first", url, folder]:
            asyncio.run(first(url, folder))
        case ["second", url, folder]:
            asyncio.run(second(url, folder))
        case _:
            main()
