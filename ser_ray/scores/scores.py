"""`Scores`: the one schema of what a run, a cross-validation or an evaluation is worth, as `metrics.json` holds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from ser_ray import __version__

MADE_SPEECH = "These scores are for made speech: they show that everything runs, and say nothing about people."
_VERSIONED = ("ray", "torch", "numpy", "scikit-learn", "librosa", "pyarrow")


@dataclass(frozen=True)
class Scores:
    """What answers are worth, and what they were given to.

    Attributes:
        measured: From `metrics.score` or `metrics.pool`.
        protocol: Whom training and test do not share.
        fold: Which fold was tested, `all`, several by their numbers, or None where nothing was trained.
        description: The protocol in words.
        leaks: What the parts share, counted.
        config: What was asked for; the identity of the run.
        command: The command line that does it again.
        timing: Seconds of its parts, and workers.
        made_speech: Whether any of the clips is made speech, so that the scores say nothing about people.
        notes: What a reader must know besides, before the scores.
        excluded: Number of rows by the reason why they were left out.
        best_epoch: Epoch whose network was kept; None where several or none were trained.
        temperature: That calibrates the answers; one for each model.
        together: How much each of several runs counts, and what they are worth beside each of them
            (`comparison.compare_parts`); None of a single one.
    """

    measured: dict[str, Any]
    protocol: str
    fold: int | str | None
    description: str
    leaks: dict[str, Any]
    config: dict[str, Any]
    command: str
    timing: dict[str, Any]
    made_speech: bool = False
    notes: tuple[str, ...] = ()
    excluded: dict[str, int] = field(default_factory=dict)
    best_epoch: int | None = None
    temperature: float | list[float] | None = None
    together: dict[str, Any] | None = None

    def content(self) -> dict[str, Any]:
        """Return the content of `metrics.json`; what does not apply is not in it."""
        facts = {name: value for name, value in vars(self).items() if name not in ("measured", "made_speech", "notes")}
        notes = [*([MADE_SPEECH] if self.made_speech else []), *(note for note in self.notes if note != MADE_SPEECH)]
        return {
            **self.measured,
            **{name: value for name, value in facts.items() if value is not None},
            "made_speech": self.made_speech,
            "notes": notes,
            "versions": used_versions(),
        }


def join_leaks(each: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the leaks of several runs, such as folds, as one: of each count the largest, and leaky if any is."""
    counts = {
        pair: {kind: max(leaks[pair].get(kind, 0) for leaks in each) for kind in found}
        for pair, found in each[0].items()
        if isinstance(found, dict)
    }
    facts = {name: value for leaks in each for name, value in leaks.items() if not isinstance(value, dict)}
    return facts | {"leaky": any(leaks["leaky"] for leaks in each)} | counts


def used_versions() -> dict[str, str]:
    """Return the versions of ser_ray and of what its scores depend on."""
    return {"ser_ray": __version__, **{name: version(name) for name in _VERSIONED}}
