"""The servers of the integration tests are real: a whole login against each, by hand, with a bare HTTP client."""

from __future__ import annotations

import base64
import hashlib
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any, Literal
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest

from tests.servers import consent, oidc_provider, sdk_server
from tests.servers.oidc_provider import OidcProvider
from tests.servers.sdk_server import SdkServer

REDIRECT_URI = "http://127.0.0.1:9/callback"
CREDENTIALS = ("client_id", "client_secret")
Server = OidcProvider | SdkServer


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=30) as client:
        yield client


@dataclass
class Login:
    """A client by hand: what was discovered and registered, and the newest tokens."""

    http: httpx.Client
    mcp: str
    scope: str
    metadata: dict[str, Any]
    client: dict[str, Any]
    tokens: dict[str, Any]

    def post(self, endpoint: str, **form: str) -> httpx.Response:
        credentials = {name: str(self.client[name]) for name in CREDENTIALS if name in self.client}
        return self.http.post(self.metadata[endpoint], data=credentials | form)

    def token_request(self, **form: str) -> httpx.Response:
        return self.post("token_endpoint", resource=self.mcp, **form)

    def refresh(self, refresh_token: str) -> httpx.Response:
        return self.token_request(grant_type="refresh_token", refresh_token=refresh_token)

    def revoke(self, token: str) -> httpx.Response:
        form = {
            "client_id": self.client["client_id"],
            "client_secret": self.client.get("client_secret"),
            "token": token,
        }
        return self.http.post(self.metadata["revocation_endpoint"], data=form)

    def rpc(self, method: str, **params: object) -> httpx.Response:
        return rpc(self.http, self.mcp, method, params, self.tokens["access_token"])


def rpc(
    http: httpx.Client, mcp: str, method: str, params: dict[str, object], access_token: str | None
) -> httpx.Response:
    """One stateless JSON-RPC request of the 2026-07-28 wire."""
    meta: dict[str, object] = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    headers = {
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": "2026-07-28",
        "MCP-Method": method,
        **({"MCP-Name": str(params["name"])} if "name" in params else {}),
        **({"Authorization": f"Bearer {access_token}"} if access_token else {}),
    }
    body: dict[str, object] = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": meta}}
    return http.post(mcp, json=body, headers=headers)


def discovered(http: httpx.Client, mcp: str) -> dict[str, Any]:
    """401, protected resource metadata, authorization server metadata."""
    refused = rpc(http, mcp, "tools/list", {}, None)
    assert refused.status_code == 401
    challenge = refused.headers["www-authenticate"]
    well_known = challenge.split('resource_metadata="')[1].split('"')[0]
    assert urlsplit(well_known).path == "/.well-known/oauth-protected-resource/mcp"
    resource = http.get(well_known).json()
    assert resource["resource"] == mcp
    metadata: dict[str, Any] = http.get(
        resource["authorization_servers"][0].rstrip("/") + "/.well-known/oauth-authorization-server"
    ).json()
    assert metadata["code_challenge_methods_supported"] == ["S256"]
    return metadata


def registered(
    http: httpx.Client, metadata: dict[str, Any], scope: str, auth_method: str, redirect_uri: str = REDIRECT_URI
) -> dict[str, Any]:
    document = {
        "client_name": "by hand",
        "redirect_uris": [redirect_uri],
        "grant_types": ["authorization_code", "refresh_token"],
        "response_types": ["code"],
        "token_endpoint_auth_method": auth_method,
        "application_type": "native",
        "scope": scope,
    }
    answer = http.post(metadata["registration_endpoint"], json=document)
    assert answer.status_code == 201, answer.text
    client: dict[str, Any] = answer.json()
    return {name: value for name, value in client.items() if value is not None}


def authorization(client: dict[str, Any], metadata: dict[str, Any], mcp: str, scope: str) -> tuple[str, str]:
    """The authorization URL, and the PKCE verifier that belongs to it."""
    verifier = secrets.token_urlsafe(48)
    digest = hashlib.sha256(verifier.encode()).digest()
    query = {
        "response_type": "code",
        "client_id": client["client_id"],
        "redirect_uri": client["redirect_uris"][0],
        "scope": scope,
        "state": "a-state",
        "resource": mcp,
        "prompt": "consent",
        "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
        "code_challenge_method": "S256",
    }
    return f"{metadata['authorization_endpoint']}?{urlencode(query)}", verifier


