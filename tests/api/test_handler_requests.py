"""What `OAuthHandler` sends: headers, requests, and where a token does not go."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from mcp_oauth.exceptions import AccessError, ConfigurationError
from mcp_oauth.handler import OAuthHandler, _Once
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from mcp_oauth.store.memory import MemoryStore
from mcp_oauth.token_manager import TokenManager
from mcp_oauth.tokens import OAuthTokens
from tests.api.programs import NAME, ORIGIN, URL, Setup, put_other_grant
from tests.io.servers import Reply, Seen, document, put_grant, serving

# --- Headers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Authorization", "authorization", "AUTHORIZATION"])
def test_an_Authorization_among_the_extras_does_not_win(
    name: str, one: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    extra = {"X-Trace": "1", name: "Basic CANARY"}
    headers = one.run(one.handler.prepare_headers_for_mcp_server, NAME, URL, extra_headers=extra)
    assert headers == {"X-Trace": "1", "Authorization": f"Bearer {one.ensure().access_token}"}
    assert extra == {"X-Trace": "1", name: "Basic CANARY"}
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "Authorization" in warning.getMessage()
    assert "CANARY" not in caplog.text


def test_headers_of_a_request_are_sent_but_for_an_Authorization(here: Setup) -> None:
    here.request(headers={"X-Trace": "1", "authorization": "Basic CANARY"})
    (seen,) = here.world.at("/mcp")
    assert (seen.headers["x-trace"], seen.token) == ("1", f"Bearer {here.ensure().access_token}")


@pytest.mark.parametrize("kind", ["none", "expired", "expired-in-memory"])
def test_there_is_no_header_of_an_expired_token(kind: str, one: Setup) -> None:
    if kind == "expired":
        put_grant(one.store, one.world)
        one.handler.token_manager.bind(NAME, URL)
    if kind == "expired-in-memory":
        one.world.lifetime = 0
        one.ensure()
        put_other_grant(one, expires_at=time.time() - 1)
    assert one.handler.get_authorization_header(NAME) is None


def test_the_header_comes_from_the_store_in_a_new_process(one: Setup, tmp_path: Path) -> None:
    one.handler = one.program(store=EncryptedFileStore(tmp_path))
    tokens = one.ensure()
    again = OAuthHandler(TokenManager(store=EncryptedFileStore(tmp_path)))
    assert again.get_authorization_header(NAME) == tokens.get_authorization_header()
    assert again.get_authorization_header("another") is None


# --- Requests ---------------------------------------------------------------------------------------------------------

ELSEWHERE = {
    "host": "https://evil.example/mcp",
    "subdomain": "https://mcp.example.evil.example/mcp",
    "scheme": "http://mcp.example/mcp",
    "port": "https://mcp.example:8443/mcp",
    "userinfo": "https://mcp.example@evil.example/mcp",
    "backslash": "https://evil.example\\@mcp.example/mcp",
    "relative": "/mcp",
    "control": "https://mcp.example\n.evil.example/mcp",
}


@pytest.mark.parametrize("url", ELSEWHERE.values(), ids=ELSEWHERE)
def test_RULES_1_1_a_url_of_another_origin_is_refused_before_anything_is_sent(url: str, one: Setup) -> None:
    with pytest.raises(ConfigurationError) as refused:
        one.request(url)
    shown = url.replace("mcp.example@", "").replace("evil.example\\@", "").replace("\n", "%0A")
    assert f"{shown} is not a well-formed URL at the origin of {URL}," in str(refused.value)
    assert one.world.seen == []


@pytest.mark.parametrize("path", ["/mcp", "/mcp/below?x=1", "/mcp-beside"])
def test_a_url_of_the_servers_origin_gets_the_token(path: str, here: Setup) -> None:
    assert here.request(f"{ORIGIN}{path}").json()["token"] == f"Bearer {here.ensure().access_token}"


def test_RULES_1_1_where_the_library_reads_a_url_otherwise_the_token_stays_here(here: Setup) -> None:
    request = here.library.Request("GET", "https://evil.example")
    assert _Once(URL, OAuthTokens("CANARY"))(request) is request
    assert "authorization" not in request.headers


REDIRECTS = {
    "another-origin": ("https://evil.example/x", False),
    "another-port": ("https://mcp.example:8443/x", False),
    "a-sibling-path": ("https://mcp.example/mcp-beside", False),
    "below": ("https://mcp.example/mcp/below", True),
}


@pytest.mark.parametrize(("target", "kept"), REDIRECTS.values(), ids=REDIRECTS)
@pytest.mark.parametrize("retry", [True, False], ids=["retry", "once"])
def test_RULES_1_1_a_redirect_takes_the_token_only_below(retry: bool, target: str, kept: bool, here: Setup) -> None:
    here.ensure()
    tokens: list[str | None] = []
    path = httpx.URL(target).path

    def redirecting(seen: Seen) -> Reply:
        if seen.url == URL:
            return Reply(307, (("location", target),))
        assert seen.path == path
        tokens.append(seen.token)
        return Reply(401) if kept and seen.token is None else document({})

    here.more["mcp.example"] = here.more["evil.example"] = redirecting
    answer = here.request(follow_redirects=True, retry_on_401=retry)
    assert tokens[0] is None
    assert tokens[1:] == ([f"Bearer {here.ensure().access_token}"] if kept and retry else [])
    assert answer.status_code == (401 if kept and not retry else 200)


def test_a_refused_token_is_renewed_once(here: Setup) -> None:
    first = here.ensure()
    assert here.request().status_code == 200
    here.world.valid.clear()
    answer = here.request(method="POST", content=b"body")
    assert (answer.status_code, answer.json()["body"]) == (200, "body")
    assert here.world.refreshes == 1
    renewed = here.ensure()
    assert renewed.access_token != first.access_token
    assert renewed.refresh_token == here.world.refresh_token
    assert here.world.refreshes == 1


def test_retry_on_401_False_hands_the_answer_over(here: Setup) -> None:
    here.ensure()
    here.world.valid.clear()
    assert here.request(retry_on_401=False).status_code == 401
    assert (len(here.bearers()), here.world.refreshes) == (1, 0)


def test_an_answer_is_the_callers_whatever_its_status(here: Setup) -> None:
    here.ensure()
    here.more["mcp.example"] = lambda seen: Reply(500, (), b"broken")
    answer = here.request()
    assert (answer.status_code, answer.text) == (500, "broken")
    assert isinstance(answer, here.library.Response)


def test_the_request_is_the_callers(here: Setup) -> None:
    here.request(method="PUT", params={"a": "b"}, json=[1], timeout=None)
    (seen,) = here.world.at("/mcp")
    assert (seen.method, seen.url, seen.body) == ("PUT", f"{URL}?a=b", b"[1]")


def test_one_cannot_name_another_auth(one: Setup) -> None:
    with pytest.raises(TypeError, match="auth"):
        one.request(auth=("alice", "password"))


def test_a_timeout_is_the_librarys(here: Setup) -> None:
    here.ensure()

    def slow(seen: Seen) -> Reply:
        raise here.library.ReadTimeout("slow")

    here.more["mcp.example"] = slow
    with pytest.raises(here.library.ReadTimeout):
        here.request(timeout=0.5)


def test_a_body_that_cannot_be_repeated_is_a_typed_error(one: Setup) -> None:
    assert one.request().status_code == 200
    one.world.valid.clear()

    async def body() -> Any:
        yield b"once"

    with pytest.raises(AccessError):
        one.request(method="POST", content=body())


def test_the_clients_of_a_handler_share_what_lies_beneath(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = OAuthHandler(store=MemoryStore(), proxy="http://127.0.0.1:1")
    first, second = handler._beneath(), handler._beneath()
    assert first["verify"] is second["verify"]
    assert first["proxy"] == "http://127.0.0.1:1"
    assert handler._oauth(URL, None)._traffic._verify is first["verify"]


def test_RULES_1_3_a_proxy_of_the_environment_sees_no_plain_http(here: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")  # nobody listens there
    here.handler = here.program(transport=None)
    here.handler.token_manager.save_tokens(NAME, OAuthTokens("CANARY"))
    with serving(lambda seen: document({"token": seen.token})) as server:
        url = f"{server.origin}/mcp"
        answer = here.run(here.handler.authenticated_request, NAME, url, url)
    assert answer.json() == {"token": "Bearer CANARY"}
