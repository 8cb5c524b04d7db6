"""What the drivers for httpx and httpx2 share. Neither is imported here: the two have one shape and two names."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, ItemsView, Iterator, Mapping, MutableMapping
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from functools import cached_property
from http.cookiejar import CookieJar, DefaultCookiePolicy
from ssl import SSLContext
from typing import TYPE_CHECKING, Any, Protocol, cast

from mcp_oauth.io.oauth import BaseOAuth
from mcp_oauth.io.options import Options, insist
from mcp_oauth.io.plug import Trip, is_short
from mcp_oauth.io.sending import NOT_CODED, Body, Sender, ca_hint, sender
from mcp_oauth.sansio.messages import Headers, Response
from mcp_oauth.sansio.steps import Ensure, Proceed, Send

if TYPE_CHECKING:
    from typing_extensions import Unpack

CA_OPTION = "SSL_CERT_FILE=ca.pem, or OAuth(..., verify=ssl.create_default_context(cafile=...))"
DIRECT: Mapping[str, Any] = {"http://": None}
"""The `mounts` of a client that obeys the environment's proxies for https only. Plain http is for loopback (RULES 1.3),
and a proxy would read the tokens on it, if it found the way at all."""


class Stack(Protocol):
    """The parts of httpx that are used, by their names in the module."""

    AsyncClient: Any
    ByteStream: Any
    HTTPError: Any
    ConnectError: Any
    ConnectTimeout: Any
    ProxyError: Any
    UnsupportedProtocol: Any
    InvalidURL: Any

    create_ssl_context: Any


# --- OAuth traffic ----------------------------------------------------------------------------------------------------


_contexts: dict[Stack, Any] = {}
_reading = threading.Lock()


def _default_context(stack: Stack) -> Any:
    """One for all: it reads some hundred certificates."""
    with _reading:
        if stack not in _contexts:
            _contexts[stack] = stack.create_ssl_context()
        return _contexts[stack]


if hasattr(os, "register_at_fork"):  # the child of a fork that comes meanwhile would wait for ever
    os.register_at_fork(before=_reading.acquire, after_in_parent=_reading.release, after_in_child=_reading.release)


class Traffic:
    """The clients of OAuth traffic: each for one run of a machine, and closed with it."""

    def __init__(self, stack: Stack, *, transport: Callable[[], Any] | None, verify: Any, proxy: Any) -> None:
        self._stack = stack
        self._transport = transport
        self._verify = verify
        self._proxy = proxy

    def open(self) -> AbstractAsyncContextManager[Sender]:
        """A sender for one run."""
        return sender(self._client, _exchange, self._unsent)

    def _client(self) -> Any:
        """No redirect followed, no cookie kept, nothing of the caller's client."""
        made: dict[str, Any] = {} if self._proxy is not None else {"mounts": DIRECT}
        if self._transport is not None:
            made["transport"] = self._transport()
        elif self._verify is None:
            self._verify = _default_context(self._stack)
        cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
        return self._stack.AsyncClient(
            verify=self._verify, proxy=self._proxy, cookies=cookies, follow_redirects=False, **made
        )

    def _unsent(self, error: Exception) -> str | None:
        stack = self._stack
        if isinstance(error, (stack.ConnectError, stack.ConnectTimeout, stack.ProxyError)):
            return f"{type(error).__name__}: {error}{ca_hint(error, CA_OPTION)}"
        return type(error).__name__ if isinstance(error, (stack.UnsupportedProtocol, stack.InvalidURL)) else None


async def _exchange(client: Any, effect: Send) -> Response:
    request = effect.request
    # Who cannot be connected to has certainly not seen the request, so that ends before the deadline.
    timeout = (effect.seconds / 2, None, None, None)
    async with client.stream(
        request.method, request.url, headers=[*request.headers, NOT_CODED], content=request.body, timeout=timeout
    ) as response:
        return Response(
            response.status_code, tuple(response.headers.multi_items()), await _body(response, effect.max_bytes)
        )


async def _body(response: Any, most: int) -> bytes:
    if response.is_stream_consumed:  # a transport that had it all, such as httpx's own for tests
        body = Body(None, most)
        body.add(response.content)
        return body.whole()
    body = Body(response.headers.get("content-encoding"), most)
    async with aclosing(response.aiter_raw()) as chunks:
        async for chunk in chunks:
            body.add(chunk)
    return body.whole()


# --- The plug ---------------------------------------------------------------------------------------------------------


class HttpxOptions(Options, total=False):
    """The options of an `OAuth` for httpx: what lies beneath the client that OAuth traffic uses."""

    transport: Callable[[], Any] | None
    """Makes an async transport, for one run each; None: httpx's own."""
    verify: SSLContext | None
    """Whom to trust; None: httpx's default, made once."""
    proxy: Any
    """A proxy URL or `Proxy`; None: what the environment says."""


