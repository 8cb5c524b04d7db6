"""A real keyring for a test, and simulated ones: what no machine of ours has, or what no real one does when asked to.

`windows` and `keychain` are the real backends of the library, on a simulated system below them. The others are
backends made up here, in memory.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import keyring.backend
import keyring.core
import pytest
from keyring.backend import KeyringBackend
from keyring.errors import PasswordDeleteError, PasswordSetError

from tests.servers.secret_service import SecretService

BLOB_BYTES = 2560
"""CRED_MAX_CREDENTIAL_BLOB_SIZE of wincred.h."""


def use_keyring_of(service: SecretService, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real gnome-keyring is that of this process and of those that it starts, whatever was found before."""
    monkeypatch.setattr(keyring.core, "_keyring_backend", None)
    monkeypatch.delitem(vars(keyring.backend.get_all_keyring), "saved_result", raising=False)
    for name, value in service.environment.items():
        monkeypatch.setenv(name, value)


class Died(BaseException):
    """The process is dead: nothing that it does after this has an effect."""


class Calls:
    """The calls that change something in a simulated system: counted, and going wrong as a test wants."""

    def __init__(self) -> None:
        self.changes = 0
        self.wrong: Callable[[int], BaseException | None] = lambda number: None

    def change(self) -> None:
        number, self.changes = self.changes, self.changes + 1
        if (error := self.wrong(number)) is not None:
            raise error

    def fail_at(self, number: int, error: Exception) -> None:
        """Let one call go wrong, counted from now on."""
        self.changes = 0
        self.wrong = lambda at: error if at == number else None

    def die_at(self, number: int) -> None:
        """Let this call, counted from now on, and all later ones come from a dead process."""
        self.changes = 0
        self.wrong = lambda at: Died() if at >= number else None

    def go_well(self) -> None:
        self.wrong = lambda number: None


class SimulatedError(Exception):
    """As `pywintypes.error`."""

    def __init__(self, winerror: int, funcname: str, strerror: str) -> None:
        super().__init__(winerror, funcname, strerror)
        self.winerror, self.funcname, self.strerror = winerror, funcname, strerror


class CredentialManager:
    """A simulated Windows Credential Manager, as `win32cred` reaches it. Names do not differ by case alone."""

    CRED_TYPE_GENERIC = 1
    CRED_PERSIST_LOCAL_MACHINE = 2
    CRED_PERSIST_ENTERPRISE = 3

    def __init__(self) -> None:
        self.calls = Calls()
        self.credentials: dict[str, dict[str, Any]] = {}

    def CredRead(self, Type: int, TargetName: str) -> dict[str, Any]:  # noqa: N803 - Windows names it so
        if TargetName.lower() not in self.credentials:
            raise SimulatedError(1168, "CredRead", "Element not found.")
        return dict(self.credentials[TargetName.lower()])

    def CredWrite(self, credential: dict[str, Any], flags: int) -> None:
        self.calls.change()
        blob = credential["CredentialBlob"].encode("utf-16-le")
        if len(blob) > BLOB_BYTES:
            raise SimulatedError(1783, "CredWrite", "The stub received bad data.")
        self.credentials[credential["TargetName"].lower()] = {**credential, "CredentialBlob": blob}

    def CredDelete(self, Type: int, TargetName: str) -> None:  # noqa: N803
        self.calls.change()
        if self.credentials.pop(TargetName.lower(), None) is None:
            raise SimulatedError(1168, "CredDelete", "Element not found.")

    def names(self) -> set[str]:
        """The user names of all credentials."""
        return {credential["UserName"] for credential in self.credentials.values()}


class Keychain:
    """A simulated macOS Keychain, as the `api` module of the library reaches it: what is replaced is deleted first."""

    class Error(Exception):
        pass

    class NotFound(Error):
        pass

    class KeychainDenied(Error):
        pass

    def __init__(self) -> None:
        self.calls = Calls()
        self.in_between: Callable[[str], None] = lambda item: None
        self.items: dict[tuple[str, str], str] = {}

    def find_generic_password(self, keychain: str | None, service: str, username: str) -> str:
        if (service, username) not in self.items:
            raise self.NotFound(-25300, "Item not found")
        return self.items[service, username]

    def set_generic_password(self, keychain: str | None, service: str, username: str, password: str) -> None:
        if (service, username) in self.items:
            self.delete_generic_password(keychain, service, username)
            self.in_between(username)
        self.calls.change()
        self.items[service, username] = password

    def delete_generic_password(self, keychain: str | None, service: str, username: str) -> None:
        self.calls.change()
        if self.items.pop((service, username), None) is None:
            raise self.NotFound(-25300, "Item not found")

    def names(self) -> set[str]:
        """The user names of all items."""
        return {username for _, username in self.items}


