"""What the terminal shows of answers: windows as a table and as a line of blocks in the emotions' colours.

Where there are no colours, as in a log file, each block is an emotion's letter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from ser_ray.base.console import console, say, show_table
from ser_ray.speech.emotions import COLORS

MAX_SHOWN = 40  # windows of a single recording
LETTERS = {emotion: emotion[0] for emotion in COLORS} | {"surprised": "u"}
SILENT, UNSURE = "silent", "unsure"
_BLOCK, _MARKS = "█", {SILENT: "·", UNSURE: "?"}
_MOST_CELLS, _LONGEST_NAME = 100, 32


def kind_of(window: Mapping[str, Any]) -> str:
    """Return what a window is answered with: its emotion, or `unsure`, or `silent`."""
    return window["emotion"] or (SILENT if window["probability"] is None else UNSURE)


def shorten(name: str) -> str:
    """Return a file's name, its middle left out where it is long."""
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 13]}…{name[-12:]}"


def show_windows(title: str, windows: Sequence[Mapping[str, Any]]) -> None:
    """Show the windows of one recording as a table."""
    rows = [
        {
            **{name: window[name] for name in ("channel", "start", "end")},
            "emotion": kind_of(window),
            **{name: window[name] for name in ("probability", "entropy")},
        }
        for window in windows[:MAX_SHOWN]
    ]
    show_table(title, rows)
    if len(windows) > MAX_SHOWN:
        say(f"and {len(windows) - MAX_SHOWN} more windows")


def show_timelines(timelines: Sequence[tuple[str, float, float, Sequence[Mapping[str, Any]]]]) -> None:
    """Show a line of blocks for each channel of some recordings, and what the blocks mean.

    Args:
        timelines: Of each its name, where it begins and ends in seconds, and its windows by time.
    """
    colored = console.is_terminal and not console.no_color and console.color_system is not None
    wide = max((len(name) for name, *_ in timelines), default=0)
    width = max(10, min(_MOST_CELLS, console.width - wide - 1))
    seen: dict[str, None] = {}
    for name, start_s, end_s, windows in timelines:
        line = Text(f"{name:{wide}} ", no_wrap=True)
        for kind in draw_cells(windows, start_s, end_s, width):
            seen.setdefault(kind)
            line.append(*_cell(kind, colored))
        console.print(line)
    legend = Text()
    for kind in [kind for kind in (*COLORS, UNSURE, SILENT) if kind in seen]:
        between = "   " if len(legend.plain.rpartition("\n")[2]) + len(kind) + 5 <= console.width else "\n"
        legend.append(between if legend else "").append(*_cell(kind, colored)).append(f" {kind}")
    console.print(legend)


def draw_cells(windows: Sequence[Mapping[str, Any]], start_s: float, end_s: float, width: int) -> list[str]:
    """Return what each of some cells of equal length shows: the last window that begins before the cell's middle.

    Args:
        windows: By time.
        start_s: Where the first cell begins.
        end_s: Where the last one ends.
        width: How many cells.
    """
    cells, place = [], 0
    for k in range(width):
        middle = start_s + (k + 0.5) * (end_s - start_s) / width
        while place + 1 < len(windows) and windows[place + 1]["start"] <= middle:
            place += 1
        cells.append(kind_of(windows[place]))
    return cells


def _cell(kind: str, colored: bool) -> tuple[str, str]:
    if kind in _MARKS:
        return _MARKS[kind], ""
    return (_BLOCK, COLORS[kind]) if colored else (LETTERS[kind], "")