class HttpxPlug(BaseOAuth):
    """The two flows of `httpx.Auth`, for a server URL and all that lies at its origin."""

    requires_request_body = False
    requires_response_body = False
    _stack: Stack
    _hop: Any
    """The stack's request, with `Hop` mixed in."""

    def __init__(self, server_url: str, **options: Unpack[HttpxOptions]) -> None:
        """See `Options` and `HttpxOptions`. Raises `ConfigurationError`."""
        transport, verify = options.pop("transport", None), options.pop("verify", None)
        insist("transport", transport, Callable | None, "a function that makes one, for one run each")
        insist("verify", verify, SSLContext | None, "an ssl.SSLContext: TLS is always verified")
        self._traffic = Traffic(self._stack, transport=transport, verify=verify, proxy=options.pop("proxy", None))
        super().__init__(server_url, **cast("Options", options))

    def open_sender(self) -> AbstractAsyncContextManager[Sender]:
        """See `Traffic.open`."""
        return self._traffic.open()

    @classmethod
    def one_hop(cls, request: Any, credential: Headers) -> Any:
        """A copy of a request that carries a credential, which no copy of that copy has (`Hop`)."""
        return cls._hop.of(request, credential)

    def sync_auth_flow(self, request: Any) -> Generator[Any, Any, None]:
        """One request of a caller, in a thread."""
        sent = _Request(self, request)
        while (effect := sent.trip.effect) is not None:
            if isinstance(effect, Ensure):
                sent.trip.ensured(self.ensure(effect.need))
            else:
                if sent.response is not None:
                    _drop(self._stack, sent.response)
                sent.answered((yield sent.outgoing(effect)))

    async def async_auth_flow(self, request: Any) -> AsyncGenerator[Any, Any]:
        """One request of a caller, in a task of asyncio or trio."""
        sent = _Request(self, request)
        while (effect := sent.trip.effect) is not None:
            if isinstance(effect, Ensure):
                sent.trip.ensured(await self.ensure_async(effect.need))
            else:
                if sent.response is not None:
                    await _adrop(self._stack, sent.response)
                sent.answered((yield sent.outgoing(effect)))


class _Request:
    """One request of a caller: what httpx sends of it, and what comes back."""

    def __init__(self, oauth: HttpxPlug, request: Any) -> None:
        self._oauth = oauth
        self._request = self._sent = request
        self.response: Any = None
        self.trip = Trip(oauth, str(request.url), replayable=isinstance(request.stream, oauth._stack.ByteStream))

    def outgoing(self, effect: Proceed) -> Any:
        """The request to send next."""
        self._sent = self._oauth.one_hop(self._request, effect.headers) if effect.headers else self._request
        return self._sent

    def answered(self, response: Any) -> None:
        """Judge what came back; httpx may have followed redirects."""
        self.response = response
        redirected_to = None if response.request is self._sent else str(response.request.url)
        challenges = response.headers.get_list("www-authenticate")
        if self.trip.answered(response.status_code, challenges, redirected_to=redirected_to):
            self._request = response.request


class Hop:
    """Mixed into a stack's request: the caller's request with a credential, for one hop."""

    @classmethod
    def of(cls, request: Any, credential: Headers) -> Any:
        """A copy of `request` that carries `credential`."""
        hop = cls.__new__(cls)
        hop.__dict__ = {**request.__dict__, "headers": OneHop(request.headers, credential)}
        return hop

    @property
    def headers(self) -> Any:
        """Those of the request."""
        return self.__dict__["headers"]

    @headers.setter
    def headers(self, headers: Any) -> None:
        """Instrumentation puts a copy in their place; the credential, which no copy has, stays."""
        before = self.__dict__.get("headers")
        self.__dict__["headers"] = OneHop(headers, before.credential) if isinstance(before, OneHop) else headers


class OneHop(MutableMapping[str, str]):
    """Request headers with a credential that no copy of them has, by `items` or by pickle.

    httpx follows redirects beneath the plug, with a copy of the headers, and at the same origin the copy would keep
    the token, whatever the path (RULES 1.1). It copies a mapping by its `items`.
    """

    def __init__(self, headers: Any, credential: Headers) -> None:
        self._plain = headers
        self.credential = credential

    @cached_property
    def _headers(self) -> Any:
        headers = self._plain.copy()
        for name, value in self.credential:
            headers[name] = value
        return headers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._headers, name)

    def __getitem__(self, name: str) -> str:
        value: str = self._headers[name]
        return value

    def __setitem__(self, name: str, value: str) -> None:
        self._headers[name] = value

    def __delitem__(self, name: str) -> None:
        del self._headers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._headers)

    def __len__(self) -> int:
        return len(self._headers)

    def __repr__(self) -> str:
        return repr(self._headers)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._headers.__class__, (dict(self.items()),)

    def items(self) -> ItemsView[str, str]:
        """What goes to the next hop."""
        hidden = {name for name, _ in self.credential}
        return {name: value for name, value in self._headers.items() if name not in hidden}.items()


def _drop(stack: Stack, response: Any) -> None:
    """Let go of a challenged response, which httpx would read whole. A broken body is nobody's loss."""
    if not response.is_closed:
        with suppress(stack.HTTPError):
            if is_short(response.headers.get("content-length")):
                deque(response.stream, maxlen=0)
        response.stream.close()
        response.stream = stack.ByteStream(b"")


async def _adrop(stack: Stack, response: Any) -> None:
    """The same in an event loop."""
    if not response.is_closed:
        with suppress(stack.HTTPError):
            if is_short(response.headers.get("content-length")):
                async for _ in response.stream:
                    pass
        await response.stream.aclose()
        response.stream = stack.ByteStream(b"")
