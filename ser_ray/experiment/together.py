"""Finished runs that answer together on the clips that all of them tested, by what they said there.

Each fold is weighed by itself, by the speakers who validated there, so that no weight knows whom it is tested on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ser_ray.base.errors import UserError
from ser_ray.model.files import fold_roots
from ser_ray.model.model import pool_predictions
from ser_ray.model.together import Weighing, read_validation, refuse_twice, share_clips, weigh_runs
from ser_ray.scores import metrics
from ser_ray.scores.comparison import compare_together, tell_alike
from ser_ray.scores.run_folder import RunFolder, read_run
from ser_ray.scores.scores import Scores, join_leaks


@dataclass(frozen=True)
class _Part:
    """One finished run, or a fold of one.

    Attributes:
        root: Where it is.
        scores: Its `metrics.json`.
        predictions: One row per tested clip.
        validation: One row per validation clip; None where the run does not keep them.
    """

    root: str
    scores: dict[str, Any]
    predictions: pa.Table
    validation: pa.Table | None


def evaluate_together(roots: Sequence[str], folder: RunFolder) -> dict[str, Any]:
    """Score what finished runs say together, by the weighted mean of their log-probabilities.

    Args:
        roots: Runs that tested the same clips, or cross-validated runs of the same folds.
        folder: Where to write the results.

    Returns:
        The content of `metrics.json`.

    Raises:
        UserError: A run is not finished or named twice, runs have other labels or tested other clips than the first, or
            the folder holds another run.
    """
    folder.refuse_finished()
    refuse_twice(roots)
    runs = {root: [_Part(fold, *read_run(fold), read_validation(fold)) for fold in fold_roots(root)] for root in roots}
    folds = list(zip(*_align(runs).values(), strict=True))
    first, labels = folds[0][0].scores, folds[0][0].scores["labels"]
    weighings = [weigh_runs([[part.validation] for part in fold], labels) for fold in folds]
    config = {
        "runs": {root: parts[0].scores["config"] for root, parts in runs.items()},
        "weights": [weighing.weights for weighing in weighings],
    }
    folder.claim(config)
    answers = [share_clips([part.predictions for part in fold]) for fold in folds]
    pooled = [
        pool_predictions(tables, labels, weighing.weights) for tables, weighing in zip(answers, weighings, strict=True)
    ]
    alone = {root: pa.concat_tables(tables) for root, tables in zip(roots, zip(*answers, strict=True), strict=True)}
    every = [part.scores for fold in folds for part in fold]
    scores = Scores(
        measured=metrics.pool(pooled, labels) if len(folds) > 1 else metrics.score(pooled[0], labels),
        protocol=first["protocol"],
        fold=_name_folds(folds, all(RunFolder(root).is_finished for root in roots)),
        description=f"{_describe(weighings, len(roots))} First run: {first['description']}",
        leaks=join_leaks([each["leaks"] for each in every]),
        config=config,
        command=folder.command,
        timing={"train_s": sum(each["timing"].get("train_s", 0.0) for each in every)},
        made_speech=any(each.get("made_speech") for each in every),
        notes=(*dict.fromkeys(note for each in every for note in each.get("notes", ())), *tell_alike(weighings)),
        together=compare_together(alone, pa.concat_tables(pooled), weighings, labels),
    )
    return folder.finish(scores, pa.concat_tables(pooled), None)


def _align(runs: dict[str, list[_Part]]) -> dict[str, list[_Part]]:
    """Return runs whose labels, protocol, folds and tested clips are the same.

    Raises:
        UserError: Those of one are not those of the first.
    """
    (root, parts), *others = runs.items()
    for other, own in others:
        for name in ("fold", "labels", "protocol"):
            if [part.scores.get(name) for part in own] != [part.scores.get(name) for part in parts]:
                raise UserError(f"{other} has not the {name} of {root}: name runs of the same --{name}")
        for one, two in zip(parts, own, strict=True):
            ids = [sorted(part.predictions["utterance_id"].to_pylist()) for part in (one, two)]
            if ids[0] != ids[1]:
                strange = sorted(set(ids[0]) ^ set(ids[1])) or ids[0]
                raise UserError(
                    f"{two.root} and {one.root} did not test the same clips: {len(strange)} were tested by one of them "
                    f"alone, such as {strange[0]}; name runs of the same --data and --corpus"
                )
            emotions = [part.predictions.sort_by("utterance_id")["emotion"].to_pylist() for part in (one, two)]
            if emotions[0] != emotions[1]:
                raise UserError(f"{two.root} and {one.root} call the same clips by different labels: train one anew")
    return runs


def _name_folds(folds: Sequence[Sequence[_Part]], finished: bool) -> int | str | None:
    """Return which folds were tested: the only one, `all`, or those that unfinished cross-validations have by now."""
    names = [fold[0].scores.get("fold") for fold in folds]
    return names[0] if len(names) == 1 else "all" if finished else ", ".join(map(str, names))


def _describe(weighings: Sequence[Weighing], count: int) -> str:
    """Say how the runs answer together."""
    why = list(dict.fromkeys(weighing.why for weighing in weighings))
    if len(weighings) > 1 and all(weighing.clips for weighing in weighings):
        why = [f"weights fitted in each of {len(weighings)} folds to the clips of its validation speakers"]
    return f"{count} runs together, by the weighted mean of their log-probabilities: {'; '.join(why)}."
