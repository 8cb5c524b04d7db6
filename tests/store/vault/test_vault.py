"""What the Vault store adds to the contract: versions, lost answers, deleted and foreign secrets, leases in records."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mcp_oauth.store import vault
from mcp_oauth.store.base import (
    Conflict,
    DamagedError,
    Held,
    NewerFormatError,
    StoreBusyError,
    Stored,
    UnavailableError,
)
from mcp_oauth.store.lease import LEASE_SECONDS, LapsingLease
from mcp_oauth.store.vault import CLOCKS_APART, VaultStore
from tests.servers import openbao
from tests.servers.openbao import OpenBao
from tests.store.vaults import (
    CALLS,
    WRITING,
    Clock,
    Make,
    any_call,
    content,
    overwrite,
    place,
    put,
    take,
)


@pytest.fixture
def own() -> Iterator[OpenBao]:
    """An OpenBao of the test's own, to be sealed, stopped and ended."""
    with openbao.serving() as server:
        yield server


# What lies in the Vault.


def test_a_secret_holds_key_revision_value_and_who_has_the_lock(bao: OpenBao, store: VaultStore, prefix: str) -> None:
    put(store, "https://mcp.example/ä\udc80", b"value", "r1")
    with take(store, "https://mcp.example/ä\udc80"):
        there = content(bao, place(prefix, "https://mcp.example/ä\udc80"))
    holder = there["lock"].pop("holder")
    assert holder["pid"] == os.getpid()
    assert there.pop("lock").keys() == {"id", "until"}
    assert there == {
        "format": 1,
        "key": "https://mcp.example/%C3%A4%ED%B2%80",
        "revision": "r1",
        "value": base64.b64encode(b"value").decode(),
    }


def test_rules_4_17_old_refresh_tokens_do_not_stay_readable(bao: OpenBao, store: VaultStore, prefix: str) -> None:
    put(store, "key", b"first")
    put(store, "key", b"second", "r2", "r1")
    assert bao.ask("GET", place(prefix, kind="metadata"))["data"]["max_versions"] == 1
    assert content(bao, place(prefix) + "?version=2") is not None
    assert content(bao, place(prefix) + "?version=1") is None


def test_rules_4_17_a_secret_that_was_restored_keeps_one_version_too(
    bao: OpenBao, store: VaultStore, make: Make, prefix: str
) -> None:
    put(store, "key", b"first")
    backup = content(bao, place(prefix))
    bao.ask("DELETE", place(prefix, kind="metadata"))
    overwrite(bao, place(prefix), backup)
    put(make(), "key", b"second", "r2", "r1")
    assert content(bao, place(prefix) + "?version=1") is None
    bao.ask("DELETE", place(prefix, kind="metadata"))
    put(store, "key", b"again", "r3")
    put(store, "key", b"and again", "r4", "r3")
    assert content(bao, place(prefix) + "?version=1") is None


def test_a_lock_alone_is_no_value(store: VaultStore) -> None:
    with take(store):
        assert store.keys() == ()
        assert store.load("key") is None
    assert store.keys() == ()
    put(store, "key", b"value")
    assert store.keys() == ("key",)


def test_what_is_no_record_below_the_prefix_is_no_key(bao: OpenBao, store: VaultStore, prefix: str) -> None:
    put(store, "key", b"value")
    overwrite(bao, f"secret/data/{prefix}/notes", {"by": "hand"})
    overwrite(bao, f"secret/data/{prefix}/{'0' * 64}/below", {"by": "hand"})
    assert store.keys() == ("key",)


@pytest.mark.parametrize(
    ("arguments", "identity"),
    [
        pytest.param({}, "vault:https://vault.example:8200/secret/mcp-oauth", id="defaults"),
        pytest.param(
            {"namespace": "/team/", "mount_point": "kv/a/", "path_prefix": "/b"},
            "vault:https://vault.example:8200/team/kv/a/b",
            id="all",
        ),
    ],
)
def test_the_identity_names_the_place_and_no_token(arguments: dict[str, Any], identity: str) -> None:
    store = VaultStore("HTTPS://Vault.example:8200/", token="hvs.secret", **arguments)
    assert store.identity == identity


def test_once_it_is_known_a_load_is_one_request_and_a_save_two(store: VaultStore, requests: list[str]) -> None:
    put(store, "key", b"value")
    requests.clear()
    store.load("key")
    put(store, "key", b"next", "r2", "r1")
    assert [request.split()[0] for request in requests] == ["get", "get", "post"]


