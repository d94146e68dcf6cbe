"""What one worker of a training does: prepare, go on from a checkpoint, train epoch by epoch.

Nothing here needs Ray. Ray Train's workers run it, and a trial of a search that needs one worker alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ser_ray.features.settings import FeatureConfig
from ser_ray.model.examples import Examples
from ser_ray.model.speakers import Speakers
from ser_ray.networks.models import ModelConfig, adopt, build
from ser_ray.speech.emotions import LabelSet
from ser_ray.training.frames import FrameAugment, FrameAugmentConfig
from ser_ray.training.learner import Learner, TrainConfig, deal, is_over

MAX_LOSS = 100.0  # nats; guessing among eight emotions costs 2.1


class DivergedError(Exception):
    """The loss became NaN, infinite or too large."""


@dataclass(frozen=True)
class Task:
    """What all workers of one training need to know.

    Attributes:
        train: Indices of training rows among the worker's; None where they are streamed.
        validation: Indices of validation rows among them; none to train all epochs and keep the last.
        counts: Number of training rows of each corpus of the store and each class, `[G, C]`.
        speakers: By whom streamed rows are to be normalized; None where they need not be, or are already.
        statistics: Mean and standard deviation of the training features, before they are normalized by speaker; None to
            compute them from the rows.
        labels: The classes.
        corpora: Those of the store.
        model: Which network.
        config: How to train.
        augment: How training clips are changed; None for models on averaged features.
        features: How the store's features were made.
        threads: Torch threads per worker.
        should_stop: Asked after each epoch whether this shall have been the last; None for never.
        start: Weights to start from; None for drawn ones.
    """

    train: np.ndarray | None
    validation: np.ndarray
    counts: np.ndarray
    speakers: Speakers | None
    statistics: tuple[Tensor, Tensor] | None
    labels: LabelSet
    corpora: list[str]
    model: ModelConfig
    config: TrainConfig
    augment: FrameAugmentConfig | None
    features: FeatureConfig
    threads: int
    should_stop: Callable[[], bool] | None
    start: dict[str, Tensor] | None


def epochs(
    task: Task,
    rows: Examples,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
    wrap: Callable[[nn.Module], nn.Module] = lambda network: network,
    kept: tuple[dict[str, Tensor], dict[str, Any]] | None = None,
    stream: Callable[[int], Iterable[tuple[Examples, Tensor]]] | None = None,
) -> Iterator[tuple[Learner, list[dict[str, Any]]]]:
    """Train, epoch by epoch.

    Args:
        task: What to train.
        rows: Those of training and validation, or of validation alone where training is streamed.
        device: Where.
        rank: Which worker this is.
        world: How many there are.
        wrap: What `Learner` takes.
        kept: Tensors and the rest of a checkpoint to go on from.
        stream: Gives this worker's batches of one epoch, shuffled by a seed, where rows are streamed.

    Yields:
        After each epoch the learner, and one dict for each epoch so far.

    Raises:
        DivergedError: The loss exploded, on all workers in the same epoch.
    """
    config = task.config
    torch.set_num_threads(task.threads)
    torch.manual_seed(config.seed)
    # On the CPU the rows serve where they are, shared with all workers and trials of the node.
    validation, validation_N = rows, torch.from_numpy(task.validation)
    if device.type == "cuda" and len(task.validation):
        validation, validation_N = rows.take(validation_N).to(device), None
    train_N = None if task.train is None else torch.from_numpy(task.train)
    network = build(task.model, task.features.num_features, len(task.labels.names))
    if task.start:
        adopt(network, task.start)
    network = network.to(device)
    network.standardize.set(*(task.statistics or rows.statistics(train_N)))
    if train_N is not None and device.type == "cuda":
        rows, train_N = rows.to(device), train_N.to(device)
        rows.values = rows.values.half() if task.augment else rows.values
    augment, mixup = None, 0.0
    if task.augment:
        augment = FrameAugment(task.augment, task.features, network.standardize.mean_F.clone(), config.seed)
        mixup = task.augment.mixup
    counts_GC = torch.from_numpy(task.counts)

    def ready(network: nn.Module) -> nn.Module:
        network = wrap(network)
        return torch.compile(network, dynamic=True) if config.compile else network  # batches differ in size

    learner = Learner(network, config, counts_GC, augment, mixup, rank, world, ready)
    history: list[dict[str, Any]] = []
    if kept:
        learner.load_state(kept[0], kept[1]["learner"])
        history = kept[1]["history"]

    while not is_over(history, config):
        epoch = len(history) + 1
        started = time.perf_counter()
        if stream:
            batches = stream(config.seed * 1_000_003 + epoch)
            num_batches = -(-int(task.counts.sum()) // (world * config.batch_size))
        else:
            dealt = deal(train_N, config, epoch, rank, world)
            batches, num_batches = ((rows, index_B) for index_B in dealt), len(dealt)
        train_loss = learner.train_epoch(epoch, batches, num_batches)
        train_s = time.perf_counter() - started
        scores = learner.validate(validation, validation_N) if len(task.validation) else {}
        if not math.isfinite(train_loss + scores.get("validation_loss", 0.0)) or train_loss > MAX_LOSS:
            raise DivergedError
        history.append(
            {
                "epoch": epoch,
                "train_loss": train_loss,
                **scores,
                "learning_rate": learner.optimizer.param_groups[0]["lr"],
                "clips_per_s": int(task.counts.sum()) / train_s,
                "seconds": time.perf_counter() - started,
                "time": time.time(),
                "num_workers": world,
            }
        )
        yield learner, history
        if task.should_stop and _all_stop(rank == 0 and task.should_stop(), world, device):
            return


def _all_stop(stop: bool, world: int, device: torch.device) -> bool:
    """Tell all ranks what the first one decided."""
    decision = torch.tensor(int(stop), device=device)
    if world > 1:
        torch.distributed.broadcast(decision, src=0)
    return bool(decision)
