"""`BaseOAuth` over a world without HTTP: what it is, what programs call, and what is told (RULES 3, 4)."""

from __future__ import annotations

import copy
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs

import anyio
import anyio.to_thread
import pytest

from mcp_oauth.exceptions import (
    AuthorizationRequired,
    ConfigurationError,
    OAuthError,
    TokenRefreshError,
    TokenStorageError,
    from_failure,
)
from mcp_oauth.io import oauth as module
from mcp_oauth.sansio.errors import Reason, failure
from mcp_oauth.sansio.grant import GrantRecord
from mcp_oauth.sansio.keeping import Outcome
from mcp_oauth.sansio.plan import Dynamic, PreRegistered
from mcp_oauth.sansio.steps import Ensured, Need, NotEnsured, Notice
from mcp_oauth.store.base import StoreError
from mcp_oauth.store.choose import AutoStore
from mcp_oauth.store.memory import MemoryStore
from tests.io.plain import Failing, Nobody, Plain, Slow
from tests.io.servers import PATIENCE, Reply, Seen, World, document, put_grant, stored, stored_refresh_token

pytestmark = pytest.mark.usefixtures("nothing_is_left_of_flights")


# --- What it is -------------------------------------------------------------------------------------------------------


def test_an_option_that_there_is_not_is_refused(world: World) -> None:
    with pytest.raises(TypeError, match=r"tests\.io\.plain\.Plain has no option 'interactiv'"):
        Plain(world, interactiv=False)


@pytest.mark.parametrize(
    "options",
    [
        {"scopes": ['"']},
        {"token_params": {"resource": "x"}},
        {"client": PreRegistered("client", auth_method="client_secret_basic")},
        {"resource": "relative"},
    ],
)
def test_an_option_that_cannot_be_is_refused(world: World, options: Any) -> None:
    with pytest.raises(ConfigurationError):
        Plain(world, **options)


def test_the_server_url_must_be_one() -> None:
    with pytest.raises(ConfigurationError):
        Plain(World("ftp://mcp.example"))


def test_options_become_a_plan(world: World) -> None:
    plan = Plain(world, scopes="a b", client=[PreRegistered("client"), Dynamic("name")], account="me")._plan
    assert (plan.scopes, plan.account, plan.preregistered) == (("a", "b"), "me", PreRegistered("client"))
    assert plan.dynamic == Dynamic("name")
    assert Plain(world, client=PreRegistered("client"))._plan.dynamic is None
    assert Plain(world)._plan.dynamic == Dynamic()


def test_the_given_store_is_used_even_if_it_counts_as_false(world: World) -> None:
    class Sized(MemoryStore):
        def __len__(self) -> int:
            return len(self.keys())

    store = Sized()
    Plain(world, store=store).authorize()
    assert stored_refresh_token(store, world) == world.refresh_token


def test_without_a_store_the_best_of_this_system_is_used(world: World) -> None:
    assert isinstance(Plain(world, store=None)._store, AutoStore)


def test_FN_54_its_repr_shows_no_secret_and_it_cannot_be_copied(world: World) -> None:
    oauth = Plain(world, account="me")
    oauth.authorize()
    assert repr(oauth) == "Plain('https://mcp.example/mcp', account='me')"
    assert "CANARY" not in repr(oauth.token)
    for duplicate in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="holds a token"):
            duplicate(oauth)


@pytest.mark.parametrize("reason", list(Reason))
def test_errors_survive_a_pickle(reason: Reason) -> None:
    error = from_failure(failure(reason, "message", url="https://as.example/x?code=CANARY"))
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.failure, str(again)) == (type(error), error.failure, str(error))
    assert (again.reason, again.stage, again.url) == (reason, reason.stage, "https://as.example/x")
    assert (again.cure, again.status, again.oauth_error, again.attempts) == (reason.cure, None, None, ())


# --- What programs call -----------------------------------------------------------------------------------------------


def test_FN_28_authorize_needs_no_challenge(world: World) -> None:
    oauth = Plain(world)
    token = oauth.authorize()
    assert token == oauth.token == oauth.authorize() == anyio.run(oauth.aauthorize)
    assert world.logins == 1
    assert oauth.authorize(force=True) != token
    assert world.logins == 2


@pytest.mark.parametrize("backend", ["asyncio", "trio", None])
def test_logout_revokes_and_forgets(world: World, backend: str | None) -> None:
    store = MemoryStore()
    oauth = Plain(world, store=store)
    oauth.authorize()
    told = oauth.logout() if backend is None else anyio.run(oauth.alogout, backend=backend)
    assert [one.failure for one in told.revoked] == [None, None]
    record = stored(store, world)
    assert record is not None
    assert record.logged_out
    assert oauth.token is None
    assert len(world.at("/revoke")) == 2


def test_logout_tells_that_the_store_failed(world: World) -> None:
    store = Failing()
    put_grant(store, world)
    store.failing = {"load"}
    with pytest.raises(TokenStorageError):
        Plain(world, store=store).logout()


