"""The whole life of a grant at the official SDK's server: no `iss`, no RFC 7592, reuse of a refresh token revokes."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcp_oauth.exceptions import AuthorizationError, AuthorizationRequired
from mcp_oauth.sansio.errors import Reason
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from mcp_oauth.store.memory import MemoryStore
from tests.integration.program import (
    DEAD,
    STACKS,
    Person,
    Program,
    at_a_browser,
    expire,
    grant_in,
    nobody,
    program,
    served,
    server_lost_all,
    verdict,
)
from tests.servers.sdk_server import SdkServer

LOGIN = [
    "/.well-known/oauth-protected-resource/mcp",
    "/.well-known/oauth-authorization-server",
    "/register",
    "authorization_code",
]


@pytest.mark.parametrize("stack", STACKS)
def test_the_whole_life_of_a_grant(stack: str, sdk_server: SdkServer, tmp_path: Path) -> None:
    url, store = sdk_server.mcp, EncryptedFileStore(tmp_path)
    first = program(stack, url, store=store, user=at_a_browser())
    assert served(first.call())
    assert first.traffic == LOGIN

    again = first.restarted(store=EncryptedFileStore(tmp_path))
    assert served(again.call())
    assert again.traffic == []

    old = expire(store, url)
    renewed = first.restarted(store=EncryptedFileStore(tmp_path))
    assert served(renewed.call())
    assert renewed.traffic == ["refresh_token"]
    grant = grant_in(store, url)
    assert grant.refresh_token != old.refresh_token

    ended = renewed.oauth.logout()
    assert [(one.token, one.failure) for one in ended.revoked] == [("refresh_token", None), ("access_token", None)]
    assert verdict(url, grant) == DEAD
    with pytest.raises(AuthorizationRequired):
        renewed.restarted(interactive=False).call()


@pytest.fixture
def person() -> Person:
    return Person()


@pytest.fixture
def login(sdk_server: SdkServer, person: Person) -> Program:
    return program("httpx2-sync", sdk_server.mcp, store=MemoryStore(), user=person)


def test_any_callable_is_a_user(login: Program, person: Person) -> None:
    assert served(login.call())
    assert person.asked == 1


def test_RULES_2_14_an_issuer_that_names_itself_nowhere_needs_no_iss(login: Program, person: Person) -> None:
    login.oauth.authorize()
    assert "iss" not in person.redirects[0]


def test_RFC8707_the_grant_is_for_the_resource_of_the_metadata(login: Program, sdk_server: SdkServer) -> None:
    """The server refuses tokens of other resources (`validate_token_resource`)."""
    login.oauth.authorize()
    assert grant_in(login.oauth._store, login.url).resource == sdk_server.mcp
    assert served(login.call())


def test_RULES_3_4_a_denial_stands_until_a_program_asks(login: Program, person: Person) -> None:
    person.deny = True
    with pytest.raises(AuthorizationError) as denied:
        login.call()
    assert denied.value.reason is Reason.ACCESS_DENIED
    with pytest.raises(AuthorizationError) as held_back:
        login.call()
    assert held_back.value.reason is Reason.LOGIN_HELD_BACK
    assert person.asked == 1
    person.deny = False
    assert login.oauth.authorize().granted == ("mcp:tools",)
    assert person.asked == 2
    assert served(login.call())


def test_a_denial_comes_through_the_listener_too(sdk_server: SdkServer) -> None:
    here = program("httpx2-trio", sdk_server.mcp, store=MemoryStore(), user=at_a_browser(deny=True))
    with pytest.raises(AuthorizationError) as denied:
        here.call()
    assert denied.value.reason is Reason.ACCESS_DENIED


def test_interactive_False_asks_nobody(sdk_server: SdkServer) -> None:
    here = program("httpx2-sync", sdk_server.mcp, store=MemoryStore(), user=nobody, interactive=False)
    with pytest.raises(AuthorizationRequired):
        here.call()


def test_RULES_3_8_a_logout_leaves_another_account_alone(login: Program, person: Person) -> None:
    store = login.oauth._store
    other = program("httpx2-sync", login.url, store=store, user=person, account="bob")
    assert served(login.call())
    assert served(other.call())
    assert login.traffic.count("/register") + other.traffic.count("/register") == 1
    login.oauth.logout()
    assert served(other.restarted().call())


def test_RULES_2_11_a_server_that_lost_its_clients_gets_a_new_one(login: Program, person: Person) -> None:
    """A restart, for this server, which keeps them in memory."""
    assert served(login.call())
    server_lost_all(login.oauth._store, login.url)
    again = login.restarted(user=person)
    assert served(again.call())
    assert again.traffic == [LOGIN[0], "refresh_token", *LOGIN]
    assert person.asked == 2
    assert served(again.restarted().call())


def test_a_login_asked_for_replaces_the_grant(login: Program, person: Person) -> None:
    login.oauth.authorize()
    old = grant_in(login.oauth._store, login.url)
    login.oauth.authorize(force=True)
    new = grant_in(login.oauth._store, login.url)
    assert (person.asked, new.lineage == old.lineage) == (2, False)
    assert served(login.call())


def test_RFC7591_2_a_registration_without_scopes_serves_no_login_that_asks_for_some(
    sdk_server: SdkServer, tmp_path: Path
) -> None:
    """A mistyped path of the same server: it suggests no scopes, and the SDK's server takes that for none."""
    store = EncryptedFileStore(tmp_path)
    program("httpx2-sync", f"{sdk_server.mcp}-mistyped", store=store, user=at_a_browser()).oauth.authorize()
    assert served(program("httpx2-sync", sdk_server.mcp, store=store, user=at_a_browser()).call())
