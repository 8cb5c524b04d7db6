"""The example of `docs/drivers.md`: `urllib.request`, in threads. It follows no redirects, has no options of its own.

It claims less than a driver of the library must keep (`table.DRIVERS`). It has no transport, CA or proxy of the
caller's; it does not end at the deadline before there is a header, nor know of a timeout whether it was connected; and
it reads nothing that came while the process was stopped for longer.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

from examples.urllib_driver import OAuth, request
from tests.io.contract.ways import CONTENT, Answer, Authority, Call, Caller, SyncWay, Way
from tests.io.servers import PATIENCE


class Urllib(SyncWay):
    stack = "urllib"
    levels = ("client",)
    follows = False
    replayable = ("none", "bytes")
    once = ()

    @property
    def driver(self) -> Any:
        return OAuth

    def beneath(self, used: Callable[[], object]) -> dict[str, Any]:
        raise NotImplementedError

    def unmakeable(self, make: Callable[[], Any]) -> dict[str, Any]:
        raise NotImplementedError

    def trusting(self, authority: Authority) -> dict[str, Any]:
        raise NotImplementedError

    @contextmanager
    def open(self, caller: Caller) -> Generator[Any]:
        yield caller

    def send(self, client: Any, call: Call) -> Answer:
        headers = {**client.headers, **call.headers}
        if client.cookies:
            headers["cookie"] = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
        data = CONTENT if call.body == "bytes" else b"" if call.method == "POST" else None
        with request(client.auth, call.url, data, headers, PATIENCE) as response:
            while call.on_chunk is not None and (chunk := response.read1()):
                call.on_chunk(chunk)
            fields = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status, response.url, fields, response.read())

    def residue(self, oauth: Any, url: str) -> Sequence[object]:
        with request(oauth, url) as response:
            return [response, response.headers, response.info()]


WAYS: tuple[Way, ...] = (Urllib(),)
