"""`mcp-oauth store`: which store it is, whether it works, its password and its key."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

import click

from mcp_oauth.cli.failures import CommandError, Exit
from mcp_oauth.cli.options import FILE, ask, secret, shared
from mcp_oauth.cli.places import STORES
from mcp_oauth.cli.session import Session
from mcp_oauth.store.base import Conflict, Held, Saved, Store
from mcp_oauth.store.choose import TokenStoreBackend, TokenStoreFactory
from mcp_oauth.store.encrypted_file import EncryptedFileStore

PROBE = "probe-of-mcp-oauth"
"""The key that `check` writes to: one record, always the same."""


@click.group()
def store() -> None:
    """Look after the place where logins are kept."""


@store.command()
@shared
def where(session: Session) -> Exit:
    """Say which store is used, why, and which others there are."""
    names = {backend: name for name, backend in STORES.items()}
    available = [names[backend] for backend in TokenStoreFactory.get_available_backends()]
    document = {"store": session.store_name, "identity": session.settled_store.identity, "why": _why(session)}
    fields = [("Store", document["store"]), ("Where", document["identity"]), ("Why", document["why"])]
    fields.append(("Available", " ".join(available)))
    session.screen.show({**document, "available": available}, "The store", fields)
    return Exit.DONE


def _why(session: Session) -> str:
    if session.settings.backend is not TokenStoreBackend.AUTO:
        return "asked for with --store or MCP_OAUTH_STORE"
    if isinstance(session.settled_store, EncryptedFileStore):
        return "no system keyring works here, so encrypted files are used (-v says more)"
    return "the system's keyring works here"


@store.command()
@shared
def check(session: Session) -> Exit:
    """Try the store: write, read back, compare-and-swap, lock. It leaves one small record behind."""
    begun = time.monotonic()
    done = [*_tried(session.store)]
    document = {"ok": True, "store": session.store_name, "identity": session.settled_store.identity, "checked": done}
    milliseconds = round((time.monotonic() - begun) * 1000)
    fields = [("Store", document["store"]), ("Where", document["identity"]), ("Checked", ", ".join(done))]
    fields.append(("Time", f"{milliseconds} ms"))
    session.screen.show({**document, "milliseconds": milliseconds}, "The store works", fields)
    return Exit.DONE


def _tried(store: Store) -> list[str]:
    """What works. Raises `StoreError` for what the store says is wrong, `CommandError` for what it does not say."""
    before = store.load(PROBE)
    revision, value = secrets.token_urlsafe(16), secrets.token_bytes(64)
    expected = before and before.revision
    saved = store.save(PROBE, value, revision=revision, expected=expected)
    if not isinstance(saved, Saved):
        raise _wrong("somebody else wrote the probe at the same time", "try again")
    if (after := store.load(PROBE)) is None or (after.value, after.revision) != (value, revision):
        raise _wrong("what was written was not read back", "use another store")
    if not isinstance(store.save(PROBE, b"", revision=secrets.token_urlsafe(16), expected=expected), Conflict):
        raise _wrong("an outdated write was not refused", "use another store")
    lease = store.try_lock(PROBE)
    if isinstance(lease, Held):
        raise _wrong(f"the lock is taken: {lease.holder}", "try again, or end that process")
    with lease:
        pass
    durable = "durable" if saved.durable else "not durable: a power failure may take back what was saved last"
    return ["write", "read", "compare-and-swap", "lock", durable]


def _wrong(message: str, cure: str) -> CommandError:
    return CommandError(Exit.STORE, message, cure)


@store.command()
@shared
def rekey(session: Session) -> Exit:
    """Give the encrypted files a new key, and seal all of them anew."""
    files = _files(session)
    files.rekey()
    session.screen.show(
        {"ok": True, "identity": files.identity}, "The store has a new key", [("Where", files.identity)]
    )
    return Exit.DONE


@store.command()
@click.option("--new-password-file", **FILE, help="Holds the new password in its first line.")
@click.option("--remove", is_flag=True, help="Keep the key in the folder from now on, with no password.")
@shared
def password(session: Session, new_password_file: Path | None, remove: bool) -> Exit:
    """Set, change or remove the password of the encrypted files.

    The new one comes from --new-password-file, MCP_OAUTH_NEW_PASSWORD, or is asked for twice.
    """
    files = _files(session)
    new = None if remove else secret("new_password", new_password_file) or ask("New password of the store", twice=True)
    files.change_password(new)
    headline = "The password is gone" if new is None else "The password is set"
    fields = [("Where", files.identity), ("Password", "no" if new is None else "yes")]
    session.screen.show({"ok": True, "identity": files.identity, "password": new is not None}, headline, fields)
    return Exit.DONE


def _files(session: Session) -> EncryptedFileStore:
    found = session.settled_store
    if not isinstance(found, EncryptedFileStore):
        message = f"{found.identity} has no key or password of its own"
        raise CommandError(Exit.USAGE, message, "this is for encrypted files: --store file")
    return found
