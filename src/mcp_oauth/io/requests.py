"""The driver for requests, in any number of threads.

response = requests.post("https://mcp.example.com/mcp", json=..., auth=OAuth("https://mcp.example.com/mcp"))

requests calls its `auth` when it prepares a request, and a hook with what comes back, at each hop of a redirect before
it makes the next. So the token is put in by the one and taken out by the other: it is in nothing that the caller keeps.
"""

from __future__ import annotations

import os
import socket
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from contextvars import ContextVar
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import requests
from requests.adapters import BaseAdapter, HTTPAdapter
from requests.auth import AuthBase
from requests.exceptions import ConnectTimeout, InvalidSchema, InvalidURL, RequestException
from requests.structures import CaseInsensitiveDict
from urllib3 import HTTPConnectionPool, Retry
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError

from mcp_oauth.exceptions import from_failure
from mcp_oauth.io.oauth import BaseOAuth
from mcp_oauth.io.options import Options, insist
from mcp_oauth.io.plug import Trip, is_short
from mcp_oauth.io.sending import (
    NOT_CODED,
    BlockingSender,
    Body,
    Deadline,
    UnreadableError,
    blocking_sender,
    ca_hint,
    environment_proxy,
)
from mcp_oauth.sansio import uris
from mcp_oauth.sansio.errors import Reason, failure
from mcp_oauth.sansio.messages import Headers, Request, Response, header_values
from mcp_oauth.sansio.steps import Ensure, Send

if TYPE_CHECKING:
    from typing_extensions import Unpack

_untyped: Any = requests

CA_OPTION = "REQUESTS_CA_BUNDLE=ca.pem, or OAuth(..., verify='ca.pem')"
CHUNK = 1 << 16
"""Bytes of a body that are read at a time."""


class RequestsOptions(Options, total=False):
    """The options of an `OAuth` for requests: what OAuth traffic goes through."""

    adapter: Callable[[], BaseAdapter] | None
    """Makes a transport adapter, for one run each; None: requests' own."""
    verify: str | os.PathLike[str] | None
    """The path of a CA bundle; None: what REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE names, else requests' own."""
    proxy: str | None
    """A proxy URL; None: what the environment says."""


class OAuth(BaseOAuth, AuthBase):
    """The `auth` of a `requests` session or request: tokens for one MCP server, as one account.

    It acts only at the origin of the server URL; requests to other places pass it untouched.
    """

    def __init__(self, server_url: str, **options: Unpack[RequestsOptions]) -> None:
        """See `Options` and `RequestsOptions`. Raises `ConfigurationError`."""
        self._adapter = options.pop("adapter", None) or HTTPAdapter
        insist("adapter", self._adapter, Callable, "a function that makes one, for one run each")
        self._verify = _bundle(options.pop("verify", None))
        self._proxy = options.pop("proxy", None)
        super().__init__(server_url, **cast("Options", options))

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        """Put the token into a request that is about to be sent. Raises `OAuthError`."""
        url = r.url or ""
        if uris.belongs(url, server=self.server_url):
            trip = Trip(self, url, replayable=_replayable(r))
            credential = self.credential(trip)
            assert credential is not None  # noqa: S101 - nothing has been answered yet
            r.headers = _OneHop(r.headers, credential)
            r.hooks["response"].append(_Hook(self, r, trip, credential))
        return r

    def credential(self, trip: Trip) -> Headers | None:
        """What the request goes with next; None: the last answer is the caller's. Raises `OAuthError`."""
        while isinstance(effect := trip.effect, Ensure):
            trip.ensured(self.ensure(effect.need))
        return None if effect is None else effect.headers

    def open_sender(self) -> AbstractContextManager[BlockingSender]:
        """An adapter for one run, and no session: no redirects, cookies, netrc, hooks or default headers."""
        return blocking_sender(self._client, self._exchange, _unsent)

    def _client(self) -> AbstractContextManager[BaseAdapter]:
        adapter = self._adapter()
        if isinstance(adapter, HTTPAdapter):
            adapter.max_retries = Retry(0, read=False)  # whether to send again is for the core to judge (RULES 4.9)
        return closing(adapter)

    def _exchange(self, adapter: BaseAdapter, effect: Send, deadline: Deadline) -> Response:
        proxy = self._proxy or environment_proxy(effect.request.url)
        # Who cannot be connected to has certainly not seen the request, so that ends before the deadline.
        timeout = min(effect.seconds / 2, deadline.left()), deadline.left()
        with _watching(adapter, proxy, deadline):
            answer = adapter.send(
                _prepared(effect.request),
                stream=True,
                timeout=timeout,
                verify=self._verify,
                proxies={"all": proxy} if proxy else {},
            )
            with closing(answer):
                headers = _fields(answer)
                return Response(answer.status_code, headers, _body(answer, effect.max_bytes))


