"""What a job says while it works: lines, tables and progress, as bars on a terminal and as plain lines elsewhere."""

from __future__ import annotations

import codecs
import io
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the job to end where nobody reads its output any more."""
        raise BrokenPipeError


console = _Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)
_log_console = _Console(highlight=False, width=400)  # for tables in log files, where none need be folded
PLAIN_INTERVAL_S = 5.0
# What stands for characters that an output cannot write.
PLAIN = {"×": "x", "–": "-", "±": "+/-", "…": "...", "█": "#", "·": "."}


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Answer Python where a character cannot be encoded: what to write for it, and where to go on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(PLAIN.get(character, "?") for character in error.object[error.start : error.end]), error.end


def write_anywhere() -> None:
    """Let standard output and error take any text, whatever their encoding: what it lacks becomes plain."""
    codecs.register_error("ser_ray.plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook's is none
            stream.reconfigure(errors="ser_ray.plain")


def say(text: str) -> None:
    """Print a line; markup in it stays text, since it may name files."""
    console.print(escape(text))


def show_table(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print rows of the same keys as a table; numbers stand to the right."""
    if rows:
        (console if console.is_terminal else _log_console).print(_table(title, rows), soft_wrap=False)


def _table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title=escape(title), title_justify="left", title_style="bold")
    for key, value in rows[0].items():
        numeric = isinstance(value, int | float) or value is None
        table.add_column(key.replace("_", " "), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    return table


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else escape(str(value))


class Tracker:
    """Progress of one long piece of work: how much is done, how fast, how long it will take."""

    def __init__(self, title: str, total: int, bar: Progress | None, unit: str = "clips") -> None:
        self.title, self.total, self.bar, self.unit = title, total, bar, unit
        self.done, self.note = 0, ""
        self.started = self.spoke = time.monotonic()
        self.counted_from = (0, self.started)
        self.task = bar.add_task(title, total=total, note="starting") if bar else None

    def advance(self, count: int, note: str = "") -> None:
        """Count work done; `note` stands beside the bar, such as the number of rejects."""
        now = time.monotonic()
        if not self.done:
            self.counted_from = (count, now)  # what came before is start-up, which says nothing about the time left
        self.done += count
        done, since = self.counted_from if now - self.counted_from[1] > 1 else (0, self.started)
        rate = (self.done - done) / max(now - since, 1e-9)
        self.note = f"{rate:.1f} {self.unit}/s{', ' + note if note else ''}"
        if self.bar:
            self.bar.update(self.task, advance=count, note=self.note)
        elif now - self.spoke >= PLAIN_INTERVAL_S or self.done >= self.total:
            self.spoke = now
            left = f", {(self.total - self.done) / rate:.0f} s left" if rate else ""
            say(f"{self.title}: {self.done}/{self.total}, {self.note}{left}")


@contextmanager
def watch() -> Iterator[Callable[[str, Sequence[dict[str, Any]]], None]]:
    """Give a function that shows a table in the place of the one before; without a terminal it shows nothing."""
    if not console.is_terminal:
        yield lambda title, rows: None
        return
    with Live(console=console, refresh_per_second=2) as live:
        yield lambda title, rows: live.update(_table(title, rows) if rows else Text(title))


@contextmanager
def track(title: str, total: int, unit: str = "clips") -> Iterator[Tracker]:
    """Show progress within the context: a bar on a terminal, a plain line every few seconds elsewhere."""
    if not console.is_terminal:
        yield Tracker(title, total, None, unit)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        yield Tracker(title, total, bar, unit)
