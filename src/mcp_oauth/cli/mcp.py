"""A look at an MCP server, by hand: who it is, which revision it speaks, which tools it has.

Streamable HTTP, as much of it as a question with one answer needs. Revision 2026-07-28 knows no session: each request
says by itself who asks, and `server/discover` tells what there is. Older servers want the `initialize` handshake, and
may want their session id back with each request. An answer is JSON, or a stream of events of which one is the answer.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, cast

from mcp_oauth.cli.failures import CommandError, Exit
from mcp_oauth.sansio.messages import USER_AGENT, read_json, text_member, texts_member

MODERN = ("2026-07-28",)
"""Revisions without a handshake, best first."""
HANDSHAKE = "2025-11-25"
"""The newest revision with one; the server answers with what it speaks."""
UNSUPPORTED_VERSION = -32022
MAX_ANSWER = 4 << 20
"""Bytes of an answer; the tools of large servers have some hundred kB."""
MOST_PAGES = 50

WRONG_PLACE = "check that this is the URL of its MCP endpoint"

_META = "io.modelcontextprotocol/"
_LINE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")


class Server(NamedTuple):
    """What an MCP server says of itself."""

    name: str | None
    version: str | None
    protocol: str
    status: int
    """The HTTP status of its answer."""


class Tool(NamedTuple):
    """One tool."""

    name: str
    description: str | None


class Answer(NamedTuple):
    """One answer to a JSON-RPC request."""

    status: int
    result: Mapping[str, Any]


class McpError(CommandError):
    """The server gave no result; `rpc` is the code and data of its JSON-RPC error, if that was its answer."""

    stage = "mcp"

    def __init__(
        self, message: str, cure: str, *, status: int | None = None, rpc: tuple[int, Any] | None = None
    ) -> None:
        super().__init__(Exit.FAILED, message, cure, status=status)
        self.rpc = rpc


class Connection:
    """One conversation with an MCP server, over a sync client of httpx or httpx2 that brings the token."""

    def __init__(self, client: Any, url: str, *, seconds: float) -> None:
        """`seconds`: for each exchange, from the request to the end of the answer."""
        self._client = client
        self._url = url
        self._seconds = seconds
        self._version: str | None = MODERN[0]
        self._session: str | None = None
        self._asked = 0

    def connect(self) -> Server:
        """Find out who is there. Raises `McpError`, `OAuthError`, and the client's errors."""
        try:
            answer = self.request("server/discover", {})
        except McpError as error:
            if error.status in (401, 403) or _modern_only(error):
                raise
        else:
            if set(texts_member(answer.result, "supportedVersions") or ()) & set(MODERN):
                meta = _object(answer.result.get("_meta"))
                return self._server(answer, _object(meta.get(f"{_META}serverInfo")))
        return self._initialize()

    def tools(self) -> tuple[Tool, ...]:
        """All tools, page by page. Raises as `connect`."""
        found: list[Tool] = []
        cursor: str | None = None
        for _ in range(MOST_PAGES):
            result = self.request("tools/list", {} if cursor is None else {"cursor": cursor}).result
            listed = result.get("tools")
            found += _tools(cast("Iterable[Any]", listed) if isinstance(listed, list) else [])
            cursor = text_member(result, "nextCursor")
            if cursor is None:
                return tuple(found)
        raise McpError(f"the server has more than {MOST_PAGES} pages of tools", "tell its operator")

    def close(self) -> None:
        """End the session, if the server gave one. That it does not want to is nobody's loss."""
        if self._session is not None:
            with suppress(Exception):
                self._client.delete(self._url, headers=self._headers(), timeout=self._seconds)

    def request(self, method: str, params: Mapping[str, Any]) -> Answer:
        """One JSON-RPC request and its answer. Raises as `connect`."""
        self._asked += 1
        modern = self._version in MODERN
        headers = {**self._headers(), **({"mcp-method": method} if modern else {})}
        message: dict[str, Any] = {"jsonrpc": "2.0", "id": self._asked, "method": method}
        message["params"] = {**params, "_meta": self._envelope()} if modern else params
        end = time.monotonic() + self._seconds
        with self._client.stream("POST", self._url, json=message, headers=headers, timeout=self._seconds) as response:
            chunks = _bounded(response.iter_bytes(), end, self._seconds)
            session = response.headers.get("mcp-session-id")
            if method == "initialize" and session:
                self._session = session
            return _answer(response, chunks, self._asked)

    def _initialize(self) -> Server:
        self._version = None
        params = {"protocolVersion": HANDSHAKE, "capabilities": {}, "clientInfo": _client_info()}
        answer = self.request("initialize", params)
        self._version = text_member(answer.result, "protocolVersion") or HANDSHAKE
        initialized = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        self._client.post(self._url, json=initialized, headers=self._headers(), timeout=self._seconds)
        return self._server(answer, _object(answer.result.get("serverInfo")))

    def _server(self, answer: Answer, info: Mapping[str, Any]) -> Server:
        protocol = self._version or HANDSHAKE
        return Server(text_member(info, "name"), text_member(info, "version"), protocol, answer.status)

    def _headers(self) -> dict[str, str]:
        headers = {"accept": "application/json, text/event-stream", "user-agent": USER_AGENT}
        known = {"mcp-protocol-version": self._version, "mcp-session-id": self._session}
        return headers | {name: value for name, value in known.items() if value is not None}

    def _envelope(self) -> dict[str, Any]:
        return {
            f"{_META}protocolVersion": self._version,
            f"{_META}clientInfo": _client_info(),
            f"{_META}clientCapabilities": {},
        }


