"""The whole life of a grant at npm oidc-provider: `iss`, resource indicators, step-up, RFC 7592, secrets."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from mcp_oauth.exceptions import AuthorizationError, AuthorizationRequired, OAuthError
from mcp_oauth.sansio import attempt
from mcp_oauth.sansio.errors import Reason
from mcp_oauth.sansio.grant import GrantRecord
from mcp_oauth.sansio.plan import Dynamic, PreRegistered
from mcp_oauth.sansio.steps import Notice
from mcp_oauth.store.base import Store
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from mcp_oauth.store.memory import MemoryStore
from tests.integration.program import (
    DEAD,
    STACKS,
    Peer,
    Person,
    Program,
    at_a_browser,
    delete_registration,
    expire,
    grant_in,
    locked,
    nobody,
    program,
    registration_in,
    rewrite,
    served,
    stored,
    verdict,
)
from tests.servers import consent
from tests.servers import oidc_provider as npm
from tests.servers.oidc_provider import OidcProvider

LOGIN = [
    "/.well-known/oauth-protected-resource/mcp",
    "/.well-known/oauth-authorization-server",
    "/reg",
    "authorization_code",
]
READ = {"mcp:read", "offline_access"}
WRITE = READ | {"mcp:write"}


@pytest.fixture(scope="module")
def running() -> Iterator[OidcProvider]:
    with npm.serving() as server:
        yield server


@pytest.fixture
def server(running: OidcProvider) -> OidcProvider:
    """Counts from nothing, and as it comes."""
    running.set(reset=True, token=[], refreshGrace=0, accessTokenTtl=3600)
    return running


@pytest.fixture
def store() -> Store:
    return MemoryStore()


@pytest.fixture
def person() -> Person:
    return Person()


class Waiting(Person):
    """A person who looks at the page until told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self._looking, self._going = Event(), Event()

    def __call__(self, url: str) -> str:
        self._looking.set()
        assert self._going.wait(30)
        return super().__call__(url)

    def reached(self) -> None:
        assert self._looking.wait(30)

    def go_on(self) -> None:
        self._going.set()


@pytest.fixture
def at_the_page() -> Iterator[Waiting]:
    person = Waiting()
    yield person
    person.go_on()


@pytest.fixture
def login(server: OidcProvider, store: Store, person: Person) -> Program:
    return program("httpx2-sync", server.mcp, store=store, user=person)


@pytest.mark.parametrize("stack", STACKS)
def test_the_whole_life_of_a_grant(stack: str, server: OidcProvider, tmp_path: Path) -> None:
    url, store = server.mcp, EncryptedFileStore(tmp_path)
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

    stepped_up = program(stack, url, store=store, user=at_a_browser())
    assert stepped_up.call("write").status == 200
    assert set(grant_in(store, url).requested or ()) == WRITE

    last = grant_in(store, url)
    ended = stepped_up.oauth.logout()
    assert [(one.token, one.failure) for one in ended.revoked] == [("refresh_token", None), ("access_token", None)]
    assert ended.unregistered == (None,)
    assert verdict(url, last) == (401, "invalid_client")
    assert server.stats()["deregistered"] == 1
    with pytest.raises(AuthorizationRequired):
        stepped_up.restarted(interactive=False).call()


class TestLogin:
    def test_RULES_2_14_the_redirect_names_the_issuer(
        self, login: Program, person: Person, server: OidcProvider
    ) -> None:
        assert served(login.call())
        assert person.redirects[0]["iss"] == server.issuer

    @pytest.mark.parametrize("iss", ["https://mallory.example", None], ids=["another", "none"])
    def test_RULES_2_14_a_redirect_of_another_issuer_is_refused(
        self, iss: str | None, server: OidcProvider, store: Store
    ) -> None:
        def mixed_up(url: str) -> str:
            redirect = httpx.URL(consent.follow(url))
            return str(redirect.copy_remove_param("iss") if iss is None else redirect.copy_set_param("iss", iss))

        with pytest.raises(AuthorizationError) as refused:
            program("httpx2-sync", server.mcp, store=store, user=mixed_up).call()
        assert refused.value.reason is Reason.CALLBACK_ISSUER
        assert "POST /token" not in server.stats()["requests"]
        assert "mallory" not in str(refused.value)

    def test_RFC8707_the_audience_of_the_token_is_the_resource(self, store: Store, person: Person) -> None:
        with npm.serving(token_format="jwt") as server:
            here = program("httpx2-sync", server.mcp, store=store, user=person)
            assert served(here.call())
            assert _claims(grant_in(store, server.mcp).access_token)["aud"] == server.mcp
            expire(store, server.mcp)
            assert served(here.restarted().call())
            assert _claims(grant_in(store, server.mcp).access_token)["aud"] == server.mcp

    def test_RULES_2_15_the_scope_of_the_challenge_and_offline_access(
        self, server: OidcProvider, store: Store, person: Person
    ) -> None:
        """The answer does not list offline_access: the refresh token in it says so."""
        told: list[Notice] = []
        here = program("httpx2-sync", server.mcp, store=store, user=person, on_notice=told.append)
        assert served(here.call())
        assert set(grant_in(store, server.mcp).requested or ()) == READ
        assert "scopes-reduced" not in [notice.name for notice in told]

    def test_RULES_2_9_servers_of_one_origin_share_a_registration(
        self, login: Program, person: Person, server: OidcProvider, store: Store
    ) -> None:
        other = program("httpx2-sync", server.mcp, store=store, user=person, account="other")
        assert served(login.call())
        assert served(other.call())
        assert server.stats()["registered"] == 1
        assert person.asked == 2


