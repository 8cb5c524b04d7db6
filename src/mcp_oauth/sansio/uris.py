"""URLs: the server's canonical form, the well-known ones, what may be asked, what a browser may be shown.

A URL stays the `str` that it was, byte for byte (RULES 2.1); nothing here hands back a re-encoded one, except
`server_url` and `for_browser`, whose job it is. `split` only looks, and refuses whatever two parsers could read
in two ways: what it accepts has one host, whoever reads it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from urllib.parse import parse_qsl, quote, urlencode, urljoin

from mcp_oauth.sansio.values import Value

_PORTS = {"http": 80, "https": 443}
_LONGEST_HOST = 253
_LONGEST_SHOWN = 200

_URL = re.compile(
    r"""(?P<scheme>[Hh][Tt][Tt][Pp][Ss]?)://
    (?P<host>\[[0-9A-Fa-f:.]+\] | [A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?)
    (?::(?P<port>[1-9][0-9]{0,4}))?
    (?P<path>(?:/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*)?)
    (?:\?(?P<query>[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*))?
    (?:\#(?P<fragment>[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*))?""",
    re.VERBOSE,
)
_REFERENCE = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@%/?#\[\]-]*")
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_USERINFO = re.compile(r"//[^/]*@")
# The ";" is for servers that take "..;x" for ".." (path parameters).
_DOT_SEGMENT = re.compile(r"(?:^|/)(?:\.|%2e){1,2}(?=[/;]|$)", re.IGNORECASE)
# The "25" is for servers that decode twice.
_DISGUISED = re.compile(r"%(?:25)*(?:2e|2f|5c)", re.IGNORECASE)

# The IANA special-purpose registries, kept here because ipaddress.is_global differs between Python releases.
_PRIVATE_V4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/3",
        ),
    )
)
_GLOBAL_V6 = IPv6Network("2000::/3")
_PRIVATE_V6 = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "3fff::/20")))
_NAT64 = IPv6Network("64:ff9b::/96")
_PRIVATE_NAMES = (".local", ".internal", ".home.arpa", ".localdomain")


class Url(Value, frozen=True):
    """The parts of an absolute http(s) URL, looked at, never put together again."""

    shown = ("scheme", "host", "port", "path")

    scheme: str
    """"http" or "https"."""
    host: str
    """Lower-cased; an IPv6 address in its brackets, as it was written."""
    port: int
    """The scheme's default where the URL names none."""
    path: str
    """"" or beginning with a slash; as written."""
    query: str | None = None
    """Without the "?"; None where there is none."""
    fragment: str | None = None
    """Without the "#"; None where there is none."""


class Place(Enum):
    """Whose network a host is in, as far as its name tells."""

    PUBLIC = "public"
    PRIVATE = "private"
    LOOPBACK = "loopback"


def split(url: str) -> Url | None:
    """The parts of a strictly written absolute http(s) URL (RFC 3986), or None for anything else.

    Refused: characters outside RFC 3986 (spaces, controls, backslash, quotation mark, non-ASCII), an incomplete
    percent-escape, userinfo, ports other than 1 to 65535, a host that is no name, IPv4 or IPv6 address (no zone),
    and the odd spellings of IPv4 that some resolvers understand (`127.1`, `0x7f000001`).
    """
    match = _URL.fullmatch(url)
    if match is None or _BAD_PERCENT.search(url):
        return None
    scheme, host = match["scheme"].lower(), match["host"].lower()
    port = int(match["port"] or _PORTS[scheme])
    if port > 0xFFFF or not _is_host(host):
        return None
    return Url(scheme, host, port, match["path"], match["query"], match["fragment"])


def _is_host(host: str) -> bool:
    """Whether everybody reads this host alike (WHATWG URL, "ends in a number")."""
    last_label = host.removesuffix(".").rpartition(".")[2]
    if host.startswith("[") or _NUMBER.fullmatch(last_label):
        return _address(host) is not None
    return len(host) <= _LONGEST_HOST


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return IPv6Address(host[1:-1]) if host.startswith("[") else IPv4Address(host)
    except ValueError:
        return None


def server_url(url: str) -> str | None:
    """The canonical server URL (RULES 2.1), or None for what `split` refuses.

    Scheme and host lower-cased, default port and fragment dropped, path and query byte for byte.
    """
    parts = split(url)
    return None if parts is None else _origin(parts) + parts.path + _question(parts)


def origin(url: str) -> str:
    """`https://host[:port]` without a default port (RFC 6454 section 6.2). ValueError for what `split` refuses."""
    parts = split(url)
    if parts is None:
        raise ValueError(f"not an http(s) URL: {without_query(url)}")
    return _origin(parts)


