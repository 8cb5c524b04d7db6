"""One request of a caller on its way through `access`, whatever the stack: `Trip`, and who sends when he is told to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import anyio
import pytest

from mcp_oauth.exceptions import AuthorizationRequired, OAuthError
from mcp_oauth.io import plug
from mcp_oauth.io.plug import Heard, Trip, send_authorized, send_authorized_async
from mcp_oauth.sansio.steps import Ensure, Proceed
from mcp_oauth.store.memory import MemoryStore
from tests.io.plain import Plain, Slow
from tests.io.servers import PATIENCE, Reply, Seen, World, put_grant

pytestmark = pytest.mark.usefixtures("nothing_is_left_of_flights")


def heard(reply: Reply) -> Heard:
    return reply.status, [value for name, value in reply.headers if name == "www-authenticate"]


class Wire:
    """A caller's stack: it sends to a world, and keeps a record of what it was told."""

    def __init__(self, world: World, url: str | None = None) -> None:
        self.world, self.url = world, url or world.url
        self.record: list[str] = []
        self.send_it: Callable[[Seen], Reply] = world

    def send(self, headers: Iterable[tuple[str, str]]) -> Reply:
        self.record.append("send")
        return self.send_it(Seen("GET", self.url, dict(headers), b""))

    def drop(self, reply: Reply) -> None:
        self.record.append(f"drop {reply.status}")

    async def asend(self, headers: Iterable[tuple[str, str]]) -> Reply:
        await anyio.lowlevel.checkpoint()
        return self.send(headers)

    async def adrop(self, reply: Reply) -> None:
        await anyio.lowlevel.checkpoint()
        self.drop(reply)

    def go(self, mode: str, oauth: Plain, heard: Callable[[Reply], Heard] = heard, **options: Any) -> Reply:
        if mode == "sync":
            return send_authorized(oauth, self.url, self.send, heard, self.drop, **options)
        main = partial(send_authorized_async, oauth, self.url, self.asend, heard, self.adrop, **options)
        return anyio.run(main, backend=mode)


modes = pytest.mark.parametrize("mode", ["sync", "asyncio", "trio"])


def stored(world: World, *, valid: bool = True) -> Plain:
    """A driver that has a token from before."""
    store = MemoryStore()
    put_grant(store, world, expires_in=3600, valid=valid)
    return Plain(world, store=store)


@modes
def test_a_request_with_a_token_at_hand_is_sent_once(world: World, mode: str) -> None:
    wire = Wire(world)
    assert wire.go(mode, stored(world)).status == 200
    assert wire.record == ["send"]


@modes
def test_a_challenged_response_is_dropped_before_the_request_is_sent_again(world: World, mode: str) -> None:
    wire = Wire(world)
    assert wire.go(mode, Plain(world)).status == 200
    assert wire.record == ["send", "drop 401", "send"]


@modes
def test_the_last_answer_is_the_callers_and_not_dropped(world: World, mode: str) -> None:
    wire = Wire(world)
    wire.send_it = lambda seen: Reply(403, body=b"no")
    assert wire.go(mode, stored(world)).body == b"no"
    assert wire.record == ["send"]


@modes
def test_RULES_1_1_a_request_elsewhere_goes_as_it_is_and_its_challenge_is_ignored(world: World, mode: str) -> None:
    wire = Wire(world, "https://elsewhere.example/mcp")
    assert wire.go(mode, stored(world)).status == 401
    assert [seen.token for seen in world.seen] == [None]
    assert wire.record == ["send"]


@modes
def test_a_body_that_cannot_be_sent_again_is_an_error_and_the_response_is_dropped(world: World, mode: str) -> None:
    wire = Wire(world)
    with pytest.raises(OAuthError, match="cannot be sent twice"):
        wire.go(mode, Plain(world), replayable=False)
    assert wire.record == ["send", "drop 401"]


@modes
def test_a_response_is_dropped_when_no_token_can_be_had(world: World, mode: str) -> None:
    wire = Wire(world)
    with pytest.raises(AuthorizationRequired):
        wire.go(mode, Plain(world, interactive=False))
    assert wire.record == ["send", "drop 401"]


@modes
def test_an_error_of_the_stack_is_the_callers_and_nothing_is_dropped_twice(world: World, mode: str) -> None:
    wire = Wire(world)
    answers: Iterator[Callable[[], Any]] = iter([partial(world.mcp, Seen("GET", wire.url, {}, b"")), lambda: 1 / 0])
    wire.send_it = lambda seen: next(answers)()
    with pytest.raises(ZeroDivisionError):
        wire.go(mode, Plain(world))
    assert wire.record == ["send", "drop 401", "send"]


