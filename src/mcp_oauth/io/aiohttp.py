"""The driver for aiohttp: a client middleware, for a session or a single request, WebSockets included.

async with aiohttp.ClientSession(middlewares=(OAuth("https://mcp.example.com/mcp"),)) as session:
    async with session.post("https://mcp.example.com/mcp", json=...) as response:
        ...

aiohttp runs its middlewares anew for each hop of a redirect, and a hop looks like a request of the caller's own. So the
plug remembers where redirects at the server's host have led, and takes a request to such a path for a hop from then on:
it has the token only at or below the server's own path (RULES 1.1). That needs nothing private of aiohttp, and holds
when other middlewares run a hop in a task of its own, or repeat it.

The token is in a request's headers only while the request is under way: `response.request_info`, which the caller
keeps, logs and finds in exceptions, shows what the caller sent. (A `TraceConfig` that hooks `on_request_headers_sent`
sees what is sent, as it should.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from ssl import SSLContext
from typing import TYPE_CHECKING, cast

import aiohttp
from aiohttp import ClientRequest, ClientResponse, payload
from yarl import URL

from mcp_oauth.io.oauth import BaseOAuth
from mcp_oauth.io.options import Options, insist
from mcp_oauth.io.plug import Heard, is_short, send_authorized_async
from mcp_oauth.io.sending import NOT_CODED, Body, Sender, ca_hint, environment_proxy, sender
from mcp_oauth.sansio.messages import Headers, Response
from mcp_oauth.sansio.steps import Send

if TYPE_CHECKING:
    from typing_extensions import Unpack

CA_OPTION = "SSL_CERT_FILE=ca.pem, or OAuth(..., ssl=ssl.create_default_context(cafile=...))"
REDIRECTS = frozenset((301, 302, 303, 307, 308))
MOST_REMEMBERED = 1000
"""Paths that redirects led to. Between a redirect and its hop there is no time for so many others."""

OWN_HEADERS = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
"""What aiohttp would add to OAuth traffic."""
MOST_IN_FIELD = 1 << 15
"""Bytes of one header field: policies in the answers of authorization servers outgrow aiohttp's 8 KB."""


class AiohttpOptions(Options, total=False):
    """The options of an `OAuth` for aiohttp: what lies beneath the session that OAuth traffic uses."""

    connector: Callable[[], aiohttp.BaseConnector] | None
    """Makes a connector, for one run each and in its event loop; None: aiohttp's own."""
    ssl: SSLContext | None
    """For all of https; None: what the connector says, or aiohttp's default."""
    proxy: str | URL | None
    """A proxy URL; None: what the environment says."""