# Check-and-set.


def between(monkeypatch: pytest.MonkeyPatch, store: VaultStore, act: Callable[[], object], *, lost: bool) -> None:
    """Act once between the reading and the writing of a call; or when it has written, and its answer is `lost`."""
    swap = store._swap

    def swap_once(*arguments: Any) -> bool:
        monkeypatch.setattr(store, "_swap", swap)
        if not lost:
            act()
        written = swap(*arguments)
        if lost:
            act()
            raise UnavailableError("cut off")
        return written

    monkeypatch.setattr(store, "_swap", swap_once)


def test_a_lock_taken_in_between_is_no_conflict(
    monkeypatch: pytest.MonkeyPatch, store: VaultStore, make: Make, prefix: str
) -> None:
    put(store, "key", b"value")
    between(monkeypatch, store, lambda: take(make()), lost=False)
    put(store, "key", b"next", "r2", "r1")
    assert isinstance(store.try_lock("key"), Held), "and it is still held"


def test_a_save_in_between_is_a_conflict(monkeypatch: pytest.MonkeyPatch, store: VaultStore, make: Make) -> None:
    put(store, "key", b"value")
    between(monkeypatch, store, lambda: put(make(), "key", b"theirs", "r2", "r1"), lost=False)
    assert store.save("key", b"mine", revision="r3", expected="r1") == Conflict(Stored(b"theirs", "r2"))


def test_a_save_in_between_does_not_disturb_a_lock(
    monkeypatch: pytest.MonkeyPatch, store: VaultStore, make: Make
) -> None:
    between(monkeypatch, store, lambda: put(make(), "key", b"theirs"), lost=False)
    with take(store):
        assert store.load("key") == Stored(b"theirs", "r1")


def test_rules_4_10_a_lost_answer_is_settled_by_reading(monkeypatch: pytest.MonkeyPatch, store: VaultStore) -> None:
    between(monkeypatch, store, lambda: None, lost=True)
    put(store, "key", b"value")
    between(monkeypatch, store, lambda: None, lost=True)
    with take(store) as lease:
        between(monkeypatch, store, lambda: None, lost=True)
        assert lease.extend()
    with take(store):
        pass


def test_rules_4_10_a_lost_answer_and_a_peer_that_went_on(
    monkeypatch: pytest.MonkeyPatch, store: VaultStore, make: Make
) -> None:
    between(monkeypatch, store, lambda: put(make(), "key", b"theirs", "r2", "r1"), lost=True)
    assert store.save("key", b"mine", revision="r1", expected=None) == Conflict(Stored(b"theirs", "r2"))


def test_an_own_revision_that_was_there_before_is_a_conflict(store: VaultStore) -> None:
    put(store, "key", b"value")
    assert store.save("key", b"value", revision="r1", expected=None) == Conflict(Stored(b"value", "r1"))


@pytest.mark.parametrize("call", [CALLS[name] for name in WRITING], ids=WRITING)
def test_what_keeps_changing_or_losing_answers_is_given_up(
    monkeypatch: pytest.MonkeyPatch, store: VaultStore, call: Callable[[VaultStore], object]
) -> None:
    put(store, "key", b"value")
    monkeypatch.setattr(store, "_swap", lambda *_: False)
    with pytest.raises(StoreBusyError, match="keeps changing"):
        call(store)

    def lose(*_: object) -> bool:
        raise UnavailableError("cut off")

    monkeypatch.setattr(store, "_swap", lose)
    with pytest.raises(UnavailableError, match="cut off"):
        call(store)


def test_20_threads_share_one_store(store: VaultStore) -> None:
    def use(me: int) -> bool:
        with take(store, f"key {me}"):
            put(store, f"key {me}", b"%d" % me)
        return store.load(f"key {me}") == Stored(b"%d" % me, "r1")

    with ThreadPoolExecutor(20) as threads:
        assert all(threads.map(use, range(20)))
    assert len(store.keys()) == 20


