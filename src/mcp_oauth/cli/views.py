"""What is told of servers: the documents of `--json`, whose names are stable, and the lines made from them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from mcp_oauth.cli.mcp import Server
from mcp_oauth.cli.output import Fields, dots, from_now, moment
from mcp_oauth.cli.session import Target
from mcp_oauth.sansio.errors import Failure
from mcp_oauth.sansio.grant import Grant
from mcp_oauth.sansio.logout import LoggedOut
from mcp_oauth.token_manager import ServerEntry, last_four

Document = dict[str, Any]

COLUMNS = ("Name", "Server", "State", "Expires", "Scopes", "Token", "Account")

_STATES: Mapping[str, str] = {
    "valid": "valid",
    "refreshable": "expired, renewed at the next use",
    "expired": "expired: log in again",
    "logged out": "logged out",
    "unreadable": "unreadable: of a newer version, or damaged",
}
"""The states, as people are told them."""
_CLIENTS: Mapping[str, str] = {
    "preregistered": "registered by hand",
    "cimd": "client metadata document",
    "dcr": "registered dynamically",
}


def entry_document(entry: ServerEntry) -> Document:
    """One server of `list`."""
    return {
        "name": entry.name,
        "server_url": entry.server_url,
        "account": entry.account,
        "state": entry.state,
        "issuer": entry.issuer,
        "scopes": None if entry.scopes is None else list(entry.scopes),
        "expires_at": moment(entry.expires_at),
        "expires_in": None if entry.expires_at is None else int(entry.expires_at - time.time()),
        "has_refresh_token": entry.has_refresh_token,
        "access_token_last4": entry.last_four or None,
    }


def entry_row(entry: ServerEntry) -> tuple[object, ...]:
    """The same as a line of a table."""
    return (
        entry.name,
        entry.server_url or entry.key,
        _STATES[entry.state],
        entry.expires_at and from_now(entry.expires_at),
        " ".join(entry.scopes or ()),
        dots(entry.last_four),
        entry.account,
    )


def server_document(entry: ServerEntry, grant: Grant | None, store: str) -> Document:
    """What `get` and `auth` tell. Without an issuer the tokens were saved by hand, and the grant is not theirs."""
    shown = grant if entry.issuer is not None else None
    return {**entry_document(entry), **_grant_document(shown), "store": store}


def _grant_document(grant: Grant | None) -> Document:
    if grant is None:
        return dict.fromkeys(_OF_GRANT)
    values = (
        None if grant.requested is None else list(grant.requested),
        grant.resource,
        last_four(grant.refresh_token or "") or None,
        grant.registration.client_id,
        grant.registration.kind,
        moment(grant.logged_in_at),
        grant.generation,
    )
    return dict(zip(_OF_GRANT, values, strict=True))


_OF_GRANT = (
    "scopes_requested",
    "resource",
    "refresh_token_last4",
    "client_id",
    "client_kind",
    "logged_in_at",
    "renewals",
)


def server_fields(document: Document) -> Fields:
    """The same as lines."""
    return (
        ("Server", document["server_url"]),
        ("Account", document["account"] or None),
        ("State", _STATES[document["state"]]),
        ("Expires", _expiry(document)),
        ("Scopes", _words(document["scopes"])),
        ("Asked for", _words(document["scopes_requested"])),
        ("Issuer", document["issuer"]),
        ("Client", _client(document)),
        ("Logged in", document["logged_in_at"]),
        ("Renewals", document["renewals"]),
        ("Access token", dots(document["access_token_last4"])),
        ("Refresh token", dots(document["refresh_token_last4"]) or _refresh_token(document)),
        ("Store", document["store"]),
    )


def _refresh_token(document: Document) -> str:
    return "yes" if document["has_refresh_token"] else "none: a login is needed when the token expires"


def _expiry(document: Document) -> str | None:
    if document["expires_at"] is None:
        return None if document["state"] == "logged out" else "unknown"
    return f"{from_now(time.time() + document['expires_in'])} ({document['expires_at']})"


def _words(scopes: list[str] | None) -> str | None:
    return None if scopes is None else " ".join(scopes) or "none"


def _client(document: Document) -> str | None:
    kind = document["client_kind"]
    return None if kind is None else f"{document['client_id']} ({_CLIENTS[kind]})"


def test_document(target: Target, server: Server, tools: int, milliseconds: int) -> Document:
    """What `test` tells."""
    return {
        "ok": True,
        "name": target.name,
        "server_url": target.url,
        "server": {"name": server.name, "version": server.version},
        "protocol_version": server.protocol,
        "tools": tools,
        "status": server.status,
        "milliseconds": milliseconds,
    }


def test_fields(document: Document) -> Fields:
    """The same as lines."""
    named = " ".join(filter(None, (document["server"]["name"], document["server"]["version"])))
    return (
        ("Server", f"{named or 'unnamed'} at {document['server_url']}"),
        ("Protocol", document["protocol_version"]),
        ("Tools", document["tools"]),
        ("Status", f"HTTP {document['status']}"),
        ("Time", f"{document['milliseconds']} ms"),
    )


def logout_document(target: Target, entry: ServerEntry, told: LoggedOut) -> Document:
    """What `logout` tells: what was there before, and what the servers said. `confirmed` is None if none was asked."""
    revoked = [{"token": one.token, **_said(one.failure)} for one in told.revoked]
    unregistered = [_said(failure) for failure in told.unregistered]
    asked = bool(revoked) and not _by_hand(entry)
    failed = not all(one["ok"] for one in (*revoked, *unregistered))
    return {
        "name": target.name,
        "server_url": target.url,
        "cleared": True,
        "confirmed": False if failed else True if asked else None,
        "revoked": revoked,
        "unregistered": unregistered,
    }


def _said(failure: Failure | None) -> Document:
    return {"ok": failure is None, "message": None if failure is None else failure.message}


def _by_hand(entry: ServerEntry) -> bool:
    """Its tokens were saved by hand: which server could revoke them is not known."""
    return entry.issuer is None and entry.state != "logged out"


def logout_fields(document: Document, entry: ServerEntry) -> Fields:
    """The same as lines."""
    tokens = [(one["token"].replace("_", " ").capitalize(), _told(one, "revoked")) for one in document["revoked"]]
    clients = [("Client", _told(one, "registration deleted")) for one in document["unregistered"]]
    silent = [("Server", _untold(entry))] if _by_hand(entry) or not tokens else []
    return (("Here", "forgotten"), *tokens, *silent, *clients)


def _untold(entry: ServerEntry) -> str:
    """Why no server was told of the tokens that were shown."""
    if entry.state == "logged out":
        return "not told: there was no token"
    reason = "tokens saved by hand are" if _by_hand(entry) else "it has no revocation endpoint, so the tokens are"
    return f"not told: {reason} valid there until they expire"


def _told(one: Document, done: str) -> str:
    return done if one["ok"] else f"not {done}: {one['message']}"
