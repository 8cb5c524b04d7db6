"""A login driven by hand: no driver and no HTTP library, only the pure core and `urllib`."""

import os
import time
import urllib.error
import urllib.request
from typing import Any

from mcp_oauth.sansio import steps, upkeep
from mcp_oauth.sansio.grant import Record
from mcp_oauth.sansio.messages import Response
from mcp_oauth.sansio.plan import Plan
from mcp_oauth.sansio.values import Now, Seed

records: dict[str, Record] = {}  # a store that forgets when the program ends


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:  # the core follows them, where it may
        return None


def perform(effect: steps.Effect) -> steps.Event:
    match effect:
        case steps.Send(asked):
            request = urllib.request.Request(asked.url, asked.body or None, dict(asked.headers), method=asked.method)
            try:
                answer = urllib.request.build_opener(NoRedirect).open(request, timeout=effect.seconds)
            except urllib.error.HTTPError as error:
                answer = error
            with answer:
                return Response(answer.status, tuple(answer.headers.items()), answer.read(effect.max_bytes))
        case steps.Load(key):
            return steps.Loaded(records.get(key))
        case steps.Save(key, record):
            records[key] = record
            return steps.Saved()
        case steps.Listen(redirect_uri):  # nothing listens: the address bar shows where the browser was sent
            return steps.Listening(redirect_uri.replace("127.0.0.1", "127.0.0.1:8765"))
        case steps.OpenBrowser(url):
            return steps.Redirected(input(f"Open {url}\nand paste the address where the browser ends up: "))
    raise TypeError(effect)  # locks and waiting: a first login needs neither


def login(server_url: str) -> steps.Done[Any] | steps.Failed:
    step = upkeep.begin(Plan(server_url), steps.Need("asked"), Seed(os.urandom(32)))
    while isinstance(step, steps.Await):
        event = perform(step.effect)
        step = upkeep.advance(step.state, event, now=Now(time.time(), time.monotonic()))
    return step


if __name__ == "__main__":
    print(login(input("MCP server: ")))
