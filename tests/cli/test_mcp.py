"""The hand-made MCP call: both eras of the protocol, both forms of an answer, and what servers do wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx2
import pytest

from mcp_oauth.cli import mcp
from mcp_oauth.cli.failures import CommandError, Exit
from mcp_oauth.cli.mcp import Connection, McpError, Server, Tool, events

URL = "https://mcp.example/mcp"
Answering = Callable[[httpx2.Request, dict[str, Any]], httpx2.Response]


def connection(answering: Answering, seconds: float = 5.0) -> Connection:
    def answer(request: httpx2.Request) -> httpx2.Response:
        return answering(request, json.loads(request.content) if request.content else {})

    return Connection(httpx2.Client(transport=httpx2.MockTransport(answer)), URL, seconds=seconds)


def told(message: Mapping[str, Any], result: Mapping[str, Any], **headers: str) -> httpx2.Response:
    return httpx2.Response(200, json={"jsonrpc": "2.0", "id": message["id"], "result": result}, headers=headers)


def rpc_error(code: int, status: int = 400, data: Any = None) -> httpx2.Response:
    error = {"code": code, "message": "no", "data": data}
    return httpx2.Response(status, json={"jsonrpc": "2.0", "id": None, "error": error})


def streamed(*parts: bytes) -> httpx2.Response:
    return httpx2.Response(200, headers={"content-type": "text/event-stream; charset=utf-8"}, content=iter(parts))


# --- Revision 2026-07-28 ----------------------------------------------------------------------------------------------


def modern(request: httpx2.Request, message: dict[str, Any]) -> httpx2.Response:
    """A server without sessions: each request must say all by itself."""
    meta = message["params"]["_meta"]
    assert request.headers["mcp-protocol-version"] == meta["io.modelcontextprotocol/protocolVersion"] == "2026-07-28"
    assert request.headers["mcp-method"] == message["method"]
    assert meta["io.modelcontextprotocol/clientInfo"]["name"] == "mcp-oauth"
    assert "mcp-session-id" not in request.headers
    if message["method"] == "server/discover":
        info = {"io.modelcontextprotocol/serverInfo": {"name": "new", "version": "3"}}
        return told(message, {"supportedVersions": ["2026-07-28"], "_meta": info})
    cursor = message["params"].get("cursor")
    page = {"tools": [{"name": f"tool-{cursor}", "title": "A tool"}, {"no": "name"}, "no tool"]}
    return told(message, page if cursor else {**page, "nextCursor": "2"})


def test_a_server_of_2026_07_28_needs_no_handshake() -> None:
    here = connection(modern)
    assert here.connect() == Server("new", "3", "2026-07-28", 200)
    assert here.tools() == (Tool("tool-None", "A tool"), Tool("tool-2", "A tool"))
    here.close()


def test_a_server_that_knows_only_later_revisions_is_not_asked_for_a_handshake() -> None:
    asked: list[str] = []

    def later(request: httpx2.Request, message: dict[str, Any]) -> httpx2.Response:
        asked.append(message["method"])
        return rpc_error(-32022, data={"supported": ["2031-01-01"]})

    with pytest.raises(McpError):
        connection(later).connect()
    assert asked == ["server/discover"]


# --- With a handshake -------------------------------------------------------------------------------------------------


class Older:
    """A server of 2025: a session, a handshake, answers as streams. `refusal` is its answer to `server/discover`."""

    def __init__(self, refusal: httpx2.Response, version: str = "2025-06-18") -> None:
        self.refusal = refusal
        self.version = version
        self.asked: list[str] = []

    def __call__(self, request: httpx2.Request, message: dict[str, Any]) -> httpx2.Response:
        method = message.get("method", request.method)
        self.asked.append(method)
        if method == "server/discover":
            return self.refusal
        if method == "initialize":
            assert "mcp-protocol-version" not in request.headers
            info = {"protocolVersion": self.version, "serverInfo": {"name": "old", "version": "1"}}
            answer = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": info}).encode()
            response = streamed(b"event: message\r\ndata: ", answer, b"\r\n", b"\r\n")
            response.headers["mcp-session-id"] = "session"
            return response
        assert request.headers["mcp-protocol-version"] == self.version
        assert request.headers["mcp-session-id"] == "session"
        if method == "tools/list":
            assert "_meta" not in message["params"]
            other = b'data: {"jsonrpc":"2.0","method":"notifications/message","params":{}}\n\n'
            answer = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": {"tools": [{"name": "t"}]}}).encode()
            return streamed(b": hello\n\n", other, b"data:" + answer + b"\n\n", b"data: never read\n\n")
        return httpx2.Response(202 if method == "notifications/initialized" else 405)


REFUSALS = {
    "method-not-found": rpc_error(-32601, 404),
    "no-session": rpc_error(-32600),
    "bare-400": httpx2.Response(400, text="Bad Request"),
    "bare-405": httpx2.Response(405),
    "500": httpx2.Response(500),
    "older-versions-only": rpc_error(-32022, data={"supported": ["2025-11-25"]}),
    "discovers-older-versions": httpx2.Response(
        200, json={"jsonrpc": "2.0", "id": 1, "result": {"supportedVersions": ["2025-11-25"]}}
    ),
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_an_older_server_gets_its_handshake(refusal: httpx2.Response) -> None:
    server = Older(refusal)
    here = connection(server)
    assert here.connect() == Server("old", "1", "2025-06-18", 200)
    assert here.tools() == (Tool("t", None),)
    here.close()
    assert server.asked == ["server/discover", "initialize", "notifications/initialized", "tools/list", "DELETE"]


# --- What servers do wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_is_no_older_server(status: int) -> None:
    with pytest.raises(McpError) as refused:
        connection(lambda request, message: httpx2.Response(status)).connect()
    assert (refused.value.status, refused.value.code) == (status, Exit.FAILED)
    assert "--force" in refused.value.cure


def test_a_stream_that_ends_without_the_answer() -> None:
    with pytest.raises(McpError, match="no MCP message"):
        connection(lambda request, message: streamed(b"data: {}\n\n", b"data: x")).tools()


def test_a_result_that_is_no_object() -> None:
    with pytest.raises(McpError, match="no reason given"):
        connection(lambda request, message: httpx2.Response(200, json={"id": 1, "result": "x"})).tools()


def test_an_answer_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp, "MAX_ANSWER", 1000)
    with pytest.raises(McpError, match="longer than 1000 bytes"):
        connection(lambda request, message: streamed(*[b": more\n"] * 1000)).tools()


def test_an_answer_that_drips(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("mcp_oauth.cli.mcp.time.monotonic", lambda: float(next(clock)))
    with pytest.raises(CommandError, match="within 5 seconds") as slow:
        connection(lambda request, message: streamed(*[b": more\n"] * 1000)).tools()
    assert slow.value.code is Exit.NETWORK


def test_pages_without_end() -> None:
    with pytest.raises(McpError, match="more than 50 pages"):
        connection(lambda request, message: told(message, {"tools": [], "nextCursor": "again"})).tools()


def test_a_session_that_cannot_be_ended_is_nobodys_loss() -> None:
    server = Older(httpx2.Response(400))

    def gone(request: httpx2.Request, message: dict[str, Any]) -> httpx2.Response:
        if request.method == "DELETE":
            raise httpx2.ConnectError("gone")
        return server(request, message)

    here = connection(gone)
    here.connect()
    here.close()


# --- Streams of events ------------------------------------------------------------------------------------------------

STREAM = b"data: one\n\nevent: x\r\ndata:two\r\ndata:  three\r\n\r\n: comment\n\ndata: four\r\rdata: cut"
EVENTS = [b"one", b"two\n three", b"four"]


@pytest.mark.parametrize("size", range(1, 9))
def test_events_do_not_depend_on_how_the_bytes_arrive(size: int) -> None:
    chunks = [STREAM[start : start + size] for start in range(0, len(STREAM), size)]
    assert list(events(chunks)) == EVENTS


def test_an_event_is_told_as_soon_as_it_is_there() -> None:
    def chunks() -> Iterator[bytes]:
        yield b"data: one\n\n"
        raise AssertionError("read on")

    assert next(events(chunks())) == b"one"
