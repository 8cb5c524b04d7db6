"""Which store: the one asked for, or none at all; and what AUTO takes where nobody asked.

**Asked for by name**, a store is made or refused with the reason and the cure. Another one is never made in its place,
and an option that is not its own is refused too: a password for a keychain would protect nothing.

**AUTO** is the system's keyring if it works, else encrypted files. Whether it works is found out by writing and reading
there, once a process and for all of its `AutoStore`s, when the first of them is used. It stays so until the process
ends: a store that changes under a running program loses its logins. Between processes it can change, and then logins
seem lost: one made on the desktop is in the keyring, which may be locked or out of reach in a session over SSH. That is
logged as a warning, with the reason; a choice by name settles it.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
from collections.abc import Callable
from enum import Enum
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypedDict, cast

from .base import Conflict, Held, Lease, Saved, Store, Stored, StoreError, UnavailableError

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .keyring_backend import Kind

log = logging.getLogger("mcp_oauth")

SERVICE = "mcp-oauth"
MOUNT_POINT = "secret"
PATH_PREFIX = "mcp-oauth"
SWITCHED_OFF = "keyring.backends.null.Keyring"
"""What PYTHON_KEYRING_BACKEND says where a user wants no keyring (`keyring --disable`)."""


class TokenStoreBackend(str, Enum):
    """The kinds of store."""

    KEYCHAIN = "keychain"
    """The keychain of macOS."""
    CREDENTIAL_MANAGER = "windows"
    """The Credential Manager of Windows."""
    SECRET_SERVICE = "secretservice"
    """GNOME Keyring, KDE Wallet and whatever else speaks the Secret Service protocol."""
    VAULT = "vault"
    """HashiCorp Vault or OpenBao."""
    REDIS = "redis"
    """Sealed values in a Redis."""
    ENCRYPTED_FILE = "encrypted"
    """Encrypted files in a folder of the user's own."""
    MEMORY = "memory"
    """This process alone; another store at each call."""
    AUTO = "auto"
    """The system's keyring if it works, else encrypted files."""

    def __str__(self) -> str:
        return f"{type(self).__name__}.{self.name}"

    __repr__ = __str__


class StoreOptions(TypedDict, total=False):
    """What a store can be told. None is the same as saying nothing; what another kind of store is told is refused."""

    token_dir: str | os.PathLike[str] | None
    """Encrypted files: the folder, by default `~/.mcp_oauth/tokens`."""
    password: str | Callable[[], str] | None
    """Encrypted files and Redis: what the values are sealed under, or what asks for it."""
    service_name: str | None
    """Keyrings: the service that the items are filed under, by default `mcp-oauth`."""
    vault_url: str | None
    """Vault: where it is, by default VAULT_ADDR. Its certificate may come from the CAs in the file VAULT_CACERT."""
    vault_token: str | None
    """Vault: by default VAULT_TOKEN, unless an AppRole is given."""
    vault_mount_point: str | None
    """Vault: the KV v2 engine, by default `secret`."""
    vault_path_prefix: str | None
    """Vault: by default `mcp-oauth`."""
    vault_namespace: str | None
    """Vault: by default VAULT_NAMESPACE."""
    vault_role_id: str | None
    """Vault: the AppRole to log in with, by default VAULT_ROLE_ID."""
    vault_secret_id: str | None
    """Vault: the AppRole's secret, by default VAULT_SECRET_ID."""
    redis_url: str | None
    """Redis: where it is, by default MCP_OAUTH_REDIS_URL."""
    redis_key: bytes | None
    """Redis: 32 random bytes, by default MCP_OAUTH_REDIS_KEY (in hex) unless a password is given."""


