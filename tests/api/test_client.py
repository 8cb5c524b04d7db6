"""`MCPOAuthClient` up to its tokens: each step, what it asks whom, and as which client."""

from __future__ import annotations

import logging
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest

from mcp_oauth.client import MCPOAuthClient
from mcp_oauth.exceptions import (
    AuthorizationError,
    ConfigurationError,
    DiscoveryError,
    RegistrationError,
    TokenExchangeError,
)
from mcp_oauth.io.user import Browser, PasteBack
from mcp_oauth.sansio import authorization_code
from mcp_oauth.sansio.errors import Reason
from tests.api.steps import MANUAL, METADATA, OWN_SCHEME, PRM, Make, Server, failing, run
from tests.io.servers import Reply, document

# --- The whole -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_login_by_hand(backend: str, server: Server, make: Make) -> None:
    async def by_hand() -> None:
        client = make(redirect_uri="http://localhost:8080/callback")
        await client.discover_authorization_server()
        assert (client.authorization_url, client.token_url) == tuple(MANUAL.values())
        info = await client.register_client("My app", ["http://localhost:8080/callback"])
        assert info["client_id"] == client.client_id == "client-1"
        tokens = await client.authorize(scopes=["read", "write"])
        assert tokens.get_authorization_header() == f"Bearer {tokens.access_token}"
        assert tokens.access_token in server.valid
        assert not tokens.is_expired()
        new = await client.refresh_token(tokens.refresh_token)
        assert new.access_token != tokens.access_token
        assert await client.revoke_token(new.access_token)

    run(by_hand(), backend)
    assert server.asked == [PRM, METADATA, "/register", "/token", "/token", "/revoke"]
    assert server.asked_of_the_person()["redirect_uri"] == "http://localhost:8080/callback"
    assert server.asked_of_the_person()["scope"] == "read write"


def test_each_step_runs_the_earlier_ones_that_it_needs(server: Server, make: Make) -> None:
    client = make()
    run(client.authorize())
    assert server.asked == [PRM, METADATA, "/register", "/token"]
    run(client.authorize())
    assert server.asked[4:] == ["/token"]


