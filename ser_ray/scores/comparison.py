"""Two finished runs against each other, or what several say together against each of them, on clips that all tested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ser_ray.base import storage
from ser_ray.base.console import say
from ser_ray.base.errors import UserError
from ser_ray.model.together import Weighing
from ser_ray.scores import metrics
from ser_ray.scores.run_folder import read_run


def compare_runs(root_a: str, root_b: str, page: str, command: str) -> dict[str, Any]:
    """Compare two finished runs on the clips that both tested, by a paired bootstrap over speakers.

    Args:
        root_a: The first run.
        root_b: The second run.
        page: Where to write the report.
        command: The command line, for the record.

    Returns:
        What `metrics.compare` gives.

    Raises:
        UserError: A run is not finished, or they share no clips or not the labels.
    """
    from ser_ray.scores import report  # with matplotlib

    (scores_a, predictions_a), (scores_b, predictions_b) = read_run(root_a), read_run(root_b)
    if scores_a["labels"] != scores_b["labels"]:
        raise UserError("the two runs have different labels: compare runs with the same --labels")
    comparison = metrics.compare(predictions_a, predictions_b, scores_a["labels"])
    names = tuple(root.rstrip("/").rsplit("/", 1)[-1] for root in (root_a, root_b))
    title = f"{names[0]} and {names[1]}"
    html = report.comparison_page(
        title=title, comparison=comparison, names=names, metrics=(scores_a, scores_b), command=command
    )
    storage.write_text(page, html)
    return comparison


def show_comparison(comparison: dict[str, Any]) -> None:
    """Print the differences, second run minus first."""
    say(f"{comparison['num_common']} clips of {comparison['num_speakers']} speakers tested by both")
    for name in ("uar", "accuracy"):
        numbers = comparison[name]
        text = f"{name}: {numbers['a']:.1%} and {numbers['b']:.1%}, difference {numbers['difference']:+.1%}"
        if numbers["interval"]:
            low, high = numbers["interval"]
            text += f" (95 % interval {low:+.1%} to {high:+.1%}, p = {numbers['p_value']:.3g})"
        say(text)


def compare_together(
    answers: Mapping[str, pa.Table], pooled: pa.Table, weighings: Sequence[Weighing], labels: Sequence[str]
) -> dict[str, Any]:
    """Compare what several runs say together with what each of them says alone.

    Args:
        answers: The predictions of each run, by its name.
        pooled: Their predictions together.
        weighings: How much each counts: of all clips, or of each fold.
        labels: The class names of all.

    Returns:
        For `metrics.json`: `weighings`, one for all clips or one for each fold (`model.together.Weighing`), and `runs`,
        each with its name, its mean weight and what `metrics.compare` gives, together minus alone.
    """
    means = np.mean([weighing.weights for weighing in weighings], axis=0).tolist()
    runs = [
        {"run": name, "weight": weight, **metrics.compare(table, pooled, labels)}
        for (name, table), weight in zip(answers.items(), means, strict=True)
    ]
    return {"weighings": [weighing._asdict() for weighing in weighings], "runs": runs}


def tell_alike(weighings: Sequence[Weighing]) -> list[str]:
    """Return why weights could not be fitted, each reason once, as notes for whoever reads the scores."""
    several = [weighing for weighing in weighings if len(weighing.weights) > 1 and not weighing.clips]
    return list(dict.fromkeys(f"{weighing.why[0].upper()}{weighing.why[1:]}." for weighing in several))