class AutoStore:
    """The system's keyring if it works, else encrypted files. Nothing is touched, read or imported when it is made."""

    def __init__(
        self,
        *,
        service_name: str | None = None,
        token_dir: str | os.PathLike[str] | None = None,
        password: str | Callable[[], str] | None = None,
    ) -> None:
        """Take what the one and the other need; see `StoreOptions`."""
        self._service = service_name or SERVICE
        self._folder = None if token_dir is None else _absolute(token_dir)
        self._password = password
        self._identity = f"auto:{(self._service, self._folder or _absolute('~'))}"
        self._chosen: Store | None = None

    @property
    def identity(self) -> str:
        """`auto:` and what it was made with. It does not tell the choice, so it is known before there is one."""
        return self._identity

    @property
    def chosen(self) -> Store:
        """The store that it uses. The first use in a process may wait for a keyring that hangs, for ten seconds."""
        if self._chosen is None:
            make = self._keyring if _keyring_works() else self._file
            with _deciding:  # of two threads that come first, both shall use one object
                self._chosen = self._chosen or make()
        return self._chosen

    def load(self, key: str) -> Stored | None:
        """As the chosen store."""
        return self.chosen.load(key)

    def save(self, key: str, value: bytes, *, revision: str, expected: str | None) -> Saved | Conflict:
        """As the chosen store."""
        return self.chosen.save(key, value, revision=revision, expected=expected)

    def keys(self) -> tuple[str, ...]:
        """As the chosen store."""
        return self.chosen.keys()

    def try_lock(self, key: str) -> Lease | Held:
        """As the chosen store."""
        return self.chosen.try_lock(key)

    def _keyring(self) -> Store:
        from .keyring import KeyringStore

        return KeyringStore(self._service)

    def _file(self) -> Store:
        from .encrypted_file import EncryptedFileStore

        return EncryptedFileStore(self._folder, password=self._password)


class TokenStoreFactory:
    """Makes the store that was asked for, and says which ones there are."""

    @staticmethod
    def create(backend: TokenStoreBackend = TokenStoreBackend.AUTO, **options: Unpack[StoreOptions]) -> Store:
        """Make a store, or refuse; no store is opened by that, no keyring and no server asked.

        Raises `UnavailableError` with the cure: not on this system, an extra that is not installed, something that is
        not configured, an option that is not the backend's own. `TypeError` for an option that there is not.
        """
        backend = TokenStoreBackend(backend)
        given = _given(options)
        _check_options(backend, given)
        try:
            return _made(backend, given)
        except ValueError as error:
            raise UnavailableError(f"{backend.name} cannot be used: {error}") from error

    @staticmethod
    def get_available_backends() -> list[TokenStoreBackend]:
        """The backends that keep something beyond this process, and can do it now.

        The system's keyring if writing and reading there works, which may take ten seconds to find out; Vault and Redis
        if they are installed and the environment configures them; encrypted files always.
        """
        found = [backend for backend in (system_keyring(), *_SERVERS) if _works(backend)]
        return [*found, TokenStoreBackend.ENCRYPTED_FILE]

    @staticmethod
    def _detect_backend() -> TokenStoreBackend:
        """What AUTO uses in this process; found out now if it was not yet. A keyring of any kind is the system's."""
        return system_keyring() if _keyring_works() else TokenStoreBackend.ENCRYPTED_FILE


def _absolute(path: str | os.PathLike[str]) -> str:
    known = os.path.expanduser(path)  # noqa: PTH111 - no file is looked at
    return known if known.startswith("~") else os.path.abspath(known)  # noqa: PTH100 - the file store tells of no home


# What was asked for.

_KEYRINGS: dict[TokenStoreBackend, tuple[Kind, str]] = {
    TokenStoreBackend.KEYCHAIN: ("keychain", "the macOS keychain"),
    TokenStoreBackend.CREDENTIAL_MANAGER: ("windows", "the Windows Credential Manager"),
    TokenStoreBackend.SECRET_SERVICE: ("secretservice", "the Secret Service"),
}
_SERVERS = (TokenStoreBackend.VAULT, TokenStoreBackend.REDIS)
_DEFAULTS = {"vault_mount_point": MOUNT_POINT, "vault_path_prefix": PATH_PREFIX}
_OWNERS: dict[str, tuple[TokenStoreBackend, ...]] = {
    "token_dir": (TokenStoreBackend.ENCRYPTED_FILE, TokenStoreBackend.AUTO),
    "password": (TokenStoreBackend.ENCRYPTED_FILE, TokenStoreBackend.REDIS, TokenStoreBackend.AUTO),
    "service_name": (*_KEYRINGS, TokenStoreBackend.AUTO),
}
"""Whose options these are; each of the others begins with the value of its backend."""