def test_nothing_secret_is_told(server: Server, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server.instead["/revoke"] = [Reply(400, (("content-type", "text/plain"),), b"CANARY")]
    client = make()
    tokens = run(client.authorize())
    tokens = run(client.refresh_token(tokens.refresh_token))
    run(client.revoke_token(tokens.access_token))
    assert "CANARY" not in caplog.text + repr(client) + repr(tokens)


# --- Discovery -----------------------------------------------------------------------------------------------------


class TestDiscovery:
    def test_what_is_known(self, server: Server, make: Make) -> None:
        server.metadata = {"scopes_supported": ["openid", "read"]}
        client = make()
        assert (client.authorization_url, client.issuer, client.scopes_supported) == (None, None, None)
        run(client.discover_authorization_server())
        assert client.issuer == server.origin
        assert client.registration_endpoint == f"{server.origin}/register"
        assert client.revocation_endpoint == f"{server.origin}/revoke"
        assert client.code_challenge_methods_supported == ("S256",)
        assert client.scopes_supported == ("openid", "read")

    def test_the_resource_lists_scopes_before_its_authorization_server(self, server: Server, make: Make) -> None:
        server.metadata, server.resource = {"scopes_supported": ["openid"]}, {"scopes_supported": ["read"]}
        client = make()
        run(client.discover_authorization_server())
        assert client.scopes_supported == ("read",)

    def test_RULES_2_8_a_server_of_2025_03_26_is_its_own_authorization_server(self, server: Server, make: Make) -> None:
        server.resource = None
        client = make()
        run(client.discover_authorization_server())
        assert server.asked == [PRM, "/.well-known/oauth-protected-resource", METADATA]
        assert client.token_url == f"{server.origin}/token"

    def test_again_it_is_read_anew(self, server: Server, make: Make) -> None:
        client = make()
        run(client.discover_authorization_server())
        server.metadata = {"token_endpoint": f"{server.origin}/token/2"}
        run(client.discover_authorization_server())
        assert client.token_url == f"{server.origin}/token/2"
        assert server.asked == [PRM, METADATA] * 2

    def test_RULES_2_9_a_configured_client_stays_with_the_issuer_that_it_met_first(
        self, server: Server, make: Make
    ) -> None:
        client = make(client_id="mine", client_secret="CANARY-secret")
        run(client.discover_authorization_server())
        server.resource = {"authorization_servers": ["https://other.example"]}
        server.metadata = {"issuer": "https://other.example"}
        run(client.discover_authorization_server())
        error = failing(RegistrationError, client.authorize())
        assert error.reason is Reason.CLIENT_OF_ANOTHER_ISSUER
        failing(RegistrationError, client.refresh_token("CANARY-refresh-elsewhere"))
        assert "/token" not in server.asked

    @pytest.mark.parametrize("step", ["discover_authorization_server", "register_client", "authorize"])
    def test_a_server_without_metadata(self, step: str, server: Server, make: Make) -> None:
        server.resource, server.instead[METADATA] = None, [Reply(404)]
        error = failing(DiscoveryError, getattr(make(), step)())
        assert (error.stage, error.url) == ("discovery", server.url)
        assert [attempt.status for attempt in error.attempts] == [404, 404, 404, 404]

    def test_the_preferred_issuer(self, server: Server, make: Make) -> None:
        server.resource = {"authorization_servers": ["https://other.example", server.origin]}
        client = make(issuer=server.origin)
        run(client.discover_authorization_server())
        assert client.issuer == server.origin


class TestManualEndpoints:
    """At the caller's word."""

    def test_nothing_is_discovered(self, server: Server, make: Make) -> None:
        client = make(**MANUAL, registration_url=f"{server.origin}/register", revocation_url=f"{server.origin}/revoke")
        run(client.discover_authorization_server())
        assert (client.authorization_url, client.token_url) == tuple(MANUAL.values())
        assert client.registration_endpoint == f"{server.origin}/register"
        tokens = run(client.authorize(["read"]))
        assert run(client.revoke_token(tokens.access_token))
        assert server.asked == ["/register", "/token", "/revoke"]
        assert server.asked_of_the_person()["resource"] == server.url

    def test_a_client_of_ones_own(self, server: Server, make: Make) -> None:
        client = make(**MANUAL, client_id="mine", client_secret="CANARY-secret", auth_method="client_secret_post")
        assert (client.client_id, client.client_info) == ("mine", None)
        run(client.authorize())
        assert server.forms("/token")[0]["client_secret"] == "CANARY-secret"
        info = client.client_info
        assert info is not None
        assert (info["client_id"], info["token_endpoint_auth_method"]) == ("mine", "client_secret_post")
        assert client.issuer is None

    @pytest.mark.parametrize("endpoint", [None, "/register"], ids=["registers-none", "nobody-to-be"])
    def test_without_a_client_and_a_registration_endpoint(
        self, endpoint: str | None, server: Server, make: Make
    ) -> None:
        server.metadata = {"registration_endpoint": None}
        client = make(**(MANUAL if endpoint is None else {}))
        for step in (client.register_client, client.authorize):
            error = failing(RegistrationError, step())
            assert "pass client_id" in str(error)
        assert "/register" not in server.asked

    @pytest.mark.parametrize("iss", ["https://mallory.example", None], ids=["another", "none"])
    def test_RULES_2_14_without_an_issuer_there_is_nothing_to_compare(
        self, iss: str | None, server: Server, make: Make
    ) -> None:
        server.answer = {"iss": iss}
        assert run(make(**MANUAL, client_id="mine").authorize()).access_token in server.valid

    def test_RULES_2_14_with_one_it_is_compared(self, server: Server, make: Make) -> None:
        client = make(**MANUAL, client_id="mine", issuer=server.origin)
        assert client.issuer == server.origin
        run(client.authorize())
        server.answer = {"iss": "https://mallory.example"}
        error = failing(AuthorizationError, client.authorize())
        assert error.reason is Reason.CALLBACK_ISSUER
        assert len(server.at("/token")) == 1

    def test_RULES_2_14_the_state_is_judged_all_the_same(self, server: Server, make: Make) -> None:
        server.answer = {"state": "another"}
        error = failing(AuthorizationError, make(**MANUAL, client_id="mine").authorize())
        assert error.reason is Reason.CALLBACK_STATE

    @pytest.mark.parametrize(
        ("endpoints", "named"),
        [
            ({"token_url": "https://a.example/token"}, "authorization_url and token_url"),
            ({"authorization_url": "https://a.example/authorize"}, "authorization_url and token_url"),
            ({"revocation_url": "https://a.example/revoke"}, "authorization_url and token_url"),
            (MANUAL | {"token_url": "http://a.example/token"}, "token_url: .* http"),
            (MANUAL | {"token_url": "token"}, "token_url: "),
            (MANUAL | {"registration_url": "https://a.example/r#x"}, "registration_url: .* fragment"),
            (MANUAL | {"authorization_url": "https://a.example/a?state=x"}, "authorization_url: .* state"),
        ],
        ids=[
            "alone", "alone-too", "alone-as-well", "RULES-1.3-http", "RULES-1.3-no-url", "RULES-2.6-fragment",
            "RULES-2.6-taken",
        ],
    )  # fmt: skip
    def test_what_cannot_be(self, endpoints: dict[str, str], named: str, make: Make) -> None:
        with pytest.raises(ConfigurationError, match=named):
            make(**endpoints)


# --- Registration --------------------------------------------------------------------------------------------------


class TestRegistration:
    def test_what_is_returned(self, server: Server, make: Make) -> None:
        secret = {"client_secret": "CANARY-secret", "client_secret_expires_at": 0}
        secret |= {"registration_client_uri": f"{server.origin}/register/1", "registration_access_token": "CANARY-rat"}
        server.instead["/register"] = [document({"client_id": "given", **secret}, 201)]
        client = make(redirect_uri="http://127.0.0.1:8080/callback")
        info = run(client.register_client("My app"))
        assert info == {
            "client_id": "given",
            "client_secret": "CANARY-secret",
            "client_name": "My app",
            "redirect_uris": ["http://127.0.0.1:8080/callback"],
            "token_endpoint_auth_method": "client_secret_basic",
            "registration_client_uri": f"{server.origin}/register/1",
            "registration_access_token": "CANARY-rat",
        }
        assert client.client_info == info

    def test_all_redirect_uris_are_registered(self, server: Server, make: Make) -> None:
        uris = ["https://app.example/callback", "http://localhost:8080/callback", OWN_SCHEME]
        client = make(redirect_uri="http://localhost:8080/callback")
        info = run(client.register_client(redirect_uris=uris))
        assert sorted(server.registered[0]["redirect_uris"]) == sorted(info["redirect_uris"]) == sorted(uris)
        assert client.redirect_uri == info["redirect_uris"][0] == "http://localhost:8080/callback"

    def test_the_first_is_used_if_the_constructors_is_not_among_them(self, server: Server, make: Make) -> None:
        client = make()
        run(client.register_client(redirect_uris=iter(["http://localhost:9090/cb", OWN_SCHEME])))
        run(client.authorize())
        assert server.asked_of_the_person()["redirect_uri"] == "http://localhost:9090/cb"
        assert len(server.registered) == 1

    def test_RULES_2_13_the_default_is_ours_to_choose(self, server: Server, make: Make) -> None:
        client = make()
        info = run(client.register_client())
        (uri,) = info["redirect_uris"]
        url = urlsplit(uri)
        assert (url.hostname, url.path.startswith("/callback/")) == ("127.0.0.1", True)
        assert url.port
        run(client.authorize())
        assert server.asked_of_the_person()["redirect_uri"] == uri

    def test_a_new_one_each_time(self, server: Server, make: Make) -> None:
        client = make(client_id="mine")
        assert [run(client.register_client())["client_id"] for _ in range(2)] == ["client-1", "client-2"]
        run(client.authorize())
        assert server.asked_of_the_person()["client_id"] == client.client_id == "client-2"

    @pytest.mark.parametrize(
        ("given", "listed", "sent"),
        [(["a", "b"], ["read"], "a b"), (None, ["read"], "read"), (None, None, None)],
        ids=["explicit", "of-the-resource", "unknown"],
    )
    def test_RULES_2_10_the_scopes_that_will_be_asked_for(
        self, given: list[str] | None, listed: list[str] | None, sent: str | None, server: Server, make: Make
    ) -> None:
        server.resource = {"scopes_supported": listed}
        info = run(make().register_client(scopes=given))
        assert server.registered[0].get("scope") == sent == info.get("scope")

    def test_refused(self, server: Server, make: Make) -> None:
        server.instead["/register"] = [document({"error": "invalid_redirect_uri"}, 400)]
        error = failing(RegistrationError, make().register_client())
        assert (error.status, error.oauth_error) == (400, "invalid_redirect_uri")
        assert error.url == f"{server.origin}/register"


# --- Authorization -------------------------------------------------------------------------------------------------


class TestAuthorization:
    def test_a_registration_that_covers_the_scopes_is_used(self, server: Server, make: Make) -> None:
        client = make()
        run(client.register_client(scopes=["read", "write"]))
        run(client.authorize(["read"]))
        assert len(server.registered) == 1

    def test_one_that_does_not_is_replaced(self, server: Server, make: Make) -> None:
        client = make()
        run(client.register_client("My app", scopes=["read"]))
        run(client.authorize(["read", "write"]))
        assert client.client_info is not None
        assert (client.client_id, client.client_info["client_name"]) == ("client-2", "My app")

    def test_RULES_2_11_a_server_that_forgot_the_client_gets_a_new_one(self, server: Server, make: Make) -> None:
        client = make()
        run(client.register_client())
        server.instead["/token"] = [document({"error": "invalid_client"}, 401)]
        assert run(client.authorize()).access_token in server.valid
        assert client.client_id == "client-2"

    def test_a_denial(self, server: Server, make: Make) -> None:
        server.answer = {"error": "access_denied", "code": None}
        error = failing(AuthorizationError, make().authorize())
        assert "denied" in str(error).lower()
        assert (error.oauth_error, error.stage) == ("access_denied", "authorization")

    def test_nobody_answers(self, server: Server, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(authorization_code, "PATIENCE", 0.01)

        async def silent(url: str) -> str:
            await anyio.sleep(0.3)
            return url

        error = failing(AuthorizationError, make(user=silent, login_seconds=0.03).authorize())
        assert error.reason is Reason.LOGIN_TIMED_OUT
        assert "timeout" in str(error).lower()

    def test_an_exchange_that_is_refused(self, server: Server, make: Make) -> None:
        server.instead["/token"] = [document({"error": "invalid_grant"}, 400)]
        error = failing(TokenExchangeError, make().authorize())
        assert (error.status, error.oauth_error, error.url) == (400, "invalid_grant", f"{server.origin}/token")

    def test_a_scheme_of_ones_own(self, server: Server, make: Make) -> None:
        tokens = run(make(redirect_uri=OWN_SCHEME).authorize())
        assert tokens.access_token in server.valid
        assert server.registered[0]["redirect_uris"] == [OWN_SCHEME]
        assert server.registered[0]["application_type"] == "native"

    def test_pasted_back(self, server: Server, make: Make) -> None:
        """The query alone will do, also where there is nothing to compare `iss` with."""
        shown: list[str] = []

        def read() -> str:
            return urlsplit(server.login(shown[0].split("browser: ")[1].split("\n")[0])).query

        client = make(redirect_uri=OWN_SCHEME, user=PasteBack(read, shown.append), **MANUAL, client_id="mine")
        assert run(client.authorize()).access_token in server.valid

    @pytest.mark.parametrize("uri", [OWN_SCHEME, "https://app.example/callback"])
    @pytest.mark.parametrize("user", [None, Browser(opener=lambda url: pytest.fail(url))], ids=["default", "browser"])
    def test_a_browser_cannot_come_back_everywhere(
        self, user: Browser | None, uri: str, server: Server, make: Make
    ) -> None:
        client = make(redirect_uri=uri, user=user)
        error = failing(ConfigurationError, client.authorize())
        assert "pass user=" in str(error)
        assert server.seen == []
        assert run(client.register_client())["redirect_uris"] == [uri]

    def test_scopes_that_cannot_be(self, server: Server, make: Make) -> None:
        assert "scopes" in str(failing(ConfigurationError, make().authorize(['"'])))
        assert server.seen == []


# --- Options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["store", "account", "scopes", "client", "interactive", "colour"])
def test_an_option_that_there_is_not(option: str) -> None:
    options: dict[str, Any] = {option: None}
    with pytest.raises(TypeError, match=f"MCPOAuthClient has no option '{option}'"):
        MCPOAuthClient("https://mcp.example/mcp", **options)


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("mcp.example", {}),
        ("http://mcp.example/mcp", {}),
        ("https://mcp.example/mcp", {"redirect_uri": "http://mcp.example/callback"}),
        ("https://mcp.example/mcp", {"client_id": "mine", "auth_method": "client_secret_post"}),
        ("https://mcp.example/mcp", {"authorization_params": {"state": "mine"}}),
        ("https://mcp.example/mcp", {"login_seconds": 0}),
    ],
    ids=["no-url", "RULES-1.3-http", "RULES-2.13-redirect", "no-secret", "RULES-2.16-params", "no-time"],
)
def test_what_cannot_be(url: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        MCPOAuthClient(url, **options)


def test_the_server_url_is_canonical() -> None:
    assert MCPOAuthClient("HTTPS://MCP.Example:443/mcp#x").server_url == "https://mcp.example/mcp"