def test_two_objects_for_one_grant_share_it(world: World) -> None:
    store = MemoryStore()
    one, other = Plain(world, store=store), Plain(world, store=store)
    token = one.authorize()
    assert other.ensure(Need("missing")) == Ensured(token, "stored")
    assert Plain(world, store=store, account="other").ensure(Need("missing")) == Ensured(None, "none")


# --- No person (FN 47) ------------------------------------------------------------------------------------------------


def test_FN_47_interactive_false_raises_before_any_listener(world: World) -> None:
    oauth = Plain(world, user=Nobody(), interactive=False)
    with pytest.raises(AuthorizationRequired):
        oauth.authorize()
    with pytest.raises(AuthorizationRequired):
        anyio.run(oauth.aauthorize)
    assert world.at("/register") == []


def test_RULES_4_13_a_login_under_way_stalls_no_renewal_and_nobody_who_cannot_wait(world: World) -> None:
    store = MemoryStore()
    put_grant(store, world, expires_in=0.0)
    person = Slow(world)
    one = Plain(world, store=store, user=person)
    unattended = Plain(world, store=store, user=Nobody(), interactive=False)
    with ThreadPoolExecutor() as threads:
        login = threads.submit(one.ensure, Need("scope", scopes=("more",)))
        assert person.shown.wait(PATIENCE)
        refused = unattended.ensure(Need("asked", may_renew=False))
        renewed = [each.ensure(Need("expiring")) for each in (one, unattended)]
        arenewed = anyio.run(one.ensure_async, Need("expiring"))
        assert not login.done()
        person.may_answer.set()
        stepped_up = login.result(PATIENCE)
    assert isinstance(refused, NotEnsured)
    assert refused.failure.reason is Reason.AUTHORIZATION_REQUIRED
    assert [each.how for each in renewed if isinstance(each, Ensured)] == ["renewed", "stored"]
    assert isinstance(arenewed, Ensured)
    assert arenewed == renewed[0], "it is this process's own until a server has accepted it"
    assert isinstance(stepped_up, Ensured)
    assert stepped_up.token is not None
    assert (world.refreshes, world.reuses, stepped_up.token.requested) == (1, 0, ("more",))


def test_an_application_that_fails_withdraws_its_login(world: World) -> None:
    """RULES 4.13: the next login need not wait for a claim that nobody keeps."""
    store = MemoryStore()

    def allow(*_: Any) -> bool:
        raise KeyError("CANARY")

    for options in ({"allow_issuer": allow}, {"user": Nobody()}):
        with pytest.raises(OAuthError) as caught:
            Plain(world, store=store, **options).authorize()
        assert "CANARY" not in str(caught.value)
        record = stored(store, world)
        assert record is not None
        assert record.login is None


# --- Stores that fail (RULES 4.11) ------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [StoreError, KeyError], ids=["StoreError", "against-its-contract"])
@pytest.mark.parametrize("outage", [{"save"}, {"save", "load"}], ids=["no-save", "down"])
def test_RULES_4_11_a_rotated_token_is_pinned_and_saved_at_the_next_chance(
    world: World, error: type[Exception], outage: set[str]
) -> None:
    store, told = Failing(error), list[str]()
    put_grant(store, world)
    oauth = Plain(world, store=store, interactive=False, on_notice=lambda notice: told.append(notice.name))

    def break_down(stage: str) -> None:
        store.failing = outage

    world.before = break_down
    token = oauth.authorize()
    assert (told, token.access_token in world.valid) == (["not-persisted"], True)
    assert isinstance(oauth.ensure(Need("refused", unlike=token.fingerprint)), NotEnsured)  # still out of order
    world.before = lambda stage: None
    store.failing = set()
    again = Plain(world, store=store, interactive=False).authorize()
    assert again.access_token in world.valid
    assert (stored_refresh_token(store, world), world.reuses) == (world.refresh_token, 0)


def test_a_store_that_cannot_be_read_gives_the_typed_error(world: World) -> None:
    store = Failing()
    store.failing = {"load"}
    with pytest.raises(TokenStorageError, match="out of order"):
        Plain(world, store=store).authorize()


class Quoting(World):
    """Refuses, and quotes what it was sent."""

    def _token(self, seen: Seen) -> Reply:
        form = parse_qs(seen.body.decode())
        return document({"error": "server_confused", "error_description": form["refresh_token"][0]}, 400)


def test_FN_5_a_renewal_that_is_refused_gives_the_typed_error_and_keeps_the_grant() -> None:
    world, store = Quoting(), MemoryStore()
    put_grant(store, world)
    before = world.refresh_token

    with pytest.raises(TokenRefreshError) as caught:
        Plain(world, store=store, interactive=False).authorize()
    assert "CANARY" not in f"{caught.value!r} {caught.value}"
    assert stored_refresh_token(store, world) == before


# --- What is told (FN 54) ---------------------------------------------------------------------------------------------