def _given(options: StoreOptions) -> StoreOptions:
    """What was said: neither None nor what would be taken anyway."""
    said = {name: value for name, value in options.items() if value is not None and value != _DEFAULTS.get(name)}
    return cast("StoreOptions", said)


def _check_options(backend: TokenStoreBackend, given: StoreOptions) -> None:
    if unknown := given.keys() - StoreOptions.__optional_keys__:
        raise TypeError(f"there is no option {min(unknown)!r}")
    for option in sorted(given):
        owners = _OWNERS.get(option) or (TokenStoreBackend(option.partition("_")[0]),)
        if backend not in owners:
            *others, last = (owner.name for owner in owners)
            whose = f"{', '.join(others)} or {last}" if others else last
            raise UnavailableError(f"{backend.name} has no use for {option}: leave it out, or choose {whose}")


def _made(backend: TokenStoreBackend, given: StoreOptions) -> Store:
    match backend:
        case TokenStoreBackend.AUTO:
            return AutoStore(
                service_name=given.get("service_name"),
                token_dir=given.get("token_dir"),
                password=given.get("password"),
            )
        case TokenStoreBackend.VAULT:
            return _vault(given)
        case TokenStoreBackend.REDIS:
            return _redis(given)
        case TokenStoreBackend.ENCRYPTED_FILE:
            from .encrypted_file import EncryptedFileStore

            return EncryptedFileStore(given.get("token_dir"), password=given.get("password"))
        case TokenStoreBackend.MEMORY:
            from .memory import MemoryStore

            return MemoryStore()
        case _:
            return _keyring(backend, given)


def _keyring(backend: TokenStoreBackend, given: StoreOptions) -> Store:
    kind, title = _KEYRINGS[backend]
    if backend != (here := system_keyring()):
        raise UnavailableError(f"{title} is not on this system; choose {here.name}, ENCRYPTED_FILE or AUTO")
    _need(backend, "keyring", "keyring")
    from .keyring import KeyringStore

    return KeyringStore(given.get("service_name") or SERVICE, backend=kind)


def _vault(given: StoreOptions) -> Store:
    url = given.get("vault_url") or _set("VAULT_ADDR")
    if not url:
        raise UnavailableError("VAULT needs to know where it is: give vault_url, or set VAULT_ADDR")
    token, role, secret = _vault_login(given)
    if not token and not role:
        how = "give vault_token, or vault_role_id and vault_secret_id, or set VAULT_TOKEN, or VAULT_ROLE_ID and"
        raise UnavailableError(f"VAULT needs credentials: {how} VAULT_SECRET_ID")
    _need(TokenStoreBackend.VAULT, "hvac", "vault")
    from .vault import VaultStore

    return VaultStore(
        url,
        token=token,
        role_id=role,
        secret_id=secret,
        mount_point=given.get("vault_mount_point") or MOUNT_POINT,
        path_prefix=given.get("vault_path_prefix") or PATH_PREFIX,
        namespace=given.get("vault_namespace") or _set("VAULT_NAMESPACE"),
        verify=_set("VAULT_CACERT"),
    )


def _vault_login(given: StoreOptions) -> tuple[str | None, str | None, str | None]:
    """Token, role and secret. What was given decides which of the two ways the environment may complete."""
    token, role, secret = given.get("vault_token"), given.get("vault_role_id"), given.get("vault_secret_id")
    if not (token or role or secret):
        token = _set("VAULT_TOKEN")
    if not token:
        role, secret = role or _set("VAULT_ROLE_ID"), secret or _set("VAULT_SECRET_ID")
    return token, role, secret


