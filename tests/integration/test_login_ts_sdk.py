"""The whole life of a grant at the official TypeScript SDK's demo server: rate limits, and 500 for what is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from msgspec.structs import replace

from mcp_oauth.exceptions import AuthorizationRequired, OAuthError, RegistrationError, TokenRefreshError
from mcp_oauth.sansio.errors import Reason
from mcp_oauth.sansio.grant import GrantRecord, current_grant, with_grant
from mcp_oauth.store.base import Store
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from mcp_oauth.store.memory import MemoryStore
from tests.integration import calls
from tests.integration.program import (
    STACKS,
    Answer,
    Person,
    Program,
    at_a_browser,
    expire,
    grant_in,
    nobody,
    program,
    refreshed_by_hand,
    registration_in,
    rewrite,
)
from tests.servers import consent, ts_sdk
from tests.servers.ts_sdk import TsSdk

METADATA = "/.well-known/oauth-protected-resource/mcp"
LOGIN = [METADATA, "/.well-known/oauth-authorization-server", "/register", "authorization_code"]
REGISTRATIONS_AN_HOUR = 20


@pytest.fixture(scope="module")
def demo() -> Iterator[TsSdk]:
    """The SDK's provider as it is."""
    with ts_sdk.serving(provider="demo") as running:
        yield running


@pytest.fixture(scope="module")
def renewing() -> Iterator[TsSdk]:
    """It with renewal and revocation."""
    with ts_sdk.serving() as running:
        yield running


@pytest.fixture
def store() -> Store:
    return MemoryStore()


@pytest.fixture
def person() -> Person:
    return Person()


def call(here: Program) -> Answer:
    """The SDK's server knows MCP up to 2025-11-25."""
    return calls.whoami(here.stack, here.oauth, here.url)


def served(answer: Answer, store: Store) -> bool:
    """The tool answered, to our client: there is no person here."""
    return answer.status == 200 and f"client {registration_in(store).client_id}" in answer.text


@pytest.mark.parametrize("stack", [stack for stack in STACKS if stack.startswith("httpx2")])
def test_the_whole_life_of_a_grant(stack: str, renewing: TsSdk, tmp_path: Path) -> None:
    url, store = renewing.mcp, EncryptedFileStore(tmp_path)
    first = program(stack, url, store=store, user=at_a_browser())
    assert served(call(first), store)
    assert first.traffic == LOGIN

    again = first.restarted(store=EncryptedFileStore(tmp_path))
    assert served(call(again), store)
    assert again.traffic == []

    spent = expire(store, url)
    renewed = first.restarted(store=EncryptedFileStore(tmp_path))
    assert served(call(renewed), store)
    assert renewed.traffic == ["refresh_token"]

    assert refreshed_by_hand(spent)["error"] == "server_error"
    assert served(call(renewed.restarted()), store)

    last = grant_in(store, url)
    ended = renewed.oauth.logout()
    assert [(one.token, one.failure) for one in ended.revoked] == [("refresh_token", None), ("access_token", None)]
    bearer = {"Authorization": f"Bearer {last.access_token}"}
    assert httpx.post(url, json=calls.MESSAGE, headers=bearer, trust_env=False).status_code == 401
    assert refreshed_by_hand(last)["error"] == "server_error"
    with pytest.raises(AuthorizationRequired):
        call(renewed.restarted(interactive=False))


def test_RULES_2_5_an_issuer_that_ends_in_a_slash(renewing: TsSdk, store: Store, person: Person) -> None:
    """It is compared, and recorded, as the string that it is."""
    program("httpx2-sync", renewing.mcp, store=store, user=person).oauth.authorize()
    assert renewing.issuer.endswith("/")
    assert grant_in(store, renewing.mcp).issuer == renewing.issuer
    assert "iss" not in person.redirects[0]


class TestSpentElsewhere:
    """Another copy of the grant was renewed, as after a restored backup. This server says 500 where RFC 6749 section
    5.2 says `invalid_grant`, and an access token of no use is a 401."""

    @pytest.fixture
    def copy(self, renewing: TsSdk, store: Store, person: Person) -> Program:
        first = program("httpx2-sync", renewing.mcp, store=store, user=person)
        first.oauth.authorize()
        spent = expire(store, renewing.mcp)
        assert served(call(first.restarted()), store)
        rewrite(store, renewing.mcp, lambda record: with_grant(record, spent))
        return first.restarted(user=person)

    def test_RULES_3_2_a_500_ends_no_grant(self, copy: Program, person: Person, store: Store) -> None:
        before = grant_in(store, copy.url)
        with pytest.raises(TokenRefreshError) as kept:
            call(copy.restarted())
        assert kept.value.reason is Reason.RENEWAL_AMBIGUOUS
        assert "HTTP 500" in str(kept.value)
        assert grant_in(store, copy.url).refresh_token == before.refresh_token
        assert person.asked == 1

    def test_RULES_4_9_it_is_presented_twice_and_no_more(self, copy: Program) -> None:
        with pytest.raises(TokenRefreshError):
            call(copy)
        assert copy.traffic == ["refresh_token", "refresh_token"]

    def test_the_way_out_is_a_login_by_force(self, copy: Program, person: Person, store: Store) -> None:
        with pytest.raises(TokenRefreshError):
            call(copy)
        copy.oauth.authorize(force=True)
        assert served(call(copy), store)
        assert person.asked == 2

    def test_the_error_names_the_way_out(self, copy: Program) -> None:
        with pytest.raises(TokenRefreshError) as kept:
            call(copy)
        assert "authorize(force=True)" in str(kept.value)


