"""`MCPOAuthClient` at real servers: npm oidc-provider and the official SDK's."""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import closing
from socket import create_server
from typing import Any, TypeVar

import anyio
import httpx
import pytest

from mcp_oauth.client import MCPOAuthClient
from mcp_oauth.exceptions import (
    AuthorizationError,
    ConfigurationError,
    DiscoveryError,
    RegistrationError,
    TokenExchangeError,
    TokenRefreshError,
)
from mcp_oauth.sansio.errors import Reason
from mcp_oauth.tokens import OAuthTokens
from tests.integration.program import Person, at_a_browser, call, nobody, served
from tests.servers import oidc_provider as npm
from tests.servers.oidc_provider import OidcProvider
from tests.servers.sdk_server import SdkServer

T = TypeVar("T")
Server = OidcProvider | SdkServer
READ = ["mcp:read", "offline_access"]
WRITE = ["mcp:read", "mcp:write", "offline_access"]


def run(step: Awaitable[T], backend: str = "asyncio") -> T:
    async def main() -> T:
        return await step

    return anyio.run(main, backend=backend)


def accepted(server: Server, tokens: OAuthTokens) -> bool:
    """The MCP server serves who carries these tokens."""

    def with_token(request: httpx.Request) -> httpx.Request:
        request.headers["Authorization"] = tokens.get_authorization_header()
        return request

    return served(call("httpx-sync", with_token, server.mcp, "whoami"))


def free_port() -> int:
    with closing(create_server(("127.0.0.1", 0))) as taken:
        port: int = taken.getsockname()[1]
        return port


