"""`OAuthHandler` gets tokens and lets them go, on httpx2 and httpx, asyncio and trio."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any, cast
from urllib.parse import parse_qs

import anyio
import anyio.to_thread
import httpx
import httpx2
import pytest
from msgspec.structs import replace

from mcp_oauth.exceptions import (
    AuthorizationError,
    AuthorizationRequired,
    ConfigurationError,
    OAuthError,
    TokenRefreshError,
    TokenStorageError,
    from_failure,
)
from mcp_oauth.handler import OAuthHandler
from mcp_oauth.io import stacks
from mcp_oauth.sansio.errors import Reason, failure
from mcp_oauth.sansio.grant import Grant
from mcp_oauth.sansio.logout import LoggedOut
from mcp_oauth.sansio.plan import PreRegistered
from mcp_oauth.store.base import Conflict, Saved, StoreError
from mcp_oauth.store.memory import MemoryStore
from mcp_oauth.token_manager import TokenManager
from mcp_oauth.tokens import OAuthTokens
from tests.api.programs import NAME, ORIGIN, URL, Setup, nobody, put_other_grant
from tests.io.servers import PATIENCE, Reply, Seen, document, key_of, put_grant, stored_refresh_token

# --- Making one -------------------------------------------------------------------------------------------------------


def test_an_option_that_there_is_not_is_refused() -> None:
    with pytest.raises(TypeError, match="OAuthHandler has no option 'interactiv'"):
        OAuthHandler(**cast("Any", {"interactiv": False}))


@pytest.mark.parametrize("options", [{"store": MemoryStore()}, {"account": "me"}], ids=["store", "account"])
def test_a_token_manager_has_its_own_store_and_account(options: Any) -> None:
    with pytest.raises(ConfigurationError, match="token_manager"):
        OAuthHandler(TokenManager(store=MemoryStore()), **options)


def test_a_token_manager_is_used_as_it_is(one: Setup) -> None:
    one.handler = one.program(token_manager=(manager := TokenManager(store=one.store, account="me")))
    one.ensure()
    assert one.handler.token_manager is manager
    assert one.store.load(key_of(one.world, "me")) is not None


def test_without_one_a_store_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr("mcp_oauth.handler.TokenManager", lambda **options: made.append(options))
    OAuthHandler()
    assert made == [{"store": None, "account": ""}]


@pytest.mark.parametrize(
    ("url", "scopes"), [("mcp.example", None), ("http://mcp.example", None), (URL, ['"'])], ids=["url", "http", "scope"]
)
def test_what_cannot_be_is_refused_before_anything_is_sent(url: str, scopes: list[str] | None, one: Setup) -> None:
    with pytest.raises(ConfigurationError):
        one.ensure(scopes, url=url)
    assert one.world.seen == []
    assert one.store.keys() == ()


# --- Getting tokens ---------------------------------------------------------------------------------------------------


def test_the_whole_life(here: Setup) -> None:
    tokens = here.ensure(["read", "write"])
    assert here.world.requested == "read write"
    assert here.world.valid == {tokens.access_token}
    assert tokens.refresh_token == here.world.refresh_token
    assert tokens.expires_in == pytest.approx(3600, abs=5)
    assert here.handler.get_authorization_header(NAME) == f"Bearer {tokens.access_token}"

    here.handler = here.program(user=nobody)
    seen = len(here.world.seen)
    assert here.ensure(["read", "write"]).access_token == tokens.access_token
    assert here.ensure().access_token == tokens.access_token
    assert len(here.world.seen) == seen
    answer = here.request(method="POST", json={"id": 1})
    assert answer.json()["token"] == f"Bearer {tokens.access_token}"

    ended = here.run(here.handler.logout, NAME, URL)
    assert [one.token for one in ended.revoked] == ["refresh_token", "access_token"]
    assert here.handler.get_authorization_header(NAME) is None
    assert here.handler.token_manager.list_servers() == ()


def test_a_token_at_hand_asks_neither_server_nor_store(here: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    first = here.ensure(["read"])
    seen = len(here.world.seen)
    monkeypatch.setattr(here.store, "load", None)
    for scopes in (None, [], ["read"]):
        assert here.ensure(scopes).access_token == first.access_token
    assert len(here.world.seen) == seen


def test_what_callers_do_to_their_tokens_is_their_affair(one: Setup) -> None:
    tokens = one.ensure()
    good, tokens.access_token = tokens.access_token, "changed"
    assert one.ensure().access_token == good


def test_FN_28_an_expired_token_in_a_new_process_costs_one_renewal_and_no_browser(here: Setup) -> None:
    put_grant(here.store, here.world)
    here.handler = here.program(user=nobody)
    assert here.handler.get_authorization_header(NAME) is None
    tokens = here.ensure()
    assert [seen.path for seen in here.world.seen] == ["/token"]
    assert tokens.refresh_token == here.world.refresh_token == stored_refresh_token(here.store, here.world)
    assert not tokens.is_expired()


def test_a_token_that_expires_in_this_process_is_renewed(one: Setup) -> None:
    one.world.lifetime = 0
    first = one.ensure()
    one.world.lifetime = 3600
    assert one.ensure().access_token != first.access_token
    assert (one.world.logins, one.world.refreshes) == (1, 1)


def test_50_concurrent_calls_are_one_login(here: Setup) -> None:
    async def together() -> list[OAuthTokens]:
        results: list[OAuthTokens] = []

        async def call() -> None:
            results.append(await here.handler.ensure_authenticated_mcp(NAME, URL, ["read"]))

        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(call)
        return results

    results = here.run(together)
    assert len(results) == 50
    assert len({tokens.access_token for tokens in results}) == here.world.logins == 1


@pytest.mark.parametrize(
    ("left", "usable"), [(5.0, True), (-1.0, False)], ids=["DESIGN-4-in-its-leeway", "once-it-has-expired"]
)
def test_a_failed_renewal_leaves_a_token_that_is_alive_in_use(left: float, usable: bool, one: Setup) -> None:
    first = one.ensure()
    due = {"obtained_at": time.time() - 3600, "expires_at": time.time() + left}
    put_other_grant(one, **due)
    here = one.handler._at_hand[URL]
    assert isinstance(here.grant, Grant)
    one.handler._at_hand[URL] = here._replace(grant=replace(here.grant, **due))

    def cut(seen: Seen) -> Reply:
        raise httpx2.ReadError("cut")

    one.more["mcp.example"] = cut
    if usable:
        assert one.ensure().access_token == first.access_token
    else:
        with pytest.raises(TokenRefreshError):
            one.ensure()


@pytest.mark.parametrize("others", [0, 1], ids=["alone", "with-another-caller"])
def test_a_cancelled_call_harms_nobody(others: int, here: Setup) -> None:
    """Of four callers three leave while the person looks at the page."""
    opened, answer = threading.Event(), threading.Event()

    def person(url: str) -> str:
        opened.set()
        assert answer.wait(PATIENCE)
        return here.world.login(url)

    here.handler = here.program(user=person)
    results: list[OAuthTokens] = []

    async def call() -> None:
        results.append(await here.handler.ensure_authenticated_mcp(NAME, URL))

    async def scenario() -> None:
        async with anyio.create_task_group() as staying, anyio.create_task_group() as leaving:
            for _ in range(3):
                leaving.start_soon(call)
            for _ in range(others):
                staying.start_soon(call)
            await anyio.to_thread.run_sync(opened.wait, PATIENCE)
            leaving.cancel_scope.cancel()
            staying.start_soon(anyio.to_thread.run_sync, answer.set)

    here.run(scenario)
    assert len(results) == others
    here.handler = here.program()  # the first person's login was given up where nobody waited for it any more
    assert here.ensure().access_token in here.world.valid


def test_interactive_false_asks_nobody(here: Setup) -> None:
    here.handler = here.program(interactive=False, user=nobody)
    with pytest.raises(AuthorizationRequired):
        here.ensure()
    with pytest.raises(AuthorizationRequired):
        here.request()
    assert here.world.at("/mcp") == []
    assert here.handler.token_manager.list_servers() == ()


def test_a_login_that_was_denied_is_asked_for_again(one: Setup) -> None:
    def deny(url: str) -> str:
        state = httpx.URL(url).params["state"]
        return f"{httpx.URL(url).params['redirect_uri']}?error=access_denied&state={state}&iss={ORIGIN}"

    answers = [deny, deny, one.world.login]
    one.handler = one.program(user=lambda url: answers.pop(0)(url))
    for _ in range(2):
        with pytest.raises(AuthorizationError, match="denied"):
            one.ensure(["read"])
    assert one.ensure(["read"]).access_token in one.world.valid


def test_options_go_to_the_login(one: Setup) -> None:
    one.handler = one.program(client=PreRegistered("by-hand"), scopes=iter(["a", "b"]))
    one.ensure()
    one.ensure(url=f"{ORIGIN}/mcp/other")
    assert one.world.requested == "a b"
    assert one.world.at("/register") == []


# --- Scopes -----------------------------------------------------------------------------------------------------------


def test_RULES_3_5_more_scopes_are_a_login_for_all_of_them(one: Setup) -> None:
    one.ensure(["read"])
    assert one.world.requested == "read"
    one.ensure(["write"])
    assert one.world.requested == "read write"
    for scopes in (["read"], ["write"], ["write", "read"], [], None):
        one.ensure(scopes)
    one.handler = one.program(user=nobody)
    for scopes in (["read"], ["write"], ["write", "read"], [], None):
        one.ensure(scopes)
    assert one.world.logins == 2


def test_callers_with_other_scopes_at_once_all_get_theirs(here: Setup) -> None:
    async def together() -> None:
        async def call(scope: str) -> None:
            await here.handler.ensure_authenticated_mcp(NAME, URL, [scope])
            token = here.handler._at_hand[URL].oauth.token
            assert token is not None
            assert scope in (token.requested or ())

        async with anyio.create_task_group() as group:
            for scope in ("a", "b", "a", "b"):
                group.start_soon(call, scope)

    here.run(together)
    assert here.world.logins == 2
    assert set(here.world.requested.split()) == {"a", "b"}


def test_scopes_that_no_login_brings_end_in_an_error(one: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcp_oauth.handler.covers", lambda token, scopes: False)
    with pytest.raises(OAuthError) as failed:
        one.ensure(["read"])
    assert failed.value.reason is Reason.STORE_CONTENDED
    assert one.world.logins == 1


# --- Names ------------------------------------------------------------------------------------------------------------


def test_a_name_follows_its_url_and_each_url_is_a_grant(one: Setup) -> None:
    first, other = one.ensure(), one.ensure(url=f"{ORIGIN}/mcp/other")
    assert first.access_token != other.access_token
    assert one.world.logins == 2
    assert one.handler.get_authorization_header(NAME) == other.get_authorization_header()
    assert one.program().get_authorization_header(NAME) == other.get_authorization_header()
    assert one.ensure().access_token == first.access_token
    assert one.program().get_authorization_header(NAME) == first.get_authorization_header()
    assert one.world.logins == 2


def test_two_names_of_one_url_are_one_grant(one: Setup) -> None:
    assert one.ensure(name="a").access_token == one.ensure(name="b").access_token
    assert [entry.name for entry in one.handler.token_manager.list_servers()] == ["a", "b"]


def test_a_grant_of_a_plain_OAuth_is_used_and_the_other_way_round(one: Setup) -> None:
    oauth = stacks.installed().oauth(URL, store=one.store, user=one.world.login, transport=one.transport)
    token = oauth.authorize()
    one.handler = one.program(user=nobody)
    assert one.ensure().access_token == token.access_token


class TestSavedByHand:
    @pytest.fixture(autouse=True)
    def saved(self, here: Setup) -> OAuthTokens:
        here.handler = here.program(user=nobody)
        tokens = OAuthTokens("CANARY-by-hand", expires_in=3600)
        here.world.valid.add(tokens.access_token)
        here.handler.token_manager.save_tokens(NAME, tokens)
        return tokens

    def test_they_are_used(self, here: Setup, saved: OAuthTokens) -> None:
        assert here.handler.get_authorization_header(NAME) == "Bearer CANARY-by-hand"
        assert here.ensure(["any"]) == saved
        assert here.run(here.handler.prepare_headers_for_mcp_server, NAME, URL) == {
            "Authorization": "Bearer CANARY-by-hand"
        }
        assert here.request().json()["token"] == "Bearer CANARY-by-hand"
        assert [seen.path for seen in here.world.seen] == ["/mcp"]

    def test_at_the_first_server_and_no_other(self, here: Setup) -> None:
        here.ensure()
        here.handler = here.program()
        elsewhere = here.ensure(url=f"{ORIGIN}/mcp/other")
        assert elsewhere.access_token != "CANARY-by-hand"
        assert here.world.logins == 1
        assert here.ensure().access_token == "CANARY-by-hand"

    def test_a_refused_one_is_the_callers_affair(self, here: Setup) -> None:
        here.world.valid.clear()
        assert here.request().status_code == 401
        assert len(here.world.seen) == 1

    def test_a_redirect_takes_them_nowhere(self, here: Setup) -> None:
        here.more["mcp.example"] = lambda seen: Reply(307, (("location", "https://evil.example/x"),))
        here.more["evil.example"] = lambda seen: document({"token": seen.token})
        assert here.request(follow_redirects=True).json() == {"token": None}

    def test_once_expired_a_login_takes_their_place(self, here: Setup, saved: OAuthTokens) -> None:
        saved.issued_at -= 7200
        here.handler.token_manager.save_tokens(NAME, saved)
        here.handler = here.program()
        assert here.ensure().access_token != "CANARY-by-hand"
        assert here.world.logins == 1

    def test_a_logout_clears_them_and_revokes_the_grants(self, here: Setup) -> None:
        put_grant(here.store, here.world)
        ended = here.run(here.handler.logout, NAME, URL)
        assert len(ended.revoked) == 2
        assert all(b"by-hand" not in seen.body for seen in here.world.at("/revoke"))
        assert here.handler.token_manager.list_servers() == ()


# --- Logging out ------------------------------------------------------------------------------------------------------


def test_clearing_is_local(one: Setup) -> None:
    one.ensure()
    seen = len(one.world.seen)
    assert one.handler.clear_tokens(NAME)
    assert not one.handler.clear_tokens(NAME)
    assert len(one.world.seen) == seen
    assert one.handler.get_authorization_header(NAME) is None
    assert one.handler.token_manager.list_servers() == ()
    one.ensure()
    assert one.world.logins == 2


def test_clearing_in_a_new_process(one: Setup) -> None:
    one.ensure()
    assert one.program().clear_tokens(NAME)
    assert one.program().get_authorization_header(NAME) is None


def test_RULES_3_8_a_logout_revokes_refresh_then_access_token_and_clears(here: Setup) -> None:
    tokens = here.ensure()
    ended = here.run(here.program().logout, NAME, "HTTPS://MCP.example:443/mcp")
    bodies = [parse_qs(seen.body.decode()) for seen in here.world.at("/revoke")]
    assert [body["token"] for body in bodies] == [[tokens.refresh_token], [tokens.access_token]]
    assert [one.failure for one in ended.revoked] == [None, None]
    assert stored_refresh_token(here.store, here.world) is None
    assert here.handler.token_manager.list_servers() == ()


def test_whatever_the_server_says_a_logout_clears(one: Setup) -> None:
    one.ensure()
    one.more["mcp.example"] = lambda seen: Reply(503)
    ended = one.run(one.handler.logout, NAME, URL)
    assert [one.failure is not None for one in ended.revoked] == [True, True]
    assert one.handler.get_authorization_header(NAME) is None
    assert one.handler.token_manager.list_servers() == ()


def test_a_logout_without_url_is_local(here: Setup) -> None:
    here.ensure()
    seen = len(here.world.seen)
    assert here.run(here.handler.logout, NAME) == LoggedOut()
    assert len(here.world.seen) == seen
    assert here.handler.get_authorization_header(NAME) is None


def test_clearing_that_the_store_cannot_keep_is_an_error_and_nothing_is_at_hand(
    one: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.ensure()

    def full(*_: Any, **__: Any) -> Saved | Conflict:
        raise StoreError("the disk is full")

    monkeypatch.setattr(one.store, "save", full)
    with pytest.raises(TokenStorageError, match="full"):
        one.handler.clear_tokens(NAME)
    assert (one.handler._at_hand, one.handler._uses, one.handler._oauths) == ({}, {}, {})


def test_a_logout_of_another_url_leaves_the_name_alone(one: Setup) -> None:
    tokens = one.ensure()
    assert one.run(one.handler.logout, NAME, f"{ORIGIN}/mcp/other") == LoggedOut()
    assert one.handler.get_authorization_header(NAME) == tokens.get_authorization_header()


def test_a_logout_that_the_store_cannot_keep_is_an_error(one: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    one.ensure()

    def full(*_: Any, **__: Any) -> Saved | Conflict:
        raise StoreError("the disk is full")

    monkeypatch.setattr(one.store, "save", full)
    with pytest.raises(TokenStorageError, match="full"):
        one.run(one.handler.logout, NAME, URL)


def test_a_login_that_a_logout_overtakes_is_not_at_hand(one: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logout came between the end of the login and its being noted here."""
    granted = one.handler._granted

    def overtaken(*args: Any) -> Any:
        one.handler._forget(NAME, URL)
        return granted(*args)

    monkeypatch.setattr(one.handler, "_granted", overtaken)
    one.ensure()
    assert one.handler._at_hand == {}