def _origin(parts: Url) -> str:
    port = "" if parts.port == _PORTS[parts.scheme] else f":{parts.port}"
    return f"{parts.scheme}://{parts.host}{port}"


def _question(parts: Url) -> str:
    return "" if parts.query is None else f"?{parts.query}"


def place(url: Url) -> Place:
    """Whose network the host is in, judged by its spelling alone: no name is resolved.

    The unspecified addresses (`0.0.0.0`, `[::]`) are loopback, which is where a connection to them ends. A name
    without a dot is private: only a local search list can resolve it.
    """
    address = _address(url.host)
    if address is None:
        return _place_of_name(url.host.removesuffix("."))
    if isinstance(address, IPv4Address):
        return _place_of_v4(address)
    return _place_of_v6(address)


def _place_of_name(name: str) -> Place:
    if name == "localhost" or name.endswith(".localhost"):
        return Place.LOOPBACK
    return Place.PRIVATE if "." not in name or name.endswith(_PRIVATE_NAMES) else Place.PUBLIC


def _place_of_v4(address: IPv4Address) -> Place:
    if address.is_loopback or address.is_unspecified:
        return Place.LOOPBACK
    return Place.PRIVATE if any(address in network for network in _PRIVATE_V4) else Place.PUBLIC


def _place_of_v6(address: IPv6Address) -> Place:
    if address.is_loopback or address.is_unspecified:
        return Place.LOOPBACK
    if address.ipv4_mapped:
        return _place_of_v4(address.ipv4_mapped)
    translated = IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else address.sixtofour
    if translated:
        return Place.PUBLIC if _place_of_v4(translated) is Place.PUBLIC else Place.PRIVATE
    reachable = address in _GLOBAL_V6 and not any(address in network for network in _PRIVATE_V6)
    return Place.PUBLIC if reachable else Place.PRIVATE


_REACHABLE = {
    Place.PUBLIC: (Place.PUBLIC,),
    Place.PRIVATE: (Place.PUBLIC, Place.PRIVATE),
    Place.LOOPBACK: (Place.PUBLIC, Place.PRIVATE, Place.LOOPBACK),
}


def refusal(url: str, *, server: str, allow_private: bool = False) -> str | None:
    """Why OAuth traffic for the configured `server` may not touch `url` (RULES 1.3); None: it may.

    A public server must not aim our requests at this machine or its network, nor a private one at this machine.
    `allow_private` lifts that, never the demand for https outside loopback.
    """
    parts = split(url)
    if parts is None:
        return f"{without_query(url)} is not a well-formed http(s) URL"
    where = place(parts)
    if parts.scheme == "http" and where is not Place.LOOPBACK:
        return f"{without_query(url)} is http, which is for loopback only"
    home = split(server)
    reachable = _REACHABLE[place(home) if home else Place.PUBLIC]
    if allow_private or where in reachable:
        return None
    return f"{without_query(url)} is a {where.value} address, out of reach for the server {without_query(server)}"


def without_query(url: str) -> str:
    """Any text made fit for a message: up to the first "?" or "#", no userinfo, printable ASCII, 200 characters."""
    bare = _USERINFO.sub("//", _bare(url), count=1)
    safe = quote(bare, safe="!\"$%&'()*+,-./:;<=>@[\\]^_`{|}~", errors="surrogatepass")
    return safe if len(safe) <= _LONGEST_SHOWN else safe[:_LONGEST_SHOWN] + "..."


def _bare(url: str) -> str:
    return url.partition("#")[0].partition("?")[0]


def same_origin(a: str, b: str) -> bool:
    """Whether both are http(s) URLs of one scheme, host and port (RFC 6454)."""
    one, other = split(a), split(b)
    return one is not None and other is not None and _alike(one, other)


def _alike(one: Url, other: Url) -> bool:
    return (one.scheme, one.host, one.port) == (other.scheme, other.host, other.port)


def covers(resource: str, server: str) -> bool:
    """Whether a metadata document's `resource` speaks for the server URL (RULES 2.2; RFC 9728 section 3.3, widened).

    Same origin, and the server's path or a parent of it on a segment boundary, give or take one trailing slash.
    `%2F` is not a slash. A resource with a query must have the server's; one with a fragment is none; dot segments
    on either side cover nothing.
    """
    named, configured = split(resource), split(server)
    if named is None or configured is None or not _alike(named, configured):
        return False
    if named.fragment is not None or named.query not in (None, configured.query):
        return False
    # The server's path begins with the resource's, so that one look finds the dot segments of both.
    return _beneath(configured.path, named.path) is not None and not _DOT_SEGMENT.search(configured.path)


