"""`OAuthHandler` at real servers: a grant's whole life, its renewal, its end; and two processes that share it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest

from mcp_oauth.exceptions import AuthorizationError, AuthorizationRequired, ConfigurationError
from mcp_oauth.handler import OAuthHandler
from mcp_oauth.io import stacks
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from mcp_oauth.token_manager import TokenManager
from tests.integration.program import (
    DEAD,
    _message,
    at_a_browser,
    expire,
    grant_in,
    nobody,
    verdict,
)
from tests.servers import oidc_provider as npm
from tests.servers.oidc_provider import OidcProvider
from tests.servers.process import ROOT
from tests.servers.sdk_server import SdkServer

NAME = "server"
WAYS = [f"{library}-{backend}" for library in ("httpx2", "httpx") for backend in ("asyncio", "trio")]
REVOKED = [("refresh_token", None), ("access_token", None)]

T = TypeVar("T")
Run = Callable[..., Any]


@pytest.fixture(params=WAYS)
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Calls an async function, on a stack."""
    library, backend = request.param.split("-")
    monkeypatch.setattr(stacks, "STACKS", (library,))

    def run(work: Callable[..., Awaitable[T]], *args: Any, **options: Any) -> T:
        return anyio.run(partial(work, *args, **options), backend=backend)

    return run


@pytest.fixture(scope="module")
def running() -> Iterator[OidcProvider]:
    with npm.serving() as server:
        yield server


@pytest.fixture
def oidc(running: OidcProvider) -> OidcProvider:
    """Counts from nothing, and as it comes."""
    running.set(reset=True, token=[], refreshGrace=0, accessTokenTtl=3600)
    return running


def program(folder: Path, **options: Any) -> OAuthHandler:
    """A new program."""
    return OAuthHandler(TokenManager(store=EncryptedFileStore(folder)), **{"user": nobody, **options})


def call(run: Run, handler: OAuthHandler, url: str, tool: str = "whoami") -> Any:
    """Call a tool of an MCP server."""
    return run(handler.authenticated_request, NAME, url, url, "POST", **_message(tool))


def test_the_whole_life_of_a_grant(run: Run, sdk_server: SdkServer, tmp_path: Path) -> None:
    url = sdk_server.mcp
    first = program(tmp_path, user=at_a_browser())
    tokens = run(first.ensure_authenticated_mcp, NAME, url)
    assert tokens.access_token == grant_in(EncryptedFileStore(tmp_path), url).access_token
    assert "alice" in call(run, first, url).text

    second = program(tmp_path)
    assert second.get_authorization_header(NAME) == tokens.get_authorization_header()
    headers = run(second.prepare_headers_for_mcp_server, NAME, url, extra_headers={"X-Trace": "1"})
    assert headers == {"X-Trace": "1", "Authorization": tokens.get_authorization_header()}

    expire(EncryptedFileStore(tmp_path), url)
    third = program(tmp_path)
    assert third.get_authorization_header(NAME) is None
    renewed = run(third.ensure_authenticated_mcp, NAME, url)
    assert renewed.refresh_token != tokens.refresh_token
    assert "alice" in call(run, third, url).text

    last = grant_in(EncryptedFileStore(tmp_path), url)
    ended = run(third.logout, NAME, url)
    assert [(one.token, one.failure) for one in ended.revoked] == REVOKED
    assert verdict(url, last) == DEAD
    assert third.get_authorization_header(NAME) is None
    assert program(tmp_path).token_manager.list_servers() == ()
    with pytest.raises(AuthorizationRequired):
        run(program(tmp_path, interactive=False).ensure_authenticated_mcp, NAME, url)


def test_with_scopes_a_step_up_and_rfc7592(run: Run, oidc: OidcProvider, tmp_path: Path) -> None:
    """A tool that demands more scopes is met with a login for them; the last logout deletes the registration."""
    handler = program(tmp_path, user=at_a_browser())
    tokens = run(handler.ensure_authenticated_mcp, NAME, oidc.mcp, ["mcp:read", "offline_access"])
    assert tokens.scope == "mcp:read"
    assert call(run, handler, oidc.mcp).status_code == 200
    assert call(run, handler, oidc.mcp, "write").status_code == 200
    stepped_up = run(handler.ensure_authenticated_mcp, NAME, oidc.mcp, ["mcp:read"])
    assert "mcp:write" in (stepped_up.scope or "")
    assert oidc.stats()["granted"] == {"authorization_code": 2}

    last = grant_in(EncryptedFileStore(tmp_path), oidc.mcp)
    ended = run(handler.logout, NAME, oidc.mcp)
    assert [(one.token, one.failure) for one in ended.revoked] == REVOKED
    assert ended.unregistered == (None,)
    assert oidc.stats()["deregistered"] == 1
    assert verdict(oidc.mcp, last) == (401, "invalid_client")


def test_50_concurrent_calls_are_one_login_then_one_renewal(run: Run, oidc: OidcProvider, tmp_path: Path) -> None:
    async def together(handler: OAuthHandler) -> set[str]:
        found: set[str] = set()

        async def one() -> None:
            tokens = await handler.ensure_authenticated_mcp(NAME, oidc.mcp, ["mcp:read", "offline_access"])
            found.add(tokens.access_token)

        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(one)
        return found

    assert len(run(together, program(tmp_path, user=at_a_browser()))) == 1
    expire(EncryptedFileStore(tmp_path), oidc.mcp)
    assert len(run(together, program(tmp_path))) == 1
    stats = oidc.stats()
    assert stats["granted"] == {"authorization_code": 1, "refresh_token": 1}
    assert stats["familiesRevoked"] == 0


