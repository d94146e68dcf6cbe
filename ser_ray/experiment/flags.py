"""The flags that training and search share, and what they ask for: an experiment, and the store it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from ser_ray.base import storage
from ser_ray.base.cluster import check_address, connect
from ser_ray.base.console import say
from ser_ray.base.errors import UserError
from ser_ray.base.registry import registered_specs
from ser_ray.base.settings import parse_flags, peek_flag, pick_config
from ser_ray.base.workers import is_shared, plan_workers
from ser_ray.experiment.experiment import Experiment
from ser_ray.experiment.preflight import refuse_impossible
from ser_ray.experiment.protocols import SplitConfig
from ser_ray.features.recipe import FeaturizeConfig
from ser_ray.features.spec import find_features
from ser_ray.networks.spec import DEFAULT_NETWORK, NETWORKS, find_network
from ser_ray.speech import made
from ser_ray.store.pipeline import featurize, find_and_connect
from ser_ray.store.store import Store
from ser_ray.training.settings import Compute, FrameAugmentConfig, TrainConfig


@dataclass(frozen=True)
class _Model:
    """The flag that decides which others there are.

    Attributes:
        model: Name of the network: `log_mel_resnet`, or `cnn1d`, the one of the widely copied notebook recipe.
    """

    model: str = DEFAULT_NETWORK


@dataclass(frozen=True)
class Wish:
    """What the flags of an experiment ask for.

    Attributes:
        experiment: What to train, and whom to test.
        compute: Where and how.
        recipe: What features to make, where there are none yet.
        data: Folders, URIs or tables that hold corpora.
        store: The feature store's folder or URI; None to find it.
        clips: How many clips of made speech to write where there is neither.
        verbose: Show Ray's own log lines.
        values: All flags by name, those of the job's own among them.
    """

    experiment: Experiment
    compute: Compute
    recipe: FeaturizeConfig
    data: tuple[str, ...]
    store: str | None
    clips: int
    verbose: bool
    values: dict[str, Any]


def parse_experiment(argv: Sequence[str], description: str, *configs: type, without: Sequence[str] = ()) -> Wish:
    """Read the flags of an experiment, of its features, and of some config dataclasses besides.

    The network decides its features and the defaults of its training; flags that it has no use for are not offered.

    Args:
        argv: The words of the command line.
        description: What the job does, for `--help`.
        *configs: Config dataclasses of the job's own.
        without: Names of fields that get no flag.

    Raises:
        UserError: A value is not usable.
    """
    network = find_network(peek_flag(argv, "model") or DEFAULT_NETWORK)
    features = find_features(network.features)
    changes = (FrameAugmentConfig,) if network.changes_frames else ()
    nested = ("split", "network", "train", "changes", "features")
    if not network.takes_speaker_norm:
        nested += ("speaker_norm",)
    offered = (*configs, _Model, Experiment, SplitConfig, network, TrainConfig, *changes, Compute, FeaturizeConfig)
    _refuse_others(argv, network, {field.name for config in (*offered, features) for field in fields(config)})
    usual = vars(TrainConfig.usual(network))
    values = parse_flags(argv, description, *offered, features, defaults=usual, without=(*nested, *without))
    fold = values["fold"]
    if fold != "all" and not str(fold).isdecimal():
        raise UserError(f"--fold {fold}: give a number from 0, or all")
    values["fold"] = fold if fold == "all" else int(fold)
    plain = {
        name: values[name] for name in ("corpus", "labels", "members", "start_from", "speaker_norm") if name in values
    }
    experiment = Experiment(
        **plain,
        split=pick_config(SplitConfig, values | {"fold": 0 if fold == "all" else int(fold)}),
        network=pick_config(network, values),
        train=pick_config(TrainConfig, values),
        changes=pick_config(FrameAugmentConfig, values) if network.changes_frames else None,
    )
    recipe = FeaturizeConfig(pick_config(features, values), values["augment"], values["seed"])
    rest = {name: values.get(name, default) for name, default in (("clips", 0), ("verbose", False))}
    compute = pick_config(Compute, values)
    return Wish(experiment, compute, recipe, values["data"], values["store"], **rest, values=values)


def _refuse_others(argv: Sequence[str], network: type, offered: set[str]) -> None:
    """Refuse flags of another network in one line.

    Raises:
        UserError: There is one.
    """
    others = (spec for spec in (*NETWORKS, *registered_specs("network")) if spec is not network)
    words = {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in argv if word.startswith("--")}
    for other in others:
        own = {field.name for field in fields(other)}
        if other.takes_speaker_norm and not network.takes_speaker_norm:
            own.add("speaker_norm")
            offered = offered - {"speaker_norm"}
        for name in sorted(words & own - offered):
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} is for --model {other.name}; {network.name} has no such setting")


def open_store(wish: Wish) -> Store:
    """Connect to Ray and return the store that `--data`, or `--store` alone, asks for.

    Corpora are featurized as far as they are not yet; without data and store, speech is made first.

    Raises:
        UserError: No usable clip, no Ray cluster, or one that lacks what the training takes.
    """
    check_address()
    data = wish.data
    if data or not wish.store:
        wish.recipe.identity()  # features that cannot be made shall be refused now
    if not data and not wish.store:
        say("No --data: made speech.")
        data = made.write_speech(f"data/made-{wish.clips}", wish.clips)
    if not data:
        connect(wish.verbose)
        return Store(storage.normalize(wish.store))
    manifest = find_and_connect(data, wish.verbose)
    if not is_shared():  # what this machine cannot train shall be refused now, not after featurizing
        plan_workers(wish.compute.num_workers, wish.compute.device)
    refuse_impossible(manifest, wish.experiment, wish.recipe, wish.values["fold"] == "all")
    return featurize(manifest, wish.recipe, wish.store, "cpu" if wish.compute.device == "cpu" else "auto")
