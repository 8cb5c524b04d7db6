"""Names, tokens saved by hand and static credentials, on a store in memory and one on disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest

from mcp_oauth.exceptions import ConfigurationError, TokenStorageError
from mcp_oauth.sansio.errors import Reason
from mcp_oauth.store import choose
from mcp_oauth.store.base import Conflict, Saved, Store, Stored, StoreError
from mcp_oauth.store.choose import TokenStoreBackend
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from mcp_oauth.store.memory import MemoryStore
from mcp_oauth.token_manager import CredentialEntry, ServerEntry, State, TokenManager, last_four
from mcp_oauth.tokens import APIKeyToken, BasicAuthToken, BearerToken, Credential, OAuthTokens
from tests.api.names import NAME, OTHER, URL, Kind, again, by_hand, put_grant, record_in

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


def test_a_backend_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigurationError, match=r"'bogus'.*keychain, .*encrypted, .*auto"):
        TokenManager(cast("TokenStoreBackend", "bogus"))


def test_a_backend_goes_by_its_value_too(tmp_path: Path) -> None:
    manager = TokenManager(cast("TokenStoreBackend", "encrypted"), tmp_path)
    assert manager.backend_name == "EncryptedFileStore"


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

    def test_the_name_comes_back_with_them(self, manager: TokenManager) -> None:
        manager.save_tokens(NAME, tokens := by_hand())
        manager.bind(NAME, URL)
        manager.bind(NAME, OTHER)
        assert manager.usable_tokens(NAME, URL) == tokens
        assert manager.server_url(NAME) == URL

    def test_of_two_servers_at_once_one_gets_them(self, manager: TokenManager, monkeypatch: pytest.MonkeyPatch) -> None:
        """Both threads find them free before either has bound them."""
        manager.save_tokens(NAME, by_hand())
        both = threading.Barrier(2)
        bind = manager.bind

        def together(*args: str) -> None:
            both.wait(10)
            bind(*args)

        monkeypatch.setattr(manager, "bind", together)
        with ThreadPoolExecutor(2) as pool:
            got = list(pool.map(lambda url: manager.usable_tokens(NAME, url), (URL, OTHER)))
        assert [tokens is None for tokens in got].count(True) == 1

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


def test_deleting_for_a_server_leaves_another_that_the_name_stands_for(manager: TokenManager) -> None:
    manager.bind(NAME, URL)
    manager.save_tokens(NAME, by_hand())
    put_grant(manager.token_store)
    put_grant(manager.token_store, url=OTHER)
    manager.bind(NAME, OTHER)
    assert manager.delete_tokens(NAME, URL)
    assert [(entry.name, entry.server_url) for entry in manager.list_servers()] == [(NAME, OTHER)]
    assert not manager.delete_tokens(NAME, URL)
    manager.bind(NAME, URL)
    assert manager.load_tokens(NAME) is None


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


# --- One of them ------------------------------------------------------------------------------------------------------


class TestEntry:
    def test_it_is_that_of_the_list(self, manager: TokenManager) -> None:
        put_grant(manager.token_store)
        assert (manager.entry(server_url=URL),) == manager.list_servers()
        manager.bind(NAME, URL)
        manager.save_tokens("saved", by_hand())
        assert (manager.entry(NAME), manager.entry("saved")) == manager.list_servers()

    def test_a_name_comes_before_a_url(self, manager: TokenManager) -> None:
        put_grant(manager.token_store, url=OTHER)
        manager.bind(NAME, URL)
        named, unnamed = manager.entry(NAME, OTHER), manager.entry("another", "HTTPS://other.example:443/mcp")
        assert named is not None
        assert unnamed is not None
        assert (named.name, named.server_url, named.state) == (NAME, URL, "logged out")
        assert (unnamed.name, unnamed.server_url, unnamed.state) == (None, OTHER, "valid")

    @pytest.mark.parametrize("asked", [(), (NAME,), (None, OTHER), (NAME, OTHER)], ids=str)
    def test_of_nothing_there_is_none(self, asked: tuple[str | None, ...], manager: TokenManager) -> None:
        manager.bind(NAME, URL)
        manager.delete_tokens(NAME)
        TokenManager(store=manager.token_store, account="you").bind(NAME, URL)
        assert manager.entry(*asked) is None

    def test_it_reads_nothing_else(self, monkeypatch: pytest.MonkeyPatch) -> None:
        manager = TokenManager(store=(store := MemoryStore()))
        manager.bind(NAME, URL)
        manager.bind("another", OTHER)
        read: list[str] = []
        load = store.load

        def counted(key: str) -> Stored | None:
            read.append(key)
            return load(key)

        monkeypatch.setattr(store, "load", counted)
        monkeypatch.setattr(store, "keys", None)
        assert manager.entry(NAME) is not None
        assert [key.partition("-")[0] for key in read] == ["name", "grant"]


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


UNCARRIED: dict[str, Credential] = {
    "token-with-a-header": BearerToken("CANARY\r\nX-Evil: 1"),
    "token-from-a-file": BearerToken("CANARY\n"),
    "no-token": BearerToken(""),
    "key-from-a-file": APIKeyToken("openai", "CANARY\n"),
    "RFC7617-2-colon-in-the-user-name": BasicAuthToken("alice:x", "CANARY"),
    "RFC7617-2-control-in-the-user-name": BasicAuthToken("al\0ice", "CANARY"),
    "RFC7617-2-control-in-the-password": BasicAuthToken("alice", "CANARY\n"),
}


@pytest.mark.parametrize("credential", UNCARRIED.values(), ids=UNCARRIED)
def test_what_no_header_can_carry_is_neither_kept_nor_made_one(credential: Credential, manager: TokenManager) -> None:
    with pytest.raises(ConfigurationError) as refused:
        manager.save_credential("key", credential)
    assert "CANARY" not in str(refused.value)
    assert manager.list_credentials() == ()
    if not isinstance(credential, APIKeyToken):
        with pytest.raises(ConfigurationError):
            credential.get_authorization_header()


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