def test_FN_28_in_a_new_process_an_expired_token_costs_one_request(
    run: Run, oidc: OidcProvider, tmp_path: Path
) -> None:
    run(program(tmp_path, user=at_a_browser()).ensure_authenticated_mcp, NAME, oidc.mcp, ["offline_access"])
    expire(EncryptedFileStore(tmp_path), oidc.mcp)
    oidc.set(reset=True)
    run(program(tmp_path).ensure_authenticated_mcp, NAME, oidc.mcp)
    assert oidc.stats()["requests"] == {"POST /token": 1}


def test_a_revoked_token_is_replaced_on_the_way(run: Run, oidc: OidcProvider, tmp_path: Path) -> None:
    handler = program(tmp_path, user=at_a_browser())
    run(handler.ensure_authenticated_mcp, NAME, oidc.mcp, ["mcp:read", "offline_access"])
    assert call(run, handler, oidc.mcp).status_code == 200
    oidc.set(forgetAccessTokens=True)
    assert call(run, handler, oidc.mcp).status_code == 200
    assert oidc.stats()["granted"] == {"authorization_code": 1, "refresh_token": 1}


def test_a_login_that_is_denied_is_a_typed_error(run: Run, sdk_server: SdkServer, tmp_path: Path) -> None:
    handler = program(tmp_path, user=at_a_browser(deny=True))
    with pytest.raises(AuthorizationError, match="denied") as denied:
        run(handler.ensure_authenticated_mcp, NAME, sdk_server.mcp)
    assert denied.value.oauth_error == "access_denied"
    assert handler.token_manager.list_servers() == ()


def test_RULES_1_1_no_token_leaves_for_another_origin(
    run: Run, sdk_server: SdkServer, oidc: OidcProvider, tmp_path: Path
) -> None:
    handler = program(tmp_path, user=at_a_browser())
    run(handler.ensure_authenticated_mcp, NAME, sdk_server.mcp)
    with pytest.raises(ConfigurationError) as refused:
        run(handler.authenticated_request, NAME, sdk_server.mcp, oidc.mcp)
    assert sdk_server.mcp in str(refused.value)
    assert oidc.mcp in str(refused.value)
    assert oidc.stats()["requests"] == {}


def test_clearing_tells_no_server(run: Run, oidc: OidcProvider, tmp_path: Path) -> None:
    handler = program(tmp_path, user=at_a_browser())
    run(handler.ensure_authenticated_mcp, NAME, oidc.mcp, ["mcp:read", "offline_access"])
    grant = grant_in(EncryptedFileStore(tmp_path), oidc.mcp)
    oidc.set(reset=True)
    assert handler.clear_tokens(NAME)
    assert oidc.stats()["requests"] == {}
    assert verdict(oidc.mcp, grant) == (200, None)


# --- Two processes ----------------------------------------------------------------------------------------------------

HEADERS = """
import asyncio, json, sys
from mcp_oauth.handler import OAuthHandler
from mcp_oauth.store.encrypted_file import EncryptedFileStore
folder, name, url = sys.argv[1:]
handler = OAuthHandler(store=EncryptedFileStore(folder))
headers = asyncio.run(handler.prepare_headers_for_mcp_server(name, url))
print(json.dumps(headers))
"""
PLUG = """
import json, sys, httpx2
from mcp_oauth.io.httpx2 import OAuth
from mcp_oauth.store.encrypted_file import EncryptedFileStore
folder, name, url = sys.argv[1:]
oauth = OAuth(url, store=EncryptedFileStore(folder), interactive=False)
print(json.dumps({"Authorization": f"Bearer {oauth.authorize().access_token}"}))
"""
BY_NAME = """
import json, sys
from mcp_oauth.handler import OAuthHandler
from mcp_oauth.store.encrypted_file import EncryptedFileStore
folder, name, url = sys.argv[1:]
handler = OAuthHandler(store=EncryptedFileStore(folder), interactive=False)
print(json.dumps({"Authorization": handler.get_authorization_header(name)}))
"""


def output(*command: str, browser: bool = False) -> str:
    environment = {**os.environ, "BROWSER": f"{sys.executable} -m tests.servers.consent %s" if browser else "false"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_process_logs_in_and_others_use_it(sdk_server: SdkServer, tmp_path: Path) -> None:
    place = (str(tmp_path), NAME, sdk_server.mcp)
    first = json.loads(output("-c", HEADERS, *place, browser=True))
    for other in (HEADERS, PLUG, BY_NAME):
        assert json.loads(output("-c", other, *place)) == first


def test_the_command_logs_in_and_programs_use_it(sdk_server: SdkServer, tmp_path: Path) -> None:
    command = (
        "-m",
        "mcp_oauth.cli",
        "auth",
        NAME,
        sdk_server.mcp,
        "--store",
        "encrypted",
        "--store-dir",
        str(tmp_path),
    )
    output(*command, browser=True)
    place = (str(tmp_path), NAME, sdk_server.mcp)
    grant = grant_in(EncryptedFileStore(tmp_path), sdk_server.mcp)
    for other in (BY_NAME, HEADERS, PLUG):
        assert json.loads(output("-c", other, *place)) == {"Authorization": f"Bearer {grant.access_token}"}
