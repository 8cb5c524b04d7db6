"""The HTTP/1.1 client: the way to a server. Whatever fails on it, the server has not seen the request (RULES 4.9)."""

from __future__ import annotations

import base64
import os
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream

from mcp_oauth.io.http11 import Broken, NotSent, default_context, read_proxy
from tests.io.wires import EACH_LOOP, OK, Got, Peer, Trust, answering, ask, staying, trust, tunnelling, wire

CANARY = "CANARY"


def has_ipv6() -> bool:
    with suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


LOOPBACKS = ("127.0.0.1", "::1") if has_ipv6() else ("127.0.0.1",)


@pytest.fixture(scope="module")
def ours() -> Trust:
    return trust("127.0.0.1", "::1", "localhost", "as.example")


def there(port: int) -> Callable[[str, int], Any]:
    """Whatever name is asked for, it is on this port of loopback."""

    async def connect(host: str, _: int) -> ByteStream:
        return await anyio.connect_tcp("127.0.0.1", port)

    return connect


def resolving(*addresses: str) -> Callable[..., list[Any]]:
    """In place of `socket.getaddrinfo`: every name has these."""

    def resolve(name: object, port: int, *_: Any, **__: Any) -> list[Any]:
        families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in addresses]
        return [
            (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port))
            for family, address in zip(families, addresses, strict=True)
        ]

    return resolve


def raising(error: Exception) -> Callable[[str, int], Any]:
    async def connect(host: str, port: int) -> ByteStream:
        raise error

    return connect


# --- TCP --------------------------------------------------------------------------------------------------------------


@EACH_LOOP
@pytest.mark.parametrize("host", LOOPBACKS)
def test_IPv4_and_IPv6_are_reached_and_named_in_Host(backend: str, host: str) -> None:
    seen: list[bytes] = []

    def script(peer: Peer) -> None:
        seen.append(peer.head())
        peer.say(OK)

    with wire(script, host=host) as server:
        answer = ask(backend, "GET", server.origin)
    assert isinstance(answer, Got)
    assert f"\r\nHost: {server.origin.removeprefix('http://')}\r\n".encode() in seen[0]


@EACH_LOOP
@pytest.mark.parametrize("host", LOOPBACKS)
def test_a_name_leads_to_whichever_of_its_addresses_listens(
    backend: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with wire(staying(OK), host=host) as server, monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", resolving(*LOOPBACKS))
        answer = ask(backend, "GET", f"http://as.example:{server.port}/")
    assert isinstance(answer, Got), answer


@EACH_LOOP
@pytest.mark.parametrize("host", LOOPBACKS)
def test_a_refused_connection(backend: str, host: str) -> None:
    with wire(staying(OK), host=host) as closed:
        pass
    error = ask(backend, "POST", f"{closed.origin}/?CANARY", (("a", CANARY),), b"CANARY")
    assert type(error) is NotSent
    assert str(error) == f"no connection to {host} port {closed.port}: Connection refused"


@EACH_LOOP
def test_several_addresses_that_refuse(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with wire(staying(OK)) as closed:
        pass
    with monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", resolving("127.0.0.1", "127.0.0.2"))
        error = ask(backend, "GET", f"http://as.example:{closed.port}")
    assert str(error) == f"no connection to as.example port {closed.port}: Connection refused"


@EACH_LOOP
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "the name cannot be resolved (Name or servi"),
        (OSError(113, "in other words"), "No route to host"),
        (TimeoutError(), "TimeoutError"),
        (RuntimeError(CANARY), "RuntimeError"),
    ],
    ids=["unknown-name", "system", "timeout", "the-callers-own"],
)
def test_a_connection_that_cannot_be_made(backend: str, error: Exception, reason: str) -> None:
    failed = ask(backend, "GET", "http://as.example", connect=raising(error))
    assert type(failed) is NotSent
    assert str(failed).startswith(f"no connection to as.example port 80: {reason}")
    assert CANARY not in str(failed)


@EACH_LOOP
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_way_to_a_server_has_a_limit_of_its_own(backend: str, scheme: str) -> None:
    async def hanging(host: str, port: int) -> ByteStream:
        await anyio.sleep_forever()
        raise AssertionError

    with wire(Peer.rest) as silent:
        connect = hanging if scheme == "http" else there(silent.port)
        error = ask(backend, "GET", f"{scheme}://as.example", connect_seconds=0.05, connect=connect)
    assert type(error) is NotSent
    assert str(error).endswith("within 0.05 seconds")


@EACH_LOOP
def test_the_limit_of_the_way_is_not_the_answers(backend: str) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.sock.settimeout(0.5)
        with suppress(TimeoutError):
            peer.sock.recv(1)
        peer.say(OK)

    with wire(script) as server:
        assert isinstance(ask(backend, "GET", server.origin, connect_seconds=0.25), Got)


# --- TLS --------------------------------------------------------------------------------------------------------------