GONE: dict[str, Callable[[OpenBao, str], object]] = {
    "soft-deleted": lambda bao, prefix: bao.ask("DELETE", place(prefix)),
    "destroyed": lambda bao, prefix: bao.ask("PUT", place(prefix, kind="destroy"), {"versions": [*range(1, 10)]}),
    "metadata-deleted": lambda bao, prefix: bao.ask("DELETE", place(prefix, kind="metadata")),
    "emptied": lambda bao, prefix: overwrite(bao, place(prefix), {}),
}


@pytest.mark.parametrize("delete", GONE.values(), ids=GONE)
def test_what_somebody_deleted_is_gone_on_from(
    bao: OpenBao, store: VaultStore, prefix: str, delete: Callable[[OpenBao, str], object]
) -> None:
    put(store, "key", b"first")
    put(store, "key", b"second", "r2", "r1")
    delete(bao, prefix)
    assert store.load("key") is None
    assert store.keys() == ()
    assert store.save("key", b"late", revision="r3", expected="r2") == Conflict(None)
    with take(store) as lease:
        delete(bao, prefix)
        assert not lease.extend(), "and its lock with it"
        put(store, "key", b"again", "r4")
    assert store.load("key") == Stored(b"again", "r4")


# What is no record.

FOREIGN: dict[str, tuple[dict[str, Any], str]] = {
    "theirs": ({"password": "of another program", "n": 1.5}, "is no record of mcp_oauth"),
    "edited": ({"format": 1, "key": "key", "revision": "r1", "value": "by hand!"}, "is no record of mcp_oauth"),
    "bad-escape": ({"format": 1, "key": "%ff", "revision": "r1", "value": ""}, "is no record of mcp_oauth"),
    "bad-revision": ({"format": 1, "key": "key", "revision": "%ff", "value": ""}, "is no record of mcp_oauth"),
    "another-format": ({"format": "new", "key": "key"}, "is no record of mcp_oauth"),
    "swapped": ({"format": 1, "key": "other", "revision": "r1", "value": ""}, "is another key's record, moved here"),
}


@pytest.mark.parametrize(("foreign", "why"), FOREIGN.values(), ids=FOREIGN)
@any_call
def test_rules_4_2_what_is_no_record_is_copied_aside_and_told_once(
    bao: OpenBao,
    store: VaultStore,
    prefix: str,
    foreign: dict[str, Any],
    why: str,
    call: Callable[[VaultStore], object],
) -> None:
    for number in (1, 2):
        overwrite(bao, place(prefix), foreign)
        aside = place(prefix, suffix=f"-corrupt-{number}")
        with pytest.raises(DamagedError, match=why) as told:
            call(store)
        assert place(prefix) in str(told.value)
        assert f"it was moved to {aside.rpartition('/')[2]}: log in again" in str(told.value)
        assert content(bao, aside) == foreign
        assert store.load("key") is None
        assert store.keys() == ()
    put(store, "key", b"value")


def test_what_a_peer_put_right_meanwhile_is_left(
    monkeypatch: pytest.MonkeyPatch, bao: OpenBao, store: VaultStore, make: Make, prefix: str
) -> None:
    overwrite(bao, place(prefix), FOREIGN["theirs"][0])

    def put_right() -> None:
        with pytest.raises(DamagedError):
            make().load("key")
        put(make(), "key", b"value")

    between(monkeypatch, store, put_right, lost=False)
    with pytest.raises(DamagedError):
        store.load("key")
    assert store.load("key") == Stored(b"value", "r1")


@any_call
def test_a_newer_format_is_left_as_it_is(
    bao: OpenBao, store: VaultStore, prefix: str, call: Callable[[VaultStore], object]
) -> None:
    newer = {"format": 2, "of": "tomorrow"}
    overwrite(bao, place(prefix), newer)
    with pytest.raises(NewerFormatError, match="has format 2, this release reads up to 1") as told:
        call(store)
    assert place(prefix) in str(told.value)
    assert content(bao, place(prefix)) == newer


# The lease.


def test_rules_4_9_a_lease_counts_from_before_the_request(store: VaultStore, clock: Clock) -> None:
    before = clock()
    with take(store) as lease:
        assert lease.valid_until is not None
        assert before + LEASE_SECONDS <= lease.valid_until <= clock() + LEASE_SECONDS
        clock.ahead = 10
        assert lease.extend()
        assert clock() + LEASE_SECONDS - 1 < lease.valid_until <= clock() + LEASE_SECONDS