def _client_info() -> dict[str, str]:
    from importlib.metadata import version

    return {"name": "mcp-oauth", "version": version("mcp-oauth-sansio")}


# --- Reading ----------------------------------------------------------------------------------------------------------


def _answer(response: Any, chunks: Iterator[bytes], asked: int) -> Answer:
    status = int(response.status_code)
    if response.is_redirect:
        where = response.headers.get("location", "")
        raise McpError(f"the server redirects to {where}", "use the URL that it names", status=status)
    media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    streamed = media_type == "text/event-stream" and response.is_success
    bodies = events(chunks) if streamed else iter([b"".join(chunks)])
    for message in map(read_json, bodies):
        if message is not None and (message.get("id") == asked or "error" in message):
            return Answer(status, _result(message, status))
    if status in (401, 403):
        cure = "log in again: mcp-oauth auth NAME URL --force"
        raise McpError(f"the server refused the token (HTTP {status})", cure, status=status)
    if not response.is_success:
        raise McpError(f"the server answered HTTP {status}", WRONG_PLACE, status=status)
    raise McpError("the server's answer is no MCP message", WRONG_PLACE, status=status)


def _result(message: Mapping[str, Any], status: int) -> Mapping[str, Any]:
    result, error = message.get("result"), message.get("error")
    if isinstance(result, dict):
        return cast("dict[str, Any]", result)
    about = _object(error)
    code = about.get("code")
    told = text_member(about, "message") or "no reason given"
    rpc = (code, about.get("data")) if isinstance(code, int) else None
    raise McpError(f"the server answered with an error: {told}", "see what the server says", status=status, rpc=rpc)


def events(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The data of each event of a stream (HTML Living Standard, 9.2.6), as soon as its last line is there."""
    held = b""
    data: list[bytes] = []
    for chunk in chunks:
        *lines, held = _LINE_END.split(held + chunk)
        for line in lines:
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                yield b"\n".join(data)
                data = []


def _bounded(chunks: Iterable[bytes], end: float, seconds: float) -> Iterator[bytes]:
    """The chunks, until they are too many or too late."""
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > MAX_ANSWER:
            raise McpError(f"the server's answer is longer than {MAX_ANSWER} bytes", "tell its operator")
        if time.monotonic() > end:
            raise CommandError(Exit.NETWORK, f"no whole answer within {seconds:g} seconds", "try a longer --timeout")
        yield chunk


def _tools(listed: Iterable[Any]) -> Iterator[Tool]:
    for tool in map(_object, listed):
        if name := text_member(tool, "name"):
            yield Tool(name, text_member(tool, "description") or text_member(tool, "title"))


def _object(value: Any) -> Mapping[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _supported(error: McpError) -> tuple[str, ...]:
    if error.rpc is None or error.rpc[0] != UNSUPPORTED_VERSION:
        return ()
    return texts_member(_object(error.rpc[1]), "supported") or ()


def _modern_only(error: McpError) -> bool:
    """It speaks revisions without a handshake only, and none that is known here."""
    versions = _supported(error)
    return bool(versions) and all(version > HANDSHAKE for version in versions)
