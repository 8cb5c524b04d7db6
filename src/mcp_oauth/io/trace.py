"""What the machines do, line by line, in the logger `mcp_oauth` at DEBUG: whom they ask, and what was answered.

No line holds a secret: a value shows only what its class allows (`sansio.values`), a URL goes without its query.
"""

from __future__ import annotations

import logging

from mcp_oauth.sansio.messages import Response
from mcp_oauth.sansio.steps import Effect, Event, Listen, Listening, OpenBrowser, Send, SendFailed
from mcp_oauth.sansio.uris import without_query

log = logging.getLogger("mcp_oauth")


def asking(effect: Effect) -> None:
    """An effect is about to be performed."""
    if not log.isEnabledFor(logging.DEBUG):
        return
    match effect:
        case Send(request) if request.method == "GET":
            log.debug("Discovering OAuth server at %s", without_query(request.url))
        case Send(request):
            log.debug("Sending %s %s", request.method, without_query(request.url))
        case OpenBrowser(url, opened=False):
            log.debug("Found authorization_endpoint: %s", without_query(url))
        case OpenBrowser() | Listen():
            pass
        case _:
            log.debug("%r", effect)


def answered(effect: Effect, event: Event) -> None:
    """It was performed."""
    if not log.isEnabledFor(logging.DEBUG):
        return
    match effect, event:
        case Send(request), Response(status):
            log.debug("%s answered HTTP %d", without_query(request.url), status)
        case Send(request), SendFailed(reason):
            log.debug("%s did not answer: %s", without_query(request.url), reason)
        case Listen(), Listening(redirect_uri):
            log.debug("Starting local callback server at %s", redirect_uri)
        case _:
            log.debug("%r", event)