def _set(variable: str) -> str | None:
    """What the environment says, if anything."""
    return os.environ.get(variable) or None


def _redis(given: StoreOptions) -> Store:
    url = given.get("redis_url") or _set("MCP_OAUTH_REDIS_URL")
    if not url:
        raise UnavailableError("REDIS needs to know where it is: give redis_url, or set MCP_OAUTH_REDIS_URL")
    key, password = given.get("redis_key"), given.get("password")
    if key is None and password is None:
        key = _key_of_the_environment()
    _need(TokenStoreBackend.REDIS, "redis", "redis")
    from .redis import RedisStore

    return RedisStore(url, key=key, password=password)


def _key_of_the_environment() -> bytes:
    text = _set("MCP_OAUTH_REDIS_KEY")
    if text is None:
        how = "give redis_key or password, or set MCP_OAUTH_REDIS_KEY to what openssl rand -hex 32 makes"
        raise UnavailableError(f"REDIS needs something to seal with: {how}")
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise UnavailableError("MCP_OAUTH_REDIS_KEY is not in hex: make one with openssl rand -hex 32") from None


def _need(backend: TokenStoreBackend, package: str, extra: str) -> None:
    if find_spec(package) is None:
        raise UnavailableError(f'{backend.name} needs the package {package}: pip install "mcp-oauth-sansio[{extra}]"')


# What there is.


def system_keyring() -> TokenStoreBackend:
    """The keyring of this kind of system, whether it is there or not."""
    systems = {"darwin": TokenStoreBackend.KEYCHAIN, "win32": TokenStoreBackend.CREDENTIAL_MANAGER}
    return systems.get(sys.platform, TokenStoreBackend.SECRET_SERVICE)


def _works(backend: TokenStoreBackend) -> bool:
    from .keyring import KeyringStore

    try:
        store = TokenStoreFactory.create(backend)
        if isinstance(store, KeyringStore):
            store.probe()
    except StoreError:
        return False
    return True


# What AUTO finds.

_deciding = threading.Lock()


def _keyring_works() -> bool:
    with _deciding:
        return _decide()


@functools.cache
def _decide() -> bool:
    """Whether AUTO uses the keyring. It says why not, once."""
    obstacle = _obstacle()
    if obstacle is None:
        log.debug("logins are kept in the keyring")
        return True
    level, reason = obstacle
    log.log(level, "logins are kept in encrypted files, and not in the keyring: %s", reason)
    return False


def _obstacle() -> tuple[int, str] | None:
    """What keeps AUTO from the keyring, and how much the user needs to hear of it."""
    if find_spec("keyring") is None:
        return logging.DEBUG, 'the extra "keyring" is not installed'
    if os.environ.get("PYTHON_KEYRING_BACKEND") == SWITCHED_OFF:
        return logging.INFO, "PYTHON_KEYRING_BACKEND switches it off"
    from .keyring import KeyringStore

    try:
        KeyringStore(SERVICE).probe()
    except StoreError as error:
        return _passed_over(str(error))
    return None


def _passed_over(reason: str) -> tuple[int, str]:
    """Where this user ever had a keyring, logins may be in it: then this is a warning."""
    if not _was_within_reach():
        return logging.INFO, reason
    names = f"{system_keyring()}, {TokenStoreBackend.ENCRYPTED_FILE}"
    settle = f"choose one by name ({names}), or set PYTHON_KEYRING_BACKEND={SWITCHED_OFF} to keep to files"
    return logging.WARNING, f"{reason}. Logins made with the keyring are not seen now. To settle it, {settle}"


def _was_within_reach() -> bool:
    from .keyring import default_lock_folder

    try:
        return default_lock_folder().exists()  # made when a keyring was first found, even if it then failed
    except StoreError:
        return False


def _begin_again() -> None:
    global _deciding
    _deciding = threading.Lock()  # it may have been held when the fork came; what was decided stays


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_again)
