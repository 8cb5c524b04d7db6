"""A process of its own that uses a store, told line by line what to do and answering line by line.

The test's side is `Peer`. The other side is this file run as a script.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mcp_oauth.store import base
from mcp_oauth.store.base import Held, Lease, Saved, Store

Step = tuple[str, dict[str, Any]]
"""What a peer is told to do, and with what."""


ALONE = ("unshare", "--user", "--map-root-user", "--mount")
ON_A_DISK = (*ALONE, "sh", "-c", 'mount -t tmpfs -o size=$0 tmpfs "$1" && shift && exec "$@"')


class Recipe(NamedTuple):
    """How to make one and the same store in any process."""

    make: str
    """`module:class`."""
    arguments: dict[str, Any]

    def store(self) -> Store:
        module, _, name = self.make.partition(":")
        store = getattr(importlib.import_module(module), name)(**self.arguments)
        assert isinstance(store, Store)
        return store


class Peer:
    """Another process with a store of this recipe.

    `umask`, `uid` and `file_limit` (bytes) are set before it makes its store. `disk`: bytes of a disk of its own,
    which only it sees, where the store's folder is to be.
    """

    def __init__(self, recipe: Recipe, *, disk: int | None = None, **setup: int) -> None:
        command = [sys.executable, __file__, json.dumps([recipe, setup])]
        if disk is not None:
            command = [*ON_A_DISK, str(disk), str(Path(recipe.arguments["folder"]).parent), *command]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    @property
    def pid(self) -> int:
        return self.process.pid

    def tell(self, what: str, /, **arguments: Any) -> None:
        """Say what to do, and do not wait."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([what, arguments]) + "\n")
        self.process.stdin.flush()

    def line(self) -> tuple[str, Any]:
        """The next line: its kind and what it says. A store's error is raised here."""
        assert self.process.stdout is not None
        kind, said = json.loads(self.process.stdout.readline())
        if kind == "error":
            raise getattr(base, said[0])(said[1])
        return kind, said

    def hear(self, kind: str = "answer") -> Any:
        """What the next line says, which has to be of this kind."""
        said = self.line()
        assert said[0] == kind, said
        return said[1]

    def ask(self, what: str, /, **arguments: Any) -> Any:
        self.tell(what, **arguments)
        return self.hear()

    def save(self, key: str, value: bytes, *, revision: str, expected: str | None) -> Any:
        """True, or the revision that is there instead."""
        return self.ask("save", key=key, value=text(value), revision=revision, expected=expected)

    def in_child(self, what: str, /, **arguments: Any) -> Any:
        """Let a child forked from the peer answer, and wait for its end."""
        self.tell("in_child", what=what, arguments=arguments)
        answer = self.hear()
        assert self.hear() == "child ended"
        return answer

    def kill(self) -> None:
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        self.process.wait()


def text(value: bytes) -> str:
    return base64.b64encode(value).decode()


