"""The Vault behind its store: namespaces, engines and policies, outages, where a token may go, and what is told."""

from __future__ import annotations

import base64
import gc
import logging
import os
import secrets
import signal
import ssl
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trustme

from mcp_oauth.store import vault, vault_server
from mcp_oauth.store.base import (
    DamagedError,
    NotWritableError,
    StoreBusyError,
    Stored,
    StoreError,
    StoreFullError,
    UnavailableError,
    UnsafePlaceError,
)
from mcp_oauth.store.lease import elapsed
from mcp_oauth.store.vault import VaultStore
from tests.servers import openbao
from tests.servers.openbao import OpenBao
from tests.servers.redis_server import free_port
from tests.store.vaults import (
    CALLS,
    WRITING,
    Make,
    any_call,
    overwrite,
    place,
    policy,
    put,
    take,
)


@pytest.fixture
def own() -> Iterator[OpenBao]:
    """An OpenBao of the test's own, to be sealed, stopped and ended."""
    with openbao.serving() as server:
        yield server


# Namespaces, engines, policies.


def test_a_namespace_has_its_own_approles_and_engine(bao: OpenBao, make: Make, store: VaultStore, prefix: str) -> None:
    space = f"team-{uuid4().hex}"
    bao.ask("POST", f"sys/namespaces/{space}", {})
    with pytest.raises(StoreError, match=r"secret in Vault at .* is not there"):
        make(namespace=space).load("key")
    bao.ask("POST", "sys/mounts/secret", {"type": "kv", "options": {"version": "2"}}, namespace=space)
    role_id, secret_id = bao.approle(policy(prefix), namespace=space)
    theirs = make(role_id=role_id, secret_id=secret_id, namespace=space)
    put(theirs, "key", b"theirs")
    with take(theirs):
        assert theirs.keys() == ("key",)
    assert store.load("key") is None
    assert make(namespace=f"/{space}/").load("key") == Stored(b"theirs", "r1")
    assert theirs.identity != store.identity


@any_call
def test_a_missing_namespace_is_told(make: Make, call: Callable[[VaultStore], object]) -> None:
    with pytest.raises(StoreError, match="has no such namespace or engine"):
        call(make(namespace="nobodys"))


@any_call
def test_a_key_value_engine_of_version_1_is_refused(
    bao: OpenBao, make: Make, call: Callable[[VaultStore], object]
) -> None:
    mount = f"old-{uuid4().hex}"
    bao.ask("POST", f"sys/mounts/{mount}", {"type": "kv", "options": {"version": "1"}})
    with pytest.raises(StoreError, match=r"is no KV engine of version 2.*enable-versioning"):
        call(make(mount_point=mount))
    assert bao.ask("GET", f"{mount}?list=true") == {}


@pytest.mark.parametrize(
    ("mount", "why"),
    [
        pytest.param("nothing", "is not there, or this token may do nothing in it", id="missing"),
        pytest.param("cubbyhole", "is no KV engine of version 2", id="another-kind"),
        pytest.param("secret/team", "is a path in the engine secret/; make that the mount_point", id="a-path-in-one"),
    ],
)
def test_what_is_no_engine_is_told(make: Make, mount: str, why: str) -> None:
    with pytest.raises(StoreError, match=why):
        make(mount_point=mount).load("key")


def test_an_engine_may_lie_deep(bao: OpenBao, make: Make) -> None:
    mount = f"team/{uuid4().hex}"
    bao.ask("POST", f"sys/mounts/{mount}", {"type": "kv", "options": {"version": "2"}})
    store = make(mount_point=mount, path_prefix="grants of all, 100%")
    put(store, "key", b"value")
    assert store.keys() == ("key",)


