"""A stream to an origin: TCP, the proxy's tunnel if there is one, TLS. Whatever fails here, nothing was sent."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from functools import cache

import anyio
import h11
from anyio.abc import ByteStream
from anyio.streams.tls import TLSAttribute, TLSStream

from mcp_oauth.io.http11.connection import Connection, close
from mcp_oauth.io.http11.errors import STREAM_ERRORS, Broken, NotSent
from mcp_oauth.io.http11.proxy import Proxy
from mcp_oauth.io.sending import ca_hint
from mcp_oauth.sansio.uris import Url

CA_OPTION = "SSL_CERT_FILE=ca.pem, or OAuth(..., ssl_context=ssl.create_default_context(cafile=...))"
Connect = Callable[[str, int], Awaitable[ByteStream]]
"""(host without brackets, port) -> a connected stream."""


@cache  # it reads some hundred certificates; two threads at once read them twice, and no fork finds a lock held
def default_context() -> ssl.SSLContext:
    """What is trusted unless the caller says otherwise: the system's authorities (or SSL_CERT_FILE, SSL_CERT_DIR)."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


async def dial(url: Url, connect: Connect, context: ssl.SSLContext | None, proxy: Proxy | None) -> ByteStream:
    """A stream on which the origin of `url` can be asked, or its proxy for it. Raises `NotSent`."""
    peer = proxy or url
    stream = await _connected(peer.host.strip("[]"), peer.port, connect)
    try:
        if proxy is not None and proxy.scheme == "https":
            stream = await _secured(stream, proxy.host, context)
        if url.scheme == "https":
            if proxy is not None:
                await _tunnel(stream, url, proxy)
            stream = await _secured(stream, url.host, context)
    except BaseException:
        await close(stream)
        raise
    return stream


async def _connected(host: str, port: int, connect: Connect) -> ByteStream:
    try:
        return await connect(host, port)
    except Exception as error:  # also what a `connect` of the caller's raises
        raise NotSent(f"no connection to {host} port {port}: {_cause(error)}") from error


def _cause(error: BaseException) -> str:
    """In the system's words; a caller's own exception by its name alone."""
    beneath = error.__cause__  # of anyio's "all attempts failed": one error, or a group of them
    first = getattr(beneath, "exceptions", (beneath,))[0]
    if isinstance(first, OSError):
        error = first
    if isinstance(error, socket.gaierror):
        return f"the name cannot be resolved ({error.strerror})"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return type(error).__name__


async def _secured(stream: ByteStream, host: str, context: ssl.SSLContext | None) -> ByteStream:
    """TLS over a stream, the server's name checked. Servers close without a closing handshake: none is awaited."""
    name = host.strip("[]").removesuffix(".")
    try:
        secured = await TLSStream.wrap(
            stream, hostname=name, ssl_context=context or default_context(), standard_compatible=False
        )
    except ssl.SSLCertVerificationError as error:
        hint = ca_hint(error, CA_OPTION)
        raise NotSent(f"certificate verify failed for {name}: {error.verify_message}{hint}") from error
    except (*STREAM_ERRORS, anyio.EndOfStream) as error:
        reason = getattr(error, "reason", None) or "the connection was closed"
        raise NotSent(f"TLS handshake failed with {name}: {reason}") from error
    if secured.extra(TLSAttribute.alpn_protocol) not in (None, "http/1.1"):  # noqa: S610 - not Django's
        raise NotSent(f"{name} chose a protocol other than HTTP/1.1: give an SSLContext that offers no other by ALPN")
    return secured


async def _tunnel(stream: ByteStream, url: Url, proxy: Proxy) -> None:
    """Ask the proxy for a tunnel (RFC 9110 section 9.3.6)."""
    target = f"{url.host}:{url.port}"
    what = f"the tunnel to {target} by the proxy {proxy.host} port {proxy.port}"
    connection = Connection(stream)
    request = h11.Request(method="CONNECT", target=target, headers=[("Host", target), *proxy.headers])
    try:
        answer = await connection.exchange(request, b"")
    except Broken as error:
        raise NotSent(f"no {what.removeprefix('the ')}: {error}") from None
    if answer.status_code == 407:
        raise NotSent(f"{what} was refused: it asks for a user and password, which its URL can hold")
    if not 200 <= answer.status_code < 300 or connection.surplus:
        raise NotSent(f"{what} was refused: status {answer.status_code}")