# --- The plug ---------------------------------------------------------------------------------------------------------


class _OneHop(CaseInsensitiveDict[str]):
    """Headers with a credential that is neither shown nor pickled: an exception keeps them, if nothing comes back."""

    def __init__(self, headers: CaseInsensitiveDict[str], credential: Headers) -> None:
        super().__init__(headers)
        self.update(credential)
        self.credential = credential

    def without(self) -> CaseInsensitiveDict[str]:
        """What goes to the next hop."""
        hidden = {name for name, _ in self.credential}
        return CaseInsensitiveDict({name: value for name, value in self.items() if name.lower() not in hidden})

    def copy(self) -> CaseInsensitiveDict[str]:
        """urllib3 sends a copy, which its frames keep in an exception's traceback."""
        return _OneHop(self, self.credential)

    def __repr__(self) -> str:
        return repr(self.without())

    def __reduce__(self) -> tuple[Any, ...]:
        return CaseInsensitiveDict, (dict(self.without()),)


class _NextHop(CaseInsensitiveDict[str]):
    """Headers for requests to copy, at a redirect: it asks `.netrc` anew, whose password would stand for the token."""

    def copy(self) -> CaseInsensitiveDict[str]:
        """Those of the next hop."""
        return _Closed(self)


class _Closed(CaseInsensitiveDict[str]):
    """Headers that take no other credential."""

    def __setitem__(self, key: str, value: str) -> None:
        if key.lower() != "authorization":
            super().__setitem__(key, value)


class _Hook:
    """Hears what a prepared request brings, and what each redirect of it does, whose requests copy its hooks."""

    def __init__(self, oauth: OAuth, request: requests.PreparedRequest, trip: Trip, credential: Headers) -> None:
        self._oauth = oauth
        self._request = weakref.ref(request)
        self._first = iter([(trip, credential)])
        """Empty once it was answered: programs send a prepared request more than once, and from many threads."""

    def __call__(self, response: requests.Response, **options: Any) -> requests.Response:
        request = response.request
        response = self._answer(response, options)
        if "authorization" not in request.headers and self._leads_below(response):
            request.headers = _NextHop(request.headers)
        return response

    def _leads_below(self, response: requests.Response) -> bool:
        """To where the token belongs."""
        target = uris.redirect_target(response.url, response.headers["location"]) if response.is_redirect else None
        return target is not None and uris.below(target, server=self._oauth.server_url)

    def _answer(self, response: requests.Response, options: dict[str, Any]) -> requests.Response:
        request = response.request
        own, sent = request is self._request(), _take_out(request)
        first = next(self._first, None) if own else None
        if first is not None:
            return self._go_on(*first, response, options)
        if response.status_code != 401:
            return response
        trip = Trip(self._oauth, request.url or "", replayable=_replayable(request), hop=not own)
        return self._go_on(trip, sent, response, options)

    def _go_on(
        self, trip: Trip, sent: Headers | None, response: requests.Response, options: dict[str, Any]
    ) -> requests.Response:
        """To the answer that is the caller's; `sent` is the credential that brought the one at hand."""
        try:
            while (credential := self._oauth.credential(trip)) is not None:
                if credential != sent:
                    response = _send_again(response, credential, options)
                sent = None
                trip.answered(response.status_code, header_values(_fields(response), "www-authenticate"))
        except BaseException:
            response.close()
            raise
        return response

    def __reduce__(self) -> tuple[Any, ...]:
        return partial, (_unchanged,)


