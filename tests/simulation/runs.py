"""Runs by their seeds: many of them summed up, one made simpler, a planted mistake found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from tests.simulation.choices import Choice, Choices, shrink
from tests.simulation.planted import PLANTED
from tests.simulation.world import Outcome, run

MOST_SEEDS = 2000
"""In so many runs a planted mistake must show."""
MOST_RUNS = 400
"""So many runs are tried to make one simpler."""

Wrong = tuple[str, str]


@dataclass
class Summary:
    """What came of some runs."""

    wrong: dict[int, Wrong] = field(default_factory=dict[int, Wrong])
    reasons: Counter[str] = field(default_factory=Counter[str])
    unsavable: Counter[str] = field(default_factory=Counter[str])
    happened: Counter[str] = field(default_factory=Counter[str])
    lines: int = 0

    def __add__(self, other: Summary) -> Summary:
        return Summary(
            self.wrong | other.wrong,
            self.reasons + other.reasons,
            self.unsavable + other.unsavable,
            self.happened + other.happened,
            self.lines + other.lines,
        )


def of_seed(seed: int, only: Sequence[str] = ()) -> Outcome:
    """The run of a seed."""
    return run(Choices(chance=Random(seed)), only)


def replay(choice: Choice, only: Sequence[str] = ()) -> Outcome:
    """The run of a sequence of choices."""
    return run(Choices(choice), only)


def summary(seeds: Sequence[int]) -> Summary:
    """The runs of these seeds."""
    total = Summary()
    for seed in seeds:
        outcome = of_seed(seed)
        wrong = {seed: outcome.wrong} if outcome.wrong else {}
        happened = Counter(sorted(outcome.happened))
        total += Summary(wrong, outcome.reasons, outcome.unsavable, happened, len(outcome.trace))
    return total


def shrunk(seed: int, only: Sequence[str] = ()) -> Outcome:
    """The simplest run that breaks the same rule as that of a seed."""
    first = of_seed(seed, only)
    rule = first.wrong[0] if first.wrong else None

    def fails(choice: Choice) -> bool:
        wrong = replay(choice, only).wrong
        return wrong is not None and wrong[0] == rule

    return replay(shrink(first.choices, fails, MOST_RUNS), only)


def shown(outcome: Outcome) -> str:
    """A run for people, and what replays it."""
    return "\n".join((*outcome.trace, f"choices: {list(outcome.choices)}"))


class Caught(NamedTuple):
    """A planted mistake that showed."""

    seed: int
    rule: str
    what: str


def caught(name: str, first: int = 0) -> Caught | None:
    """The first seed whose run breaks the rule with this mistake, and none without it."""
    planted = PLANTED[name]
    for seed in range(first, first + MOST_SEEDS):
        with planted.plant():
            wrong = of_seed(seed, planted.kinds).wrong
        if wrong is not None and wrong[0] == planted.rule and of_seed(seed, planted.kinds).wrong is None:
            return Caught(seed, *wrong)
    return None
