"""What a proxy's URL says."""

from __future__ import annotations

from base64 import b64encode
from urllib.parse import unquote_to_bytes, urlsplit

from mcp_oauth.io.http11.errors import NotSent
from mcp_oauth.sansio.messages import SecretHeaders
from mcp_oauth.sansio.values import Value

_PORTS = {"http": 80, "https": 443}
_CURE = "give it as http://host:port or https://host:port, with user:password@ before the host if it asks for them"


class Proxy(Value, frozen=True):
    """An HTTP proxy (RFC 9110 section 3.7)."""

    shown = ("scheme", "host", "port")

    scheme: str
    """"http" or "https": how the proxy itself is reached."""
    host: str
    """Without brackets."""
    port: int
    headers: SecretHeaders = ()
    """`Proxy-Authorization`, if the URL has a user."""


def read_proxy(url: str) -> Proxy:
    """The proxy that a URL names; `host:port` means http. Raises `NotSent` for anything that is no http(s) proxy."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port
    except ValueError:  # it would be quoted, password and all
        raise NotSent(f"the proxy's URL is malformed: {_CURE}") from None
    if parts.scheme not in _PORTS or not host:
        raise NotSent(f"the proxy is no HTTP proxy: {_CURE}")
    return Proxy(parts.scheme, host, port or _PORTS[parts.scheme], _authorization(parts.username, parts.password))


def _authorization(user: str | None, password: str | None) -> tuple[tuple[str, str], ...]:
    """Basic credentials (RFC 7617), percent-decoded."""
    if user is None:
        return ()
    pair = unquote_to_bytes(user) + b":" + unquote_to_bytes(password or "")
    return (("Proxy-Authorization", f"Basic {b64encode(pair).decode('ascii')}"),)
