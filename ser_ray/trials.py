"""What is known of the trials of a search: a file for each one that ended, and the state of things on the screen."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ser_ray import storage
from ser_ray.console import say

SHOWN = 5  # trials that ended, on the screen


def read_trials(run_root: str) -> list[dict[str, Any]]:
    """Return the trials of a search that have ended, in the order in which they did."""
    folder = storage.join(run_root, "trials")
    trials = [storage.read_json(storage.join(folder, name)) for name in storage.list_names(folder)]
    return sorted(trials, key=lambda trial: trial["ended"])


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
        values = _plain(settings)
        self.running.setdefault(trial, {"trial": trial, "values": values, "curve": [], "began": time.time()})
        self._show()

    def epoch(self, trial: str, number: int, score: float) -> None:
        """Note the best score of a trial after an epoch, counted from 1; one that comes twice counts once."""
        if trial in self.running:
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
        best = max((max(t["curve"]) for t in self.ended if t["curve"]), default=0.0)
        score = f"validation UAR {record['curve'][-1]:.1%}" if record["curve"] else error
        say(
            f"trial {len(self.ended)}/{self.total} {status} after {len(record['curve'])} epochs: {score}, "
            f"best {best:.1%}; {said(record['values'])}"
        )
        self._show()

    def _show(self) -> None:
        best = sorted((t for t in self.ended if t["curve"]), key=lambda t: -t["curve"][-1])[:SHOWN]
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
