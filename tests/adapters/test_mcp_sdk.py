"""Our stores as the token storage of the official SDK's own provider: alone here, in the SDK in `tests/ecosystem`."""

from __future__ import annotations

from typing import Any

import pytest
from mcp.client.auth import TokenStorage as Wanted
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken

from mcp_oauth.adapters import key_value, mcp_sdk
from mcp_oauth.adapters.key_value import KeyValue
from mcp_oauth.adapters.mcp_sdk import CLIENT, TOKENS, TokenStorage
from mcp_oauth.sansio.values import Now
from mcp_oauth.store.base import DamagedError, Store
from mcp_oauth.store.memory import MemoryStore

pytestmark = pytest.mark.anyio

URL = "https://mcp.example.com/mcp"
ISSUER = "https://mcp.example.com"
ELSEWHERE = "https://login.example.com"

FULL = OAuthToken(access_token="access", expires_in=3600, scope="a b", refresh_token="refresh")


class Clock:
    """The wall clock; it stands still."""

    wall = 1_000_000.0

    def now(self) -> Now:
        return Now(self.wall, 0.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (key_value, mcp_sdk):
        monkeypatch.setattr(module, "now", clock.now)
    return clock


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def storage(memory: MemoryStore) -> TokenStorage:
    return TokenStorage(memory, URL)


def client(**more: Any) -> OAuthClientInformationFull:
    return OAuthClientInformationFull.model_validate(
        {"client_id": "client", "redirect_uris": ["http://[::1]/cb"]} | more
    )


async def test_it_is_what_the_sdk_asks_for(storage: TokenStorage) -> None:
    wanted: Wanted = storage
    assert await wanted.get_tokens() is None
    assert await wanted.get_client_info() is None


@pytest.mark.parametrize(
    "tokens",
    [
        pytest.param(FULL, id="full"),
        pytest.param(OAuthToken(access_token="access"), id="bare"),
        pytest.param(OAuthToken(access_token="access", scope=""), id="empty-scope"),
    ],
)
async def test_every_store_keeps_the_tokens(store: Store, clock: Clock, tokens: OAuthToken) -> None:
    await TokenStorage(store, URL).set_tokens(tokens)
    assert await TokenStorage(store, URL).get_tokens() == tokens


async def test_every_store_keeps_the_registration(store: Store) -> None:
    given = client(
        issuer=ISSUER, client_secret="secret", client_secret_expires_at=0, grant_types=["authorization_code"]
    )
    await TokenStorage(store, URL).set_client_info(given)
    assert await TokenStorage(store, URL).get_client_info() == given


@pytest.mark.parametrize(
    ("other", "shared"),
    [
        pytest.param((URL, ""), True, id="same"),
        pytest.param(("HTTPS://MCP.example.com:443/mcp#x", ""), True, id="RULES-2.1-the-canonical-URL"),
        pytest.param((URL + "2", ""), False, id="another-server"),
        pytest.param((URL, "work"), False, id="another-account"),
        pytest.param(("stdio:anything", ""), False, id="no-URL"),
    ],
)
async def test_what_is_shared(memory: MemoryStore, other: tuple[str, str], shared: bool) -> None:
    await TokenStorage(memory, URL).set_tokens(FULL)
    found = await TokenStorage(memory, *other).get_tokens()
    assert (found is not None) is shared


# --- Expiry -----------------------------------------------------------------------------------------------------------


async def test_the_lifetime_is_what_is_left_of_it(storage: TokenStorage, clock: Clock) -> None:
    await storage.set_tokens(FULL)
    clock.wall += 3000
    found = await storage.get_tokens()
    assert found == FULL.model_copy(update={"expires_in": 600})


@pytest.mark.parametrize(
    ("registration", "sent"),
    [
        pytest.param(client(issuer=ISSUER), "", id="at-home-it-is-renewed"),
        pytest.param(client(issuer=ISSUER + "/tenant"), "", id="at-home-beneath-a-path"),
        pytest.param(client(issuer=ELSEWHERE), "access", id="elsewhere-no-refresh-token-goes-to-the-wrong-server"),
        pytest.param(client(), "access", id="issuer-not-known"),
        pytest.param(None, "access", id="no-registration"),
    ],
)
async def test_an_expired_access_token(
    storage: TokenStorage, clock: Clock, registration: OAuthClientInformationFull | None, sent: str
) -> None:
    await storage.set_tokens(FULL)
    if registration is not None:
        await storage.set_client_info(registration)
    clock.wall += 3600
    found = await storage.get_tokens()
    assert found == FULL.model_copy(update={"expires_in": 0, "access_token": sent})


@pytest.mark.parametrize(
    ("secret", "expires_in", "usable"),
    [
        pytest.param("secret", 60, True, id="alive"),
        pytest.param("secret", 0, False, id="expired"),
        pytest.param("secret", None, True, id="RFC7591-3.2.1-0-is-never"),
        pytest.param(None, 0, True, id="there-is-no-secret"),
    ],
)
async def test_a_client_secret_expires(
    storage: TokenStorage, clock: Clock, secret: str | None, expires_in: int | None, usable: bool
) -> None:
    expires_at = 0 if expires_in is None else int(clock.wall) + expires_in
    await storage.set_client_info(client(client_secret=secret, client_secret_expires_at=expires_at))
    assert (await storage.get_client_info() is not None) is usable


# --- What else there is -----------------------------------------------------------------------------------------------


async def test_clear(storage: TokenStorage) -> None:
    assert not await storage.clear()
    await storage.set_client_info(client())
    assert await storage.clear()
    await storage.set_tokens(FULL)
    assert await storage.clear()
    assert await storage.get_tokens() is None
    assert await storage.get_client_info() is None


@pytest.mark.parametrize("collection", [TOKENS, CLIENT])
async def test_what_the_sdk_cannot_read_is_told_without_its_text(memory: MemoryStore, collection: str) -> None:
    storage = TokenStorage(memory, URL + "?key=s3cret")
    secret = {"access_token": ["s3cret"], "client_id": {"s3cret": 1}}
    value = {"tokens": secret} if collection == TOKENS else secret
    await KeyValue(memory).put(storage._key, value, collection=collection)
    with pytest.raises(DamagedError, match=r"clear\(\)") as told:
        await (storage.get_tokens() if collection == TOKENS else storage.get_client_info())
    assert "s3cret" not in str(told.value)
    assert told.value.__suppress_context__
    await storage.clear()
    assert await storage.get_tokens() is None


async def test_no_secret_in_a_repr(storage: TokenStorage) -> None:
    await storage.set_tokens(FULL)
    assert repr(storage) == "TokenStorage(KeyValue(MemoryStore))"
