"""The flags that training and search share, and what they ask for: an experiment, and the store it reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ser_ray.base import storage
from ser_ray.base.cluster import check_address, connect
from ser_ray.base.console import say
from ser_ray.base.errors import UserError
from ser_ray.base.settings import parse_flags, peek_flag, pick_config
from ser_ray.base.workers import is_shared, plan_workers
from ser_ray.experiment.experiment import Experiment
from ser_ray.features.settings import FEATURES_OF, FeatureConfig, FeaturizeConfig
from ser_ray.networks.models import ModelConfig
from ser_ray.speech import made as synthetic
from ser_ray.store.pipeline import featurize, find_and_connect
from ser_ray.store.store import Store
from ser_ray.training.frames import FrameAugmentConfig
from ser_ray.training.learner import TrainConfig


def parse_experiment(
    argv: Sequence[str], description: str, *configs: type, without: Sequence[str] = ()
) -> tuple[Experiment, dict[str, Any]]:
    """Read the flags of an experiment, of its features, and of some config dataclasses besides.

    The model decides its features and the defaults of its training; flags that it has no use for are not offered.

    Args:
        argv: The words of the command line.
        description: What the job does, for `--help`.
        *configs: Config dataclasses of the job's own.
        without: Names of fields that get no flag.

    Returns:
        The experiment, and all values by field name; `fold` is a number, or `all` where a config lets it be a text.

    Raises:
        UserError: A value is not usable.
    """
    model = ModelConfig(peek_flag(argv, "model") or ModelConfig.model).model
    kind = FEATURES_OF[model]
    usual = {**vars(FeatureConfig.for_kind(kind)), **vars(TrainConfig.for_model(model))}
    useless = () if kind == "log_mel" else [field.name for field in dataclasses.fields(FrameAugmentConfig)]
    offered = (*configs, Experiment, FeaturizeConfig)
    values = parse_flags(argv, description, *offered, defaults=usual, without=("kind", *useless, *without))
    values["kind"] = kind
    if values["fold"] != "all":
        if not str(values["fold"]).isdecimal():
            raise UserError(f"--fold {values['fold']}: give a number from 0, or all")
        values["fold"] = int(values["fold"])
    return pick_config(Experiment, {**values, "fold": 0 if values["fold"] == "all" else values["fold"]}), values


def open_store(values: dict[str, Any], experiment: Experiment) -> tuple[Store, bool]:
    """Connect to Ray and return the store that `--data`, or `--store` alone, asks for, and whether its speech is made.

    Corpora are featurized as far as they are not yet; without data and store, speech is made first.

    Raises:
        UserError: No usable clip, no Ray cluster, or one that lacks what the training takes.
    """
    check_address()
    data = values["data"]
    made = not data and not values["store"]
    if made:
        say("No --data: made speech.")
        data = synthetic.write(f"data/made-{values['clips']}", values["clips"])
    if not data:
        connect(values["verbose"])
        return Store(storage.normalize(values["store"])), False
    manifest = find_and_connect(data, values["verbose"])
    if not is_shared():  # what this machine cannot train shall be refused now, not after featurizing
        plan_workers(experiment.train.num_workers, experiment.train.device)
    return featurize(manifest, pick_config(FeaturizeConfig, values), values["store"]), made
