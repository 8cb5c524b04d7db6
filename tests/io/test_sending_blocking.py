"""How a stack that blocks sends what the core asks for: `blocking_sender`, and the deadline that ends its sockets."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest

from mcp_oauth.io.ports import Answer
from mcp_oauth.io.sending import Deadline, UnreadableError, blocking_sender
from mcp_oauth.sansio.messages import Response, get
from mcp_oauth.sansio.steps import Send, SendFailed
from tests.io.servers import PATIENCE

pytestmark = pytest.mark.usefixtures("nothing_is_left_of_threads")

SHORT = 0.2
"""Seconds of a deadline that is waited for."""
EFFECT = Send(get("https://as.example/metadata"))


# --- The deadline -----------------------------------------------------------------------------------------------------


@contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_FN_30_a_read_that_waits_for_ever_ends_at_the_deadline() -> None:
    with pair() as (ours, _), Deadline(SHORT) as deadline:
        deadline.watch(ours)
        assert ours.recv(1) == b""
        assert deadline.cut
        assert deadline.passed


def test_FN_30_a_write_that_waits_for_ever_ends_at_the_deadline() -> None:
    with pair() as (ours, _), Deadline(SHORT) as deadline:
        deadline.watch(ours)
        with pytest.raises(OSError):
            ours.sendall(bytes(64 << 20))


def test_FN_30_a_handshake_that_took_the_socket_away_ends_at_the_deadline() -> None:
    """The socket that was watched is detached by TLS; and a TLS socket, which has no `dup`, can be watched too."""
    for late in (False, True):
        with pair() as (ours, _), Deadline(SHORT) as deadline:
            if not late:
                deadline.watch(ours)
            with ssl.create_default_context().wrap_socket(
                ours, server_hostname="as.example", do_handshake_on_connect=False
            ) as tls:
                if late:
                    deadline.watch(tls)
                with pytest.raises(OSError):
                    tls.do_handshake()


def test_an_exchange_in_time_leaves_its_socket_alone() -> None:
    with pair() as (ours, theirs):
        with Deadline(SHORT) as deadline:
            deadline.watch(ours)
            assert 0 < deadline.left() <= SHORT
        for thread in threading.enumerate():
            if thread.name == "mcp-oauth deadline":
                thread.join(PATIENCE)
        assert not deadline.cut
        theirs.sendall(b"x")
        assert ours.recv(1) == b"x"


def test_a_socket_that_the_peer_has_closed_does_not_spare_the_others() -> None:
    with pair() as (ours, _), socket.create_server(("127.0.0.1", 0)) as listener, Deadline(SHORT) as deadline:
        with socket.socket() as never_connected:
            deadline.watch(never_connected)
        deadline.watch(ours)
        assert ours.recv(1) == b""
        assert listener.fileno() > 0


def test_RULES_4_9_nothing_is_sent_once_the_deadline_has_passed() -> None:
    with pair() as (ours, _), Deadline(0.0) as deadline:
        with pytest.raises(TimeoutError):
            deadline.watch(ours)
        assert deadline.left() > 0


def test_what_came_while_the_process_was_stopped_is_read_before_the_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both parts are waited for, however late the first one ends."""
    waited: list[float] = []

    class Late(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            waited.append(timeout)
            return super().wait(0.0)

    monkeypatch.setattr(threading, "Event", Late)
    deadline = Deadline(10.0)
    deadline._cut()
    assert (waited, deadline.cut) == ([9.0, 1.0], True)


def test_where_no_thread_can_be_started_the_stacks_own_timeouts_must_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", start)
    with Deadline(PATIENCE) as deadline:
        assert deadline.left() <= PATIENCE


def test_no_handle_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    with pair() as (ours, _):
        with Deadline(PATIENCE) as deadline:
            for _ in range(3):
                deadline.watch(ours)
            handles = list(deadline._sockets)
        assert [handle.fileno() for handle in handles] == [-1, -1, -1]
        assert ours.fileno() >= 0


# --- The sender -------------------------------------------------------------------------------------------------------


def send(exchange: Callable[[Deadline], Any], effect: Send = EFFECT, client: Any = nullcontext) -> Answer:
    def unsent(error: Exception) -> str | None:
        return "refused" if isinstance(error, ConnectionRefusedError) else None

    with blocking_sender(client, lambda _client, _effect, deadline: exchange(deadline), unsent) as send:
        return send(effect)


def raising(error: Exception) -> Callable[[object], Any]:
    def exchange(_: object) -> Any:
        raise error

    return exchange


@pytest.mark.parametrize(
    ("error", "failed"),
    [
        (ConnectionRefusedError("CANARY"), SendFailed("refused", may_have_arrived=False)),
        (ConnectionResetError("CANARY"), SendFailed("ConnectionResetError", may_have_arrived=True)),
        (RuntimeError("CANARY"), SendFailed("RuntimeError", may_have_arrived=True)),
        (UnreadableError("too long"), SendFailed("too long", may_have_arrived=True)),
    ],
    ids=["RULES-4.9-refused", "RULES-4.9-reset", "RULES-4.9-a-layer-of-the-callers", "RULES-4.9-unreadable"],
)
def test_a_failure_says_whether_it_may_have_arrived_and_quotes_nobody(error: Exception, failed: SendFailed) -> None:
    assert send(raising(error)) == failed


def test_an_answer_is_handed_on() -> None:
    assert send(lambda _: Response(404, (("a", "b"),), b"?")) == Response(404, (("a", "b"),), b"?")


def test_RULES_4_9_an_interim_response_is_no_answer() -> None:
    """http.client skips 100 only."""
    assert send(lambda _: Response(103)) == SendFailed("an interim response", may_have_arrived=True)


def late(outcome: Callable[[Deadline], Any]) -> Callable[[Deadline], Any]:
    def exchange(deadline: Deadline) -> Any:
        with pair() as (ours, _):
            deadline.watch(ours)
            assert ours.recv(1) == b""
            return outcome(deadline)

    return exchange


@pytest.mark.parametrize(
    ("outcome", "arrived"),
    [
        (lambda _: Response(200, (), b"half"), True),
        (raising(ConnectionResetError()), True),
        (raising(ConnectionRefusedError()), False),
    ],
    ids=["FN-30-what-the-cut-made-look-whole", "FN-30-cut", "RULES-4.9-never-connected"],
)
def test_what_comes_after_the_deadline_is_no_answer(outcome: Callable[[Deadline], Any], arrived: bool) -> None:
    said = f"no answer within {SHORT:.0f} seconds" if arrived else "refused"
    assert send(late(outcome), Send(EFFECT.request, seconds=SHORT)) == SendFailed(said, may_have_arrived=arrived)


def test_one_client_serves_a_run_and_is_closed_with_it() -> None:
    opened: list[str] = []

    @contextmanager
    def client() -> Iterator[int]:
        opened.append("open")
        yield 7
        opened.append("closed")

    with blocking_sender(client, lambda client, effect, deadline: Response(client), lambda error: None) as send:
        assert opened == []
        assert [send(EFFECT), send(EFFECT)] == [SendFailed("an interim response", may_have_arrived=True)] * 2
        assert opened == ["open"]
    assert opened == ["open", "closed"]


def test_a_client_that_cannot_be_made_has_sent_nothing() -> None:
    def client() -> AbstractContextManager[None]:
        raise OSError("CANARY")

    failed = send(lambda _: Response(200), client=client)
    assert failed == SendFailed("no HTTP client: OSError", may_have_arrived=False)
