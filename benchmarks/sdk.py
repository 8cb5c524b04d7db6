"""What OAuth costs parallel calls in the official SDK, with its own provider and ours: `python -m benchmarks.sdk`.

The SDK's `OAuthClientProvider` holds one lock from before a request until its response begins. Here `CALLS` calls of a
tool that takes `SECONDS` are made at once through a session of SDK 2.x: with a constant header and no OAuth, with that
provider, and with `mcp_oauth.io.httpx2.OAuth`. All three sessions are open all the time, at one real server, which does
the same for each; in a round each has its turn, in every order equally often. Nothing expires meanwhile.

Ends with 1 if ours takes over `LIMIT` times as long as none, by the median of the rounds' ratios. That is not the ratio
of the medians: the calls keep two processors busy, whatever else runs on them doubles the time of a round, and two
sessions without OAuth were seen to differ by 1.28 in their medians, and by 1.05 in the median of their ratios.
On the older wire a response begins before the tool has run, so that the SDK's lock costs little there.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import cycle, islice, permutations
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

import anyio
import anyio.to_thread
import httpx2
from mcp import Client
from mcp.client.auth import AuthorizationCodeResult, OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata, OAuthToken
from pydantic import AnyUrl

from benchmarks.scale import table
from mcp_oauth.io.httpx2 import OAuth
from mcp_oauth.store.memory import MemoryStore
from tests.servers import consent
from tests.servers.mcp_server import TOOLS, serving

CALLS, SECONDS, ROUNDS = 50, 0.05, 36
LIMIT = 1.1
WIRES = {"2026-07-28": "auto", "2025-11-25": "legacy"}
"""The wire, and the SDK's `mode` that comes to it."""
NONE, THEIRS, OURS = "none", "the SDK's own", "mcp_oauth"


class Times(NamedTuple):
    """Seconds of one turn."""

    wall: float
    processor: float
    """Of this process."""


class Row(NamedTuple):
    """The turns of one session, and those without OAuth in the same rounds."""

    wire: str
    auth: str
    times: tuple[Times, ...]
    without: tuple[Times, ...]

    @property
    def median(self) -> float:
        return statistics.median(times.wall for times in self.times)

    @property
    def ratio(self) -> float:
        """How many times as long as without OAuth."""
        return statistics.median(own.wall / none.wall for own, none in zip(self.times, self.without, strict=True))


# --- The three of them ------------------------------------------------------------------------------------------------


class Constant(httpx2.Auth):
    """No OAuth: a header."""

    def __init__(self, token: str) -> None:
        self._header = f"Bearer {token}"

    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        request.headers["Authorization"] = self._header
        yield request


class Memory:
    """The `TokenStorage` of a program without one."""

    def __init__(self) -> None:
        self._tokens: OAuthToken | None = None
        self._client: OAuthClientInformationFull | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self._tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self._tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self._client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self._client = client_info


def theirs(url: str) -> OAuthClientProvider:
    """The SDK's provider, with somebody who allows everything."""
    answers: list[dict[str, list[str]]] = []

    async def go(authorization_url: str) -> None:
        redirect = await anyio.to_thread.run_sync(consent.follow, authorization_url)
        answers.append(parse_qs(urlsplit(redirect).query))

    async def come_back() -> AuthorizationCodeResult:
        answer = answers.pop()
        return AuthorizationCodeResult(code=answer["code"][0], state=answer["state"][0])

    metadata = OAuthClientMetadata(
        client_name="benchmark", redirect_uris=[AnyUrl("http://127.0.0.1:9/callback")], scope=TOOLS
    )
    return OAuthClientProvider(url, metadata, Memory(), go, come_back)


def ours(url: str) -> OAuth:
    """The same person at ours."""
    return OAuth(url, store=MemoryStore(), user=consent.follow)


@asynccontextmanager
async def session(url: str, mode: str, auth: httpx2.Auth) -> AsyncGenerator[Client]:
    """A session as a user would open it."""
    http = httpx2.AsyncClient(auth=auth, timeout=httpx2.Timeout(30, read=300))
    async with http, Client(streamable_http_client(url, http_client=http), mode=mode) as client:
        yield client


# --- The measure ------------------------------------------------------------------------------------------------------


async def calls(client: Client, count: int) -> Times:
    """Until so many calls, begun at once, are answered."""
    gc.collect()  # else one round in eight has a collection of what the others left
    begun, busy = time.perf_counter(), time.process_time()
    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(partial(client.call_tool, "pause", {"seconds": SECONDS}))
    return Times(time.perf_counter() - begun, time.process_time() - busy)


async def measure(url: str, wire: str, count: int, rounds: int) -> list[Row]:
    """Rounds on one wire. Each session has logged in when it is open, and is warm after calls that are not counted."""
    token = await ours(url).aauthorize()
    auths = {NONE: Constant(token.access_token), THEIRS: theirs(url), OURS: ours(url)}
    times: dict[str, list[Times]] = {auth: [] for auth in auths}
    async with AsyncExitStack() as opened:
        clients = {
            name: await opened.enter_async_context(session(url, WIRES[wire], auth)) for name, auth in auths.items()
        }
        for client in clients.values():
            await calls(client, count)
        for order in islice(cycle(permutations(auths)), rounds):
            for name in order:
                times[name].append(await calls(clients[name], count))
    return [Row(wire, name, tuple(own), tuple(times[NONE])) for name, own in times.items()]


def run(count: int = CALLS, rounds: int = ROUNDS) -> list[Row]:
    """All rows, of one server."""
    with serving() as server:
        return [row for wire in WIRES for row in anyio.run(measure, server.mcp, wire, count, rounds)]


COLUMNS = ("wire", "auth", "median, ms", "fastest", "slowest", "times that without OAuth", "CPU of the client, ms")


def cells(row: Row) -> list[str]:
    """A row of the table."""
    wall = [times.wall for times in row.times]
    processor = statistics.median(times.processor for times in row.times)
    seconds = [f"{each * 1e3:.0f}" for each in (row.median, min(wall), max(wall))]
    return [row.wire, row.auth, *seconds, f"{row.ratio:.2f}", f"{processor * 1e3:.0f}"]


def main() -> int:
    """Measure and print; 1 if ours is over the limit."""
    rows = run()
    print(f"{CALLS} calls of {SECONDS * 1e3:.0f} ms at once, {ROUNDS} rounds\n")
    print(table(COLUMNS, [cells(row) for row in rows]))
    over = [row.wire for row in rows if row.auth == OURS and row.ratio > LIMIT]
    print("".join(f"\nover {LIMIT} times that without OAuth on the wire {wire}" for wire in over), file=sys.stderr)
    return min(len(over), 1)


if __name__ == "__main__":
    sys.exit(main())