def logged_in(http: httpx.Client, mcp: str, scope: str, auth_method: str = "none") -> Login:
    metadata = discovered(http, mcp)
    client = registered(http, metadata, scope, auth_method)
    url, verifier = authorization(client, metadata, mcp, scope)
    answer = parse_qs(urlsplit(consent.follow(url)).query)
    assert answer["state"] == ["a-state"]
    login = Login(http, mcp, scope, metadata, client, {})
    tokens = login.token_request(
        grant_type="authorization_code", code=answer["code"][0], code_verifier=verifier, redirect_uri=REDIRECT_URI
    )
    assert tokens.status_code == 200, tokens.text
    login.tokens = tokens.json()
    return login


@pytest.mark.parametrize("auth_method", ["none", "client_secret_post"])
@pytest.mark.parametrize(
    ("name", "scope"),
    [("oidc_provider", "offline_access mcp:read"), ("sdk_server", "mcp:tools")],
    ids=["oidc-provider", "sdk"],
)
class TestLogin:
    @pytest.fixture
    def login(
        self, request: pytest.FixtureRequest, http: httpx.Client, name: str, scope: str, auth_method: str
    ) -> Login:
        found: Server = request.getfixturevalue(name)
        return logged_in(http, found.mcp, scope, auth_method)

    def test_tools_are_listed_and_called(self, login: Login) -> None:
        assert {"echo", "whoami"} <= {tool["name"] for tool in login.rpc("tools/list").json()["result"]["tools"]}
        called = login.rpc("tools/call", name="whoami", arguments={}).json()
        assert called["result"]["content"][0]["text"] == "alice"

    def test_refresh_rotates_and_reuse_revokes_the_family(self, login: Login) -> None:
        first = login.tokens["refresh_token"]
        login.tokens = login.refresh(first).json()
        assert login.tokens["refresh_token"] != first
        assert login.rpc("tools/list").status_code == 200
        assert login.refresh(first).json()["error"] == "invalid_grant"
        assert login.refresh(login.tokens["refresh_token"]).json()["error"] == "invalid_grant"
        assert login.rpc("tools/list").status_code == 401

    def test_a_revoked_token_is_refused(self, login: Login) -> None:
        assert login.revoke(login.tokens["refresh_token"]).status_code == 200
        assert login.rpc("tools/list").status_code == 401
        assert login.refresh(login.tokens["refresh_token"]).json()["error"] == "invalid_grant"


@pytest.mark.parametrize(
    ("name", "scope"), [("oidc_provider", "mcp:read"), ("sdk_server", "mcp:tools")], ids=["oidc-provider", "sdk"]
)
def test_a_person_may_refuse(request: pytest.FixtureRequest, http: httpx.Client, name: str, scope: str) -> None:
    found: Server = request.getfixturevalue(name)
    metadata = discovered(http, found.mcp)
    url, _ = authorization(registered(http, metadata, scope, "none"), metadata, found.mcp, scope)
    answer = parse_qs(urlsplit(consent.follow(url, deny=True)).query)
    assert (answer["error"], answer["state"]) == (["access_denied"], ["a-state"])