def test_an_engine_that_goes_away_is_told(bao: OpenBao, make: Make) -> None:
    mount = uuid4().hex
    bao.ask("POST", f"sys/mounts/{mount}", {"type": "kv", "options": {"version": "2"}})
    store = make(mount_point=mount)
    put(store, "key", b"value")
    bao.ask("DELETE", f"sys/mounts/{mount}")
    for call in CALLS.values():
        with pytest.raises(StoreError, match="has no such namespace or engine"):
            call(store)


def test_the_policy_that_is_told_is_enough(bao: OpenBao, make: Make, prefix: str) -> None:
    store = make(token=bao.token_for(policy(prefix)))
    put(store, "key", b"value")
    with take(store) as lease:
        assert lease.extend()
    assert store.keys() == ("key",)
    overwrite(bao, place(prefix), {"foreign": 1})
    with pytest.raises(DamagedError):
        store.load("key")


READ = 'path "secret/data/<prefix>/*" { capabilities = ["read"] }'
FORBIDDEN: dict[str, tuple[str, type[StoreError], list[str]]] = {
    "other-paths": ('path "secret/data/other/*" { capabilities = ["read"] }', StoreError, list(CALLS)),
    "read-only": (f'{READ} path "secret/metadata/<prefix>/*" {{ capabilities = ["list"] }}', NotWritableError, WRITING),
    "not-listed": (READ, StoreError, ["keys"]),
    "no-metadata": (
        'path "secret/data/<prefix>/*" { capabilities = ["create", "read", "update"] }',
        NotWritableError,
        WRITING,
    ),
}


@pytest.mark.parametrize(
    ("text", "kind", "call"),
    [
        pytest.param(text, kind, CALLS[name], id=f"{case}-{name}")
        for case, (text, kind, names) in FORBIDDEN.items()
        for name in names
    ],
)
def test_what_a_policy_forbids_is_told_with_the_one_that_is_needed(
    bao: OpenBao, make: Make, prefix: str, text: str, kind: type[StoreError], call: Callable[[VaultStore], object]
) -> None:
    put(make(), "key", b"value")
    before = bao.ask("GET", place(prefix))["data"]
    with pytest.raises(kind, match=f"does not allow this token to .*{prefix}.*it needs the policy") as told:
        call(make(token=bao.token_for(policy(prefix, text))))
    assert policy(prefix) in str(told.value)
    assert type(told.value) is kind
    assert bao.ask("GET", place(prefix))["data"] == before


def test_a_token_that_may_do_nothing_in_the_engine_is_told(bao: OpenBao, make: Make, prefix: str) -> None:
    with pytest.raises(StoreError, match="this token may do nothing in it; it needs the policy"):
        make(token=bao.token_for('path "other/*" { capabilities = ["read"] }')).load("key")


# Outages.


def test_a_sealed_vault_is_told_and_used_again_when_it_is_unsealed(own: OpenBao) -> None:
    store = VaultStore(own.url, token=own.token)
    put(store, "key", b"value")
    own.seal()
    for call in CALLS.values():
        for asked in (store, VaultStore(own.url, token=own.token), VaultStore(own.url, role_id="r", secret_id="s")):
            with pytest.raises(UnavailableError, match=f"{own.url} is sealed; run: bao operator unseal"):
                call(asked)
    own.unseal()
    assert store.load("key") == Stored(b"value", "r1")


def test_a_vault_that_hangs_is_waited_for_so_long(monkeypatch: pytest.MonkeyPatch, own: OpenBao) -> None:
    store = VaultStore(own.url, token=own.token)
    put(store, "key", b"value")
    monkeypatch.setattr(vault, "CALL_SECONDS", 0.2)
    os.kill(own.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, own.pid, os.WSTOPPED)  # all of its threads, by then
    try:
        for call in CALLS.values():
            began = elapsed()
            with pytest.raises(UnavailableError, match=r"did not answer within 10 seconds.*may be there"):
                call(store)
            assert 0.2 <= elapsed() - began < 2
    finally:
        os.kill(own.pid, signal.SIGCONT)


