"""What the tests of `OAuthHandler` share: programs on one store, in a world without sockets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import httpx
import httpx2
from msgspec.structs import replace

from mcp_oauth.handler import OAuthHandler
from mcp_oauth.sansio.grant import encode
from mcp_oauth.store.base import Saved
from mcp_oauth.store.memory import MemoryStore
from mcp_oauth.tokens import OAuthTokens
from tests.io.servers import Reply, Seen, World, key_of, stored

NAME = "notion"
ORIGIN = "https://mcp.example"
URL = f"{ORIGIN}/mcp"
WAYS = [(library, backend) for library in ("httpx2", "httpx") for backend in ("asyncio", "trio")]

T = TypeVar("T")


class Setup:
    """A world, a store, and handlers as one program after the other has them."""

    def __init__(self, library: str, backend: str) -> None:
        self.library, self.backend = {"httpx2": httpx2, "httpx": httpx}[library], backend
        self.world = World(ORIGIN)
        self.store = MemoryStore()
        self.more: dict[str, Callable[[Seen], Reply]] = {}
        """What answers at other origins."""
        self.handler = self.program()

    def program(self, **options: Any) -> OAuthHandler:
        """A new program on the same store."""
        own = {"store": self.store} if "token_manager" not in options else {}
        return OAuthHandler(**{"user": self.world.login, "transport": self.transport, **own, **options})

    def transport(self) -> Any:
        def answer(request: Any) -> Any:
            headers = {name.lower(): request.headers[name] for name in request.headers}
            seen = Seen(request.method, str(request.url), headers, request.content)
            reply = self.more.get(request.url.host, self.world)(seen)
            return self.library.Response(reply.status, headers=list(reply.headers), content=reply.body)

        return self.library.MockTransport(answer)

    def run(self, work: Callable[..., Awaitable[T]], *args: Any, **options: Any) -> T:
        return anyio.run(partial(work, *args, **options), backend=self.backend)

    def ensure(self, scopes: list[str] | None = None, *, url: str = URL, name: str = NAME) -> OAuthTokens:
        return self.run(self.handler.ensure_authenticated_mcp, name, url, scopes)

    def request(self, url: str = URL, method: str = "GET", **options: Any) -> Any:
        return self.run(self.handler.authenticated_request, NAME, URL, url, method, **options)

    def bearers(self, path: str = "/mcp") -> list[str | None]:
        return [seen.token for seen in self.world.at(path)]


def nobody(url: str) -> str:
    raise AssertionError("a browser was opened")


def put_other_grant(here: Setup, **changes: Any) -> None:
    """Change the grant as another process would."""
    record = stored(here.store, here.world)
    assert record is not None
    (grant,) = record.grants
    new = replace(record, revision="changed", grants=(replace(grant, **changes),))
    assert isinstance(
        here.store.save(key_of(here.world), encode(new), revision="changed", expected=record.revision), Saved
    )
