"""What is known of the trials of a search: a file for each one that ended, and the state of things on the screen."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ser_ray.base import storage
from ser_ray.base.console import say

SHOWN = 5  # trials that ended, on the screen


def read_trials(run_root: str) -> list[dict[str, Any]]:
    """Return the trials of a search that have ended, in the order in which they did."""
    folder = storage.join(run_root, "trials")
    names = [name for name in storage.list_names(folder) if name.endswith(".json")]  # no drafts of killed searches
    return sorted((storage.read_json(storage.join(folder, name)) for name in names), key=lambda trial: trial["ended"])


def ranked(trials: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the trials that can win, the best first; of equals the one that ended first.

    A trial that failed would fail again. One that was judged on more inner folds goes before one that was stopped
    earlier: their scores are means over other speakers.
    """
    good = [trial for trial in trials if trial["curve"] and trial["status"] != "failed"]
    return sorted(good, key=lambda trial: (-trial["folds"], -trial["curve"][-1]))


class Recorder:
    """Writes a file for each trial that ends, and shows how things stand."""

    def __init__(
        self,
        run_root: str,
        screen: Callable[[str, Sequence[dict[str, Any]]], None],
        total: int,
        ended: list[dict[str, Any]],
    ) -> None:
        self.run_root, self.screen, self.total = run_root, screen, total
        self.ended = list(ended)
        self.running: dict[str, dict[str, Any]] = {}

    def begin(self, trial: str, settings: dict[str, Any]) -> None:
        """Note that a trial begins."""
        record = {"trial": trial, "values": _plain(settings), "curve": [], "folds": 0, "began": time.time()}
        self.running.setdefault(trial, record)
        self._show()

    def epoch(self, trial: str, number: int, score: float, folds: int = 1) -> None:
        """Note the best score of a trial after an epoch, counted from 1; one that comes twice counts once.

        Args:
            trial: Its id.
            number: Of the epoch.
            score: The best so far, the mean over the inner folds that it was judged on.
            folds: How many these are.
        """
        if trial in self.running:
            self.running[trial]["folds"] = folds
            curve = self.running[trial]["curve"]
            curve.append(score)
            del curve[number:]
            self._show()

    def end(self, trial: str, status: str, error: str = "") -> None:
        """Keep a trial that `finished`, was `stopped`, or `failed`."""
        record = self.running.pop(trial, None)
        if record is None:
            return
        record |= {"status": status, "error": error, "ended": time.time()}
        storage.write_json(storage.join(self.run_root, "trials", f"{trial}.json"), record)
        self.ended.append(record)
        best = next((f"{t['curve'][-1]:.1%}" for t in ranked(self.ended)), "none yet")
        score = f"validation UAR {record['curve'][-1]:.1%}" if record["curve"] else error
        say(
            f"trial {len(self.ended)}/{self.total} {status} after {len(record['curve'])} epochs: {score}, "
            f"best {best}; {said(record['values'])}"
        )
        self._show()

    def _show(self) -> None:
        best = ranked(self.ended)[:SHOWN]
        rows = [*(("running", t) for t in self.running.values()), *((t["status"], t) for t in best)]
        self.screen(
            f"{len(self.ended)} of {self.total} trials ended",
            [
                {
                    "trial": t["trial"],
                    "": status,
                    "epochs": len(t["curve"]),
                    "UAR": t["curve"][-1],
                    **_short(t["values"]),
                }
                for status, t in rows
                if t["curve"]
            ],
        )


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return values as JSON knows them."""
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}


def _short(values: dict[str, Any]) -> dict[str, str]:
    return {name: f"{value:.3g}" if isinstance(value, float) else str(value) for name, value in values.items()}


def said(values: dict[str, Any]) -> str:
    """Return settings as one line."""
    return ", ".join(f"{name} {value}" for name, value in _short(values).items())
