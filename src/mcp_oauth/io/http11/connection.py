"""One HTTP/1.1 connection: h11 decides, the stream carries.

exchange   sends a request and reads the head of its answer
receive    reads the answer's body, piece by piece
finish     says whether another request may follow
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field

import anyio
import h11
from anyio.abc import ByteStream, SocketAttribute

from mcp_oauth.io.http11.errors import STREAM_ERRORS, Broken, ExchangeError, NotSent
from mcp_oauth.io.http11.readable import readable
from mcp_oauth.io.http11.request import RequestBody
from mcp_oauth.sansio.messages import Headers

PIECE = 1 << 16
"""Bytes that are read or written at once."""

LONGEST_HEAD = 1 << 16
"""Bytes of an answer's head, and of what else h11 must hold until it has all of it."""


class Connection:
    """One stream to a server, for one request after another."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=LONGEST_HEAD)
        self.heard = False
        """Whether anything of the answer has come."""

    async def exchange(self, request: h11.Request, body: RequestBody) -> h11.Response:
        """Send a request; the head of its answer. Interim answers (1xx) are skipped.

        Raises `NotSent` for a request that HTTP does not allow, `Broken` for anything after the first byte, and
        whatever `body` raises.
        """
        self.heard = False
        head = self._encode(request, NotSent)
        if isinstance(body, bytes) and len(body) <= PIECE:
            data = self._encode(h11.Data(body), NotSent) if body else b""
            await self._send(head + data + self._encode(h11.EndOfMessage(), NotSent))
            return await self._receive_head()
        return await self._send_watching(head, _pieces(body) if isinstance(body, bytes) else body)

    async def receive(self) -> bytes | None:
        """The next piece of the answer's body as it came, or None at its end. Raises `Broken`."""
        event = await self._next_event()
        return bytes(event.data) if isinstance(event, h11.Data) else None

    def finish(self) -> bool:
        """Drop what has come of the answer; whether that was all of it and another request may follow."""
        with suppress(h11.RemoteProtocolError):
            while isinstance(self._h11.next_event(), h11.Data):
                pass
        if (self._h11.our_state, self._h11.their_state) != (h11.DONE, h11.DONE) or self.surplus:
            return False
        self._h11.start_next_cycle()
        return True

    @property
    def surplus(self) -> bool:
        """Whether more has come than was asked for."""
        return bool(self._h11.trailing_data[0])

    @property
    def quiet(self) -> bool:
        """Whether the server has neither closed nor sent anything since the last answer, as far as one can see.

        A stream over no socket cannot be looked at, and counts as closed.
        """
        sock = self._stream.extra(SocketAttribute.raw_socket, None)  # noqa: S610 - not Django's
        return sock is not None and not readable(sock)

    async def aclose(self) -> None:
        """Close the stream at once, whether cancelled or not."""
        await close(self._stream)

    # --- Sending --------------------------------------------------------------------------------------------------

    async def _send_watching(self, head: bytes, body: AsyncIterable[bytes]) -> h11.Response:
        """Send a long body, and stop if the answer comes early and is no success (RFC 9112 section 9.5)."""
        answers: list[h11.Response] = []
        failures: list[BaseException] = []

        async def watch() -> None:
            try:
                answers.append(await self._receive_head())
            except Exception as error:
                failures.append(error)
            if failures or answers[0].status_code >= 300:
                tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            try:
                await self._send_all(head, body)
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as error:  # the caller's own, which must not come out in a group
                failures.append(error)
                tasks.cancel_scope.cancel()
        if failures:
            raise failures[0]
        # Without an answer the watch was cancelled from outside, and so shall we be at the next await.
        return answers[0] if answers else await self._receive_head()

    async def _send_all(self, head: bytes, body: AsyncIterable[bytes]) -> None:
        """Send head and body, as far as the server reads them."""
        sent = await self._send(head)
        pieces = aiter(body)
        try:
            while sent and (piece := await anext(pieces, None)) is not None:
                sent = await self._send(self._encode(h11.Data(piece), Broken))
        finally:
            if isinstance(pieces, AsyncGenerator):
                await pieces.aclose()
        if sent:
            await self._send(self._encode(h11.EndOfMessage(), Broken))

    def _encode(self, event: h11.Event, failure: type[ExchangeError]) -> bytes:
        try:
            return self._h11.send(event) or b""
        except h11.LocalProtocolError:  # its text quotes what was to be sent
            raise failure("the request's body is not as long as its content-length says") from None

    async def _send(self, data: bytes) -> bool:
        """Whether it went. If not, an answer that came before may tell why."""
        try:
            if data:
                await self._stream.send(data)
        except STREAM_ERRORS:
            self._h11.send_failed()
            return False
        except BaseException:
            self._h11.send_failed()
            raise
        return True

    # --- Receiving ------------------------------------------------------------------------------------------------

    async def _receive_head(self) -> h11.Response:
        while not isinstance(event := await self._next_event(), h11.Response):
            if isinstance(event, h11.InformationalResponse) and event.status_code == 101:
                raise Broken("the server switched to another protocol, which this client has none of")
        return event

    async def _next_event(self) -> h11.Event:
        while True:
            try:
                event = self._h11.next_event()
            except h11.RemoteProtocolError as error:
                raise Broken(self._why(error)) from None  # its text quotes what came
            if isinstance(event, h11.Event):
                return event
            self._h11.receive_data(await self._receive())

    async def _receive(self) -> bytes:
        """Some bytes, or none at the end of the stream: h11 knows whether it may end there."""
        try:
            data = await self._stream.receive(PIECE)
        except anyio.EndOfStream:
            return b""
        except ssl.SSLError as error:
            raise Broken(f"TLS failed: {error.reason or type(error).__name__}") from error
        except STREAM_ERRORS as error:
            raise Broken(self._cut) from error
        self.heard = True
        return data

    def _why(self, error: h11.RemoteProtocolError) -> str:
        if error.error_status_hint == 431:
            return f"the head of the answer is longer than {LONGEST_HEAD} bytes"
        at_end = self._h11.trailing_data[1]
        return self._cut if at_end else "the answer is not HTTP/1.1"

    @property
    def _cut(self) -> str:
        return f"the server closed the connection {'within its' if self.heard else 'without an'} answer"


class Body:
    """The body of an answer, as it comes: chunks undone, content codings not."""

    def __init__(self, connection: Connection) -> None:
        self._connection: Connection | None = connection
        self._ended = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """The next piece. Raises `Broken`; `anyio.ClosedResourceError` once the request's context was left."""
        if self._connection is None:
            raise anyio.ClosedResourceError
        piece = None if self._ended else await self._connection.receive()
        if piece is None:
            self._ended = True
            raise StopAsyncIteration
        return piece

    def detach(self) -> None:
        """Leave the connection to the next request."""
        self._connection = None


@dataclass(frozen=True, eq=False)
class Response:
    """One answer: its head, and its body still to be read."""

    status: int
    """200 or more."""
    headers: Headers = field(repr=False)
    """Names in lower case, in the order in which they came."""
    body: Body = field(repr=False)
    """Yields `bytes`."""


async def close(stream: ByteStream) -> None:
    """Close a stream at once, whether cancelled or not."""
    with anyio.CancelScope(shield=True), suppress(*STREAM_ERRORS):
        await anyio.aclose_forcefully(stream)


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), PIECE):
        yield body[start : start + PIECE]
