"""What is kept under a name that a person chose: which server it stands for, tokens and credentials saved by hand.

A grant is kept by server URL and account, whoever asks for it; a name is a *label* beside it, in the same store:

    label "notion"  ->  https://mcp.notion.com/mcp  ->  grant of (that URL, account)
                    ->  tokens that were saved by hand

So `OAuth("https://mcp.notion.com/mcp")` uses what was logged in as "notion", and the other way round.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Literal, TypeVar
from weakref import WeakValueDictionary

from msgspec.structs import replace

from mcp_oauth import labels
from mcp_oauth.exceptions import OAuthError, TokenStorageError, from_failure
from mcp_oauth.io.drive import drive
from mcp_oauth.io.options import make_plan
from mcp_oauth.io.ports import Answer, Ports, WallClock, now
from mcp_oauth.io.user import as_user
from mcp_oauth.labels import KeptCredential, Label
from mcp_oauth.sansio import logout
from mcp_oauth.sansio.errors import Reason, failure
from mcp_oauth.sansio.grant import Grant, GrantRecord, Scopes, alive, current_grant, decode, grant_key, renewable
from mcp_oauth.sansio.steps import Failed, Send
from mcp_oauth.sansio.token_endpoint import header_safe
from mcp_oauth.sansio.uris import without_query
from mcp_oauth.sansio.values import Seed, Value
from mcp_oauth.store.base import DamagedError, NewerFormatError, Saved, Store, StoreError
from mcp_oauth.store.choose import AutoStore, StoreOptions, TokenStoreBackend, TokenStoreFactory
from mcp_oauth.tokens import APIKeyToken, BasicAuthToken, BearerToken, Credential, OAuthTokens, check, tokens_of

log = logging.getLogger("mcp_oauth")

MOST_ROUNDS = 50
"""Saves of one record that may meet somebody else's."""
SHOWN = 4
"""Characters of a token that a person may see; none of one that is not four times as long."""

State = Literal["valid", "refreshable", "expired", "logged out", "unreadable"]
"""The access token will do; it has expired and can be renewed; it has expired for good; there is none; what is stored
is damaged, or a newer version of mcp_oauth wrote it."""

CredentialKind = Literal["bearer", "api-key", "basic"]


class ServerEntry(Value, frozen=True):
    """One server of a store, as a person may see it: no secret but the last characters of its token."""

    shown = ("name", "server_url", "account", "state", "expires_at", "scopes", "issuer", "key")

    name: str | None
    """None: no name leads here."""
    server_url: str | None
    """None: tokens were saved by hand, and are not yet used anywhere; or a record that cannot be read."""
    account: str
    state: State
    expires_at: float | None = None
    """Wall seconds; None: unknown, or no token."""
    scopes: Scopes | None = None
    """Those granted; None: unknown."""
    issuer: str | None = None
    """None: saved by hand, or no token."""
    has_refresh_token: bool = False
    last_four: str = ""
    """The end of the access token; "" where that would show too much of it."""
    key: str | None = None
    """Of what is unreadable: where it is in the store."""


class CredentialEntry(Value, frozen=True):
    """One static credential of a store, as a person may see it."""

    shown = ("namespace", "name", "kind", "expires_at")

    namespace: str
    name: str
    kind: CredentialKind
    expires_at: float | None = None
    """Wall seconds; None: unknown, or never."""


R = TypeVar("R", Label, KeptCredential)


class _Stamp:
    """A state of a record: equal to itself alone, and kept by whoever compares it."""


