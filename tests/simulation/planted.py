"""Mistakes that clients make, planted into the library one at a time: the simulation must find each of them."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import patch

from msgspec.structs import replace

from mcp_oauth.io.flights import Flight, Flights
from mcp_oauth.io.ports import Ports
from mcp_oauth.sansio import attempt, exchange, keeping, login, renewal
from mcp_oauth.sansio.errors import Reason, failure
from mcp_oauth.sansio.grant import GrantRecord, current_grant
from mcp_oauth.sansio.keeping import Kept, Outcome
from mcp_oauth.sansio.steps import (
    Acquire,
    Acquired,
    Await,
    Done,
    Load,
    Loaded,
    Release,
    Released,
    Save,
    Saved,
    Send,
    Sleep,
)
from mcp_oauth.sansio.values import Seed, fingerprint
from mcp_oauth.store import redis as redis_store
from mcp_oauth.store import vault as vault_store
from mcp_oauth.store.base import Stored, StoreError
from tests.simulation.processes import Cancelled, Process, Watched


class Planted(NamedTuple):
    """A mistake."""

    plant: Callable[[], AbstractContextManager[Any]]
    """Makes it, for as long as the context lasts."""
    rule: str
    """The rule that it breaks."""
    kinds: tuple[str, ...]
    """What must be so for it to show (`world.run`); empty: anything."""


PLANTED: dict[str, Planted] = {}
"""By name."""


def plant(place: Any, name: str, rule: str, *kinds: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The function below takes the place of `name`, and is given the real one first."""

    def planted(mistake: Callable[..., Any]) -> Callable[..., Any]:
        real = getattr(place, name)

        def wrong(*args: Any, **kwargs: Any) -> Any:
            return mistake(real, *args, **kwargs)

        PLANTED[mistake.__name__.replace("_", " ")] = Planted(lambda: patch.object(place, name, wrong), rule, kinds)
        return mistake

    return planted


def plant_values(name: str, rule: str, kinds: tuple[str, ...], *values: tuple[ModuleType, str, Any]) -> None:
    """Constants with other values."""

    @contextmanager
    def planted() -> Generator[None, None, None]:
        with _all(values):
            yield

    PLANTED[name] = Planted(planted, rule, kinds)


@contextmanager
def _all(values: tuple[tuple[Any, str, Any], ...]) -> Generator[None, None, None]:
    if not values:
        yield
        return
    place, name, value = values[0]
    with patch.object(place, name, value), _all(values[1:]):
        yield


# --- Locks and reads --------------------------------------------------------------------------------------------------


@plant(Ports, "_perform_in_store", "presented-twice")
def no_read_under_the_lock(real: Any, ports: Any, effect: Any) -> Any:
    event = real(ports, effect)
    if isinstance(effect, Load) and isinstance(event, Loaded):
        ports.last_read = event.record
    if isinstance(effect, Acquire) and isinstance(event, Acquired):
        return replace(event, record=getattr(ports, "last_read", event.record))
    return event


@plant(renewal, "_acquired", "presented-twice")
def in_memory_token_after_the_store_changed(real: Any, task: Any, record: Any, valid_until: Any, now: Any) -> Any:
    """It renews what it has known from the beginning of its process."""
    step = real(task, record, valid_until, now)
    grant = current_grant(record)
    first = _first_seen.setdefault(task.key, grant)
    if isinstance(step, Await) and isinstance(step.effect, Send) and first is not None and grant is not None:
        stale = replace(grant, refresh_token=first.refresh_token)
        return replace(step, effect=Send(renewal._request(stale)))
    return step


_first_seen: dict[str, Any] = {}


@plant(Ports, "_perform_in_store", "lock-across-request")
def lock_held_across_the_callers_request(real: Any, ports: Any, effect: Any) -> Any:
    if not isinstance(effect, Release):
        return real(ports, effect)
    held, process = ports._held.pop_all(), ports._store._process
    scheduler = process.world.scheduler

    def later() -> None:
        scheduler.sleep(5.0)
        held.close()

    scheduler.spawn(f"{process} releases later", process, later)
    return Released()


