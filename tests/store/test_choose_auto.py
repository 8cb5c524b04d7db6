"""AUTO: which store it takes, on the real gnome-keyring and on simulated ones that fail."""

from __future__ import annotations

import contextlib
import gc
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import keyring.core
import pytest
from keyring.backend import KeyringBackend
from keyring.backends import fail

from mcp_oauth.io.oauth import BaseOAuth
from mcp_oauth.io.sending import Sender
from mcp_oauth.store import choose
from mcp_oauth.store.base import Conflict, Held, Saved, Store, Stored, StoreError, UnavailableError
from mcp_oauth.store.choose import AutoStore, TokenStoreBackend, TokenStoreFactory
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from mcp_oauth.store.keyring import KeyringStore, default_lock_folder
from tests.servers.secret_service import SecretService
from tests.store import keyrings
from tests.store.choosing import AUTO, KEY, create, nothing_configured

Said = list[tuple[int, str]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with nothing_configured(tmp_path, monkeypatch):
        yield tmp_path


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], Said]:
    """What the logger of the library was told, with the levels."""
    caplog.set_level(logging.DEBUG, "mcp_oauth")
    return lambda: [(level, text) for name, level, text in caplog.record_tuples if name == "mcp_oauth"]


Use = Callable[[KeyringBackend], None]
NONE: type[KeyringBackend] = fail.Keyring
"""What the library prefers where it finds none."""


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Make a backend the one that the library `keyring` prefers, and wait for it for a moment only."""
    monkeypatch.setattr("mcp_oauth.store.keyring.KeyringStore", partial(KeyringStore, seconds=0.05))
    return lambda backend: monkeypatch.setattr(keyring.core, "_keyring_backend", backend)


@pytest.fixture
def within_reach_before(home: Path) -> None:
    """This user has had a keyring, so that logins may be in it."""
    default_lock_folder().mkdir(parents=True)


@contextlib.contextmanager
def hanging(backend: keyrings.Simulated) -> Iterator[None]:
    """Let a backend hang, if that is what is wrong with it."""
    if not isinstance(backend, keyrings.Hanging):
        yield
        return
    backend.going_on.clear()
    try:
        yield
    finally:
        backend.going_on.set()


def kept(store: Store) -> Stored | None:
    """Save through a store, and read again."""
    store.save("key", b"value", revision="1", expected=None)
    return store.load("key")


LEAKY = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""The library leaves its connection open where it finds the keyring locked."""


@contextlib.contextmanager
def locked(service: SecretService) -> Iterator[None]:
    """Lock the keyring for a while. What the library leaves open is gone after that, and troubles no other test."""
    service.lock()
    try:
        yield
    finally:
        service.unlock()
        gc.collect()


