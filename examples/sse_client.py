"""Server-sent events with a token, a renewed one where the client connects again: httpx2's `EventSource`.

    python -m examples.sse_client https://mcp.example.com/events        prints what comes

A token is asked for at each connection: an open stream outlives its token, if the server lets it.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator

import anyio
import httpx2

from mcp_oauth.io.httpx2 import OAuth


async def events(oauth: OAuth, url: str, wait: float = 3.0) -> AsyncGenerator[httpx2.ServerSentEvent]:
    """What comes, for ever. After the end of a stream it waits some seconds, and asks for what came after."""
    after: dict[str, str] = {}
    async with httpx2.AsyncClient(auth=oauth, timeout=httpx2.Timeout(10, read=None)) as client:
        while True:
            try:
                async with client.sse(url, headers=after) as source:
                    source.response.raise_for_status()
                    async for event in source:
                        if event.id:
                            after = {"Last-Event-ID": event.id}
                        yield event
            except (httpx2.NetworkError, httpx2.RemoteProtocolError, httpx2.TimeoutException) as error:
                print(f"{type(error).__name__}: connecting again", file=sys.stderr)
            await anyio.sleep(wait)


async def main(url: str) -> None:
    async for event in events(OAuth(url), url):
        print(event.data)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1])
