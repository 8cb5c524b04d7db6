"""The whole life of a grant at FastMCP's own authorization servers: the one in memory, which asks nobody, and the proxy
that passes people on to another, here npm oidc-provider."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mcp_oauth.exceptions import AuthorizationError, AuthorizationRequired
from mcp_oauth.sansio.errors import Reason
from mcp_oauth.sansio.grant import with_grant
from mcp_oauth.store.base import Store
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from mcp_oauth.store.memory import MemoryStore
from tests.integration.program import (
    DEAD,
    STACKS,
    Answer,
    Person,
    Program,
    at_a_browser,
    expire,
    grant_in,
    program,
    refreshed_by_hand,
    registration_in,
    rewrite,
    server_lost_all,
    verdict,
)
from tests.servers import fastmcp_server
from tests.servers import oidc_provider as npm
from tests.servers.fastmcp_server import FastMcpServer
from tests.servers.oidc_provider import OidcProvider

METADATA = "/.well-known/oauth-protected-resource/mcp"
LOGIN = [METADATA, "/.well-known/oauth-authorization-server", "/register", "authorization_code"]
HTTPX2 = [stack for stack in STACKS if stack.startswith("httpx2")]


@pytest.fixture(scope="module")
def server() -> Iterator[FastMcpServer]:
    with fastmcp_server.serving() as running:
        yield running


@pytest.fixture(scope="module")
def upstream() -> Iterator[OidcProvider]:
    with npm.serving() as running:
        yield running


@pytest.fixture(scope="module")
def proxy(upstream: OidcProvider) -> Iterator[FastMcpServer]:
    with fastmcp_server.serving(upstream=upstream.issuer) as running:
        yield running


@pytest.fixture
def person() -> Person:
    return Person()


@pytest.fixture
def login(server: FastMcpServer, person: Person) -> Program:
    return program("httpx2-sync", server.mcp, store=MemoryStore(), user=person)


def served(answer: Answer, store: Store) -> bool:
    """The tool answered, to our client: there is no person here."""
    return answer.status == 200 and f"client {registration_in(store).client_id}" in answer.text


@pytest.mark.parametrize("stack", HTTPX2)
def test_the_whole_life_of_a_grant(stack: str, server: FastMcpServer, tmp_path: Path) -> None:
    url, store = server.mcp, EncryptedFileStore(tmp_path)
    first = program(stack, url, store=store, user=at_a_browser())
    assert served(first.call(), store)
    assert first.traffic == LOGIN

    again = first.restarted(store=EncryptedFileStore(tmp_path))
    assert served(again.call(), store)
    assert again.traffic == []

    spent = expire(store, url)
    renewed = first.restarted(store=EncryptedFileStore(tmp_path))
    assert served(renewed.call(), store)
    assert renewed.traffic == ["refresh_token"]

    assert refreshed_by_hand(spent)["error"] == "invalid_grant"
    assert served(renewed.restarted().call(), store)

    last = grant_in(store, url)
    ended = renewed.oauth.logout()
    assert [(one.token, one.failure) for one in ended.revoked] == [("refresh_token", None), ("access_token", None)]
    assert verdict(url, last) == DEAD
    with pytest.raises(AuthorizationRequired):
        renewed.restarted(interactive=False).call()


def test_RULES_2_5_an_issuer_that_ends_in_a_slash(login: Program, server: FastMcpServer) -> None:
    """It is compared, and recorded, as the string that it is."""
    login.oauth.authorize()
    assert grant_in(login.oauth._store, login.url).issuer == f"{server.issuer}/"


def test_RULES_2_14_an_issuer_that_names_itself_nowhere_needs_no_iss(login: Program, person: Person) -> None:
    login.oauth.authorize()
    assert "iss" not in person.redirects[0]


def test_RULES_2_10_a_server_that_lists_no_public_clients_gives_a_secret(login: Program) -> None:
    store = login.oauth._store
    login.oauth.authorize()
    client = registration_in(store)
    assert (client.auth_method, bool(client.client_secret)) == ("client_secret_post", True)
    expire(store, login.url)
    assert served(login.restarted().call(), store)


def test_RULES_3_2_a_grant_that_another_copy_of_it_spent_leads_to_a_login(login: Program, person: Person) -> None:
    """As after a restored backup: its refresh token is dead, its access token was revoked with it."""
    store = login.oauth._store
    login.oauth.authorize()
    spent = expire(store, login.url)
    assert served(login.restarted().call(), store)
    rewrite(store, login.url, lambda record: with_grant(record, spent))
    again = login.restarted(user=person)
    assert served(again.call(), store)
    assert again.traffic == ["refresh_token", *LOGIN[:2], "authorization_code"]
    assert person.asked == 2


def test_RULES_2_11_a_server_that_lost_its_clients_gets_a_new_one(login: Program, person: Person) -> None:
    """A restart, for this server, which keeps them in memory."""
    store = login.oauth._store
    login.oauth.authorize()
    server_lost_all(store, login.url)
    again = login.restarted(user=person)
    assert served(again.call(), store)
    assert again.traffic == [METADATA, "refresh_token", *LOGIN]
    assert person.asked == 2


class TestProxy:
    """It has a page for consent and hands out tokens of its own; who is who is said upstream."""

    @pytest.mark.parametrize("stack", HTTPX2)
    def test_the_whole_life_of_a_grant(
        self, stack: str, proxy: FastMcpServer, upstream: OidcProvider, tmp_path: Path
    ) -> None:
        url, store = proxy.mcp, EncryptedFileStore(tmp_path)
        upstream.set(reset=True)
        first = program(stack, url, store=store, user=at_a_browser())
        assert by_person(first.call())
        assert first.traffic == LOGIN
        assert upstream.stats()["granted"] == {"authorization_code": 1}

        spent = expire(store, url)
        renewed = first.restarted(store=EncryptedFileStore(tmp_path))
        assert by_person(renewed.call())
        assert renewed.traffic == ["refresh_token"]
        assert grant_in(store, url).refresh_token != spent.refresh_token
        assert upstream.stats()["granted"] == {"authorization_code": 1, "refresh_token": 1}

        assert refreshed_by_hand(spent)["error"] == "invalid_grant"
        assert by_person(renewed.restarted().call())

        renewed.oauth.logout()
        with pytest.raises(AuthorizationRequired):
            renewed.restarted(interactive=False).call()

    def test_RULES_3_8_a_logout_tells_that_the_tokens_live_on(self, proxy: FastMcpServer, person: Person) -> None:
        """The proxy registers clients without a secret, and its revocation endpoint demands one."""
        store = MemoryStore()
        here = program("httpx2-sync", proxy.mcp, store=store, user=person)
        assert by_person(here.call())
        last = grant_in(store, proxy.mcp)
        assert last.registration.auth_method == "none"

        failures = [one.failure for one in here.oauth.logout().revoked]
        assert [failure and (failure.status, failure.oauth_error) for failure in failures] == [
            (400, "invalid_request")
        ] * 2
        assert verdict(proxy.mcp, last) == (200, None)
        with pytest.raises(AuthorizationRequired):
            here.restarted(interactive=False).call()

    def test_RULES_2_14_approval_and_denial_name_the_issuer(self, proxy: FastMcpServer, person: Person) -> None:
        here = program("httpx2-sync", proxy.mcp, store=MemoryStore(), user=person)
        person.deny = True
        with pytest.raises(AuthorizationError) as denied:
            here.call()
        assert denied.value.reason is Reason.ACCESS_DENIED
        person.deny = False
        here.oauth.authorize()
        assert [redirect["iss"] for redirect in person.redirects] == [f"{proxy.issuer}/"] * 2


def by_person(answer: Answer) -> bool:
    """The tool answered, as the person who has logged in upstream."""
    return answer.status == 200 and "of alice" in answer.text
