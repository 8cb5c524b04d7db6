"""A Vault as `vault` asks it: one KV version 2 engine, the token it is asked with, and what its refusals mean.

Requests go through hvac's adapter, which knows the headers. Nothing that the server says, and no error of a library,
is quoted: they may hold what nobody should read.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote
from weakref import WeakSet

import msgspec
from msgspec.structs import replace

from mcp_oauth.sansio.messages import read_json
from mcp_oauth.sansio.uris import Place, place, server_url, split
from mcp_oauth.sansio.values import Secret, Value

from .base import (
    NotWritableError,
    StoreBusyError,
    StoreError,
    StoreFullError,
    UnavailableError,
    UnsafePlaceError,
    WrongPasswordError,
)
from .lease import elapsed

CALL_SECONDS = 10.0
"""How long one call waits for answers, whatever number of requests it takes; `keys` has as long for each key.

Longer only for a host's name that is slow to resolve, or an answer that comes in drops.
"""
KEEP_SECONDS = 30.0
"""How long an idle connection is trusted: what stands in between forgets it in a minute or more, and tells nobody."""
POLICY = (
    'path "<mount>/data/<prefix>/*" { capabilities = ["create", "read", "update"] } '
    'path "<mount>/metadata/<prefix>/*" { capabilities = ["create", "update", "list"] }'
)
"""What a token must be allowed."""

_T = TypeVar("_T")


class _Auth(Value, frozen=True, tag=False):
    client_token: Secret
    lease_duration: float
    renewable: bool


class _Lookup(msgspec.Struct, frozen=True):
    ttl: float
    creation_ttl: float
    renewable: bool


class _Mount(msgspec.Struct, frozen=True):
    path: str
    options: dict[str, str] | None = None


class _Token(Value, frozen=True):
    """A token of Vault's. Times in elapsed seconds."""

    shown = ("renew_at", "expires_at", "renewable")

    value: Secret
    renew_at: float = math.inf
    expires_at: float = math.inf
    renewable: bool = False


class Answer(NamedTuple):
    """What a Vault answers."""

    status: int
    body: dict[str, Any]
    """The JSON object; empty where there is none."""
    date: str
    """The server's clock (RFC 9110 section 6.6.1)."""

    @property
    def errors(self) -> str:
        """What the server says. It is looked at, and never shown."""
        return str(self.body.get("errors") or "")

    @property
    def swap_refused(self) -> bool:
        """Another version of the secret is there than the one named for check-and-set."""
        return self.status == 400 and "check-and-set parameter did not match" in self.errors