def _claims(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return claims


class TestStepUp:
    @pytest.mark.parametrize("stack", ["httpx2-trio", "httpx-sync"])
    def test_RULES_3_5_earlier_and_challenged_scopes_are_asked_for_together(
        self, stack: str, server: OidcProvider, store: Store, person: Person
    ) -> None:
        here = program(stack, server.mcp, store=store, user=person)
        assert served(here.call())
        assert set(grant_in(store, server.mcp).requested or ()) == READ
        assert here.call("write").status == 200
        assert set(grant_in(store, server.mcp).requested or ()) == WRITE
        assert served(here.call())
        assert person.asked == 2

    def test_RULES_3_5_a_denied_set_is_remembered_and_the_grant_lives(self, login: Program, person: Person) -> None:
        assert served(login.call())
        person.deny = True
        with pytest.raises(AuthorizationError) as denied:
            login.call("write")
        assert denied.value.reason is Reason.ACCESS_DENIED
        assert login.call("write").status == 403
        assert served(login.call())
        assert person.asked == 2

    def test_RULES_3_5_scope_limit_leaves_the_403_to_the_caller(
        self, server: OidcProvider, store: Store, person: Person
    ) -> None:
        limit = ("mcp:read", "offline_access")
        here = program("httpx2-sync", server.mcp, store=store, user=person, scope_limit=limit)
        assert served(here.call())
        assert here.call("write").status == 403
        assert person.asked == 1

    def test_RULES_4_13_while_a_person_decides_others_renew(
        self, login: Program, at_the_page: Waiting, store: Store, server: OidcProvider
    ) -> None:
        assert served(login.call())
        with ThreadPoolExecutor(1) as threads:
            stepping_up = threads.submit(login.restarted(user=at_the_page).call, "write")
            at_the_page.reached()
            expire(store, server.mcp)
            assert served(login.restarted().call())
            at_the_page.go_on()
            assert stepping_up.result(30).status == 200
        assert server.stats()["granted"] == {"authorization_code": 2, "refresh_token": 1}
        assert set(grant_in(store, server.mcp).requested or ()) == WRITE
        assert served(login.restarted().call())

    def test_interactive_False_says_what_is_needed(self, login: Program) -> None:
        assert served(login.call())
        with pytest.raises(AuthorizationRequired):
            login.restarted(interactive=False).call("write")


class TestDenial:
    def test_RULES_3_4_a_denial_stands_until_a_program_asks(self, login: Program, person: Person) -> None:
        person.deny = True
        with pytest.raises(AuthorizationError) as denied:
            login.call()
        assert denied.value.reason is Reason.ACCESS_DENIED
        with pytest.raises(AuthorizationError) as held_back:
            login.restarted().call()
        assert held_back.value.reason is Reason.LOGIN_HELD_BACK
        assert person.asked == 1
        person.deny = False
        login.oauth.authorize()
        assert served(login.call())
        assert person.asked == 2

    def test_RULES_3_4_ten_minutes_later_it_is_asked_again(self, login: Program, person: Person) -> None:
        person.deny = True
        with pytest.raises(AuthorizationError):
            login.call()
        until = stored(login.oauth._store, login.url).no_login_before
        assert until is not None
        assert 590 < until - time.time() <= 600
        rewrite(login.oauth._store, login.url, lambda record: replace(record, no_login_before=time.time()))
        person.deny = False
        assert served(login.call())


class TestLogout:
    def test_RULES_3_8_another_account_keeps_the_registration(
        self, login: Program, person: Person, server: OidcProvider, store: Store
    ) -> None:
        other = program("httpx2-sync", server.mcp, store=store, user=person, account="other")
        assert served(login.call())
        assert served(other.call())
        grant = grant_in(store, server.mcp)
        assert login.oauth.logout().unregistered == ()
        assert verdict(server.mcp, grant) == DEAD
        assert server.stats()["deregistered"] == 0

        grant = grant_in(store, server.mcp, "other")
        assert served(other.restarted().call())
        assert other.oauth.logout().unregistered == (None,)
        assert server.stats()["deregistered"] == 1
        assert verdict(server.mcp, grant).refresh == "invalid_client"

    def test_after_a_logout_a_login_registers_anew(self, login: Program, person: Person, server: OidcProvider) -> None:
        assert served(login.call())
        login.oauth.logout()
        assert served(login.call())
        assert server.stats()["registered"] == 2
        assert person.asked == 2

    def test_RULES_4_10_a_logout_while_a_person_decides_is_not_undone(
        self, at_the_page: Waiting, store: Store, server: OidcProvider
    ) -> None:
        here = program("httpx2-sync", server.mcp, store=store, user=at_the_page)
        with ThreadPoolExecutor(1) as threads:
            logging_in = threads.submit(here.call)
            at_the_page.reached()
            here.restarted().oauth.logout()
            at_the_page.go_on()
            with pytest.raises(OAuthError) as refused:
                logging_in.result(30)
        assert refused.value.reason is Reason.LOGGED_OUT
        assert stored(store, server.mcp).grants == ()
        assert here.traffic[-3:] == ["authorization_code", "/token/revocation", "/token/revocation"]

    def test_RULES_3_8_a_logout_that_the_server_does_not_hear_ends_here_all_the_same(
        self, login: Program, store: Store, server: OidcProvider
    ) -> None:
        assert served(login.call())
        rewrite(store, server.mcp, _unreachable)
        ended = login.oauth.logout()
        assert [one.failure and one.failure.reason for one in ended.revoked] == [Reason.SERVER_UNAVAILABLE] * 2
        assert stored(store, server.mcp).grants == ()
        assert login.oauth.token is None


def _unreachable(record: GrantRecord) -> GrantRecord:
    """Nobody listens where its tokens are to be revoked."""
    nowhere = "http://127.0.0.1:9/revoke"
    return replace(record, grants=tuple(replace(grant, revocation_endpoint=nowhere) for grant in record.grants))


class TestForgottenRegistration:
    def test_RULES_2_11_at_a_renewal_it_registers_again_and_logs_in(
        self, login: Program, person: Person, server: OidcProvider, store: Store
    ) -> None:
        assert served(login.call())
        delete_registration(grant_in(store, server.mcp).registration)
        server.set(forgetAccessTokens=True)
        assert served(login.call())
        assert (person.asked, server.stats()["registered"]) == (2, 2)
        assert served(login.restarted().call())

    def test_RULES_2_11_at_the_exchange_it_registers_again_once(
        self, login: Program, person: Person, server: OidcProvider, store: Store
    ) -> None:
        def forgotten(url: str) -> str:
            redirect = person(url)
            if person.asked == 1:
                delete_registration(registration_in(store))
            return redirect

        here = program("httpx2-sync", server.mcp, store=store, user=forgotten)
        assert served(here.call())
        assert (person.asked, server.stats()["registered"]) == (2, 2)

    def test_RULES_2_11_a_server_that_always_forgets_ends_in_an_error(
        self, person: Person, server: OidcProvider, store: Store
    ) -> None:
        def forgotten(url: str) -> str:
            redirect = person(url)
            delete_registration(registration_in(store))
            return redirect

        here = program("httpx2-sync", server.mcp, store=store, user=forgotten)
        with pytest.raises(OAuthError) as refused:
            here.call()
        assert refused.value.reason is Reason.CLIENT_REFUSED
        assert (person.asked, server.stats()["registered"]) == (2, 2)

    def test_RULES_2_11_without_a_person_nothing_is_discarded(
        self, login: Program, person: Person, server: OidcProvider, store: Store
    ) -> None:
        assert served(login.call())
        delete_registration(grant_in(store, server.mcp).registration)
        server.set(forgetAccessTokens=True)
        with pytest.raises(AuthorizationRequired):
            login.restarted(interactive=False).call()
        assert served(login.call())
        assert person.asked == 2


class TestSecretClients:
    """Registered by hand, configured with the secret."""

    @pytest.fixture(params=["client_secret_basic", "client_secret_post"])
    def client(self, request: pytest.FixtureRequest, server: OidcProvider) -> PreRegistered:
        document = {
            "redirect_uris": ["http://127.0.0.1/callback"],
            "token_endpoint_auth_method": request.param,
            "application_type": "native",
            "grant_types": ["authorization_code", "refresh_token"],
            "scope": "openid offline_access mcp:read mcp:write",
        }
        answer = httpx.post(f"{server.issuer}/reg", json=document, trust_env=False)
        assert answer.status_code == 201
        made = answer.json()
        return PreRegistered(
            made["client_id"],
            made["client_secret"],
            issuer=server.issuer,
            auth_method=made["token_endpoint_auth_method"],
        )

    def test_RULES_2_18_login_renewal_and_logout(
        self, client: PreRegistered, server: OidcProvider, store: Store
    ) -> None:
        here = program("httpx2-asyncio", server.mcp, store=store, user=at_a_browser(), client=client)
        assert served(here.call())
        expire(store, server.mcp)
        assert served(here.restarted(client=client).call())
        grant = grant_in(store, server.mcp)
        assert grant.registration.auth_method == client.auth_method
        ended = here.oauth.logout()
        assert [one.failure for one in ended.revoked] == [None, None]
        assert verdict(server.mcp, grant) == DEAD
        assert server.stats()["deregistered"] == 0

    def test_RULES_2_11_a_wrong_secret_is_a_typed_error_and_discards_nothing(
        self, client: PreRegistered, server: OidcProvider, store: Store, person: Person
    ) -> None:
        wrong = replace(client, client_secret="wrong")
        with pytest.raises(OAuthError) as refused:
            program("httpx2-sync", server.mcp, store=store, user=person, client=[wrong, Dynamic()]).call()
        assert refused.value.reason is Reason.CLIENT_REFUSED
        assert "wrong" not in str(refused.value)
        assert person.asked == 1
        right = program("httpx2-sync", server.mcp, store=store, user=person, client=client)
        right.oauth.authorize()
        assert served(right.call())


class TestProcesses:
    def test_a_login_outlives_its_process(self, server: OidcProvider, tmp_path: Path) -> None:
        with Peer("httpx2-asyncio", server.mcp, tmp_path) as first:
            first.tell("call")
            first.until("asked")
            first.tell("approve")
            assert first.until("answered")["status"] == 200
        expire(EncryptedFileStore(tmp_path), server.mcp)
        with Peer("httpx2-asyncio", server.mcp, tmp_path) as second:
            second.tell("call")
            answered = second.until("answered")
        assert (answered["status"], answered["traffic"]) == (200, ["refresh_token"])

    def test_RULES_4_13_two_with_an_empty_store_open_one_browser(self, server: OidcProvider, tmp_path: Path) -> None:
        with Peer("httpx2-asyncio", server.mcp, tmp_path) as first, Peer("httpx-trio", server.mcp, tmp_path) as second:
            first.tell("call")
            first.until("asked")
            second.tell("call")
            second.until("login-elsewhere")
            first.tell("approve")
            assert "alice" in first.until("answered")["text"]
            answered = second.until("answered")
        assert (answered["status"], answered["traffic"]) == (200, [])
        assert server.stats()["granted"] == {"authorization_code": 1}

    def test_RULES_4_13_two_that_begin_at_once_open_one_browser(self, server: OidcProvider, tmp_path: Path) -> None:
        with Peer("httpx-sync", server.mcp, tmp_path) as first, Peer("httpx2-sync", server.mcp, tmp_path) as second:
            peers = (first, second)
            for peer in peers:
                peer.tell("call")
                peer.tell("approve")
            answers = [_last(peer) for peer in peers]
        assert [answer["status"] for answer in answers] == [200, 200]
        assert server.stats()["granted"] == {"authorization_code": 1}

    def test_RULES_4_13_a_login_that_is_killed_blocks_nobody_beyond_its_claim(
        self, server: OidcProvider, person: Person, tmp_path: Path
    ) -> None:
        with Peer("httpx2-sync", server.mcp, tmp_path) as killed:
            killed.tell("call")
            killed.until("asked")
            killed.kill()
        store = EncryptedFileStore(tmp_path)
        claim = stored(store, server.mcp).login
        assert claim is not None
        assert claim.until <= time.time() + attempt.EXPECTED
        with locked(store, server.mcp):
            pass

        rewrite(store, server.mcp, _claim_over)
        assert served(program("httpx2-sync", server.mcp, store=store, user=person).call())
        assert person.asked == 1
        assert server.stats()["registered"] == 1


def _last(peer: Peer) -> dict[str, Any]:
    while (event := peer.read())["event"] != "answered":
        pass
    return event


def _claim_over(record: GrantRecord) -> GrantRecord:
    assert record.login is not None
    return replace(record, login=replace(record.login, until=time.time()))


def test_interactive_False_asks_nobody(server: OidcProvider, store: Store) -> None:
    here = program("httpx-trio", server.mcp, store=store, user=nobody, interactive=False)
    with pytest.raises(AuthorizationRequired):
        here.call()
    assert server.stats()["registered"] == 0
