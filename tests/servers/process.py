"""Starting a real server as a child process on loopback, and ending it by its own process id."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

import pytest

ROOT = Path(__file__).parents[2]
READY = "READY "
START_LIMIT = 30.0
STOP_LIMIT = 5.0


def missing(what: str, cure: str) -> NoReturn:
    """A part that an integration test needs is not here: CI fails, a user's machine skips and says how to get it."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing, and CI skips nothing: {cure}", pytrace=False)
    pytest.skip(f"{what} is missing: {cure}")


@contextmanager
def running(command: Sequence[str], settings: Mapping[str, str]) -> Generator[dict[str, Any]]:
    """Run a server until the block ends; yields the JSON object of the READY line that it prints once it listens."""
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **settings}, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            yield _ready(child, errors)
        finally:
            stop(child)


def _ready(child: subprocess.Popen[str], errors: IO[str]) -> dict[str, Any]:
    """Wait for the READY line. A child that is too slow is killed, which ends its output and so this wait."""
    assert child.stdout is not None
    limit = threading.Timer(START_LIMIT, child.kill)
    limit.start()
    try:
        for line in child.stdout:
            if line.startswith(READY):
                ready: dict[str, Any] = json.loads(line.removeprefix(READY))
                return ready
    finally:
        limit.cancel()
    errors.seek(0)
    raise RuntimeError(f"server did not start: {child.args!r}\n{errors.read()}")


def stop(child: subprocess.Popen[Any]) -> None:
    """End a process that we started, and let go of its pipes."""
    if child.stdin is not None:
        child.stdin.close()
    child.terminate()
    try:
        child.wait(STOP_LIMIT)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    finally:
        if child.stdout is not None:
            child.stdout.close()
