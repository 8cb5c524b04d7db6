"""A world for renewals under a lease: one clock that only tests move, a store in memory whose lock lapses, and a server
that revokes the family when a spent refresh token comes back after its grace."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from mcp_oauth.sansio import renewal
from mcp_oauth.sansio.grant import GrantRecord, current_grant
from mcp_oauth.sansio.messages import Request
from mcp_oauth.sansio.steps import (
    Acquire,
    Acquired,
    Await,
    Busy,
    Conflict,
    Event,
    Extend,
    Extended,
    Load,
    Loaded,
    Release,
    Released,
    Save,
    Saved,
    Send,
    Sleep,
    Step,
    Woke,
)
from mcp_oauth.sansio.values import Now, Seed
from tests.sansio.scripts import KEY, grant, record, secret, tokens
from tests.sansio.walks import LOST, answer, later

LEASE = 13.0


@dataclass
class Server:
    """Knows `rt1`, and gives `rt2`, `rt3` and so on for it."""

    grace: float = 0.0
    """Seconds in which a spent token may come again."""
    lost: int = 0
    """Answers that get lost."""
    given: int = 1
    spent: dict[str, float] = field(default_factory=dict[str, float])
    """Refresh tokens, and when they were spent first."""
    revoked: bool = False

    def refresh(self, request: Request, at: float) -> Event:
        (presented,) = parse_qs(request.body.decode())["refresh_token"]
        self.revoked |= at > self.spent.setdefault(presented, at) + self.grace or presented not in self.known()
        if self.revoked:
            return answer(400, error="invalid_grant")
        self.given += 1
        self.lost -= 1
        return LOST if self.lost >= 0 else tokens(self.given)

    def known(self) -> set[str]:
        return {secret(n, "rt") for n in range(1, self.given + 1)}

    def takes(self, refresh_token: str | None) -> bool:
        """The family lives, and this is a token of it that was not spent."""
        return not self.revoked and refresh_token in self.known() - self.spent.keys()


@dataclass
class World:
    server: Server
    seconds: float = 0.0
    stored: GrantRecord = field(default_factory=lambda: record(grant(1)))
    lock: tuple[str, float] | None = None
    """Who has it, and until when."""

    @property
    def now(self) -> Now:
        return later(self.seconds)

    def process(self, name: str) -> Process:
        """One that has found the access token expired."""
        found = current_grant(self.stored)
        assert found is not None
        seed = Seed(name.encode() * 32)
        return Process(self, name, renewal.begin(KEY, found, unlike=None, seed=seed, jitter=0.0, holder=name))

    def lives(self) -> bool:
        found = current_grant(self.stored)
        return found is not None and self.server.takes(found.refresh_token)


@dataclass
class Process:
    """A renewal, done effect by effect."""

    world: World
    name: str
    step: Step[Any, Any]

    @property
    def effect(self) -> Any:
        """What comes next; None: it has ended."""
        return self.step.effect if isinstance(self.step, Await) else None

    def go(self, effects: int = 1000, until: type[Any] | tuple[()] = ()) -> None:
        """Do so many effects, or up to one of this kind, or to the end."""
        while isinstance(self.step, Await) and effects and not isinstance(self.step.effect, until):
            event = self._perform(self.step.effect)
            self.step = renewal.advance(self.step.state, event, now=self.world.now)
            effects -= 1

    def _perform(self, effect: Any) -> Event:
        world, free = self.world, self.world.lock is None or self.world.lock[1] <= self.world.seconds
        mine = not free and world.lock is not None and world.lock[0] == self.name
        match effect:
            case Acquire():
                return Acquired(world.stored, self._lease(), exclusive=False) if free else Busy("the other one")
            case Extend():
                return Extended(self._lease() if mine else None)
            case Release():
                world.lock = None if mine else world.lock
                return Released()
            case Load():
                return Loaded(world.stored)
            case Save():
                return self._save(effect)
            case Sleep(seconds):
                world.seconds += seconds
                return Woke()
            case Send(request):
                return world.server.refresh(request, world.seconds)
        raise AssertionError(effect)

    def _lease(self) -> float:
        self.world.lock = (self.name, self.world.seconds + LEASE)
        return self.world.now.elapsed + LEASE

    def _save(self, effect: Save) -> Event:
        if effect.expected != self.world.stored.revision:
            return Conflict(self.world.stored)
        assert isinstance(effect.record, GrantRecord)
        self.world.stored = effect.record
        return Saved()
