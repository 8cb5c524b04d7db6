"""An MCP server and its authorization server as a function of requests, and real loopback servers to run it on."""

from __future__ import annotations

import base64
import hashlib
import json
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlencode, urlsplit

from mcp_oauth.sansio.grant import Grant, GrantRecord, Registration, decode, encode, grant_key
from mcp_oauth.store.base import Store

PATIENCE = 20.0  # seconds, after which something hangs


class Seen(NamedTuple):
    """One request, as it arrived."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return urlsplit(self.url).path

    @property
    def token(self) -> str | None:
        return self.headers.get("authorization")


class Reply(NamedTuple):
    """One answer."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    stream: Generator[bytes] | None = None
    """From a real server, instead of the body, while the peer stays: in chunks, or of the length in the headers."""


Handler = Callable[[Seen], Reply]


def document(value: Any, status: int = 200, *headers: tuple[str, str]) -> Reply:
    return Reply(status, (("content-type", "application/json"), *headers), json.dumps(value).encode())


class World:
    """One MCP server at `/mcp` and its authorization server, whose refresh tokens rotate and are never forgiven."""

    def __init__(self, origin: str = "https://mcp.example", *, lifetime: int = 3600) -> None:
        self.origin, self.lifetime = origin, lifetime
        self.seen: list[Seen] = []
        self.valid: set[str] = set()
        self.refresh_token: str | None = None
        self.scopes: tuple[str, ...] = ()
        self.requested = ""
        self.refreshes = self.logins = self.reuses = 0
        self.before: Callable[[str], object] = lambda stage: None
        """Called on arrival of each OAuth request, by the last part of its path, and of a login, as `login`."""
        self._numbers = count(1)
        self._codes: dict[str, str] = {}
        self._mutex = threading.Lock()

    @property
    def url(self) -> str:
        return f"{self.origin}/mcp"

    def at(self, path: str) -> list[Seen]:
        """The requests to a path."""
        return [seen for seen in self.seen if seen.path == path]

    def __call__(self, seen: Seen) -> Reply:
        with self._mutex:
            self.seen.append(seen)
        if seen.path.startswith("/mcp"):
            return self.mcp(seen)
        stage = seen.path.rsplit("/", 1)[-1]
        self.before(stage)
        answers: dict[str, Handler] = {
            "mcp": self._resource,
            "oauth-protected-resource": self._resource,
            "register": self._register,
        }
        answers |= {"oauth-authorization-server": self._issuer, "token": self._token, "revoke": lambda _: Reply(200)}
        with self._mutex:
            return answers[stage](seen) if stage in answers else Reply(404)

    def mcp(self, seen: Seen) -> Reply:
        if seen.token is None or seen.token.removeprefix("Bearer ") not in self.valid:
            metadata = f"{self.origin}/.well-known/oauth-protected-resource/mcp"
            return Reply(401, (("www-authenticate", f'Bearer resource_metadata="{metadata}"'),), b"who?")
        if set(self.scopes) > set(self.requested.split()):
            return Reply(
                403, (("www-authenticate", f'Bearer error="insufficient_scope", scope="{" ".join(self.scopes)}"'),)
            )
        return document({"token": seen.token, "body": seen.body.decode(errors="replace"), "path": seen.path})

    def login(self, url: str) -> str:
        """Play the person and the browser: an authorization URL in, the redirect URL out."""
        self.before("login")
        asked = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        code = f"CANARY-code-{next(self._numbers)}"
        self._codes[code] = asked["code_challenge"]
        self.requested = asked.get("scope", "")
        self.logins += 1
        answer = {"code": code, "state": asked["state"], "iss": self.origin}
        return f"{asked['redirect_uri']}?{urlencode(answer)}"

    def _resource(self, _: Seen) -> Reply:
        return document({"resource": self.url, "authorization_servers": [self.origin]})

    def _issuer(self, _: Seen) -> Reply:
        endpoints = {"authorization": "authorize", "token": "token", "registration": "register", "revocation": "revoke"}
        metadata: dict[str, Any] = {f"{name}_endpoint": f"{self.origin}/{path}" for name, path in endpoints.items()}
        metadata |= {"issuer": self.origin, "authorization_response_iss_parameter_supported": True}
        metadata |= {"code_challenge_methods_supported": ["S256"], "response_types_supported": ["code"]}
        return document(metadata)

    def _register(self, seen: Seen) -> Reply:
        asked = json.loads(seen.body)
        return document({"client_id": "client", "redirect_uris": asked["redirect_uris"]}, 201)

    def _token(self, seen: Seen) -> Reply:
        form = {name: values[0] for name, values in parse_qs(seen.body.decode()).items()}
        if form["grant_type"] == "refresh_token":
            if form["refresh_token"] != self.refresh_token:
                self.reuses += 1
                return document({"error": "invalid_grant"}, 400)
            self.refreshes += 1
        else:
            challenge = base64.urlsafe_b64encode(hashlib.sha256(form["code_verifier"].encode()).digest())
            assert self._codes.pop(form["code"]) == challenge.rstrip(b"=").decode()
        return self.issue()

    def issue(self) -> Reply:
        number = next(self._numbers)
        access, self.refresh_token = f"CANARY-access-{number}", f"CANARY-refresh-{number}"
        self.valid.add(access)
        return document(
            {
                "access_token": access,
                "refresh_token": self.refresh_token,
                "token_type": "Bearer",
                "expires_in": self.lifetime,
            }
        )


def key_of(world: World, account: str = "") -> str:
    return grant_key(world.url, account)