# --- A store that fails -----------------------------------------------------------------------------------------------


def test_RULES_4_11_a_token_is_not_kept_from_its_caller_by_a_name_that_cannot_be_saved(
    one: Setup, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save = one.store.save

    def no_names(key: str, *args: Any, **options: Any) -> Saved | Conflict:
        if key.startswith("name-"):
            raise StoreError("no more names")
        return save(key, *args, **options)

    monkeypatch.setattr(one.store, "save", no_names)
    tokens = one.ensure()
    assert tokens.access_token in one.world.valid
    assert "no more names" in caplog.text
    assert one.ensure().access_token == tokens.access_token
    assert one.handler.get_authorization_header(NAME) is None
    monkeypatch.undo()
    assert one.ensure().access_token == tokens.access_token
    assert one.handler.get_authorization_header(NAME) == tokens.get_authorization_header()
    assert one.world.logins == 1


def test_RULES_4_11_a_token_is_not_kept_from_its_caller_by_a_grant_that_cannot_be_read(
    one: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(url: str) -> Grant | None:
        raise from_failure(failure(Reason.STORE_FAILED, "the disk is gone"))

    monkeypatch.setattr(one.handler.token_manager, "grant", gone)
    assert one.ensure().access_token in one.world.valid


def test_a_label_of_a_newer_version_is_an_error_before_any_login(one: Setup) -> None:
    one.handler.token_manager.bind(NAME, URL)
    (key,) = one.store.keys()
    label = one.store.load(key)
    assert label is not None
    one.store.save(key, b'{"type": "name-2"}', revision="newer", expected=label.revision)
    with pytest.raises(TokenStorageError, match="newer version"):
        one.ensure()
    with pytest.raises(TokenStorageError, match="newer version"):
        one.handler.get_authorization_header(NAME)
    assert one.world.seen == []


def test_what_the_log_says_holds_no_secret(here: Setup, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "mcp_oauth"):
        here.request(scopes=["read"])
        here.world.valid.clear()
        here.request()
        here.run(here.handler.logout, NAME, URL)
    assert f"'{NAME}' stands for {URL}" in caplog.text
    assert "CANARY" not in caplog.text
    assert "CANARY" not in repr(here.handler.__dict__)
