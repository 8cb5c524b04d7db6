"""What 10 to 10,000 grants cost in one process: `python -m benchmarks.scale`.

One `OAuth` object for each grant, all on one store: memory for each, time to the first header, and a storm in which
every grant has expired and is renewed at a stub server. Each row is measured in a process of its own. Ends with 1 if a
grant was lost or renewed other than once, or if it costs more than `BUDGET`. The tokens are opaque and have 43
characters; each further one of an access token costs two bytes, one in the record and one at hand.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import aclosing
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

import httpx2

from benchmarks.stub import Report, Rules, Stub, account, serving
from mcp_oauth.io.httpx2 import OAuth
from mcp_oauth.store.base import Store
from mcp_oauth.store.encrypted_file import EncryptedFileStore
from mcp_oauth.store.memory import MemoryStore

P = ParamSpec("P")
T = TypeVar("T")

SIZES: dict[str, Sequence[int]] = {"memory": (10, 100, 1_000, 10_000), "files": (10, 100, 1_000)}
BUDGET = 4096
"""Bytes that a grant may cost in memory, with the memory store."""
LEFT = 4 * BUDGET
"""Bytes of the system's that may be gone for a grant after its renewal: half of it is holes that will be used again."""
ENOUGH = 1_000
"""Grants from which on the process's own memory can be divided by them: what it has besides is larger with fewer."""
THREADS = 8
STORES: dict[str, Callable[[str], Store]] = {
    "memory": lambda _: MemoryStore(),
    "files": lambda folder: EncryptedFileStore(Path(folder) / "store", password="correct horse", kdf="pbkdf2"),
}


class Memory(NamedTuple):
    """Bytes for each grant."""

    oauth: float
    """The `OAuth` object, as Python counts it."""
    token: float
    """The token at hand."""
    record: float
    """What the memory store has."""
    resident: float
    """All of that and what a renewal leaves behind, as the system counts it."""


class Times(NamedTuple):
    """Seconds to a request's header: the median, and what one of a hundred exceeds."""

    at_hand: tuple[float, float]
    stored: tuple[float, float]


class Storm(NamedTuple):
    """Every grant renewed at once."""

    waits: tuple[float, ...]
    """Seconds that each caller waited, in the order in which they came."""
    stall: float
    """The longest time in seconds in which the callers' event loop did nothing else."""
    cpu: float
    """Seconds of this process."""
    lost: int
    """Grants whose stored refresh token is not the one that the server takes."""
    renewals: tuple[int, ...]
    """Refresh tokens presented, for each grant."""

    @property
    def out_of_turn(self) -> int:
        """By how many places the most unlucky caller was overtaken."""
        served = sorted(range(len(self.waits)), key=self.waits.__getitem__)
        return max(place - came for place, came in enumerate(served))


class Row(NamedTuple):
    """What so many grants cost in a kind of store."""

    kind: str
    grants: int
    memory: Memory
    times: Times
    storm: Storm


# --- Measures, each for a process of its own --------------------------------------------------------------------------


def oauths(stub: Stub, store: Store, count: int) -> list[OAuth]:
    """One for each grant, as a program makes them."""
    return [OAuth(stub.mcp, account=account(number), store=store, interactive=False) for number in range(count)]


def first_header(oauth: OAuth) -> float:
    """Seconds until a request has its header."""
    request = httpx2.Request("POST", oauth.server_url)
    begun = time.perf_counter()
    sent = next(oauth.sync_auth_flow(request))
    seconds = time.perf_counter() - begun
    assert "authorization" in sent.headers
    return seconds


def counted(stub: Stub, count: int) -> tuple[float, float, float]:
    """Bytes for each grant, as Python counts them: the `OAuth` object, the token at hand, the stored record."""
    warm = MemoryStore()
    stub.log_in(warm, Rules(1))
    first_header(oauths(stub, warm, 1)[0])
    tracemalloc.start()
    store = MemoryStore()
    steps = [_traced()]
    stub.log_in(store, Rules(count))
    steps.append(_traced())
    made = oauths(stub, store, count)
    steps.append(_traced())
    for oauth in made:
        first_header(oauth)
    steps.append(_traced())
    empty, records, oauths_too, tokens_too = steps
    return (oauths_too - records) / count, (tokens_too - oauths_too) / count, (records - empty) / count


def _traced() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def resident(stub: Stub, count: int) -> float:
    """Bytes for each grant, as the system counts them, after each was renewed, a few at a time.

    All at once, their callers would be counted too: what they needed, Python keeps.
    """
    warm = MemoryStore()
    stub.log_in(warm, Rules(THREADS), expired=True)
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(first_header, oauths(stub, warm, THREADS)))
        before, store = _resident(), MemoryStore()
        stub.log_in(store, Rules(count), expired=True)
        made = oauths(stub, store, count)
        list(threads.map(first_header, made))
        return (_resident() - before) / count


