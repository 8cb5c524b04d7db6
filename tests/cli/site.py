"""A server to log in to, as friendly or as hostile as a test wants, and the command run against it in this process."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from tests.io.servers import PATIENCE, Reply, Seen, World, document

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "mcp_oauth.cli")

HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202egnp.exe\u2066 [red]bold[/red] :bomb:\nnext\tline\x00"
"""Escape sequences of seven and eight bits, bidirectional overrides, rich's markup, line ends."""
DANGEROUS = [*map(chr, range(0x09)), *map(chr, range(0x0B, 0x20)), *map(chr, range(0x7F, 0xA0)), "\u202e", "\u2066"]
"""What no output may hold (tabs and line ends are the command's own)."""


class Site(World):
    """The world of `tests/io`, whose MCP server answers, and whose person agrees."""

    name: str = "demo"
    tools: Sequence[Mapping[str, Any]] = ({"name": "echo", "description": "Say it again."}, {"name": "whoami"})
    path: str = "/mcp"
    revoked: Reply = Reply(200)
    reply: Reply | None = None
    """What its MCP server says to everything."""

    def __init__(self, origin: str) -> None:
        super().__init__(origin)
        self._numbers = count(1000)  # of tokens so short as the world's not even an end is shown

    @property
    def url(self) -> str:
        return f"{self.origin}{self.path}"

    def __call__(self, seen: Seen) -> Reply:
        if seen.path == "/authorize":
            return Reply(302, (("location", self.login(seen.url)),))
        if seen.path == "/revoke":
            return self.revoked
        return super().__call__(seen)

    def mcp(self, seen: Seen) -> Reply:
        refused = super().mcp(seen)
        return refused if refused.status != 200 else self.reply or self._answer(json.loads(seen.body))

    def _answer(self, message: Mapping[str, Any]) -> Reply:
        if message["method"] == "server/discover":
            meta = {"io.modelcontextprotocol/serverInfo": {"name": self.name, "version": "1.0"}}
            return result(message, {"supportedVersions": ["2026-07-28"], "capabilities": {}, "_meta": meta})
        return result(message, {"tools": list(self.tools)})


def result(message: Mapping[str, Any], value: Mapping[str, Any]) -> Reply:
    return document({"jsonrpc": "2.0", "id": message["id"], "result": value})


class Ran(NamedTuple):
    """What a run of the command left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def all(self) -> str:
        return self.out + self.err


Run = Callable[..., Ran]


def in_a_pipe(*arguments: str, feed: str = "", **settings: str) -> Ran:
    """The command in a process of its own, its output in pipes."""
    done = subprocess.run(
        [*COMMAND, *arguments],
        input=feed, capture_output=True, text=True, encoding="utf-8", cwd=ROOT, timeout=60, env=environment(settings),
    )  # fmt: skip
    return Ran(done.returncode, done.stdout, done.stderr)


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """That of this process, without what would change the command's ways."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MCP_OAUTH_", "COV_CORE"))}
    return {**plain, "TERM": "xterm-256color", **settings}


class Terminal:
    """The command at a terminal of its own: what it shows, and what a person types."""

    def __init__(self, *arguments: str, **settings: str) -> None:
        self._ours, theirs = pty.openpty()
        self.shown = ""
        self._seen = 0
        self._child = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, start_new_session=True,
            env=environment({"COLUMNS": "100", **settings}),
        )  # fmt: skip
        os.close(theirs)

    def until(self, text: str) -> str:
        """Read until this is shown after what was waited for before; returned is all that was ever shown."""
        end = time.monotonic() + PATIENCE
        while (found := self.shown.find(text, self._seen)) < 0:
            assert time.monotonic() < end, f"{text!r} was never shown, but {self.shown!r}"
            assert self._read(), f"it ended without {text!r}: {self.shown!r}"
        self._seen = found + len(text)
        return self.shown

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def press_ctrl_c(self) -> None:
        """The terminal's own way: to all processes in the foreground."""
        os.killpg(self._child.pid, 2)

    def end(self) -> Ran:
        """Wait for its end."""
        while self._read():
            pass
        code = self._child.wait(PATIENCE)
        os.close(self._ours)
        return Ran(code, self.shown, "")

    def _read(self) -> bool:
        ready, _, _ = select.select([self._ours], [], [], PATIENCE)
        try:
            data = os.read(self._ours, 65536) if ready else b""
        except OSError:  # Linux's end of file
            return False
        self.shown += data.decode("utf-8", "replace")
        return bool(data)
