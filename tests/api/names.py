"""What the tests of `TokenManager` share: names, tokens saved by hand, grants, and ways to look behind them."""

from __future__ import annotations

import time
from typing import Literal

from mcp_oauth.sansio.grant import Grant, GrantRecord, Registration, decode, encode, grant_key
from mcp_oauth.store.base import Store
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from mcp_oauth.token_manager import TokenManager
from mcp_oauth.tokens import OAuthTokens

URL = "https://mcp.example/mcp"
OTHER = "https://other.example/mcp"
NAME = "notion"

Kind = Literal["none", "alive", "expired", "renewable"]


def again(manager: TokenManager) -> TokenManager:
    """As a new program would find it."""
    store = manager.token_store
    if isinstance(store, EncryptedFileStore):
        store = EncryptedFileStore(store.identity.removeprefix("file:"))
    return TokenManager(store=store, account=manager.account)


def by_hand(kind: Kind = "alive", token: str = "CANARY-by-hand-0001") -> OAuthTokens:
    age = 0 if kind == "alive" else 7200
    refresh_token = "CANARY-by-hand-refresh" if kind == "renewable" else None
    return OAuthTokens(token, "Bearer", 3600, refresh_token, "read write", time.time() - age)


def put_grant(store: Store, kind: Kind = "alive", url: str = URL, account: str = "") -> None:
    now = time.time()
    grant = Grant(
        "https://as.example",
        Registration("https://as.example", "client", "dcr", "none"),
        "https://as.example/token",
        "CANARY-granted-00002",
        now - 7200,
        "lineage",
        expires_at=now + (3600 if kind == "alive" else -3600),
        refresh_token="CANARY-refresh" if kind == "renewable" else None,
        granted=("files:read",),
    )
    record = GrantRecord("first", url, account, (grant,), grant.issuer)
    store.save(grant_key(url, account), encode(record), revision="first", expected=None)


def record_in(store: Store, url: str = URL, account: str = "") -> GrantRecord | None:
    found = store.load(grant_key(url, account))
    record = None if found is None else decode(found.value)
    assert record is None or isinstance(record, GrantRecord)
    return record


def only_key(store: Store, kind: str) -> str:
    (key,) = (key for key in store.keys() if key.startswith(kind))  # noqa: SIM118 - a store is no mapping
    return key
