"""A program that calls a protected MCP server with `mcp_oauth`, on every stack: in the test's own process, and, run as
`python -m tests.integration.program STACK URL FOLDER`, in one of its own, which the test talks to line by line.

Such a process answers in lines of JSON (`Peer.read`), and is told: `call` (a new `OAuth`, one request), and `approve`
when its person is asked.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qs, urlsplit

import anyio
import httpx
from msgspec.structs import replace

from mcp_oauth.io.oauth import BaseOAuth
from mcp_oauth.io.user import Browser
from mcp_oauth.sansio.grant import (
    Grant,
    GrantRecord,
    Registration,
    RegistrationRecord,
    current_grant,
    decode,
    encode,
    grant_key,
    with_grant,
)
from mcp_oauth.sansio.messages import Request
from mcp_oauth.sansio.steps import Notice
from mcp_oauth.sansio.token_endpoint import refresh_request
from mcp_oauth.store.base import Held, Lease, Saved, Store
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from tests.servers import consent
from tests.servers.process import ROOT

STACKS = tuple(f"{library}-{way}" for library in ("httpx2", "httpx") for way in ("asyncio", "trio", "sync"))
"""HTTP library and how it is called."""

Change = Callable[[GrantRecord], GrantRecord]
P = TypeVar("P", bound="Peer")


class Answer(NamedTuple):
    """What the MCP server said."""

    status: int
    text: str


# --- The person -------------------------------------------------------------------------------------------------------


class Person:
    """A user agent that is any callable: goes through the pages over HTTP, and gives the redirect back."""

    def __init__(self, *, deny: bool = False) -> None:
        self.deny = deny
        self.redirects: list[dict[str, str]] = []
        """The parameters of each redirect."""

    @property
    def asked(self) -> int:
        return len(self.redirects)

    def __call__(self, url: str) -> str:
        redirect = consent.follow(url, deny=self.deny)
        self.redirects.append({name: values[0] for name, values in parse_qs(urlsplit(redirect).query).items()})
        return redirect


def nobody(url: str) -> str:
    """A person who must not be asked."""
    raise AssertionError("a browser was opened")


def at_a_browser(*, deny: bool = False) -> Browser:
    """The default user with its loopback listener; only the browser itself is played."""
    return Browser(opener=lambda url: bool(consent.visit(url, deny=deny)), tell=lambda _: None)


# --- The program ------------------------------------------------------------------------------------------------------


@dataclass
class Program:
    """One program at one server. `traffic` has its OAuth requests in order: a path, or a grant type."""

    stack: str
    url: str
    oauth: BaseOAuth
    traffic: list[str]

    def call(self, tool: str = "whoami") -> Answer:
        """One request, with a client of its own."""
        return call(self.stack, self.oauth, self.url, tool)

    def restarted(self, *, stack: str | None = None, **options: Any) -> Program:
        """A new `OAuth` on the same store, where nobody may be asked."""
        again: dict[str, Any] = {"store": self.oauth._store, "account": self.oauth.plan.account, "user": nobody}
        return program(stack or self.stack, self.url, **(again | options))


def program(stack: str, url: str, **options: Any) -> Program:
    library = importlib.import_module(stack.split("-")[0])
    plug = importlib.import_module(f"mcp_oauth.io.{library.__name__}")
    traffic: list[str] = []
    oauth = plug.OAuth(url, transport=lambda: _Watched(library.AsyncHTTPTransport(), traffic), **options)
    return Program(stack, url, oauth, traffic)


class _Watched:
    """A transport that writes down what it carries."""

    def __init__(self, inner: Any, traffic: list[str]) -> None:
        self._inner = inner
        self._traffic = traffic

    async def handle_async_request(self, request: Any) -> Any:
        body = parse_qs((await request.aread()).decode())
        self._traffic.append(body.get("grant_type", [request.url.path])[0])
        return await self._inner.handle_async_request(request)

    async def __aenter__(self) -> _Watched:
        await self._inner.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._inner.__aexit__(kind, error, trace)


def call(stack: str, auth: Any, url: str, tool: str) -> Answer:
    """Call a tool (the stateless wire of MCP 2026-07-28) on a stack; `auth` as its clients take it."""
    library, way = stack.split("-")
    stacks = importlib.import_module(library)
    if way != "sync":
        answer: Answer = anyio.run(acall, stacks, auth, url, tool, backend=way)
        return answer
    with stacks.Client(auth=auth, trust_env=False, timeout=30) as client:
        return _answer(client.post(url, **_message(tool)))


async def acall(stacks: Any, auth: Any, url: str, tool: str = "whoami") -> Answer:
    """The same in a task; `stacks` is the HTTP library."""
    async with stacks.AsyncClient(auth=auth, trust_env=False, timeout=30) as client:
        return _answer(await client.post(url, **_message(tool)))


async def acalls(stacks: Any, auth: Any, url: str, count: int) -> list[Answer]:
    """The answers to so many tasks that all call."""
    answers: list[Answer] = []

    async def one() -> None:
        answers.append(await acall(stacks, auth, url))

    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(one)
    return answers


def _answer(response: Any) -> Answer:
    return Answer(response.status_code, response.text)


def _message(tool: str) -> dict[str, Any]:
    version = "2026-07-28"
    meta: dict[str, object] = {
        "io.modelcontextprotocol/protocolVersion": version,
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    headers = {
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": version,
        "MCP-Method": "tools/call",
        "MCP-Name": tool,
    }
    params = {"name": tool, "arguments": {}, "_meta": meta}
    return {"headers": headers, "json": {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}}


# --- What is stored, and what the servers make of it ------------------------------------------------------------------


def stored(store: Store, url: str, account: str = "") -> GrantRecord:
    found = store.load(grant_key(url, account))
    assert found is not None
    record = decode(found.value)
    assert isinstance(record, GrantRecord)
    return record


def grant_in(store: Store, url: str, account: str = "") -> Grant:
    grant = current_grant(stored(store, url, account))
    assert grant is not None
    return grant


def registration_in(store: Store) -> Registration:
    """The one dynamic registration."""
    (client,) = _registrations(store)[1].registrations
    return client


def _registrations(store: Store) -> tuple[str, RegistrationRecord]:
    (key,) = (key for key in store.keys() if key.startswith("registration-"))  # noqa: SIM118 - a store is no mapping
    found = store.load(key)
    record = decode(found.value) if found is not None else None
    assert isinstance(record, RegistrationRecord)
    return key, record


def rewrite(store: Store, url: str, change: Change, account: str = "") -> None:
    """Change what is stored, as time would, or another process."""
    old = stored(store, url, account)
    new = replace(change(old), revision=f"{old.revision}'")
    assert isinstance(
        store.save(grant_key(url, account), encode(new), revision=new.revision, expected=old.revision), Saved
    )


def server_lost_all(store: Store, url: str) -> None:
    """What is stored is unknown to the servers, as if they had started anew and kept nothing."""

    def unknown(client: Registration) -> Registration:
        return replace(client, client_id="forgotten")

    def with_unknown(record: GrantRecord) -> GrantRecord:
        grants = (
            replace(grant, registration=unknown(grant.registration), access_token="lost", refresh_token="lost")
            for grant in record.grants
        )
        return replace(record, grants=tuple(grants))

    rewrite(store, url, with_unknown)
    key, old = _registrations(store)
    new = replace(old, revision=f"{old.revision}'", registrations=tuple(map(unknown, old.registrations)))
    assert isinstance(store.save(key, encode(new), revision=new.revision, expected=old.revision), Saved)


def locked(store: Store, url: str, account: str = "") -> Lease:
    """The lock of the grant, which nobody may hold."""
    lease = store.try_lock(grant_key(url, account))
    assert not isinstance(lease, Held), lease.holder
    return lease


def expire(store: Store, url: str, account: str = "") -> Grant:
    """The access token ran out a moment ago. Returned is the grant that is to be renewed."""
    rewrite(store, url, lambda record: with_grant(record, _expired(current_grant(record))), account)
    return grant_in(store, url, account)


def _expired(grant: Grant | None) -> Grant:
    assert grant is not None
    return replace(grant, obtained_at=time.time() - 3600, expires_at=time.time() - 1)


class Verdict(NamedTuple):
    """What the servers say to the tokens of a grant."""

    access: int
    """HTTP status of the MCP server."""
    refresh: str | None
    """The OAuth error, or None: it is alive, and has been spent."""


DEAD = Verdict(401, "invalid_grant")


def verdict(url: str, grant: Grant) -> Verdict:
    """Try the tokens by hand, on no stack of ours."""
    bearer = {"Authorization": f"Bearer {grant.access_token}"}
    message = _message("whoami")
    access = httpx.post(url, json=message["json"], headers=message["headers"] | bearer, trust_env=False)
    return Verdict(access.status_code, refreshed_by_hand(grant).get("error"))


def refreshed_by_hand(grant: Grant) -> dict[str, Any]:
    """The token endpoint's answer to the refresh token of a grant."""
    assert grant.refresh_token is not None
    request = refresh_request(
        grant.token_endpoint, grant.registration, refresh_token=grant.refresh_token, resource=grant.resource
    )
    answer: dict[str, Any] = by_hand(request).json()
    return answer


