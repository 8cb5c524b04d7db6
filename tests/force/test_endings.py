"""Programs that are interrupted, ended or killed while a renewal is under way.

What must not be lost is the token that the server gave: each test ends with a request of another process, which is to
find it in the store. The server forgives nothing: had a refresh token been spent twice, that would need a login.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from mcp_oauth.exceptions import AuthorizationRequired
from mcp_oauth.store.base import Store
from tests.force.endings import LOCKED, SAVED, SAVING, Ending
from tests.force.gate import Gate, Place
from tests.integration.program import Program, expire, locked, served
from tests.servers.oidc_provider import OidcProvider

ASKED: Place = "asked"
ANSWERED: Place = "answered"


class Held:
    """A program whose renewal is held at one place: by itself, or by the gate."""

    def __init__(self, gate: Gate, late: Program, folder: Path, place: str) -> None:
        self._gate = gate
        self._url, self._folder, self._place = late.url, folder, place
        for at_gate in (ASKED, ANSWERED):
            if place == at_gate:
                gate.close(at_gate)

    def program(self, how: str) -> Ending:
        return Ending(how, self._url, self._folder, "" if self._at_gate else self._place)

    def reached(self, peer: Ending) -> None:
        self._gate.wait() if self._at_gate else peer.halted()

    def go_on(self, peer: Ending) -> None:
        self._gate.open() if self._at_gate else peer.go_on()

    @property
    def _at_gate(self) -> bool:
        return self._place in (ASKED, ANSWERED)


@pytest.fixture
def late(login: Program, store: Store, gate: Gate) -> Program:
    """Nobody may be asked, and the access token has run out; it is renewed through the gate."""
    expire(store, login.url)
    return login.restarted()


@pytest.fixture
def held(request: pytest.FixtureRequest, gate: Gate, late: Program, tmp_path: Path) -> Held:
    return Held(gate, late, tmp_path, request.param)


def at(*places: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("held", places, indirect=True)


def nothing_lost(late: Program, strict: OidcProvider, store: Store) -> None:
    """Another process is served; nobody spent a refresh token a second time, and nobody has the lock."""
    with locked(store, late.url):
        pass
    assert served(late.call())
    stats = strict.stats()
    assert (stats["granted"], stats["refused"], stats["familiesRevoked"]) == ({"refresh_token": 1}, {}, 0)


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


@at(LOCKED, ANSWERED, SAVING)
@pytest.mark.parametrize("stack", ["sync", "asyncio", "trio"])
def test_an_interrupt_reaches_the_program_at_once_and_not_the_renewal(
    stack: str, held: Held, late: Program, strict: OidcProvider, store: Store
) -> None:
    """The program makes its request again, which is served by the same renewal."""
    with held.program(f"{stack}-caught") as peer:
        held.reached(peer)
        peer.interrupt()
        peer.until("interrupted")
        held.go_on(peer)
        assert sorted(peer.said()) == ["answered", "atexit", "saved"]
        assert peer.ended() == (0, "")
    nothing_lost(late, strict, store)


@at(LOCKED, ASKED, ANSWERED, SAVING, SAVED)
def test_an_interrupt_that_ends_the_program_does_not_end_the_renewal(
    held: Held, late: Program, strict: OidcProvider, store: Store
) -> None:
    with held.program("sync") as peer:
        held.reached(peer)
        peer.interrupt()
        held.go_on(peer)
        assert peer.said()[-1] == "atexit"
        status, errors = peer.ended()
    assert status == -signal.SIGINT
    assert errors.endswith("\nKeyboardInterrupt\n")
    assert "ignored" not in errors
    nothing_lost(late, strict, store)


# --- The end ----------------------------------------------------------------------------------------------------------

ENDS = [
    "asyncio-main-returns",
    "asyncio-main-raises",
    "asyncio-group-cancelled",
    "trio-nursery-cancelled",
    "daemon-main-returns",
    "daemon-sys-exit",
    "loop-in-daemon",
]


@at(LOCKED, ANSWERED, SAVING)
@pytest.mark.parametrize("how", ENDS)
def test_a_program_that_ends_waits_for_the_renewal_and_no_longer(
    how: str, held: Held, late: Program, strict: OidcProvider, store: Store
) -> None:
    """What the program does at exit comes after it. Nothing is written to stderr."""
    with held.program(how) as peer:
        held.reached(peer)
        peer.end()
        held.go_on(peer)
        said = peer.said()
        assert [what for what in said if what != "answered"] == ["saved", "atexit"]  # a daemon may still be served
        assert peer.ended() == (0, "")
    nothing_lost(late, strict, store)


@at(LOCKED, ANSWERED, SAVING)
def test_a_thread_that_outlives_the_main_one_is_served(
    held: Held, late: Program, strict: OidcProvider, store: Store
) -> None:
    with held.program("thread-main-returns") as peer:
        held.reached(peer)
        peer.end()
        held.go_on(peer)
        assert peer.said() == ["saved", "answered", "atexit"]
        assert peer.ended() == (0, "")
    nothing_lost(late, strict, store)


def test_a_request_at_exit_is_served(
    gate: Gate, late: Program, tmp_path: Path, strict: OidcProvider, store: Store
) -> None:
    """Where threads cannot be started any more the renewal runs in the caller's own."""
    with Ending("request-at-exit", late.url, tmp_path) as peer:
        assert peer.said() == ["saved", "answered", "atexit"]
        assert peer.ended() == (0, "")
    nothing_lost(late, strict, store)


# --- SIGTERM, which nobody handles: the process is gone at once -------------------------------------------------------


def killed(held: Held, gate: Gate) -> None:
    with held.program("sync") as peer:
        held.reached(peer)
        peer.process.terminate()
        assert peer.ended() == (-signal.SIGTERM, "")
    gate.lose()


@at(LOCKED, ASKED, SAVED)
def test_RULES_4_8_a_kill_before_the_request_or_after_the_save_costs_nothing(
    held: Held, gate: Gate, late: Program, strict: OidcProvider, store: Store
) -> None:
    killed(held, gate)
    nothing_lost(late, strict, store)


@at(ANSWERED, SAVING)
def test_RULES_4_15_a_kill_between_answer_and_save_costs_nothing_within_the_grace(
    held: Held, gate: Gate, late: Program, strict: OidcProvider
) -> None:
    strict.set(refreshGrace=30)
    killed(held, gate)
    assert served(late.call())
    assert strict.stats()["granted"] == {"refresh_token": 2}


@at(ANSWERED, SAVING)
def test_RULES_4_15_a_kill_between_answer_and_save_is_beyond_help_without_grace_and_told(
    held: Held, gate: Gate, late: Program, store: Store
) -> None:
    killed(held, gate)
    with pytest.raises(AuthorizationRequired):
        late.restarted(interactive=False).call()
    with locked(store, late.url):
        pass