def test_a_visit_goes_all_the_way_with_its_cookies(http: httpx.Client, sdk_server: SdkServer) -> None:
    """A listener whose start page sets a cookie and leads to the login, and whose callback wants the cookie back."""
    start: dict[str, str] = {"Set-Cookie": "login=mine; Path=/; HttpOnly; SameSite=Lax"}

    class Listener(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            starting = self.path == "/start/once"
            self.send_response(303 if starting else 200)
            for name, value in start.items() if starting else ():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(f"{self.path} {self.headers['Cookie']}".encode())

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None: ...

    with HTTPServer(("127.0.0.1", 0), Listener) as listener:
        origin = f"http://127.0.0.1:{listener.server_port}"
        metadata = discovered(http, sdk_server.mcp)
        client = registered(http, metadata, "mcp:tools", "none", f"{origin}/callback")
        start["Location"], _ = authorization(client, metadata, sdk_server.mcp, "mcp:tools")
        thread = Thread(target=listener.serve_forever, args=(0.01,))
        thread.start()
        page = consent.visit(f"{origin}/start/once")
        listener.shutdown()
        thread.join()
    assert page.status == 200
    assert page.text.startswith("/callback?code=")
    assert page.text.endswith("login=mine")


def test_the_sdk_server_lets_access_tokens_expire(http: httpx.Client) -> None:
    with sdk_server.serving(token_lifetime=0) as server:
        login = logged_in(http, server.mcp, "mcp:tools")
        assert login.tokens["expires_in"] == 0
        assert login.rpc("tools/list").status_code == 401


@pytest.fixture(scope="module", params=["opaque", "jwt"])
def server(request: pytest.FixtureRequest) -> Iterator[OidcProvider]:
    token_format: Literal["opaque", "jwt"] = request.param
    with oidc_provider.serving(token_format=token_format) as server:
        yield server


class TestOidcProvider:
    @pytest.fixture
    def login(self, server: OidcProvider, http: httpx.Client) -> Login:
        login = logged_in(http, server.mcp, "offline_access mcp:read")
        server.set(reset=True, token=[], refreshGrace=0, accessTokenTtl=3600)
        return login

    def test_another_tool_needs_another_scope(self, login: Login) -> None:
        refused = login.rpc("tools/call", name="write")
        assert refused.status_code == 403
        assert 'error="insufficient_scope", scope="mcp:write"' in refused.headers["www-authenticate"]

    def test_the_redirect_names_the_issuer(self, server: OidcProvider, login: Login) -> None:
        url, _ = authorization(login.client, login.metadata, login.mcp, "mcp:read")
        assert parse_qs(urlsplit(consent.follow(url)).query)["iss"] == [server.issuer]

    def test_without_offline_access_there_is_no_refresh_token(self, server: OidcProvider, http: httpx.Client) -> None:
        assert "refresh_token" not in logged_in(http, server.mcp, "mcp:read").tokens

    def test_another_resource_is_refused(self, login: Login) -> None:
        url, _ = authorization(login.client, login.metadata, "https://other.example/mcp", "mcp:read")
        assert parse_qs(urlsplit(consent.follow(url)).query)["error"] == ["invalid_target"]

    def test_a_registration_is_deleted(self, login: Login, http: httpx.Client) -> None:
        bearer = {"Authorization": f"Bearer {login.client['registration_access_token']}"}
        assert http.delete(login.client["registration_client_uri"], headers=bearer).status_code == 204
        assert login.refresh(login.tokens["refresh_token"]).json()["error"] == "invalid_client"

    def test_a_canned_answer_is_given_once_and_spends_nothing(self, server: OidcProvider, login: Login) -> None:
        server.set(token=[{"status": 503, "headers": {"Retry-After": "1"}}])
        refused = login.refresh(login.tokens["refresh_token"])
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert login.refresh(login.tokens["refresh_token"]).status_code == 200

    @pytest.mark.parametrize(("grace", "status"), [(0, 400), (30, 200)], ids=["no-grace", "grace"])
    def test_a_lost_answer_spends_the_token(self, server: OidcProvider, login: Login, grace: int, status: int) -> None:
        server.set(token=[{"lose": True}], refreshGrace=grace)
        with pytest.raises(httpx.RemoteProtocolError):
            login.refresh(login.tokens["refresh_token"])
        assert login.refresh(login.tokens["refresh_token"]).status_code == status

    def test_access_tokens_are_forgotten_and_refresh_tokens_are_not(self, http: httpx.Client) -> None:
        with oidc_provider.serving() as server:
            login = logged_in(http, server.mcp, "offline_access mcp:read")
            server.set(forgetAccessTokens=True)
            assert login.rpc("tools/list").status_code == 401
            login.tokens = login.refresh(login.tokens["refresh_token"]).json()
            assert login.rpc("tools/list").status_code == 200

    def test_the_lifetime_of_new_access_tokens_is_set(self, server: OidcProvider, login: Login) -> None:
        server.set(accessTokenTtl=7)
        assert login.refresh(login.tokens["refresh_token"]).json()["expires_in"] == 7

    def test_a_request_that_is_cut_off_in_its_body_is_no_matter(self, server: OidcProvider, login: Login) -> None:
        for url, path in ((server.mcp, "/mcp"), (server.issuer, "/token")):
            host, _, port = urlsplit(url).netloc.partition(":")
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{{".encode())
        for _ in range(3):
            assert login.rpc("tools/list").status_code == 200
        assert server.stats()["requests"]["POST /token"] == 1

    def test_requests_are_counted(self, server: OidcProvider, login: Login) -> None:
        login.refresh(login.tokens["refresh_token"])
        login.refresh("unknown")
        stats = server.stats()
        assert stats["granted"] == {"refresh_token": 1}
        assert stats["refused"] == {"refresh_token": 1}
        assert stats["requests"]["POST /token"] == 2