def _resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def times(stub: Stub, kind: str, count: int) -> Times:
    """How long it takes to the first header, from the store and then with a token at hand."""
    with tempfile.TemporaryDirectory() as folder:
        store = STORES[kind](folder)
        stub.log_in(store, Rules(count))
        made = oauths(stub, store, count)
        stored = [first_header(oauth) for oauth in made]
        at_hand = [first_header(oauth) for oauth in made]
    return Times(_middle_and_worst(at_hand), _middle_and_worst(stored))


def _middle_and_worst(seconds: list[float]) -> tuple[float, float]:
    return percentile(seconds, 50), percentile(seconds, 99)


def storm(stub: Stub, kind: str, count: int) -> Storm:
    """Let every grant be needed at once, all of them expired."""
    with tempfile.TemporaryDirectory() as folder:
        store = STORES[kind](folder)
        stub.log_in(store, Rules(count), expired=True)
        made = oauths(stub, store, count)
        begun = time.process_time()
        waits, stall = asyncio.run(_renew_all(made))
        cpu = time.process_time() - begun
        report = stub.report()
        lost = sum(stub.stored(store, number).refresh_token != report.families[number].live for number in range(count))
    return Storm(waits, stall, cpu, lost, _renewals(report))


async def _renew_all(made: list[OAuth]) -> tuple[tuple[float, ...], float]:
    """The seconds that each waited, and the longest in which nothing else in this event loop was served."""
    begun = time.perf_counter()
    watching = asyncio.create_task(_longest_stall(renewing := asyncio.Event()))
    await asyncio.sleep(0)
    waits = await asyncio.gather(*(_renewed_after(oauth, begun) for oauth in made))
    renewing.set()
    return tuple(waits), await watching


async def _longest_stall(over: asyncio.Event) -> float:
    longest, before = 0.0, time.perf_counter()
    while not over.is_set():
        await asyncio.sleep(0.001)
        now = time.perf_counter()
        longest, before = max(longest, now - before), now
    return longest


async def _renewed_after(oauth: OAuth, begun: float) -> float:
    async with aclosing(oauth.async_auth_flow(httpx2.Request("POST", oauth.server_url))) as flow:
        assert "authorization" in (await anext(flow)).headers
    return time.perf_counter() - begun


def _renewals(report: Report) -> tuple[int, ...]:
    presented = Counter(presentation.family for presentation in report.presentations)
    return tuple(presented[number] for number in range(len(report.families)))


# --- The table --------------------------------------------------------------------------------------------------------


def row(stub: Stub, kind: str, count: int) -> Row:
    """Measure so many grants. What they cost in memory is that of the memory store in any case."""
    memory = Memory(*alone(counted, stub, count), alone(resident, stub, count))
    return Row(kind, count, memory, alone(times, stub, kind, count), alone(storm, stub, kind, count))


def alone(measure: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `measure` finds in a process of its own, where nothing else is counted."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(measure, *args, **kwargs).result()


def wrong(row: Row) -> list[str]:
    """What must not be."""
    memory, storm = row.memory, row.storm
    counted = sum(memory[:3])
    found = {
        f"{storm.lost} grants lost": storm.lost > 0,
        "not each grant was renewed once": set(storm.renewals) != {1},
        f"a grant costs {counted:.0f} bytes": row.grants >= ENOUGH and counted > BUDGET,
        f"a renewed grant leaves {memory.resident:.0f} bytes": row.grants >= ENOUGH and memory.resident > LEFT,
    }
    return [f"{row.kind} {row.grants}: {what}" for what, is_so in found.items() if is_so]


COLUMNS = (
    "store", "grants", "OAuth object, bytes", "token", "record", "resident after renewal",
    "header at hand p50, µs", "p99", "header from store p50, ms", "p99",
    "renewals/s", "CPU each, ms", "first wait, s", "median", "last", "loop stalled, s", "out of turn",
    "lost", "renewals each",
)  # fmt: skip


def cells(row: Row) -> list[str]:
    """A row of the table."""
    memory, times, storm = row.memory, row.times, row.storm
    waits = (min(storm.waits), statistics.median(storm.waits), max(storm.waits))
    return [
        row.kind,
        f"{row.grants:,}",
        *(f"{size:,.0f}" for size in memory[:3]),
        f"{memory.resident:,.0f}" if row.grants >= ENOUGH else "",
        *(f"{seconds * 1e6:.0f}" for seconds in times.at_hand),
        *(f"{seconds * 1e3:.2f}" for seconds in times.stored),
        f"{row.grants / waits[-1]:,.0f}",
        f"{storm.cpu / row.grants * 1e3:.2f}",
        *(f"{seconds:.2f}" for seconds in (*waits, storm.stall)),
        f"{storm.out_of_turn}",
        f"{storm.lost}",
        f"{sum(storm.renewals) / row.grants:.3f}",
    ]


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that so many percent do not exceed; of no values, 0."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    """Measure and print; 1 if something is wrong."""
    with serving() as stub:
        rows = [row(stub, kind, count) for kind, counts in SIZES.items() for count in counts]
    print(table(COLUMNS, [cells(row) for row in rows]))
    found = [what for row in rows for what in wrong(row)]
    print("\n".join(found), file=sys.stderr)
    return min(len(found), 1)


if __name__ == "__main__":
    sys.exit(main())