def _unchanged(response: requests.Response, **_: Any) -> requests.Response:
    """The hook of a copy or pickle, which holds no token and gets none."""
    return response


def _take_out(request: requests.PreparedRequest) -> Headers:
    """Take the credential out of a request that was sent, before requests makes the next hop of it (RULES 1.1)."""
    headers = request.headers
    request.headers = headers.without() if isinstance(headers, _OneHop) else CaseInsensitiveDict(headers)
    return headers.credential if isinstance(headers, _OneHop) else ()


def _send_again(response: requests.Response, credential: Headers, options: dict[str, Any]) -> requests.Response:
    """With another credential, as requests' own digest authentication does it."""
    _drop(response)
    request: Any = response.request.copy()
    _untyped.cookies.extract_cookies_to_jar(request._cookies, response.request, response.raw)
    request.prepare_cookies(request._cookies)
    if _position(request) is not None:
        _untyped.utils.rewind_body(request)
    request.headers = _OneHop(request.headers, credential)
    again: requests.Response = response.connection.send(request, **options)
    _take_out(request)
    again.history = [*response.history, response]
    return again


def _replayable(request: requests.PreparedRequest) -> bool:
    """Its body can be sent again: it is there as a whole, or a file that requests can rewind."""
    body: Any = request.body
    return body is None or isinstance(body, (bytes, str)) or _position(request) is not None


def _position(request: requests.PreparedRequest) -> int | None:
    """Where a body that is a file began."""
    position = getattr(request, "_body_position", None)
    return position if isinstance(position, int) and hasattr(request.body, "seek") else None


def _drop(response: requests.Response) -> None:
    """Let go of a challenged response. A broken body is nobody's loss."""
    with suppress(HTTPError, RequestException, OSError):
        if is_short(response.headers.get("content-length")):
            deque(_chunks(response), maxlen=0)
    response.close()


# --- Messages ---------------------------------------------------------------------------------------------------------


def _prepared(request: Request) -> requests.PreparedRequest:
    """As it is: `prepare` would write the URL anew (RULES 2.1)."""
    prepared = requests.PreparedRequest()
    prepared.method, prepared.url, prepared.body = request.method, request.url, request.body or None
    prepared.headers = CaseInsensitiveDict([*request.headers, NOT_CODED])
    prepared.prepare_content_length(prepared.body)
    return prepared


def _fields(response: requests.Response) -> Headers:
    """The header fields, each by itself; requests joins those of one name."""
    found: Any = getattr(response.raw, "headers", None) or response.headers
    return tuple(found.items())


def _chunks(response: requests.Response) -> Iterable[bytes]:
    """The body as it comes, not decoded."""
    chunks: Iterable[bytes] = response.raw.stream(CHUNK, decode_content=False)
    return chunks


def _body(response: requests.Response, most: int) -> bytes:
    if _defects(response):
        raise UnreadableError("the header is broken")
    if hasattr(response.raw, "stream"):
        body, chunks = Body(response.headers.get("content-encoding"), most), _chunks(response)
    else:  # an adapter of the caller's that has no urllib3 beneath
        body, chunks = Body(None, most), response.iter_content(CHUNK)
    for chunk in chunks:
        body.add(chunk)
    return body.whole()


def _defects(response: requests.Response) -> bool:
    """The header is broken somewhere, which http.client takes for its end."""
    message = getattr(getattr(response.raw, "_original_response", None), "msg", None)
    return bool(getattr(message, "defects", ()))


# --- Connections ------------------------------------------------------------------------------------------------------


class _NotConnectedError(Exception):
    """The request has certainly not been sent."""


