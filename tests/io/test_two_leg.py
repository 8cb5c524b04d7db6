"""A login in two legs (FN 55): begun here, finished there, and between them only what is sealed (RULES 6.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import anyio
import pytest
from msgspec.structs import replace

from mcp_oauth.exceptions import AuthorizationError, ConfigurationError, OAuthError
from mcp_oauth.io import two_leg as module
from mcp_oauth.io.options import Client
from mcp_oauth.io.ports import now
from mcp_oauth.io.two_leg import Leg, TwoLeg
from mcp_oauth.sansio.errors import Reason
from mcp_oauth.sansio.grant import Token
from mcp_oauth.sansio.plan import ClientMetadataDocument, Dynamic, PreRegistered
from mcp_oauth.sansio.sealing import LIFE, NONCE_BYTES, seal, unseal
from mcp_oauth.sansio.steps import Ensured, Need
from mcp_oauth.store.memory import MemoryStore
from tests.io.plain import Failing, Nobody, Plain, settle
from tests.io.servers import Reply, Seen, World, document, put_grant, stored, stored_refresh_token

KEY = bytes(range(32))
CALLBACK = "https://app.example/callback"
DOCUMENT = "https://app.example/client"
COOKIE = "CANARY-cookie"


@pytest.fixture
def world() -> World:
    return Strict()


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    yield
    settle()


class Strict(World):
    """Takes each code once."""

    def _token(self, seen: Seen) -> Reply:
        code = parse_qs(seen.body.decode()).get("code", [""])[0]
        if code and code not in self._codes:
            self.reuses += 1
            return document({"error": "invalid_grant", "error_description": f"{code} was used"}, 400)
        return super()._token(seen)


def process(world: World, store: MemoryStore, key: bytes = KEY, **options: Any) -> TwoLeg:
    """One process of the application: all that they share is the store and the key."""
    options.setdefault("client", Dynamic("Example", redirect_uri=CALLBACK))
    return TwoLeg(Plain(world, store=store, user=Nobody(), **options), key)


def reason(call: Callable[[], object]) -> Reason:
    """Why it fails; and nothing secret is told."""
    with pytest.raises(OAuthError) as caught:
        call()
    assert "CANARY" not in f"{caught.value!r} {caught.value}"
    return caught.value.reason


def sent(world: World) -> list[str]:
    """The paths that requests went to."""
    return [seen.path for seen in world.seen]


# --- The good case ----------------------------------------------------------------------------------------------------

BACKENDS = pytest.mark.parametrize("backend", [None, "asyncio", "trio"], ids=lambda name: f"FN-55-{name or 'threads'}")


def begun(one: TwoLeg, backend: str | None) -> Leg:
    return one.begin(COOKIE) if backend is None else anyio.run(one.abegin, COOKIE, backend=backend)


def finished(one: TwoLeg, sealed: bytes, redirected: str, backend: str | None) -> Token:
    if backend is None:
        return one.finish(sealed, redirected, COOKIE)
    return anyio.run(one.afinish, sealed, redirected, COOKIE, backend=backend)


@BACKENDS
def test_begun_by_one_process_and_finished_by_another(world: World, store: MemoryStore, backend: str | None) -> None:
    leg = begun(process(world, store), backend)
    assert parse_qs(urlsplit(leg.url).query)["redirect_uri"] == [CALLBACK]
    redirected = world.login(leg.url)
    token = finished(process(world, store), leg.sealed, redirected, backend)
    assert token.access_token in world.valid
    assert stored_refresh_token(store, world) == world.refresh_token
    record = stored(store, world)
    assert record is not None
    assert record.login is None
    assert Plain(world, store=store, interactive=False).authorize() == token


@pytest.mark.parametrize(
    "client",
    [PreRegistered("client", redirect_uri=CALLBACK), Dynamic(redirect_uri=CALLBACK)],
    ids=["RULES-2.9-preregistered", "RULES-2.9-dynamic"],
)
def test_FN_55_with_interactive_false_nobody_else_opens_a_browser(
    world: World, store: MemoryStore, client: Client
) -> None:
    one = process(world, store, client=client, interactive=False)
    leg = one.begin(COOKIE)
    token = one.finish(leg.sealed, world.login(leg.url), COOKIE)
    assert one._oauth.token == token
    assert one._oauth.ensure(Need("missing")) == Ensured(token, "login"), "until a server has accepted it"


def test_FN_55_a_stored_token_does_not_end_the_first_leg(world: World, store: MemoryStore) -> None:
    put_grant(store, world, expires_in=3600.0)
    one = process(world, store)
    leg = one.begin(COOKIE)
    before = stored_refresh_token(store, world)
    token = one.finish(leg.sealed, world.login(leg.url), COOKIE)
    assert stored_refresh_token(store, world) == world.refresh_token != before
    assert token == one._oauth.token


# --- What cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 16, 31, 33], ids=lambda size: f"RULES-6.4-{size}-bytes")
def test_a_key_has_32_bytes(world: World, store: MemoryStore, size: int) -> None:
    with pytest.raises(ConfigurationError, match="32 bytes"):
        process(world, store, key=bytes(size))


@pytest.mark.parametrize(
    "client",
    [None, PreRegistered("client"), [PreRegistered("client", redirect_uri=CALLBACK), Dynamic()]],
    ids=["FN-55-none-configured", "FN-55-preregistered", "FN-55-one-of-two"],
)
def test_every_client_needs_a_redirect_uri(world: World, store: MemoryStore, client: Any) -> None:
    with pytest.raises(ConfigurationError, match="redirect_uri"):
        process(world, store, client=client)


def test_several_clients_will_do_if_each_has_one(world: World, store: MemoryStore) -> None:
    clients = [ClientMetadataDocument(DOCUMENT, redirect_uri=CALLBACK), Dynamic(redirect_uri=CALLBACK)]
    assert process(world, store, client=clients).begin(COOKIE).sealed


# --- What is sealed (RULES 6.4) ---------------------------------------------------------------------------------------


def test_RULES_6_4_what_is_sealed_shows_nothing(world: World, store: MemoryStore) -> None:
    leg = process(world, store).begin(COOKIE)
    state = parse_qs(urlsplit(leg.url).query)["state"][0]
    for text in (state, "verifier", "token_endpoint", world.origin, COOKIE, CALLBACK):
        assert text.encode() not in leg.sealed


def another_browser(one: TwoLeg, leg: Leg, redirected: str) -> Token:
    return one.finish(leg.sealed, redirected, "another cookie")


def another_key(one: TwoLeg, leg: Leg, redirected: str) -> Token:
    return TwoLeg(one._oauth, bytes(32)).finish(leg.sealed, redirected, COOKIE)


def tampered_bytes(one: TwoLeg, leg: Leg, redirected: str) -> Token:
    return one.finish(leg.sealed[:-1] + bytes([leg.sealed[-1] ^ 1]), redirected, COOKIE)


def tampered_endpoint(one: TwoLeg, leg: Leg, redirected: str) -> Token:
    """By somebody who has read it, but has not the key."""
    opened = unseal(leg.sealed, key=KEY, binding=one._bound(COOKIE), now=now())
    assert isinstance(opened, bytes)
    evil = opened.replace(b"mcp.example/token", b"evil.example/token")
    assert evil != opened
    nonce = bytes(NONCE_BYTES)
    return one.finish(seal(evil, key=bytes(32), binding=one._bound(COOKIE), nonce=nonce, now=now()), redirected, COOKIE)


def another_account(one: TwoLeg, leg: Leg, redirected: str) -> Token:
    oauth: Any = one._oauth
    return process(oauth.world, oauth._store, account="another").finish(leg.sealed, redirected, COOKIE)


def another_server(one: TwoLeg, leg: Leg, redirected: str) -> Token:
    oauth: Any = one._oauth
    return process(World("https://evil.example"), oauth._store).finish(leg.sealed, redirected, COOKIE)


@pytest.mark.parametrize(
    "finish",
    [another_browser, another_key, tampered_bytes, tampered_endpoint, another_account, another_server],
    ids=[
        "RULES-6.4-wrong-binding",
        "RULES-6.4-wrong-key",
        "RULES-6.4-tampered",
        "RULES-6.4-tampered-endpoint",
        "RULES-1.1-another-account",
        "RULES-1.1-another-server",
    ],
)
def test_a_sealed_login_that_is_not_this_ones_sends_nothing_and_stores_nothing(
    world: World, store: MemoryStore, finish: Callable[[TwoLeg, Leg, str], Token]
) -> None:
    one = process(world, store)
    leg = one.begin(COOKIE)
    redirected, asked, record = world.login(leg.url), sent(world), stored(store, world)
    assert reason(lambda: finish(one, leg, redirected)) is Reason.CALLBACK_STATE
    assert (sent(world), stored(store, world), one._oauth.token) == (asked, record, None)
    assert one.finish(leg.sealed, redirected, COOKIE).access_token in world.valid  # and the browser's own goes on


@pytest.mark.parametrize("age", [LIFE, LIFE + 86400], ids=["RULES-6.4-expired", "RULES-6.4-expired-long-ago"])
@pytest.mark.parametrize("backend", [None, "trio"])
def test_a_sealed_login_expires(
    world: World, store: MemoryStore, age: float, backend: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = process(world, store)
    leg = one.begin(COOKIE)
    redirected, asked = world.login(leg.url), sent(world)
    then = replace(now(), wall=now().wall + age)
    monkeypatch.setattr(module, "now", lambda: then)
    assert reason(lambda: finished(one, leg.sealed, redirected, backend)) is Reason.LOGIN_TIMED_OUT
    assert sent(world) == asked


def test_RULES_6_4_replayed_brings_no_second_token_and_costs_not_the_first(world: World, store: MemoryStore) -> None:
    """The application takes it once; should it fail to, the code is of no use any more."""
    leg = process(world, store).begin(COOKIE)
    redirected = world.login(leg.url)
    token = process(world, store).finish(leg.sealed, redirected, COOKIE)
    again = process(world, store)
    assert reason(lambda: again.finish(leg.sealed, redirected, COOKIE)) is Reason.EXCHANGE_REFUSED
    assert (world.reuses, again._oauth.token) == (1, None)
    assert Plain(world, store=store, interactive=False).authorize() == token


# --- The redirect (RULES 2.14) ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("redirected", "expected"),
    [
        (f"{CALLBACK}?code=CANARY-code", Reason.CALLBACK_STATE),
        (f"{CALLBACK}?code=CANARY-code&state=another", Reason.CALLBACK_STATE),
        (f"{CALLBACK}?code=CANARY-code&state=STATE&iss=https%3A%2F%2Fevil.example", Reason.CALLBACK_ISSUER),
        (f"{CALLBACK}?code=CANARY-code&state=STATE", Reason.CALLBACK_ISSUER),
        (f"{CALLBACK}?error=access_denied&state=STATE&iss=ISSUER", Reason.ACCESS_DENIED),
        (f"{CALLBACK}?state=STATE&iss=ISSUER", Reason.CALLBACK_WITHOUT_CODE),
    ],
    ids=[
        "RULES-2.14-no-state",
        "RULES-2.14-another-state",
        "RULES-2.14-another-issuer",
        "RULES-2.14-no-issuer",
        "RULES-2.14-denied",
        "RULES-2.14-no-code",
    ],
)
@BACKENDS
def test_a_redirect_that_brings_no_code(
    world: World, store: MemoryStore, redirected: str, expected: Reason, backend: str | None
) -> None:
    one = process(world, store)
    leg = begun(one, backend)
    state = parse_qs(urlsplit(leg.url).query)["state"][0]
    url, asked = redirected.replace("STATE", state).replace("ISSUER", world.origin), sent(world)
    assert reason(lambda: finished(one, leg.sealed, url, backend)) is expected
    assert (sent(world), one._oauth.token) == (asked, None)


# --- The first leg ----------------------------------------------------------------------------------------------------


@BACKENDS
def test_FN_55_a_first_leg_that_fails_raises(world: World, backend: str | None) -> None:
    store = Failing()
    store.failing = {"load"}
    assert reason(lambda: begun(process(world, store), backend)) is Reason.STORE_FAILED


def test_RULES_2_9_the_application_may_refuse_the_issuer(world: World, store: MemoryStore) -> None:
    one = process(world, store, allow_issuer=lambda *_: False)
    with pytest.raises(AuthorizationError):
        one.begin(COOKIE)
    record = stored(store, world)
    assert record is not None
    assert record.login is None


def test_FN_55_an_abandoned_first_leg_keeps_nobody_from_beginning_anew(world: World, store: MemoryStore) -> None:
    process(world, store).begin(COOKIE)
    anew = process(world, store)
    leg = anew.begin(COOKIE)
    token = anew.finish(leg.sealed, world.login(leg.url), COOKIE)
    assert token == anew._oauth.token


# --- The store (RULES 4.11) -------------------------------------------------------------------------------------------


def test_RULES_4_11_a_grant_that_could_not_be_saved_is_pinned(world: World) -> None:
    store = Failing()
    one = process(world, store)
    leg = one.begin(COOKIE)
    store.failing = {"save", "load"}
    token = one.finish(leg.sealed, world.login(leg.url), COOKIE)
    assert token.access_token in world.valid
    store.failing = set()
    assert Plain(world, store=store, interactive=False).authorize() == token
    assert stored_refresh_token(store, world) == world.refresh_token
