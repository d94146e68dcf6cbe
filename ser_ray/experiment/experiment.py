"""What an experiment is: what to train on which rows, and whom to test."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ser_ray.base.console import say
from ser_ray.base.errors import UserError
from ser_ray.experiment.splits import Split, SplitConfig, split
from ser_ray.features.settings import FEATURES_OF
from ser_ray.networks.models import ModelConfig
from ser_ray.speech.emotions import LabelSet, parse_labels
from ser_ray.store.store import Store
from ser_ray.training.frames import FrameAugmentConfig
from ser_ray.training.learner import TrainConfig


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
