"""What holds for all tests."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator

import pytest


def pytest_configure() -> None:
    """Let programs be interrupted also where a shell runs the tests in its background, with SIGINT ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def the_log_stays() -> Iterator[None]:
    """For tests that run the command in this process: it logs to the screen, and as much as it was told to."""
    log = logging.getLogger("mcp_oauth")
    handlers, level = list(log.handlers), log.level
    yield
    log.handlers, log.level = handlers, level