def test_RULES_2_14_a_code_that_was_used_is_500_and_is_not_sent_again(renewing: TsSdk, store: Store) -> None:
    codes: list[str] = []

    def replaying(url: str) -> str:
        """The second time, the code of the first."""
        redirect = httpx.URL(consent.follow(url))
        codes.append(redirect.params["code"])
        return str(redirect.copy_set_param("code", codes[0]))

    here = program("httpx2-sync", renewing.mcp, store=store, user=replaying)
    here.oauth.authorize()
    with pytest.raises(OAuthError) as refused:
        here.oauth.authorize(force=True)
    assert (refused.value.reason, refused.value.status) == (Reason.EXCHANGE_REFUSED, 500)
    assert here.traffic.count("authorization_code") == 2
    assert codes[0] not in str(refused.value)
    assert served(call(here), store)


class TestDemo:
    """No refresh token, no revocation endpoint."""

    @pytest.fixture
    def login(self, demo: TsSdk, store: Store, person: Person) -> Program:
        login = program("httpx2-sync", demo.mcp, store=store, user=person)
        assert served(call(login), store)
        return login

    def test_RULES_4_12_without_a_refresh_token_the_server_says_when_it_is_over(
        self, login: Program, store: Store
    ) -> None:
        expire(store, login.url)
        again = login.restarted()
        assert served(call(again), store)
        assert again.traffic == []

    def test_a_token_that_it_does_not_know_is_500_and_the_callers(self, login: Program, store: Store) -> None:
        """Where RFC 6750 section 3.1 says 401. No challenge, so nobody logs in unbidden."""
        rewrite(store, login.url, _forgotten)
        again = login.restarted()
        assert call(again).status == 500
        assert again.traffic == []

    def test_the_way_out_is_a_login_by_force(self, login: Program, person: Person, store: Store) -> None:
        rewrite(store, login.url, _forgotten)
        again = login.restarted(user=person)
        again.oauth.authorize(force=True)
        assert served(call(again), store)
        assert person.asked == 2

    def test_RULES_3_8_a_logout_where_nothing_can_be_revoked_ends_here(self, login: Program, store: Store) -> None:
        ended = login.oauth.logout()
        assert (ended.revoked, ended.unregistered) == ((), ())
        with pytest.raises(AuthorizationRequired):
            call(login.restarted(interactive=False))


def _forgotten(record: GrantRecord) -> GrantRecord:
    grant = current_grant(record)
    assert grant is not None
    return with_grant(record, replace(grant, access_token="forgotten"))


def test_a_real_429_at_the_21st_registration(store: Store, person: Person) -> None:
    """The limit of the SDK's own router, by the hour: nobody waits for that. Who is registered goes on."""
    with ts_sdk.serving() as server:
        known = program("httpx2-sync", server.mcp, store=store, user=person)
        known.oauth.authorize()
        metadata = {"redirect_uris": ["http://127.0.0.1/callback"], "token_endpoint_auth_method": "none"}
        for _ in range(REGISTRATIONS_AN_HOUR - 1):
            made = httpx.post(f"{server.issuer}register", json=metadata, trust_env=False)
            assert made.status_code == 201

        refusal = httpx.post(f"{server.issuer}register", json=metadata, trust_env=False)
        assert (refusal.status_code, int(refusal.headers["retry-after"]) > 3000) == (429, True)

        late = program("httpx2-sync", server.mcp, store=MemoryStore(), user=nobody)
        with pytest.raises(RegistrationError) as refused:
            call(late)
        assert (refused.value.reason, refused.value.status) == (Reason.REGISTRATION_UNAVAILABLE, 429)
        assert late.traffic == LOGIN[:3]

        known.oauth.authorize(force=True)
        assert served(call(known), store)
        assert known.traffic.count("/register") == 1


def test_RFC8707_the_resource_is_sent_and_demanded(renewing: TsSdk, store: Store, person: Person) -> None:
    """The demo provider gives no token for another resource, and the SDK's middleware admits none."""
    without = program("httpx2-sync", renewing.mcp, store=MemoryStore(), user=person, resource="never")
    with pytest.raises(OAuthError) as refused:
        call(without)
    assert (refused.value.reason, refused.value.status) == (Reason.EXCHANGE_REFUSED, 500)
    assert served(call(program("httpx2-sync", renewing.mcp, store=store, user=person)), store)
