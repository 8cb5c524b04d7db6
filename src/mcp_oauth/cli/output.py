"""What the person or the pipe gets: results on standard output, progress and errors on standard error.

A terminal gets aligned and coloured text; a pipe gets lines with tabs; `--json` gets one JSON document. Everything
is cleaned here, at the only door, so that no server can talk to the terminal.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, cast

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from mcp_oauth.cli.failures import CommandError, document_of
from mcp_oauth.exceptions import OAuthError
from mcp_oauth.sansio.messages import printable

MOST = 4000
"""Characters of a peer's text that a person is shown. What the command says itself is never cut."""
NARROW = 72
"""Columns below which a table becomes a list."""
WIDEST = 100_000
"""Columns: wider than any table, to measure it."""
NOTHING = "-"
"""An empty cell."""

Fields = Sequence[tuple[str, object]]
_UNITS = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def clean(text: object) -> str:
    """A text fit for a terminal: one line, no control, escape or bidirectional characters, not endless."""
    return printable(str(text), MOST)


def clean_all(value: Any) -> Any:
    """A document with all its texts cleaned; whole, and with their line ends and tabs."""
    if isinstance(value, str):
        return "".join(c if c.isprintable() or c in "\n\t" else " " for c in value)
    if isinstance(value, dict):
        return {clean(name): clean_all(item) for name, item in cast("Any", value).items()}
    if isinstance(value, list | tuple):
        return [clean_all(item) for item in cast("Sequence[Any]", value)]
    return value


def dots(ending: str | None) -> str | None:
    """The end of a token, as a person sees it."""
    return f"...{ending}" if ending else None


def moment(wall: float | None) -> str | None:
    """Wall seconds as local ISO 8601, to the second."""
    if wall is None:
        return None
    with suppress(OverflowError, ValueError, OSError):
        return datetime.fromtimestamp(wall).astimezone().isoformat(timespec="seconds")
    return None


def from_now(wall: float) -> str:
    """How far away: `in 42 minutes`, `3 days ago`."""
    seconds = wall - time.time()
    size, unit = next((pair for pair in _UNITS if abs(seconds) >= pair[0]), _UNITS[-1])
    count = int(abs(seconds) // size)
    amount = f"{count} {unit}{'' if count == 1 else 's'}"
    return f"in {amount}" if seconds >= 0 else f"{amount} ago"


class Screen:
    """Where one run of the command writes."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self._quiet = quiet
        self._out = _console(stderr=False)
        self._err = _console(stderr=True)

    def say(self, text: str) -> None:
        """Progress, for a person; line by line."""
        if not self._quiet:
            self.insist(text)

    def insist(self, text: str) -> None:
        """What a person must be told to go on, `--quiet` or not."""
        for line in text.splitlines():
            self._write(self._err, Text(printable(line, len(line))))

    def show(self, document: Mapping[str, Any], headline: str, fields: Fields) -> None:
        """A result: the document in JSON, else a headline (of a terminal) and the fields that are not None."""
        if self.as_json:
            self._dump(document)
        else:
            self._headline(headline)
            self._fields(fields)

    def show_table(
        self, document: Mapping[str, Any], columns: Sequence[str], rows: Sequence[Sequence[object]], empty: str
    ) -> None:
        """Many results. Without any a person is told `empty`, and a pipe gets no line."""
        cells = [[clean(cell or NOTHING) for cell in row] for row in rows]
        if self.as_json:
            self._dump(document)
        elif not rows:
            self.say(empty)
        elif not self._out.is_terminal:
            for line in cells:
                self._plain("\t".join(line))
        else:
            self._table(columns, cells)

    def failed(self, error: OAuthError | CommandError) -> None:
        """What went wrong, and what to do."""
        told = document_of(error)
        if self.as_json:
            self._dump({"ok": False, "error": told})
            return
        self._write(self._err, Text.assemble(("Error: ", "bold red"), clean(told["message"])))
        if told["url"] is not None or told["status"] is not None:
            where = ", ".join(f"{name} {told[name]}" for name in ("stage", "url", "status") if told[name] is not None)
            self._write(self._err, Text.assemble(("Where: ", "dim"), clean(where)))
        self._write(self._err, Text.assemble(("What to do: ", "dim"), clean(told["cure"])))

    def _dump(self, document: Mapping[str, Any]) -> None:
        """All ASCII, so that no reader's terminal or encoding matters."""
        self._plain(json.dumps(clean_all(document), indent=2))

    def _headline(self, text: str) -> None:
        if self._out.is_terminal:
            self._write(self._out, Text(clean(text), "bold green"))

    def _fields(self, fields: Fields) -> None:
        told = [(name, clean(value)) for name, value in fields if value is not None]
        width = max((len(name) for name, _ in told), default=0)
        for name, value in told:
            if self._out.is_terminal:
                self._write(self._out, Text.assemble((f"  {name:<{width}}  ", "dim"), value))
            else:
                self._plain(f"{name}\t{value}")

    def _table(self, columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
        """A table, where its lines fit without a cut through a word."""
        table = _table(columns, cells)
        table.show_edge = not self._out.options.ascii_only
        if self._out.width < max(
            NARROW, Measurement.get(self._out, self._out.options.update(width=WIDEST), table).minimum
        ):
            self._list(columns, cells)
        else:
            self._out.print(table)

    def _list(self, columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
        for row in cells:
            self._headline(row[0])
            told = zip(columns[1:], row[1:], strict=True)
            self._fields([(name, cell) for name, cell in told if cell != NOTHING])

    def _plain(self, line: str) -> None:
        sys.stdout.write(f"{line}\n")  # rich would make spaces of tabs

    def _write(self, console: Console, text: Text) -> None:
        console.print(text, soft_wrap=True)


class LogToScreen(logging.Handler):
    """The log of the library, cleaned, on standard error."""

    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        """One record; of a traceback every line."""
        text = f"{record.levelname.lower()}: {self.format(record)}"
        self._screen.insist("\n".join(clean(line) for line in text.splitlines()))


def _console(*, stderr: bool) -> Console:
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def _table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> Table:
    """A table without the columns that say nothing."""
    telling = [number for number, _ in enumerate(columns) if any(row[number] != NOTHING for row in cells)]
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for number in telling:
        words = any(" " in row[number] for row in cells)
        table.add_column(columns[number], overflow="fold", no_wrap=not words)
    for row in cells:
        table.add_row(*(Text(row[number]) for number in telling))
    return table
