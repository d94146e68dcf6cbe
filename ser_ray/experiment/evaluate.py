"""A saved model on any corpus, or several that answer together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from ser_ray.base.console import say
from ser_ray.base.errors import UserError
from ser_ray.experiment.heard import add_warning, warn_of_encoder
from ser_ray.model.model import Model, pool_predictions
from ser_ray.model.speakers import TOLD, Known, listen
from ser_ray.model.together import Together
from ser_ray.scores import metrics
from ser_ray.scores.comparison import compare_together, tell_alike
from ser_ray.scores.run_folder import RunFolder
from ser_ray.scores.scores import Scores
from ser_ray.speech.corpora import CORPORA
from ser_ray.speech.emotions import EMOTIONS, LabelSet
from ser_ray.store.rows import Rows, open_rows
from ser_ray.store.store import Store

CLASHING, UNTRAINED = "same audio under several emotions", "emotion not among the model's labels"
CLIP_HEARD, HEARD = "trained on", "speaker heard in training"
UNREAD = "refused by the features of one of the runs"
NAMED_ALIKE = "speaker of the same name as one in training"
_OTHERS = "with speakers that the model has not heard"
MENDS = {
    CLASHING: "whose labels agree",
    UNTRAINED: "with emotions that the model knows",
    CLIP_HEARD: _OTHERS,
    HEARD: _OTHERS,
    NAMED_ALIKE: "by another name, as in --data NAME=TABLE, if these are other people",
}


def evaluate(models: Together | Sequence[Model], stores: Store | Sequence[Store], folder: RunFolder) -> dict[str, Any]:
    """Score a model, or several that answer together, on all clips of a store whose speakers none was trained on.

    Args:
        models: The models, as `model.together.open_models` gives them; those of a plain sequence count alike.
        stores: Finished stores of the same clips, one for each kind of features that the models take, or the only one.
        folder: Where to write the results.

    Returns:
        The content of `metrics.json`.

    Raises:
        UserError: No clip is left, features have no store, or the folder holds another run.
    """
    folder.refuse_finished()
    started = time.perf_counter()
    together = models if isinstance(models, Together) else Together.of(models)
    labels, facts = together.labels, [model.facts for model in together.models]
    everything = [open_rows(store) for store in ([stores] if isinstance(stores, Store) else stores)]
    infos = [rows.source.info for rows in everything]
    identity = {
        "clips_digest": infos[0]["clips_digest"],
        "model": _only(facts),
        "features": _only([info["features"] for info in infos]),
    }
    several = len(together.runs) > 1
    if several:
        identity |= {"runs": together.roots, "weights": together.weighing.weights}
    folder.claim(identity)
    rows, excluded = _choose_unheard(everything[0], together.models)
    tested = _take_same([rows, *everything[1:]], excluded)
    warnings = dict.fromkeys(filter(None, (warn_of_encoder(features, tested[0]) for features in together.features)))
    known = [(each, _known(each, together.models)) for each in tested]
    answers = {root: _answer(run, known) for root, run in zip(together.roots, together.runs, strict=True)}
    predictions = pool_predictions(list(answers.values()), labels.names, together.weighing.weights)
    scores = Scores(
        measured=metrics.score(predictions, labels.names),
        protocol="evaluation",
        fold=None,
        description=_describe(together, tested[0]),
        leaks=add_warning(_count_heard(together.models, tested[0]), " ".join(warnings)),
        config=identity,
        command=folder.command,
        timing={"test_s": time.perf_counter() - started},
        made_speech=tested[0].made_speech or together.made_speech,
        notes=(
            *sorted({*warnings, *(note for each in facts for note in each.get("notes", []))}),
            *tell_alike([together.weighing]),
        ),
        excluded=excluded,
        temperature=_only([model.temperature for model in together.models]),
        together=compare_together(answers, predictions, [together.weighing], labels.names) if several else None,
    )
    return folder.finish(scores, predictions, tested[0].source.store)


def _only(values: list[Any]) -> Any:
    """Return the only one of some values, or all."""
    return values[0] if len(values) == 1 else values


def _answer(models: Sequence[Model], tested: Sequence[tuple[Rows, dict[str, Known]]]) -> pa.Table:
    """Return what the models of one run say of the clips that are tested.

    Args:
        models: The models.
        tested: The clips' rows in each store, and what is known there of their speakers.

    Raises:
        UserError: No store has the features of a model.
    """
    answers = []
    for model in models:
        own = [(rows, known) for rows, known in tested if rows.recipe.features == model.features]
        if not own:
            raise UserError(f"no store of the {model.features.name} features of a model is given")
        answers.append(model.predict_rows(*own[0]))
    return pool_predictions(answers, models[0].labels.names)


def _known(rows: Rows, models: Sequence[Model]) -> dict[str, Known]:
    """Return what all clips in a store tell of the speakers of some rows, where a model normalizes by it."""
    if not any(model.speaker_norm and model.features == rows.recipe.features for model in models):
        return {}
    everything = replace(rows, index_N=np.arange(rows.source.table.num_rows))
    return listen(everything.take(everything.among("speaker_id", rows.values("speaker_id"))))


def _take_same(stores: Sequence[Rows], excluded: dict[str, int]) -> list[Rows]:
    """Return the rows, in each store, of the clips that are in all; what that leaves out is said and counted."""
    names = set.intersection(*(rows.values("utterance_id") for rows in stores))
    if count := len(stores[0]) - len(names):
        excluded[UNREAD] = count
        say(f"left out: {count} clips, {UNREAD}")
    if not names:
        raise UserError("no clip is left to test on: the stores of the runs' features share none; choose other --data")
    return [rows.take(rows.among("utterance_id", names) & rows.among("augmentation", ["none"])) for rows in stores]


def _count_heard(models: Sequence[Model], rows: Rows) -> dict[str, Any]:
    """Count what the tested clips share with those that the models were trained on."""
    trained_on = {name for model in models for name in model.trained_on}
    clips = sum(int(model.was_trained_on(rows).sum()) for model in models)
    shared = {"speakers": len(rows.values("speaker_id") & trained_on), "clips_by_content": clips}
    return {"leaky": False, "forbidden": ["speakers", "clips_by_content"], "train_test": shared}


def _describe(together: Together, rows: Rows) -> str:
    """Say who answers, and what is known of whom they heard."""
    models = together.models
    who = "A saved model" if len(models) == 1 else f"{len(models)} saved models together"
    if len(together.runs) > 1:
        who += f" ({together.weighing.why})"
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
