"""Names, tokens saved by hand and static credentials, on a store in memory and one on disk."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, cast

import pytest
from msgspec.structs import replace

from mcp_oauth.exceptions import ConfigurationError, TokenStorageError
from mcp_oauth.sansio.errors import Reason
from mcp_oauth.sansio.grant import Grant, GrantRecord, Registration, decode, encode, grant_key
from mcp_oauth.store import choose
from mcp_oauth.store.base import Conflict, Saved, Store, Stored, StoreError
from mcp_oauth.store.choose import TokenStoreBackend
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from mcp_oauth.store.memory import MemoryStore
from mcp_oauth.token_manager import MOST_ROUNDS, CredentialEntry, ServerEntry, State, TokenManager, last_four
from mcp_oauth.tokens import APIKeyToken, BasicAuthToken, BearerToken, Credential, OAuthTokens

URL = "https://mcp.example/mcp"
OTHER = "https://other.example/mcp"
NAME = "notion"
AWKWARD_NAMES = {
    "path": "../../x",
    "slash": "a/b",
    "dot": "a.b",
    "empty": "",
    "long": "n" * 300,
    "nul": "a\0b",
    "emoji": "🔐",
    "device": "CON",
}

Kind = Literal["none", "alive", "expired", "renewable"]


@pytest.fixture(params=["memory", "encrypted-file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return MemoryStore() if request.param == "memory" else EncryptedFileStore(tmp_path / "tokens")


@pytest.fixture
def manager(store: Store) -> TokenManager:
    return TokenManager(store=store)


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


# --- Making one -------------------------------------------------------------------------------------------------------


def test_without_anything_the_store_is_the_one_of_auto(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(choose, "_keyring_works", lambda: False)
    manager = TokenManager(token_dir=tmp_path)
    assert manager.backend_name == "EncryptedFileStore"
    manager.save_tokens(NAME, by_hand())
    assert TokenManager(store=EncryptedFileStore(tmp_path)).has_valid_tokens(NAME)


def test_the_seeds_parameters_choose_the_store(tmp_path: Path) -> None:
    manager = TokenManager(TokenStoreBackend.ENCRYPTED_FILE, tmp_path, "password")
    manager.save_tokens(NAME, by_hand())
    again = TokenManager(backend=TokenStoreBackend.ENCRYPTED_FILE, token_dir=tmp_path, password="password")
    assert again.has_valid_tokens(NAME)
    wrong = TokenManager(backend=TokenStoreBackend.ENCRYPTED_FILE, token_dir=tmp_path, password="wrong")
    with pytest.raises(TokenStorageError, match="password"):
        wrong.load_tokens(NAME)


@pytest.mark.parametrize(
    "options",
    [
        {"backend": TokenStoreBackend.VAULT, "vault_mount_point": "secret"},
        {"backend": TokenStoreBackend.MEMORY, "password": "p"},
    ],
    ids=["not-configured", "an-option-of-another"],
)
def test_an_explicit_backend_is_refused_with_the_reason_and_never_replaced(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("VAULT_ADDR", "VAULT_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(TokenStorageError) as refused:
        TokenManager(**options)
    assert refused.value.reason is Reason.STORE_FAILED
    assert options["backend"].name in str(refused.value)


@pytest.mark.parametrize(
    "options", [{"backend": TokenStoreBackend.MEMORY}, {"password": "p"}], ids=["backend", "option"]
)
def test_a_store_of_ones_own_goes_with_no_backend(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="store:"):
        TokenManager(store=MemoryStore(), **options)


def test_it_says_what_it_keeps_things_in(manager: TokenManager) -> None:
    manager.save_tokens(NAME, by_hand())
    assert manager.backend_name == type(manager.token_store).__name__
    assert repr(manager) == f"TokenManager({manager.backend_name}, account='')"


# --- Tokens saved by hand ---------------------------------------------------------------------------------------------


def test_tokens_are_loaded_as_they_were_saved(manager: TokenManager) -> None:
    tokens = by_hand()
    manager.save_tokens(NAME, tokens)
    assert again(manager).load_tokens(NAME) == tokens
    assert again(manager).has_valid_tokens(NAME)


def test_tokens_saved_later_replace_the_earlier_ones(manager: TokenManager) -> None:
    manager.save_tokens(NAME, by_hand("renewable"))
    manager.save_tokens(NAME, later := by_hand(token="later"))
    assert manager.load_tokens(NAME) == later


@pytest.mark.parametrize("name", AWKWARD_NAMES.values(), ids=AWKWARD_NAMES)
def test_any_text_is_a_name(name: str, manager: TokenManager) -> None:
    manager.save_tokens(name, by_hand())
    manager.save_tokens(name + "'", by_hand(token="another"))
    loaded = again(manager).load_tokens(name)
    assert loaded is not None
    assert loaded.access_token == "CANARY-by-hand-0001"
    assert manager.delete_tokens(name)
    assert [entry.name for entry in manager.list_servers()] == [name + "'"]


UNKEEPABLE: dict[str, Callable[[TokenManager], None]] = {
    "header-injection": lambda manager: manager.save_tokens(NAME, OAuthTokens("CANARY\r\nX: y")),
    "no-token": lambda manager: manager.save_tokens(NAME, OAuthTokens("")),
    "scheme-injection": lambda manager: manager.save_tokens(NAME, OAuthTokens("CANARY", "Bearer x\n")),
    "half-seconds": lambda manager: manager.save_tokens(NAME, OAuthTokens("CANARY", expires_in=cast("int", 1.5))),
    "not-a-number": lambda manager: manager.save_tokens(NAME, OAuthTokens("CANARY", issued_at=float("nan"))),
    "lone-surrogate": lambda manager: manager.save_tokens(NAME, OAuthTokens("CANARY", scope="\ud800")),
    "lone-surrogate-name": lambda manager: manager.save_tokens("\ud800", by_hand()),
    "no-server-url": lambda manager: manager.bind(NAME, "mcp.example"),
    "http-server-url": lambda manager: manager.bind(NAME, "http://mcp.example/mcp"),
}


@pytest.mark.parametrize("keep", UNKEEPABLE.values(), ids=UNKEEPABLE)
def test_what_could_not_be_used_or_read_again_is_not_saved(
    keep: Callable[[TokenManager], None], manager: TokenManager
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        keep(manager)
    assert "CANARY" not in str(refused.value)
    assert manager.token_store.keys() == ()


def test_two_accounts_have_names_of_their_own(store: Store) -> None:
    mine, yours = TokenManager(store=store, account="me"), TokenManager(store=store, account="you")
    mine.save_tokens(NAME, by_hand())
    assert yours.load_tokens(NAME) is None
    assert not yours.delete_tokens(NAME)
    yours.bind(NAME, OTHER)
    assert mine.server_url(NAME) is None
    assert [(one.account, one.state) for one in mine.list_servers()] == [("me", "valid"), ("you", "logged out")]


# --- What a name stands for -------------------------------------------------------------------------------------------

STANDS_FOR: dict[str, tuple[Kind, Kind, Kind, State]] = {
    # saved by hand, grant: what is loaded, and what a list shows
    "nothing": ("none", "none", "none", "logged out"),
    "saved-first": ("alive", "alive", "alive", "valid"),
    "alive-before-renewable": ("renewable", "alive", "alive", "valid"),
    "grant-before-what-nothing-renews": ("renewable", "renewable", "renewable", "refreshable"),
    "renewable-grant": ("none", "renewable", "renewable", "refreshable"),
    "expired-grant": ("none", "expired", "none", "expired"),
    "saved-for-its-owner-to-renew": ("renewable", "expired", "renewable", "expired"),
    "expired-for-good": ("expired", "none", "none", "expired"),
}


@pytest.mark.parametrize(("saved", "granted", "loaded", "state"), STANDS_FOR.values(), ids=STANDS_FOR)
def test_what_a_name_stands_for(saved: Kind, granted: Kind, loaded: Kind, state: State, manager: TokenManager) -> None:
    manager.bind(NAME, URL)
    if saved != "none":
        manager.save_tokens(NAME, by_hand(saved))
    if granted != "none":
        put_grant(manager.token_store, granted)
    (entry,) = manager.list_servers()
    assert (entry.name, entry.server_url, entry.state) == (NAME, URL, state)

    tokens = again(manager).load_tokens(NAME)

    found = "none" if tokens is None else "alive" if not tokens.is_expired() else "renewable"
    assert found == loaded
    assert manager.has_valid_tokens(NAME) is (loaded == "alive")
    if tokens is not None:
        comes_by_hand = saved == "alive" or granted in ("none", "expired")
        assert tokens.access_token.startswith("CANARY-by-hand" if comes_by_hand else "CANARY-granted")


def test_what_expired_for_good_is_deleted_when_it_is_loaded(manager: TokenManager) -> None:
    manager.save_tokens(NAME, by_hand("expired"))
    assert manager.load_tokens(NAME) is None
    assert manager.list_servers() == ()


def test_what_expired_for_good_stays_where_the_store_cannot_delete_it(caplog: pytest.LogCaptureFixture) -> None:
    class ReadOnly(MemoryStore):
        read_only = False

        def save(self, key: str, value: bytes, *, revision: str, expected: str | None) -> Saved | Conflict:
            if self.read_only:
                raise StoreError("read-only")
            return super().save(key, value, revision=revision, expected=expected)

    manager = TokenManager(store=(store := ReadOnly()))
    manager.save_tokens(NAME, by_hand("expired"))
    store.read_only = True
    with caplog.at_level("DEBUG", "mcp_oauth"):
        assert manager.load_tokens(NAME) is None
    assert "could not be deleted: read-only" in caplog.text


@pytest.mark.parametrize("spelled", [URL, "HTTPS://MCP.example:443/mcp#top"], ids=["canonical", "RULES-2.1-otherwise"])
def test_a_name_stands_for_one_server(spelled: str, manager: TokenManager) -> None:
    assert manager.server_url(NAME) is None
    manager.bind(NAME, spelled)
    assert again(manager).server_url(NAME) == URL
    put_grant(manager.token_store)
    assert manager.has_valid_tokens(NAME)


def test_with_another_url_a_name_stands_for_another_grant(manager: TokenManager) -> None:
    put_grant(manager.token_store)
    manager.bind(NAME, URL)
    manager.bind(NAME, OTHER)
    assert manager.load_tokens(NAME) is None
    manager.bind(NAME, URL)
    assert manager.has_valid_tokens(NAME)


class TestTokensSavedByHandAreForOneServer:
    def test_for_the_first_one_that_the_name_is_used_with(self, manager: TokenManager) -> None:
        manager.save_tokens(NAME, tokens := by_hand())
        assert manager.usable_tokens(NAME, URL) == tokens
        assert manager.server_url(NAME) == URL
        assert manager.usable_tokens(NAME, OTHER) is None

    def test_for_the_one_that_the_name_stands_for_already(self, manager: TokenManager) -> None:
        manager.bind(NAME, URL)
        manager.save_tokens(NAME, tokens := by_hand())
        assert manager.usable_tokens(NAME, OTHER) is None
        assert manager.usable_tokens(NAME, URL) == tokens

    def test_they_do_not_follow_the_name_and_are_not_lost(self, manager: TokenManager) -> None:
        manager.save_tokens(NAME, tokens := by_hand())
        manager.bind(NAME, URL)
        manager.bind(NAME, OTHER)
        assert manager.load_tokens(NAME) is None
        assert manager.usable_tokens(NAME, OTHER) is None
        manager.bind(NAME, URL)
        assert manager.load_tokens(NAME) == tokens

    def test_expired_ones_are_sent_to_nobody(self, manager: TokenManager) -> None:
        manager.save_tokens(NAME, by_hand("renewable"))
        assert manager.usable_tokens(NAME, URL) is None
        assert manager.server_url(NAME) is None

    def test_none_are_none(self, manager: TokenManager) -> None:
        assert manager.usable_tokens(NAME, URL) is None


# --- Deleting ---------------------------------------------------------------------------------------------------------


def test_deleting_takes_the_name_what_was_saved_and_the_grant_here_only(manager: TokenManager) -> None:
    manager.bind(NAME, URL)
    manager.save_tokens(NAME, by_hand())
    put_grant(manager.token_store)
    put_grant(manager.token_store, url=OTHER)

    assert again(manager).delete_tokens(NAME)

    record = record_in(manager.token_store)
    assert record is not None
    assert (record.logged_out, record.grants) == (True, ())
    assert (manager.load_tokens(NAME), manager.server_url(NAME)) == (None, None)
    assert [entry.server_url for entry in manager.list_servers()] == [OTHER]
    assert not manager.delete_tokens(NAME)


def test_deleting_a_name_without_a_grant(manager: TokenManager) -> None:
    assert not manager.delete_tokens(NAME)
    assert manager.token_store.keys() == ()
    manager.bind(NAME, URL)
    assert manager.delete_tokens(NAME)


def test_two_names_of_one_server_share_its_grant(manager: TokenManager) -> None:
    put_grant(manager.token_store)
    manager.bind("one", URL)
    manager.bind("two", URL)
    assert manager.delete_tokens("one")
    assert [(entry.name, entry.state) for entry in manager.list_servers()] == [("two", "logged out")]


class TestRelease:
    def test_the_name_and_what_was_saved_go_and_the_grant_stays(self, manager: TokenManager) -> None:
        put_grant(manager.token_store)
        manager.bind(NAME, URL)
        manager.save_tokens(NAME, by_hand())
        manager.release(NAME, URL)
        (entry,) = manager.list_servers()
        assert (entry.name, entry.server_url, entry.state) == (None, URL, "valid")

    def test_of_another_server_nothing_goes(self, manager: TokenManager) -> None:
        manager.bind(NAME, URL)
        manager.save_tokens(NAME, tokens := by_hand())
        manager.release(NAME, OTHER)
        assert (manager.server_url(NAME), manager.load_tokens(NAME)) == (URL, tokens)

    def test_tokens_that_were_for_no_server_yet_go_with_any(self, manager: TokenManager) -> None:
        manager.save_tokens(NAME, by_hand())
        manager.release(NAME, URL)
        assert manager.list_servers() == ()


# --- The list ---------------------------------------------------------------------------------------------------------


def test_the_list_has_all_names_and_all_grants_of_all_accounts(manager: TokenManager) -> None:
    store = manager.token_store
    put_grant(store, "renewable")
    put_grant(store, url=OTHER, account="you")
    put_grant(store, url="https://gone.example")
    TokenManager(store=store).bind("gone", "https://gone.example")
    TokenManager(store=store).delete_tokens("gone")
    manager.bind("b", URL)
    manager.save_tokens("a", by_hand())
    manager.save_credential("c", BearerToken("CANARY"))

    entries = manager.list_servers()

    assert [(one.name, one.server_url, one.account, one.state) for one in entries] == [
        ("a", None, "", "valid"),
        ("b", URL, "", "refreshable"),
        (None, OTHER, "you", "valid"),
    ]
    saved, renewable, _ = entries
    assert (saved.issuer, saved.scopes, saved.has_refresh_token) == (None, ("read", "write"), False)
    assert (renewable.issuer, renewable.scopes) == ("https://as.example", ("files:read",))
    assert (renewable.has_refresh_token, renewable.last_four) == (True, "0002")
    assert renewable.expires_at == pytest.approx(time.time() - 3600, abs=60)


def test_an_expired_grant_without_a_name_is_listed(manager: TokenManager) -> None:
    put_grant(manager.token_store, "expired")
    assert [one.state for one in manager.list_servers()] == ["expired"]


@pytest.mark.parametrize(
    ("token", "shown"),
    [("0123456789abcdef", "cdef"), ("0123456789abcde", ""), ("", "")],
    ids=["last-four", "too-short-for-any", "none"],
)
def test_of_a_token_only_the_last_four_characters_are_seen(token: str, shown: str) -> None:
    assert last_four(token) == shown


def test_no_repr_shows_a_secret(manager: TokenManager) -> None:
    credentials: list[Credential] = [
        BearerToken("CANARY"),
        APIKeyToken("openai", "CANARY", "organization", "project"),
        BasicAuthToken("alice", "CANARY"),
    ]
    put_grant(manager.token_store)
    manager.save_tokens(NAME, tokens := by_hand())
    entry = ServerEntry(NAME, "https://mcp.example/mcp?key=CANARY", "", "valid")
    assert "CANARY" not in repr([manager, tokens, manager.list_servers(), entry, credentials, manager._label(NAME)])


# --- The token object -------------------------------------------------------------------------------------------------


def test_a_token_object_gives_all_that_it_was_made_of() -> None:
    tokens = by_hand("renewable")
    assert OAuthTokens(**tokens.to_dict()) == tokens
    assert tokens.expires_at == tokens.issued_at + 3600
    assert tokens.is_expired()


@pytest.mark.parametrize("kind", ["bearer", "Bearer", "BEARER"])
def test_RFC6750_2_1_the_header_of_a_token(kind: str) -> None:
    assert OAuthTokens("token", kind).get_authorization_header() == "Bearer token"
    assert OAuthTokens("token", "DPoP").get_authorization_header() == "DPoP token"


def test_tokens_of_unknown_lifetime_have_not_expired() -> None:
    tokens = OAuthTokens("token", issued_at=0.0)
    assert (tokens.is_expired(), tokens.expires_at) == (False, None)


# --- Static credentials -----------------------------------------------------------------------------------------------

CREDENTIALS: dict[str, Credential] = {
    "bearer": BearerToken("CANARY", 1e9),
    "bearer-for-ever": BearerToken("CANARY"),
    "api-key": APIKeyToken("openai", "CANARY", "organization", "project"),
    "basic": BasicAuthToken("alice", "CANARY:with:colons"),
}


@pytest.mark.parametrize("credential", CREDENTIALS.values(), ids=CREDENTIALS)
def test_a_credential_is_loaded_as_it_was_saved(credential: Credential, manager: TokenManager) -> None:
    manager.save_credential("key", BearerToken("before"))
    manager.save_credential("key", credential)
    assert again(manager).load_credential("key") == credential
    assert manager.delete_credential("key")
    assert manager.load_credential("key") is None
    assert not manager.delete_credential("key")
    assert not manager.delete_credential("another")
    assert manager.list_credentials() == ()


def test_credentials_of_two_namespaces_are_two(manager: TokenManager) -> None:
    manager.save_credential("key", BearerToken("one", 1e10), namespace="work")
    manager.save_credential("key", BasicAuthToken("alice", "two"))
    manager.save_credential("a", APIKeyToken("openai", "three"))
    assert manager.load_credential("key", "work") == BearerToken("one", 1e10)
    assert manager.load_credential("key") == BasicAuthToken("alice", "two")
    work = CredentialEntry("work", "key", "bearer", 1e10)
    ours = (CredentialEntry("default", "a", "api-key"), CredentialEntry("default", "key", "basic"))
    assert manager.list_credentials() == (*ours, work)
    assert manager.list_credentials("work") == (work,)
    assert manager.list_credentials("none") == ()


def test_a_credential_gives_its_header() -> None:
    assert BearerToken("token").get_authorization_header() == "Bearer token"
    assert BasicAuthToken("Aladdin", "open sesame").get_authorization_header() == (
        "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="  # RFC 7617 section 2
    )
    assert BearerToken("token", 1e9).is_expired()
    assert not BearerToken("token").is_expired()


def test_nothing_is_on_disk_in_plain_text(tmp_path: Path) -> None:
    manager = TokenManager(store=EncryptedFileStore(tmp_path))
    manager.bind(NAME, URL)
    manager.save_tokens(NAME, by_hand())
    manager.save_credential("key", BasicAuthToken("alice", "CANARY"))
    for file in (file for file in tmp_path.rglob("*") if file.is_file()):
        content = file.read_bytes() + file.name.encode()
        assert not any(word in content for word in (b"CANARY", b"notion", b"mcp.example", b"alice")), file


# --- A store that fails -----------------------------------------------------------------------------------------------

CALLS: dict[str, Callable[[TokenManager], object]] = {
    "load_tokens": lambda manager: manager.load_tokens(NAME),
    "has_valid_tokens": lambda manager: manager.has_valid_tokens(NAME),
    "save_tokens": lambda manager: manager.save_tokens(NAME, by_hand()),
    "delete_tokens": lambda manager: manager.delete_tokens(NAME),
    "bind": lambda manager: manager.bind(NAME, OTHER),
    "server_url": lambda manager: manager.server_url(NAME),
    "release": lambda manager: manager.release(NAME, URL),
    "usable_tokens": lambda manager: manager.usable_tokens(NAME, URL),
    "list_servers": lambda manager: manager.list_servers(),
}
CREDENTIAL_CALLS: dict[str, Callable[[TokenManager], object]] = {
    "load_credential": lambda manager: manager.load_credential("key"),
    "save_credential": lambda manager: manager.save_credential("key", BearerToken("later")),
    "delete_credential": lambda manager: manager.delete_credential("key"),
    "list_credentials": lambda manager: manager.list_credentials(),
}
UNREADABLE = {
    "newer-version": json.dumps({"type": "name-2", "revision": "r", "name": NAME, "account": ""}).encode(),
    "another-kind": json.dumps({"type": "grants-1", "revision": "r", "server_url": URL, "account": ""}).encode(),
    "wrong-type": json.dumps({"type": "name-1", "revision": "r", "name": 7, "account": ""}).encode(),
    "not-json": b"\xff\x00",
    "too-deep": b"[" * 100_000,
    "empty": b"",
}


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_cannot_be_read_is_an_error_and_is_not_overwritten(
    call: Callable[[TokenManager], object], content: bytes, store: Store
) -> None:
    manager = TokenManager(store=store)
    manager.bind(NAME, URL)
    _spoil(store, "name-", content)
    _refused(call, manager, "name-", content)


@pytest.mark.parametrize("call", CREDENTIAL_CALLS.values(), ids=CREDENTIAL_CALLS)
def test_a_credential_that_cannot_be_read_is_an_error_and_is_not_overwritten(
    call: Callable[[TokenManager], object], manager: TokenManager
) -> None:
    manager.save_credential("key", BearerToken("token"))
    _spoil(manager.token_store, "credential-", b"CANARY")
    _refused(call, manager, "credential-", b"CANARY")


@pytest.mark.parametrize("call", ["load_tokens", "delete_tokens", "list_servers"])
def test_a_grant_that_cannot_be_read_is_an_error_and_is_not_overwritten(call: str, manager: TokenManager) -> None:
    manager.bind(NAME, URL)
    put_grant(manager.token_store)
    _spoil(manager.token_store, "grant-", b"CANARY")
    _refused(CALLS[call], manager, "grant-", b"CANARY")


def _spoil(store: Store, kind: str, content: bytes) -> None:
    key = only_key(store, kind)
    found = store.load(key)
    assert found is not None
    assert isinstance(store.save(key, content, revision="spoiled", expected=found.revision), Saved)


def _refused(call: Callable[[TokenManager], object], manager: TokenManager, kind: str, content: bytes) -> None:
    with pytest.raises(TokenStorageError, match="newer version") as refused:
        call(manager)
    assert "CANARY" not in str(refused.value)
    assert manager.token_store.load(only_key(manager.token_store, kind)) == Stored(content, "spoiled")


def test_a_damaged_name_on_disk_is_an_error_that_says_where_it_is(tmp_path: Path) -> None:
    TokenManager(store=EncryptedFileStore(tmp_path)).bind(NAME, URL)
    (file,) = tmp_path.rglob("*.enc")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(TokenStorageError, match=str(tmp_path)):
        TokenManager(store=EncryptedFileStore(tmp_path)).bind(NAME, OTHER)
    assert bytes(content) in [other.read_bytes() for other in tmp_path.rglob("*") if other.is_file()]


class Broken(MemoryStore):
    """Raises, from the first or the second call of its methods."""

    error: Exception | None = None

    def load(self, key: str) -> Stored | None:
        self._fail()
        return super().load(key)

    def keys(self) -> tuple[str, ...]:
        self._fail()
        return super().keys()

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("call", [*CALLS.values(), *CREDENTIAL_CALLS.values()], ids=[*CALLS, *CREDENTIAL_CALLS])
@pytest.mark.parametrize(
    ("error", "told"),
    [(StoreError("the disk is gone: mount it"), "the disk is gone: mount it"), (KeyError("CANARY"), "raised KeyError")],
    ids=["as-agreed", "against-its-contract"],
)
def test_a_store_that_fails_is_a_typed_error(
    error: Exception, told: str, call: Callable[[TokenManager], object]
) -> None:
    manager = TokenManager(store=(store := Broken()))
    store.error = error
    with pytest.raises(TokenStorageError, match=told) as failed:
        call(manager)
    assert (failed.value.stage, failed.value.reason) == ("storage", Reason.STORE_FAILED)
    assert failed.value.cure
    assert "CANARY" not in str(failed.value)


def test_a_grant_whose_end_cannot_be_saved_is_an_error(manager: TokenManager, monkeypatch: pytest.MonkeyPatch) -> None:
    manager.bind(NAME, URL)
    put_grant(manager.token_store)

    def full(*_: Any, **__: Any) -> Any:
        raise StoreError("the disk is full")

    monkeypatch.setattr(manager.token_store, "save", full)
    with pytest.raises(TokenStorageError, match="full"):
        manager.delete_tokens(NAME)
    monkeypatch.undo()
    assert manager.has_valid_tokens(NAME)


# --- Many at once -----------------------------------------------------------------------------------------------------


def test_names_of_racing_writers_are_all_kept(manager: TokenManager) -> None:
    """Both change one record; neither takes the other's half away."""

    def rounds(one: Callable[[int], object]) -> None:
        for number in range(10):
            one(number)

    urls = [f"https://mcp.example/{number}" for number in range(10)]
    with ThreadPoolExecutor(4) as pool:
        tasks = [
            pool.submit(rounds, lambda number: manager.save_tokens(NAME, by_hand(token=f"token-{number}"))),
            pool.submit(rounds, lambda number: manager.bind(NAME, urls[number])),
            pool.submit(rounds, lambda number: manager.save_credential(f"{number}", BearerToken("token"))),
        ]
    for task in tasks:
        task.result()
    label = manager._label(NAME)
    assert label.server_url == urls[-1]
    assert label.tokens is not None
    assert label.tokens.access_token == "token-9"
    assert len(manager.list_credentials()) == 10


def test_who_loses_every_race_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = TokenManager(store=(store := MemoryStore()))
    manager.bind(NAME, URL)
    rounds: list[str] = []

    def lost(key: str, value: bytes, *, revision: str, expected: str | None) -> Saved | Conflict:
        rounds.append(revision)
        return Conflict(store.load(key))

    monkeypatch.setattr(store, "save", lost)
    with pytest.raises(TokenStorageError) as contended:
        manager.bind(NAME, OTHER)
    assert contended.value.reason is Reason.STORE_CONTENDED
    assert len(set(rounds)) == MOST_ROUNDS


def test_what_changes_nothing_is_not_saved(manager: TokenManager) -> None:
    manager.bind(NAME, URL)
    before = manager.token_store.load(only_key(manager.token_store, "name-"))
    manager.bind(NAME, URL)
    assert manager.token_store.load(only_key(manager.token_store, "name-")) == before


def test_each_save_has_a_revision_of_its_own(manager: TokenManager) -> None:
    manager.bind(NAME, URL)
    first = manager._label(NAME)
    manager.bind(NAME, OTHER)
    second = manager._label(NAME)
    assert first == replace(second, revision=first.revision, server_url=URL)
    assert first.revision != second.revision
