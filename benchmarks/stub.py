"""A fast authorization and MCP server on loopback that counts: the stub of the benchmarks, in a process of its own.

It rotates refresh tokens. One that comes back after it was spent ends its family, unless it was spent within `grace`
seconds, and then it buys tokens once more. Each presentation of a refresh token is written down with the address it
came from: everything in 127.0.0.0/8 is loopback, so each program that presents tokens has an address of its own.

The benchmark's side is `serving`. The other side is this file, run as `python -m benchmarks.stub`.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated
from urllib.parse import parse_qs

import httpx
import msgspec

from mcp_oauth.sansio.grant import Grant, GrantRecord, Registration, current_grant, decode, encode, grant_key
from mcp_oauth.store.base import Saved, Store
from tests.servers.process import READY, running

GRANTED, AGAIN, REUSED, DEAD = "granted", "granted within grace", "family revoked", "family dead"
"""What comes of a refresh token: the last two are `invalid_grant`."""


class Rules(msgspec.Struct, frozen=True):
    """How the server behaves."""

    families: int
    lifetime: float = 3600.0
    """Seconds that an access token lives."""
    grace: float = 0.0
    """Seconds in which a spent refresh token is taken again."""
    latency: float = 0.0
    """Seconds from the rotation to its answer."""


class Pair(msgspec.Struct, frozen=True):
    """An access token and its refresh token."""

    access: str
    refresh: str


class Presentation(msgspec.Struct, frozen=True):
    """A refresh token came."""

    at: float
    """Wall seconds."""
    family: int
    generation: int
    """Renewals of the family before this token was given out."""
    presenter: str
    """The address it came from."""
    verdict: str


class FamilyReport(msgspec.Struct, frozen=True):
    """What has become of a family."""

    live: str | None
    """The refresh token that is good now; None: it was revoked."""
    generation: int


class Report(msgspec.Struct, frozen=True):
    """All that the server knows."""

    families: tuple[FamilyReport, ...]
    presentations: tuple[Presentation, ...]
    requests: dict[str, int]
    """Requests of the MCP endpoint, by status."""


# --- The benchmark's side ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stub:
    """A running stub."""

    origin: str

    @property
    def mcp(self) -> str:
        """The protected MCP server."""
        return f"{self.origin}/mcp"

    def begin(self, rules: Rules) -> tuple[Pair, ...]:
        """Forget everything, and begin so many families anew; returns the first tokens of each."""
        answer = httpx.post(f"{self.origin}/begin", content=msgspec.json.encode(rules), trust_env=False, timeout=60)
        return msgspec.json.decode(answer.content, type=tuple[Pair, ...])

    def report(self) -> Report:
        """What has come, and what is alive."""
        answer = httpx.get(f"{self.origin}/report", trust_env=False, timeout=60)
        return msgspec.json.decode(answer.content, type=Report)

    def record(self, account: str, pair: Pair, *, lifetime: float, expires_at: float) -> GrantRecord:
        """The record of a login at this server."""
        client = Registration(self.origin, "benchmark", "preregistered", "none")
        grant = Grant(
            self.origin,
            client,
            f"{self.origin}/token",
            pair.access,
            obtained_at=expires_at - lifetime,
            lineage=secrets.token_urlsafe(32),
            expires_at=expires_at,
            refresh_token=pair.refresh,
            resource=self.mcp,
        )
        revision = secrets.token_urlsafe(32)
        return GrantRecord(revision, self.mcp, account, (grant,), self.origin, allowed_issuers=(self.origin,))

    def log_in(self, store: Store, rules: Rules, *, expired: bool = False) -> None:
        """Put a grant for each family into a store, under `account`, its access token new or expired."""
        expires_at = time.time() + (-1 if expired else rules.lifetime)
        for family, pair in enumerate(self.begin(rules)):
            record = self.record(account(family), pair, lifetime=rules.lifetime, expires_at=expires_at)
            key = grant_key(self.mcp, record.account)
            before = store.load(key)
            expected = before.revision if before is not None else None
            saved = store.save(key, encode(record), revision=record.revision, expected=expected)
            assert isinstance(saved, Saved)

    def stored(self, store: Store, family: int) -> Grant:
        """The grant of a family in a store."""
        there = store.load(grant_key(self.mcp, account(family)))
        record = decode(there.value) if there is not None else None
        grant = current_grant(record) if isinstance(record, GrantRecord) else None
        assert grant is not None
        return grant


def account(family: int) -> str:
    """Whose grant a family is."""
    return f"person-{family}"


@contextmanager
def serving() -> Iterator[Stub]:
    """Run a stub until the block ends."""
    with running([sys.executable, "-m", "benchmarks.stub"], {}) as ready:
        yield Stub(ready["origin"])


# --- The model --------------------------------------------------------------------------------------------------------


@dataclass
class _Family:
    live: str = ""
    generation: int = 0
    spent_at: dict[int, float] = field(default_factory=dict)
    """By generation, the seconds at which its token was first presented."""
    revoked: bool = False


class _Model:
    """Which tokens are alive, and what was presented."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._refresh: dict[str, tuple[int, int]] = {}
        self._access: dict[str, tuple[int, float]] = {}
        self._families = [_Family() for _ in range(rules.families)]
        self._presentations: list[Presentation] = []
        self.requests: Counter[str] = Counter()

    @property
    def latency(self) -> float:
        return self._rules.latency

    def first(self) -> tuple[Pair, ...]:
        return tuple(self._issue(number) for number in range(len(self._families)))

    def present(self, refresh: str, presenter: str) -> Pair | None:
        """Exchange a refresh token; None is `invalid_grant`."""
        known = self._refresh.get(refresh)
        if known is None:
            return None
        number, generation = known
        verdict = self._judge(self._families[number], generation)
        self._presentations.append(Presentation(time.time(), number, generation, presenter, verdict))
        if verdict not in (GRANTED, AGAIN):
            return None
        self._families[number].generation += 1
        return self._issue(number)

    def accepts(self, access: str) -> bool:
        """Whether an access token opens the MCP server."""
        number, expires_at = self._access.get(access, (0, 0.0))
        return time.monotonic() < expires_at and not self._families[number].revoked

    def report(self) -> Report:
        families = (FamilyReport(None if each.revoked else each.live, each.generation) for each in self._families)
        return Report(tuple(families), tuple(self._presentations), dict(self.requests))

    def _judge(self, family: _Family, generation: int) -> str:
        now = time.monotonic()
        if family.revoked:
            return DEAD
        spent_at = family.spent_at.setdefault(generation, now)
        if generation == family.generation:
            return GRANTED
        if now - spent_at < self._rules.grace:
            return AGAIN
        family.revoked = True
        return REUSED

    def _issue(self, number: int) -> Pair:
        family = self._families[number]
        pair = Pair(secrets.token_urlsafe(32), secrets.token_urlsafe(32))
        family.live = pair.refresh
        self._refresh[pair.refresh] = number, family.generation
        self._access[pair.access] = number, time.monotonic() + self._rules.lifetime
        return pair

    def answer(self, pair: Pair) -> bytes:
        """The token endpoint's words (RFC 6749 section 5.1)."""
        return msgspec.json.encode(
            {
                "access_token": pair.access,
                "refresh_token": pair.refresh,
                "token_type": "Bearer",
                "expires_in": self._rules.lifetime,
            }
        )


