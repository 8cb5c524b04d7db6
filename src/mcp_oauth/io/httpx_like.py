"""What the drivers for httpx and httpx2 share. Neither is imported here: the two have one shape and two names."""

from __future__ import annotations

import os
import threading
import zlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, ItemsView, Iterator, Mapping, MutableMapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager, suppress
from functools import cached_property
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import anyio

from mcp_oauth.exceptions import from_failure
from mcp_oauth.io.oauth import BaseOAuth, Options, Sender
from mcp_oauth.io.ports import Answer, now
from mcp_oauth.sansio import access, uris
from mcp_oauth.sansio.messages import Headers, Response
from mcp_oauth.sansio.steps import Answered, Await, Done, Ensure, Event, Failed, Proceed, Send, SendFailed

if TYPE_CHECKING:
    from typing_extensions import Unpack

MOST_DROPPED = 1 << 16
"""Bytes of a challenged response that are read, so that its connection can be used again; a longer one is closed."""


DIRECT: Mapping[str, Any] = {"http://": None}
"""The `mounts` of a client that obeys the environment's proxies for https only. Plain http is for loopback (RULES 1.3),
and a proxy would read the tokens on it, if it found the way at all."""

B = TypeVar("B", bytes, bytearray)


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
    """How OAuth traffic is sent: by a client of its own, opened for one run of a machine and closed with it."""

    def __init__(self, stack: Stack, *, transport: Callable[[], Any] | None, verify: Any, proxy: Any) -> None:
        self._stack = stack
        self._transport = transport
        self._verify = verify
        self._proxy = proxy

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Sender]:
        """A sender; its client is made when there is something to send."""
        async with AsyncExitStack() as opened:
            client: Any = None

            async def send(effect: Send) -> Answer:
                nonlocal client
                if client is None:
                    try:
                        client = await opened.enter_async_context(self._client())
                    except Exception as error:  # a transport factory of the caller's, a proxy that cannot be
                        return SendFailed(f"no HTTP client: {type(error).__name__}", may_have_arrived=False)
                return await self._send(client, effect)

            yield send

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

    async def _send(self, client: Any, effect: Send) -> Answer:
        answer: Answer = SendFailed(f"no answer within {effect.seconds:.0f} seconds", may_have_arrived=True)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_end_after, tasks.cancel_scope, effect.seconds)
            answer = await self._try(client, effect)
            tasks.cancel_scope.cancel()
        return answer

    async def _try(self, client: Any, effect: Send) -> Answer:
        stack = self._stack
        try:
            return await _exchange(client, effect)
        except (stack.ConnectError, stack.ConnectTimeout, stack.ProxyError) as error:
            return SendFailed(f"{type(error).__name__}: {error}", may_have_arrived=False)
        except (stack.UnsupportedProtocol, stack.InvalidURL) as error:
            return SendFailed(type(error).__name__, may_have_arrived=False)
        except _Unreadable as error:
            return SendFailed(str(error), may_have_arrived=True)
        except Exception as error:  # also what a transport of the caller's raises: the token may be spent by now
            return SendFailed(type(error).__name__, may_have_arrived=True)  # its text may quote the message


async def _end_after(scope: anyio.CancelScope, seconds: float) -> None:
    """Cancel after `seconds`, in two parts: a process that was stopped for longer first reads what has come."""
    for part in (0.9, 0.1):
        await anyio.sleep(part * seconds)
    scope.cancel()


class _Unreadable(Exception):
    """A body that is too long, or in a coding that was not asked for and is not known."""


async def _exchange(client: Any, effect: Send) -> Response:
    request = effect.request
    headers = [*request.headers, ("accept-encoding", "identity")]
    # Who cannot be connected to has certainly not seen the request, so that ends before the deadline.
    timeout = (effect.seconds / 2, None, None, None)
    async with client.stream(
        request.method, request.url, headers=headers, content=request.body, timeout=timeout
    ) as response:
        body = await _body(response, effect.max_bytes)
        return Response(response.status_code, tuple(response.headers.multi_items()), body)


async def _body(response: Any, most: int) -> bytes:
    if response.is_stream_consumed:  # a transport that had it all, such as httpx's own for tests
        return _within(bytes(response.content), most)
    decode = _decoder(response.headers.get("content-encoding", "identity"), most)
    body = bytearray()
    async with aclosing(response.aiter_raw()) as chunks:
        async for chunk in chunks:
            body += decode(chunk, most - len(body))
            _within(body, most)
    return bytes(body)


def _within(body: B, most: int) -> B:
    if len(body) > most:
        raise _Unreadable(f"the body is longer than {most} bytes")
    return body


