"""Progress and tables on a terminal: with rich where it is installed, else plain lines.

Progress goes to stderr and results to stdout, so that a result can be piped. Only
the process that made the progress draws it, and without a thread, so that it may
go on forking.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.progress

__all__ = ["Progress", "print_table"]

_REDRAW = 0.1  # seconds between two drawings of a bar
_NEXT_LINE = 1.0  # seconds between two plain lines


class Progress:
    """How far each of several stages is."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._stage = ""
        self._shown = 0.0
        self._bars = _rich_bars(unit)
        self._bar: rich.progress.TaskID | None = None

    def advance(self, stage: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` are through in ``stage``."""
        now = time.monotonic()
        new, last = stage != self._stage, done == total
        if self._bars is not None:
            if new:
                self._bar = self._bars.add_task(stage, total=total)
            if self._bar is not None:
                redraw = new or last or now - self._shown >= _REDRAW
                self._bars.update(self._bar, completed=done, refresh=redraw)
                self._shown = now if redraw else self._shown
        elif last or (not new and now - self._shown >= _NEXT_LINE):
            print(f"{stage}: {done:,} of {total:,} {self._unit}", file=sys.stderr, flush=True)
            self._shown = now
        elif new:
            self._shown = now
        self._stage = stage

    def __enter__(self) -> Progress:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()


def _rich_bars(unit: str) -> rich.progress.Progress | None:
    if not sys.stderr.isatty():
        return None
    try:
        from rich import progress
        from rich.console import Console
    except ImportError:
        return None
    return progress.Progress(
        progress.TextColumn("{task.description:28}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn(unit),
        progress.TimeElapsedColumn(),
        console=Console(stderr=True),
        auto_refresh=False,
    )


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under their columns; the first column to the left, the others to the right."""
    if sys.stdout.isatty():
        try:
            from rich.console import Console
            from rich.table import Table
        except ImportError:
            pass
        else:
            table = Table()
            for number, column in enumerate(columns):
                table.add_column(column, justify="right" if number else "left")
            for row in rows:
                table.add_row(*row)
            Console().print(table)
            return
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        first, *others = (
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([first, *others]).rstrip())
