"""A driver for `urllib.request`: all that there is to write for an HTTP library that has none yet.

    oauth = OAuth("https://mcp.example.com/mcp")
    with request(oauth, "https://mcp.example.com/mcp", data=b"{}") as response:
        print(response.status, response.read())

Run as a program it gets a page: python examples/urllib_driver.py https://mcp.example.com/mcp
"""

from __future__ import annotations

import socket
import ssl
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from http.client import HTTPResponse
from urllib.error import URLError
from urllib.request import HTTPHandler, HTTPSHandler, OpenerDirector, Request, UnknownHandler

from mcp_oauth.io.oauth import BaseOAuth
from mcp_oauth.io.plug import Heard, send_authorized
from mcp_oauth.io.sending import NOT_CODED, BlockingSender, Body, Deadline, UnreadableError, blocking_sender
from mcp_oauth.sansio.messages import Headers, Response
from mcp_oauth.sansio.steps import Send

# Without other handlers no redirect is followed, no status is an exception, and no proxy is taken from the environment,
# which would read the tokens on plain http (loopback), if it found the way at all.
OPENER = OpenerDirector()
for handler in HTTPHandler(), HTTPSHandler(), UnknownHandler():
    OPENER.add_handler(handler)


class OAuth(BaseOAuth):
    """Tokens for one MCP server, as one account."""

    def open_sender(self) -> AbstractContextManager[BlockingSender]:
        return blocking_sender(nullcontext, exchange, unsent)


def exchange(_: None, effect: Send, deadline: Deadline) -> Response:
    asked, headers = effect.request, dict([*effect.request.headers, NOT_CODED])
    sent = Request(asked.url, asked.body or None, headers, method=asked.method)
    with OPENER.open(sent, timeout=deadline.left()) as response:
        deadline.watch(response)
        body = Body(response.headers["content-encoding"], effect.max_bytes)
        while chunk := response.read1(1 << 16):
            body.add(chunk)
        if response.length or response.headers.defects:
            raise UnreadableError("the response is broken, or was cut")
        return Response(response.status, tuple(response.headers.items()), body.whole())


def unsent(error: Exception) -> str | None:
    """The reason, if it proves that the server has not seen the request. One in words is urllib's: it did not begin."""
    reason = error.reason if isinstance(error, URLError) else None
    certain = (str, ConnectionRefusedError, socket.gaierror, ssl.SSLCertVerificationError)
    return str(reason) if isinstance(reason, certain) else None


def request(
    oauth: OAuth, url: str, data: bytes | None = None, headers: Mapping[str, str] | None = None, timeout: float = 60.0
) -> HTTPResponse:
    """As `urlopen`, with the token, and without redirects. Raises `OAuthError` and what `urlopen` does."""

    def send(credential: Headers) -> HTTPResponse:
        sent = Request(url, data, {**(headers or {}), **dict(credential)})
        response: HTTPResponse = OPENER.open(sent, timeout=timeout)
        return response

    def heard(response: HTTPResponse) -> Heard:
        return response.status, response.headers.get_all("www-authenticate", [])

    return send_authorized(oauth, url, send, heard, HTTPResponse.close)


if __name__ == "__main__":
    server = sys.argv[1]
    with request(OAuth(server), server) as answer:
        print(answer.status, answer.read().decode())