@plant(renewal, "_release", "lock-while-sleeping", "network")
def lock_held_during_a_long_sleep(real: Any, then: Any, revoke: Any = None) -> Any:
    if isinstance(then, renewal.Rest):
        return Await(renewal.Resting(then.task), Sleep(then.seconds))
    return real(then, revoke)


@plant(Watched, "save", "needless-unsaved", "stop")
def save_demands_lock_ownership(real: Any, store: Any, key: Any, value: Any, **more: Any) -> Any:
    process: Process = store._process
    if any(lease.valid_until is not None and lease.valid_until < process.elapsed() for lease in process.locks):
        raise StoreError("the lock is lost")
    return real(store, key, value, **more)


plant_values(
    "send without a lease check",
    "presented-twice",
    ("stop",),
    (renewal, "DEADLINE", -1e9),
    (exchange, "DEADLINE", -1e9),
)
plant_values(
    "a lease of 60 s",
    "busy-after-death",
    ("kill",),
    (redis_store, "LEASE_SECONDS", 60.0),
    (redis_store, "_LEASE_MS", 60_000),
    (vault_store, "LEASE_SECONDS", 60.0),
)


@plant(renewal, "_intend", "presented-twice", "stop", "locks lost")
def no_intent(real: Any, task: Any, record: Any, grant: Any, valid_until: Any, now: Any) -> Any:
    return renewal._send(renewal.Sending(task, record, grant, now, lease=True))


@plant(renewal, "_intend", "needless-browser", "locks lost", "stop", "redis")
def a_browser_while_a_peers_intent_is_pending(real: Any, task: Any, record: Any, *rest: Any) -> Any:
    _, theirs = exchange.watch(task, record, rest[-1])
    if theirs is not None:
        return renewal._release(Outcome(failure=failure(Reason.RENEWAL_BUSY, "somebody else is at it")))
    return real(task, record, *rest)


# --- Saves and conflicts ----------------------------------------------------------------------------------------------


@plant(Ports, "_save", "served-unsaved")
def caller_served_before_the_save(real: Any, ports: Any, effect: Save) -> Any:
    grant = current_grant(effect.record) if isinstance(effect.record, GrantRecord) else None
    store = ports._store
    if grant is None or not grant.generation or not isinstance(store, Watched) or store._process.main_ended:
        return real(ports, effect)
    process = store._process
    scheduler = process.world.scheduler

    def later() -> None:
        scheduler.sleep(0.5)
        real(ports, effect)

    scheduler.spawn(f"{process} saves later", process, later)
    return Saved()


@plant(keeping, "settle", "presented-twice", "store")
def conflict_adopts_blindly(real: Any, keep: Any, record: Any, theirs: Any, now: Any) -> Any:
    return Done(Kept(keeping._instead(keep, theirs, now) if theirs is not None else Outcome()))


@plant(keeping, "settle", "logout-undone", "log out")
def conflict_overwrites_blindly(real: Any, keep: Any, record: Any, theirs: Any, now: Any) -> Any:
    return keeping._again(keep, record, theirs.revision if theirs else None)


@plant(keeping, "settle", "logout-undone", "log out")
def renewal_resurrects_a_logout(real: Any, keep: Any, record: Any, theirs: Any, now: Any) -> Any:
    if theirs is not None and theirs.logged_out:
        return keeping._again(keep, record, theirs.revision)
    return real(keep, record, theirs, now)


@plant(keeping, "advance", "lost", "store")
def lost_answer_to_save_read_as_a_conflict(real: Any, state: Any, event: Any, *, now: Any) -> Any:
    if isinstance(state, keeping.Settling) and isinstance(event, Loaded) and isinstance(event.record, GrantRecord):
        theirs = event.record
        if theirs.revision == state.record.revision:
            return Done(Kept(keeping._instead(state.keep, theirs, now), revoke=state.keep.grant))
    return real(state, event, now=now)


