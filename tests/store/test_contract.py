"""What every store keeps to (DESIGN section 5, RULES 4), on each of them."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from mcp_oauth.sansio.grant import GrantRecord, decode, encode, grant_key
from mcp_oauth.store.base import Conflict, DamagedError, Held, Lease, ProcessLease, Saved, Store, Stored
from mcp_oauth.store.lease import LEASE_SECONDS, elapsed
from mcp_oauth.store.memory import MemoryStore
from tests.store.files import take
from tests.store.peer import Peer, Recipe, text
from tests.store.raw import raw

Again = Callable[[], Store]
Start = Callable[..., Peer]


def put(store: Store, key: str, value: bytes, revision: str = "r1", expected: str | None = None) -> None:
    assert isinstance(store.save(key, value, revision=revision, expected=expected), Saved)


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
    put(again(), "key", value)
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
    assert isinstance(answer, Saved) if saved else answer == Conflict(before)
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


SERVER = "https://mcp.example.com/mcp"


def test_rules_4_1_two_accounts_at_one_server_are_two_keys(again: Again) -> None:
    work, home = grant_key(SERVER, "work"), grant_key(SERVER, "home")
    put(again(), work, b"of work")
    put(again(), home, b"of home")
    assert (again().load(work), again().load(home)) == (Stored(b"of work", "r1"), Stored(b"of home", "r1"))
    with take(again(), work), take(again(), home):
        put(again(), work, b"renewed", "r2", "r1")
    assert again().load(home) == Stored(b"of home", "r1")
    assert sorted(again().keys()) == sorted((work, home))


def test_rules_4_2_a_deletion_is_a_tombstone_saved_like_anything_else(again: Again) -> None:
    key = grant_key(SERVER, "")
    grant, tombstone, renewed, login = (
        GrantRecord(revision, SERVER, "", logged_out=gone)
        for revision, gone in [("r1", False), ("r2", True), ("r3", False), ("r4", False)]
    )
    put(again(), key, encode(grant), "r1")
    put(again(), key, encode(tombstone), "r2", "r1")
    late = again().save(key, encode(renewed), revision="r3", expected="r1")
    assert late == Conflict(Stored(encode(tombstone), "r2")), "a renewal that was under way brings nothing back"
    assert again().keys() == (key,)
    stored = again().load(key)
    assert stored is not None
    assert decode(stored.value) == tombstone
    put(again(), key, encode(login), "r4", "r2")


def test_stores_of_one_identity_share_and_others_do_not(again: Again) -> None:
    put(again(), "key", b"value")
    assert again().identity == again().identity
    assert again().load("key") == Stored(b"value", "r1")
    other = MemoryStore("other")
    assert other.identity != again().identity
    assert other.load("key") is None


# What others did to it.


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda store: store.load("one"), id="load"),
        pytest.param(lambda store: store.save("one", b"next", revision="r2", expected="r1"), id="save"),
        pytest.param(lambda store: store.keys(), id="keys"),
    ],
)
def test_rules_4_2_records_that_changed_places_are_told(recipe: Recipe, call: Callable[[Store], object]) -> None:
    store = recipe.store()
    put(store, "one", b"one")
    put(store, "two", b"two")
    raw(recipe).swap("one", "two")
    with pytest.raises(DamagedError, match="another key's record, moved here"):
        call(store)
    for key in ("one", "two"):
        with contextlib.suppress(DamagedError):
            assert store.load(key) is None
        put(store, key, b"again")
        assert store.load(key) == Stored(b"again", "r1")


def test_rules_4_2_a_record_put_back_brings_its_own_revision_with_it(recipe: Recipe) -> None:
    store = recipe.store()
    put(store, "key", b"first", "r1")
    backup = raw(recipe).read("key")
    put(store, "key", b"second", "r2", "r1")
    raw(recipe).write("key", backup)
    assert store.save("key", b"third", revision="r3", expected="r2") == Conflict(Stored(b"first", "r1"))
    assert store.load("key") == Stored(b"first", "r1")


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


def test_a_lock_that_is_extended_lasts_from_then_on(again: Again) -> None:
    with take(again(), "key") as lease:
        until, began = lease.valid_until, elapsed()
        assert lease.extend()
        assert isinstance(again().try_lock("key"), Held)
        if until is None:
            assert lease.valid_until is None
        else:
            assert lease.valid_until is not None
            assert lease.valid_until >= max(until, began + LEASE_SECONDS - 1)
            assert until <= began + LEASE_SECONDS


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


ROUNDS = 4


def test_of_20_racing_threads_one_wins_each_round(again: Again) -> None:
    everybody = threading.Barrier(20, timeout=60)

    def race(me: int) -> list[bool]:
        store, won, expected = again(), list[bool](), None
        for turn in range(ROUNDS):
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
    assert [sum(won) for won in rounds] == [1] * ROUNDS


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
    for turn in range(ROUNDS):
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
    with take(store, "key") as lease:
        assert lease.left_by == "", "it was released"
        assert peer.ask("lock", key="key").startswith(f"pid {os.getpid()} on ")


@pytest.mark.slow
def test_fn2_the_lock_of_a_killed_process_is_free(recipe: Recipe, start: Start) -> None:
    """At once if it is the system's, which says whose it was; when it lapses if it is a lease.

    No forked child of the dead keeps it.
    """
    store, childless, parent = recipe.store(), start(recipe), start(recipe)
    with take(store, "of the living") as living:
        lapses = living.valid_until
        assert childless.ask("lock", key="of the dead") is True
        assert parent.ask("lock", key="of the dead parent") is True
        parent.tell("idle_child")
        child = parent.hear("child")
        try:
            keys = {"of the dead": childless, "of the dead parent": parent}
            assert all(isinstance(store.try_lock(key), Held) for key in keys)
            for peer in (childless, parent):
                os.kill(peer.pid, signal.SIGKILL)
                peer.process.wait()
            for key, peer in keys.items():
                with freed(store, key, living) as lease:
                    assert lease.left_by.startswith(f"pid {peer.pid} on ") if lease.exclusive else lease.left_by == ""
                    put(store, key, b"value")
            assert os.getpgid(child), "still there"
            assert lapses is None or elapsed() >= lapses, "a lease is not taken from its holder before it lapses"
            assert isinstance(recipe.store().try_lock("of the living"), Held)
        finally:
            os.kill(child, signal.SIGKILL)


def freed(store: Store, key: str, living: Lease) -> Lease:
    """The lock of a dead process. Another one is kept meanwhile."""
    end = elapsed() + (0 if living.exclusive else LEASE_SECONDS + 5)
    while isinstance(answer := store.try_lock(key), Held):
        assert elapsed() < end, f"still held: {answer.holder}"
        assert living.extend()
        time.sleep(0.1)
    return answer


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


def test_a_forked_child_uses_the_store_beside_its_parent(recipe: Recipe, start: Start) -> None:
    peer = start(recipe)
    assert peer.ask("lock", key="key") is True
    for turn in range(0, 6, 2):
        last = f"r{turn}" if turn else None
        child = {"key": "key", "value": text(b"child"), "revision": f"r{turn + 1}", "expected": last}
        assert peer.in_child("save", **child) is True
        assert peer.ask("load", key="key") == [text(b"child"), f"r{turn + 1}"]
        assert peer.save("key", b"parent", revision=f"r{turn + 2}", expected=f"r{turn + 1}") is True
        assert peer.in_child("load", key="key") == [text(b"parent"), f"r{turn + 2}"]
    assert peer.in_child("lock", key="key").startswith(f"pid {peer.pid} on ")


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
