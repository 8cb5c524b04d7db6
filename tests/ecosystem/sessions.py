"""The tests' side of `program.py`: sessions of the official SDK in a process and an environment of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.ecosystem.environments import python_of
from tests.servers.mcp_server import McpServer
from tests.servers.process import ROOT, stop

WAYS = ("sdk2-asyncio-auto", "sdk2-trio-auto", "sdk2-asyncio-legacy", "sdk2-trio-legacy", "sdk1-asyncio-legacy")
"""SDK, event loop, wire: `auto` comes to that of 2026-07-28, which has no sessions; `legacy`, the older one, has.

SDK 1.30 on trio is left out: it hangs when ten tools are called at once, with a constant token just as well.
"""


def interpreter(sdk: str) -> Path:
    """That of the environment where this SDK is."""
    return python_of("mcp1") if sdk == "sdk1" else Path(sys.executable)


class Session:
    """A session under way. The login, and what the person was asked, outlive it."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child
        self.asked = 0
        """Times that the person was asked."""

    def connect(self) -> None:
        """Begin a session."""
        self._say("connect")
        self.answers()

    def disconnect(self) -> None:
        """End it."""
        self._say("disconnect")
        self.answers()

    def call(self, tool: str = "whoami", *, times: int = 1, hear: int = 0, **arguments: object) -> list[str]:
        """The answers of a tool that is called so many times at once, after so many events were heard."""
        self.begin(tool, times=times, hear=hear, **arguments)
        return self.answers()

    def begin(self, tool: str, *, times: int, hear: int = 0, **arguments: object) -> None:
        """Let it be called, and go on."""
        self._say(json.dumps({"tool": tool, "times": times, "hear": hear, "arguments": arguments}))

    def answers(self) -> list[str]:
        """What came of it."""
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        assert line, "the program ended"
        said: dict[str, Any] = json.loads(line)
        self.asked = said["asked"]
        answers: list[str] = said["answers"]
        return answers

    def _say(self, line: str) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(f"{line}\n")


@contextmanager
def session(way: str, server: McpServer, *scopes: str) -> Generator[Session]:
    """A session that has begun, with a login, and with its stream of events open; `scopes`: registered in advance."""
    sdk, loop, wire = way.split("-")
    command = [str(interpreter(sdk)), "-m", "tests.ecosystem.program", sdk, loop, wire, server.mcp, *scopes]
    child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    try:
        here = Session(child)
        here.answers()
        here.connect()
        if wire == "legacy":  # that of the newer wire is open by now
            server.until("open", 1)
        yield here
    finally:
        stop(child)