@pytest.fixture(params=["oidc_provider", "sdk_server"])
def server(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_whole_flow_by_hand(backend: str, server: Server) -> None:
    redirect_uri = f"http://localhost:{free_port()}/callback"

    async def by_hand() -> None:
        client = MCPOAuthClient(server_url=server.mcp, redirect_uri=redirect_uri, user=at_a_browser())
        await client.discover_authorization_server()
        assert (client.issuer or "").rstrip("/") == server.issuer.rstrip("/")
        assert client.scopes_supported
        assert "S256" in (client.code_challenge_methods_supported or ())
        info = await client.register_client(client_name="My Awesome App", redirect_uris=[redirect_uri])
        assert info["redirect_uris"] == [redirect_uri]
        tokens = await client.authorize()
        assert client.client_id == info["client_id"]
        assert accepted(server, tokens)
        renewed = await client.refresh_token(tokens.refresh_token)
        assert accepted(server, renewed)
        assert renewed.refresh_token != tokens.refresh_token
        assert await client.revoke_token(renewed.refresh_token or "", "refresh_token")
        assert not accepted(server, renewed)
        with pytest.raises(TokenRefreshError) as dead:
            await client.refresh_token(renewed.refresh_token)
        assert (dead.value.oauth_error, dead.value.status) == ("invalid_grant", 400)

    run(by_hand(), backend)


def test_authorize_alone(server: Server) -> None:
    client = MCPOAuthClient(server.mcp, user=at_a_browser())
    assert accepted(server, run(client.authorize()))
    assert accepted(server, run(client.authorize()))


def test_a_denial(server: Server) -> None:
    client = MCPOAuthClient(server.mcp, user=at_a_browser(deny=True))
    with pytest.raises(AuthorizationError, match="denied") as denied:
        run(client.authorize())
    assert denied.value.oauth_error == "access_denied"


def test_an_access_token_is_revoked(server: Server) -> None:
    client = MCPOAuthClient(server.mcp, user=Person())
    tokens = run(client.authorize())
    assert run(client.revoke_token(tokens.access_token))
    assert not accepted(server, tokens)


def test_a_later_run_of_the_program(server: Server) -> None:
    """It has kept its tokens, and as which client they were issued."""
    first = MCPOAuthClient(server.mcp, user=Person())
    tokens = run(first.authorize())
    info = first.client_info or {}
    later = MCPOAuthClient(
        server.mcp,
        client_id=info["client_id"],
        client_secret=info.get("client_secret"),
        auth_method=info["token_endpoint_auth_method"],
        user=nobody,
    )
    renewed = run(later.refresh_token(tokens.refresh_token))
    assert accepted(server, renewed)
    assert run(later.revoke_token(renewed.access_token))


def test_a_scheme_of_ones_own(sdk_server: SdkServer) -> None:
    client = MCPOAuthClient(sdk_server.mcp, redirect_uri="myapp://oauth/callback", user=Person())
    assert accepted(sdk_server, run(client.authorize()))
    assert client.client_info is not None
    assert client.client_info["redirect_uris"] == ["myapp://oauth/callback"]


def test_a_scheme_of_ones_own_needs_somebody_who_receives_it(sdk_server: SdkServer) -> None:
    client = MCPOAuthClient(sdk_server.mcp, redirect_uri="myapp://oauth/callback")
    with pytest.raises(ConfigurationError, match="pass user="):
        run(client.authorize())


def test_a_port_that_is_taken(server: Server) -> None:
    """One of the caller's choice is listened to exactly; one of ours makes room, with a registration of its own."""
    with closing(create_server(("127.0.0.1", 0))) as taken:
        fixed = f"http://127.0.0.1:{taken.getsockname()[1]}/callback"
        with pytest.raises(AuthorizationError, match="cannot be listened on"):
            run(MCPOAuthClient(server.mcp, fixed, user=at_a_browser()).authorize())
    client = MCPOAuthClient(server.mcp, user=at_a_browser())
    info = run(client.register_client())
    with closing(create_server(("127.0.0.1", httpx.URL(info["redirect_uris"][0]).port or 0))):
        assert accepted(server, run(client.authorize()))
    assert client.client_id != info["client_id"]


class TestManualEndpoints:
    """What is not discovered must be said: the scopes, and that an OpenID provider is to ask for offline access."""

    @pytest.fixture
    def endpoints(self, server: Server) -> dict[str, str | None]:
        found = MCPOAuthClient(server.mcp)
        run(found.discover_authorization_server())
        return {
            "authorization_url": found.authorization_url,
            "token_url": found.token_url,
            "registration_url": found.registration_endpoint,
            "revocation_url": found.revocation_endpoint,
        }

    @pytest.fixture
    def scopes(self, server: Server) -> list[str]:
        return READ if isinstance(server, OidcProvider) else ["mcp:tools"]

    @pytest.mark.parametrize("issuer", [True, False], ids=["issuer", "no-issuer"])
    def test_they_will_do(self, issuer: bool, endpoints: dict[str, Any], scopes: list[str], server: Server) -> None:
        known: dict[str, Any] = {"issuer": server.issuer} if issuer else {}
        asking = {"prompt": "consent"}
        client = MCPOAuthClient(server.mcp, user=at_a_browser(), authorization_params=asking, **endpoints, **known)
        tokens = run(client.authorize(scopes))
        assert accepted(server, tokens)
        assert accepted(server, renewed := run(client.refresh_token(tokens.refresh_token)))
        # The SDK's server wants a secret there, and registers clients that have none.
        assert run(client.revoke_token(renewed.access_token)) is isinstance(server, OidcProvider)

    def test_RULES_2_14_the_issuer_is_compared(
        self, endpoints: dict[str, Any], scopes: list[str], server: Server
    ) -> None:
        client = MCPOAuthClient(server.mcp, user=Person(), issuer="https://another.example", **endpoints)
        if isinstance(server, OidcProvider):
            with pytest.raises(AuthorizationError) as mixed_up:
                run(client.authorize(scopes))
            assert mixed_up.value.reason is Reason.CALLBACK_ISSUER
        else:  # it names itself nowhere
            assert accepted(server, run(client.authorize(scopes)))

    def test_a_client_that_nobody_knows(self, endpoints: dict[str, Any], server: Server) -> None:
        client = MCPOAuthClient(server.mcp, client_id="nobody", user=nobody, **endpoints)
        with pytest.raises(TokenRefreshError) as unknown:
            run(client.refresh_token("made-up"))
        assert unknown.value.oauth_error in ("invalid_client", "unauthorized_client")


class TestAtOidcProvider:
    @pytest.fixture
    def client(self, provider: OidcProvider) -> MCPOAuthClient:
        return MCPOAuthClient(provider.mcp, user=Person())

    @pytest.fixture
    def provider(self) -> Any:
        with npm.serving() as provider:
            yield provider

    def test_FN_1_each_refresh_token_under_its_own_client(self, client: MCPOAuthClient, provider: OidcProvider) -> None:
        run(client.register_client(scopes=READ))
        first = run(client.authorize(READ))
        one = client.client_id
        second = run(client.authorize(WRITE))
        assert client.client_id != one
        assert accepted(provider, run(client.refresh_token(first.refresh_token)))
        assert accepted(provider, run(client.refresh_token(second.refresh_token)))
        assert provider.stats()["familiesRevoked"] == 0

    @pytest.mark.parametrize(
        "answer", [{"lose": True}, {"status": 500}, {"status": 503}], ids=["lost", "500", "not-processed"]
    )
    def test_RULES_3_3_a_renewal_is_tried_again(
        self, answer: dict[str, Any], client: MCPOAuthClient, provider: OidcProvider
    ) -> None:
        tokens = run(client.authorize())
        provider.set(token=[answer], refreshGrace=10)
        assert accepted(provider, run(client.refresh_token(tokens.refresh_token)))

    def test_one_that_was_exchanged_is_not_sent_again(self, client: MCPOAuthClient, provider: OidcProvider) -> None:
        """It would cost the whole family here."""
        tokens = run(client.authorize())
        renewed = run(client.refresh_token(tokens.refresh_token))
        assert run(client.refresh_token(tokens.refresh_token)) == renewed
        assert accepted(provider, renewed)
        assert provider.stats()["familiesRevoked"] == 0

    def test_the_scopes_that_were_granted(self, client: MCPOAuthClient, provider: OidcProvider) -> None:
        tokens = run(client.authorize(["mcp:read", "mcp:write"]))
        assert set((tokens.scope or "").split()) == {"mcp:read", "mcp:write"}

    def test_an_exchange_that_is_refused(self, client: MCPOAuthClient, provider: OidcProvider) -> None:
        body = '{"error": "invalid_grant"}'
        provider.set(token=[{"status": 400, "headers": {"content-type": "application/json"}, "body": body}])
        with pytest.raises(TokenExchangeError) as refused:
            run(client.authorize())
        assert (refused.value.oauth_error, refused.value.url) == ("invalid_grant", client.token_url)

    def test_a_registration_that_is_refused(self, client: MCPOAuthClient) -> None:
        with pytest.raises(RegistrationError) as refused:
            run(client.register_client(redirect_uris=["http://127.0.0.1/callback", "https://localhost/callback"]))
        assert (refused.value.oauth_error, refused.value.status) == ("invalid_redirect_uri", 400)


@pytest.mark.parametrize("there", [True, False], ids=["no-metadata", "nobody-there"])
def test_no_server(there: bool, oidc_provider: OidcProvider) -> None:
    url = oidc_provider.control if there else f"http://127.0.0.1:{free_port()}/mcp"
    with pytest.raises(DiscoveryError) as nothing:
        run(MCPOAuthClient(url).discover_authorization_server())
    assert nothing.value.reason is (Reason.NO_RESOURCE_METADATA if there else Reason.SERVER_UNAVAILABLE)
