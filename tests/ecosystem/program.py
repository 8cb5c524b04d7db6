"""A program on the official SDK, 1.x or 2.x, that logs in with `mcp_oauth`: what a user would write is `connected`.

    python -m tests.ecosystem.program SDK LOOP WIRE URL [SCOPE]...

The scopes are registered in advance. It is told what to do, and answers, in lines of JSON. SDK 1.x has another
environment than the tests, so nothing of theirs is imported here but the person.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
from anyio.abc import TaskStatus

from mcp_oauth.sansio.plan import Dynamic
from mcp_oauth.store.memory import MemoryStore
from tests.servers import consent

LIBRARY = {"sdk1": "httpx", "sdk2": "httpx2"}

Call = Callable[[str, dict[str, Any]], Awaitable[str]]
Connected = AbstractAsyncContextManager[Call]


# --- As a user would write it -----------------------------------------------------------------------------------------


@asynccontextmanager
async def sdk2(url: str, auth: Any, wire: str, heard: Callable[[], None]) -> AsyncGenerator[Call]:
    """A session of SDK 2.x with a stream of the server's events open. `wire` is its `mode`."""
    import httpx2
    from mcp import Client
    from mcp.client.streamable_http import streamable_http_client
    from mcp.client.subscriptions import SubscriptionLost

    async def on_message(message: Any) -> None:
        if wire == "legacy":
            heard()

    async def listen(*, task_status: TaskStatus[None]) -> None:
        with suppress(SubscriptionLost):  # the server has gone
            async with client.listen(tools_list_changed=True) as events:
                task_status.started()
                async for _ in events:
                    heard()

    async with httpx2.AsyncClient(auth=auth, timeout=httpx2.Timeout(30, read=300)) as http:
        transport = streamable_http_client(url, http_client=http)
        async with (
            Client(transport, mode=wire, message_handler=on_message) as client,
            anyio.create_task_group() as tasks,
        ):
            if wire != "legacy":
                await tasks.start(listen)

            async def call(tool: str, arguments: dict[str, Any]) -> str:
                return text_of(await client.call_tool(tool, arguments))

            yield call
            tasks.cancel_scope.cancel()


@asynccontextmanager
async def sdk1(url: str, auth: Any, wire: str, heard: Callable[[], None]) -> AsyncGenerator[Call]:
    """A session of SDK 1.x, which opens the stream by itself."""
    import httpx
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async def on_message(message: Any) -> None:
        heard()

    async with httpx.AsyncClient(auth=auth, timeout=httpx.Timeout(30, read=300)) as http:
        client: Any = http  # of another library than SDK 2.x has
        transport: Any = streamable_http_client(url, http_client=client)
        async with transport as (read, write, _), ClientSession(read, write, message_handler=on_message) as session:
            await session.initialize()

            async def call(tool: str, arguments: dict[str, Any]) -> str:
                return text_of(await session.call_tool(tool, arguments))

            yield call


def text_of(result: Any) -> str:
    """What a tool said."""
    text: str = result.content[0].text
    return text


# --- As the tests want it ---------------------------------------------------------------------------------------------


class Program:
    """One login, and sessions one after the other."""

    def __init__(self, sdk: str, wire: str, url: str, scopes: tuple[str, ...]) -> None:
        self._asked = 0
        self._tell, self._heard = anyio.create_memory_object_stream[None](100)
        plug = importlib.import_module(f"mcp_oauth.io.{LIBRARY[sdk]}")
        self._oauth = plug.OAuth(url, store=MemoryStore(), user=self._person, client=Dynamic(scopes=scopes))
        self._connect: Callable[..., Connected] = {"sdk1": sdk1, "sdk2": sdk2}[sdk]
        self._url, self._wire = url, wire

    def _person(self, url: str) -> str:
        self._asked += 1
        return consent.follow(url)

    async def run(self) -> None:
        """Do what is said until nothing more is."""
        self._say()
        while await _line():
            async with self._connect(self._url, self._oauth, self._wire, self._on_event) as call:
                self._say()
                while (line := await _line()) != "disconnect":
                    await self._do(call, **json.loads(line))
            self._say()

    async def _do(self, call: Call, tool: str, times: int, hear: int, arguments: dict[str, Any]) -> None:
        """Call a tool so many times at once, and wait for so many events."""
        answers: list[str] = []

        async def one() -> None:
            try:
                answers.append(await call(tool, arguments))
            except Exception as error:
                answers.append(f"{type(error).__name__}: {error}")

        async with anyio.create_task_group() as tasks:
            for _ in range(times):
                tasks.start_soon(one)
        for _ in range(hear):
            await self._heard.receive()
        self._say(answers)

    def _on_event(self) -> None:
        self._tell.send_nowait(None)

    def _say(self, answers: list[str] | None = None) -> None:
        print(json.dumps({"answers": answers, "asked": self._asked}), flush=True)


async def _line() -> str:
    """What is said next; nothing at the end."""
    line: str = await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)
    return line.rstrip()


async def main(sdk: str, wire: str, url: str, *scopes: str) -> None:
    await Program(sdk, wire, url, scopes).run()


if __name__ == "__main__":
    anyio.run(partial(main, sys.argv[1], *sys.argv[3:]), backend=sys.argv[2])