def _beneath(path: str, parent: str) -> str | None:
    """What `path` adds to `parent` ("" where they are equal up to one trailing slash), or None if it is elsewhere."""
    base = parent.removesuffix("/")
    if path == base:
        return ""
    return path[len(base) :] if path.startswith(f"{base}/") else None


def belongs(url: str, *, server: str) -> bool:
    """Whether the caller's own request to `url` may carry the server's token (RULES 1.1): its origin, safely reached.

    The query is the caller's and not judged: HTTP libraries leave more characters in it than RFC 3986 has.
    """
    return _home(_bare(url), server) is not None


def below(url: str, *, server: str) -> bool:
    """Whether a redirect of the caller's request to `url` may carry the token (RULES 1.1).

    It `belongs`, and its path is the server's, give or take one trailing slash, or below it on a segment boundary,
    with nothing after that boundary that could lead out again (dot segments, encoded dots, slashes, backslashes).
    """
    parts, configured = _home(_bare(url), server), split(server)
    if parts is None or configured is None:
        return False
    rest = _beneath(parts.path, configured.path)
    return rest is not None and not _DOT_SEGMENT.search(rest) and not _DISGUISED.search(rest)


@lru_cache(maxsize=256)  # asked before each of the caller's requests, nearly always the same
def _home(bare: str, server: str) -> Url | None:
    """The parts of a URL without query, if it is of the server's origin and a token may travel there."""
    parts, configured = split(bare), split(server)
    if parts is None or configured is None or not _alike(parts, configured):
        return None
    return parts if parts.scheme == "https" or place(parts) is Place.LOOPBACK else None


def protected_resource_metadata_urls(server: str) -> tuple[str, ...]:
    """Where the metadata of a server may be (RFC 9728 section 3.1): its path and query inserted, then the root.

    One where the two are the same; none for what `split` refuses.
    """
    parts = split(server)
    if parts is None:
        return ()
    root = f"{_origin(parts)}/.well-known/oauth-protected-resource"
    path = "" if parts.path == "/" else parts.path
    return tuple(dict.fromkeys((root + path + _question(parts), root)))


def authorization_server_metadata_urls(issuer: str) -> tuple[str, ...]:
    """Where the metadata of an issuer may be, in the MCP specification's order (RFC 8414 sections 3.1 and 5).

    The slash that ends the issuer's path is left out. None for what `split` refuses or has a query or fragment
    (RULES 2.5).
    """
    parts = split(issuer)
    if parts is None or (parts.query, parts.fragment) != (None, None):
        return ()
    base, path = _origin(parts), parts.path.removesuffix("/")
    inserted = (
        f"{base}/.well-known/oauth-authorization-server{path}",
        f"{base}/.well-known/openid-configuration{path}",
    )
    return (*inserted, f"{base}{path}/.well-known/openid-configuration") if path else inserted


def redirect_target(asked: str, location: str) -> str | None:
    """Where a Location leads (RFC 3986 section 5), less its fragment; None if to another origin (RULES 1.4)."""
    if not _REFERENCE.fullmatch(location):
        return None
    try:
        target = urljoin(asked, location).partition("#")[0]
    except ValueError:  # unbalanced brackets
        return None
    return target if same_origin(asked, target) else None


def for_browser(url: str) -> str | None:
    """The URL put together anew for `webbrowser`, or None if it must not get there (RULES 6.3).

    Besides what `split` refuses: quotes, and the `%action` that `webbrowser` would replace in its own command line
    (CVE-2025-6514, CVE-2026-4519, CVE-2026-4786).
    """
    parts = split(url)
    if parts is None or "'" in url or "%action" in url.lower():
        return None
    fragment = "" if parts.fragment is None else f"#{parts.fragment}"
    return _origin(parts) + (parts.path or "/") + _question(parts) + fragment


def with_query(url: str, params: Iterable[tuple[str, str]]) -> str:
    """The URL with form-encoded parameters added, its own query kept byte for byte (RFC 6749 section 3.1)."""
    added = urlencode(list(params))
    if not added:
        return url
    before, hash_sign, fragment = url.partition("#")
    base, _, query = before.partition("?")
    glue = "&" if query and not query.endswith("&") else ""
    return f"{base}?{query}{glue}{added}{hash_sign}{fragment}"


def query_params(url: str) -> list[tuple[str, str]]:
    """The decoded parameters of a URL, or of a bare query with or without its "?", in order; blank values kept.

    For what people paste, too: it never raises, and what is not UTF-8 is replaced.
    """
    text = url.strip().partition("#")[0]
    before, mark, after = text.partition("?")
    if _SCHEME.match(text) or (mark and "=" not in before):
        text = after
    return parse_qsl(text, keep_blank_values=True, errors="replace")
