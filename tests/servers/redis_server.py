"""A real Redis on loopback, in a folder of its own unless it is to find what another left."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from tests.servers.process import START_LIMIT, missing, stop

SAFE = {"appendonly": "yes", "appendfsync": "always", "save": ""}
"""What a Redis needs so that it loses nothing."""


@dataclass(frozen=True)
class Redis:
    """Where it is, and its process."""

    url: str
    port: int
    pid: int

    def ask(self, *command: str | bytes | int) -> Any:
        """What it answers to a command, as bytes."""
        with redis.Redis(port=self.port) as client:
            return client.execute_command(*command)

    def kill(self) -> None:
        """End it as a crash does."""
        os.kill(self.pid, signal.SIGKILL)


@contextmanager
def serving(
    folder: Path | None = None, port: int | None = None, settings: Mapping[str, str] | None = None
) -> Generator[Redis]:
    """Run one; the settings are added to those that make it safe. The same folder and port: the same one again."""
    with contextlib.ExitStack() as undo:
        if folder is None:
            folder = Path(undo.enter_context(tempfile.TemporaryDirectory()))
        port = port or free_port()
        child = _start(folder, port, {**SAFE, **(settings or {})})
        undo.callback(stop, child)
        _wait(child, folder, port)
        yield Redis(f"redis://127.0.0.1:{port}/0", port, child.pid)


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number: int = listener.getsockname()[1]
    return number


def _start(folder: Path, port: int, settings: Mapping[str, str]) -> subprocess.Popen[bytes]:
    program = shutil.which("redis-server")
    if program is None:
        missing("Redis", "sudo apt-get install redis-server")
    command = [program, "--dir", str(folder), "--bind", "127.0.0.1", "--port", str(port), "--hz", "100"]  # ends at once
    for name, value in settings.items():
        command += [f"--{name}", *value.split(" ")]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def _wait(child: subprocess.Popen[bytes], folder: Path, port: int) -> None:
    """Until it listens, and has read what it kept."""
    end = time.monotonic() + START_LIMIT
    while time.monotonic() < end and child.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            if not connection.recv(100).startswith(b"-LOADING"):
                return
        time.sleep(0.005)
    raise RuntimeError(f"Redis did not start: {(folder / 'log').read_text()}")
