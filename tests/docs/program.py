"""Runs the code on standard input as a notebook would: `await` stands at the top level (run as a script)."""

from __future__ import annotations

import ast
import asyncio
import inspect
import sys
from typing import Any


async def run(code: str) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    running = eval(compile(code, "block", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
    if inspect.isawaitable(running):
        await running


if __name__ == "__main__":
    source = sys.stdin.read()
    if "asyncio.run(" in source:
        exec(compile(source, "block", "exec"), {"__name__": "__main__"})
    else:
        asyncio.run(run(source))
