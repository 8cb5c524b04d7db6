"""HTTP messages as values, and the one place where a peer's bytes become JSON or a form."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, cast
from urllib.parse import parse_qsl, urlencode

import msgspec
from msgspec import Meta

from mcp_oauth.sansio.values import SecretBytes, Value

Headers = tuple[tuple[str, str], ...]
SecretHeaders = Annotated[Headers, Meta(extra={"secret": True})]
"""Of a message on its way: `Authorization`, `Set-Cookie`, a `Location` with a code."""

USER_AGENT = "mcp-oauth"
"""Web application firewalls refuse requests without one (FN 24)."""

MAX_BODY = 1 << 20
"""Bytes of a document or token answer that are read; the largest real ones have about 20 kB."""

DEADLINE = 10.0
"""Seconds that one exchange may take in all (RULES 4.9)."""

_LARGEST = 1e15
"""Where numbers are cut off, so that arithmetic with them stays finite and exact; 30 million years of seconds."""


class Request(Value, frozen=True):
    """One HTTP request. Its headers and body may carry credentials; its query may carry a code."""

    shown = ("method", "url")

    method: Literal["GET", "POST", "DELETE"]
    url: str
    headers: SecretHeaders = ()
    body: SecretBytes = b""


class Response(Value, frozen=True):
    """One HTTP answer, its body read up to the request's limit."""

    shown = ("status",)

    status: int
    headers: SecretHeaders = ()
    body: SecretBytes = b""


def header_values(headers: Iterable[tuple[str, str]], name: str) -> tuple[str, ...]:
    """All values of the header field `name` (lower-case), in order (RFC 9110 section 5.3)."""
    return tuple(value for key, value in headers if key.lower() == name)


def header(headers: Iterable[tuple[str, str]], name: str) -> str | None:
    """The first value of the header field `name` (lower-case)."""
    return next(iter(header_values(headers, name)), None)


def get(url: str) -> Request:
    """A request for a metadata document."""
    return Request("GET", url, (("accept", "application/json"), ("user-agent", USER_AGENT)))


def post_form(url: str, params: Iterable[tuple[str, str]], headers: Headers = ()) -> Request:
    """A request with form parameters (RFC 6749 appendix B)."""
    return _post(url, "application/x-www-form-urlencoded", urlencode(list(params)).encode("ascii"), headers)


def post_json(url: str, document: Mapping[str, Any], headers: Headers = ()) -> Request:
    """A request with a JSON document."""
    return _post(url, "application/json", msgspec.json.encode(document), headers)


def _post(url: str, content_type: str, body: bytes, headers: Headers) -> Request:
    common = (("accept", "application/json"), ("content-type", content_type), ("user-agent", USER_AGENT))
    return Request("POST", url, common + headers, body)


def read_json(body: bytes) -> dict[str, Any] | None:
    """The JSON object in a body, or None: not JSON, too deep, not UTF-8, a lone surrogate, or no object."""
    try:
        document = msgspec.json.decode(body.removeprefix(b"\xef\xbb\xbf"))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return cast("dict[str, Any]", document) if isinstance(document, dict) else None


def read_form(body: bytes) -> dict[str, Any] | None:
    """The parameters of a form-encoded body (GitHub's token answers, FN 42), or None: not a form, or empty."""
    try:
        pairs = parse_qsl(body.decode("utf-8"), strict_parsing=True, max_num_fields=64, errors="strict")
    except ValueError:
        return None
    return dict(pairs) or None


def read_document(response: Response) -> dict[str, Any] | None:
    """The members of a JSON or form-encoded body, by its content type; without one, whichever it is."""
    media_type = (header(response.headers, "content-type") or "").partition(";")[0].strip().lower()
    if media_type == "application/x-www-form-urlencoded":
        return read_form(response.body)
    document = read_json(response.body)
    return read_form(response.body) if document is None and not media_type else document


def text_member(document: Mapping[str, Any], name: str) -> str | None:
    """A text member; null, "" and other types are absent (FN 33)."""
    value = document.get(name)
    return value if isinstance(value, str) and value else None


def texts_member(document: Mapping[str, Any], name: str) -> tuple[str, ...] | None:
    """A member that lists texts; what is not a text in it is passed over, anything else is absent."""
    value = document.get(name)
    if not isinstance(value, list):
        return None
    return tuple(item for item in cast("Iterable[Any]", value) if isinstance(item, str) and item)


def number_member(document: Mapping[str, Any], name: str) -> float | None:
    """A number, or a text that is one (Entra's `expires_in`, FN 42), cut off at 1e15; anything else is absent."""
    value = document.get(name)
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,30}", value.strip()):
        value = int(value)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(max(-_LARGEST, min(value, _LARGEST)))


def printable(text: str, most: int = 500) -> str:
    """A peer's text made fit for messages and terminals: one line, no control characters, not endless."""
    return "".join(c if c.isprintable() else " " for c in text[:most]).strip()


def retry_after(response: Response) -> float | None:
    """Seconds that the server asks to wait (RFC 9110 section 10.2.3); the date form is not worth a clock."""
    value = header(response.headers, "retry-after")
    return float(value) if value is not None and re.fullmatch(r"[0-9]{1,9}", value.strip()) else None