def put_grant(store: Store, world: World, *, expires_in: float = -10.0, valid: bool = True) -> None:
    """Have a grant in the store as an earlier process left it; by default its access token has expired."""
    tokens = json.loads(world.issue().body)
    if not valid:
        world.valid.clear()
    now = time.time()
    grant = Grant(
        world.origin,
        Registration(world.origin, "client", "dcr", "none"),
        f"{world.origin}/token",
        tokens["access_token"],
        now - 3600,
        "lineage",
        expires_at=now + expires_in,
        refresh_token=tokens["refresh_token"],
        resource=world.url,
        revocation_endpoint=f"{world.origin}/revoke",
    )
    record = GrantRecord("first", world.url, "", (grant,), world.origin)
    store.save(key_of(world), encode(record), revision="first", expected=None)


def stored(store: Store, world: World) -> GrantRecord | None:
    found = store.load(key_of(world))
    record = decode(found.value) if found else None
    assert record is None or isinstance(record, GrantRecord)
    return record


def stored_refresh_token(store: Store, world: World) -> str | None:
    record = stored(store, world)
    return record.grants[0].refresh_token if record and record.grants else None


# --- Real servers -----------------------------------------------------------------------------------------------------


class _Http(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.headers.get("transfer-encoding") == "chunked":
            body = b"".join(iter(self._chunk, b""))
        headers = {name.lower(): ", ".join(self.headers.get_all(name, [])) for name in self.headers}
        reply = self.server.handler(Seen(self.command, f"{self.server.origin}{self.path}", headers, body))
        self.send_response_only(reply.status)
        framing = ("content-length", str(len(reply.body)))
        if reply.stream is not None:
            framing = ("transfer-encoding", "chunked")
        names = {name for name, _ in reply.headers}
        for name, value in (*reply.headers, *([] if "content-length" in names else [framing])):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body)
        if reply.stream is not None:
            self._stream(reply.stream, chunked="content-length" not in names)

    def _chunk(self) -> bytes:
        data = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return data

    def _stream(self, stream: Generator[bytes], *, chunked: bool) -> None:
        self.close_connection = True
        with closing(stream):
            for chunk in stream:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk) if chunked else chunk)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: Any) -> None:
        pass


for _method in ("GET", "POST", "CONNECT"):
    setattr(_Http, f"do_{_method}", _Http._answer)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    origin: str
    handler: Handler

    def handle_error(self, *_: Any) -> None:
        pass  # a client that goes away, or does not like our certificate


@contextmanager
def serving(
    handler: Handler | None = None, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> Iterator[Any]:
    """A real server on a free port of loopback: `origin`, and a `handler` that may be set later."""
    with _Server((host, 0), _Http) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        server.origin = f"{'https' if tls else 'http'}://{host}:{server.server_port}"
        server.handler = handler or (lambda seen: Reply(404))
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def world_on_loopback(tls: ssl.SSLContext | None = None) -> Generator[World]:
    with serving(tls=tls) as server:
        server.handler = world = World(server.origin)
        yield world


@contextmanager
def raw(answer: Callable[[socket.socket], object], *, listen: bool = True) -> Iterator[str]:
    """A server that hands each connection, its request read, to `answer`, whatever comes of it; yields the origin.

    `listen=False`: it reads nothing.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads: list[threading.Thread] = []

        def serve_one(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                while listen and b"\r\n\r\n" not in connection.recv(65536, socket.MSG_PEEK):
                    pass
                if listen:
                    connection.recv(65536)
                answer(connection)

        def serve() -> None:
            with suppress(OSError):
                while True:
                    threads.append(threading.Thread(target=serve_one, args=(listener.accept()[0],)))
                    threads[-1].start()

        accepting = threading.Thread(target=serve)
        accepting.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for thread in threads:
                thread.join()


def answering(*parts: bytes) -> Any:
    """A server that sends this."""

    def answer(connection: socket.socket) -> None:
        for part in parts:
            connection.sendall(part)

    return raw(answer)


def dripping(head: bytes, drop: bytes, *, listen: bool = True, gone: threading.Event | None = None) -> Any:
    """A server that sends the head, then a drop every 10 ms until the peer goes away."""

    def answer(connection: socket.socket) -> None:
        try:
            connection.sendall(head)
            while not _went_away(connection):
                connection.sendall(drop)
        finally:
            if gone is not None:
                gone.set()

    return raw(answer, listen=listen)


def _went_away(connection: socket.socket) -> bool:
    """Within 10 ms; what it says meanwhile is not listened to."""
    return bool(select.select([connection], [], [], 0.01)[0]) and not connection.recv(65536)


class Tunnel(NamedTuple):
    """A proxy that knows CONNECT."""

    origin: str
    asked: list[str]


@contextmanager
def tunnel() -> Iterator[Tunnel]:
    """A proxy, with what it was asked for."""
    asked: list[str] = []

    def answer(connection: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += connection.recv(65536)
        target = request.split()[1].decode()
        asked.append(f"{request.split()[0].decode()} {target}")
        host, _, port = target.rpartition(":")
        with socket.create_connection((host, int(port))) as server:
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            _forward(connection, server)

    with raw(answer, listen=False) as origin:
        yield Tunnel(origin, asked)


def _forward(*ends: socket.socket) -> None:
    """Until one of the two is done."""
    while True:
        for end in select.select(ends, [], [])[0]:
            if not (data := end.recv(65536)):
                return
            ends[end is ends[0]].sendall(data)
