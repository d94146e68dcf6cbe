"""What one worker of a training does: prepare, go on from a checkpoint, train epoch by epoch.

Nothing here needs Ray. Ray Train's workers run it, and a trial of a search that needs one worker alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ser_ray.features.arrays import shape_of
from ser_ray.model.examples import Examples
from ser_ray.model.speakers import Speakers
from ser_ray.networks.modules.layers import adopt
from ser_ray.training.batches import deal_batches, epoch_seed
from ser_ray.training.capture import Captured
from ser_ray.training.frames import FrameAugment
from ser_ray.training.learner import Learner, best_epoch, is_over
from ser_ray.training.step import Group
from ser_ray.training.task import Method

MAX_LOSS = 100.0  # nats; guessing among eight emotions costs 2.1

Kept = tuple[dict[str, Tensor], dict[str, Any]]  # tensors and the rest of a checkpoint
Stream = Callable[[int], Iterable[tuple[Examples, Tensor]]]  # from a seed to the batches of one epoch


class DivergedError(Exception):
    """The loss became NaN, infinite or too large."""


@dataclass(frozen=True)
class Work:
    """What all workers of one training need to know.

    Attributes:
        method: What learns what, and how.
        train: Which of the worker's rows train; None where they are streamed.
        validation: Which of them validate; none to train all epochs and keep the last.
        counts: Number of training rows of each corpus of the store and each class, `[G, C]`.
        corpora: Corpora of the store, by whose places rows are grouped.
        statistics: Mean and standard deviation of the training features, before they are normalized by speaker; None to
            compute them from the rows.
        speakers: By whom streamed rows are to be normalized; None where they need not be, or are already.
        start: Weights to start from; None for drawn ones.
        threads: Torch threads per worker.
        compile: Whether the network is compiled.
        should_stop: Asked after each epoch whether this shall have been the last; None for never.
    """

    method: Method
    train: np.ndarray | None
    validation: np.ndarray
    counts: np.ndarray
    corpora: list[str]
    statistics: tuple[Tensor, Tensor] | None
    speakers: Speakers | None
    start: dict[str, Tensor] | None
    threads: int
    compile: bool
    should_stop: Callable[[], bool] | None


@dataclass(frozen=True)
class Held:
    """Rows that a worker holds, for all of its trainings.

    Attributes:
        shared: As all workers of the node share them, on the CPU.
        here: The same in the memory of the worker's device.
        device: That device.
    """

    shared: Examples
    here: Examples
    device: torch.device

    @classmethod
    def on(cls, device: torch.device, shared: Examples) -> Held:
        """Bring rows to a device; on the CPU they serve where they are."""
        return cls(shared, shared if device.type == "cpu" else shared.to(device), device)


def run_epochs(
    work: Work,
    rows: Held,
    group: Group | None = None,
    kept: Kept | None = None,
    stream: Stream | None = None,
) -> Iterator[tuple[Learner, list[dict[str, Any]]]]:
    """Train, epoch by epoch.

    Args:
        work: What to train.
        rows: Those of training and validation, or of validation alone where training is streamed.
        group: Which worker this is; None for the only one.
        kept: The checkpoint to go on from.
        stream: Gives this worker's batches of one epoch, shuffled by a seed, where rows are streamed.

    Yields:
        After each epoch the learner, and one dict for each epoch so far.

    Raises:
        DivergedError: The loss exploded, on all workers in the same epoch.
    """
    group, config, device = group or Group(), work.method.config, rows.device
    torch.set_num_threads(work.threads)
    torch.manual_seed(config.seed)
    validation_N = torch.from_numpy(work.validation).to(device)
    train_N = None if work.train is None else torch.from_numpy(work.train)
    network = _prepare(work, rows.shared, train_N).to(device)
    train_N = None if train_N is None else train_N.to(device)
    learner = _make_learner(work, network, group, device)
    history: list[dict[str, Any]] = []
    if kept:
        learner.load_state(kept[0], kept[1]["learner"])
        history = kept[1]["history"]

    clips = int(work.counts.sum())
    while not is_over(history, config):
        epoch, started = len(history) + 1, time.perf_counter()
        if stream:
            batches, num_batches = (
                stream(epoch_seed(config.seed, epoch)),
                -(-clips // (group.world * config.batch_size)),
            )
        else:
            dealt = deal_batches(train_N, config, epoch, group.rank, group.world)
            batches, num_batches = ((rows.here, index_B) for index_B in dealt), len(dealt)
        train_loss = learner.train_epoch(epoch, batches, num_batches)
        train_s = time.perf_counter() - started
        scores = learner.validate(rows.here, validation_N) if len(work.validation) else {}
        if not math.isfinite(train_loss + scores.get("validation_loss", 0.0)) or train_loss > MAX_LOSS:
            raise DivergedError
        history.append(
            {
                "epoch": epoch,
                "train_loss": train_loss,
                **scores,
                "learning_rate": learner.step.optimizer.param_groups[0]["lr"],
                "clips_per_s": clips / train_s,
                "seconds": time.perf_counter() - started,
                "time": time.time(),
                "num_workers": group.world,
            }
        )
        if best_epoch(history, config.monitor) == epoch:
            learner.keep()
        yield learner, history
        if work.should_stop and all_stop(group.rank == 0 and work.should_stop(), group.world, device):
            return


def _prepare(work: Work, rows: Examples, train_N: Tensor | None) -> nn.Module:
    """Make the network that training starts from, its input standardized by the training rows."""
    method = work.method
    network = method.network.build(shape_of(method.features.arrow_type()), len(method.labels.names))
    if work.start:
        adopt(network, work.start)
    network.standardize.set(*(work.statistics or rows.statistics(train_N)))
    return network


def _make_learner(work: Work, network: nn.Module, group: Group, device: torch.device) -> Learner:
    method, augment = work.method, None
    if method.changes:
        fill_M = network.standardize.mean_F.clone()
        augment = FrameAugment(method.changes, method.features, fill_M, method.config.seed)

    def wrap(network: nn.Module) -> nn.Module:
        network = group.wrap(network)
        return torch.compile(network, dynamic=True) if work.compile else network  # batches differ in size

    counts_GC, mixup = torch.from_numpy(work.counts), getattr(method.network, "mixup", 0.0)
    learner = Learner(network, method.config, counts_GC, augment, replace(group, wrap=wrap), mixup)
    if device.type == "cuda":
        learner.refusal = _why_not_captured(work, group)
        learner.take = learner.take if learner.refusal else Captured(learner.take)
    return learner


def _why_not_captured(work: Work, group: Group) -> str:
    """Say why steps on a GPU differ too much to be captured in a graph; empty where they do not."""
    if group.world > 1:
        return "several workers share each step"
    if work.train is None:
        return "rows are streamed"
    if shape_of(work.method.features.arrow_type())[0] is None and not work.method.changes:
        return "clips differ in length"
    return ""


def all_stop(stop: bool, world: int, device: torch.device) -> bool:
    """Tell all ranks what the first one decided."""
    decision = torch.tensor(int(stop), device=device)
    if world > 1:
        torch.distributed.broadcast(decision, src=0)
    return bool(decision)
