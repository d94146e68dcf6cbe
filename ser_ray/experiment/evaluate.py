"""A saved model on any corpus, or several that answer together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from ser_ray.base.console import say
from ser_ray.base.errors import UserError
from ser_ray.experiment.heard import add_warning, warn_of_encoder
from ser_ray.model.model import Model, pool_predictions
from ser_ray.model.speakers import TOLD, listen
from ser_ray.scores import metrics
from ser_ray.scores.run_folder import RunFolder
from ser_ray.scores.scores import Scores
from ser_ray.speech.corpora import CORPORA
from ser_ray.speech.emotions import EMOTIONS, LabelSet
from ser_ray.store.rows import Rows, open_rows
from ser_ray.store.store import Store

CLASHING, UNTRAINED = "same audio under several emotions", "emotion not among the model's labels"
CLIP_HEARD, HEARD = "trained on", "speaker heard in training"
NAMED_ALIKE = "speaker of the same name as one in training"
_OTHERS = "with speakers that the model has not heard"
MENDS = {
    CLASHING: "whose labels agree",
    UNTRAINED: "with emotions that the model knows",
    CLIP_HEARD: _OTHERS,
    HEARD: _OTHERS,
    NAMED_ALIKE: "by another name, as in --data NAME=TABLE, if these are other people",
}


def evaluate(models: Sequence[Model], store: Store, folder: RunFolder) -> dict[str, Any]:
    """Score a model, or several that answer together, on all clips of a store whose speakers none was trained on.

    Args:
        models: The models, as `model.files.load_models` gives them.
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
    rows, excluded = _choose_unheard(everything, models)
    speakers, normed = rows.values("speaker_id"), any(model.speaker_norm for model in models)
    known = listen(everything.take(everything.among("speaker_id", speakers))) if normed else {}
    warnings = dict.fromkeys(filter(None, (warn_of_encoder(model.features, rows) for model in models)))
    predictions = pool_predictions([model.predict_rows(rows, known) for model in models], labels.names)
    scores = Scores(
        measured=metrics.score(predictions, labels.names),
        protocol="evaluation",
        fold=None,
        description=_describe(models, rows),
        leaks=add_warning(
            {
                "leaky": False,
                "forbidden": ["speakers", "clips_by_content"],
                "train_test": {
                    "speakers": len(speakers & {name for model in models for name in model.trained_on}),
                    "clips_by_content": sum(int(model.was_trained_on(rows).sum()) for model in models),
                },
            },
            " ".join(warnings),
        ),
        config=identity,
        command=folder.command,
        timing={"test_s": time.perf_counter() - started},
        made_speech=rows.made_speech or any(model.made_speech for model in models),
        notes=tuple(sorted({*warnings, *(note for each in facts for note in each.get("notes", []))})),
        excluded=excluded,
        temperature=models[0].temperature if len(models) == 1 else [model.temperature for model in models],
    )
    return folder.finish(scores, predictions, store)


def _describe(models: Sequence[Model], rows: Rows) -> str:
    """Say who answers, and what is known of whom they heard."""
    who = "A saved model" if len(models) == 1 else f"{len(models)} saved models together"
    text = f"{who} tested on {len(rows.values('speaker_id'))} speakers, none of whom was heard in training"
    named = rows.values("corpus") - {corpus.NAME for corpus in CORPORA}
    if any(model.trained_clips is None for model in models):
        text += " as far as names tell: a model of an older version does not know the files that it was trained on"
    elif named:
        text += f" as far as names and files tell ({', '.join(sorted(named))})"
    return f"{text}. {TOLD}" if any(model.speaker_norm for model in models) else f"{text}."


def _choose_unheard(rows: Rows, models: Sequence[Model]) -> tuple[Rows, dict[str, int]]:
    """Return the clips that can be tested, and how many were left out by reason.

    A file that was trained on is known by its content, whatever its name, and so is its speaker. A speaker's name tells
    the same person within the corpora that are known here; in a table of one's own it may be that of another.

    Raises:
        UserError: None is left.
    """
    labels = models[0].labels
    clashing = [name for group in rows.source.info["label_conflicts"] for name in group]
    known = [emotion for emotion in rows.values("emotion") if labels.index(emotion) is not None]
    trained = np.logical_or.reduce([model.was_trained_on(rows) for model in models])
    names = {speaker for model in models for speaker in model.trained_on}
    published = rows.among("corpus", [corpus.NAME for corpus in CORPORA])
    named = rows.among("speaker_id", names)
    usable = rows.among("augmentation", ["none"])
    if trained[usable].all():
        raise UserError("all of these clips were trained on: name --data with other clips, of other speakers")
    reasons = {
        CLASHING: rows.among("utterance_id", clashing),
        UNTRAINED: ~rows.among("emotion", known),
        CLIP_HEARD: trained,
        HEARD: (named & published) | rows.among("speaker_id", rows.take(trained).values("speaker_id")),
        NAMED_ALIKE: named,
    }
    excluded = {}
    for reason, applies in reasons.items():
        if count := int((usable & applies).sum()):
            excluded[reason] = count
            say(f"left out: {count} clips, {reason}")
        usable &= ~applies
    if not usable.any():
        raise UserError(_nothing_left(rows, labels, excluded))
    return rows.take(np.flatnonzero(usable)), excluded


def _nothing_left(rows: Rows, labels: LabelSet, excluded: dict[str, int]) -> str:
    """Say in one line why no clip can be tested, and what to do.

    Args:
        rows: All of the data.
        labels: What the model was trained on.
        excluded: Number of clips by the reason why they were left out.
    """
    if not excluded:
        return "no clip is left to test on: the store is empty; choose other --data"
    parts = [f"{count} clips, {reason}" for reason, count in excluded.items()]
    if UNTRAINED in excluded:
        known = [e for e in EMOTIONS if e in {*labels.names, *dict(labels.merged)}]
        there = [e for e in EMOTIONS if e in rows.values("emotion")]
        parts.append(f"the model knows {', '.join(known)}, the data show {', '.join(there)}")
    mends = dict.fromkeys(MENDS[reason] for reason in excluded)
    return f"no clip is left to test on: {'; '.join(parts)}; choose --data {' and '.join(mends)}"