class _Attempt:
    """One exchange, as its connections see it."""

    def __init__(self, deadline: Deadline) -> None:
        self.deadline = deadline
        self.failed: Exception | None = None
        """Why there is no connection."""
        self.connected = False
        """There was one, on which something may have been sent: adapters of the caller's may try more than once."""


_attempt: ContextVar[_Attempt | None] = ContextVar("mcp_oauth_requests_attempt", default=None)


class _Connection(HTTPConnection):
    """Mixed into urllib3's connections: whatever they wait for ends at the deadline of the exchange."""

    def _new_conn(self) -> socket.socket:
        connection = super()._new_conn()
        try:
            if attempt := _attempt.get():
                attempt.deadline.watch(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def connect(self) -> None:
        """With the handshakes of proxies and TLS: until it is done, nothing of the request is sent."""
        attempt = _attempt.get()
        try:
            super().connect()
        except Exception as error:
            if attempt:
                attempt.failed = error
            raise
        if attempt:
            attempt.connected = True

    def request(self, *args: Any, **kwargs: Any) -> None:
        """On a connection that may be an earlier exchange's."""
        attempt = _attempt.get()
        if attempt and self.sock is not None:
            attempt.connected = True
            attempt.deadline.watch(self.sock)
        super().request(*args, **kwargs)


@lru_cache(maxsize=16)  # http and https, direct and by SOCKS
def _watched(pool: type[HTTPConnectionPool]) -> type[HTTPConnectionPool]:
    """The class of a connection pool, with connections that are watched."""
    connection: Any = pool.ConnectionCls
    if issubclass(connection, _Connection):
        return pool
    watched = type(connection.__name__, (_Connection, connection), {})
    return type(pool.__name__, (pool,), {"ConnectionCls": watched})


@contextmanager
def _watching(adapter: BaseAdapter, proxy: str | None, deadline: Deadline) -> Generator[None]:
    """Within it the adapter's connections are watched, if they are urllib3's. Raises `_NotConnectedError`."""
    if isinstance(adapter, HTTPAdapter):
        pools = _pools(adapter, proxy)
        pools.pool_classes_by_scheme = {scheme: _watched(pool) for scheme, pool in pools.pool_classes_by_scheme.items()}
    attempt = _Attempt(deadline)
    before = _attempt.set(attempt)
    try:
        yield
    except Exception as error:
        if attempt.connected and isinstance(error, ConnectTimeout):  # of a later try
            raise requests.ConnectionError from error
        if attempt.failed is not None and not attempt.connected:
            reason = f"{type(attempt.failed).__name__}: {attempt.failed}{ca_hint(attempt.failed, CA_OPTION)}"
            raise _NotConnectedError(reason) from attempt.failed
        raise
    finally:
        _attempt.reset(before)


def _pools(adapter: HTTPAdapter, proxy: str | None) -> Any:
    """urllib3's pool manager. Raises `_NotConnectedError` for a proxy that cannot be."""
    try:
        # As the adapter itself will spell it.
        spelt = _untyped.utils.prepend_scheme_if_needed(proxy, "http") if proxy else None
        return adapter.proxy_manager_for(spelt) if spelt else adapter.poolmanager
    except Exception as error:  # its text may quote a password
        raise _NotConnectedError(f"the proxy cannot be used: {type(error).__name__}") from None


def _unsent(error: Exception) -> str | None:
    if isinstance(error, _NotConnectedError):
        return str(error)
    return type(error).__name__ if isinstance(error, (ConnectTimeout, InvalidSchema, InvalidURL)) else None


def _bundle(verify: str | os.PathLike[str] | None) -> str | bool:
    """The path of the CA bundle; True: requests' own. Raises `ConfigurationError`."""
    named = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    if verify is not None:
        insist("verify", verify, str | os.PathLike, "the path of a CA bundle: TLS is always verified")
        named = os.fspath(verify)
    if named is None:
        return True
    if not Path(named).exists():
        raise from_failure(failure(Reason.CONFIGURATION, f"verify: there is no CA bundle at {named!r}"))
    return named
