"""All that a simulated run leaves open, as one sequence of integers. 0 always means: no fault, the first in line.

So a run is replayed by its sequence, and made simpler by deleting from it and by writing zeros into it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")

Choice = tuple[int, ...]


class Choices:
    """Where every decision of one run comes from: first what is `given`, then chance, or zeros where there is none."""

    def __init__(self, given: Sequence[int] = (), chance: Random | None = None) -> None:
        self._given = given
        self._chance = chance
        self.taken: list[int] = []

    def pick(self, count: int, odds: float) -> int:
        """A number below `count`; by chance it is another one than 0 in that share of the cases."""
        place = len(self.taken)
        if place < len(self._given):
            number = self._given[place] if self._given[place] < count else 0
        elif self._chance is not None and self._chance.random() < odds:
            number = self._chance.randrange(1, count)
        else:
            number = 0
        self.taken.append(number)
        return number

    def of(self, *options: T) -> T:
        """One of these, each as likely as another; the first is the simplest."""
        return options[self.pick(len(options), 1 - 1 / len(options))] if len(options) > 1 else options[0]

    def happens(self, odds: float) -> bool:
        """Whether something happens that need not."""
        return bool(self.pick(2, odds))


def shrink(choice: Choice, fails: Callable[[Choice], bool], most_runs: int) -> Choice:
    """A simpler sequence that fails as well: shorter, or with more zeros. At most `most_runs` are tried."""
    tried = 0
    smaller = True
    while smaller:
        smaller = False
        for candidate in _simpler(choice):
            if tried == most_runs:
                return choice
            tried += 1
            if fails(candidate):
                choice, smaller = candidate, True
                break
    return choice


def _simpler(choice: Choice) -> Iterator[Choice]:
    """Large steps first: cut off the end, delete runs, zero runs, then lower single numbers."""
    yield from (choice[:length] for length in _lengths(len(choice)))
    size = len(choice) // 2
    while size:
        for start in range(0, len(choice), size):
            if any(choice[start : start + size]):
                yield (*choice[:start], *(0,) * len(choice[start : start + size]), *choice[start + size :])
            yield choice[:start] + choice[start + size :]
        size //= 2
    for place, number in enumerate(choice):
        if number > 1:
            yield (*choice[:place], 1, *choice[place + 1 :])


def _lengths(length: int) -> Iterator[int]:
    shorter = length // 2
    while shorter < length:
        yield shorter
        shorter += max(1, (length - shorter) // 2)