@EACH_LOOP
@pytest.mark.parametrize("host", LOOPBACKS)
def test_FN_57_a_private_authority_is_trusted_if_it_is_given(backend: str, host: str, ours: Trust) -> None:
    with wire(staying(OK), tls=ours.server, host=host) as server:
        answer = ask(backend, "GET", server.origin, ssl_context=ours.client)
    assert isinstance(answer, Got), answer


@EACH_LOOP
@pytest.mark.parametrize("name", ["as.example", "as.example."])
def test_the_certificate_is_for_the_name_in_the_url(backend: str, name: str, ours: Trust) -> None:
    with wire(staying(OK), tls=ours.server) as server:
        answer = ask(backend, "GET", f"https://{name}/", ssl_context=ours.client, connect=there(server.port))
    assert isinstance(answer, Got), answer


@EACH_LOOP
@pytest.mark.parametrize(
    ("host", "trusted", "reasons"),
    [
        ("as.example", False, ("certificate verify failed for as.example: ", "create_default_context(cafile=")),
        ("evil.example", True, ("certificate verify failed for evil.example: Hostname mismatch",)),
        ("127.0.0.2", True, ("certificate verify failed for 127.0.0.2: IP address mismatch",)),
    ],
    ids=["untrusted", "another-name", "another-address"],
)
def test_RULES_4_9_a_certificate_that_is_not_trusted(
    backend: str, host: str, trusted: bool, reasons: tuple[str, ...], ours: Trust
) -> None:
    context = ours.client if trusted else None
    with wire(Peer.rest, tls=ours.server) as server:
        error = ask(backend, "POST", f"https://{host}/?CANARY", ssl_context=context, connect=there(server.port))
    assert type(error) is NotSent
    assert all(reason in str(error) for reason in reasons)
    assert CANARY not in str(error)


@EACH_LOOP
@pytest.mark.parametrize(
    "greeting", [b"", b"HTTP/1.1 400 CANARY\r\n\r\n", b"\x15\x03\x03\x00\x02\x02\x28"], ids=["cut", "plain", "alert"]
)
def test_RULES_4_9_a_handshake_that_fails(backend: str, greeting: bytes) -> None:
    with wire(lambda peer: peer.say(greeting)) as server:
        error = ask(backend, "POST", server.origin.replace("http:", "https:"))
    assert type(error) is NotSent
    assert str(error).startswith("TLS handshake failed with 127.0.0.1: ")
    assert CANARY not in str(error)


@EACH_LOOP
def test_a_context_that_offers_HTTP_2_is_refused_where_the_server_takes_it(backend: str) -> None:
    both = trust("127.0.0.1")
    for context in both:
        context.set_alpn_protocols(["h2", "http/1.1"])
    with wire(Peer.rest, tls=both.server) as server:
        error = ask(backend, "GET", server.origin, ssl_context=both.client)
    assert type(error) is NotSent
    assert "ALPN" in str(error)


@EACH_LOOP
def test_RFC9112_9_8_an_answer_may_end_without_a_closing_handshake(backend: str, ours: Trust) -> None:
    with wire(answering(b"HTTP/1.1 200 OK\r\n\r\nok"), tls=ours.server) as server:
        answer = ask(backend, "GET", server.origin, ssl_context=ours.client)
    assert isinstance(answer, Got)
    assert answer.body == b"ok"


@EACH_LOOP
def test_a_certificate_that_the_server_demands_is_missed_after_the_handshake(backend: str) -> None:
    """With TLS 1.3 the client is done by then, and may have sent its request."""
    strict = trust("127.0.0.1")
    strict.server.verify_mode = ssl.CERT_REQUIRED
    with wire(Peer.rest, tls=strict.server) as server:
        error = ask(backend, "GET", server.origin, ssl_context=strict.client)
    assert type(error) is Broken


@EACH_LOOP
def test_RULES_4_9_an_answer_that_is_no_TLS_any_more(backend: str, ours: Trust) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        os.write(peer.sock.fileno(), b"HTTP/1.1 200 CANARY\r\n\r\n")  # beneath TLS
        peer.rest()

    with wire(script, tls=ours.server) as server:
        error = ask(backend, "GET", server.origin, ssl_context=ours.client)
    assert type(error) is Broken
    assert str(error).startswith("TLS failed: ")
    assert CANARY not in str(error)


def test_the_default_context_is_made_once_and_verifies() -> None:
    context = default_context()
    assert context is default_context()
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


# --- Proxies ----------------------------------------------------------------------------------------------------------

USER = "alice:CANARY%20word@"
BASIC = b"Basic " + base64.b64encode(b"alice:CANARY word")


