"""A saved model on any corpus, and two runs against each other."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ser_ray.base import storage
from ser_ray.base.console import say
from ser_ray.base.errors import UserError
from ser_ray.experiment.run import SPEAKER_NORM, predict_rows
from ser_ray.model.bundle import Bundle, load
from ser_ray.model.speakers import hear_speakers
from ser_ray.scores import metrics, report
from ser_ray.scores.run_folder import claim, read_run, refuse_finished, versions, write_run
from ser_ray.speech.emotions import EMOTIONS, LabelSet
from ser_ray.store.store import Store

CLASHING, UNTRAINED = "same audio under several emotions", "emotion not among the model's labels"
HEARD = "speaker heard in training"
MENDS = {
    CLASHING: "whose labels agree",
    UNTRAINED: "with emotions that the model knows",
    HEARD: "with speakers that the model has not heard",
}


def load_models(roots: Sequence[str]) -> list[Bundle]:
    """Read models that are to answer together.

    Args:
        roots: What `bundle.load` takes.

    Raises:
        UserError: One cannot be read, or has other features or labels than the first.
    """
    bundles = [load(root) for root in roots]
    for root, other in zip(roots, bundles, strict=True):
        if (other.features, other.labels) != (bundles[0].features, bundles[0].labels):
            raise UserError(f"{root} has other features or labels than {roots[0]}, so they cannot answer together")
    return bundles


def evaluate(
    bundles: Sequence[Bundle], store: Store, run_root: str, command: str, embed_audio: bool = False
) -> dict[str, Any]:
    """Score a model, or several that answer together, on all clips of a store whose speakers none of them has heard.

    Args:
        bundles: The models, as `load_models` gives them.
        store: Complete store of their features.
        run_root: Folder or URI to write the results to.
        command: The command line, for the record.
        embed_audio: Put the sounds of the worst mistakes into the report.

    Returns:
        The content of `metrics.json`.

    Raises:
        UserError: No clip is left, or the folder holds another run.
    """
    refuse_finished(run_root)
    labels = bundles[0].labels
    facts = [bundle.facts for bundle in bundles]
    heard = sorted({speaker for bundle in bundles for speaker in bundle.heard_speakers})
    identity = {
        "clips_digest": store.info()["clips_digest"],
        "model": facts[0] if len(facts) == 1 else facts,
        "features": store.info()["features"],
    }
    claim(run_root, identity, command)
    started = time.perf_counter()
    rows = store.rows()
    clashing = [name for group in store.info()["label_conflicts"] for name in group]
    usable = pc.equal(rows["augmentation"], "none").to_numpy()
    reasons = {
        CLASHING: np.isin(rows["utterance_id"].to_numpy(), clashing),
        UNTRAINED: np.array([labels.index(e) is None for e in rows["emotion"].to_pylist()]),
        HEARD: np.isin(rows["speaker_id"].to_numpy(), heard),
    }
    excluded = {}
    for reason, applies in reasons.items():
        if count := int((usable & applies).sum()):
            excluded[reason] = count
            say(f"left out: {count} clips, {reason}")
        usable &= ~applies
    if not usable.any():
        raise UserError(_nothing_left(excluded, labels, set(rows["emotion"].to_pylist())))
    indices = np.flatnonzero(usable)
    speakers = set(rows["speaker_id"].take(indices).to_pylist())
    normed = any(bundle.model.speaker_norm for bundle in bundles)
    known = hear_speakers(store, speakers) if normed else {}
    answers = [predict_rows(bundle, store, indices, bundle.normalizer(known)) for bundle in bundles]
    predictions = _together(answers, labels.names)
    scores = {
        **metrics.score(predictions, labels.names),
        "protocol": "evaluation",
        "fold": None,
        "description": f"{'A saved model' if len(bundles) == 1 else f'{len(bundles)} saved models together'} tested on "
        f"{len(speakers)} speakers, none of whom was heard in training.{f' {SPEAKER_NORM}' if normed else ''}",
        "notes": sorted({note for each in facts for note in each.get("notes", [])}),
        "leaks": {
            "leaky": False,
            "forbidden": ["speakers"],
            "train_test": {"speakers": len(speakers & set(heard))},
        },
        "excluded": excluded,
        "temperature": bundles[0].temperature if len(bundles) == 1 else [bundle.temperature for bundle in bundles],
        "config": identity,
        "command": command,
        "versions": versions(),
        "timing": {"test_s": time.perf_counter() - started},
    }
    write_run(run_root, store, scores, predictions, embed_audio=embed_audio)
    return scores


def _nothing_left(excluded: dict[str, int], labels: LabelSet, shown: set[str]) -> str:
    """Say in one line why no clip can be tested, and what to do.

    Args:
        excluded: Number of clips by the reason why they were left out.
        labels: What the model was trained on.
        shown: The emotions of the data.
    """
    if not excluded:
        return "no clip is left to test on: the store is empty; choose other --data"
    parts = [f"{count} clips, {reason}" for reason, count in excluded.items()]
    if UNTRAINED in excluded:
        known, there = ([e for e in EMOTIONS if e in some] for some in ({*labels.names, *dict(labels.merged)}, shown))
        parts.append(f"the model knows {', '.join(known)}, the data show {', '.join(there)}")
    mends = " and ".join(MENDS[reason] for reason in excluded)
    return f"no clip is left to test on: {'; '.join(parts)}; choose --data {mends}"


def _together(predictions: list[pa.Table], names: Sequence[str]) -> pa.Table:
    """Return the answers of several models to the same clips as one: the mean of their log-probabilities."""
    first = predictions[0]
    if len(predictions) == 1:
        return first
    mean_NC = metrics.pool_answers([np.stack(table["probabilities"].to_pylist()) for table in predictions])
    columns = {
        "predicted": pa.array(np.array(names)[mean_NC.argmax(axis=1)]),
        "probabilities": pa.array(list(mean_NC), pa.list_(pa.float64())),
    }
    for name, column in columns.items():
        first = first.set_column(first.column_names.index(name), name, column)
    return first


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
        say(f"{text}; both together {numbers['together']:.1%}")
