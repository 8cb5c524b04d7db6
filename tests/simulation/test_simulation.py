"""The simulated world: clean with the library as it is, and not with any of the mistakes that clients make."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import SystemRandom

import pytest

from tests.simulation.planted import PLANTED
from tests.simulation.runs import Caught, Summary, caught, of_seed, replay, shown, shrunk, summary

ROOT = Path(__file__).parents[2]
BATCH = 100
FIXED = 1500
FRESH = 1500


def simulated(seeds: Sequence[int]) -> Summary:
    batches = [seeds[start : start + BATCH] for start in range(0, len(seeds), BATCH)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        return sum(pool.map(summary, batches), Summary())


def clean(total: Summary) -> None:
    """No rule was broken; else the simplest run like the first one that broke one is shown."""
    if total.wrong:
        seed = min(total.wrong)
        pytest.fail(f"{len(total.wrong)} runs broke a rule; seed {seed}:\n{shown(shrunk(seed))}")


@pytest.mark.slow
def test_the_same_runs_each_time_are_clean() -> None:
    total = simulated(range(FIXED))
    clean(total)
    assert total.reasons["200"] > 3 * FIXED
    assert all(total.happened[kind] > FIXED / 100 for kind in ("killed", "stopped", "network", "store", "locks lost"))


@pytest.mark.slow
def test_runs_that_nobody_has_seen_are_clean() -> None:
    first = SystemRandom().randrange(10**9)
    print(f"seeds from {first}")
    clean(simulated(range(first, first + FRESH)))


@pytest.mark.slow
def test_each_planted_mistake_is_found() -> None:
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        found = dict(zip(PLANTED, pool.map(caught, PLANTED), strict=True))
    assert [name for name, one in found.items() if one is None] == []


def test_a_run_without_faults_renews_once_for_all() -> None:
    """The simplest of all runs: zeros only."""
    outcome = replay(())
    assert outcome.wrong is None
    assert sum("takes rt-" in line for line in outcome.trace) == 2  # the one at the start, and the probe's at the end
    assert set(outcome.reasons) == {"200"}


def test_a_run_is_replayed_by_its_choices() -> None:
    first = of_seed(5)
    assert replay(first.choices).trace == first.trace


def test_a_run_that_fails_is_made_simpler() -> None:
    name = "lock held during a long sleep"
    planted = PLANTED[name]
    found = caught(name)
    assert isinstance(found, Caught)
    with planted.plant():
        whole, simple = of_seed(found.seed, planted.kinds), shrunk(found.seed, planted.kinds)
    assert whole.wrong is not None
    assert simple.wrong is not None
    assert simple.wrong[0] == whole.wrong[0]
    assert len(simple.choices) < len(whole.choices)
    assert sum(map(bool, simple.choices)) < sum(map(bool, whole.choices))


def test_a_run_is_the_same_whatever_the_hash_seed() -> None:
    program = "from tests.simulation.runs import of_seed; print([of_seed(seed).hash for seed in range(20)])"
    hashes = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(hashes) == 1
    assert str(of_seed(0).hash) in hashes.pop()


def test_no_secret_is_needed_to_read_a_trace() -> None:
    """It names tokens, which live in the simulation alone, and quotes no header and no body."""
    text = "\n".join(of_seed(7).trace)
    assert "Bearer" not in text
    assert "refresh_token=" not in text
