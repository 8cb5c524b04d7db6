"""https with a private CA: real servers behind TLS, in Python and on Node, and clients that trust that CA or not."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mcp_oauth.exceptions import AuthorizationRequired, DiscoveryError, OAuthError, TokenRefreshError
from mcp_oauth.io.oauth import BaseOAuth
from mcp_oauth.io.user import Browser
from mcp_oauth.sansio.errors import Reason
from mcp_oauth.store.base import Store
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from mcp_oauth.store.memory import MemoryStore
from tests.integration import calls
from tests.integration.program import STACKS, expire, grant_in, nobody, registration_in
from tests.servers import fastmcp_server, tls, ts_sdk
from tests.servers.process import ROOT
from tests.servers.tls import PrivateCA

LIBRARIES = ("httpx2", "httpx")
PROGRAM = """
import sys, importlib
import httpx
from mcp_oauth.store.memory import MemoryStore
def person(url):
    return httpx.get(url).headers["location"]
oauth = importlib.import_module(f"mcp_oauth.io.{sys.argv[1]}").OAuth(sys.argv[2], store=MemoryStore(), user=person)
print(oauth.authorize().issuer)
"""


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> PrivateCA:
    return tls.private_ca(tmp_path_factory.mktemp("ca"))


@pytest.fixture(
    scope="module",
    params=[pytest.param(fastmcp_server.serving, id="FastMCP"), pytest.param(ts_sdk.serving, id="TypeScript SDK")],
)
def url(request: pytest.FixtureRequest, ca: PrivateCA) -> Iterator[str]:
    """An MCP server over https. Neither asks a person: the authorization URL leads straight back."""
    with request.param(ca) as server:
        assert server.mcp.startswith("https://")
        yield server.mcp


@pytest.fixture
def store() -> Store:
    return MemoryStore()


def plug(library: str, url: str, **options: Any) -> BaseOAuth:
    made: BaseOAuth = importlib.import_module(f"mcp_oauth.io.{library}").OAuth(url, **options)
    return made


def at_a_browser(ca: PrivateCA) -> Browser:
    """The default user with its loopback listener, on plain http; the browser that is played trusts the CA."""

    def opened(url: str) -> bool:
        with httpx.Client(verify=ca.context(), follow_redirects=True, trust_env=False) as browser:
            page = browser.get(url)
        return page.status_code == 200 and page.url.scheme == "http"

    return Browser(opener=opened, tell=lambda _: None)


@pytest.mark.parametrize("stack", STACKS)
def test_login_renewal_and_logout(stack: str, url: str, ca: PrivateCA, tmp_path: Path) -> None:
    library, verify, store = stack.split("-")[0], ca.context(), EncryptedFileStore(tmp_path)

    def served(oauth: BaseOAuth) -> bool:
        answer = calls.whoami(stack, oauth, url, verify=verify)
        return answer.status == 200 and f"client {registration_in(store).client_id}" in answer.text

    assert served(plug(library, url, store=store, user=at_a_browser(ca), verify=verify))

    old = expire(store, url)
    renewed = plug(library, url, store=store, user=nobody, verify=verify)
    assert served(renewed)
    assert grant_in(store, url).refresh_token != old.refresh_token

    assert [one.failure for one in renewed.logout().revoked] == [None, None]
    with pytest.raises(AuthorizationRequired):
        served(plug(library, url, store=store, interactive=False, verify=verify))


@pytest.mark.parametrize("library", LIBRARIES)
class TestUntrusted:
    """Who does not say which CA to trust is told so before anything is sent, and before a browser is opened."""

    @pytest.fixture
    def error(self, library: str, url: str, ca: PrivateCA) -> OAuthError:
        """What a request raises whose own client trusts the CA: OAuth traffic has nothing from that client."""
        oauth = plug(library, url, store=MemoryStore(), user=nobody)
        with pytest.raises(DiscoveryError) as refused:
            calls.whoami(f"{library}-sync", oauth, url, verify=ca.context())
        return refused.value

    def test_RULES_1_3_the_error_names_server_and_cause(self, error: OAuthError, url: str) -> None:
        assert error.reason is Reason.SERVER_UNAVAILABLE
        assert "certificate verify failed: unable to get local issuer certificate" in str(error)
        assert error.url is not None
        assert error.url.startswith(url.removesuffix("/mcp"))

    def test_the_error_names_the_cure(self, error: OAuthError) -> None:
        assert "ssl.create_default_context(cafile=" in str(error)


def test_RULES_4_9_a_renewal_that_distrusts_the_server_reaches_nobody(ca: PrivateCA, store: Store) -> None:
    with ts_sdk.serving(ca) as server:
        plug("httpx2", server.mcp, store=store, user=at_a_browser(ca), verify=ca.context()).authorize()
        old = expire(store, server.mcp)
        with pytest.raises(TokenRefreshError) as kept:
            plug("httpx2", server.mcp, store=store, user=nobody).authorize()
        assert kept.value.reason is Reason.RENEWAL_UNAVAILABLE
        assert "certificate verify failed" in str(kept.value)
        assert grant_in(store, server.mcp).refresh_token == old.refresh_token


@pytest.mark.parametrize("library", LIBRARIES)
def test_RULES_1_3_a_certificate_for_another_name_is_refused(library: str, tmp_path: Path) -> None:
    other = tls.private_ca(tmp_path, host="elsewhere.example")
    with ts_sdk.serving(other) as server:
        oauth = plug(library, server.mcp, store=MemoryStore(), user=nobody, verify=other.context())
        with pytest.raises(DiscoveryError, match=r"certificate is not valid for '127\.0\.0\.1'"):
            oauth.authorize()


@pytest.mark.parametrize("library", LIBRARIES)
def test_SSL_CERT_FILE_is_a_way_to_trust_a_CA(library: str, url: str, ca: PrivateCA) -> None:
    """Without a change of the program."""
    environment = os.environ | {"SSL_CERT_FILE": str(ca.certificate)}
    command = [sys.executable, "-c", PROGRAM, library, url]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith(url.removesuffix("/mcp").rsplit(":", 1)[0]), done.stderr
