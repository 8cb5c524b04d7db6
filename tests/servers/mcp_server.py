"""The official SDK's MCP server again (`examples/server`), with tools that wait, a tool that wants another scope, and
knobs: a server for long sessions, which counts.

The test's side is `serving`. The other side is this file, run as `python -m tests.servers.mcp_server`.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
import httpx
import uvicorn
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import AuthorizationCode, RefreshToken
from mcp.server.auth.settings import AuthSettings, ClientRegistrationOptions
from mcp.server.mcpserver import Context, MCPServer
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from pydantic import AnyHttpUrl
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from examples.server.authorization import Authority
from tests.servers.process import READY, running

TOOLS, ADMIN = "mcp:tools", "mcp:admin"
PATIENCE = 30.0
"""Seconds until a tool that waits for others gives up."""


# --- The test's side --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class McpServer:
    """Where the server is."""

    mcp: str
    issuer: str

    @property
    def port(self) -> int:
        return int(self.issuer.rpartition(":")[2])

    def stats(self) -> Counter[str]:
        """What has happened: `registered`, `logged in`, `renewed`, requests by method and status; and what is now:
        streams `open`, tools `waiting`."""
        return Counter(self._get("/stats").json())

    def until(self, what: str, count: int) -> Counter[str]:
        """The same, as soon as something has happened so many times."""
        return Counter(self._get(f"/until?what={what}&count={count}").json())

    def forget_access_tokens(self) -> None:
        """Refuse every access token that was given out; the refresh tokens live."""
        self._get("/forget")

    def revoke(self) -> None:
        """End every grant."""
        self._get("/revoke")

    def release(self) -> None:
        """Let the tools that `wait` go on."""
        self._get("/release")

    def _get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.issuer}{path}", trust_env=False, timeout=2 * PATIENCE).raise_for_status()


@contextmanager
def serving(token_lifetime: int = 3600, port: int = 0) -> Generator[McpServer]:
    """A fresh server that knows nobody; `token_lifetime` is that of an access token, in seconds."""
    arguments = ["--token-lifetime", str(token_lifetime), "--port", str(port)]
    with running([sys.executable, "-m", "tests.servers.mcp_server", *arguments], {}) as ready:
        yield McpServer(**ready)


# --- The other side ---------------------------------------------------------------------------------------------------


class Counting(Authority):
    """An authorization server that counts what it gives out."""

    def __init__(self, issuer: str, token_lifetime: int) -> None:
        super().__init__(issuer, token_lifetime)
        self.counts: Counter[str] = Counter()

    async def register_client(self, client_info: OAuthClientInformationFull) -> None:
        self.counts["registered"] += 1
        await super().register_client(client_info)

    async def exchange_authorization_code(
        self, client: OAuthClientInformationFull, authorization_code: AuthorizationCode
    ) -> OAuthToken:
        self.counts["logged in"] += 1
        return await super().exchange_authorization_code(client, authorization_code)

    async def exchange_refresh_token(
        self, client: OAuthClientInformationFull, refresh_token: RefreshToken, scopes: list[str]
    ) -> OAuthToken:
        self.counts["renewed"] += 1
        return await super().exchange_refresh_token(client, refresh_token, scopes)

    def forget_access_tokens(self) -> None:
        for family in self._families:
            family.access.clear()

    def revoke(self) -> None:
        self._families.clear()


class Tools:
    """What the MCP server does."""

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts
        self._released = anyio.Event()
        self._met = anyio.Event()

    async def whoami(self) -> str:
        token = get_access_token()
        return token.subject if token and token.subject else "nobody"

    async def admin(self) -> str:
        """For people who have allowed more."""
        return f"{await self.whoami()} may"

    async def pause(self, seconds: float) -> str:
        """Take some time."""
        await anyio.sleep(seconds)
        return await self.whoami()

    async def wait(self) -> str:
        """Wait for the test's `release`."""
        self._counts["waiting"] += 1
        with anyio.fail_after(PATIENCE):
            await self._released.wait()
        self._counts["waiting"] -= 1
        return await self.whoami()

    async def meet(self, number: int) -> str:
        """Wait until so many are called at the same time."""
        self._counts["meeting"] += 1
        if self._counts["meeting"] == number:
            self._met.set()
        with anyio.fail_after(PATIENCE):
            await self._met.wait()
        return await self.whoami()

    async def announce(self, ctx: Context) -> str:
        """Tell all who listen, on the wire of either age, that there are other tools now."""
        await ctx.notify_tools_changed()
        await ctx.session.send_tool_list_changed()
        return await self.whoami()

    def release(self) -> None:
        self._released.set()


