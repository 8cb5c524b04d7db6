"""The machine that gets one metadata document: at most 4 effects.

Redirects are followed here, to the same origin and at most three (RULES 1.4). What the answer means is the caller's:
a miss on any 4xx, on 200 that is not the document and on a refused redirect; a failure on 5xx, 429 and no answer
(RULES 2.3).
"""

from __future__ import annotations

from msgspec.structs import replace

from mcp_oauth.sansio.errors import Attempt
from mcp_oauth.sansio.messages import Response, get, header, printable, read_json
from mcp_oauth.sansio.steps import Await, Done, Event, Misuse, Send, SendFailed, Step, Table
from mcp_oauth.sansio.uris import redirect_target, without_query
from mcp_oauth.sansio.values import Value

REDIRECTS = (301, 302, 303, 307, 308)
MOST_REDIRECTS = 3
MOST_EFFECTS = 1 + MOST_REDIRECTS


class Fetching(Value, frozen=True, tag="fetching.Fetching"):
    """Waits for the answer from `url`, reached from the URL first asked by `redirects` redirects."""

    shown = ("url", "redirects")

    url: str
    redirects: int = 0


State = Fetching


class Fetched(Value, frozen=True):
    """How it ended: `response` is None where no usable answer came."""

    shown = ("attempt", "response")

    attempt: Attempt
    response: Response | None

    @property
    def unavailable(self) -> bool:
        """The server failed: this says nothing about whether the document exists."""
        return self.response is None or self.response.status >= 500 or self.response.status == 429

    @property
    def document(self) -> dict[str, object] | None:
        """The JSON object, or None: a miss."""
        if self.response is None or self.response.status != 200:
            return None
        return read_json(self.response.body)

    @property
    def miss(self) -> Attempt:
        """The attempt, where the answer is not the document that was looked for."""
        return replace(self.attempt, reason="another document") if self.attempt.status == 200 else self.attempt


def begin(url: str) -> Step[State, Fetched]:
    """Ask for a document at a URL that may be touched (`uris.refusal`)."""
    return Await(Fetching(url), Send(get(url)))


def advance(state: State, event: Event) -> Step[State, Fetched]:
    """Judge an answer, or follow it."""
    match event:
        case Response():
            return _answered(state, event)
        case SendFailed(reason):
            return Done(Fetched(Attempt(without_query(state.url), reason=printable(reason)), None))
        case _:
            raise Misuse(state, event)


def _answered(state: Fetching, response: Response) -> Step[State, Fetched]:
    location = header(response.headers, "location")
    if response.status not in REDIRECTS or not location:
        return Done(Fetched(Attempt(without_query(state.url), response.status), response))
    target = redirect_target(state.url, location)
    if target is not None and state.redirects < MOST_REDIRECTS:
        return Await(Fetching(target, state.redirects + 1), Send(get(target)))
    why = f"redirect to {without_query(location)} refused: " + ("another origin" if target is None else "too many")
    return Done(Fetched(Attempt(without_query(state.url), response.status, why), response))


TABLE: Table = {Fetching: ((Send,), {Response: (Fetching, Done), SendFailed: (Done,)})}
