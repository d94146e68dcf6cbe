"""A saved model on any corpus, or several that answer together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from ser_ray.base.console import say
from ser_ray.base.errors import UserError
from ser_ray.model.files import load_model
from ser_ray.model.model import Model, pool_predictions
from ser_ray.model.speakers import TOLD, listen
from ser_ray.scores import metrics
from ser_ray.scores.run_folder import RunFolder
from ser_ray.scores.scores import Scores
from ser_ray.speech.emotions import LabelSet
from ser_ray.store.rows import Rows, open_rows
from ser_ray.store.store import Store


def load_models(roots: Sequence[str]) -> list[Model]:
    """Read models that are to answer together.

    Args:
        roots: Folders as `load_model` takes them.

    Raises:
        UserError: One cannot be read, or has other features or labels than the first.
    """
    models = [load_model(root) for root in roots]
    for root, other in zip(roots, models, strict=True):
        if (other.features, other.labels) != (models[0].features, models[0].labels):
            raise UserError(f"{root} has other features or labels than {roots[0]}, so they cannot answer together")
    return models


def evaluate(models: Sequence[Model], store: Store, folder: RunFolder) -> dict[str, Any]:
    """Score a model, or several that answer together, on all clips of a store whose speakers none was trained on.

    Args:
        models: The models, as `load_models` gives them.
        store: Finished store of their features.
        folder: Where to write the results.

    Returns:
        The content of `metrics.json`.

    Raises:
        UserError: No clip is left, or the folder holds another run.
    """
    folder.refuse_finished()
    started, labels, facts = time.perf_counter(), models[0].labels, [model.facts for model in models]
    everything = open_rows(store)
    identity = {
        "clips_digest": everything.source.info["clips_digest"],
        "model": facts[0] if len(facts) == 1 else facts,
        "features": everything.source.info["features"],
    }
    folder.claim(identity)
    trained_on = {speaker for model in models for speaker in model.trained_on}
    rows, excluded = _choose_unheard(everything, labels, trained_on)
    speakers, normed = rows.values("speaker_id"), any(model.speaker_norm for model in models)
    known = listen(everything.take(everything.among("speaker_id", speakers))) if normed else {}
    predictions = pool_predictions([model.predict_rows(rows, known) for model in models], labels.names)
    scores = Scores(
        measured=metrics.score(predictions, labels.names),
        protocol="evaluation",
        fold=None,
        description=f"{'A saved model' if len(models) == 1 else f'{len(models)} saved models together'} tested on "
        f"{len(speakers)} speakers, none of whom was heard in training.{f' {TOLD}' if normed else ''}",
        leaks={
            "leaky": False,
            "forbidden": ["speakers"],
            "train_test": {"speakers": len(speakers & trained_on)},
        },
        config=identity,
        command=folder.command,
        timing={"test_s": time.perf_counter() - started},
        made_speech=rows.made_speech or any(model.made_speech for model in models),
        notes=tuple(sorted({note for each in facts for note in each.get("notes", [])})),
        excluded=excluded,
        temperature=models[0].temperature if len(models) == 1 else [model.temperature for model in models],
    )
    return folder.finish(scores, predictions, store)


def _choose_unheard(rows: Rows, labels: LabelSet, trained_on: set[str]) -> tuple[Rows, dict[str, int]]:
    """Return the clips that can be tested, and how many were left out by reason.

    Raises:
        UserError: None is left.
    """
    clashing = [name for group in rows.source.info["label_conflicts"] for name in group]
    known = [emotion for emotion in rows.values("emotion") if labels.index(emotion) is not None]
    usable = rows.among("augmentation", ["none"])
    reasons = {
        "same audio under several emotions": rows.among("utterance_id", clashing),
        "emotion not among the model's labels": ~rows.among("emotion", known),
        "speaker heard in training": rows.among("speaker_id", trained_on),
    }
    excluded = {}
    for reason, applies in reasons.items():
        if count := int((usable & applies).sum()):
            excluded[reason] = count
            say(f"left out: {count} clips, {reason}")
        usable &= ~applies
    if not usable.any():
        raise UserError("no clip is left to test on; choose --data with speakers that the model has not heard")
    return rows.take(np.flatnonzero(usable)), excluded
