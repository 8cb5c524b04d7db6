"""Flights in a process that is interrupted, ends or forks."""

from __future__ import annotations

import subprocess
import sys

from tests.io.servers import PATIENCE

PROGRAM = """
import asyncio, os, signal, sys, threading, time
from contextlib import suppress
from mcp_oauth.io.flights import FLIGHTS

def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\\n")
    sys.stdout.flush()
"""


def run(program: str, *, stderr: str = "") -> str:
    """Run a program in a process of its own, and return what it says; `stderr` is what it complains of."""
    command = [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", PROGRAM + program]  # of fork
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (0, stderr)
    return done.stdout


def test_ctrl_c_ends_the_waiting_and_not_the_renewal() -> None:
    said = run("""
interrupted, saved = threading.Event(), threading.Event()
def work(flight):
    os.kill(os.getpid(), signal.SIGINT)
    assert interrupted.wait(10)
    say("saved", flight.stopping())
    saved.set()
try:
    FLIGHTS.wait("key", work)
except KeyboardInterrupt:
    say("interrupted")
    interrupted.set()
say(FLIGHTS.wait("other key", lambda flight: "next request"))
assert saved.wait(10)
""")
    assert sorted(said.splitlines()) == ["('next request', True)", "interrupted", "saved False"]


def test_at_exit_a_renewal_runs_to_its_end() -> None:
    said = run("""
def work(flight):
    threading.main_thread().join()
    say("saved", flight.stopping(), flight.pause(3600))
with suppress(asyncio.TimeoutError):
    asyncio.run(asyncio.wait_for(FLIGHTS.wait_async("key", work), 0.01))
say("end of main")
""")
    assert said.splitlines() == ["end of main", "saved True True"]


def test_at_exit_a_login_stops() -> None:
    said = run("""
asked = threading.Event()
def work(flight):
    flight.ask_user()
    asked.set()
    flight.pause(3600)
    say(time.monotonic() - ended < 2)
threading.Thread(target=FLIGHTS.wait, args=("key", work), daemon=True).start()
assert asked.wait(10)
ended = time.monotonic()
""")
    assert said.splitlines() == ["True"]


def test_after_a_fork_the_child_has_no_flights() -> None:
    said = run("""
began, forked = threading.Event(), threading.Event()
def work(flight):
    began.set()
    assert forked.wait(10)
    return "the parent's"
threading.Thread(target=lambda: say(FLIGHTS.wait("key", work))).start()
assert began.wait(10)
with FLIGHTS._mutex:
    pid = os.fork()
if not pid:
    say(FLIGHTS.wait("key", lambda flight: "the child's"))
    os._exit(0)
os.waitpid(pid, 0)
forked.set()
""")
    assert said.splitlines() == ['("the child\'s", True)', '("the parent\'s", True)']
