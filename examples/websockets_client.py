"""A WebSocket with a token in its handshake, a renewed one where it connects again: the library `websockets`.

    python -m examples.websockets_client wss://mcp.example.com/mcp        prints what comes

At level DEBUG the logger `websockets.client` shows the headers of handshakes, and with them the token.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from mcp_oauth.io.httpx2 import OAuth
from mcp_oauth.io.oauth import BaseOAuth
from mcp_oauth.io.plug import Heard, send_authorized_async
from mcp_oauth.sansio.messages import Headers


class Straight(connect):
    """Follows no redirect, which would take the token along to any path of its origin."""

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


async def connect_authorized(oauth: BaseOAuth, url: str, **options: Any) -> ClientConnection:
    """`websockets.connect` with a token. Raises `OAuthError` besides what that raises."""

    async def send(credential: Headers) -> ClientConnection | InvalidStatus:
        try:
            return await Straight(url, additional_headers=credential, **options)
        except InvalidStatus as refused:
            return refused

    answer = await send_authorized_async(oauth, url, send, heard, drop)
    if isinstance(answer, InvalidStatus):
        raise answer
    return answer


def heard(answer: ClientConnection | InvalidStatus) -> Heard:
    if isinstance(answer, InvalidStatus):
        return answer.response.status_code, answer.response.headers.get_all("WWW-Authenticate")
    return 101, ()


async def drop(answer: ClientConnection | InvalidStatus) -> None:
    if isinstance(answer, ClientConnection):  # a refused one is closed already
        await answer.close()


async def messages(oauth: BaseOAuth, url: str, wait: float = 3.0) -> AsyncGenerator[str | bytes]:
    """What comes, for ever. After the end of a connection it waits some seconds, and connects again."""
    while True:
        try:
            async with await connect_authorized(oauth, url) as socket:
                async for message in socket:
                    yield message
        except (OSError, ConnectionClosed) as error:
            print(f"{type(error).__name__}: connecting again", file=sys.stderr)
        await asyncio.sleep(wait)


async def main(url: str) -> None:
    async for message in messages(OAuth(url.replace("ws", "http", 1)), url):
        print(message)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
