"""The keyring of a person's desktop, as the library `keyring` reaches it: which one it is, and calls that have an end.

A backend may fail in ways of its own, and may hang: its daemon is stuck, or shows a person a prompt that nobody sees.
So an operation (all calls of one `load` or `save`) runs on a thread of its own, and whoever waits for it gives it up
when a single call takes too long. It then ends before its next call. Until that call returns, operations on the same
keyring fail at once, so no more than one thread hangs, and that one does not keep the process from ending. What an
operation holds, a guard among it, it holds until it ends: a write that is late never meets another one.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shlex
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from copy import copy
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar, cast

from .base import DamagedError, NotWritableError, StoreError, StoreFullError, UnavailableError, UnsafePlaceError

if TYPE_CHECKING:
    from keyring.backend import KeyringBackend

T = TypeVar("T")

Kind = Literal["keychain", "windows", "secretservice", "kwallet", "other"]
"""macOS Keychain, Windows Credential Manager, the Secret Service (GNOME Keyring, KeePassXC), KDE's KWallet."""

_KINDS: dict[str, Kind] = {
    "keyring.backends.macOS": "keychain",
    "keyring.backends.Windows": "windows",
    "keyring.backends.SecretService": "secretservice",
    "keyring.backends.libsecret": "secretservice",
    "keyring.backends.kwallet": "kwallet",
}
_ROOMY = frozenset({"keychain", "secretservice", "kwallet"})
SMALL_ITEM = 1200
"""Characters. Windows holds 2,560 bytes of UTF-16 in an item; of a backend that we do not know we expect no more."""

ELSE = "or use the encrypted file store"
_TOKEN = re.compile(r"[\w+/=.~-]{40,}")


# Which one it is.


def kind_of(backend: KeyringBackend) -> Kind:
    """Which kind of keyring a backend of the library is."""
    return _kind(type(backend))


def _kind(backend: type[KeyringBackend]) -> Kind:
    known: list[Kind] = [_KINDS[base.__module__] for base in backend.__mro__ if base.__module__ in _KINDS]
    return known[0] if known else "other"


def name_of(backend: KeyringBackend) -> str:
    """The class of a backend, as PYTHON_KEYRING_BACKEND names it."""
    return f"{type(backend).__module__}.{type(backend).__qualname__}"


def find(wanted: KeyringBackend | Kind | None) -> KeyringBackend:
    """The wanted backend, the best one of the wanted kind, or by default the one that the library prefers.

    Raises `UnavailableError` where there is none, `UnsafePlaceError` for one that keeps secrets in plain files.
    """
    if importlib.util.find_spec("keyring") is None:
        cure = 'pip install "mcp-oauth-sansio[keyring]"'
        raise UnavailableError(f"the keyring store needs the package keyring: {cure}")
    try:
        return _settled(_found(wanted))
    except StoreError:
        raise
    except Exception as error:
        cure = "correct PYTHON_KEYRING_BACKEND or keyringrc.cfg"
        raise UnavailableError(f"no keyring can be used ({_reason(error)}): {cure}, {ELSE}") from None


def _found(wanted: KeyringBackend | Kind | None) -> KeyringBackend:
    from keyring import get_keyring
    from keyring.backends import chainer, fail, null

    if isinstance(wanted, str):
        return _best(wanted)
    chosen = wanted or get_keyring()
    if isinstance(chosen, null.Keyring):
        raise UnavailableError(f"the keyring is switched off ({name_of(chosen)}): switch it on, {ELSE}")
    if isinstance(chosen, (chainer.ChainerBackend, fail.Keyring)):
        # The one would spread secrets over several backends; the other may only mean that it looked too early.
        return _best(None)
    if _in_plain_sight(type(chosen)):
        what = f"{name_of(chosen)} keeps secrets in files that it protects badly or not at all"
        raise UnsafePlaceError(f"{what}: use the keyring of the system, {ELSE}")
    return chosen


def _best(kind: Kind | None) -> KeyringBackend:
    """The preferred one among those that work here and are keyrings of a system."""
    from keyring.backend import KeyringBackend, get_all_keyring
    from keyring.backends.chainer import ChainerBackend

    get_all_keyring()  # loads the plug-ins
    fitting = [
        (float(one.priority), one)
        for one in KeyringBackend.get_viable_backends()
        if one is not ChainerBackend and not _in_plain_sight(one) and kind in {None, _kind(one)}
    ]
    priority, best = max(fitting, default=(0.0, ChainerBackend), key=lambda rated: rated[0])
    if priority < 1:  # what the library does not recommend: `fail` and `null` among it
        what = "no keyring" if kind is None else f"no keyring of the kind {kind}"
        raise UnavailableError(f"{what} can be reached here: start one in this session, {ELSE}")
    return best()


def _in_plain_sight(backend: type[KeyringBackend]) -> bool:
    """Whether it is of `keyrings.alt`, or calls itself plaintext."""
    return backend.__module__.startswith("keyrings.alt.") or any("Plaintext" in one.__name__ for one in backend.__mro__)


def _settled(backend: KeyringBackend) -> KeyringBackend:
    if kind_of(backend) != "windows":
        return backend
    # By default Windows lets credentials roam to other machines, where our locks do not hold (RULES 4.17).
    local = copy(backend)
    setattr(local, "persist", "local machine")  # noqa: B010 - only this class has it
    return local


# Operations that have an end.