class TokenManager:
    """The tokens and credentials of one store, as one account, by name. Thread-safe; its calls block.

    All raise `TokenStorageError` where the store fails, and where it holds what this version cannot read, which is
    then left as it is.
    """

    def __init__(
        self,
        backend: TokenStoreBackend = TokenStoreBackend.AUTO,
        token_dir: str | os.PathLike[str] | None = None,
        password: str | Callable[[], str] | None = None,
        service_name: str | None = None,
        vault_url: str | None = None,
        vault_token: str | None = None,
        vault_mount_point: str | None = None,
        vault_path_prefix: str | None = None,
        vault_namespace: str | None = None,
        *,
        vault_role_id: str | None = None,
        vault_secret_id: str | None = None,
        redis_url: str | None = None,
        redis_key: bytes | None = None,
        store: Store | None = None,
        account: str = "",
    ) -> None:
        """See `StoreOptions` for what a backend can be told; a `store` of your own is told nothing.

        `account` is your own label: names and grants of two accounts have nothing to do with each other. Raises
        `ConfigurationError` for a backend that there is not, `TokenStorageError` for one that cannot be used here.
        """
        options: StoreOptions = {
            "token_dir": token_dir,
            "password": password,
            "service_name": service_name,
            "vault_url": vault_url,
            "vault_token": vault_token,
            "vault_mount_point": vault_mount_point,
            "vault_path_prefix": vault_path_prefix,
            "vault_namespace": vault_namespace,
            "vault_role_id": vault_role_id,
            "vault_secret_id": vault_secret_id,
            "redis_url": redis_url,
            "redis_key": redis_key,
        }
        self.account = account
        self._stamps: WeakValueDictionary[str, _Stamp] = WeakValueDictionary()
        self._store = _created(backend, options) if store is None else _given(store, backend, options)

    def __repr__(self) -> str:
        return f"TokenManager({type(self._store).__name__}, account={self.account!r})"

    @property
    def token_store(self) -> Store:
        """Where all is kept."""
        return self._store

    @property
    def backend_name(self) -> str:
        """The kind of store, for people: `EncryptedFileStore`. Finds out what AUTO uses here."""
        with _told():
            return type(self._store.chosen if isinstance(self._store, AutoStore) else self._store).__name__

    # --- Names ----------------------------------------------------------------------------------------------------

    def bind(self, server_name: str, server_url: str) -> None:
        """From now on the name stands for this server. Raises `ConfigurationError` for what is no server URL.

        What it stood for before keeps its grant, and its tokens saved by hand, which are used nowhere else.
        """
        url = self._canonical(server_url)
        if self._relabel(server_name, lambda label: labels.bound(label, url)):
            log.debug("the name %r stands for %s", server_name, without_query(url))

    def server_url(self, server_name: str) -> str | None:
        """The server that the name stands for, in its canonical form."""
        return self._label(server_name).server_url

    def release(self, server_name: str, server_url: str) -> None:
        """The name stands for this server no more, and what was saved by hand for it is deleted; its grant stays."""
        url = self._canonical(server_url)
        self._relabel(server_name, lambda label: labels.released(label, url))

    def stamp(self, server_name: str, server_url: str) -> object:
        """Equal to an earlier one only if this manager changed neither the name nor the grant of the server since."""
        keys = labels.name_key(server_name, self.account), grant_key(server_url, self.account)
        return tuple(self._stamps.setdefault(key, _Stamp()) for key in keys)

    # --- Tokens ---------------------------------------------------------------------------------------------------

    def save_tokens(self, server_name: str, tokens: OAuthTokens) -> None:
        """Keep tokens under a name, as they are: nothing renews them, because their client is not known here.

        They are for the server that the name stands for, or will stand for first. Raises `ConfigurationError` for
        tokens that no header can carry.
        """
        if not header_safe(tokens.access_token) or not header_safe(tokens.token_type):
            raise from_failure(failure(Reason.CONFIGURATION, "tokens: no Authorization header can carry them"))
        self._relabel(server_name, lambda label: replace(label, tokens=tokens, tokens_for=label.server_url))

    def load_tokens(self, server_name: str, server_url: str | None = None) -> OAuthTokens | None:
        """The tokens that the name stands for, or None where there are none, or they have expired for good.

        With `server_url`: also None where the name does not stand for that server.

        Those saved by hand come first, then the grant; an access token that is alive before one that a refresh token
        could replace, of which `is_expired()` is true. What was saved by hand and has expired for good is deleted.
        """
        label = self._label(server_name)
        if server_url is not None and label.server_url != self._canonical(server_url):
            return None
        found = labels.usable(labels.by_hand(label), self._grant_of(label))
        if labels.expired_for_good(label.tokens):
            self._clean_up(server_name)
        return tokens_of(found) if isinstance(found, Grant) else found

    def has_valid_tokens(self, server_name: str) -> bool:
        """Whether the name stands for an access token that has not expired."""
        tokens = self.load_tokens(server_name)
        return tokens is not None and not tokens.is_expired()

    def delete_tokens(self, server_name: str, server_url: str | None = None) -> bool:
        """Delete the name, what was saved under it, and the grant of its server: here only, no server is told.

        Another name of that server loses the grant too. With `server_url` it is that server's grant, and the name is
        only released from it where it stands for another one. False: there was nothing.
        """
        url = self.server_url(server_name) if server_url is None else self._canonical(server_url)
        forgotten = url is not None and self._forget(url)

        def deleted(label: Label) -> Label:
            return labels.emptied(label) if label.server_url == url else labels.released(label, url)

        return self._relabel(server_name, deleted) or forgotten

    def grant(self, server_url: str) -> Grant | None:
        """The grant of a server that is in use, as it is stored."""
        url = self._canonical(server_url)
        return current_grant(self._grants(grant_key(url, self.account)))

    def usable_tokens(self, server_name: str, server_url: str) -> OAuthTokens | None:
        """Tokens saved by hand that are alive and for this server; if they were for none yet, they are now for it.

        Where there are some, the name stands for this server from now on.
        """
        url = self._canonical(server_url)
        label = self._label(server_name)
        if labels.alive_for(label, None, url) and label.server_url != url:
            self.bind(server_name, url)
            label = self._label(server_name)  # somebody else may have bound it elsewhere at the same time
        return label.tokens if labels.alive_for(label, url) else None

    def entry(self, server_name: str | None = None, server_url: str | None = None) -> ServerEntry | None:
        """What is kept under a name, else the grant of a server, of this account; None: neither is there.

        As in `list_servers`, but nothing else is read, and `TokenStorageError` raised for what cannot be read.
        """
        if server_name is not None and labels.in_use(label := self._label(server_name)):
            return _entry_of_label(label, self._record_of(label))
        if server_url is None or (grant := self.grant(server_url)) is None:
            return None
        return _entry(None, self._canonical(server_url), self.account, grant)

    def list_servers(self) -> tuple[ServerEntry, ...]:
        """All names and all grants without a name, of all accounts, in order of their names, then URLs.

        A record that cannot be read is an entry too: "unreadable", with its `key`, and with a name and a URL if a name
        leads to it.
        """
        found = {key: self._found(key) for key in self._keys() if key.startswith(("name-", "grant-"))}
        names = [label for label in found.values() if isinstance(label, Label) and labels.in_use(label)]
        entries = [_entry_of_label(label, found.get(labels.grant_key_of(label))) for label in names]
        named = {labels.grant_key_of(label) for label in names}
        for key, record in found.items():
            if isinstance(record, labels.UnreadableError) and key not in named:
                entries.append(ServerEntry(None, None, "", "unreadable", key=key))
            elif isinstance(record, GrantRecord) and key not in named and (grant := current_grant(record)):
                entries.append(_entry(None, record.server_url, record.account, grant))
        return tuple(sorted(entries, key=_order))

    def _found(self, key: str) -> Label | GrantRecord | labels.UnreadableError | None:
        try:
            return self._read(key, Label) if key.startswith("name-") else self._grants(key)
        except labels.UnreadableError as error:
            return error

    # --- Static credentials ---------------------------------------------------------------------------------------

    def save_credential(self, name: str, credential: Credential, namespace: str = "default") -> None:
        """Keep a credential as it is, in place of what was there. Raises `ConfigurationError` as its header does."""
        check(credential)
        self._keep_credential(name, credential, namespace)

    def load_credential(self, name: str, namespace: str = "default") -> Credential | None:
        """The credential, expired or not, or None where there is none."""
        kept = self._read(labels.credential_key(namespace, name), KeptCredential)
        return None if kept is None else kept.credential

    def delete_credential(self, name: str, namespace: str = "default") -> bool:
        """Delete a credential. False: there was none."""
        return self.load_credential(name, namespace) is not None and self._keep_credential(name, None, namespace)

    def list_credentials(self, namespace: str | None = None) -> tuple[CredentialEntry, ...]:
        """Those of a namespace, or of all, in order."""
        kept = [self._read(key, KeptCredential) for key in self._keys() if key.startswith("credential-")]
        entries = [_entry_of_credential(one, one.credential) for one in kept if one and one.credential]
        chosen = [entry for entry in entries if namespace in (None, entry.namespace)]
        return tuple(sorted(chosen, key=lambda entry: (entry.namespace, entry.name)))

    def _keep_credential(self, name: str, credential: Credential | None, namespace: str) -> bool:
        return self._change(
            labels.credential_key(namespace, name),
            KeptCredential("", namespace, name),
            lambda kept: replace(kept, credential=credential),
        )

    # --- Records --------------------------------------------------------------------------------------------------

    def _canonical(self, server_url: str) -> str:
        return make_plan(server_url, {}).server_url

    def _label(self, name: str) -> Label:
        return self._read(labels.name_key(name, self.account), Label) or Label("", name, self.account)

    def _relabel(self, name: str, change: Callable[[Label], Label]) -> bool:
        return self._change(labels.name_key(name, self.account), Label("", name, self.account), change)

    def _grants(self, key: str) -> GrantRecord | None:
        with _told():
            stored = self._store.load(key)
        record = None if stored is None else decode(stored.value)
        if stored is not None and record is None:
            raise labels.unreadable(key)
        return record if isinstance(record, GrantRecord) else None

    def _grant_of(self, label: Label) -> Grant | None:
        return current_grant(self._record_of(label))

    def _record_of(self, label: Label) -> GrantRecord | None:
        return None if label.server_url is None else self._grants(labels.grant_key_of(label))

    def _forget(self, url: str) -> bool:
        """Log out of a server here only: the machine of a logout that tells nobody."""
        record = self._grants(key := grant_key(url, self.account))
        step = logout.begin(make_plan(url, {"account": self.account}), Seed(secrets.token_bytes(32)), revoke=False)
        ports = Ports(self._store, as_user(None), WallClock(), tell=lambda _: None)
        end = drive(step, logout.advance, _nothing_is_sent, ports)
        self._stamps.pop(key, None)
        if isinstance(end, Failed):
            raise from_failure(end.error)
        return record is not None and bool(record.grants)

    def _clean_up(self, name: str) -> None:
        """Delete what has expired for good. It only tidies up: where the store cannot, it stays."""
        try:
            self._relabel(name, labels.without_expired)
        except TokenStorageError as error:
            log.debug("expired tokens of %r could not be deleted: %s", name, error)

    def _keys(self) -> tuple[str, ...]:
        with _told():
            return self._store.keys()

    def _read(self, key: str, kind: type[R]) -> R | None:
        with _told():
            stored = self._store.load(key)
        return None if stored is None else labels.decode(key, stored.value, kind)

    def _change(self, key: str, empty: R, change: Callable[[R], R]) -> bool:
        """Change a record, whoever else does at the same time. False: nothing was to be changed."""
        for _ in range(MOST_ROUNDS):
            with _told():
                stored = self._store.load(key)
            old = empty if stored is None else labels.decode(key, stored.value, type(empty))
            new = replace(change(old), revision=old.revision)
            if new == old:
                return False
            new = replace(new, revision=secrets.token_urlsafe(32))
            value = labels.encode(new)
            try:
                with _told():
                    saved = self._store.save(key, value, revision=new.revision, expected=stored and stored.revision)
            finally:
                self._stamps.pop(key, None)
            if isinstance(saved, Saved):
                return True
        raise from_failure(failure(Reason.STORE_CONTENDED, "other processes kept changing what is saved under a name"))


