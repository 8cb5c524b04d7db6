"""The benchmark of the SDK's sessions runs, and says what it is there to say."""

from __future__ import annotations

from benchmarks.sdk import NONE, OURS, THEIRS, WIRES, run


def test_parallel_calls_do_not_wait_for_each_other_as_with_the_sdks_own_provider() -> None:
    """Ten calls of 50 ms: behind its lock they take half a second at least, and ours a tenth of that, and some work."""
    rows = run(count=10, rounds=3)
    assert {(row.wire, row.auth) for row in rows} == {(wire, auth) for wire in WIRES for auth in (NONE, THEIRS, OURS)}
    medians = {row.auth: row.median for row in rows if row.wire == "2026-07-28"}
    assert medians[THEIRS] > 10 * 0.05
    assert medians[OURS] < medians[THEIRS]
