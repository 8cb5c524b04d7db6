"""What asks for the password of a store: how often, by whom, and with what in its hands."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from mcp_oauth.store.base import Saved, Store, Stored, WrongPasswordError
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from mcp_oauth.store.redis import RedisStore
from tests.servers.redis_server import Redis

Make = Callable[[Any], Store]
"""A store with this password; all of them are one."""

THREADS = 5


@pytest.fixture
def file(folder: Path) -> Make:
    return lambda password: EncryptedFileStore(folder, password=password)


@pytest.fixture
def redis(redis_at: Redis) -> Make:
    prefix = f"test:{uuid4().hex}"
    return lambda password: RedisStore(redis_at.url, password=password, prefix=prefix)


@pytest.fixture(params=["file", "redis"])
def make(request: pytest.FixtureRequest) -> Make:
    made: Make = request.getfixturevalue(request.param)
    return made


class Person:
    """Who is asked, and takes a moment to answer: until everybody asks who may."""

    def __init__(self, *answers: str) -> None:
        self.asked = 0
        self._answers = answers or ("right",)
        self._crowd = threading.Barrier(THREADS)

    def __call__(self) -> str:
        self.asked += 1
        with contextlib.suppress(threading.BrokenBarrierError):
            self._crowd.wait(0.3)
        return self._answers[min(self.asked, len(self._answers)) - 1]


def put(store: Store) -> None:
    assert store.save("key", b"value", revision="r1", expected=None) == Saved(durable=True)


def loaded_at_once(store: Store) -> set[Stored | None]:
    everybody = threading.Barrier(THREADS, timeout=60)

    def load() -> Stored | None:
        everybody.wait()
        return store.load("key")

    with ThreadPoolExecutor(THREADS) as threads:
        return {one.result() for one in [threads.submit(load) for _ in range(THREADS)]}


def test_of_threads_that_open_a_store_one_asks(make: Make) -> None:
    put(make("right"))
    person = Person()
    assert loaded_at_once(make(person)) == {Stored(b"value", "r1")}
    assert person.asked == 1


def test_of_threads_that_make_a_store_one_asks(make: Make) -> None:
    person = Person()
    assert loaded_at_once(make(person)) == {None}
    assert person.asked == 1


def test_of_threads_that_find_another_key_one_asks(folder: Path) -> None:
    other, person = EncryptedFileStore(folder, password="right"), Person()
    put(other)
    store = EncryptedFileStore(folder, password=person)
    store.load("key")
    other.rekey()
    assert loaded_at_once(store) == {Stored(b"value", "r1")}
    assert person.asked == 2


def test_a_wrong_answer_is_asked_for_again(make: Make) -> None:
    put(make("right"))
    store = make(Person("wrong", "right"))
    with pytest.raises(WrongPasswordError):
        store.load("key")
    assert store.load("key") == Stored(b"value", "r1")


@pytest.mark.parametrize("which", ["another", "the-same"])
def test_what_asks_may_use_stores_itself(make: Make, tmp_path: Path, which: str) -> None:
    """Another one, whose password is asked for too; or this one, through an object that knows the password."""
    put(make("right"))
    shelf = EncryptedFileStore(tmp_path / "shelf", password=Person()) if which == "another" else make("right")
    if which == "another":
        shelf.save("key", b"value", revision="r1", expected=None)

    def ask() -> str:
        return "right" if shelf.load("key") == Stored(b"value", "r1") else "wrong"

    assert loaded_at_once(make(ask)) == {Stored(b"value", "r1")}


def test_an_empty_password_is_no_password(make: Make) -> None:
    with pytest.raises(WrongPasswordError, match="cannot have an empty password, it would protect nothing; give") as no:
        make("").load("key")
    assert "folder," not in str(no.value)


FORKING = """
import os, signal, sys, threading
from mcp_oauth.store.encrypted_file import EncryptedFileStore

asked, answer = threading.Event(), threading.Event()

def ask():
    if not asked.is_set():
        asked.set()
        answer.wait()
    return "right"

store = EncryptedFileStore(sys.argv[1], password=ask)
thread = threading.Thread(target=store.load, args=["key"])
thread.start()
asked.wait()
if (child := os.fork()) == 0:
    signal.alarm(20)
    os._exit(store.load("key") is None)
status = os.waitpid(child, 0)[1]
answer.set()
thread.join()
sys.exit(status != 0)
"""


def test_a_child_forked_while_a_thread_asks_asks_itself(folder: Path) -> None:
    put(EncryptedFileStore(folder, password="right"))
    done = subprocess.run([sys.executable, "-c", FORKING, str(folder)], timeout=60, check=False)
    assert done.returncode == 0
