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
import urllib.request
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from typing import TYPE_CHECKING, Any
from urllib.error import URLError

from mcp_oauth.io.oauth import BaseOAuth
from mcp_oauth.io.options import Options
from mcp_oauth.io.plug import Heard, send_authorized
from mcp_oauth.io.sending import (
    NOT_CODED,
    BlockingSender,
    Body,
    Deadline,
    UnreadableError,
    blocking_sender,
    environment_proxy,
)
from mcp_oauth.sansio.messages import Headers, Response
from mcp_oauth.sansio.steps import Send

if TYPE_CHECKING:
    from typing_extensions import Unpack


# --- 1. How OAuth traffic is sent -------------------------------------------------------------------------------------


class OAuth(BaseOAuth):
    """Tokens for one MCP server, as one account. `context` trusts the CA of a server that has one of its own."""

    def __init__(self, server_url: str, *, context: ssl.SSLContext | None = None, **options: Unpack[Options]) -> None:
        super().__init__(server_url, **options)
        self.context = context

    def open_sender(self) -> AbstractContextManager[BlockingSender]:
        return blocking_sender(nullcontext, self.exchange, unsent)

    def exchange(self, _: None, effect: Send, deadline: Deadline) -> Response:
        asked = effect.request
        opener = opening(asked.url, Watched(deadline, self.context))
        opener.addheaders = []
        headers = dict([*asked.headers, NOT_CODED])
        request = urllib.request.Request(asked.url, asked.body or None, headers, method=asked.method)
        with opener.open(request, timeout=deadline.left()) as response:
            body = Body(response.headers["content-encoding"], effect.max_bytes)
            while chunk := response.read1(1 << 16):
                body.add(chunk)
            if response.length or response.headers.defects:
                raise UnreadableError("the response is broken, or was cut")
            return Response(response.status, tuple(response.headers.items()), body.whole())


def opening(url: str, handler: urllib.request.BaseHandler) -> urllib.request.OpenerDirector:
    proxy = environment_proxy(url)
    proxies = urllib.request.ProxyHandler({"https": proxy} if proxy else {})
    return urllib.request.build_opener(AsItIs, proxies, handler)


class AsItIs(urllib.request.HTTPErrorProcessor):
    """No redirect is followed, and no status is an exception."""

    def http_response(self, request: Any, response: Any) -> Any:
        return response

    https_response = http_response


class Plain(HTTPConnection):
    """Whatever it waits for ends at the deadline."""

    deadline: Deadline

    def connect(self) -> None:
        super().connect()
        self.deadline.watch(self.sock)


class Tls(HTTPSConnection, Plain):
    """The handshake comes after `Plain.connect`."""


class Watched(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
    """Connects for one exchange."""

    def __init__(self, deadline: Deadline, context: ssl.SSLContext | None) -> None:
        super().__init__()
        self.deadline, self.context = deadline, context

    def http_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(self.plain, req)

    def https_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(self.tls, req)

    def plain(self, host: str, **options: Any) -> HTTPConnection:
        connection = Plain(host, **options)
        connection.deadline = self.deadline
        return connection

    def tls(self, host: str, **options: Any) -> HTTPConnection:
        connection = Tls(host, context=self.context, **options)
        connection.deadline = self.deadline
        return connection


# --- 2. Which failures prove that the server has not seen the request -------------------------------------------------


def unsent(error: Exception) -> str | None:
    certain = (ConnectionRefusedError, socket.gaierror, ssl.SSLCertVerificationError)
    return str(error.reason) if isinstance(error, URLError) and isinstance(error.reason, certain) else None


# --- 3. The caller's own requests -------------------------------------------------------------------------------------


def request(
    oauth: OAuth, url: str, data: bytes | None = None, headers: Mapping[str, str] | None = None, timeout: float = 60.0
) -> HTTPResponse:
    """As `urlopen`, with the token, and without redirects. Raises `OAuthError` and what `urlopen` does."""
    opener = opening(url, urllib.request.HTTPSHandler(context=oauth.context or ssl.create_default_context()))

    def send(credential: Headers) -> HTTPResponse:
        asked = urllib.request.Request(url, data, {**(headers or {}), **dict(credential)})
        response: HTTPResponse = opener.open(asked, timeout=timeout)
        return response

    def heard(response: HTTPResponse) -> Heard:
        return response.status, response.headers.get_all("www-authenticate", [])

    return send_authorized(oauth, url, send, heard, HTTPResponse.close)


if __name__ == "__main__":
    server = sys.argv[1]
    with request(OAuth(server), server) as answer:
        print(answer.status, answer.read().decode())
