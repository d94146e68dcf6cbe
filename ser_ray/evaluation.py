"""A saved model on any corpus, and two runs against each other."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pyarrow.compute as pc

from ser_ray import metrics, report, storage
from ser_ray.bundle import Bundle
from ser_ray.console import say
from ser_ray.errors import UserError
from ser_ray.experiment import predict_rows
from ser_ray.results import claim, read_run, refuse_finished, versions, write_run
from ser_ray.store import Store


def evaluate(bundle: Bundle, store: Store, run_root: str, command: str, embed_audio: bool = False) -> dict[str, Any]:
    """Score a model on all clips of a store whose speakers it has not heard.

    Args:
        bundle: The model.
        store: Complete store of the model's features.
        run_root: Folder or URI to write the results to.
        command: The command line, for the record.
        embed_audio: Put the sounds of the worst mistakes into the report.

    Returns:
        The content of `metrics.json`.

    Raises:
        UserError: No clip is left, or the folder holds another run.
    """
    refuse_finished(run_root)
    identity = {
        "clips_digest": store.info()["clips_digest"],
        "model": bundle.facts,
        "features": store.info()["features"],
    }
    claim(run_root, identity, command)
    started = time.perf_counter()
    rows = store.rows()
    clashing = [name for group in store.info()["label_conflicts"] for name in group]
    usable = pc.equal(rows["augmentation"], "none").to_numpy()
    reasons = {
        "same audio under several emotions": np.isin(rows["utterance_id"].to_numpy(), clashing),
        "emotion not among the model's labels": np.array(
            [bundle.labels.index(e) is None for e in rows["emotion"].to_pylist()]
        ),
        "speaker heard in training": np.isin(rows["speaker_id"].to_numpy(), bundle.heard_speakers),
    }
    excluded = {}
    for reason, applies in reasons.items():
        if count := int((usable & applies).sum()):
            excluded[reason] = count
            say(f"left out: {count} clips, {reason}")
        usable &= ~applies
    if not usable.any():
        raise UserError("no clip is left to test on; choose --data with speakers that the model has not heard")
    predictions = predict_rows(bundle, store, np.flatnonzero(usable))
    speakers = set(predictions["speaker_id"].to_pylist())
    scores = {
        **metrics.score(predictions, bundle.labels.names),
        "protocol": "evaluation",
        "fold": None,
        "description": f"A saved model tested on {len(speakers)} speakers, none of whom it heard in training.",
        "notes": bundle.facts.get("notes", []),
        "leaks": {
            "leaky": False,
            "forbidden": ["speakers"],
            "train_test": {"speakers": len(speakers & set(bundle.heard_speakers))},
        },
        "excluded": excluded,
        "temperature": bundle.temperature,
        "config": identity,
        "command": command,
        "versions": versions(),
        "timing": {"test_s": time.perf_counter() - started},
    }
    write_run(run_root, store, scores, predictions, embed_audio=embed_audio)
    return scores


def compare(root_a: str, root_b: str, page: str, command: str) -> dict[str, Any]:
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
