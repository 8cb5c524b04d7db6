"""HTTP/1.1 (RFC 9112) by h11 on anyio's streams, for asyncio and trio.

    errors       what can go wrong: before the request left, or after
    request      a caller's request as h11's
    connection   one stream, one request at a time
    proxy        what a proxy's URL says
    readable     whether a socket has something to read
    dialing      a stream to an origin: TCP, the proxy's tunnel, TLS
    pool         connections kept for the next request

No redirect is followed, nothing decoded, no cookie kept, no deadline set: callers have cancel scopes.
"""

from mcp_oauth.io.http11.connection import Body, Response
from mcp_oauth.io.http11.dialing import Connect, default_context
from mcp_oauth.io.http11.errors import Broken, ExchangeError, NotSent
from mcp_oauth.io.http11.pool import Connections
from mcp_oauth.io.http11.proxy import Proxy, read_proxy
from mcp_oauth.io.http11.request import RequestBody

__all__ = (
    "Body",
    "Broken",
    "Connect",
    "Connections",
    "ExchangeError",
    "NotSent",
    "Proxy",
    "RequestBody",
    "Response",
    "default_context",
    "read_proxy",
)
