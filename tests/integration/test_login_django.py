"""The whole life of a grant at django-oauth-toolkit: `iss`, secrets, RFC 7592, a replay that ends the whole family."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from mcp_oauth.exceptions import AuthorizationError, AuthorizationRequired
from mcp_oauth.sansio.errors import Reason
from mcp_oauth.store.base import Store
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
    program,
    refreshed_by_hand,
    registration_in,
    served,
    verdict,
)
from tests.servers import django_toolkit
from tests.servers.django_toolkit import DjangoToolkit

METADATA = "/.well-known/oauth-protected-resource/mcp"
LOGIN = [METADATA, "/.well-known/oauth-authorization-server", "/register/", "authorization_code"]
READ = ("mcp:read",)
ALL = ("mcp:read", "mcp:write")


@pytest.fixture(scope="module")
def server() -> Iterator[DjangoToolkit]:
    with django_toolkit.serving() as running:
        yield running


@pytest.fixture
def store() -> Store:
    return MemoryStore()


@pytest.fixture
def person() -> Person:
    return Person()


@pytest.fixture
def login(server: DjangoToolkit, store: Store, person: Person) -> Program:
    return program("httpx2-sync", server.mcp, store=store, user=person)


@pytest.mark.parametrize("stack", [stack for stack in STACKS if stack.startswith("httpx2")])
def test_the_whole_life_of_a_grant(stack: str, server: DjangoToolkit, tmp_path: Path) -> None:
    url, store = server.mcp, EncryptedFileStore(tmp_path)
    first = program(stack, url, store=store, user=at_a_browser())
    assert served(first.call())
    assert first.traffic == LOGIN

    again = first.restarted(store=EncryptedFileStore(tmp_path))
    assert served(again.call())
    assert again.traffic == []

    spent = expire(store, url)
    renewed = first.restarted(store=EncryptedFileStore(tmp_path))
    assert served(renewed.call())
    assert renewed.traffic == ["refresh_token"]

    assert refreshed_by_hand(spent)["error"] == "invalid_grant"
    assert verdict(url, grant_in(store, url)) == DEAD
    anew = program(stack, url, store=store, user=at_a_browser())
    assert served(anew.call())
    assert anew.traffic == [METADATA, "refresh_token", *LOGIN[:2], "authorization_code"]

    last = grant_in(store, url)
    ended = anew.oauth.logout()
    assert [(one.token, one.failure) for one in ended.revoked] == [("refresh_token", None), ("access_token", None)]
    assert ended.unregistered == (None,)
    assert verdict(url, last) == (401, "invalid_client")
    with pytest.raises(AuthorizationRequired):
        anew.restarted(interactive=False).call()


def test_RULES_2_14_the_redirect_names_the_issuer(login: Program, person: Person, server: DjangoToolkit) -> None:
    assert served(login.call())
    assert person.redirects[0]["iss"] == server.issuer


def test_RULES_2_14_a_denial_without_the_promised_iss_is_no_answer(login: Program, person: Person) -> None:
    """The toolkit names itself in the redirects of an approval only. What the redirect says is not repeated."""
    person.deny = True
    with pytest.raises(AuthorizationError) as refused:
        login.call()
    assert refused.value.reason is Reason.CALLBACK_ISSUER
    assert person.redirects[0]["error"] == "access_denied"
    assert "access_denied" not in str(refused.value)
    assert "authorization_code" not in login.traffic
    person.deny = False
    login.oauth.authorize()
    assert served(login.call())


def test_RULES_3_4_after_such_a_denial_nobody_is_asked_again_unbidden(login: Program, person: Person) -> None:
    person.deny = True
    with pytest.raises(AuthorizationError):
        login.call()
    with pytest.raises(AuthorizationError) as held_back:
        login.call()
    assert held_back.value.reason is Reason.LOGIN_HELD_BACK
    assert person.asked == 1


def test_RULES_2_10_a_server_that_lists_no_public_clients_gives_a_secret(login: Program, store: Store) -> None:
    """Its metadata has `client_secret_post` and `client_secret_basic`, and not `none`, which it would take too."""
    assert served(login.call())
    client = registration_in(store)
    assert client.client_secret
    assert client.auth_method == "client_secret_basic"
    expire(store, login.url)
    assert served(login.restarted().call())


def test_RULES_2_10_a_second_program_uses_the_registration_from_another_port(
    login: Program, person: Person, store: Store
) -> None:
    """RFC 8252 section 7.3: any port of 127.0.0.1 is the redirect URI that was registered."""
    assert served(login.call())
    other = program("httpx2-sync", login.url, store=store, user=at_a_browser(), account="other")
    assert served(other.call())
    assert "/register/" not in other.traffic


def test_RULES_2_15_a_challenge_without_scopes_asks_for_those_of_the_metadata(login: Program, store: Store) -> None:
    assert login.call("write").status == 200
    assert grant_in(store, login.url).requested == ALL


def test_a_403_that_names_no_scope_is_the_callers(server: DjangoToolkit, store: Store, person: Person) -> None:
    here = program("httpx2-sync", server.mcp, store=store, user=person, scopes=READ)
    assert served(here.call())
    assert here.call("write").status == 403
    assert person.asked == 1


@pytest.mark.parametrize("stack", [stack for stack in STACKS if stack.startswith("httpx2")])
def test_RULES_3_5_step_up(stack: str, server: DjangoToolkit, store: Store, person: Person) -> None:
    here = program(stack, server.named, store=store, user=person)
    assert served(here.call())
    assert grant_in(store, server.named).requested == READ
    assert here.call("write").status == 200
    assert grant_in(store, server.named).requested == ALL
    assert person.asked == 2
    expire(store, server.named)
    again = here.restarted()
    assert again.call("write").status == 200
    assert again.traffic == ["refresh_token"]


def test_RFC8707_a_token_is_good_for_its_resource_alone(login: Program, server: DjangoToolkit, store: Store) -> None:
    assert served(login.call())
    bearer = {"Authorization": f"Bearer {grant_in(store, server.mcp).access_token}"}
    message = {"id": 1, "params": {"name": "whoami"}}
    here, elsewhere = (
        httpx.post(url, json=message, headers=bearer, trust_env=False) for url in (server.mcp, server.named)
    )
    assert (here.status_code, elsewhere.status_code) == (200, 401)
    assert "not valid for this resource" in elsewhere.headers["www-authenticate"]
