"""Places where people have grants: a store and a real server, between them a ledger that writes down what passes to
the token endpoint. And processes that are to be killed there.

Run as `python -m tests.force.places RECIPE` it is the other side of `Nest`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from msgspec.structs import replace

from mcp_oauth.exceptions import OAuthError
from mcp_oauth.sansio.grant import Grant, GrantRecord, current_grant, with_grant
from mcp_oauth.sansio.steps import Notice
from mcp_oauth.store.base import Store
from tests.integration.program import Peer, Person, Program, expire, grant_in, nobody, program, rewrite, say, served
from tests.io.servers import PATIENCE, Reply, Seen, serving
from tests.servers.oidc_provider import OidcProvider
from tests.store.peer import Recipe

STACK = "httpx2-sync"


# --- Before the token endpoint ----------------------------------------------------------------------------------------

ARRIVED = "arrived"
"""A whole request for new tokens is here, and was not passed on."""
ANSWERED = "answered"
"""The server has answered, and the answer was not passed back."""


class Ledger:
    """Stands before the token endpoint of a server, and writes down what passes for each account."""

    def __init__(self, behind: httpx.Client) -> None:
        self.origin = ""
        self.behind = ""
        """The real token endpoint."""
        self.passed = defaultdict[str, list[int]](list)
        """The statuses of the server's answers, by account."""
        self.on: Callable[[str, str], object] = lambda account, stage: None
        """Called with an account and `ARRIVED` or `ANSWERED`; what passes, waits for it to return."""
        self._client = behind

    def __call__(self, seen: Seen) -> Reply:
        account = seen.path.strip("/")
        if len(seen.body) < int(seen.headers["content-length"]):
            return Reply(400)  # its sender is dead: to no server this is a request
        self.on(account, ARRIVED)
        kind = {"content-type": seen.headers["content-type"]}
        answer = self._client.post(self.behind, content=seen.body, headers=kind)
        self.passed[account].append(answer.status_code)
        self.on(account, ANSWERED)
        return Reply(answer.status_code, (("content-type", answer.headers["content-type"]),), answer.content)

    def stand_before(self, store: Store, url: str, account: str) -> None:
        """From now on, renewals of this grant pass here."""
        self.behind = grant_in(store, url, account).token_endpoint

        change(store, url, account, token_endpoint=f"{self.origin}/{account}")


def change(store: Store, url: str, account: str, **changes: Any) -> None:
    """Change a stored grant."""

    def changed(record: GrantRecord) -> GrantRecord:
        grant = current_grant(record)
        assert grant is not None
        return with_grant(record, replace(grant, **changes))

    rewrite(store, url, changed, account)


@contextmanager
def ledger() -> Iterator[Ledger]:
    with httpx.Client(trust_env=False, timeout=PATIENCE) as behind, serving() as server:
        server.handler = made = Ledger(behind)
        made.origin = server.origin
        yield made


# --- The grants of many -----------------------------------------------------------------------------------------------


@dataclass
class Told:
    """What came of a request: served, or an error, and the notices on the way."""

    error: OAuthError | None = None
    notices: list[Notice] = field(default_factory=list[Notice])

    @property
    def served(self) -> bool:
        return self.error is None


@dataclass
class Place:
    """A store and a server, with a ledger between, where people have their grants."""

    recipe: Recipe
    store: Store
    server: OidcProvider
    ledger: Ledger

    @property
    def url(self) -> str:
        return self.server.mcp

    def program(self, account: str, **options: Any) -> Program:
        """A new program of this process, where nobody may be asked."""
        return program(STACK, self.url, **{"store": self.store, "account": account, "user": nobody, **options})

    def log_in(self, account: str) -> None:
        """A person logs in anew."""
        self.program(account, user=Person()).oauth.authorize(force=True)
        self.ledger.stand_before(self.store, self.url, account)

    def expire(self, account: str) -> None:
        """The access token runs out, no renewal was within the last minute (RULES 3.4), and the ledger is empty."""
        change(self.store, self.url, account, renewals=())
        expire(self.store, self.url, account)
        self.ledger.passed[account].clear()

    def grant(self, account: str) -> Grant:
        return grant_in(self.store, self.url, account)

    def call(self, account: str, **options: Any) -> Told:
        """What comes of one request of a new program, by default one where nobody is there to log in."""
        told = Told()
        here = self.program(account, **{"on_notice": told.notices.append, "interactive": False, **options})
        try:
            assert served(here.call())
        except OAuthError as error:
            told.error = error
        return told

    def calls(self, accounts: list[str]) -> dict[str, Told]:
        """The same for all of them at once."""
        with ThreadPoolExecutor(len(accounts)) as pool:
            return dict(zip(accounts, pool.map(self.call, accounts), strict=True))


# --- Processes to be killed -------------------------------------------------------------------------------------------


class Nest(Peer):
    """The test's side of a process that has imported everything, and forks children which renew and may be killed."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def __repr__(self) -> str:
        return f"Nest({self.process.pid})"

    def command(self) -> list[str]:
        return [sys.executable, "-m", "tests.force.places", json.dumps(self.recipe)]

    def hatch(self, url: str, account: str) -> int:
        """The process id of a child that makes one request. It stays that child's until `bury`."""
        self.tell(json.dumps({"url": url, "account": account}))
        return int(self.read()["pid"])

    def bury(self) -> int | None:
        """Wait for the child's end: the signal that killed it, or None, if it was served before."""
        self.tell("bury")
        status = self.read()["status"]
        assert os.WIFSIGNALED(status) or status == 0, "the child failed by itself"
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else None


def _renew(store: Store, url: str, account: str) -> None:
    here = program(STACK, url, store=store, account=account, user=nobody, interactive=False)
    assert served(here.call())


def _main(recipe: str) -> None:
    store = Recipe(*json.loads(recipe)).store()
    store.keys()  # what is done once for a store is done
    say("ready")
    while line := sys.stdin.readline():
        if (child := os.fork()) == 0:
            status = 1
            with contextlib.suppress(BaseException):
                _renew(store, **json.loads(line))
                status = 0
            os._exit(status)
        say("hatched", pid=child)
        assert sys.stdin.readline() == "bury\n"
        say("buried", status=os.waitpid(child, 0)[1])


if __name__ == "__main__":
    _main(*sys.argv[1:])
