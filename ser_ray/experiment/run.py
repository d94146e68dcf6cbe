"""One run of an experiment: train, and score on speakers never heard."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from torch import nn

from ser_ray.base import storage
from ser_ray.base.console import say, show_table
from ser_ray.base.errors import UserError
from ser_ray.experiment.experiment import Experiment, choose_rows
from ser_ray.experiment.splits import Split, check, split
from ser_ray.features.settings import FeatureConfig
from ser_ray.model.bundle import Bundle, answer, load, probabilities
from ser_ray.model.examples import COLUMNS, Examples
from ser_ray.model.speakers import Speakers
from ser_ray.networks.models import Ensemble
from ser_ray.scores import metrics
from ser_ray.scores.run_folder import MADE_SPEECH, claim, refuse_finished, show_epoch, versions, write_run
from ser_ray.speech.emotions import parse_labels
from ser_ray.store.store import Store, differences
from ser_ray.training.fit import fit
from ser_ray.training.frames import VIEWS
from ser_ray.training.worker_rows import speakers_of

SPEAKER_NORM = (
    "Spectra are normalized by speaker, those of tested speakers too: by all their clips, but not their emotions."
)
_PREDICTED = ["utterance_id", "corpus", "speaker_id", "gender", "intensity"]


def run(
    store: Store,
    experiment: Experiment,
    run_root: str,
    command: str,
    made_speech: bool = False,
    embed_audio: bool = False,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    share: int = 1,
) -> dict[str, Any]:
    """Train and test once; an unfinished run of the same folder goes on.

    Args:
        store: Complete feature store.
        experiment: What to do.
        run_root: The run's folder or URI.
        command: The command line, for the record.
        made_speech: Whether the clips are synthetic, so that the scores say nothing about people.
        embed_audio: Put the sounds of the worst mistakes into the report.
        on_epoch: Called with the metrics of each epoch; None prints them.
        share: How many such runs have the cluster at the same time.

    Returns:
        The content of `metrics.json`.

    Raises:
        UserError: The store or the cluster does not allow the experiment, or the split leaks.
    """
    refuse_finished(run_root)
    rows, chosen = choose_rows(store, experiment)
    started = time.perf_counter()
    parts = split(rows, parse_labels(experiment.labels), experiment.split)
    labels, leaks = parts.labels, check(rows, parts, experiment.split.protocol)
    _refuse_untrained(rows, parts)
    before = _load_start(store, experiment, rows, parts) if experiment.start_from else None
    claim(run_root, experiment.identity(store), command)
    several = experiment.members > 1
    description = parts.description
    if several:
        description += (
            f" {experiment.members} networks answer together; only the first, which gives the scores on validation "
            "speakers, was not trained on these."
        )
    if before:
        description += f" Training starts from {experiment.start_from}, which heard none of the speakers tested here."
    if experiment.model.speaker_norm:
        description += f" {SPEAKER_NORM}"
    say(description)
    show_table("Rows", _count_rows(rows, parts))

    show = on_epoch or partial(show_epoch, epochs=experiment.train.epochs)
    train, validation = chosen[parts.train], chosen[parts.validation]
    speakers = speakers_of(store, experiment.model, train, chosen)
    starts = [network.state_dict() for network in before.networks] if before else []
    fitted = []
    for k in range(experiment.members):
        in_store = replace(parts, train=train, validation=validation)
        if k:
            in_store = replace(parts, train=np.union1d(train, validation), validation=validation[:0])
        config = replace(experiment.train, seed=experiment.train.seed + k)
        configs = experiment.model, config, experiment.frame_augment
        root = storage.join(run_root, f"member-{k}") if several else run_root
        tell = partial(_named, show, {"member": k} if several else {})
        start = starts[k % len(starts)] if starts else None
        fitted.append(fit(store, in_store, labels, *configs, root, tell, share, start=start, speakers=speakers))
    train_s = time.perf_counter() - started
    networks = [one.network for one in fitted]
    network = Ensemble(networks) if several else networks[0]
    bundle = Bundle(network, experiment.model, FeatureConfig(**store.info()["features"]), labels)
    bundle.views = VIEWS if bundle.features.kind == "log_mel" else ()
    heard = _speakers(rows, parts.train) | _speakers(rows, parts.validation)
    bundle.heard_speakers = tuple(sorted(heard.union(before.heard_speakers if before else ())))
    bundle.temperature = _fit_temperature(store, bundle, networks[0], validation, speakers)
    predictions = predict_rows(bundle, store, chosen[parts.test], speakers)
    history = [({"member": k} if several else {}) | epoch for k, one in enumerate(fitted) for epoch in one.history]
    scores = {
        **metrics.score(predictions, labels.names, seed=experiment.train.seed),
        "protocol": experiment.split.protocol,
        "fold": experiment.split.fold,
        "description": description,
        "notes": [MADE_SPEECH] if made_speech else [],
        "leaks": leaks,
        "excluded": parts.excluded,
        "best_epoch": fitted[0].best_epoch,
        "temperature": bundle.temperature,
        "config": experiment.identity(store),
        "command": command,
        "versions": versions(),
        "timing": {
            "train_s": train_s,
            "test_s": time.perf_counter() - started - train_s,
            "num_workers": fitted[-1].num_workers,
            "clips_per_s": float(np.median([epoch["clips_per_s"] for epoch in history])),
        },
    }
    bundle.facts = {name: scores[name] for name in ("description", "notes", "num_test", "uar", "accuracy", "versions")}
    bundle.save(storage.join(run_root, "model"))
    write_run(run_root, store, scores, predictions, history, embed_audio)
    return scores


def predict_rows(bundle: Bundle, store: Store, indices: np.ndarray, speakers: Speakers | None) -> pa.Table:
    """Predict rows of a store.

    Args:
        bundle: The model.
        store: Store of its features.
        indices: Indices of rows in the sorted rows of the store; their emotions are all among the bundle's labels.
        speakers: By whom to normalize; None for a model that does not.

    Returns:
        The table of `predictions.parquet` with a column `path` besides.
    """
    rows = store.take(indices, [*_PREDICTED, "emotion", "path", "augmentation", "features"])
    logits_NC = answer(bundle, Examples.from_rows(rows, bundle.labels, speakers=speakers))
    probabilities_NC = probabilities(bundle, logits_NC).numpy()
    names = np.array(bundle.labels.names)
    table = rows.select(_PREDICTED)
    targets = [bundle.labels.index(emotion) for emotion in rows["emotion"].to_pylist()]
    table = table.append_column("emotion", pa.array(names[targets]))
    table = table.append_column("predicted", pa.array(names[probabilities_NC.argmax(axis=1)]))
    table = table.append_column("probabilities", pa.array(list(probabilities_NC), pa.list_(pa.float64())))
    return table.append_column("path", rows.column("path"))


def _named(show: Callable[[dict[str, Any]], None], name: dict[str, int], epoch: dict[str, Any]) -> None:
    show(name | epoch)


def _fit_temperature(
    store: Store, bundle: Bundle, network: nn.Module, validation: np.ndarray, speakers: Speakers | None
) -> float:
    """Fit the temperature to what a network says of its validation rows; members that were trained on them take it."""
    examples = Examples.from_rows(store.take(validation, COLUMNS), bundle.labels, speakers=speakers)
    return metrics.fit_temperature(answer(bundle, examples, network).numpy(), examples.targets.numpy())


def _load_start(store: Store, experiment: Experiment, rows: pa.Table, parts: Split) -> Bundle:
    """Read the model that training starts from.

    Raises:
        UserError: It is another network, takes other features, or has heard whom it must not.
    """
    start = load(experiment.start_from)
    changed = differences(asdict(start.model), asdict(experiment.model))
    changed = changed or differences(asdict(start.features), store.info()["features"])
    if changed:
        raise UserError(f"--start-from {experiment.start_from} is another kind of network ({changed})")
    known = set(start.heard_speakers) & (_speakers(rows, parts.test) | _speakers(rows, parts.validation))
    if known:
        raise UserError(
            f"--start-from {experiment.start_from} was trained on {len(known)} of the speakers that are tested or "
            f"validate here, such as {min(known)}; start from one that has not heard them"
        )
    return start


def _refuse_untrained(rows: pa.Table, parts: Split) -> None:
    """Refuse to test emotions that no training clip has.

    Raises:
        UserError: There is such an emotion; the message names it.
    """
    heard, tested = (
        {parts.labels.index(emotion) for emotion in rows.column("emotion").take(indices).unique().to_pylist()}
        for indices in (parts.train, parts.test)
    )
    if missing := [parts.labels.names[i] for i in sorted(tested - heard)]:
        raise UserError(
            f"no training clip is {missing[0]}, which is tested; add clips of more speakers, or name other --labels"
        )


def _speakers(rows: pa.Table, indices: np.ndarray) -> set[str]:
    return set(rows.column("speaker_id").take(indices).to_pylist())


def _count_rows(rows: pa.Table, parts: Split) -> list[dict[str, Any]]:
    table = []
    for name in ("train", "validation", "test"):
        part = rows.take(getattr(parts, name))
        clips, speakers = (len(part.column(column).unique()) for column in ("utterance_id", "speaker_id"))
        table.append({"part": name, "rows": part.num_rows, "clips": clips, "speakers": speakers})
    return table