class Server:
    """A Vault, and the token that it is asked with. Threads and forked children may share one."""

    def __init__(self, url: str, namespace: str, mount: str, policy: str, log_in: LogIn, verify: str | None) -> None:
        """`namespace` may be empty; `policy` is what a token needs; `verify`: a file of CAs, None for the machine's."""
        self.url = url
        self._namespace = namespace
        self._mount = mount
        self._policy = policy
        self._log_in = log_in
        self._verify = verify
        self._token: _Token | None = None
        self._checked = False
        self.begin()
        _living.add(self)

    def begin(self) -> None:
        """Have no connections. There will be one for each request that is under way, kept for later ones."""
        self._idle = deque[tuple[Any, float]]()
        self._mutex = threading.Lock()

    def ask(
        self,
        deadline: float,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> Answer:
        """The answer to a request below the mount: done, nothing there (404), or a check-and-set refused (400).

        Raises `StoreError` for all others. `deadline` in seconds of `time.monotonic`.
        """
        if not self._checked:
            self._check_mount(deadline)
        answer = self._request(deadline, method, path, body, params)
        if answer.swap_refused or (answer.status == 404 and not answer.errors):
            return answer
        if answer.status == 403:
            kind, cure = NotWritableError if method == "post" else StoreError, f"it needs the policy {self._policy}"
            raise kind(f"Vault at {self.url} does not allow this token to {method} {path}; {cure}")
        return self.judged(answer)

    def _check_mount(self, deadline: float) -> None:
        """A KV version 1 engine would take a save, and overwrite whatever a peer saved."""
        answer = self._request(deadline, "get", f"sys/internal/ui/mounts/{self._mount}")
        where = f"{self._mount} in Vault at {self.url}"
        if answer.status == 403:
            cure = f"it needs the policy {self._policy}"
            raise StoreError(f"{where} is not there, or this token may do nothing in it; {cure}")
        about = self.data(self.judged(answer), _Mount)
        if about.path.strip("/") != self._mount:
            raise StoreError(f"{where} is a path in the engine {about.path}; make that the mount_point")
        if (about.options or {}).get("version") != "2":
            cure = f"run: bao kv enable-versioning {self._mount}, or give the mount_point of another engine"
            raise StoreError(f"{where} is no KV engine of version 2, so saves could not be told apart; {cure}")
        self._checked = True

    # The token.

    def _request(self, deadline: float, method: str, path: str, *rest: Mapping[str, Any] | None) -> Answer:
        token = self._current(deadline)
        answer = self.send(deadline, token.value, method, path, *rest)
        other = self._instead_of(token, deadline) if answer.status == 403 else None
        return self.send(deadline, other.value, method, path, *rest) if other else answer

    def _current(self, deadline: float) -> _Token:
        with self._alone(deadline):
            if self._token is None:
                self._token = self._log_in(self, deadline)
            elif elapsed() >= self._token.renew_at:
                self._token = self._renewed(self._token, deadline)
            return self._token

    def _renewed(self, token: _Token, deadline: float) -> _Token:
        since = elapsed()
        if token.renewable:
            answer = self.send(deadline, token.value, "post", "auth/token/renew-self", {})
            if answer.status == 200:
                return _token(self.data(answer, _Auth, "auth"), since)
        try:
            other = self._log_in(self, deadline)
        except WrongPasswordError:
            if since >= token.expires_at:
                raise
            return replace(token, renew_at=token.expires_at, renewable=False)
        return other if other.value != token.value else replace(token, renew_at=math.inf)

    def _instead_of(self, token: _Token, deadline: float) -> _Token | None:
        """Another token than this one, which was refused; None if it is alive, and its policies forbid something."""
        with self._alone(deadline):
            if self._token is not token:
                return self._token
            if self.send(deadline, token.value, "get", "auth/token/lookup-self").status == 200:
                return None
            other = self._log_in(self, deadline)
            if other.value == token.value:
                cure = "it has expired, was revoked, or may do nothing here: give another one"
                raise WrongPasswordError(f"Vault at {self.url} refuses this token; {cure}")
            self._token = other
            return other

    @contextlib.contextmanager
    def _alone(self, deadline: float) -> Generator[None]:
        mutex = self._mutex
        if not mutex.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise self._late()
        try:
            yield
        finally:
            mutex.release()

    # One request.

    def send(
        self,
        deadline: float,
        token: str,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> Answer:
        """The answer, whatever it is. Raises `UnavailableError` if there is none by the deadline."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise self._late()
        try:
            with self._connection() as connection:
                from urllib3 import Timeout  # it comes with hvac

                connection.token = token
                where, limit = f"/v1/{quote(path)}", Timeout(total=left)
                response = connection.request(method, where, json=body, params=params, timeout=limit)
        except (OSError, ValueError) as error:  # those of requests, some of urllib3: they may quote headers and paths
            failure = self._unanswered(error)
        else:
            document = read_json(response.content)
            if document is not None or response.status_code != 200:
                return Answer(response.status_code, document or {}, response.headers.get("Date", ""))
            failure = UnavailableError(f"{self.url} answers as no Vault does; see that the address is right")
        raise failure  # out here, it carries nothing of the error that it stands for

    @contextlib.contextmanager
    def _connection(self) -> Generator[Any]:
        """A connection for one request. It is kept if that was answered."""
        idle = self._idle
        connection = self._kept() or self._connect()
        yield connection
        idle.append((connection, time.monotonic()))

    def _kept(self) -> Any:
        with contextlib.suppress(IndexError):
            connection, since = self._idle.pop()  # the one used last: if it is too old, all are
            if time.monotonic() - since < KEEP_SECONDS:
                return connection
            self._idle.clear()
        return None

    def _connect(self) -> Any:
        try:
            adapters = importlib.import_module("hvac.adapters")
        except ImportError:
            cure = 'pip install "mcp-oauth-sansio[vault]"'
            raise UnavailableError(f"the Vault store needs the package hvac: {cure}") from None
        connection: Any = adapters.RawAdapter(
            self.url,
            namespace=self._namespace or None,
            verify=self._verify or True,
            allow_redirects=False,
            ignore_exceptions=True,
        )
        # A token must not go to a proxy in plain text because HTTP_PROXY is set.
        connection.session.trust_env = self.url.startswith("https:")
        return connection

    def _unanswered(self, error: Exception) -> UnavailableError:
        names = {kind.__name__ for kind in type(error).__mro__}
        if "Timeout" in names:
            return self._late()
        if "SSLError" in names or type(error) is OSError:  # the latter: there is no such file of CAs
            cure = "see that its certificate is in order, or give in `verify` a file with the CA that it comes from"
        else:
            cure = "see that it runs, and that the address is right"
        return UnavailableError(f"Vault at {self.url} cannot be reached ({type(error).__name__}); {cure}")

    def _late(self) -> UnavailableError:
        cure = "it is stopped, overloaded or cut off. What was being saved may be there"
        return UnavailableError(f"Vault at {self.url} did not answer within {CALL_SECONDS:.0f} seconds; {cure}")

    # Its answers.

    def judged(self, answer: Answer) -> Answer:
        """The answer if all went well. Raises `StoreError`."""
        if answer.status in {200, 204}:
            return answer
        for sign, kind, what in _REFUSALS:
            if sign in {answer.status, answer.status // 100} or (isinstance(sign, str) and sign in answer.errors):
                raise kind(f"Vault at {self.url} {what}")
        raise StoreError(f"Vault at {self.url} failed with {answer.status}; its log says why")

    def data(self, answer: Answer, kind: type[_T], member: str = "data") -> _T:
        """What an answer holds. Raises `StoreError` if it is something else."""
        with contextlib.suppress(msgspec.ValidationError):
            return msgspec.convert(answer.body.get(member), kind)
        raise StoreError(f"{self.url} answers as no Vault does; see that the address is right")


_ACTIVE = "give the address of its active node: no token goes where an answer points"
_REFUSALS: tuple[tuple[int | str, type[StoreError], str], ...] = (
    ("too large", StoreFullError, "does not take a value of this size; raise its max_request_size or max_entry_size"),
    (413, StoreFullError, "does not take a value of this size; raise its max_request_size"),
    ("sealed", UnavailableError, "is sealed; run: bao operator unseal"),
    (503, UnavailableError, "is not ready; try again soon"),
    (501, UnavailableError, "is not initialized; run: bao operator init"),
    (502, UnavailableError, "is not reached by the proxy before it; see that it runs"),
    (504, UnavailableError, "is not reached by the proxy before it; see that it runs"),
    (412, UnavailableError, "lags behind its primary; try again soon"),
    (429, StoreBusyError, "is asked too often; try again later, or raise its rate limit quota"),
    (3, UnavailableError, f"redirects to another address; {_ACTIVE}"),
    (404, StoreError, "has no such namespace or engine; see that they are there, and spelled right"),
)
"""A status, its hundred, or a word of the server's; what that is, and the cure."""


LogIn = Callable[[Server, float], _Token]
"""Gets a token by a deadline. Raises `WrongPasswordError` where none is to be had."""


def with_token(token: str | Callable[[], str]) -> LogIn:
    """A token that was given, or one that the application is asked for each time."""
    return partial(_look_up, token)


def with_approle(role_id: str, secret_id: str | None, mount: str) -> LogIn:
    """A token for an AppRole, a new one each time."""
    credentials = {"role_id": role_id} if secret_id is None else {"role_id": role_id, "secret_id": secret_id}
    return partial(_log_in, checked_path("auth_mount", mount), credentials)


def _look_up(token: str | Callable[[], str], server: Server, deadline: float) -> _Token:
    """The token that was given, and how long it lives if it may know that."""
    value = _sound(token if isinstance(token, str) else _asked(token), server.url)
    since = elapsed()
    answer = server.send(deadline, value, "get", "auth/token/lookup-self")
    if answer.status == 403:
        return _Token(value)
    about = server.data(server.judged(answer), _Lookup)
    if not about.renewable:
        return _Token(value)
    end = since + about.ttl
    return _Token(value, end - about.creation_ttl / 3, end, renewable=True)


def _asked(token: Callable[[], str]) -> str:
    try:
        return token()
    except StoreError:
        raise
    except Exception as error:  # the application's own code
        raise StoreError(f"asking for the token of Vault raised {type(error).__name__}") from error


def _sound(token: str, url: str) -> str:
    """A token without the line break of the file that it came from."""
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable():
        raise WrongPasswordError(f"what was given for Vault at {url} is no token: it is empty, or holds odd characters")
    return token


def _log_in(mount: str, credentials: Mapping[str, str], server: Server, deadline: float) -> _Token:
    """A token for an AppRole."""
    since = elapsed()
    answer = server.send(deadline, "", "post", f"auth/{mount}/login", credentials)
    if answer.status in {400, 403}:
        cure = "they are wrong, expired or used up, or AppRoles log in elsewhere (`auth_mount`)"
        raise WrongPasswordError(f"Vault at {server.url} refuses this role_id and secret_id at auth/{mount}; {cure}")
    return _token(server.data(server.judged(answer), _Auth, "auth"), since)


def _token(auth: _Auth, since: float) -> _Token:
    life = auth.lease_duration or math.inf
    return _Token(auth.client_token, since + life * 2 / 3, since + life, auth.renewable)


def checked_url(url: str, allow_http: bool) -> str:
    """The URL of a Vault, made plain. Raises `ValueError`, and `UnsafePlaceError` for http:// to another machine."""
    parts, address = split(url), server_url(url)
    if parts is None or address is None or parts.query is not None or parts.fragment is not None:
        raise ValueError("this is no URL of a Vault; give https://host:8200")
    if parts.scheme == "http" and place(parts) is not Place.LOOPBACK and not allow_http:
        cure = "use https://, or allow_http=True on a network where nobody else listens"
        raise UnsafePlaceError(f"tokens would go to {address} in plain text; {cure}")
    return address.rstrip("/")


def checked_path(what: str, text: str) -> str:
    """A path without slashes at its ends. Raises `ValueError` for one that would lead elsewhere."""
    path = text.strip("/")
    if not path.isascii() or not path.isprintable() or {"", ".", ".."} & set(path.split("/")):
        raise ValueError(f"{what} is a path of plain characters, such as team/grants")
    return path


_living: WeakSet[Server] = WeakSet()


def _begin_again() -> None:
    # Two processes must not talk on one connection; and the mutex may have been held when the fork came.
    for server in _living:
        server.begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_again)
