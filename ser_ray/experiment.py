"""One experiment: choose who is tested on, train, and score on speakers never heard."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import nn

from ser_ray import metrics, storage
from ser_ray.bundle import Bundle, answer, load, probabilities
from ser_ray.console import say, show_table
from ser_ray.emotions import LabelSet, parse_labels
from ser_ray.errors import UserError
from ser_ray.features import FeatureConfig
from ser_ray.frame_augment import VIEWS, FrameAugmentConfig
from ser_ray.inference import COLUMNS, Examples
from ser_ray.learner import TrainConfig
from ser_ray.models import FEATURES_OF, Ensemble, ModelConfig
from ser_ray.results import MADE_SPEECH, claim, refuse_finished, show_epoch, versions, write_run
from ser_ray.splits import Split, SplitConfig, check, split
from ser_ray.store import Store, differences
from ser_ray.training import fit

_PREDICTED = ["utterance_id", "corpus", "speaker_id", "gender", "intensity"]


@dataclass(frozen=True)
class Experiment:
    """What to train on which rows, and how to test it.

    Attributes:
        corpus: Corpora to use; empty for all in the store.
        labels: Classes: `all`, `six` (those of CREMA-D), emotions by name, and merges such as `calm=neutral`.
        members: Networks to train; they answer together, by their mean. The first is validated; the others, each with a
            seed of its own, learn from its validation speakers too, to the last epoch.
        start_from: A finished run, or its model, of the same network, from whose weights training starts; for a small
            corpus, one of a larger one. It must not have heard the speakers that are tested or validate here.
    """

    corpus: tuple[str, ...] = ()
    labels: tuple[str, ...] = ("all",)
    members: int = 1
    start_from: str | None = None
    split: SplitConfig = field(default_factory=SplitConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=partial(TrainConfig.for_model, ModelConfig.model))
    frame_augment: FrameAugmentConfig = field(default_factory=FrameAugmentConfig)

    def __post_init__(self) -> None:
        parse_labels(self.labels)
        if self.members < 1:
            raise UserError(f"--members must be 1 or more, got {self.members}")
        if self.members > 1 and self.train.schedule == "plateau":
            raise UserError(f"--members {self.members}: only the first is validated, so it takes --schedule one-cycle")

    def identity(self, store: Store) -> dict[str, Any]:
        """Return what makes two runs the same; where, on how many workers and how compiled does not matter."""
        config = asdict(self)
        for name in ("num_workers", "device", "compile"):
            del config["train"][name]
        info = store.info()
        return {"store": info["fingerprint"], "clips_digest": info["clips_digest"], **config}


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
    say(description)
    show_table("Rows", _count_rows(rows, parts))

    show = on_epoch or partial(show_epoch, epochs=experiment.train.epochs)
    train, validation = chosen[parts.train], chosen[parts.validation]
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
        fitted.append(fit(store, in_store, labels, *configs, root, tell, share, start=start))
    train_s = time.perf_counter() - started
    networks = [one.network for one in fitted]
    network = Ensemble(networks) if several else networks[0]
    bundle = Bundle(network, experiment.model, FeatureConfig(**store.info()["features"]), labels)
    bundle.views = VIEWS if bundle.features.kind == "log_mel" else ()
    heard = _speakers(rows, parts.train) | _speakers(rows, parts.validation)
    bundle.heard_speakers = tuple(sorted(heard.union(before.heard_speakers if before else ())))
    bundle.temperature = _fit_temperature(store, bundle, networks[0], validation)
    predictions = predict_rows(bundle, store, chosen[parts.test])
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


def choose_rows(store: Store, experiment: Experiment) -> tuple[pa.Table, np.ndarray]:
    """Return the metadata of the rows of the chosen corpora, and their indices in the store.

    Raises:
        UserError: The store is unfinished, a corpus is not in it, or its features are not those of the model.
    """
    info = store.info()
    if info is None or not info["complete"]:
        raise UserError(f"{store.root} is not a finished feature store; run jobs/featurize.py --data ... first")
    wanted = FEATURES_OF[experiment.model.model]
    if info["features"]["kind"] != wanted:
        raise UserError(
            f"{store.root} holds {info['features']['kind']} features and --model {experiment.model.model} "
            f"takes {wanted}; leave out --store to have them made"
        )
    rows = store.rows()
    there = rows.column("corpus").unique().to_pylist()
    missing = [name for name in experiment.corpus if name not in there]
    if missing:
        raise UserError(f"--corpus {missing[0]}: not in the store, which holds {', '.join(sorted(there))}")
    keep = pc.is_in(rows.column("corpus"), pa.array(experiment.corpus or there))
    return rows.filter(keep), np.flatnonzero(keep.to_numpy())


def inner_splits(store: Store, experiment: Experiment, inner_folds: int) -> tuple[LabelSet, list[Split]]:
    """Choose rows for settings to be judged on, without those that are tested.

    Returns:
        The labels, and what trains and validates in each of the inner folds, as indices in the store.
    """
    rows, chosen = choose_rows(store, experiment)
    outer = split(rows, parse_labels(experiment.labels), experiment.split)
    say(outer.description)
    if inner_folds == 1:
        return outer.labels, [
            replace(outer, **{part: chosen[getattr(outer, part)] for part in ("train", "validation")})
        ]
    tested = set(rows["speaker_id"].take(outer.test).to_pylist())
    others = np.array([speaker not in tested for speaker in rows["speaker_id"].to_pylist()])
    rows, chosen = rows.filter(pa.array(others)), chosen[others]
    splits = []
    for fold in range(inner_folds):
        inner = split(rows, outer.labels, SplitConfig(fold=fold, num_folds=inner_folds, seed=experiment.split.seed))
        train = chosen[np.union1d(inner.train, inner.validation)]
        splits.append(replace(inner, train=train, validation=chosen[inner.test]))
    return outer.labels, splits


def predict_rows(bundle: Bundle, store: Store, indices: np.ndarray) -> pa.Table:
    """Predict rows of a store.

    Args:
        bundle: The model.
        store: Store of its features.
        indices: Indices of rows in the sorted rows of the store; their emotions are all among the bundle's labels.

    Returns:
        The table of `predictions.parquet` with a column `path` besides.
    """
    rows = store.take(indices, [*_PREDICTED, "emotion", "path", "augmentation", "features"])
    logits_NC = answer(bundle, Examples.from_rows(rows, bundle.labels))
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


def _fit_temperature(store: Store, bundle: Bundle, network: nn.Module, validation: np.ndarray) -> float:
    """Fit the temperature to what a network says of its validation rows; members that were trained on them take it."""
    examples = Examples.from_rows(store.take(validation, COLUMNS), bundle.labels)
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
