"""The example server with the scopes `read` and `write`, and a page beside MCP (run as a script)."""

from __future__ import annotations

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from examples.server.__main__ import application, serve


async def pages(request: Request) -> JSONResponse:
    known = isinstance(request.user, AuthenticatedUser)
    return JSONResponse({"pages": ["Home"]} if known else {"error": "who?"}, 200 if known else 401)


def make(origin: str) -> Starlette:
    app = application(origin, token_lifetime=3600, scopes=("read", "write"))
    app.router.routes.append(Route("/mcp/api/pages", pages))
    return app


if __name__ == "__main__":
    serve(make)
