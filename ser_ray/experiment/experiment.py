"""What an experiment is: what to train on which rows, and whom to test."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ser_ray.base.console import say
from ser_ray.base.errors import UserError
from ser_ray.base.settings import between, check_settings
from ser_ray.experiment.protocols import SplitConfig
from ser_ray.experiment.splits import Split, split
from ser_ray.networks.log_mel_resnet import LogMelResNetSpec
from ser_ray.networks.spec import NetworkSpec, write_network
from ser_ray.speech.emotions import parse_labels
from ser_ray.store.rows import Rows
from ser_ray.training.settings import FrameAugmentConfig, TrainConfig


@dataclass(frozen=True)
class Experiment:
    """What to train on which rows, and how to test it.

    Attributes:
        corpus: Corpora to use; empty for all in the store.
        labels: Classes: `all`, `six` (those of CREMA-D), emotions by name, and merges such as `calm=neutral`.
        members: Networks that answer together, by their mean. The first is validated; the others, each with a seed of
            its own, learn from its validation speakers too, to the last epoch. With `refit` all are such others, and
            the one that is validated does not answer.
        start_from: A finished run, or its model, of the same network, from whose weights training starts; for a small
            corpus, one of a larger one. It must not have been trained on speakers that are tested or validate here.
        speaker_norm: Normalize features by their mean and standard deviation over all clips of the same speaker, tested
            ones too, without a look at emotions; best with many clips of each.
        split: Who is tested on.
        network: Which network.
        train: How to train it.
        changes: How its training clips are changed; None for a network whose clips are not.
    """

    corpus: tuple[str, ...] = ()
    labels: tuple[str, ...] = ("all",)
    members: int = between(1, 1)
    start_from: str | None = None
    speaker_norm: bool = False
    split: SplitConfig = field(default_factory=SplitConfig)
    network: NetworkSpec = field(default_factory=LogMelResNetSpec)
    train: TrainConfig | None = None
    changes: FrameAugmentConfig | None = None

    def __post_init__(self) -> None:
        """Check it, and put the usual training of the network where none was given.

        Raises:
            UserError: Something does not go together.
        """
        check_settings(self)
        parse_labels(self.labels)
        if self.train is None:
            object.__setattr__(self, "train", TrainConfig.usual(self.network))
        if self.changes is None and self.network.changes_frames:
            object.__setattr__(self, "changes", FrameAugmentConfig())
        if self.count_networks() > 1 and self.train.schedule == "plateau":
            flag = "--refit" if self.train.refit else f"--members {self.members}"
            raise UserError(f"{flag}: only the first network is validated, so it takes --schedule one-cycle")
        if self.speaker_norm and not self.network.takes_speaker_norm:
            raise UserError(f"--speaker-norm is not for --model {self.network.name}, which is as its recipe has it")

    def count_networks(self) -> int:
        """Return how many networks are trained: those that answer, and with `refit` one that is only validated."""
        return self.members + self.train.refit

    def identity(self, rows: Rows) -> dict[str, Any]:
        """Return what makes two runs the same; where and how they ran does not matter."""
        info = rows.source.info
        return {
            "store": info["fingerprint"],
            "clips_digest": info["clips_digest"],
            "told": rows.told(),
            "corpus": self.corpus,
            "labels": self.labels,
            "members": self.members,
            "start_from": self.start_from,
            "split": asdict(self.split),
            "model": {**write_network(self.network), "speaker_norm": self.speaker_norm},
            "train": asdict(self.train),
            "frame_augment": asdict(self.changes) if self.changes else None,
        }


def choose_rows(rows: Rows, experiment: Experiment) -> Rows:
    """Return the rows of a store that are of the chosen corpora.

    Raises:
        UserError: A corpus is not in the store, or its features are not those of the network.
    """
    network, kind = experiment.network, rows.recipe.features.name
    if kind != network.features:
        raise UserError(
            f"{rows.source.store.root} holds {kind} features and --model {network.name} takes {network.features}; "
            "leave out --store to have them made"
        )
    return choose_corpora(rows, experiment.corpus, "in the store, which holds")


def choose_corpora(rows: Rows, names: tuple[str, ...], where: str) -> Rows:
    """Return the rows of some corpora, or all where none is named.

    Args:
        rows: Of any corpora.
        names: Those to use.
        where: Where they were looked for, for the refusal.

    Raises:
        UserError: There are no rows of a corpus.
    """
    there = rows.values("corpus")
    missing = [name for name in names if name not in there]
    if missing:
        raise UserError(f"--corpus {missing[0]}: not {where} {', '.join(sorted(there))}")
    return rows.take(rows.among("corpus", names or there))


def inner_splits(rows: Rows, experiment: Experiment, inner_folds: int) -> list[Split]:
    """Choose rows for settings to be judged on, without those that are tested.

    Args:
        rows: Those of the chosen corpora.
        experiment: Whose tested rows are left alone.
        inner_folds: How many splits; 1 takes the validation speakers of the experiment's own.

    Returns:
        What trains and validates in each of the inner folds.
    """
    outer = split(rows, parse_labels(experiment.labels), experiment.split)
    say(outer.description)
    if inner_folds == 1:
        return [outer]
    others = rows.take(~rows.among("speaker_id", outer.test.values("speaker_id")))
    splits = []
    for fold in range(inner_folds):
        inner = split(others, outer.labels, SplitConfig(fold=fold, num_folds=inner_folds, seed=experiment.split.seed))
        splits.append(replace(inner, train=inner.train.union(inner.validation), validation=inner.test))
    return splits
