"""`MCPOAuthClient` once it has tokens: renewals and revocations, by the client that got them."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest

from mcp_oauth.client import MOST_REMEMBERED, MCPOAuthClient
from mcp_oauth.exceptions import ConfigurationError, TokenRefreshError
from mcp_oauth.sansio.errors import Reason
from mcp_oauth.tokens import OAuthTokens
from tests.api.steps import Make, Server, failing, run
from tests.io.servers import Reply, document

# --- Renewal -------------------------------------------------------------------------------------------------------


def logged_in(client: MCPOAuthClient, scopes: list[str] | None = None) -> OAuthTokens:
    tokens = run(client.authorize(scopes))
    assert tokens.refresh_token
    return tokens


LOST = httpx2.ReadTimeout("lost")
DOWN = httpx2.ConnectError("down")
BUSY = Reply(503)


class TestRenewal:
    def test_RULES_3_6_what_the_answer_leaves_out_stays(self, server: Server, make: Make) -> None:
        client = make()
        old = logged_in(client, ["read"])
        server.token = {"refresh_token": None, "scope": None}
        new = run(client.refresh_token(old.refresh_token))
        assert (new.refresh_token, new.scope) == (old.refresh_token, "read")
        assert "scope" not in server.forms("/token")[1]

    def test_RFC8707_it_is_for_the_same_resource_and_with_the_same_parameters(self, server: Server, make: Make) -> None:
        client = make(token_params={"audience": "mcp"})
        run(client.refresh_token(logged_in(client).refresh_token))
        login, renewal = server.forms("/token")
        assert (
            (renewal["resource"], renewal["audience"]) == (login["resource"], login["audience"]) == (server.url, "mcp")
        )

    def test_FN_1_never_under_another_client(self, server: Server, make: Make) -> None:
        client = make()
        old = logged_in(client, ["read"])
        logged_in(client, ["read", "write"])
        assert client.client_id == "client-2"
        server.refresh_token = old.refresh_token
        run(client.refresh_token(old.refresh_token))
        assert server.forms("/token")[-1]["client_id"] == "client-1"

    def test_RULES_1_2_never_at_an_endpoint_learned_later(self, server: Server, make: Make) -> None:
        client = make()
        tokens = logged_in(client)
        server.metadata = {"token_endpoint": f"{server.origin}/elsewhere"}
        run(client.discover_authorization_server())
        run(client.refresh_token(tokens.refresh_token))
        assert "/elsewhere" not in server.asked

    def test_FN_1_a_token_from_elsewhere_needs_its_client(self, server: Server, make: Make) -> None:
        client = make()
        run(client.register_client())
        error = failing(TokenRefreshError, client.refresh_token("CANARY-refresh-elsewhere"))
        assert "client_id" in str(error)
        assert server.at("/token") == []

    def test_a_token_from_elsewhere_with_its_client(self, server: Server, make: Make) -> None:
        tokens = logged_in(make(client_id="mine", client_secret="CANARY-secret"))
        later = make(client_id="mine", client_secret="CANARY-secret")
        assert run(later.refresh_token(tokens.refresh_token)).access_token in server.valid
        login, renewal = server.at("/token")
        assert renewal.headers["authorization"] == login.headers["authorization"]

    @pytest.mark.parametrize("token", [None, ""])
    def test_none_at_all(self, token: str | None, server: Server, make: Make) -> None:
        assert "authorize()" in str(failing(TokenRefreshError, make().refresh_token(token)))
        assert server.seen == []

    @pytest.mark.parametrize(
        ("answers", "slept"),
        [
            ([DOWN, DOWN, DOWN], [1.0, 2.0, 4.0]),
            ([BUSY, Reply(429, (("retry-after", "7"),)), DOWN], [1.0, 7.0, 4.0]),
            ([LOST], []),
            ([Reply(500)], []),
            ([BUSY, LOST], [1.0]),
        ],
        ids=["not-sent", "not-processed-Retry-After", "lost", "lost-500", "both"],
    )
    def test_RULES_3_3_it_is_tried_again(
        self, answers: list[Reply | Exception], slept: list[float], server: Server, make: Make, waits: list[float]
    ) -> None:
        client = make()
        tokens = logged_in(client)
        server.instead["/token"] = list(answers)
        assert run(client.refresh_token(tokens.refresh_token)).access_token in server.valid
        assert waits == pytest.approx(slept, abs=0.1)
        assert len(server.at("/token")) == 1 + len(answers) + 1
        assert {form["refresh_token"] for form in server.forms("/token")[1:]} == {tokens.refresh_token}

    @pytest.mark.parametrize(
        ("answers", "reason"),
        [([DOWN] * 4, Reason.RENEWAL_UNAVAILABLE), ([LOST] * 2, Reason.RENEWAL_AMBIGUOUS)],
        ids=["not-sent", "lost"],
    )
    def test_RULES_3_3_it_ends_truthfully_and_nothing_is_discarded(
        self, answers: list[Exception], reason: Reason, server: Server, make: Make, waits: list[float]
    ) -> None:
        client = make()
        tokens = logged_in(client)
        server.instead["/token"] = list(answers)
        error = failing(TokenRefreshError, client.refresh_token(tokens.refresh_token))
        assert (error.reason, error.stage, error.url) == (reason, "renewal", f"{server.origin}/token")
        assert run(client.refresh_token(tokens.refresh_token)).access_token in server.valid

    @pytest.mark.parametrize(
        ("error", "status"), [("invalid_grant", 400), ("invalid_client", 401), ("invalid_scope", 400)]
    )
    @pytest.mark.parametrize("client_id", [None, "mine"], ids=["dynamic", "configured"])
    def test_refused(self, client_id: str | None, error: str, status: int, server: Server, make: Make) -> None:
        client = make(client_id=client_id)
        tokens = logged_in(client)
        server.instead["/token"] = [document({"error": error, "error_description": tokens.refresh_token}, status)]
        refused = failing(TokenRefreshError, client.refresh_token(tokens.refresh_token))
        assert (refused.oauth_error, refused.status, refused.url) == (error, status, f"{server.origin}/token")
        assert "CANARY" not in str(refused)
        assert len(server.at("/token")) == 2

    def test_any_number_of_renewals(self, server: Server, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        """RULES 3.4 limits those that nobody asked for; and what is remembered of them has an end."""
        monkeypatch.setattr("mcp_oauth.client.MOST_REMEMBERED", 10)
        client = make()
        tokens = logged_in(client)
        for _ in range(35):
            tokens = run(client.refresh_token(tokens.refresh_token))
        assert (server.refreshes, len(client._issued)) == (35, 10)
        assert MOST_REMEMBERED > 10

    def test_calls_at_once_share_one_renewal(self, server: Server, make: Make) -> None:
        client = make()
        tokens = logged_in(client)

        async def both() -> list[OAuthTokens]:
            return await asyncio.gather(*(client.refresh_token(tokens.refresh_token) for _ in range(5)))

        first, *others = run(both())
        assert all(other == first for other in others)
        assert (server.refreshes, server.reuses) == (1, 0)

    def test_a_cancelled_caller_loses_no_token(self, server: Server, make: Make) -> None:
        client = make()
        tokens = logged_in(client)

        async def cancelled_and_again() -> OAuthTokens:
            arrived, loop = asyncio.Event(), asyncio.get_running_loop()
            server.before = lambda stage: loop.call_soon_threadsafe(arrived.set)
            waiting = asyncio.create_task(client.refresh_token(tokens.refresh_token))
            await arrived.wait()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            return await client.refresh_token(tokens.refresh_token)

        assert run(cancelled_and_again()).access_token in server.valid
        assert (server.refreshes, server.reuses) == (1, 0)

    def test_one_that_was_exchanged_is_not_sent_again(self, server: Server, make: Make) -> None:
        client = make()
        first = logged_in(client)
        second = run(client.refresh_token(first.refresh_token))
        assert run(client.refresh_token(first.refresh_token)) == second
        assert (server.refreshes, server.reuses) == (1, 0)
        third = run(client.refresh_token(second.refresh_token))
        failing(TokenRefreshError, client.refresh_token(first.refresh_token))
        run(client.revoke_token(third.access_token))
        failing(TokenRefreshError, client.refresh_token(second.refresh_token))
        assert server.reuses == 2

    def test_one_from_elsewhere_is_not_sent_again_either(self, server: Server, make: Make) -> None:
        first = logged_in(make(client_id="mine"))
        later = make(client_id="mine")
        second = run(later.refresh_token(first.refresh_token))
        assert run(later.refresh_token(first.refresh_token)) == second
        assert (server.refreshes, server.reuses) == (1, 0)

    def test_one_that_does_not_rotate_is_sent_each_time(self, server: Server, make: Make) -> None:
        client = make()
        tokens = logged_in(client)
        server.token = {"refresh_token": None}
        for _ in range(3):
            server.refresh_token = tokens.refresh_token
            run(client.refresh_token(tokens.refresh_token))
        assert server.refreshes == 3


# --- Revocation ----------------------------------------------------------------------------------------------------


class TestRevocation:
    @pytest.mark.parametrize(
        ("hint", "sent"),
        [(None, "access_token"), ("access_token", "access_token"), ("refresh_token", "refresh_token")],
    )
    def test_RFC7009_2_1_the_request(self, hint: Any, sent: str, server: Server, make: Make) -> None:
        client = make()
        tokens = logged_in(client)
        assert tokens.refresh_token is not None
        assert run(client.revoke_token(tokens.refresh_token, token_type_hint=hint)) is True
        form = {"token": tokens.refresh_token, "token_type_hint": sent, "client_id": "client-1"}
        assert server.forms("/revoke") == [form]

    def test_RFC7009_2_2_1_busy_means_still_alive(self, server: Server, make: Make, waits: list[float]) -> None:
        client = make()
        server.instead["/revoke"] = [BUSY]
        assert run(client.revoke_token(logged_in(client).access_token)) is True
        assert (len(server.at("/revoke")), waits) == (2, [1.0])

    def test_refused(self, server: Server, make: Make, caplog: pytest.LogCaptureFixture) -> None:
        client = make()
        tokens = logged_in(client)
        server.instead["/revoke"] = [document({"error": "unsupported_token_type"}, 400)]
        assert run(client.revoke_token(tokens.access_token)) is False
        assert "unsupported_token_type" in caplog.text

    def test_nowhere_to(self, server: Server, make: Make, caplog: pytest.LogCaptureFixture) -> None:
        server.metadata = {"revocation_endpoint": None}
        client = make()
        assert run(client.revoke_token(logged_in(client).access_token)) is False
        assert "no revocation endpoint" in caplog.text

    def test_a_token_from_elsewhere(self, server: Server, make: Make) -> None:
        assert run(make(client_id="mine").revoke_token("CANARY-access-elsewhere")) is True
        assert server.forms("/revoke")[0]["client_id"] == "mine"
        assert "client_id" in str(failing(ConfigurationError, make().revoke_token("CANARY-access-elsewhere")))