class Gate:
    """Before the MCP server: counts requests, and asks for `ADMIN` where a message calls the tool of that name."""

    def __init__(self, app: ASGIApp, authority: Counting) -> None:
        self._app = app
        self._authority = authority
        self._counts = authority.counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/mcp":
            return await self._app(scope, receive, send)
        if scope["method"] == "POST":
            body = await Request(scope, receive).body()
            if _tool(body) == "admin" and await self._lacks_scope(Request(scope)):
                return await _insufficient_scope(scope, receive, self._counted(scope, send))
            receive = _again(body, receive)
        await self._app(scope, receive, self._counted(scope, send))
        if scope["method"] == "GET":
            self._counts["open"] -= 1
        return None

    async def _lacks_scope(self, request: Request) -> bool:
        """Whether there is a good token that is not enough; what else there may be is not for us to judge."""
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        token = await self._authority.load_access_token(bearer)
        return token is not None and ADMIN not in token.scopes

    def _counted(self, scope: Scope, send: Send) -> Send:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._counts[f"{scope['method']} {message['status']}"] += 1
                self._counts["open"] += scope["method"] == "GET"
            await send(message)

        return counted


def _tool(body: bytes) -> str | None:
    """The tool that a message calls."""
    message: dict[str, Any] = json.loads(body)
    name: str | None = message.get("params", {}).get("name")
    return name if message.get("method") == "tools/call" else None


async def _insufficient_scope(scope: Scope, receive: Receive, send: Send) -> None:
    """SPEC, "Step-Up Authorization Flow"."""
    metadata = f"{Request(scope).base_url}.well-known/oauth-protected-resource/mcp"
    challenge = f'Bearer error="insufficient_scope", scope="{ADMIN}", resource_metadata="{metadata}"'
    await Response(status_code=403, headers={"WWW-Authenticate": challenge})(scope, receive, send)


def _again(body: bytes, receive: Receive) -> Receive:
    """A body that was read, for who reads next."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def received() -> Message:
        return messages.pop() if messages else await receive()

    return received


def application(origin: str, token_lifetime: int) -> Starlette:
    """The ASGI application of both servers."""
    authority = Counting(origin, token_lifetime)
    server = MCPServer(
        "long sessions",
        auth_server_provider=authority,
        auth=AuthSettings(
            issuer_url=AnyHttpUrl(origin),
            resource_server_url=AnyHttpUrl(f"{origin}/mcp"),
            required_scopes=[TOOLS],
            client_registration_options=ClientRegistrationOptions(enabled=True, valid_scopes=[TOOLS, ADMIN]),
            validate_token_resource=True,
        ),
        log_level="ERROR",
    )
    tools = Tools(authority.counts)
    for tool in (tools.whoami, tools.admin, tools.pause, tools.wait, tools.meet, tools.announce):
        server.add_tool(tool)
    server.custom_route("/consent", methods=["GET"])(authority.consent_page)
    server.custom_route("/consent", methods=["POST"])(authority.consent_answer)
    turns = {"forget": authority.forget_access_tokens, "revoke": authority.revoke, "release": tools.release}
    for name, turn in turns.items():
        server.custom_route(f"/{name}", methods=["GET"])(_knob(turn))
    server.custom_route("/stats", methods=["GET"])(partial(_stats, authority.counts))
    server.custom_route("/until", methods=["GET"])(partial(_until, authority.counts))
    app = server.streamable_http_app()
    app.add_middleware(Gate, authority)
    return app


def _knob(turn: Callable[[], None]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(_: Request) -> Response:
        turn()
        return Response(status_code=204)

    return answer


async def _stats(counts: Counter[str], _: Request) -> Response:
    return JSONResponse(counts)


async def _until(counts: Counter[str], request: Request) -> Response:
    what, least = request.query_params["what"], int(request.query_params["count"])
    with anyio.fail_after(PATIENCE):
        while counts[what] < least:
            await anyio.sleep(0.01)
    return JSONResponse(counts)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--token-lifetime", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    with socket.create_server(("127.0.0.1", arguments.port), backlog=1024) as listener:
        origin = f"http://127.0.0.1:{listener.getsockname()[1]}"
        app = application(origin, arguments.token_lifetime)
        print(READY, json.dumps({"mcp": f"{origin}/mcp", "issuer": origin}), flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1)).run(sockets=[listener])


if __name__ == "__main__":
    main()