def test_a_thread_that_waits_for_anothers_log_in_waits_no_longer(
    monkeypatch: pytest.MonkeyPatch, make: Make, bao: OpenBao
) -> None:
    asked, answer = threading.Event(), threading.Event()

    def slow() -> str:
        asked.set()
        answer.wait(30)
        return bao.token

    store = make(token=slow)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(store.load, "key")
        assert asked.wait(30)
        monkeypatch.setattr(vault, "CALL_SECONDS", 0.05)
        with pytest.raises(UnavailableError, match="did not answer"):
            store.load("key")
        answer.set()
        assert first.result() is None


def test_nothing_is_asked_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    stub = Stub()
    monkeypatch.setattr(vault, "CALL_SECONDS", 0.0)
    with stub.serving() as port, pytest.raises(UnavailableError, match="did not answer"):
        VaultStore(f"http://127.0.0.1:{port}", token="hvs.t").load("key")
    assert stub.requests == []


@any_call
def test_where_nobody_listens_is_told(call: Callable[[VaultStore], object]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(UnavailableError, match=rf"Vault at {url} cannot be reached \(ConnectionError\); see that it"):
        call(VaultStore(url, token="hvs.t"))


@any_call
def test_hvac_that_is_missing_is_told(
    monkeypatch: pytest.MonkeyPatch, make: Make, call: Callable[[VaultStore], object]
) -> None:
    monkeypatch.setitem(sys.modules, "hvac.adapters", None)
    with pytest.raises(UnavailableError, match=r'needs the package hvac: pip install "mcp-oauth-sansio\[vault\]"'):
        call(make())


class Stub:
    """Answers each request alike, and keeps it."""

    def __init__(self) -> None:
        self.status = 200
        self.headers: dict[str, str] = {}
        self.body = b"{}"
        self.requests: list[str] = []

    @contextmanager
    def serving(self, context: ssl.SSLContext | None = None) -> Iterator[int]:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                stub.requests.append(f"{self.requestline}\n{self.headers}")
                self.send_response(stub.status)
                for name, value in {"Content-Length": str(len(stub.body)), **stub.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(stub.body)

            def do_POST(self) -> None:
                self.do_GET()

            def do_CONNECT(self) -> None:
                self.do_GET()

            def log_message(self, *_: object, **__: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            server.daemon_threads = True
            if context is not None:
                server.socket = context.wrap_socket(server.socket, server_side=True)
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            try:
                yield server.server_port
            finally:
                server.shutdown()
                thread.join()


ANSWERS: dict[str, tuple[int, str, type[StoreError], str]] = {
    "proxys-page": (200, "<html>Sign in", UnavailableError, "answers as no Vault does"),
    "something-else": (200, '{"data": {"id": 7}}', StoreError, "answers as no Vault does"),
    "redirect": (307, "", UnavailableError, "redirects to another address; give the address of its active node"),
    "moved": (301, "", UnavailableError, "redirects to another address"),
    "not-understood": (400, '{"errors": ["what?"]}', StoreError, "failed with 400; its log says why"),
    "stale-replica": (412, '{"errors": ["required index state not present"]}', UnavailableError, "lags behind"),
    "too-large": (413, '{"errors": ["http: request body too large"]}', StoreFullError, "value of this size"),
    "rate-limited": (429, '{"errors": ["request path: rate limit quota exceeded"]}', StoreBusyError, "too often"),
    "raft-too-large": (500, '{"errors": ["put failed due to value being too large"]}', StoreFullError, "of this size"),
    "broken": (500, '{"errors": ["internal error"]}', StoreError, "failed with 500; its log says why"),
    "new": (501, '{"errors": ["Vault is not initialized"]}', UnavailableError, "bao operator init"),
    "bad-gateway": (502, "<html>", UnavailableError, "is not reached by the proxy before it"),
    "sealed": (503, '{"errors": ["Vault is sealed"]}', UnavailableError, "bao operator unseal"),
    "unready": (503, "", UnavailableError, "is not ready"),
    "gateway-timeout": (504, "", UnavailableError, "is not reached by the proxy before it"),
}


@pytest.mark.parametrize(("status", "body", "kind", "why"), ANSWERS.values(), ids=ANSWERS)
@any_call
def test_what_a_server_answers_is_told_by_kind(
    status: int, body: str, kind: type[StoreError], why: str, call: Callable[[VaultStore], object]
) -> None:
    stub, elsewhere = Stub(), Stub()
    stub.status, stub.body = status, body.encode()
    with stub.serving() as port, elsewhere.serving() as other:
        stub.headers = {"Location": f"http://127.0.0.1:{other}/v1/"} if status < 400 else {}
        url = f"http://127.0.0.1:{port}"
        with pytest.raises(kind, match=f"{url} {why}|{url} .*{why}") as told:
            call(VaultStore(url, token="hvs.t"))
    assert type(told.value) is kind
    assert elsewhere.requests == [], "a token follows no redirect"


def test_a_real_value_that_is_too_large_is_told(store: VaultStore) -> None:
    with pytest.raises(StoreFullError, match="does not take a value of this size"):
        store.save("key", bytes(30_000_000), revision="r1", expected=None)
    assert store.load("key") is None


@pytest.mark.parametrize(("trusted", "connections"), [(30.0, 1), (0.0, 3)], ids=["kept", "too-old"])
def test_an_idle_connection_is_used_again_while_it_can_be_trusted(
    monkeypatch: pytest.MonkeyPatch, store: VaultStore, trusted: float, connections: int
) -> None:
    store.load("key")
    store._server.begin()
    monkeypatch.setattr(vault_server, "KEEP_SECONDS", trusted)
    connect, made = store._server._connect, list[object]()

    def counting() -> object:
        made.append(connect())
        return made[-1]

    monkeypatch.setattr(store._server, "_connect", counting)
    for _ in range(3):
        store.load("key")
    assert len(made) == connections


def test_a_connection_that_the_server_closed_is_replaced() -> None:
    stub = Stub()
    stub.status, stub.headers = 503, {"Connection": "close"}
    with stub.serving() as port:
        store = VaultStore(f"http://127.0.0.1:{port}", token="hvs.t")
        for _ in range(3):
            with pytest.raises(UnavailableError, match="is not ready"):
                store.load("key")
    assert len(stub.requests) == 3


# Where a token may go.


def test_a_token_on_loopback_goes_to_no_proxy(monkeypatch: pytest.MonkeyPatch, make: Make) -> None:
    proxy = Stub()
    with proxy.serving() as port:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        put(make(), "key", b"value")
    assert proxy.requests == []


def test_a_certificate_is_checked_by_the_cas_that_are_given(tmp_path: Path) -> None:
    ours, theirs, stub = trustme.CA(), trustme.CA(), Stub()
    stub.status = 503
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.issue_cert("127.0.0.1").configure_cert(context)
    for ca, name in ((ours, "ours"), (theirs, "theirs")):
        ca.cert_pem.write_to_path(str(tmp_path / name))
    with stub.serving(context) as port:
        url = f"https://127.0.0.1:{port}"
        with pytest.raises(UnavailableError, match="is not ready"):
            VaultStore(url, token="hvs.t", verify=str(tmp_path / "ours")).load("key")
        for verify in (None, str(tmp_path / "theirs"), str(tmp_path / "missing")):
            with pytest.raises(UnavailableError, match="give in `verify` a file with the CA"):
                VaultStore(url, token="hvs.t", verify=verify).load("key")
    assert len(stub.requests) == 1


@pytest.mark.parametrize("url", ["http://vault.example:8200", "http://10.0.0.7:8200", "http://vault"])
def test_rules_1_3_https_unless_on_loopback_or_asked_for(url: str) -> None:
    with pytest.raises(UnsafePlaceError, match="in plain text; use https://, or allow_http=True"):
        VaultStore(url, token="hvs.t")
    assert VaultStore(url, token="hvs.t", allow_http=True).identity == f"vault:{url}/secret/mcp-oauth"


@pytest.mark.parametrize("url", ["http://127.0.0.1:8200", "http://[::1]:8200", "http://localhost:8200/"])
def test_rules_1_3_http_on_loopback(url: str) -> None:
    VaultStore(url, token="hvs.t")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        pytest.param({"token": None}, "give a token, or a role_id", id="no-credentials"),
        pytest.param({"role_id": "r"}, "give a token, or a role_id", id="both"),
        pytest.param({"token": None, "secret_id": "s"}, "give a token, or a role_id", id="secret-without-role"),
        pytest.param({"url": "vault.example"}, "no URL of a Vault", id="no-scheme"),
        pytest.param({"url": "https://me:hunter2@vault.example"}, "no URL of a Vault", id="userinfo"),
        pytest.param({"url": "https://vault.example?hunter2"}, "no URL of a Vault", id="query"),
        pytest.param({"url": "https://vault.example#hunter2"}, "no URL of a Vault", id="fragment"),
        pytest.param({"mount_point": ""}, "mount_point is a path", id="no-mount"),
        pytest.param({"mount_point": "secret/../sys"}, "mount_point is a path", id="dots"),
        pytest.param({"path_prefix": "/"}, "path_prefix is a path", id="no-prefix"),
        pytest.param({"path_prefix": "a//b"}, "path_prefix is a path", id="an-empty-segment"),
        pytest.param({"path_prefix": "a\nb"}, "path_prefix is a path", id="control"),
        pytest.param({"namespace": "tëam"}, "namespace is a path", id="not-ascii"),
        pytest.param({"token": None, "role_id": "r", "auth_mount": "."}, "auth_mount is a path", id="auth-mount"),
    ],
)
def test_what_cannot_be_is_refused_at_once(arguments: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why) as told:
        VaultStore(**{"url": "https://vault.example", "token": "hvs.t", **arguments})
    assert "hunter2" not in str(told.value)


# Secrecy.


def test_no_secret_is_in_what_is_told_logged_or_shown(
    bao: OpenBao, make: Make, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    role_id, secret_id = bao.approle(policy(prefix, READ))
    token, value, dead = bao.token_for(policy(prefix, READ)), secrets.token_hex(), secrets.token_hex()
    put(make(), "key", value.encode())
    stores = [
        make(token=token),
        make(token=dead),
        make(role_id=role_id, secret_id=secret_id),
        make(role_id=role_id, secret_id=dead),
        VaultStore(f"http://127.0.0.1:{free_port()}", token=token),
    ]
    told = "".join(map(all_that_is_told, stores)) + caplog.text
    for error in ("does not allow this token", "refuses this token", "refuses this role_id", "cannot be reached"):
        assert error in told
    for secret in (token, dead, role_id, secret_id, value, base64.b64encode(value.encode()).decode(), bao.token):
        assert secret not in told


def all_that_is_told(store: VaultStore) -> str:
    """Its errors, with all that hangs on them, and what it and its parts look like."""
    told: list[str] = []
    for call in CALLS.values():
        try:
            call(store)
        except StoreError as error:
            told += [*traceback.format_exception(error), repr(error.__context__)]
    shown = (store, store._server, store._server._token, store._read)
    return "".join([*told, *map(repr, shown)])


def test_an_error_holds_nothing_of_the_request_that_failed() -> None:
    with pytest.raises(UnavailableError) as told:
        VaultStore(f"http://127.0.0.1:{free_port()}", token="hvs.t").load("key")
    assert (told.value.__context__, told.value.__cause__) == (None, None)


def test_a_store_that_is_dropped_leaves_no_connection_open(make: Make) -> None:
    store = make()
    put(store, "key", b"value")
    del store
    gc.collect()  # what was left open would warn, and a warning is an error here
