"""`MCPOAuthClient` over a world without sockets: each step, what it asks whom, and as which client."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import anyio
import httpx2
import pytest

from mcp_oauth.client import MOST_REMEMBERED, MCPOAuthClient
from mcp_oauth.exceptions import (
    AuthorizationError,
    ConfigurationError,
    DiscoveryError,
    OAuthError,
    RegistrationError,
    TokenExchangeError,
    TokenRefreshError,
)
from mcp_oauth.io import oauth as driver
from mcp_oauth.io.user import Browser, PasteBack
from mcp_oauth.sansio import authorization_code
from mcp_oauth.sansio.errors import Reason
from mcp_oauth.sansio.values import Now
from mcp_oauth.tokens import OAuthTokens
from tests.io.servers import Reply, Seen, World, document

T = TypeVar("T")

PRM = "/.well-known/oauth-protected-resource/mcp"
METADATA = "/.well-known/oauth-authorization-server"
MANUAL = {"authorization_url": "https://mcp.example/authorize", "token_url": "https://mcp.example/token"}
OWN_SCHEME = "myapp://oauth/callback"


class Server(World):
    """A world that numbers its clients, remembers whose each refresh token is, and can be told what to answer."""

    def __init__(self) -> None:
        super().__init__()
        self.registered: list[dict[str, Any]] = []
        self.redirects: list[str] = []
        self.instead: dict[str, list[Reply | Exception]] = {}
        """By path: answers that are used up before the world's own."""
        self.metadata: dict[str, Any] = {}
        """More members of the authorization server's metadata; None leaves one out."""
        self.resource: dict[str, Any] | None = {}
        """The same for the resource; None: it publishes none."""
        self.answer: dict[str, str | None] = {}
        """More parameters of the redirect."""
        self.token: dict[str, Any] = {}
        """More members of token answers."""
        self._owners: dict[str, str] = {}
        self._ids = count(1)

    @property
    def asked(self) -> list[str]:
        return [seen.path for seen in self.seen]

    def forms(self, path: str) -> list[dict[str, str]]:
        return [{name: values[0] for name, values in parse_qs(seen.body.decode()).items()} for seen in self.at(path)]

    def __call__(self, seen: Seen) -> Reply:
        queued = self.instead.get(seen.path)
        if not queued:
            return super().__call__(seen)
        self.seen.append(seen)
        reply = queued.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def login(self, url: str) -> str:
        redirect = httpx2.URL(super().login(url))
        self.redirects.append(url)
        for name, value in self.answer.items():
            redirect = redirect.copy_remove_param(name) if value is None else redirect.copy_set_param(name, value)
        return str(redirect)

    def asked_of_the_person(self) -> dict[str, str]:
        """The parameters of the last authorization request."""
        return {name: values[0] for name, values in parse_qs(urlsplit(self.redirects[-1]).query).items()}

    def _resource(self, seen: Seen) -> Reply:
        return Reply(404) if self.resource is None else _with(super()._resource(seen), self.resource)

    def _issuer(self, seen: Seen) -> Reply:
        return _with(super()._issuer(seen), self.metadata)

    def _register(self, seen: Seen) -> Reply:
        self.registered.append(json.loads(seen.body))
        return document({**self.registered[-1], "client_id": f"client-{next(self._ids)}"}, 201)

    def _token(self, seen: Seen) -> Reply:
        form = {name: values[0] for name, values in parse_qs(seen.body.decode()).items()}
        client = form.get("client_id", "")
        if self._owners.get(form.get("refresh_token", ""), client) != client:
            return document({"error": "invalid_client"}, 401)
        reply = _with(super()._token(seen), self.token)
        if refresh_token := json.loads(reply.body).get("refresh_token"):
            self._owners[refresh_token] = client
        return reply


def _with(reply: Reply, more: dict[str, Any]) -> Reply:
    members = json.loads(reply.body) | more
    return document({name: value for name, value in members.items() if value is not None}, reply.status)


@pytest.fixture
def server() -> Server:
    return Server()


Make = Callable[..., MCPOAuthClient]


@pytest.fixture
def make(server: Server) -> Make:
    """Makes clients of the server, whose person approves."""

    async def answer(request: httpx2.Request) -> httpx2.Response:
        reply = server(Seen(request.method, str(request.url), dict(request.headers), request.content))
        return httpx2.Response(reply.status, headers=list(reply.headers), content=reply.body)

    def client(**options: Any) -> MCPOAuthClient:
        options.setdefault("user", server.login)
        return MCPOAuthClient(server.url, transport=lambda: httpx2.MockTransport(answer), **options)

    return client


def run(step: Awaitable[T], backend: str = "asyncio") -> T:
    async def main() -> T:
        return await step

    return anyio.run(main, backend=backend)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were slept, at once."""
    slept: list[float] = []

    class Hasty(driver._FlightClock):
        def now(self) -> Now:
            real = super().now()
            return Now(real.wall + sum(slept), real.elapsed + sum(slept))

        def sleep(self, seconds: float) -> None:
            slept.append(seconds)

    monkeypatch.setattr(driver, "_FlightClock", Hasty)
    return slept


def failing(kind: type[OAuthError], step: Awaitable[object]) -> OAuthError:
    with pytest.raises(kind) as caught:
        run(step)
    assert type(caught.value) is kind
    assert caught.value.cure
    return caught.value


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