def test_notices_go_to_the_logger_and_to_on_notice(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    told: list[Notice] = []
    oauth = Plain(world, on_notice=told.append)
    oauth.authorize()
    oauth.logout()
    assert [notice.name for notice in told] == ["issuer-first-used", "registered", "logged-in", "revoked", "revoked"]
    logged = [
        record.message for record in caplog.records if record.name == "mcp_oauth" and record.levelno > logging.DEBUG
    ]
    assert logged == [f"{notice.name}: {notice.message}" for notice in told]
    assert "CANARY" not in caplog.text


def test_FN_54_what_peers_call_themselves_reaches_the_log_on_one_line(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    told: list[Notice] = []
    Plain(world, on_notice=told.append)._tell(Notice("lock-busy", "waiting for evil\n\x1b[2J"))
    assert [notice.message for notice in told] == ["waiting for evil  [2J"]
    assert [entry.getMessage() for entry in caplog.records] == ["lock-busy: waiting for evil  [2J"]


def test_an_on_notice_that_fails_ends_no_run(world: World, caplog: pytest.LogCaptureFixture) -> None:
    def fail(notice: Notice) -> None:
        raise ZeroDivisionError

    assert Plain(world, on_notice=fail).authorize().access_token in world.valid
    assert "on_notice failed" in caplog.text


# --- Forgetting a client, and what is only in memory ------------------------------------------------------------------


class TestEnds:
    @pytest.mark.parametrize("backend", [None, "asyncio", "trio"])
    def test_FN_31_forget_client_keeps_the_tokens_and_the_next_login_registers_anew(
        self, world: World, backend: str | None
    ) -> None:
        oauth = Plain(world)
        token = oauth.authorize()
        oauth.authorize(force=True)
        assert len(world.at("/register")) == 1
        token = oauth.authorize()
        forgotten = oauth.forget_client() if backend is None else anyio.run(oauth.aforget_client, backend=backend)
        assert forgotten == (world.origin,)
        assert oauth.authorize() == token == oauth.token
        assert len(world.at("/register")) == 1
        oauth.authorize(force=True)
        assert len(world.at("/register")) == 2
        oauth.authorize(force=True)
        assert len(world.at("/register")) == 2

    def test_FN_31_without_a_registration_there_is_none_to_forget(self, world: World) -> None:
        assert Plain(world).forget_client() == ()
        oauth = Plain(world, client=PreRegistered("client", redirect_uri="http://127.0.0.1/callback"))
        oauth.authorize()
        assert anyio.run(oauth.aforget_client) == ()

    def test_FN_31_forget_client_tells_that_the_store_failed(self, world: World) -> None:
        store = Failing()
        put_grant(store, world)
        store.failing = {"save"}
        oauth = Plain(world, store=store)
        with pytest.raises(TokenStorageError):
            oauth.forget_client()
        with pytest.raises(TokenStorageError):
            anyio.run(oauth.aforget_client)

    @pytest.mark.parametrize("backend", [None, "asyncio", "trio"])
    def test_FN_52_a_logout_revokes_what_the_store_would_not_take(self, world: World, backend: str | None) -> None:
        store = Failing()
        put_grant(store, world)
        oauth = Plain(world, store=store)

        def break_down(stage: str) -> None:
            store.failing = {"save"}

        world.before = break_down
        token = oauth.authorize()
        assert stored_refresh_token(store, world) != world.refresh_token
        world.before, store.failing = lambda stage: None, set()
        told = oauth.logout() if backend is None else anyio.run(oauth.alogout, backend=backend)
        assert [one.failure for one in told.revoked] == [None, None]
        revoked = [parse_qs(seen.body.decode())["token"] for seen in world.at("/revoke")]
        assert revoked == [[world.refresh_token], [token.access_token]]
        assert stored_refresh_token(store, world) is None
        assert module._unsaved == {}

    def test_RULES_4_11_a_logout_that_fails_keeps_what_the_store_would_not_take(self, world: World) -> None:
        store = Failing()
        put_grant(store, world)
        oauth = Plain(world, store=store, interactive=False)

        def break_down(stage: str) -> None:
            store.failing = {"save"}

        world.before = break_down
        token = oauth.authorize()
        with pytest.raises(TokenStorageError):
            oauth.logout()
        world.before, store.failing = lambda stage: None, set()
        assert oauth.authorize() == token
        assert (stored_refresh_token(store, world), world.reuses) == (world.refresh_token, 0)

    @pytest.mark.parametrize("backend", [None, "asyncio", "trio"])
    def test_RULES_3_8_every_object_that_logs_out_lets_its_token_go(self, world: World, backend: str | None) -> None:
        """Also the one that only joined the logout of another."""
        store = MemoryStore()
        one, other = Plain(world, store=store), Plain(world, store=store)
        assert one.authorize() == other.authorize()
        for each in (one, other):
            if backend is None:
                each.logout()
            else:
                anyio.run(each.alogout, backend=backend)
        assert (one.token, other.token) == (None, None)

    def test_RULES_4_11_a_run_settles_only_the_record_that_it_was_given(self, world: World) -> None:
        oauth = Plain(world)
        pin = (oauth._store.identity, oauth._key)
        given, newer = (GrantRecord(revision, world.url, "") for revision in ("given", "newer"))
        module._unsaved[pin] = newer
        oauth.pin(Outcome(), given)
        assert module._unsaved[pin] is newer
        oauth.pin(Outcome(), newer)
        assert pin not in module._unsaved