class Turn:
    """One operation, as its own thread and those who wait for it see it."""

    def __init__(self) -> None:
        self.given_up = False
        self._calling_since: float | None = None

    @contextlib.contextmanager
    def calling(self) -> Generator[None]:
        """Around each call of the backend. Raises `UnavailableError` if nobody waits for the operation any more."""
        if self.given_up:
            raise UnavailableError("given up")
        self._calling_since = time.monotonic()
        try:
            yield
        finally:
            self._calling_since = None

    def left(self, seconds: float) -> float:
        """How long the present call may yet take, of so many seconds."""
        since = self._calling_since
        return seconds if since is None else since + seconds - time.monotonic()


class Line:
    """Those who want something of one keyring: one at a time, in threads that may be given up."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._current: Turn | None = None

    def run(self, work: Callable[[Turn], T], seconds: float) -> T:
        """Do `work` on another thread. Raises `UnavailableError` if one of its calls, or of one ahead, takes longer."""
        turn, outcome = Turn(), Future[T]()
        with self._changed:
            while self._current is not None:
                self._wait(self._current, seconds)
            self._current = turn
        try:
            self._start(work, turn, outcome)
            with self._changed:
                while self._current is turn:
                    self._wait(turn, seconds)
            return outcome.result()
        finally:
            turn.given_up = True

    def _wait(self, turn: Turn, seconds: float) -> None:
        if (left := turn.left(seconds)) <= 0:
            why = "it hangs, or waits for a person to unlock it"
            raise UnavailableError(f"the keyring has not answered for {seconds:g} seconds: {why}; see to it, {ELSE}")
        self._changed.wait(left)

    def _start(self, work: Callable[[Turn], T], turn: Turn, outcome: Future[T]) -> None:
        def whole() -> None:
            try:
                outcome.set_result(work(turn))
            except BaseException as error:
                outcome.set_exception(error)
            finally:
                with self._changed:
                    self._current = None
                    self._changed.notify_all()

        try:
            threading.Thread(target=whole, name="mcp-oauth keyring", daemon=True).start()
        except RuntimeError:
            whole()  # the interpreter is ending, and starts no thread any more


_lines: dict[str, Line] = {}


def line(identity: str) -> Line:
    """The line at one keyring, one in a process. A forked child has no threads, so it begins new ones."""
    return _lines.setdefault(identity, Line())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_lines.clear)


# Calls.


class _Calls(Protocol):
    """What we use of a backend."""

    def get_password(self, service: str, username: str) -> str | None: ...
    def set_password(self, service: str, username: str, password: str) -> None: ...
    def delete_password(self, service: str, username: str) -> None: ...


class Items:
    """The items of one service: text under a name. Raises `StoreError` and nothing else, saying nothing of the text."""

    def __init__(self, backend: KeyringBackend, service: str, turn: Turn) -> None:
        self.kind: Kind = kind_of(backend)
        self.limit = None if self.kind in _ROOMY else SMALL_ITEM
        self._name = name_of(backend)
        self._backend = cast("_Calls", backend)  # whose metaclass hides the types
        self._service = service
        self._turn = turn

    def where(self, item: str) -> str:
        """An item, for a message."""
        return f"the item {item} of {self._service} in {self._name}"

    def removal(self, item: str) -> str:
        """How a person removes an item."""
        return f"python -m keyring -b {self._name} del {shlex.quote(self._service)} {item}"

    def get(self, item: str) -> str | None:
        """What is there. Raises `DamagedError` for what is no text."""
        return self._call(item, lambda: self._backend.get_password(self._service, item))

    def put(self, item: str, text: str) -> None:
        """Replace what is there, and read it back."""
        self._call(item, lambda: self._backend.set_password(self._service, item, text))
        there = self.get(item)
        if there is not None and there != text and text.startswith(there):
            cure = "make room in it, " + ELSE
            raise StoreFullError(f"{self.where(item)} keeps {len(there)} of {len(text)} characters: {cure}")
        if there != text:
            raise NotWritableError(f"{self.where(item)} does not keep what is written to it: use another one, {ELSE}")

    def drop(self, item: str) -> None:
        """Remove what is there, if anything is."""
        try:
            self._call(item, lambda: self._backend.delete_password(self._service, item))
        except NotWritableError:
            if self.get(item) is not None:
                raise

    def _call(self, item: str, call: Callable[[], T]) -> T:
        with self._turn.calling():
            try:
                return call()
            except Exception as error:
                explained = self._explained(error, item)
        raise explained  # out here, so that the other one ends: it or its causes may hold the text

    def _explained(self, error: Exception, item: str) -> StoreError:
        from keyring import errors

        where, why = self.where(item), _reason(error)
        if isinstance(error, errors.KeyringLocked):
            return UnavailableError(f"{self._name} is locked ({why}): unlock it, {ELSE}")
        if isinstance(error, UnicodeDecodeError):
            return DamagedError(f"{where} is no text; it was left as it is: {self.removal(item)}, and log in again")
        if isinstance(error, (errors.PasswordSetError, errors.PasswordDeleteError, NotImplementedError)):
            return NotWritableError(f"{where} cannot be changed ({why}): allow it, {ELSE}")
        return UnavailableError(f"{where} cannot be reached ({why}): see that the keyring runs, {ELSE}")


def _reason(error: Exception) -> str:
    said = " ".join(_TOKEN.sub("...", str(error)).split())[:200]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