def windows(monkeypatch: pytest.MonkeyPatch) -> tuple[KeyringBackend, CredentialManager]:
    """The library's Windows backend on a simulated Credential Manager."""
    module, manager = importlib.import_module("keyring.backends.Windows"), CredentialManager()
    monkeypatch.setattr(module, "win32cred", manager, raising=False)
    monkeypatch.setattr(module, "pywintypes", SimpleNamespace(error=SimulatedError), raising=False)
    backend: KeyringBackend = module.WinVaultKeyring()
    return backend, manager


def keychain(monkeypatch: pytest.MonkeyPatch) -> tuple[KeyringBackend, Keychain]:
    """The library's macOS backend on a simulated Keychain."""
    module, simulated = importlib.import_module("keyring.backends.macOS"), Keychain()
    monkeypatch.setattr(module, "api", simulated, raising=False)
    backend: KeyringBackend = module.Keyring()
    return backend, simulated


class Simulated(KeyringBackend):
    """A backend that nobody knows, of which nothing is wrong. The library never prefers one of these."""

    priority = -1.0  # less than the library's own `fail`: no test gets one that it has not asked for

    def __init__(self) -> None:
        self.calls = Calls()
        self.items: dict[str, str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        return self.items.get(username)

    def set_password(self, service: str, username: str, password: str) -> None:
        self.calls.change()
        self.items[username] = password

    def delete_password(self, service: str, username: str) -> None:
        self.calls.change()
        if self.items.pop(username, None) is None:
            raise PasswordDeleteError("No such password!")

    def names(self) -> set[str]:
        """The user names of all items."""
        return set(self.items)


class Hanging(Simulated):
    """Its calls wait until `going_on` is set; once `hang_at_write` is, those that write do."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = 0
        self.hang_at_write = False
        self.going_on = threading.Event()
        self.going_on.set()

    def get_password(self, service: str, username: str) -> str | None:
        self.entered += 1
        self.going_on.wait()
        return super().get_password(service, username)

    def set_password(self, service: str, username: str, password: str) -> None:
        self.entered += 1
        if self.hang_at_write:
            self.hang_at_write = False
            self.going_on.clear()
        self.going_on.wait()
        super().set_password(service, username, password)


class Failing(Simulated):
    """Its daemon is not there."""

    def get_password(self, service: str, username: str) -> str | None:
        raise OSError("no such daemon")

    def set_password(self, service: str, username: str, password: str) -> None:
        raise OSError("no such daemon")


class Blabbing(Simulated):
    """Writing fails, and the error tells what was to be written."""

    def set_password(self, service: str, username: str, password: str) -> None:
        try:
            raise ValueError(password)
        except ValueError as error:
            raise RuntimeError(f"could not keep {password}") from error


class ReadOnly(Simulated):
    """Nothing is ever written."""

    def set_password(self, service: str, username: str, password: str) -> None:
        raise PasswordSetError("a read-only keyring")

    def delete_password(self, service: str, username: str) -> None:
        raise PasswordDeleteError("a read-only keyring")


class Hoarding(Simulated):
    """Nothing is ever removed, as in a backend that has no way to."""

    def delete_password(self, service: str, username: str) -> None:
        raise PasswordDeleteError("reason")


class Forgetful(Simulated):
    """Says that it wrote, and did not."""

    def set_password(self, service: str, username: str, password: str) -> None:
        pass


class Truncating(Simulated):
    """Keeps the beginning."""

    def set_password(self, service: str, username: str, password: str) -> None:
        super().set_password(service, username, password[:100])


class PlaintextKeyring(Simulated):
    """As that of `keyrings.alt`: a file that everybody can read."""
