"""Names that others rebind, delete or save tokens under while a handler has used them; and what a handler keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mcp_oauth.exceptions import ConfigurationError
from mcp_oauth.handler import OAuthHandler
from mcp_oauth.io.options import Client
from mcp_oauth.sansio.plan import ClientMetadataDocument, Dynamic, PreRegistered
from mcp_oauth.store.memory import MemoryStore
from mcp_oauth.token_manager import TokenManager
from mcp_oauth.tokens import OAuthTokens
from tests.api.programs import NAME, ORIGIN, URL, Setup, nobody

OTHER = f"{ORIGIN}/mcp/other"
BY_HAND = OAuthTokens("CANARY-by-hand", expires_in=3600)


def header(here: Setup) -> str | None:
    return here.handler.get_authorization_header(NAME)


def of(tokens: OAuthTokens) -> str:
    return tokens.get_authorization_header()


# --- A name never gives another server's token ------------------------------------------------------------------------


def test_a_name_goes_there_and_back_also_with_tokens_saved_by_hand(here: Setup) -> None:
    here.handler.token_manager.save_tokens(NAME, BY_HAND)
    assert here.ensure() == BY_HAND
    assert header(here) == of(BY_HAND)
    other = here.ensure(url=OTHER)
    assert header(here) == of(other)
    assert here.ensure() == BY_HAND
    assert here.handler.token_manager.server_url(NAME) == URL
    assert header(here) == of(BY_HAND)


REBOUND: dict[str, Callable[[TokenManager], object]] = {
    "to-another": lambda manager: manager.bind(NAME, OTHER),
    "deleted": lambda manager: manager.delete_tokens(NAME),
    "released": lambda manager: manager.release(NAME, URL),
}


@pytest.mark.parametrize("whose", ["own", "another-programs"])
@pytest.mark.parametrize("change", REBOUND.values(), ids=REBOUND)
def test_a_name_that_stands_for_the_server_no_more_has_not_its_token(
    change: Callable[[TokenManager], object], whose: str, one: Setup
) -> None:
    one.ensure()
    change(one.handler.token_manager if whose == "own" else TokenManager(store=one.store))
    assert header(one) is None
    again = one.ensure()
    assert header(one) == of(again)
    assert one.handler.token_manager.server_url(NAME) == URL


def test_what_the_own_manager_rebinds_has_the_token_of_its_new_server(one: Setup) -> None:
    other = one.ensure(url=OTHER, name="other")
    one.ensure()
    one.handler.token_manager.bind(NAME, OTHER)
    assert header(one) == of(other)


def test_what_another_program_rebinds_does_not_get_the_header_of_its_server_here(one: Setup) -> None:
    """Who asks here means the server that was used here, and whoever looks at the label means the other one."""
    first, other = one.ensure(), one.run(one.program().ensure_authenticated_mcp, NAME, OTHER)
    assert first != other
    for _ in range(2):
        assert header(one) is None
    assert one.ensure().access_token == first.access_token
    assert header(one) == of(first)


@pytest.mark.parametrize("by_hand", [False, True], ids=["granted", "by-hand"])
def test_clearing_takes_what_was_used_here(by_hand: bool, one: Setup) -> None:
    manager = one.handler.token_manager
    if by_hand:
        manager.save_tokens(NAME, BY_HAND)
    one.ensure()
    one.run(one.program().ensure_authenticated_mcp, NAME, OTHER)
    assert one.handler.clear_tokens(NAME)
    assert manager.grant(URL) is None
    assert manager.usable_tokens(NAME, URL) is None
    assert manager.grant(OTHER) is not None
    assert manager.server_url(NAME) == OTHER


def test_clearing_takes_what_the_own_manager_made_of_the_name(one: Setup) -> None:
    one.ensure(url=OTHER, name="other")
    one.ensure()
    manager = one.handler.token_manager
    manager.bind(NAME, OTHER)
    assert one.handler.clear_tokens(NAME)
    assert (manager.grant(OTHER), manager.server_url(NAME)) == (None, None)
    assert manager.grant(URL) is not None


@pytest.mark.parametrize("name", [NAME, "another"], ids=["by-its-name", "by-another"])
def test_a_grant_that_the_own_manager_deleted_is_at_hand_no_more(name: str, one: Setup) -> None:
    first = one.ensure()
    one.ensure(name=name)
    one.handler.token_manager.delete_tokens(name)
    assert one.ensure().access_token != first.access_token
    assert one.world.logins == 2


def test_a_logout_elsewhere_that_a_header_told_of_is_obeyed(one: Setup) -> None:
    first = one.ensure()
    TokenManager(store=one.store).delete_tokens(NAME)
    assert header(one) is None
    assert one.ensure().access_token != first.access_token


# --- Tokens saved by hand come before all others ----------------------------------------------------------------------


def test_tokens_saved_while_another_is_at_hand_are_the_next_ones(here: Setup) -> None:
    first = here.ensure()
    here.handler.token_manager.save_tokens(NAME, BY_HAND)
    assert here.ensure() == BY_HAND
    assert header(here) == of(BY_HAND)
    here.handler.token_manager.save_tokens(NAME, later := OAuthTokens("CANARY-later"))
    assert here.ensure() == later
    here.handler.token_manager.delete_tokens(NAME)
    assert here.ensure().access_token not in (first.access_token, later.access_token)


def test_tokens_saved_while_a_person_logs_in_are_used(one: Setup) -> None:
    def person(url: str) -> str:
        one.handler.token_manager.save_tokens(NAME, BY_HAND)
        return one.world.login(url)

    one.handler = one.program(user=person)
    assert one.ensure() == BY_HAND
    assert one.ensure() == BY_HAND


def test_another_names_token_does_not_hide_those_saved_under_this_one(one: Setup) -> None:
    granted = one.ensure(name="granted")
    one.handler.token_manager.save_tokens(NAME, BY_HAND)
    for _ in range(2):
        assert one.ensure() == BY_HAND
        assert one.ensure(name="granted").access_token == granted.access_token


def test_those_of_another_process_are_used_once_the_token_is_due(one: Setup) -> None:
    first = one.ensure()
    TokenManager(store=one.store).save_tokens(NAME, BY_HAND)
    assert one.ensure().access_token == first.access_token
    assert header(one) == of(BY_HAND)
    one.handler._at_hand.clear()
    assert one.ensure() == BY_HAND


# --- RULES 2.9: whose secret goes where -------------------------------------------------------------------------------

SECRETS: dict[str, Any] = {
    "client_secret": PreRegistered("id", "CANARY-secret"),
    "initial_access_token": Dynamic(initial_access_token="CANARY-token"),
    "second-of-several": (ClientMetadataDocument("https://app.example/c"), Dynamic(initial_access_token="CANARY")),
    "from-an-iterator": iter([PreRegistered("id", "CANARY-secret")]),
}


@pytest.mark.parametrize("client", SECRETS.values(), ids=[f"RULES-2.9-{kind}" for kind in SECRETS])
def test_a_secret_for_whatever_server_asks_is_refused(client: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"OAuth\(url, client=") as refused:
        OAuthHandler(store=MemoryStore(), client=client)
    assert "CANARY" not in str(refused.value)


@pytest.mark.parametrize(
    "client",
    [
        PreRegistered("id"),
        PreRegistered("id", "CANARY", ORIGIN),
        Dynamic(),
        ClientMetadataDocument("https://app.example/c"),
    ],
    ids=["public", "with-its-issuer", "dynamic", "document"],
)
def test_other_clients_serve_many(client: Client) -> None:
    OAuthHandler(store=MemoryStore(), client=client)


# --- What is kept -----------------------------------------------------------------------------------------------------


def test_all_servers_share_one_ssl_context(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = OAuthHandler(store=MemoryStore())
    first, second = (handler._oauth(url, None)._traffic._verify for url in (URL, OTHER))
    assert first is second is handler._beneath()["verify"]
    assert first is not None


def test_it_does_not_grow_without_end(one: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcp_oauth.handler.MOST_KEPT", 2)
    urls = [f"{ORIGIN}/mcp/{number}" for number in range(4)]
    tokens = [one.ensure([f"scope-{number}"], url=url, name=url).access_token for number, url in enumerate(urls)]
    handler = one.handler
    assert list(handler._at_hand) == list(handler._uses) == [url for url, _ in handler._oauths] == urls[-2:]
    assert len(handler.token_manager._stamps) == 4
    one.handler._options["user"] = nobody
    assert [one.ensure(url=url, name=url).access_token for url in urls] == tokens
