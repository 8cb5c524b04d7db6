"""A world served by `aiohttp.web` in the loop of a test: for bodies in chunks, event streams and WebSockets."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from tests.io.servers import Seen, World

Answering = Callable[[web.BaseRequest, World], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def world_on_the_web(mcp: Answering | None = None, challenge: Answering | None = None) -> AsyncGenerator[World]:
    """`mcp` answers a request to the MCP server whose token is good, `challenge` one without a token."""
    world = World()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        if challenge is not None and request.path == "/mcp" and "authorization" not in headers:
            return await challenge(request, world)
        body = b"".join([chunk async for chunk in request.content.iter_any()])
        reply = world(Seen(request.method, f"{world.origin}{request.path_qs}", headers, body))
        if reply.status == 200 and mcp is not None and request.path == "/mcp":
            return await mcp(request, world)
        return web.Response(status=reply.status, headers=reply.headers, body=reply.body)

    runner = web.ServerRunner(web.Server(answer, keepalive_timeout=1, handler_cancellation=True), shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        world.origin = f"http://{host}:{port}"
        yield world
    finally:
        await runner.cleanup()
