"""A caller's requests through every driver: bodies, streams, errors, and what of his client touches OAuth traffic."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import pytest

from mcp_oauth.exceptions import AccessError, AuthorizationRequired
from mcp_oauth.sansio.errors import Reason
from mcp_oauth.store.memory import MemoryStore
from tests.io.contract.table import WAYS
from tests.io.contract.ways import CONTENT, PAYLOAD, Answer, Call, Caller, Script, Way
from tests.io.servers import (
    PATIENCE,
    Reply,
    Seen,
    World,
    put_grant,
    serving,
    stored_refresh_token,
    world_on_loopback,
)

pytestmark = pytest.mark.usefixtures("nothing_is_left_of_threads")


def test_logs_in_at_the_first_challenge_and_needs_nothing_more_for_the_next_request(way: Way) -> None:
    with world_on_loopback() as world:
        oauth = way.oauth(world.url, user=world.login)
        first = way.call(Call("POST", world.url, "bytes"), Caller(oauth))
        done = len(world.seen)
        second = way.call(Call("POST", world.url, "bytes"), Caller(oauth))
    assert (first.status, second.status, world.seen[-1].body) == (200, 200, CONTENT)
    assert second.json()["token"] == first.json()["token"]
    assert (world.logins, len(world.seen) - done) == (1, 1)


def test_FN_1_a_new_process_with_an_expired_token_renews_it_first(way: Way) -> None:
    with world_on_loopback() as world:
        for level in way.levels:
            store = MemoryStore()
            put_grant(store, world)
            world.seen.clear()
            oauth = way.oauth(world.url, store=store, interactive=False)
            assert way.at_level(level, Call("GET", world.url), oauth).status == 200
            assert [seen.path for seen in world.seen] == ["/token", "/mcp"]
            assert stored_refresh_token(store, world) == world.refresh_token


def test_a_403_that_names_a_scope_is_answered_with_a_step_up(way: Way) -> None:
    with world_on_loopback() as world:
        store = MemoryStore()
        put_grant(store, world, expires_in=1000)
        world.scopes = ("more",)
        oauth = way.oauth(world.url, store=store, user=world.login)
        assert way.call(Call("POST", world.url, "bytes"), Caller(oauth)).status == 200
    assert (world.logins, world.requested) == (1, "more")
    assert len(world.at("/mcp")) == 2


@pytest.mark.parametrize("status", [401, 403, 500])
def test_the_last_answer_is_the_callers_as_it_is(way: Way, world: Streaming, status: int) -> None:
    """With its body, also where each token is refused: nothing goes round in circles."""
    world.welcome = lambda: Reply(status, (("x-mine", "1"), ("www-authenticate", "Bearer")), b"no")
    oauth = way.oauth(world.url, user=world.login)
    answer = way.call(Call("GET", world.url), Caller(oauth))
    assert (answer.status, answer.headers["x-mine"], answer.body) == (status, "1", b"no")
    assert len(world.at("/mcp")) <= 4


# --- Bodies of requests -----------------------------------------------------------------------------------------------


def each_body(kind: str) -> pytest.MarkDecorator:
    """Every way with every kind of body that it knows: `replayable` or `once`."""
    return pytest.mark.parametrize(
        ("way", "body"),
        [pytest.param(way, body, id=f"{way.name}-{body}") for way in WAYS for body in getattr(way, kind)],
    )


@each_body("replayable")
def test_a_replayable_body_is_sent_again_intact(way: Way, body: str) -> None:
    with world_on_loopback() as world:
        oauth = way.oauth(world.url, user=world.login)
        assert way.call(Call("POST", world.url, body), Caller(oauth)).status == 200
    first, second = world.at("/mcp")
    assert (first.token, second.token is None) == (None, False)
    for name in ("content-type", "content-length", "transfer-encoding"):
        assert first.headers.get(name) == second.headers.get(name)
    assert (first.method, first.body) == (second.method, second.body)
    assert body_as_sent(body) in first.body


def body_as_sent(kind: str) -> bytes:
    ((name, value),) = PAYLOAD.items()
    return {"none": b"", "json": b'"' + value.encode() + b'"', "form": f"{name}={value}".encode()}.get(kind, CONTENT)


@each_body("once")
def test_a_body_that_cannot_be_replayed_gives_the_typed_error_and_the_next_request_works(way: Way, body: str) -> None:
    with world_on_loopback() as world:
        oauth = way.oauth(world.url, user=world.login)

        def script() -> Script[Answer]:
            with pytest.raises(AccessError) as caught:
                yield Call("POST", world.url, body)
            assert caught.value.reason is Reason.BODY_NOT_REPLAYABLE
            answer: Answer = yield Call("POST", world.url, body)
            return answer

        assert way.run(script(), Caller(oauth)).status == 200
    assert CONTENT in world.at("/mcp")[-1].body
    assert world.logins == 1


# --- Answers ----------------------------------------------------------------------------------------------------------


class Streaming(World):
    """Answers with streams: below `/mcp` to who has a token, or to who has none."""

    def __init__(self, origin: str) -> None:
        super().__init__(origin)
        self.welcome: Callable[[], Reply] | None = None
        self.unwelcome: Callable[[], Reply] | None = None

    def mcp(self, seen: Seen) -> Reply:
        answer = super().mcp(seen)
        if answer.status == 200 and self.welcome is not None:
            return self.welcome()
        if answer.status == 401 and self.unwelcome is not None:
            reply = self.unwelcome()
            return reply._replace(status=401, headers=(*answer.headers, *reply.headers))
        return answer


@pytest.fixture
def world() -> Iterator[Streaming]:
    with serving() as server:
        server.handler = world = Streaming(server.origin)
        yield world


@pytest.mark.parametrize("expires_in", [1000, -10, None], ids=["token-at-hand", "renewed-first", "challenged-first"])
def test_streams_stay_streams(way: Way, world: Streaming, expires_in: float | None) -> None:
    """The server sends its second event only when the first has been seen."""
    seen_first, got = threading.Event(), bytearray()

    def events() -> Generator[bytes]:
        yield b"data: 1\n\n"
        assert seen_first.wait(PATIENCE)
        yield b"data: 2\n\n"

    def see(chunk: bytes) -> None:
        got.extend(chunk)
        if b"data: 1\n\n" in got:
            seen_first.set()

    store = MemoryStore()
    if expires_in is not None:
        put_grant(store, world, expires_in=expires_in)
    world.welcome = lambda: Reply(200, (("content-type", "text/event-stream"),), stream=events())
    oauth = way.oauth(world.url, store=store, user=world.login)
    assert way.call(Call("GET", f"{world.url}/events", on_chunk=see), Caller(oauth)).status == 200
    assert got == b"data: 1\n\ndata: 2\n\n"


def endless(gone: threading.Event) -> Generator[bytes]:
    try:
        while True:
            yield b"x" * 100
    finally:
        gone.set()


def these(*chunks: bytes) -> Generator[bytes]:
    yield from chunks


DROPPED = {
    "endless": ((), endless),
    "too-long": ((("content-length", "65537"),), endless),
    "short": ((("content-length", "4"),), lambda gone: these(b"who", b"?")),
    "broken": ((("content-length", "4"),), lambda gone: these(b"w")),
    "broken-coding": ((("content-length", "4"), ("content-encoding", "gzip")), lambda gone: these(b"who?")),
    "empty": ((("content-length", "0"),), lambda gone: these()),
}


@pytest.mark.parametrize(("headers", "stream"), DROPPED.values(), ids=DROPPED)
def test_DESIGN_4_a_challenged_body_is_read_up_to_a_limit_and_dropped(
    way: Way, world: Streaming, headers: Any, stream: Callable[[threading.Event], Generator[bytes]]
) -> None:
    gone = threading.Event()
    world.unwelcome = lambda: Reply(401, headers, stream=stream(gone))
    oauth = way.oauth(world.url, user=world.login)

    def script() -> Script[Answer]:
        answer: Answer = yield Call("GET", world.url)
        assert stream is not endless or (yield partial(gone.wait, PATIENCE))
        return answer

    assert way.run(script(), Caller(oauth)).status == 200
    assert world.logins == 1


def test_FN_47_errors_reach_the_caller_and_close_the_response(way: Way, world: Streaming) -> None:
    gone = threading.Event()
    world.unwelcome = lambda: Reply(401, stream=endless(gone))
    oauth = way.oauth(world.url, user=world.login, interactive=False)

    def script() -> Script[None]:
        with pytest.raises(AuthorizationRequired):
            yield Call("GET", world.url)
        assert (yield partial(gone.wait, PATIENCE)), "the response is still open"

    way.run(script(), Caller(oauth))


@pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning")  # httpx's own, on trio
def test_a_caller_who_leaves_in_the_middle_of_a_stream_closes_it(way: Way, world: Streaming) -> None:
    gone = threading.Event()
    world.welcome = lambda: Reply(200, stream=endless(gone))
    oauth = way.oauth(world.url, user=world.login)

    def enough(chunk: bytes) -> None:
        raise EOFError

    def script() -> Script[None]:
        with pytest.raises(EOFError):
            yield Call("GET", world.url, on_chunk=enough)
        assert (yield partial(gone.wait, PATIENCE)), "the response is still open"

    way.run(script(), Caller(oauth))


# --- By itself --------------------------------------------------------------------------------------------------------


def test_FN_57_no_hook_cookie_or_default_header_of_the_callers_client_touches_oauth_traffic(way: Way) -> None:
    touched: list[str] = []
    with world_on_loopback() as world:
        oauth = way.oauth(world.url, user=world.login)
        mine = {"mine": "CANARY-of-the-caller"}
        caller = Caller(oauth, {"x-mine": "CANARY-of-the-caller"}, mine, lambda url: touched.append(urlsplit(url).path))
        assert way.call(Call("GET", world.url), caller).status == 200
    assert set(touched) <= {"/mcp"}
    for seen in world.seen:
        assert (seen.path == "/mcp") == ("CANARY-of-the-caller" in f"{seen.url}{seen.headers}")


LOGGERS = ("aiohttp", "asyncio", "httpcore", "httpcore2", "httpx", "httpx2", "requests", "trio", "urllib3")


def test_FN_54_no_secret_is_logged_at_any_level(way: Way, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for name in LOGGERS:  # an earlier test may have silenced it
        caplog.set_level(logging.DEBUG, logger=name)
    with world_on_loopback() as world:
        oauth = way.oauth(world.url, user=world.login)
        assert way.call(Call("GET", world.url), Caller(oauth)).status == 200
        world.valid.clear()
        assert way.call(Call("GET", world.url), Caller(oauth)).status == 200
        oauth.logout()
    assert (world.logins, world.refreshes) == (1, 1)
    assert "mcp_oauth" in {record.name for record in caplog.records}
    assert "CANARY" not in caplog.text


def test_one_stack_does_not_import_another(stack: Way) -> None:
    module = stack.driver.__module__
    others = {way.stack for way in WAYS} - {stack.stack, "anyio", "urllib"}
    code = f"import sys, {module}; assert not {others} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
