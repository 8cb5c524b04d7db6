"""What every store keeps to (DESIGN section 5, RULES 4), on each of them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from mcp_oauth.store.base import Conflict, Held, Lease, ProcessLease, Saved, Store, Stored
from mcp_oauth.store.memory import MemoryStore
from tests.store.peer import Peer, Recipe, text

Again = Callable[[], Store]
Start = Callable[..., Peer]


def put(store: Store, key: str, value: bytes, revision: str = "r1", expected: str | None = None) -> None:
    assert isinstance(store.save(key, value, revision=revision, expected=expected), Saved)


def take(store: Store, key: str) -> Lease:
    lease = store.try_lock(key)
    assert not isinstance(lease, Held), lease
    return lease


# Values.


def test_it_is_a_store(store: Store) -> None:
    assert isinstance(store, Store)


def test_nothing_is_there_at_first(store: Store) -> None:
    assert store.load("key") is None
    assert store.keys() == ()


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"value", id="text"),
        pytest.param(b"", id="empty"),
        pytest.param(bytes(range(256)), id="every-byte"),
        pytest.param(os.urandom(200_000), id="200-kB"),
    ],
)
def test_what_was_saved_is_loaded(again: Again, value: bytes) -> None:
    saved = again().save("key", value, revision="r1", expected=None)
    assert saved == Saved(durable=True)
    assert again().load("key") == Stored(value, "r1")


@pytest.mark.parametrize(
    ("there", "expected", "saved"),
    [
        pytest.param(None, None, True, id="nothing-expected-nothing-there"),
        pytest.param(None, "r1", False, id="something-expected-nothing-there"),
        pytest.param("r1", None, False, id="nothing-expected-something-there"),
        pytest.param("r1", "r1", True, id="what-is-expected-is-there"),
        pytest.param("r1", "r0", False, id="something-else-is-there"),
        pytest.param("r1", "", False, id="the-empty-revision-is-not-none"),
    ],
)
def test_save_is_judged_by_revision_alone(store: Store, there: str | None, expected: str | None, saved: bool) -> None:
    before = None if there is None else Stored(b"before", there)
    if there is not None:
        put(store, "key", b"before", there)
    answer = store.save("key", b"after", revision="r2", expected=expected)
    assert answer == (Saved(durable=True) if saved else Conflict(before))
    assert store.load("key") == (Stored(b"after", "r2") if saved else before)


@pytest.mark.parametrize("revision", ["", "r" * 500, "ré\0\n"], ids=["empty", "long", "any-text"])
def test_a_revision_is_any_text(again: Again, revision: str) -> None:
    put(again(), "key", b"value", revision)
    assert again().load("key") == Stored(b"value", revision)
    put(again(), "key", b"next", "r2", revision)


NAMES = {
    "path": "../../x",
    "slash": "a/b",
    "dot": "a.b",
    "backslash": "a\\b",
    "upper": "A.B",
    "empty": "",
    "space": " ",
    "long": "n" * 300,
    "longer-by-one": "n" * 301,
    "nul": "a\0b",
    "before-nul": "a",
    "emoji": "🔑",
    "composed": "\u00e9",
    "decomposed": "e\u0301",
    "device": "CON",
    "surrogate": "\udc80",
    "header": "store",
    "absolute": "/etc/passwd",
}


@pytest.mark.parametrize("name", [pytest.param(name, id=f"FN16-{label}") for label, name in NAMES.items()])
def test_any_name_is_a_key(again: Again, name: str) -> None:
    put(again(), name, b"value")
    assert again().load(name) == Stored(b"value", "r1")
    assert again().keys() == (name,)
    with take(again(), name):
        assert isinstance(again().try_lock(name), Held)


def test_names_alike_are_different_keys(again: Again) -> None:
    for name in NAMES.values():
        put(again(), name, name.encode("utf-8", "surrogatepass"))
    assert sorted(again().keys()) == sorted(NAMES.values())
    for name in NAMES.values():
        assert again().load(name) == Stored(name.encode("utf-8", "surrogatepass"), "r1")


def test_stores_of_one_identity_share_and_others_do_not(again: Again) -> None:
    put(again(), "key", b"value")
    assert again().identity == again().identity
    assert again().load("key") == Stored(b"value", "r1")
    other = MemoryStore("other")
    assert other.identity != again().identity
    assert other.load("key") is None


# The lock.


def test_a_lock_is_held_by_one(again: Again) -> None:
    with take(again(), "key"):
        held = again().try_lock("key")
        assert isinstance(held, Held)
        assert "since 20" in held.holder
    with take(again(), "key"):
        pass


def test_a_lock_is_not_reentrant(store: Store) -> None:
    with take(store, "key"):
        assert isinstance(store.try_lock("key"), Held)


def test_locks_of_different_keys_are_independent(store: Store) -> None:
    with take(store, "a/b"), take(store, "a.b"):
        pass


def test_a_failing_body_releases_the_lock(again: Again) -> None:
    lease = take(again(), "key")
    with pytest.raises(ZeroDivisionError), lease:
        raise ZeroDivisionError
    take(again(), "key").__exit__(None, None, None)


def test_an_early_release_is_not_repeated(again: Again) -> None:
    with take(again(), "key") as lease:
        lease.__exit__(None, None, None)
        successor = take(again(), "key")
    assert isinstance(again().try_lock("key"), Held), "leaving the context must not release what is another's by now"
    successor.__exit__(None, None, None)


def test_a_lapsing_lease_is_not_exclusive(store: Store) -> None:
    with take(store, "key") as lease:
        assert lease.exclusive == (lease.valid_until is None)


def test_rules_4_10_saving_needs_no_lock_and_is_not_stopped_by_one(again: Again) -> None:
    with take(again(), "key"):
        put(again(), "key", b"a login's claim", "r1")
    put(again(), "key", b"no lock at all", "r2", "r1")


def test_the_holder_saves_more_than_once(again: Again) -> None:
    store = again()
    with take(store, "key"):
        put(store, "key", b"x" * 100_000, "r1")
        put(store, "key", b"2", "r2", "r1")
        put(store, "key", b"3", "r3", "r2")
    assert again().load("key") == Stored(b"3", "r3")


# Many at once, in one process.


def test_of_20_racing_threads_one_wins_each_round(again: Again) -> None:
    everybody = threading.Barrier(20, timeout=60)

    def race(me: int) -> list[bool]:
        store, won, expected = again(), list[bool](), None
        for turn in range(10):
            everybody.wait()
            answer = store.save("key", b"%d" % me, revision=f"{turn}.{me}", expected=expected)
            won.append(isinstance(answer, Saved))
            everybody.wait()
            stored = store.load("key")
            assert stored is not None
            expected = stored.revision
            assert won[-1] == (stored == Stored(b"%d" % me, f"{turn}.{me}"))
        return won

    with ThreadPoolExecutor(20) as threads:
        rounds = zip(*threads.map(race, range(20)), strict=True)
    assert [sum(won) for won in rounds] == [1] * 10


def test_of_20_threads_one_gets_the_lock(again: Again) -> None:
    everybody = threading.Barrier(20, timeout=60)

    def race(_: int) -> bool:
        everybody.wait()
        lease = again().try_lock("key")
        everybody.wait()
        if isinstance(lease, Held):
            return False
        with lease:
            return True

    with ThreadPoolExecutor(20) as threads:
        again().load("key")
        assert sum(threads.map(race, range(20))) == 1


# Many processes.


def test_of_20_racing_processes_one_wins_each_round(recipe: Recipe, start: Start) -> None:
    peers = [start(recipe) for _ in range(20)]
    expected = None
    for turn in range(5):
        for me, peer in enumerate(peers):
            peer.tell("save", key="key", value=text(b"%d" % me), revision=f"{turn}.{me}", expected=expected)
        answers = [peer.hear() for peer in peers]
        (winner,) = (me for me, answer in enumerate(answers) if answer is True)
        expected = f"{turn}.{winner}"
        assert {answer for answer in answers if answer is not True} == {expected}
        assert recipe.store().load("key") == Stored(b"%d" % winner, expected)


def test_8_processes_starting_on_an_empty_store_agree(recipe: Recipe, start: Start) -> None:
    peers = [start(recipe) for _ in range(8)]
    for me, peer in enumerate(peers):
        peer.tell("save", key=f"key {me}", value=text(b"%d" % me), revision="r1", expected=None)
    assert [peer.hear() for peer in peers] == [True] * 8
    for peer in peers:
        assert peer.ask("keys") == [f"key {me}" for me in range(8)]
    assert [recipe.store().load(f"key {me}") for me in range(8)] == [Stored(b"%d" % me, "r1") for me in range(8)]


def test_rules_4_7_a_lock_is_held_across_processes_and_says_by_whom(recipe: Recipe, start: Start) -> None:
    peer, store = start(recipe), recipe.store()
    assert peer.ask("lock", key="key") is True
    held = store.try_lock("key")
    assert isinstance(held, Held)
    assert held.holder.startswith(f"pid {peer.pid} on ")
    peer.ask("unlock", key="key")
    with take(store, "key"):
        assert peer.ask("lock", key="key").startswith(f"pid {os.getpid()} on ")


def test_fn2_the_lock_of_a_killed_process_is_free(recipe: Recipe, start: Start) -> None:
    peer, store = start(recipe), recipe.store()
    assert peer.ask("lock", key="key") is True
    assert isinstance(store.try_lock("key"), Held)
    peer.kill()
    with take(store, "key"):
        put(store, "key", b"value")


def test_a_peer_saves_while_another_holds_the_lock(recipe: Recipe, start: Start) -> None:
    peer, store = start(recipe), recipe.store()
    with take(store, "key"):
        assert peer.save("key", b"a login's claim", revision="r1", expected=None) is True
        assert store.save("key", b"renewed", revision="r2", expected=None) == Conflict(Stored(b"a login's claim", "r1"))
        put(store, "key", b"renewed", "r2", "r1")
    assert peer.ask("load", key="key") == [text(b"renewed"), "r2"]


# Fork.


def test_a_forked_child_cannot_release_its_parents_lock(recipe: Recipe, start: Start) -> None:
    peer, store = start(recipe), recipe.store()
    assert peer.ask("lock", key="key") is True
    peer.in_child("unlock", key="key")
    held = store.try_lock("key")
    assert isinstance(held, Held)
    assert held.holder.startswith(f"pid {peer.pid} on ")
    peer.ask("unlock", key="key")
    take(store, "key").__exit__(None, None, None)


def test_a_forked_child_does_not_keep_its_dead_parents_lock(recipe: Recipe, start: Start) -> None:
    peer, store = start(recipe), recipe.store()
    assert peer.ask("lock", key="key") is True
    peer.tell("idle_child")
    child = peer.hear("child")
    try:
        os.kill(peer.pid, signal.SIGKILL)
        peer.process.wait()
        with take(store, "key"):
            assert os.getpgid(child), "still there"
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_forked_child_saves_under_its_parents_lock_without_its_room(recipe: Recipe, start: Start) -> None:
    peer = start(recipe)
    assert peer.ask("lock", key="key") is True
    assert peer.in_child("save", key="key", value=text(b"child"), revision="r1", expected=None) is True
    assert peer.save("key", b"parent", revision="r2", expected="r1") is True


def test_design_6_the_memory_store_is_empty_in_a_forked_child(start: Start) -> None:
    peer = start(Recipe("mcp_oauth.store.memory:MemoryStore", {}))
    assert peer.save("key", b"value", revision="r1", expected=None) is True
    assert peer.ask("lock", key="locked") is True
    assert peer.in_child("keys") == []
    assert peer.in_child("lock", key="locked") is True
    assert peer.ask("keys") == ["key"]


def test_a_lease_releases_once() -> None:
    released: list[bool] = []
    with ProcessLease(lambda: released.append(True)) as lease:
        lease.__exit__(None, None, None)
    assert released == [True]
