"""The examples for drivers and handshakes, run as the programs that they are: with a login that an earlier one left."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from mcp_oauth.store.encrypted_file import EncryptedFileStore
from tests.io.servers import PATIENCE, World, put_grant, world_on_loopback
from tests.io.test_handshakes import beside, two_events
from tests.io.web import world_on_the_web

ROOT = Path(__file__).parents[2]


async def first_line(example: str, url: str, world: World, home: Path) -> str:
    """What an example prints first, in an empty home but for a grant whose token has expired."""
    put_grant(EncryptedFileStore(home / ".mcp_oauth" / "tokens"), world)
    settings = {"HOME": str(home), "DBUS_SESSION_BUS_ADDRESS": "disabled:", "PYTHONUNBUFFERED": "1"}
    pipe = asyncio.subprocess.PIPE
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"examples.{example}", url, cwd=ROOT, env=os.environ | settings, stdout=pipe, stderr=pipe
    )
    assert program.stdout is not None
    try:
        line = (await asyncio.wait_for(program.stdout.readline(), PATIENCE)).decode().strip()
    finally:
        if program.returncode is None:
            program.kill()
        _, errors = await program.communicate()
    assert line, errors.decode()
    return line


def test_sse_client(tmp_path: Path) -> None:
    async def main() -> str:
        async with world_on_the_web(two_events) as world:
            return await first_line("sse_client", world.url, world, tmp_path)

    assert asyncio.run(main()) == "event 1"


def test_websockets_client(tmp_path: Path) -> None:
    async def main() -> str:
        async with beside() as (world, url):
            return await first_line("websockets_client", url, world, tmp_path)

    assert asyncio.run(main()) == "hello"


@pytest.mark.parametrize("example", ["urllib_driver"])
def test_prints_the_status_and_the_answer(example: str, tmp_path: Path) -> None:
    with world_on_loopback() as world:
        assert asyncio.run(first_line(example, world.url, world, tmp_path)).startswith("200")
        assert world.refreshes == 1