# --- The store --------------------------------------------------------------------------------------------------------


def _created(backend: TokenStoreBackend, options: StoreOptions) -> Store:
    if backend not in (known := [one.value for one in TokenStoreBackend]):
        message = f"backend: there is no {backend!r}, but {', '.join(known)}"
        raise from_failure(failure(Reason.CONFIGURATION, message))
    try:
        return TokenStoreFactory.create(backend, **options)
    except StoreError as error:
        raise _failed(str(error)) from error


def _given(store: Store, backend: TokenStoreBackend, options: StoreOptions) -> Store:
    if backend != TokenStoreBackend.AUTO or any(value is not None for value in options.values()):
        raise from_failure(failure(Reason.CONFIGURATION, "store: with a store of your own goes no option of a backend"))
    return store


@contextmanager
def _told() -> Generator[None]:
    """What a store raises as what we raise."""
    try:
        yield
    except (DamagedError, NewerFormatError) as error:
        raise labels.UnreadableError(_failed(str(error)).failure) from error
    except StoreError as error:
        raise _failed(str(error)) from error
    except Exception as error:  # against its contract; its text may hold anything
        raise _failed(f"the store raised {type(error).__name__}") from None


def _failed(message: str) -> OAuthError:
    return from_failure(failure(Reason.STORE_FAILED, message))


