"""What one worker of a training does: read the rows, restore, train epoch by epoch, and report each.

`epochs` is the training itself. Ray Train's workers run it by `train_worker`; a trial of a search that needs one worker
alone runs it where it is.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.train
import ray.train.torch
import safetensors.torch
import torch
from torch import Tensor, nn

from ser_ray import training_data
from ser_ray.emotions import LabelSet
from ser_ray.features import FeatureConfig
from ser_ray.frame_augment import FrameAugment, FrameAugmentConfig
from ser_ray.inference import Examples
from ser_ray.learner import Learner, TrainConfig, deal, is_over
from ser_ray.models import ModelConfig, adopt, build

MAX_LOSS = 100.0  # nats; guessing among eight emotions costs 2.1


class DivergedError(Exception):
    """The loss became NaN, infinite or too large."""


@dataclass(frozen=True)
class Task:
    """What all workers of one training need to know.

    Attributes:
        rows: The shared rows: those of training and validation, or of validation alone where training is streamed.
        train: Indices of training rows among them; None where they are streamed.
        validation: Indices of validation rows among them; none to train all epochs and keep the last.
        counts: Number of training rows of each corpus of the store and each class, `[G, C]`.
        statistics: Mean and standard deviation of the training features; None to compute them from the rows.
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

    rows: ray.ObjectRef
    train: np.ndarray | None
    validation: np.ndarray
    counts: np.ndarray
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
    device: torch.device,
    rank: int = 0,
    world: int = 1,
    wrap: Callable[[nn.Module], nn.Module] = lambda network: network,
    kept: tuple[dict[str, Tensor], dict[str, Any]] | None = None,
    tables: Callable[[], Iterable[pa.Table]] | None = None,
) -> Iterator[tuple[Learner, list[dict[str, Any]]]]:
    """Train, epoch by epoch.

    Args:
        task: What to train.
        device: Where.
        rank: Which worker this is.
        world: How many there are.
        wrap: What `Learner` takes.
        kept: Tensors and the rest of a checkpoint to go on from.
        tables: Gives this worker's rows of one epoch, where they are streamed.

    Yields:
        After each epoch the learner, and one dict for each epoch so far.

    Raises:
        DivergedError: The loss exploded, on all workers in the same epoch.
    """
    config = task.config
    torch.set_num_threads(task.threads)
    torch.manual_seed(config.seed)
    rows = Examples.from_arrays(ray.get(task.rows))
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
        if tables:
            seed = config.seed * 1_000_003 + epoch
            batches = training_data.batches(tables(), task.labels, task.corpora, config.batch_size, device, seed)
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


def train_worker(loop_config: dict[str, Any]) -> None:
    """Run one of Ray Train's workers."""
    task: Task = loop_config["task"]
    context, checkpoint = ray.train.get_context(), ray.train.get_checkpoint()
    rank, world = context.get_world_rank(), context.get_world_size()
    node = {"node": ray.get_runtime_context().get_node_id()}

    def wrap(network: nn.Module) -> nn.Module:
        # The first worker's batch-norm statistics are those that are validated and kept: the others need not follow.
        return ray.train.torch.prepare_model(network, parallel_strategy_kwargs={"broadcast_buffers": False})

    def tables() -> Iterable[pa.Table]:
        shard = ray.train.get_dataset_shard("train")
        return shard.iter_batches(batch_size=training_data.BUFFER, batch_format="pyarrow")

    try:
        for learner, history in epochs(
            task,
            ray.train.torch.get_device(),
            rank,
            world,
            wrap,
            read_checkpoint(checkpoint) if checkpoint else None,
            tables if task.train is None else None,
        ):
            _report(rank, learner, history, node)
    except DivergedError:  # raised, it would be tried again
        ray.train.report({"diverged": True, **node})


def _report(rank: int, learner: Learner, history: list[dict[str, Any]], node: dict[str, str]) -> None:
    """Report an epoch to Ray Train, which waits for all ranks; rank 0 brings the checkpoint."""
    if rank != 0:
        ray.train.report(node)
        return
    tensors, rest = learner.state()
    with tempfile.TemporaryDirectory() as folder:
        safetensors.torch.save_file({k: t.contiguous() for k, t in tensors.items()}, f"{folder}/state.safetensors")
        with open(f"{folder}/state.json", "w") as stream:
            json.dump({"history": history, "learner": rest}, stream)
        place = ray.util.get_current_placement_group()
        metrics = {**history[-1], **node, "placement_group": place.id.hex() if place else ""}
        ray.train.report(metrics, ray.train.Checkpoint.from_directory(folder))


def read_checkpoint(checkpoint: ray.train.Checkpoint) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the JSON state of a checkpoint."""
    with checkpoint.as_directory() as folder, open(f"{folder}/state.json") as stream:
        return safetensors.torch.load_file(f"{folder}/state.safetensors"), json.load(stream)


class Relay(ray.train.UserCallback):
    """Runs in Ray Train's controller; passes on what rank 0 reported."""

    def __init__(self, board: ray.actor.ActorHandle) -> None:
        self.board = board

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Pin up the metrics of rank 0, and on how many nodes the ranks are."""
        self.board.add.remote({**metrics[0], "nodes": len({rank["node"] for rank in metrics})})