@plant(Ports, "_save", "logout-incomplete", "log out")
def unversioned_delete(real: Any, ports: Any, effect: Save) -> Any:
    if isinstance(effect.record, GrantRecord) and effect.record.logged_out:
        there: Stored | None = ports._store.load(effect.key)
        effect = replace(effect, expected=there.revision if there is not None else None)
    return real(ports, effect)


@plant(Seed, "text", "revision-recurs")
def recurring_revisions(real: Any, seed: Any, label: str, n: int = 0) -> Any:
    return f"{label}-{n}" if label in {"keep", "revision", "intended", "users"} else real(seed, label, n)


@plant(keeping, "begin", "refresh-token-dropped")
def refresh_token_not_carried_forward(real: Any, keep: Any, base: Any, expected: Any) -> Any:
    grant = keep.grant
    if keep.how == "renewed" and grant.parent == fingerprint(grant.refresh_token or ""):
        keep = replace(keep, grant=replace(grant, refresh_token=None))
    return real(keep, base, expected)


# --- Refusals ---------------------------------------------------------------------------------------------------------


@plant(renewal, "_refused", "lost", "stop", "refuse", "redis")
def invalid_grant_discards_without_a_read(real: Any, state: Any, refusal: Any, now: Any) -> Any:
    if refusal.oauth_error != "invalid_grant":
        return real(state, refusal, now)
    step = renewal._confirmed(state.task, refusal, state.record)
    if isinstance(step, Await) and isinstance(step.effect, Save):
        return replace(step, effect=_Overwrite(step.effect.key, step.effect.record, None))
    return step


class _Overwrite(Save, frozen=True, tag="Overwrite"):
    """A save that asks for no revision."""


_save = Ports._save


def _overwriting(ports: Any, effect: Save) -> Any:
    if isinstance(effect, _Overwrite):
        there: Stored | None = ports._store.load(effect.key)
        effect = Save(effect.key, effect.record, there.revision if there is not None else None)
    return _save(ports, effect)


@contextmanager
def _discarding() -> Generator[None, None, None]:
    with _refusing(), patch.object(Ports, "_save", _overwriting):
        yield


_refusing = PLANTED["invalid grant discards without a read"].plant
PLANTED["invalid grant discards without a read"] = PLANTED["invalid grant discards without a read"]._replace(
    plant=_discarding
)


@plant(renewal, "_note", "no-backoff", "refuses early")
def no_backoff_after_a_refused_early_renewal(
    real: Any, state: Any, then: Any, now: Any, seconds: Any, *more: Any, **named: Any
) -> Any:
    return real(state, then, now, 0.0, *more, **named)


# --- Callers, forks, people -------------------------------------------------------------------------------------------


@plant(Flights, "_all_left", "presented-twice", "cancel")
def a_cancelled_waiter_kills_the_flight(real: Any, flights: Any, flight: Flight) -> None:
    real(flights, flight)
    process = flight._work.__self__._oauth.process if hasattr(flight._work, "__self__") else None
    if process is not None and flight in process.tasks and flights._by_key.get(flight.key) is flight:
        process.world.scheduler.throw(process.tasks[flight], Cancelled())


@plant(Process, "in_child", "presented-twice", "fork")
def fork_shares_the_memory_store(real: Any, child: Any) -> None:
    child.flights._reset()


@plant(attempt, "lasting", "two-browsers")
def nobody_looks_at_claims(real: Any, claim: Any, now: Any) -> bool:
    return False


@plant(login, "_beat", "two-browsers", "log out")
def no_heartbeat(real: Any, state: Any, chosen: Any, ready: Any, inner: Any, now: Any) -> Any:
    return login._go_on(state, chosen, ready, inner, now)