def test_rules_4_17_a_lease_lapses_when_it_was_seen_unchanged(store: VaultStore, make: Make, clock: Clock) -> None:
    left, waiting = take(store), make()
    clock.ahead = 1000
    assert isinstance(waiting.try_lock("key"), Held), "it saw this lock just now, for the first time"
    clock.ahead += LEASE_SECONDS - 1
    assert isinstance(waiting.try_lock("key"), Held)
    put(make(), "key", b"a login's claim")
    clock.ahead += 1
    with take(waiting):
        assert not left.extend(), "it is another's now"
        left.__exit__(None, None, None)
        assert isinstance(make().try_lock("key"), Held), "and a late release does not take it away"


def test_rules_4_17_an_extended_lease_is_another_to_those_who_wait(store: VaultStore, make: Make, clock: Clock) -> None:
    lease, waiting = take(store), make()
    for _ in range(3):
        assert isinstance(waiting.try_lock("key"), Held)
        clock.ahead += LEASE_SECONDS - 1
        assert lease.extend()
    assert isinstance(waiting.try_lock("key"), Held)
    clock.ahead += LEASE_SECONDS
    take(waiting)


def test_rules_4_17_a_lease_is_another_when_it_was_released_in_between(
    store: VaultStore, make: Make, clock: Clock
) -> None:
    waiting = make()
    for _ in range(3):
        with take(store):
            assert isinstance(waiting.try_lock("key"), Held)
            clock.ahead += LEASE_SECONDS - 1
    with take(waiting):
        pass
    with take(store):
        assert isinstance(waiting.try_lock("key"), Held)


@pytest.mark.parametrize(("over", "free"), [(0.0, True), (-0.1, False)], ids=["old", "not-yet"])
def test_rules_4_17_a_lease_in_an_old_version_keeps_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch, store: VaultStore, make: Make, over: float, free: bool
) -> None:
    take(store)
    monkeypatch.setattr(vault, "_age", lambda *_: LEASE_SECONDS + CLOCKS_APART + over)
    assert isinstance(make().try_lock("key"), LapsingLease) == free


@pytest.mark.parametrize(
    ("written", "now", "age"),
    [
        pytest.param("2026-11-23T21:28:39.567443926Z", "Mon, 23 Nov 2026 21:28:57 GMT", 18.0, id="seconds"),
        pytest.param("2026-11-23T23:59:59Z", "Tue, 24 Nov 2026 00:00:00 GMT", 1.0, id="no-fraction"),
        pytest.param("2026-11-23T21:28:39Z", "", 0.0, id="no-date"),
        pytest.param("2026-11-23T21:28:39Z", "Mon, 23 Nov 2026 21:28:57 -0000", 0.0, id="no-zone"),
        pytest.param("", "Mon, 23 Nov 2026 21:28:57 GMT", 0.0, id="no-created-time"),
    ],
)
def test_an_age_is_between_two_times_of_the_server(written: str, now: str, age: float) -> None:
    assert vault._age(written, now) == age


def test_the_server_tells_both_times(store: VaultStore, monkeypatch: pytest.MonkeyPatch) -> None:
    age, told = vault._age, list[tuple[str, str]]()

    def keep(written: str, now: str) -> float:
        told.append((written, now))
        return 0.0

    monkeypatch.setattr(vault, "_age", keep)
    put(store, "key", b"value")
    store.load("key")
    ((written, now),) = told
    assert age(written, "Fri, 31 Dec 2100 00:00:00 GMT") > 0
    assert age("2000-01-01T00:00:00Z", now) > 0


def test_a_released_lease_cannot_be_extended(store: VaultStore, make: Make) -> None:
    with take(store) as lease:
        pass
    assert not lease.extend()
    with take(make()):
        assert not lease.extend()


def test_a_forked_childs_copy_of_a_lease_is_nothing(monkeypatch: pytest.MonkeyPatch, store: VaultStore) -> None:
    lease = take(store)
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: 0)
        assert not lease.extend()
        lease.__exit__(None, None, None)
    assert isinstance(store.try_lock("key"), Held)


def test_a_release_that_does_not_arrive_is_no_error(own: OpenBao) -> None:
    store = VaultStore(own.url, token=own.token)
    with take(store) as lease:
        own.seal()
        with pytest.raises(UnavailableError, match="is sealed"):
            lease.extend()
    own.unseal()
    assert isinstance(store.try_lock("key"), Held)
