"""What the tests of `MCPOAuthClient` share: its server without sockets, and short ways to take a step."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import anyio
import httpx2
import pytest

from mcp_oauth.client import MCPOAuthClient
from mcp_oauth.exceptions import OAuthError
from tests.io.servers import Reply, Seen, World, document

T = TypeVar("T")
Make = Callable[..., MCPOAuthClient]
"""Makes clients of the server."""

PRM = "/.well-known/oauth-protected-resource/mcp"
METADATA = "/.well-known/oauth-authorization-server"
MANUAL = {"authorization_url": "https://mcp.example/authorize", "token_url": "https://mcp.example/token"}
OWN_SCHEME = "myapp://oauth/callback"


class Server(World):
    """A world that numbers its clients, remembers whose each refresh token is, and can be told what to answer."""

    def __init__(self) -> None:
        super().__init__()
        self.registered: list[dict[str, Any]] = []
        self.redirects: list[str] = []
        self.instead: dict[str, list[Reply | Exception]] = {}
        """By path: answers that are used up before the world's own."""
        self.metadata: dict[str, Any] = {}
        """More members of the authorization server's metadata; None leaves one out."""
        self.resource: dict[str, Any] | None = {}
        """The same for the resource; None: it publishes none."""
        self.answer: dict[str, str | None] = {}
        """More parameters of the redirect."""
        self.token: dict[str, Any] = {}
        """More members of token answers."""
        self._owners: dict[str, str] = {}
        self._ids = count(1)

    @property
    def asked(self) -> list[str]:
        return [seen.path for seen in self.seen]

    def forms(self, path: str) -> list[dict[str, str]]:
        return [{name: values[0] for name, values in parse_qs(seen.body.decode()).items()} for seen in self.at(path)]

    def __call__(self, seen: Seen) -> Reply:
        queued = self.instead.get(seen.path)
        if not queued:
            return super().__call__(seen)
        self.seen.append(seen)
        reply = queued.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def login(self, url: str) -> str:
        redirect = httpx2.URL(super().login(url))
        self.redirects.append(url)
        for name, value in self.answer.items():
            redirect = redirect.copy_remove_param(name) if value is None else redirect.copy_set_param(name, value)
        return str(redirect)

    def asked_of_the_person(self) -> dict[str, str]:
        """The parameters of the last authorization request."""
        return {name: values[0] for name, values in parse_qs(urlsplit(self.redirects[-1]).query).items()}

    def _resource(self, seen: Seen) -> Reply:
        return Reply(404) if self.resource is None else _with(super()._resource(seen), self.resource)

    def _issuer(self, seen: Seen) -> Reply:
        return _with(super()._issuer(seen), self.metadata)

    def _register(self, seen: Seen) -> Reply:
        self.registered.append(json.loads(seen.body))
        return document({**self.registered[-1], "client_id": f"client-{next(self._ids)}"}, 201)

    def _token(self, seen: Seen) -> Reply:
        form = {name: values[0] for name, values in parse_qs(seen.body.decode()).items()}
        client = form.get("client_id", "")
        if self._owners.get(form.get("refresh_token", ""), client) != client:
            return document({"error": "invalid_client"}, 401)
        reply = _with(super()._token(seen), self.token)
        if refresh_token := json.loads(reply.body).get("refresh_token"):
            self._owners[refresh_token] = client
        return reply


def _with(reply: Reply, more: dict[str, Any]) -> Reply:
    members = json.loads(reply.body) | more
    return document({name: value for name, value in members.items() if value is not None}, reply.status)


def run(step: Awaitable[T], backend: str = "asyncio") -> T:
    async def main() -> T:
        return await step

    return anyio.run(main, backend=backend)


def failing(kind: type[OAuthError], step: Awaitable[object]) -> OAuthError:
    with pytest.raises(kind) as caught:
        run(step)
    assert type(caught.value) is kind
    assert caught.value.cure
    return caught.value
