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
from ser_ray.bundle import Bundle, probabilities
from ser_ray.console import say, show_table
from ser_ray.emotions import LabelSet, parse_labels
from ser_ray.errors import UserError
from ser_ray.features import FeatureConfig
from ser_ray.frame_augment import FrameAugmentConfig
from ser_ray.inference import COLUMNS, Examples, predict_logits
from ser_ray.learner import TrainConfig
from ser_ray.models import FEATURES_OF, Ensemble, ModelConfig
from ser_ray.results import MADE_SPEECH, claim, refuse_finished, show_epoch, versions, write_run
from ser_ray.splits import Split, SplitConfig, check, split
from ser_ray.store import Store
from ser_ray.training import fit

MAX_MEMBERS = 5  # a fifth of the speakers validates
_PREDICTED = ["utterance_id", "corpus", "speaker_id", "gender", "intensity"]


@dataclass(frozen=True)
class Experiment:
    """What to train on which rows, and how to test it.

    Attributes:
        corpus: Corpora to use; empty for all in the store.
        labels: Classes: `all`, `six` (those of CREMA-D), emotions by name, and merges such as `calm=neutral`.
        members: Networks to train, each validated on other speakers than the rest; they answer together, by their mean.
    """

    corpus: tuple[str, ...] = ()
    labels: tuple[str, ...] = ("all",)
    members: int = 1
    split: SplitConfig = field(default_factory=SplitConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=partial(TrainConfig.for_model, ModelConfig.model))
    frame_augment: FrameAugmentConfig = field(default_factory=FrameAugmentConfig)

    def __post_init__(self) -> None:
        parse_labels(self.labels)
        if not 1 <= self.members <= MAX_MEMBERS:
            raise UserError(f"--members must be 1 to {MAX_MEMBERS}, got {self.members}")

    def identity(self, store: Store) -> dict[str, Any]:
        """Return what makes two runs the same; where and on how many workers it runs does not matter."""
        config = asdict(self)
        for name in ("num_workers", "device"):
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
    claim(run_root, experiment.identity(store), command)
    started = time.perf_counter()
    plans = [split(rows, parse_labels(experiment.labels), experiment.split, k) for k in range(experiment.members)]
    if len({plan.validation.tobytes() for plan in plans}) < len(plans):
        raise UserError(f"--members {len(plans)}: too few speakers to validate each on others; give fewer --members")
    leaks = [check(rows, plan, experiment.split.protocol) for plan in plans]
    for plan in plans:
        _refuse_untrained(rows, plan)
    parts, labels = plans[0], plans[0].labels
    several = f" {len(plans)} networks, validated on other speakers each, answer together." if len(plans) > 1 else ""
    description = parts.description + several
    say(description)
    show_table("Rows", _count_rows(rows, parts))

    show = on_epoch or partial(show_epoch, epochs=experiment.train.epochs)
    fitted = []
    for k, plan in enumerate(plans):
        in_store = replace(plan, train=chosen[plan.train], validation=chosen[plan.validation])
        name = {"member": k} if several else {}
        configs = experiment.model, experiment.train, experiment.frame_augment
        root = storage.join(run_root, f"member-{k}") if several else run_root
        fitted.append(fit(store, in_store, labels, *configs, root, partial(_named, show, name), share))
    train_s = time.perf_counter() - started
    networks = [one.network for one in fitted]
    network = Ensemble(networks) if several else networks[0]
    bundle = Bundle(network, experiment.model, FeatureConfig(**store.info()["features"]), labels)
    bundle.heard_speakers = tuple(sorted(_speakers(rows, parts.train) | _speakers(rows, parts.validation)))
    bundle.temperature = _fit_temperature(store, networks, [chosen[plan.validation] for plan in plans], labels)
    predictions = predict_rows(bundle, store, chosen[parts.test])
    history = [({"member": k} if several else {}) | epoch for k, one in enumerate(fitted) for epoch in one.history]
    scores = {
        **metrics.score(predictions, labels.names, seed=experiment.train.seed),
        "protocol": experiment.split.protocol,
        "fold": experiment.split.fold,
        "description": description,
        "notes": [MADE_SPEECH] if made_speech else [],
        "leaks": leaks[0],
        "excluded": parts.excluded,
        "best_epochs": [one.best_epoch for one in fitted],
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


def predict_rows(bundle: Bundle, store: Store, indices: np.ndarray) -> pa.Table:
    """Predict rows of a store.

    Args:
        bundle: The model.
        store: Store of its features.
        indices: Indices of rows in the sorted rows of the store; their emotions are all among the bundle's labels.

    Returns:
        The table of `predictions.parquet` with a column `path` besides.
    """
    rows = store.rows([*_PREDICTED, "emotion", "path", "augmentation", "features"]).take(indices)
    logits_NC = predict_logits(bundle.network, Examples.from_rows(rows, bundle.labels))
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


def _fit_temperature(store: Store, networks: list[nn.Module], validations: list[np.ndarray], labels: LabelSet) -> float:
    """Fit one temperature to what each network says of its own validation rows: the others were trained on them.

    Of the mean of several networks, which are less sure together, it is a little too high.
    """
    logits, targets = [], []
    for network, indices in zip(networks, validations, strict=True):
        examples = Examples.from_rows(store.rows(COLUMNS).take(indices), labels)
        logits.append(predict_logits(network, examples).numpy())
        targets.append(examples.targets.numpy())
    return metrics.fit_temperature(np.concatenate(logits), np.concatenate(targets))


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