@pytest.mark.usefixtures("session_bus")
class TestAutoOnTheRealKeyring:
    def test_the_keyring_is_taken(self, secret_service_bus: SecretService, said: Callable[[], Said]) -> None:
        service = f"mcp-oauth-test-{uuid4().hex}"
        store = AutoStore(service_name=service)
        assert kept(store) == Stored(b"value", "1")
        assert kept(KeyringStore(service, backend="secretservice")) == Stored(b"value", "1")
        assert len(secret_service_bus.items(service)) == 2
        assert said() == [(logging.DEBUG, "logins are kept in the keyring")]

    def test_nothing_is_left_of_the_trial(self, secret_service_bus: SecretService) -> None:
        before = secret_service_bus.items("mcp-oauth")
        assert isinstance(AutoStore().chosen, KeyringStore)
        assert secret_service_bus.items("mcp-oauth") == before

    def test_it_is_what_is_detected_and_available(self) -> None:
        assert TokenStoreFactory._detect_backend() is TokenStoreBackend.SECRET_SERVICE
        assert TokenStoreFactory.get_available_backends() == [
            TokenStoreBackend.SECRET_SERVICE,
            TokenStoreBackend.ENCRYPTED_FILE,
        ]

    def test_available_is_what_the_environment_configures(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VAULT_ADDR", "https://vault.example")
        monkeypatch.setenv("VAULT_TOKEN", "hvs.t")
        monkeypatch.setenv("MCP_OAUTH_REDIS_URL", "redis://redis.example")
        monkeypatch.setenv("MCP_OAUTH_REDIS_KEY", KEY.hex())
        assert TokenStoreFactory.get_available_backends() == [
            TokenStoreBackend.SECRET_SERVICE,
            TokenStoreBackend.VAULT,
            TokenStoreBackend.REDIS,
            TokenStoreBackend.ENCRYPTED_FILE,
        ]

    @LEAKY
    def test_a_locked_one_is_passed_over_with_a_warning(
        self, secret_service_bus: SecretService, home: Path, said: Callable[[], Said]
    ) -> None:
        with locked(secret_service_bus):
            assert isinstance(AutoStore().chosen, EncryptedFileStore)
            assert TokenStoreFactory.get_available_backends() == [TokenStoreBackend.ENCRYPTED_FILE]
        ((level, text),) = said()
        assert level == logging.WARNING
        assert "is locked" in text
        assert AutoStore().chosen.identity == f"file:{home}/.mcp_oauth/tokens", "it stays so in this process"

    @LEAKY
    def test_asked_for_by_name_a_locked_one_is_an_error(self, secret_service_bus: SecretService, home: Path) -> None:
        with locked(secret_service_bus), pytest.raises(UnavailableError, match="is locked"):
            kept(create(TokenStoreBackend.SECRET_SERVICE))
        assert not (home / ".mcp_oauth").exists()

    def test_switched_off_by_the_user(self, monkeypatch: pytest.MonkeyPatch, said: Callable[[], Said]) -> None:
        monkeypatch.setenv("PYTHON_KEYRING_BACKEND", choose.SWITCHED_OFF)
        assert isinstance(AutoStore().chosen, EncryptedFileStore)
        assert [level for level, _ in said()] == [logging.INFO]


FAILING = [
    pytest.param(keyrings.Failing, "no such daemon", id="failing"),
    pytest.param(keyrings.ReadOnly, "cannot be changed", id="read-only"),
    pytest.param(keyrings.Forgetful, "does not keep what is written", id="forgetful"),
    pytest.param(keyrings.Hanging, "has not answered for 0.05 seconds", id="hanging"),
]


class TestAutoOnSimulatedKeyrings:
    def test_one_that_works(self, use: Use, home: Path) -> None:
        backend = keyrings.Simulated()
        use(backend)
        assert kept(AutoStore()) == Stored(b"value", "1")
        assert backend.names()
        assert not (home / ".mcp_oauth").exists()

    @pytest.mark.parametrize(("backend", "reason"), FAILING)
    def test_FN14_one_that_is_there_and_does_not_work_is_passed_over_with_a_warning(
        self, use: Use, home: Path, said: Callable[[], Said], backend: type[keyrings.Simulated], reason: str
    ) -> None:
        broken = backend()
        use(broken)
        with hanging(broken):
            store = AutoStore(token_dir=home / "mine", password="correct horse")
            assert kept(store) == Stored(b"value", "1")
        ((level, text),) = said()
        assert level == logging.WARNING
        assert reason in text
        assert "TokenStoreBackend.SECRET_SERVICE, TokenStoreBackend.ENCRYPTED_FILE" in text
        assert EncryptedFileStore(home / "mine", password="correct horse").load("key") == Stored(b"value", "1")

    @pytest.mark.parametrize("backend", [NONE, keyrings.PlaintextKeyring])
    def test_FN14_none_at_all_or_one_in_plain_sight_is_passed_over(
        self, use: Use, said: Callable[[], Said], backend: type[KeyringBackend]
    ) -> None:
        use(backend())
        assert isinstance(AutoStore().chosen, EncryptedFileStore)
        assert [level for level, _ in said()] == [logging.INFO]

    @pytest.mark.usefixtures("within_reach_before")
    def test_where_there_was_one_before_it_is_a_warning(self, use: Use, said: Callable[[], Said]) -> None:
        use(NONE())
        assert isinstance(AutoStore().chosen, EncryptedFileStore)
        ((level, text),) = said()
        assert level == logging.WARNING
        assert "Logins made with the keyring are not seen now" in text

    def test_no_extra(self, monkeypatch: pytest.MonkeyPatch, said: Callable[[], Said]) -> None:
        monkeypatch.setattr(choose, "find_spec", lambda name: None)
        assert isinstance(AutoStore().chosen, EncryptedFileStore)
        assert TokenStoreFactory._detect_backend() is TokenStoreBackend.ENCRYPTED_FILE
        assert TokenStoreFactory.get_available_backends() == [TokenStoreBackend.ENCRYPTED_FILE]
        assert [level for level, _ in said()] == [logging.DEBUG]

    def test_no_home(self, use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_home() -> Path:
            raise RuntimeError

        use(NONE())
        monkeypatch.setattr(Path, "home", no_home)
        with pytest.raises(StoreError, match="no home folder"):
            AutoStore().load("key")


class Counting(keyrings.Simulated):
    """Counts what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = 0

    def set_password(self, service: str, username: str, password: str) -> None:
        self.written += 1
        super().set_password(service, username, password)


class TestAutoStore:
    def test_it_is_a_store(self, home: Path) -> None:
        store: Store = AutoStore(token_dir=home / "mine")
        assert isinstance(store, Store)
        assert store.save("key", b"value", revision="1", expected=None) == Saved(durable=True)
        assert store.save("key", b"other", revision="2", expected=None) == Conflict(Stored(b"value", "1"))
        assert (store.load("key"), store.load("none")) == (Stored(b"value", "1"), None)
        assert store.keys() == ("key",)
        lease = store.try_lock("key")
        assert not isinstance(lease, Held)
        with lease:
            assert isinstance(EncryptedFileStore(home / "mine").try_lock("key"), Held)

    def test_the_identity_is_what_it_was_made_with(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(home)
        made: list[dict[str, Any]] = [
            {},
            {"service_name": "a"},
            {"token_dir": "a"},
            {"service_name": "a', 'a"},
            {"token_dir": home / "b"},
        ]
        assert len({AutoStore(**given).identity for given in made}) == len(made)
        assert AutoStore().identity == AutoStore(service_name="mcp-oauth").identity == create(AUTO).identity
        assert AutoStore(token_dir="~/a").identity == AutoStore(token_dir=home / "a").identity
        assert AutoStore(token_dir="a").identity == AutoStore(token_dir=home / "a").identity

    def test_the_identity_outlives_the_choice(self) -> None:
        store = AutoStore()
        before = store.identity
        store.load("key")
        assert store.identity == before

    def test_a_relative_folder_is_of_where_the_store_was_made(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (home / "elsewhere").mkdir()
        monkeypatch.chdir(home)
        store = AutoStore(token_dir="a")
        monkeypatch.chdir(home / "elsewhere")
        assert store.chosen.identity == f"file:{home}/a"

    def test_it_is_found_out_once_for_all_threads_and_stores(self, use: Use) -> None:
        backend, start = Counting(), threading.Barrier(8)
        use(backend)
        stores = [AutoStore() for _ in range(4)] * 2
        chosen: list[Store] = []

        def first_use(store: AutoStore) -> None:
            start.wait()
            chosen.append(store.chosen)

        threads = [threading.Thread(target=first_use, args=(store,)) for store in stores]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert backend.written == 1
        assert len({id(store) for store in chosen}) == 4, "two threads with one AutoStore use one store"

    def test_it_is_what_OAuth_uses_and_TokenStoreFactory_makes(self) -> None:
        class OAuth(BaseOAuth):
            def open_sender(self) -> AbstractAsyncContextManager[Sender]:
                raise NotImplementedError

        store = OAuth("https://mcp.example/mcp")._store
        assert isinstance(store, AutoStore)
        assert store.identity == create(AUTO).identity == AutoStore().identity


def run(program: str) -> str:
    """What a new Python says, in the environment that the fixtures made."""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


class TestInANewProcess:
    def test_making_one_touches_and_imports_nothing(self) -> None:
        program = """
import sys
from mcp_oauth.store.choose import AutoStore
seen = []
sys.addaudithook(lambda event, arguments: seen.append(event))
before = set(sys.modules)
AutoStore(token_dir="a").identity, AutoStore().identity
print(seen, set(sys.modules) - before)
"""
        assert run(program) == "[] set()"

    def test_without_the_extra_no_keyring_is_imported(self) -> None:
        program = """
import sys
sys.modules["keyring"] = None
from mcp_oauth.store.choose import AutoStore
store = AutoStore()
store.save("key", b"value", revision="1", expected=None)
print(type(store.chosen).__name__, [name for name in sys.modules if "keyring" in name])
"""
        assert run(program) == "EncryptedFileStore ['keyring']"

    def test_a_fork_while_another_thread_finds_out(self) -> None:
        program = """
import os
from mcp_oauth.store import choose
with choose._deciding:
    child = os.fork()
    if child == 0:
        print(type(choose.AutoStore().chosen).__name__, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""
        assert run(program) == "EncryptedFileStore"

    def test_a_child_does_as_its_parent(self) -> None:
        program = """
import os
from mcp_oauth.store import choose
choose._obstacle = lambda: print("found out", flush=True)
print(type(choose.AutoStore().chosen).__name__, flush=True)
child = os.fork()
if child == 0:
    print(type(choose.AutoStore().chosen).__name__, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""
        assert run(program).split("\n") == ["found out", "KeyringStore", "KeyringStore"]