def _decoder(coding: str, most: int) -> Callable[[bytes, int], bytes]:
    """Codings were declined; who sends one all the same is decoded under the same limit."""
    coding = coding.strip().lower()
    if coding in ("", "identity"):
        return lambda chunk, _left: chunk
    if coding not in ("gzip", "x-gzip", "deflate"):
        raise _Unreadable("the body has a content coding that was not asked for")
    inflate = zlib.decompressobj(zlib.MAX_WBITS if coding == "deflate" else zlib.MAX_WBITS | 16)

    def decode(chunk: bytes, left: int) -> bytes:
        try:
            data = inflate.decompress(chunk, left + 1)
        except zlib.error:
            raise _Unreadable("the body's content coding is broken") from None
        if inflate.unconsumed_tail:
            raise _Unreadable(f"the body is longer than {most} bytes")
        return data

    return decode


# --- The plug ---------------------------------------------------------------------------------------------------------


class HttpxOptions(Options, total=False):
    """The options of an `OAuth` for httpx: what lies beneath the client that OAuth traffic uses."""

    transport: Callable[[], Any] | None
    """Makes an async transport, for one run each; None: httpx's own."""
    verify: Any
    """An `ssl.SSLContext`; None: httpx's default, made once."""
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
        self._traffic = Traffic(
            self._stack,
            transport=options.pop("transport", None),
            verify=options.pop("verify", None),
            proxy=options.pop("proxy", None),
        )
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
        trip = _Request(self, request)
        while trip.effect is not None:
            if isinstance(trip.effect, Ensure):
                trip.ensured(self.ensure(trip.effect.need))
            else:
                if trip.response is not None:
                    _drop(self._stack, trip.response)
                trip.answered((yield trip.outgoing(trip.effect)))

    async def async_auth_flow(self, request: Any) -> AsyncGenerator[Any, Any]:
        """One request of a caller, in a task of asyncio or trio."""
        trip = _Request(self, request)
        while trip.effect is not None:
            if isinstance(trip.effect, Ensure):
                trip.ensured(await self.ensure_async(trip.effect.need))
            else:
                if trip.response is not None:
                    await _adrop(self._stack, trip.response)
                trip.answered((yield trip.outgoing(trip.effect)))


class _Request:
    """One request of a caller on its way through `sansio.access`."""

    def __init__(self, oauth: HttpxPlug, request: Any) -> None:
        self._oauth = oauth
        self._request = self._sent = request
        self.response: Any = None
        self._step: access.Out | None = None
        self._direct = False
        self.effect: Proceed | Ensure | None = Proceed(())
        if uris.belongs(str(request.url), server=oauth.server_url):
            self._go_on(oauth.begin(replayable=isinstance(request.stream, oauth._stack.ByteStream)))

    def outgoing(self, effect: Proceed) -> Any:
        """The request to send next."""
        self._sent = self._oauth.one_hop(self._request, effect.headers) if effect.headers else self._request
        return self._sent

    def answered(self, response: Any) -> None:
        """Judge what came back; the stack may have followed redirects."""
        self.response = response
        if self._step is None:
            self.effect = None
        elif self._redirected_within(response):
            # The hop went without the token, which belongs there: once more, straight to it.
            self._request = response.request
            self._direct = True
        else:
            self._advance(
                Answered(
                    response.status_code,
                    _challenges(response),
                    response.request is self._sent or self._below(response),
                )
            )

    def ensured(self, event: Event) -> None:
        """Go on with a token, or without."""
        self._advance(event)

    def _redirected_within(self, response: Any) -> bool:
        hop = response.request is not self._sent and response.status_code == 401 and not self._direct
        return hop and isinstance(self.effect, Proceed) and bool(self.effect.headers) and self._below(response)

    def _below(self, response: Any) -> bool:
        return uris.below(str(response.request.url), server=self._oauth.server_url)

    def _advance(self, event: Event) -> None:
        assert isinstance(self._step, Await)  # noqa: S101 - or there would be no effect
        self._go_on(access.advance(self._step.state, event, now=now()))

    def _go_on(self, step: access.Out) -> None:
        self._step = step
        match step:
            case Await(_, Proceed() | Ensure() as effect):
                self.effect = effect
            case Done(finished):
                self._oauth.finished(finished.accepted)
                self.effect = None
            case Failed(error):
                raise from_failure(error)
            case _:
                raise AssertionError("access has two effects")


def _challenges(response: Any) -> tuple[str, ...]:
    """They mean something with these two alone (RFC 9110 section 11.6.1 allows them with any status)."""
    return tuple(response.headers.get_list("www-authenticate")) if response.status_code in (401, 403) else ()


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
            if _is_short(response):
                deque(response.stream, maxlen=0)
        response.stream.close()
        response.stream = stack.ByteStream(b"")


async def _adrop(stack: Stack, response: Any) -> None:
    """The same in an event loop."""
    if not response.is_closed:
        with suppress(stack.HTTPError):
            if _is_short(response):
                async for _ in response.stream:
                    pass
        await response.stream.aclose()
        response.stream = stack.ByteStream(b"")


def _is_short(response: Any) -> bool:
    length = response.headers.get("content-length", "")
    return len(length) < 6 and length.isdecimal() and int(length) <= MOST_DROPPED
