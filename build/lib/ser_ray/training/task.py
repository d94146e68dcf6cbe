"""What is asked of a training, and what it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from ser_ray.features.spec import Features
from ser_ray.model.speakers import Speakers
from ser_ray.networks.spec import NetworkSpec
from ser_ray.speech.emotions import LabelSet
from ser_ray.store.rows import Rows
from ser_ray.training.settings import Compute, FrameAugmentConfig, TrainConfig

if TYPE_CHECKING:
    from ser_ray.base.workers import Workers  # which imports Ray

Tell = Callable[[dict[str, Any]], None]  # called with the metrics of each epoch as it ends


@dataclass(frozen=True)
class Method:
    """What learns what, and how.

    Attributes:
        network: Which network.
        features: How the features of the rows were made.
        labels: The classes.
        config: How to train.
        changes: How training clips are changed; None for networks whose clips are not.
    """

    network: NetworkSpec
    features: Features
    labels: LabelSet
    config: TrainConfig
    changes: FrameAugmentConfig | None = None


@dataclass(frozen=True)
class Task:
    """One network to be trained.

    Attributes:
        method: What learns what, and how.
        train: Rows to learn from.
        validation: Rows that validate; without any, all epochs are trained and the last is kept.
        root: Folder or URI under which checkpoints lie; a training that was cut short there goes on.
        speakers: By whom to normalize; None not to.
        start: Weights of a trained network of the same kind to start from, but for its last layer and the statistics of
            its features; None for drawn ones.
        names: What tells it from other trainings, such as `{"fold": 1, "member": 0}`; put before each epoch's metrics.
        should_stop: Asked by the first worker after each epoch whether this shall have been the last.
    """

    method: Method
    train: Rows
    validation: Rows
    root: str
    speakers: Speakers | None = None
    start: dict[str, Tensor] | None = None
    names: dict[str, int] = field(default_factory=dict)
    should_stop: Callable[[], bool] | None = None

    @property
    def rows(self) -> Rows:
        """Rows that it learns from or validates on."""
        return self.train.union(self.validation)

    def counts(self) -> np.ndarray:
        """Return how many training rows there are of each corpus of the store and each class, `[G, C]`."""
        corpora, labels = self.train.corpora, self.method.labels
        counts = np.zeros((len(corpora), len(labels.names)), np.int64)
        rows = self.train.table(["corpus", "emotion"])
        for row in rows.group_by(["corpus", "emotion"]).aggregate([([], "count_all")]).to_pylist():
            counts[corpora.index(row["corpus"]), labels.index(row["emotion"])] += row["count_all"]
        return counts


@dataclass(frozen=True)
class Place:
    """Where a training runs.

    Attributes:
        compute: Where and how the user wants it.
        share: How many trainings have the cluster at the same time.
        here: What this process holds of the cluster, to train in it by one worker, without checkpoints; None to have
            workers of Ray Train.
    """

    compute: Compute = field(default_factory=Compute)
    share: int = 1
    here: Workers | None = None


@dataclass
class Fitted:
    """What training gives.

    Attributes:
        network: The network of the best epoch, on the CPU, in evaluation mode.
        history: One dict per epoch.
        best_epoch: The best epoch by `TrainConfig.monitor`, from 1; the last where nothing validated.
        num_workers: How many workers trained at the end.
        seconds: From the start of its workers to their end, in this process's part of the training.
    """

    network: nn.Module
    history: list[dict[str, Any]]
    best_epoch: int
    num_workers: int
    seconds: float = 0.0
