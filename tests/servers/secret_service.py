"""A real gnome-keyring in a D-Bus session of its own, unlocked, with no screen on which to ask anybody anything."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.servers.process import START_LIMIT, missing, stop

if TYPE_CHECKING:
    import secretstorage

PASSWORD = b"correct horse"
BUS = """<busconfig><type>session</type><listen>{address}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy></busconfig>
"""
"""Nothing but what is started here is on this bus: it has no folder of services to start by itself."""


@dataclass(frozen=True)
class SecretService:
    """How a process reaches it: these environment variables."""

    environment: dict[str, str]
    pid: int

    @contextmanager
    def hanging(self) -> Generator[None]:
        """It takes calls and answers none."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def lock(self) -> None:
        """Lock the collection, as a screen saver does."""
        with self._collection() as collection:
            collection.lock()

    def unlock(self) -> None:
        """Unlock the collection with the password, as a person does at a prompt."""
        from secretstorage.defines import SS_PATH
        from secretstorage.util import DBusAddressWrapper, format_secret, open_session

        private = "org.gnome.keyring.InternalUnsupportedGuiltRiddenInterface"
        with self._collection() as collection:
            bus = collection.connection
            secret = format_secret(open_session(bus), PASSWORD, "text/plain")
            arguments = "o(oayays)", collection.collection_path, secret
            DBusAddressWrapper(SS_PATH, private, bus).call("UnlockWithMasterPassword", *arguments)

    def items(self, service: str) -> dict[str, bytes]:
        """What really lies there: the secrets of a service by their user names."""
        with self._collection() as collection:
            found = collection.search_items({"service": service})
            return {item.get_attributes()["username"]: item.get_secret() for item in found}

    def put(self, service: str, username: str, secret: bytes) -> None:
        """Let an item lie there that the library `keyring` finds, but would never write."""
        attributes = {"service": service, "username": username, "application": "Python keyring library"}
        with self._collection() as collection:
            collection.create_item("item", attributes, secret, replace=True)

    def ready(self) -> bool:
        """Whether it is there by now."""
        import secretstorage

        with contextlib.suppress(OSError), self._bus() as bus:
            return secretstorage.check_service_availability(bus)
        return False

    @contextmanager
    def _collection(self) -> Generator[secretstorage.Collection]:
        import secretstorage

        with self._bus() as bus:
            yield secretstorage.Collection(bus)

    def _bus(self) -> contextlib.closing[Any]:
        blocking = importlib.import_module("jeepney.io.blocking")  # it has no types
        return closing(blocking.open_dbus_connection(self.environment["DBUS_SESSION_BUS_ADDRESS"]))


@contextmanager
def serving() -> Generator[SecretService]:
    """Run one until the block ends."""
    bus, daemon = _program("dbus-daemon"), _program("gnome-keyring-daemon")
    if importlib.util.find_spec("secretstorage") is None:
        missing("SecretStorage", "pip install SecretStorage")
    with contextlib.ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory()))
        environment = _environment(folder)
        config = folder / "bus.conf"
        config.write_text(BUS.format(address=environment["DBUS_SESSION_BUS_ADDRESS"]))
        log = undo.enter_context((folder / "log").open("w"))
        surroundings = {"PATH": os.environ["PATH"], "HOME": str(folder), **environment}

        def start(command: Sequence[str]) -> subprocess.Popen[bytes]:
            child = subprocess.Popen(command, env=surroundings, stdin=subprocess.PIPE, stdout=log, stderr=log)
            undo.callback(stop, child)
            return child

        start([bus, f"--config-file={config}", "--nofork"])
        _wait((folder / "bus").exists, folder)
        keyring = start([daemon, "--foreground", "--unlock", "--components=secrets"])
        assert keyring.stdin is not None
        keyring.stdin.write(PASSWORD)
        keyring.stdin.close()
        service = SecretService(environment, keyring.pid)
        _wait(service.ready, folder)
        yield service


def _program(name: str) -> str:
    return shutil.which(name) or missing(name, "sudo apt-get install gnome-keyring dbus")


def _environment(folder: Path) -> dict[str, str]:
    names = {"CONFIG_HOME": "config", "DATA_HOME": "data", "STATE_HOME": "state", "RUNTIME_DIR": "run"}
    for name in names.values():
        (folder / name).mkdir(0o700)
    private = {f"XDG_{variable}": str(folder / name) for variable, name in names.items()}
    return {"DBUS_SESSION_BUS_ADDRESS": f"unix:path={folder / 'bus'}", **private}


def _wait(ready: Callable[[], bool], folder: Path) -> None:
    end = time.monotonic() + START_LIMIT
    while not ready():
        if time.monotonic() > end:
            raise RuntimeError(f"the keyring did not start:\n{(folder / 'log').read_text()}")
        time.sleep(0.005)
