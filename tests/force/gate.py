"""A gate before a real token endpoint, and what a process has open."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import Literal

import httpx
from msgspec.structs import replace

from mcp_oauth.io import oauth
from mcp_oauth.sansio.grant import GrantRecord
from mcp_oauth.store.base import Store
from tests.integration.program import grant_in, rewrite
from tests.io.plain import settle
from tests.io.servers import PATIENCE, Reply, Seen

Place = Literal["asked", "answered"]
"""The request is here and has not been sent on; the server has answered, and the answer has not been sent on."""

HOP_BY_HOP = {"connection", "content-length", "transfer-encoding", "keep-alive", "host"}


class Gate:
    """Passes requests to the token endpoint on, and holds each one that comes to a closed place."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self._endpoint = ""
        self._closed: set[Place] = set()
        self._held = threading.Semaphore(0)
        self._go_on = threading.Event()
        self._lost = False

    def stand_before(self, store: Store, url: str) -> None:
        """The grant in the store is renewed through this gate from now on."""
        self._endpoint = grant_in(store, url).token_endpoint
        here = f"{self.origin}/token"

        def through_here(record: GrantRecord) -> GrantRecord:
            return replace(record, grants=tuple(replace(grant, token_endpoint=here) for grant in record.grants))

        rewrite(store, url, through_here)

    def close(self, place: Place) -> None:
        self._closed.add(place)
        self._lost = False
        self._go_on.clear()

    def wait(self) -> None:
        """Until a request is held."""
        assert self._held.acquire(timeout=PATIENCE)

    def open(self) -> None:
        """Let all go on, also those that are still to come."""
        self._closed.clear()
        self._go_on.set()

    def lose(self) -> None:
        """Let all that is still to come go on. What is held goes nowhere: its connection is cut."""
        self._lost = True
        self.open()

    def __call__(self, seen: Seen) -> Reply:
        self._pass("asked")
        headers = {name: value for name, value in seen.headers.items() if name not in HOP_BY_HOP}
        answer = httpx.post(self._endpoint, headers=headers, content=seen.body, trust_env=False, timeout=PATIENCE)
        self._pass("answered")
        kept = tuple((name, value) for name, value in answer.headers.multi_items() if name not in HOP_BY_HOP)
        return Reply(answer.status_code, kept, answer.content)

    def _pass(self, place: Place) -> None:
        if place in self._closed:
            self._held.release()
            assert self._go_on.wait(PATIENCE)
            if self._lost:
                raise ConnectionAbortedError


# --- What is open -----------------------------------------------------------------------------------------------------

Open = set[object]


def before() -> Open:
    """Threads, and the sockets, files and pipes of this process, as far as the system tells."""
    return {*threading.enumerate(), *_descriptors()}


def left(there: Open) -> Open:
    """What was not there before, now that all flights have landed. Idle workers of trio are daemons, and stay."""
    settle()
    assert oauth._unsaved == {}
    return {one for one in before() - there if not (isinstance(one, threading.Thread) and one.daemon)}


def _descriptors() -> set[object]:
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        return set()
    found: set[object] = set()
    for descriptor in folder.iterdir():
        with suppress(OSError):  # that of the listing is gone by now
            found.add(descriptor.readlink())
    return found
