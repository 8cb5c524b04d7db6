"""Long sessions of the official SDK, 1.x and 2.x, on its real server: `httpx2.AsyncClient(auth=OAuth(url))` alone.

In each of them a stream of the server's events stays open: the GET of the older wire, `subscriptions/listen` of the
newer one. What the authorization server did is counted there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import anyio
import pytest

from mcp_oauth.exceptions import AuthorizationRequired
from mcp_oauth.io.httpx2 import OAuth
from mcp_oauth.store.memory import MemoryStore
from tests.ecosystem.program import sdk2
from tests.ecosystem.sessions import WAYS, Session, session
from tests.servers import consent
from tests.servers.mcp_server import ADMIN, McpServer, serving

PARALLEL = 50
SHORT = 2
"""Seconds that an access token lives."""
ONE_LOGIN = {"registered": 1, "logged in": 1}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    way: str = request.param
    return way


@pytest.fixture
def server() -> Iterator[McpServer]:
    with serving() as here:
        yield here


@pytest.fixture
def here(way: str, server: McpServer) -> Iterator[Session]:
    with session(way, server) as begun:
        yield begun


def given_out(stats: Counter[str]) -> dict[str, int]:
    """What the authorization server did."""
    return {what: stats[what] for what in ("registered", "logged in", "renewed") if stats[what]}


def test_tokens_that_expire_are_renewed_while_a_stream_is_open(way: str) -> None:
    with serving(token_lifetime=SHORT) as server, session(way, server) as here:
        calls = 0
        while (stats := server.stats())["renewed"] < 3:
            assert here.call() == ["alice"]
            calls += 1
        assert here.call("announce", hear=1) == ["alice"]
    assert calls > stats["renewed"]
    assert given_out(stats) == ONE_LOGIN | {"renewed": stats["renewed"]}
    assert here.asked == 1
    assert stats["GET 200"] == stats["open"] == way.endswith("legacy")


def test_an_access_token_that_was_revoked_is_renewed(here: Session, server: McpServer) -> None:
    assert here.call("announce", hear=1) == ["alice"]
    server.forget_access_tokens()
    assert here.call() == ["alice"]
    assert here.call("announce", hear=1) == ["alice"]
    assert given_out(server.stats()) == ONE_LOGIN | {"renewed": 1}
    assert here.asked == 1


def test_a_grant_that_was_revoked_brings_one_login_and_cuts_nothing(here: Session, server: McpServer) -> None:
    here.begin("wait", times=PARALLEL)
    server.until("waiting", PARALLEL)
    server.revoke()
    server.release()
    assert here.answers() == ["alice"] * PARALLEL
    assert here.call(times=PARALLEL) == ["alice"] * PARALLEL
    assert here.call("announce", hear=1) == ["alice"]
    assert here.asked == 2
    assert given_out(server.stats()) == {"registered": 1, "logged in": 2}


def test_parallel_calls_are_parallel_after_one_renewal(here: Session, server: McpServer) -> None:
    """No tool answers before all are called."""
    server.forget_access_tokens()
    assert here.call("meet", times=PARALLEL, number=PARALLEL) == ["alice"] * PARALLEL
    assert given_out(server.stats()) == ONE_LOGIN | {"renewed": 1}


def test_RULES_3_5_a_tool_that_wants_more_brings_one_login(way: str, here: Session, server: McpServer) -> None:
    """The SDK's server wants another registration for more scopes, and binds a session to the one that began it."""
    answers = here.call("admin", times=PARALLEL)
    if way.endswith("legacy"):
        assert all("Session" in answer for answer in answers)
        here.disconnect()
        here.connect()
    else:
        assert answers == ["alice may"] * PARALLEL
    assert here.call("admin", times=PARALLEL) == ["alice may"] * PARALLEL
    assert here.call() == ["alice"]
    assert here.asked == 2
    assert given_out(server.stats()) == {"registered": 2, "logged in": 2}


@pytest.mark.parametrize("way", [way for way in WAYS if way.endswith("legacy")])
def test_RULES_2_10_scopes_registered_in_advance_keep_the_session_at_a_step_up(way: str, server: McpServer) -> None:
    with session(way, server, ADMIN) as here:
        assert here.call("admin", times=PARALLEL) == ["alice may"] * PARALLEL
        assert here.asked == 2
    assert given_out(server.stats()) == {"registered": 1, "logged in": 2}


def test_RULES_2_11_a_server_that_starts_anew_and_knows_nobody_gets_a_new_login(way: str) -> None:
    """The newer wire has no session that could be lost too."""
    with ExitStack() as running:
        before = running.enter_context(serving())
        with session(way, before) as here:
            assert here.call() == ["alice"]
            running.close()
            with serving(port=before.port) as after:
                answers = here.call(times=PARALLEL)
                if way.endswith("legacy"):
                    assert all("Session" in answer for answer in answers)
                    here.disconnect()
                    here.connect()
                    after.until("open", 1)
                    assert here.call("announce", hear=1) == ["alice"]
                else:
                    assert answers == ["alice"] * PARALLEL
                assert here.asked == 2
                assert given_out(after.stats()) == ONE_LOGIN


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_a_login_that_nobody_is_there_for_ends_the_session_with_the_reason(loop: str, server: McpServer) -> None:
    """The SDK hands a caller nothing but answers: what its HTTP client raises ends the session (an exception group)."""

    async def main() -> None:
        store = MemoryStore()
        await OAuth(server.mcp, store=store, user=consent.follow).aauthorize()
        oauth = OAuth(server.mcp, store=store, interactive=False)
        async with sdk2(server.mcp, oauth, "auto", lambda: None) as call:
            assert await call("whoami", {}) == "alice"
            server.revoke()
            await call("whoami", {})

    with pytest.raises(BaseException) as ended:
        anyio.run(main, backend=loop)
    assert [type(reason) for reason in leaves(ended.value)] == [AuthorizationRequired]


def leaves(error: BaseException) -> Iterator[BaseException]:
    """What is in a group of groups."""
    inner: tuple[BaseException, ...] = getattr(error, "exceptions", ())
    if not inner:
        yield error
    for one in inner:
        yield from leaves(one)
