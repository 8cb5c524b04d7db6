"""The records of `token_manager`: what a name stands for, and a static credential; and what a name is worth.

Functions on frozen values; only the clock is asked.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
from msgspec.structs import replace

from mcp_oauth.exceptions import TokenStorageError, from_failure
from mcp_oauth.io.ports import now
from mcp_oauth.sansio.errors import Reason, failure
from mcp_oauth.sansio.grant import Grant, alive, digest, grant_key, renewable
from mcp_oauth.sansio.values import Value
from mcp_oauth.tokens import Credential, OAuthTokens


class Label(Value, frozen=True, tag="name-1"):
    """What a name stands for; empty once it was deleted."""

    shown = ("name", "account", "server_url")

    revision: str
    name: str
    account: str
    server_url: str | None = None
    """In its canonical form."""
    tokens: OAuthTokens | None = None
    """Saved by hand."""
    tokens_for: str | None = None
    """The server URL that these are for; None: the first one that the name is used with."""


class KeptCredential(Value, frozen=True, tag="credential-1"):
    """A static credential; none once it was deleted."""

    shown = ("namespace", "name")

    revision: str
    namespace: str
    name: str
    credential: Credential | None = None


R = TypeVar("R", Label, KeptCredential)


class UnreadableError(TokenStorageError):
    """A record that this version cannot read; of others it says nothing."""


# --- As they are stored -----------------------------------------------------------------------------------------------


def name_key(name: str, account: str) -> str:
    """The key of a label."""
    return "name-" + digest(name, account)


def credential_key(namespace: str, name: str) -> str:
    """The key of a credential."""
    return "credential-" + digest(namespace, name)


def grant_key_of(label: Label) -> str:
    """The key of the grant that a name stands for; of none, where it stands for no server."""
    return grant_key(label.server_url or "", label.account)


def encode(record: Label | KeptCredential) -> bytes:
    """Raises `ConfigurationError` for what could not be read again: a field of a wrong type, a lone surrogate."""
    try:
        value = msgspec.json.encode(record)
        msgspec.json.decode(value, type=type(record))
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError) as error:
        message = f"what is to be saved has a field that cannot be kept ({type(error).__name__})"
        raise from_failure(failure(Reason.CONFIGURATION, message)) from None
    return value


def decode(key: str, value: bytes, kind: type[R]) -> R:
    """Raises `UnreadableError`."""
    try:
        return msgspec.json.decode(value, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise unreadable(key) from None


def unreadable(key: str) -> UnreadableError:
    """What is stored under the key is no record of this version."""
    message = f"{key} cannot be read: a newer version of mcp_oauth wrote it (upgrade this program), or it is damaged"
    return UnreadableError(failure(Reason.STORE_FAILED, message))


# --- What is done to a label ------------------------------------------------------------------------------------------


def bound(label: Label, url: str) -> Label:
    """It stands for this server, and so do tokens that were for none yet."""
    mine = label.tokens is not None and label.tokens_for is None
    return replace(label, server_url=url, tokens_for=url if mine else label.tokens_for)


def released(label: Label, url: str | None) -> Label:
    """It stands for this server no more, and has no tokens for it."""
    if label.tokens_for in (None, url):
        label = replace(label, tokens=None, tokens_for=None)
    return replace(label, server_url=None) if label.server_url == url else label


def emptied(label: Label) -> Label:
    """Of a name that was deleted."""
    return replace(label, server_url=None, tokens=None, tokens_for=None)


def without_expired(label: Label) -> Label:
    """It has no tokens that nothing renews."""
    return replace(label, tokens=None, tokens_for=None) if expired_for_good(label.tokens) else label


# --- What it is worth -------------------------------------------------------------------------------------------------


def in_use(label: Label) -> bool:
    """It was not deleted."""
    return label.server_url is not None or label.tokens is not None


def by_hand(label: Label) -> OAuthTokens | None:
    """Tokens saved by hand for the server that the name stands for now."""
    return label.tokens if label.tokens_for in (None, label.server_url) else None


def alive_for(label: Label, *servers: str | None) -> bool:
    """It has tokens saved by hand that are alive, and for one of these."""
    return label.tokens is not None and not label.tokens.is_expired() and label.tokens_for in servers


def expired_for_good(tokens: OAuthTokens | None) -> bool:
    """Neither they nor their owner can do anything with them."""
    return tokens is not None and tokens.is_expired() and tokens.refresh_token is None


def usable(saved: OAuthTokens | None, grant: Grant | None) -> OAuthTokens | Grant | None:
    """The tokens that a name stands for: see `TokenManager.load_tokens`."""
    if saved is not None and not saved.is_expired():
        return saved
    if grant is not None and (alive(grant, now()) or renewable(grant)):
        return grant
    return None if expired_for_good(saved) else saved
