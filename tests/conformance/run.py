"""Run the official MCP conformance suite strictly: every scenario in a process of its own, judged by its exit code.

    python -m tests.conformance.run --stack httpx2 --only scope-step-up

Prints a table of stacks and sets, and the suite's own words about each failure; exits 1 if anything failed.
The suite's whole-suite modes ignore a client's exit code and its timeout; its single-scenario mode counts both.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]
SUITE = ROOT / "node_modules" / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"
SHIPPED_NODE = ROOT / "node_modules" / ".bin" / "node"
NODE = str(SHIPPED_NODE) if SHIPPED_NODE.exists() else "node"
CLIENT = f"{shlex.quote(sys.executable)} {shlex.quote(str(ROOT / 'tests' / 'conformance' / 'client.py'))}"
WORKERS = 2
LIMIT = 60

CORE = (
    "basic-cimd",
    "metadata-default",
    "metadata-var1",
    "metadata-var2",
    "metadata-var3",
    "pre-registration",
    "scope-from-scopes-supported",
    "scope-from-www-authenticate",
    "scope-omitted-when-undefined",
    "scope-retry-limit",
    "scope-step-up",
    "token-endpoint-auth-basic",
    "token-endpoint-auth-none",
    "token-endpoint-auth-post",
)
SINCE_2026 = (
    "authorization-server-migration",
    "iss-normalized",
    "iss-not-advertised",
    "iss-supported",
    "iss-supported-missing",
    "iss-unexpected",
    "iss-wrong-issuer",
    "metadata-issuer-mismatch",
    "offline-access-not-supported",
    "offline-access-scope",
    "resource-mismatch",
)
ONLY_2025_03 = ("2025-03-26-oauth-endpoint-fallback", "2025-03-26-oauth-metadata-backcompat")
EXTENSIONS = (
    "client-credentials-basic",
    "client-credentials-jwt",
    "dpop",
    "dpop-nonce",
    "enterprise-managed-authorization",
    "wif-jwt-bearer",
)


@dataclass(frozen=True)
class Set:
    """Scenarios of the suite at one version of the wire."""

    name: str
    version: str
    scenarios: tuple[str, ...]
    force: bool = False


SETS = (
    Set("2025-03-26", "2025-03-26", ONLY_2025_03),
    Set("2025-11-25", "2025-11-25", CORE),
    Set("2026-07-28", "2026-07-28", CORE + SINCE_2026),
)
# Not run unless asked for by --extensions: the library does not claim them yet.
EXTENSION_SETS = (
    Set("ext@2025-11", "2025-11-25", EXTENSIONS, force=True),
    Set("ext@2026-07", "2026-07-28", EXTENSIONS, force=True),
)


@dataclass(frozen=True)
class Run:
    stack: str
    set: Set
    scenario: str


@dataclass(frozen=True)
class Verdict:
    run: Run
    reason: str
    """Why it failed, in the suite's words; empty if it passed."""


def judge(run: Run, client: str) -> Verdict:
    command = [NODE, str(SUITE), "client", "--command", client, "--scenario", f"auth/{run.scenario}"]
    command += ["--spec-version", run.set.version, *(["--force"] if run.set.force else [])]
    environment = {**os.environ, "MCP_OAUTH_STACK": run.stack}
    try:
        suite = subprocess.run(
            command, env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        return Verdict(run, f"the suite itself did not end within {LIMIT} s")
    said = suite.stdout + suite.stderr
    if suite.returncode == 0 and "OVERALL: PASSED" in said and "Passed: 0/0" not in said:
        return Verdict(run, "")
    return Verdict(run, "\n".join(reasons(said)) or f"exit code {suite.returncode} without a verdict:\n{said[-2000:]}")


def reasons(said: str) -> Iterator[str]:
    """What the suite and the client's error output say about a failure."""
    wanted = ("SKIPPED", "Client exited", "Client timed out", "Error:", "Warning:", "Traceback", "  - ")
    yield from (line.strip() for line in said.splitlines() if line.startswith(wanted) or "Error: " in line)


def table(stacks: Iterable[str], sets: Iterable[Set], verdicts: list[Verdict]) -> Iterator[str]:
    sets = list(sets)
    yield "  ".join([f"{'stack':<14}", *(f"{each.name:>12}" for each in sets)])
    for stack in stacks:
        cells = [[v for v in verdicts if v.run.stack == stack and v.run.set is each] for each in sets]
        scores = [f"{sum(not v.reason for v in cell)} of {len(cell)}" if cell else "-" for cell in cells]
        yield "  ".join([f"{stack:<14}", *(f"{score:>12}" for score in scores)])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The official MCP conformance suite, strictly")
    parser.add_argument("--stack", action="append", help="MCP_OAUTH_STACK for the client; may be repeated")
    parser.add_argument("--only", action="append", metavar="NAME", help="a scenario, without auth/; may be repeated")
    parser.add_argument("--extensions", action="store_true", help="the extension scenarios too")
    parser.add_argument("--client", default=CLIENT, help="another client command")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    if not SUITE.exists():
        print("the conformance suite is missing: run `make node_modules`", file=sys.stderr)
        return 1
    stacks = given.stack or ["httpx2"]
    sets = SETS + (EXTENSION_SETS if given.extensions else ())
    runs = [
        Run(stack, each, scenario)
        for stack in stacks
        for each in sets
        for scenario in each.scenarios
        if not given.only or scenario in given.only
    ]
    if not runs:
        print(f"no such scenario: {given.only}", file=sys.stderr)
        return 1
    with ThreadPoolExecutor(WORKERS) as workers:
        verdicts = list(workers.map(partial(judge, client=given.client), runs))
    failed = [verdict for verdict in verdicts if verdict.reason]
    for verdict in failed:
        run = verdict.run
        print(f"FAILED {run.stack} {run.set.name} auth/{run.scenario}\n    " + verdict.reason.replace("\n", "\n    "))
    print(*table(stacks, sets, verdicts), sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
