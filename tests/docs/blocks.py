"""The code blocks of a Markdown file."""

from __future__ import annotations

import re
import textwrap
from typing import NamedTuple

_FENCED = re.compile(r"^(?P<indent> *)```(?P<language>\w+)\n(?P<code>.*?)^(?P=indent)```\s*$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A fenced block."""

    line: int
    """Of its first line of code, from 1."""
    language: str
    code: str


def blocks(markdown: str, *languages: str) -> list[Block]:
    """The blocks in these languages, without the indentation of the list that they may stand in."""
    found = [
        Block(markdown.count("\n", 0, one.start("code")) + 1, one["language"], textwrap.dedent(one["code"]))
        for one in _FENCED.finditer(markdown)
    ]
    return [block for block in found if block.language in languages]