class _Commands:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.leases: dict[str, Lease] = {}

    def load(self, key: str) -> Any:
        stored = self.store.load(key)
        return None if stored is None else [text(stored.value), stored.revision]

    def save(self, key: str, value: str, revision: str, expected: str | None) -> Any:
        answer = self.store.save(key, base64.b64decode(value), revision=revision, expected=expected)
        if isinstance(answer, Saved):
            return True
        return answer.stored.revision if answer.stored else None

    def keys(self) -> Any:
        return sorted(self.store.keys())

    def lock(self, key: str) -> Any:
        """True, or the holder."""
        lease = self.store.try_lock(key)
        if isinstance(lease, Held):
            return lease.holder
        self.leases[key] = lease
        return True

    def unlock(self, key: str) -> None:
        self.leases.pop(key).__exit__(None, None, None)

    def rekey(self) -> None:
        from mcp_oauth.store.encrypted_file import EncryptedFileStore

        assert isinstance(self.store, EncryptedFileStore)
        self.store.rekey()

    def fill_the_disk(self, folder: str) -> None:
        with contextlib.suppress(OSError), (Path(folder) / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(512))

    def in_child(self, what: str, arguments: dict[str, Any]) -> Any:
        """Let a forked child answer in our place."""
        if (child := os.fork()) == 0:
            answer(self, what, arguments)
            os._exit(0)
        os.waitpid(child, 0)
        return "child ended"

    def idle_child(self) -> str:
        """Let a forked child say its process id ("child"), and then do nothing until it is killed."""
        if (child := os.fork()) == 0:
            say("child", os.getpid())
            while True:
                signal.pause()
        os.waitpid(child, 0)
        return "child ended"

    def die_at(self, call: int, steps: list[Step]) -> bool:
        """In a forked child, take these steps and die by SIGKILL before some call of the system. Says if it died."""
        if (child := os.fork()) == 0:
            with contextlib.suppress(BaseException):
                sys.setprofile(_dying_at(call))
                for what, arguments in steps:
                    getattr(self, what)(**arguments)
            os._exit(0)
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])

    def churn(self, what: str, arguments: dict[str, Any]) -> str:
        """Let a forked child do this over and over until it is killed.

        It says its process id ("child") and each answer ("done").
        """
        me = os.getpid()
        if (child := os.fork()) == 0:
            with contextlib.suppress(BaseException):
                say("child", os.getpid())
                while os.getppid() == me:
                    say("done", getattr(self, what)(**arguments))
            os._exit(1)
        os.waitpid(child, 0)
        return "child ended"

    def save_next(self, key: str, sizes: list[int], locked: bool) -> int:
        """Save, as value and as revision, the number after the one that is there."""
        with contextlib.ExitStack() as held:
            if locked:
                lease = self.store.try_lock(key)
                assert not isinstance(lease, Held)
                held.enter_context(lease)
            stored = self.store.load(key)
            last = stored.revision if stored else None
            number = int(last or 0) + 1
            value = counted(number, sizes[number % len(sizes)])
            assert isinstance(self.store.save(key, value, revision=str(number), expected=last), Saved)
        return number


def counted(number: int, size: int) -> bytes:
    """A value that shows by itself whether it is whole."""
    return b"%d," % number * size


def _dying_at(call: int) -> Callable[[object, str, object], None]:
    left = call

    def profile(frame: object, event: str, function: object) -> None:
        nonlocal left
        if event == "c_call" and _asks_the_system(function):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return profile


def _asks_the_system(function: object) -> bool:
    """Whether a function written in C may change what is on the disk or who has a lock."""
    module = getattr(function, "__module__", None) or type(getattr(function, "__self__", None)).__module__
    return module in {"posix", "fcntl", "io", "_io"}


def say(kind: str, answer: Any) -> None:
    sys.stdout.write(json.dumps([kind, answer]) + "\n")
    sys.stdout.flush()


def answer(commands: _Commands, what: str, arguments: dict[str, Any]) -> None:
    try:
        say("answer", getattr(commands, what)(**arguments))
    except base.StoreError as error:
        say("error", [type(error).__name__, str(error)])


def _set_up(recipe: Recipe, setup: dict[str, int]) -> None:
    if "umask" in setup:
        os.umask(setup["umask"])
    if "uid" in setup:
        with tempfile.TemporaryDirectory() as folder:  # import all that is imported late: it may be out of reach soon
            elsewhere = Recipe(recipe.make, {**recipe.arguments, "folder": str(Path(folder) / "warm")}).store()
            elsewhere.save("", b"", revision="1", expected=None)
            elsewhere.load("")
        os.setgroups([])
        os.setgid(setup["uid"])
        os.setuid(setup["uid"])
    if "file_limit" in setup:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (setup["file_limit"], setup["file_limit"]))


def main() -> None:
    made, setup = json.loads(sys.argv[1])
    recipe = Recipe(*made)
    _set_up(recipe, setup)
    commands = _Commands(recipe.store())
    for line in sys.stdin:
        what, arguments = json.loads(line)
        answer(commands, what, arguments)


if __name__ == "__main__":
    main()