@modes
def test_a_response_that_nobody_can_judge_is_dropped(world: World, mode: str) -> None:
    wire = Wire(world)
    with pytest.raises(ZeroDivisionError):
        wire.go(mode, stored(world), heard=lambda reply: (1 // 0, ()))
    assert wire.record == ["send", "drop 200"]


# --- A caller who is cancelled ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_challenged_response_is_dropped_when_its_caller_is_cancelled(world: World, backend: str) -> None:
    user = Slow(world)
    oauth, wire = Plain(world, user=user), Wire(world)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send_authorized_async, oauth, wire.url, wire.asend, heard, wire.adrop)
            assert await anyio.to_thread.run_sync(user.shown.wait, PATIENCE)
            tasks.cancel_scope.cancel()

    anyio.run(main, backend=backend)
    user.may_answer.set()
    assert wire.record == ["send", "drop 401"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_response_that_does_not_end_holds_no_cancelled_caller(
    world: World, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plug, "LETTING_GO", 0.01)
    wire, dropping = Wire(world), anyio.Event()

    async def never(reply: Reply) -> None:
        dropping.set()
        await anyio.sleep_forever()

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send_authorized_async, Plain(world), wire.url, wire.asend, heard, never)
            await dropping.wait()
            tasks.cancel_scope.cancel()

    anyio.run(main, backend=backend)
    assert wire.record == ["send"]


# --- Trip -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "hop", "authorized"),
    [
        ("https://mcp.example/mcp", False, True),
        ("HTTPS://MCP.example:443/mcp?q=1#f", False, True),
        ("https://mcp.example/other", False, True),
        ("https://mcp.example/other", True, False),
        ("https://mcp.example/mcp/below", True, True),
        ("https://mcp.example/mcp/../other", True, False),
        ("http://mcp.example/mcp", False, False),
        ("https://mcp.example:8443/mcp", False, False),
        ("https://mcp.example.evil/mcp", False, False),
        ("wss://mcp.example/mcp", False, True),
        ("WSS://mcp.example/mcp", False, True),
        ("wss://mcp.example/other", True, False),
        ("wss://elsewhere.example/mcp", False, False),
        ("ws://mcp.example/mcp", False, False),
        ("wsss://mcp.example/mcp", False, False),
        ("ws", False, False),
        ("", False, False),
    ],
)
def test_RULES_1_1_RFC6455_4_1_where_the_token_goes(world: World, url: str, hop: bool, authorized: bool) -> None:
    trip = Trip(stored(world), url, replayable=True, hop=hop)
    if authorized:
        assert isinstance(trip.effect, Ensure)
    else:
        assert trip.effect == Proceed(())


@pytest.mark.parametrize(("url", "authorized"), [("ws://127.0.0.1/mcp", True), ("http://127.0.0.1/mcp", True)])
def test_RULES_1_1_loopback_needs_no_tls(url: str, authorized: bool) -> None:
    trip = Trip(stored(World("http://127.0.0.1")), url, replayable=True)
    assert isinstance(trip.effect, Ensure) is authorized


def under_way(world: World) -> Trip:
    """A request that was sent with a token."""
    oauth = stored(world)
    trip = Trip(oauth, world.url, replayable=True)
    assert isinstance(trip.effect, Ensure)
    trip.ensured(oauth.ensure(trip.effect.need))
    assert isinstance(trip.effect, Proceed)
    assert trip.effect.headers
    return trip


CHALLENGE = ('Bearer error="invalid_token"',)


def test_RULES_1_1_a_challenge_from_where_a_redirect_led_is_ignored(world: World) -> None:
    trip = under_way(world)
    assert not trip.answered(401, CHALLENGE, redirected_to="https://mcp.example/other")
    assert trip.effect is None


def test_RULES_1_1_a_hop_below_the_server_is_repeated_once_with_the_token(world: World) -> None:
    trip = under_way(world)
    before = trip.effect
    assert trip.answered(401, CHALLENGE, redirected_to="https://mcp.example/mcp/below")
    assert trip.effect == before
    assert not trip.answered(401, CHALLENGE, redirected_to="https://mcp.example/mcp/below")
    assert isinstance(trip.effect, Ensure)  # it is refused now


def test_a_hop_below_the_server_that_answered_is_not_repeated(world: World) -> None:
    trip = under_way(world)
    assert not trip.answered(200, (), redirected_to="https://mcp.example/mcp/below")
    assert trip.effect is None


@pytest.mark.parametrize("status", [200, 302, 400, 407, 418, 500, 503])
def test_RFC9110_11_6_1_a_challenge_with_another_status_means_nothing(world: World, status: int) -> None:
    trip = under_way(world)
    trip.answered(status, CHALLENGE)
    assert trip.effect is None