def _nothing_is_sent(_: Send) -> Answer:
    raise AssertionError("a logout that tells nobody sends nothing")


# --- What people see --------------------------------------------------------------------------------------------------


def _entry_of_label(label: Label, found: object) -> ServerEntry:
    saved, grant = labels.by_hand(label), current_grant(found if isinstance(found, GrantRecord) else None)
    usable = labels.usable(saved, grant)
    if usable is None and isinstance(found, labels.UnreadableError):
        return ServerEntry(label.name, label.server_url, label.account, "unreadable", key=labels.grant_key_of(label))
    return _entry(label.name, label.server_url, label.account, usable or saved or grant)


def _entry(name: str | None, url: str | None, account: str, source: OAuthTokens | Grant | None) -> ServerEntry:
    if source is None:
        return ServerEntry(name, url, account, "logged out")
    if isinstance(source, Grant):
        state, issuer, tokens = _state(source), source.issuer, tokens_of(source)
    else:
        state, issuer, tokens = "expired" if source.is_expired() else "valid", None, source
    return ServerEntry(
        name,
        url,
        account,
        state,
        source.expires_at,
        None if tokens.scope is None else tuple(tokens.scope.split()),
        issuer,
        tokens.refresh_token is not None,
        last_four(tokens.access_token),
    )


def _state(grant: Grant) -> State:
    if alive(grant, now()):
        return "valid"
    return "refreshable" if renewable(grant) else "expired"


def last_four(token: str) -> str:
    """As much of a token as a person may see, or ""."""
    return token[-SHOWN:] if len(token) >= 4 * SHOWN else ""


def _order(entry: ServerEntry) -> tuple[bool, str, str, str]:
    return entry.name is None, entry.name or "", entry.server_url or "", entry.account


def _entry_of_credential(kept: KeptCredential, credential: Credential) -> CredentialEntry:
    expires_at = credential.expires_at if isinstance(credential, BearerToken) else None
    return CredentialEntry(kept.namespace, kept.name, _KINDS[type(credential)], expires_at)


_KINDS: dict[type[Credential], CredentialKind] = {
    BearerToken: "bearer",
    APIKeyToken: "api-key",
    BasicAuthToken: "basic",
}