# --- The other side: HTTP/1.1, as much of it as a benchmark needs -----------------------------------------------------


class _Asked(msgspec.Struct, frozen=True):
    path: str
    bearer: str
    body: bytes
    presenter: str


_Reply = tuple[int, bytes, Annotated[float, "seconds to wait"]]


class _Server:
    """The endpoints."""

    def __init__(self) -> None:
        self.origin = ""
        self._model = _Model(Rules(0))
        self._paths: dict[str, Callable[[_Asked], _Reply]] = {
            "/mcp": self._mcp,
            "/token": self._token,
            "/begin": self._begin,
            "/report": lambda _: (200, msgspec.json.encode(self._model.report()), 0.0),
            "/.well-known/oauth-protected-resource/mcp": self._resource,
        }

    def reply(self, asked: _Asked) -> _Reply:
        path = self._paths.get(asked.path)
        return path(asked) if path is not None else (404, b"", 0.0)

    def _mcp(self, asked: _Asked) -> _Reply:
        status = 200 if self._model.accepts(asked.bearer) else 401
        self._model.requests[str(status)] += 1
        return status, b"{}", 0.0

    def _token(self, asked: _Asked) -> _Reply:
        refresh = parse_qs(asked.body.decode()).get("refresh_token", [""])[0]
        pair = self._model.present(refresh, asked.presenter)
        if pair is None:
            return 400, b'{"error": "invalid_grant"}', self._model.latency
        return 200, self._model.answer(pair), self._model.latency

    def _begin(self, asked: _Asked) -> _Reply:
        self._model = _Model(msgspec.json.decode(asked.body, type=Rules))
        return 200, msgspec.json.encode(self._model.first()), 0.0

    def _resource(self, _: _Asked) -> _Reply:
        document = {"resource": f"{self.origin}/mcp", "authorization_servers": [self.origin]}
        return 200, msgspec.json.encode(document), 0.0


class _Connection(asyncio.Protocol):
    def __init__(self, server: _Server) -> None:
        self._server = server
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._presenter: str = transport.get_extra_info("peername")[0]

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, end, body = self._read.partition(b"\r\n\r\n")
        if not end:
            return
        line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if len(body) < int(headers.get("content-length", "0")):
            return
        self._read = b""  # nobody here sends the next request before the answer
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        self._reply(*self._server.reply(_Asked(line.split(" ")[1], bearer, body, self._presenter)))

    def _reply(self, status: int, body: bytes, wait: float) -> None:
        challenge = "www-authenticate: Bearer\r\n" if status == 401 else ""
        head = (
            f"HTTP/1.1 {status} -\r\ncontent-type: application/json\r\n{challenge}content-length: {len(body)}\r\n\r\n"
        )
        asyncio.get_running_loop().call_later(wait, self._transport.write, head.encode() + body)


async def _serve() -> None:
    server = _Server()
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: _Connection(server), "127.0.0.1", 0, backlog=1024)
    port = listening.sockets[0].getsockname()[1]
    server.origin = f"http://127.0.0.1:{port}"
    print(READY + msgspec.json.encode({"origin": server.origin}).decode(), flush=True)
    await listening.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve())