class OAuth(BaseOAuth):
    """A client middleware of aiohttp: tokens for one MCP server, as one account.

    It acts only at the origin of the server URL; requests to other places pass it untouched. A total timeout of the
    caller's includes the time that a login takes.
    """

    def __init__(self, server_url: str, **options: Unpack[AiohttpOptions]) -> None:
        """See `Options` and `AiohttpOptions`. Raises `ConfigurationError`."""
        self._connector = options.pop("connector", None)
        self._ssl = options.pop("ssl", None)
        insist("connector", self._connector, Callable | None, "a function that makes one, for one run each")
        insist("ssl", self._ssl, SSLContext | None, "an ssl.SSLContext: TLS is always verified")
        self._proxy = options.pop("proxy", None)
        super().__init__(server_url, **cast("Options", options))
        self._host = URL(self.server_url).host
        self._led_to = deque[str](maxlen=MOST_REMEMBERED)

    # --- The plug -------------------------------------------------------------------------------------------------

    async def __call__(self, request: ClientRequest, handler: aiohttp.ClientHandlerType) -> ClientResponse:
        """One request of a caller, or one hop of it. Raises `OAuthError`."""
        response = await send_authorized_async(
            self,
            str(request.url),
            partial(_send, request, handler),
            _heard,
            partial(_drop, request),
            replayable=_is_replayable(request.body),
            hop=request.url.path in self._led_to,
        )
        location = response.headers.get("Location") or response.headers.get("URI")
        if response.status in REDIRECTS and location is not None:
            self._remember(response.url, location)
        return response

    def _remember(self, url: URL, location: str) -> None:
        """Where aiohttp goes next, with either setting of `requote_redirect_url`."""
        for encoded in (False, True):
            with suppress(ValueError):  # it goes nowhere
                target = url.join(URL(location, encoded=encoded))
                if (target.host or "").lower() == self._host and target.path not in self._led_to:
                    self._led_to.append(target.path)

    # --- OAuth traffic --------------------------------------------------------------------------------------------

    def open_sender(self) -> AbstractAsyncContextManager[Sender]:
        """A session of its own for one run, with no redirect followed, no cookie kept, no netrc read."""
        return sender(self._session, self._exchange, _unsent)

    def _session(self) -> aiohttp.ClientSession:
        # Between two requests a run may wait for a person or a lock, and its loop with it. aiohttp would not see that
        # the server has closed a kept connection, and a code lost on it cannot be sent again (RULES 2.14). So none is
        # used again. With `force_close` the session's end would not wait for the end of TLS.
        connector = aiohttp.TCPConnector(keepalive_timeout=0) if self._connector is None else self._connector()
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=OWN_HEADERS,
            auto_decompress=False,
            trust_env=False,
            max_line_size=MOST_IN_FIELD,
            max_field_size=MOST_IN_FIELD,
        )

    async def _exchange(self, session: aiohttp.ClientSession, effect: Send) -> Response:
        request = effect.request
        async with session.request(
            request.method,
            URL(request.url, encoded=True),
            headers=[*request.headers, NOT_CODED],
            data=request.body or None,
            allow_redirects=False,
            ssl=self._ssl or True,
            proxy=self._proxy or environment_proxy(request.url),
            # Who cannot be connected to has certainly not seen the request, so that ends before the deadline.
            timeout=aiohttp.ClientTimeout(total=None, connect=effect.seconds / 2),
        ) as response:
            body = Body(", ".join(response.headers.getall("Content-Encoding", ())), effect.max_bytes)
            async for chunk in response.content.iter_any():
                body.add(chunk)
            headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in response.raw_headers)
            return Response(response.status, headers, body.whole())


def _unsent(error: Exception) -> str | None:
    match error:
        case aiohttp.ClientHttpProxyError():  # its text has the proxy's URL, which may hold a password
            return f"the proxy answered with status {error.status}"
        case aiohttp.ClientConnectorError():
            return f"{type(error).__name__}: {error}{ca_hint(error, CA_OPTION)}"
        case (
            aiohttp.ConnectionTimeoutError()
            | aiohttp.ServerFingerprintMismatch()
            | aiohttp.InvalidURL()
            | aiohttp.NonHttpUrlClientError()
        ):
            return type(error).__name__
        case _:
            return None


# --- A request of the caller's ----------------------------------------------------------------------------------------


async def _send(request: ClientRequest, handler: aiohttp.ClientHandlerType, credential: Headers) -> ClientResponse:
    """Send it with a credential, which is gone from its headers, and from all that shows them, when it is back."""
    own = [(name, value) for name, _ in credential for value in request.headers.getall(name, ())]
    request.headers.update(credential)
    try:
        return await handler(request)
    finally:
        for name, _ in credential:
            request.headers.popall(name, None)
        request.headers.extend(own)


def _heard(response: ClientResponse) -> Heard:
    return response.status, response.headers.getall("WWW-Authenticate", ())


async def _drop(request: ClientRequest, response: ClientResponse) -> None:
    """Let go of a challenged response. A broken body is nobody's loss."""
    try:
        with suppress(aiohttp.ClientError):
            if is_short(response.headers.get("Content-Length")):
                async for _ in response.content.iter_any():
                    pass
    finally:
        response.close()
    with suppress(aiohttp.ClientError):
        await request.close()  # a body is sent again when the sending of it has ended


def _is_replayable(body: payload.Payload | bytes) -> bool:
    """Bytes, text, JSON, forms, files that tell their size, and multiparts of these."""
    match body:
        case aiohttp.MultipartWriter():
            return all(_is_replayable(part) for part, _, _ in body)
        case payload.IOBasePayload():
            return body.size is not None
        case _:
            return isinstance(body, (bytes, payload.BytesPayload))


__all__ = ["OAuth"]