@EACH_LOOP
@pytest.mark.parametrize("secured", [False, True], ids=["http-proxy", "https-proxy"])
@pytest.mark.parametrize("user", ["", USER], ids=["anonymous", "RFC7617"])
def test_RFC9110_9_3_6_https_goes_through_a_tunnel(backend: str, secured: bool, user: str, ours: Trust) -> None:
    heads: list[bytes] = []
    seen: list[bytes] = []

    def script(peer: Peer) -> None:
        seen.append(peer.head())
        peer.say(OK)

    with (
        wire(script, tls=ours.server) as server,
        wire(tunnelling(heads, server.port), tls=ours.server if secured else None) as proxy,
    ):
        url = proxy.origin.replace("://", f"://{user}")
        answer = ask(backend, "GET", "https://as.example/a", ssl_context=ours.client, proxy=url)
    assert isinstance(answer, Got), answer
    authorization = b"Proxy-Authorization: " + BASIC + b"\r\n" if user else b""
    assert heads == [b"CONNECT as.example:443 HTTP/1.1\r\nHost: as.example:443\r\n" + authorization + b"\r\n"]
    assert seen == [b"GET /a HTTP/1.1\r\nHost: as.example\r\n\r\n"]


@EACH_LOOP
def test_RFC9112_3_2_2_http_is_asked_of_the_proxy_with_the_whole_url(backend: str) -> None:
    seen: list[bytes] = []

    def script(peer: Peer) -> None:
        seen.append(peer.head())
        peer.say(OK)

    with wire(script) as proxy:
        url = proxy.origin.replace("://", f"://{USER}")
        answer = ask(backend, "GET", "http://as.example:81/a?b", (("x", "y"),), proxy=url)
    assert isinstance(answer, Got)
    assert seen == [
        b"GET http://as.example:81/a?b HTTP/1.1\r\nHost: as.example:81\r\nx: y\r\nProxy-Authorization: "
        + BASIC
        + b"\r\n\r\n"
    ]


@EACH_LOOP
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 407 CANARY\r\ncontent-length: 6\r\n\r\nCANARY", "was refused: it asks for a user and password"),
        (b"HTTP/1.1 502 CANARY\r\ncontent-length: 0\r\n\r\n", "was refused: status 502"),
        (b"HTTP/1.1 302 Found\r\nlocation: CANARY\r\ncontent-length: 0\r\n\r\n", "was refused: status 302"),
        (b"HTTP/1.1 200 OK\r\n\r\nCANARY", "was refused: status 200"),
        (b"", "the server closed the connection without an answer"),
        (b"CANARY\r\n\r\n", "the answer is not HTTP/1.1"),
    ],
    ids=["407", "502", "redirect", "speaks-first", "cut", "not-http"],
)
def test_RULES_4_9_a_tunnel_that_the_proxy_refuses(backend: str, answer: bytes, reason: str) -> None:
    with wire(answering(answer)) as proxy:
        url = proxy.origin.replace("://", f"://{USER}")
        error = ask(backend, "POST", "https://as.example/?CANARY", proxy=url)
    assert type(error) is NotSent
    assert f"tunnel to as.example:443 by the proxy 127.0.0.1 port {proxy.port}" in str(error)
    assert reason in str(error)
    assert CANARY not in str(error)


@EACH_LOOP
@pytest.mark.parametrize(
    "url",
    ["socks5://h:1", "http://", "http://u:CANARY@h:port", "http://[CANARY", "ftp://u:CANARY@h"],
    ids=["socks", "no-host", "no-port", "bracket", "ftp"],
)
def test_a_proxy_that_cannot_be(backend: str, url: str) -> None:
    error = ask(backend, "GET", "https://as.example", proxy=url)
    assert type(error) is NotSent
    assert "give it as http://host:port" in str(error)
    assert CANARY not in str(error)


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("h", ("http", "h", 80)),
        ("h:3128", ("http", "h", 3128)),
        ("http://h", ("http", "h", 80)),
        ("HTTPS://H", ("https", "h", 443)),
        ("https://[::1]:8443/", ("https", "::1", 8443)),
    ],
)
def test_a_proxys_url(url: str, parts: tuple[str, str, int]) -> None:
    proxy = read_proxy(url)
    assert (proxy.scheme, proxy.host, proxy.port, proxy.headers) == (*parts, ())


def test_a_proxy_shows_no_password() -> None:
    proxy = read_proxy(f"http://{USER}h")
    assert proxy.headers == (("Proxy-Authorization", BASIC.decode()),)
    assert "Basic" not in repr(proxy)


@EACH_LOOP
def test_RULES_1_3_the_environments_proxy_gets_https_only(
    backend: str, monkeypatch: pytest.MonkeyPatch, ours: Trust
) -> None:
    heads: list[bytes] = []
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with (
        wire(staying(OK)) as plain,
        wire(staying(OK), tls=ours.server) as server,
        wire(tunnelling(heads, server.port)) as proxy,
    ):
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
            monkeypatch.setenv(name, proxy.origin)
        direct = ask(backend, "GET", plain.origin)
        through = ask(backend, "GET", "https://as.example", ssl_context=ours.client)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        excepted = ask(backend, "GET", server.origin, ssl_context=ours.client)
    assert all(isinstance(answer, Got) for answer in (direct, through, excepted))
    assert [head.split()[1] for head in heads] == [b"as.example:443"]
