"""A caller's request as h11's."""

from __future__ import annotations

from collections.abc import AsyncIterable

import h11

from mcp_oauth.io.http11.errors import NotSent
from mcp_oauth.io.http11.proxy import Proxy
from mcp_oauth.sansio.messages import Headers
from mcp_oauth.sansio.uris import Url

RequestBody = bytes | AsyncIterable[bytes]

# With these an empty body is worth a Content-Length (RFC 9110 section 8.6).
_WITH_BODY = ("POST", "PUT", "PATCH")


def h11_request(
    method: str, origin: str, url: Url, headers: Headers, body: RequestBody, proxy: Proxy | None
) -> h11.Request:
    """The head of a request (RFC 9112 section 3): Host first, the rest in the caller's order, what is missing added.

    A proxy is asked for plain http with the whole URL; for https it only makes the tunnel. Raises `NotSent`.
    """
    target = (url.path or "/") + ("" if url.query is None else f"?{url.query}")
    added = _framing(method, headers, body)
    if proxy is not None and url.scheme == "http":
        target = origin + target
        added += proxy.headers
    if method == "CONNECT":
        raise NotSent("a tunnel is no request: this client makes its own")
    try:
        return h11.Request(method=method, target=target, headers=[*_host_first(origin, headers), *added])
    except (h11.LocalProtocolError, UnicodeEncodeError):  # their text quotes the header
        raise NotSent("the request's method or headers are not what HTTP allows") from None


def _host_first(origin: str, headers: Headers) -> Headers:
    hosts = tuple(header for header in headers if header[0].lower() == "host")
    others = tuple(header for header in headers if header[0].lower() != "host")
    return (*(hosts or (("Host", origin.partition("://")[2]),)), *others)


def _framing(method: str, headers: Headers, body: RequestBody) -> Headers:
    """How long the body is, unless the caller says it. Raises `NotSent` where he says it in two ways."""
    given = {name.lower() for name, _ in headers} & {"content-length", "transfer-encoding"}
    if len(given) > 1:  # one server believes this, and one behind it that (RFC 9112 section 11.2)
        raise NotSent("a request has a content-length or a transfer-encoding, not both")
    if given:
        return ()
    if not isinstance(body, bytes):
        return (("Transfer-Encoding", "chunked"),)
    return (("Content-Length", str(len(body))),) if body or method in _WITH_BODY else ()
