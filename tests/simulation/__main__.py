"""Simulate many runs, find each planted mistake, and replay what failed:

python -m tests.simulation --seeds 20000            # from --first, in all processors
python -m tests.simulation --planted                # each mistake, and the seed that shows it
python -m tests.simulation --replay 4711            # one run, line by line
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from tests.simulation.planted import PLANTED
from tests.simulation.runs import MOST_SEEDS, Summary, caught, of_seed, shown, shrunk, summary

BATCH = 250
MOST_SHOWN = 20


def main(arguments: list[str]) -> int:
    """The exit status: 0 if all runs were clean, or all mistakes found."""
    options = _options(arguments)
    if options.replay is not None:
        print("\n".join(of_seed(options.replay).trace))
        return 0
    if options.planted:
        return _plant()
    return _simulate(range(options.first, options.first + options.seeds))


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description="deterministic simulation")
    parser.add_argument("--seeds", type=int, default=2000, help="how many runs")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--replay", type=int, help="show the run of one seed")
    parser.add_argument("--planted", action="store_true", help="find the planted mistakes")
    return parser.parse_args(arguments)


def _simulate(seeds: range) -> int:
    start = time.monotonic()
    total = sum(_summaries(seeds), Summary())
    print(f"{len(seeds)} runs in {time.monotonic() - start:.0f} s, {total.lines} things that happened")
    _table("a request ended with", total.reasons)
    _table("what no client can save, by cause", total.unsavable)
    _table("runs in which this went wrong", total.happened)
    for seed, (rule, what) in sorted(total.wrong.items())[:MOST_SHOWN]:
        print(f"seed {seed}: {rule}: {what}")
    if total.wrong:
        seed = min(total.wrong)
        print(f"\nthe simplest run like that of seed {seed} (replay the whole with --replay {seed}):\n")
        print(shown(shrunk(seed)))
    print(f"{len(total.wrong)} runs broke a rule")
    return int(bool(total.wrong))


def _summaries(seeds: range) -> Iterator[Summary]:
    batches = [seeds[start : start + BATCH] for start in range(0, len(seeds), BATCH)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(summary, batches)


def _table(title: str, counts: Counter[str]) -> None:
    print(f"\n| {title} | |\n|---|---:|")
    for name, count in counts.most_common():
        print(f"| {name} | {count:,} |")
    print()


def _plant() -> int:
    print("| planted mistake | rule that it breaks | seed |\n|---|---|---:|")
    missed = 0
    for name in PLANTED:
        found = caught(name)
        if found is None:
            missed += 1
            print(f"| {name} | NOT FOUND in {MOST_SEEDS} runs | |")
        else:
            print(f"| {name} | {found.rule} | {found.seed} |")
    return missed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