def by_hand(request: Request) -> httpx.Response:
    return httpx.request(
        request.method, request.url, headers=list(request.headers), content=request.body, trust_env=False
    )


def delete_registration(client: Registration) -> None:
    """The authorization server forgets a client (RFC 7592 section 2.3)."""
    assert client.registration_client_uri is not None
    bearer = {"Authorization": f"Bearer {client.registration_access_token}"}
    httpx.delete(client.registration_client_uri, headers=bearer, trust_env=False).raise_for_status()


# --- A process of its own ---------------------------------------------------------------------------------------------


@dataclass
class Peer:
    """The test's side of a program in a process of its own."""

    stack: str
    url: str
    folder: Path
    process: subprocess.Popen[str] = field(init=False)

    def command(self) -> list[str]:
        return [sys.executable, "-m", "tests.integration.program", self.stack, self.url, str(self.folder)]

    def __enter__(self: P) -> P:
        self.process = subprocess.Popen(
            self.command(), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert self.read() == {"event": "ready"}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.process.kill()
        self.process.communicate(timeout=30)

    def tell(self, what: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what}\n")

    def read(self) -> dict[str, Any]:
        """The next line: what happened."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the program ended"
        event: dict[str, Any] = json.loads(line)
        return event

    def until(self, event: str) -> dict[str, Any]:
        """Read up to an event of this name, which must come."""
        while (read := self.read())["event"] != event:
            assert read["event"] not in ("answered", "failed"), read
        return read

    def kill(self) -> None:
        """Without a chance to tidy up."""
        self.process.kill()
        self.process.wait()


def say(event: str, **more: object) -> None:
    print(json.dumps({"event": event, **more}), flush=True)


def told(notice: Notice) -> None:
    say(notice.name)


def approve(url: str) -> str:
    say("asked")
    assert sys.stdin.readline() == "approve\n"
    return consent.follow(url)


def _main(stack: str, url: str, folder: str) -> None:
    say("ready")
    while sys.stdin.readline() == "call\n":
        here = program(stack, url, store=EncryptedFileStore(folder), user=approve, on_notice=told)
        answer = here.call()
        say("answered", status=answer.status, text=answer.text, traffic=here.traffic)


if __name__ == "__main__":
    _main(*sys.argv[1:])


def served(answer: Answer) -> bool:
    """The tool answered, as the person who has logged in."""
    return answer.status == 200 and "alice" in answer.text
