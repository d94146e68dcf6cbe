"""Data-parallel training on Ray Train: the life of one worker, and `fit`, which has as many of them as there are.

Rows come as `training_data` brings them; a worker's steps are the `Learner`'s.
After each epoch the state goes into a checkpoint of safetensors and JSON, from which a killed run continues.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import safetensors.torch
import torch
from torch import Tensor, nn

from ser_ray import training_data
from ser_ray.cluster import Board, following, plan_workers
from ser_ray.console import say
from ser_ray.emotions import LabelSet
from ser_ray.errors import UserError
from ser_ray.features import FeatureConfig
from ser_ray.frame_augment import FrameAugment, FrameAugmentConfig
from ser_ray.inference import Examples
from ser_ray.learner import Learner, TrainConfig, deal, is_over, loss_weights, part
from ser_ray.models import ModelConfig, adopt, build
from ser_ray.splits import Split
from ser_ray.store import Store

CXX = "clang++" if sys.platform == "darwin" else "g++"  # what torch.compile calls
MAX_LOSS = 100.0  # nats; guessing among eight emotions costs 2.1
MAX_FAILURES = 3  # how often a lost worker is replaced


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


@dataclass
class Fitted:
    """What training gives.

    Attributes:
        network: The network of the best epoch, on the CPU.
        history: One dict per epoch.
        best_epoch: The best epoch by `TrainConfig.monitor`, from 1; the last where nothing validated.
        num_workers: How many workers trained at the end.
    """

    network: nn.Module
    history: list[dict[str, Any]]
    best_epoch: int
    num_workers: int


def fit(
    store: Store,
    split: Split,
    labels: LabelSet,
    model: ModelConfig,
    config: TrainConfig,
    augment: FrameAugmentConfig,
    run_root: str,
    on_epoch: Callable[[dict[str, Any]], None],
    share: int = 1,
    shared: training_data.Shared | None = None,
    callbacks: Sequence[ray.train.UserCallback] = (),
    should_stop: Callable[[], bool] | None = None,
    start: dict[str, Tensor] | None = None,
) -> Fitted:
    """Train a network; a run of the same folder that was cut short goes on where it was.

    Args:
        store: Complete feature store.
        split: Rows for training and validation; without any for validation all epochs are trained and the last kept.
        labels: The classes.
        model: Which network.
        config: How to train.
        augment: How training clips are changed, for models on log-mel spectrograms.
        run_root: The run's folder or URI; checkpoints lie under `checkpoints` in it.
        on_epoch: Called in the driver with the metrics of each epoch as it ends.
        share: How many trainings have the cluster at the same time.
        shared: Rows that were read already, with those of training and validation among them.
        callbacks: More of Ray Train's callbacks.
        should_stop: Asked by the first worker after each epoch whether this shall have been the last.
        start: Weights of a trained network of the same kind to start from, but for its last layer and the statistics
            of its features.

    Raises:
        UserError: The cluster or this machine lacks what was asked for, or the loss exploded.
    """
    info = store.info()
    rows = store.rows(["utterance_id", "augmentation", "corpus", "emotion"])
    size_gb = store.decoded_gb() * len(split.train) / rows.num_rows
    streamed = size_gb > config.memory_gb and shared is None
    if streamed:
        say(f"Training rows: {size_gb:.3f} GB decoded, more than --memory-gb, so they are streamed")
        shared = training_data.share_rows(store, split.validation, labels)
    elif shared is None:
        say(f"Training rows: {size_gb:.3f} GB decoded, kept in memory")
        shared = training_data.share_rows(store, np.concatenate([split.train, split.validation]), labels)
    corpora = shared.corpora
    counts = np.zeros((len(corpora), len(labels.names)), np.int64)
    for row in rows.take(split.train).group_by(["corpus", "emotion"]).aggregate([([], "count_all")]).to_pylist():
        counts[corpora.index(row["corpus"]), labels.index(row["emotion"])] += row["count_all"]
    if config.balance:
        _say_weights(corpora, labels, torch.from_numpy(counts), config)
    workers = plan_workers(config.num_workers, config.device, share, training_data.CPUS if streamed else 0)
    compilers = [os.path.join(folder, os.environ.get("CXX", CXX)) for folder in os.get_exec_path()]
    if config.compile and not workers.gpu and not any(os.access(path, os.X_OK) for path in compilers):
        raise UserError(f"--compile needs a C++ compiler on CPUs; install {CXX}, or name another by CXX")
    task = Task(
        rows=shared.rows,
        train=None if streamed else shared.find(split.train),
        validation=shared.find(split.validation),
        counts=counts,
        statistics=training_data.statistics(store, split.train) if streamed else None,
        labels=labels,
        corpora=corpora,
        model=model,
        config=config,
        augment=augment if info["features"]["kind"] == "log_mel" else None,
        features=FeatureConfig(**info["features"]),
        threads=max(1, int(workers.resources["CPU"])),
        should_stop=should_stop,
        start=start,
    )
    board = Board.remote()
    trainer = ray.train.torch.TorchTrainer(
        _train_worker,
        train_loop_config={"task": task},
        datasets={"train": training_data.stream_rows(store, split.train)} if streamed else None,
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count, use_gpu=workers.gpu, resources_per_worker=workers.resources
        ),
        run_config=ray.train.RunConfig(
            storage_path=run_root,
            name="checkpoints",
            callbacks=[_Relay(board), *callbacks],
            failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=1,
                checkpoint_score_attribute=config.monitor if len(split.validation) else None,
                checkpoint_score_order="min" if config.monitor == "validation_loss" else "max",
            ),
        ),
    )
    with following(board, on_epoch):
        result = trainer.fit()
    if any(note.get("diverged") for note in ray.get(board.since.remote(0))):
        raise UserError(
            f"the loss became NaN, infinite or above {MAX_LOSS:g}; lower --learning-rate "
            "(the last good checkpoint is kept)"
        )
    _, state = _read_checkpoint(result.checkpoint)
    history = state["history"]
    checkpoint, kept = result.checkpoint, history[-1]
    if len(split.validation):
        best = min if config.monitor == "validation_loss" else max
        checkpoint, kept = best(result.best_checkpoints, key=lambda pair: pair[1][config.monitor])
    tensors, _ = _read_checkpoint(checkpoint)
    weights = part(tensors, "averaged." if config.ema else "network.")
    network = build(model, task.features.num_features, len(labels.names))
    network.load_state_dict(weights)
    return Fitted(network.eval(), history, kept["epoch"], history[-1]["num_workers"])


def _say_weights(corpora: list[str], labels: LabelSet, counts_GC: Tensor, config: TrainConfig) -> None:
    weights_GC = loss_weights(counts_GC, config.balance, config.balance_by)
    heard_G = counts_GC.sum(1).nonzero()[:, 0].tolist()
    alike = (weights_GC[heard_G] == weights_GC[heard_G[0]]).all()
    for group in heard_G[:1] if alike else heard_G:
        weights = zip(labels.names, weights_GC[group].tolist(), counts_GC[group].tolist(), strict=True)
        text = ", ".join(f"{name} {weight:.2f}" for name, weight, count in weights if count or alike)
        say(f"Weight of a clip{'' if alike else f' of {corpora[group]}'} in the loss: {text}")


def _train_worker(loop_config: dict[str, Any]) -> None:
    """Run one worker: read the rows, restore, train epoch by epoch, report each."""
    task: Task = loop_config["task"]
    config = task.config
    torch.set_num_threads(task.threads)
    torch.manual_seed(config.seed)
    rank, world = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    device = ray.train.torch.get_device()

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

    def wrap(network: nn.Module) -> nn.Module:
        # The first worker's batch-norm statistics are those that are validated and kept: the others need not follow.
        network = ray.train.torch.prepare_model(network, parallel_strategy_kwargs={"broadcast_buffers": False})
        return torch.compile(network, dynamic=True) if config.compile else network  # batches differ in size

    learner = Learner(network, config, counts_GC, augment, mixup, rank, world, wrap)
    history: list[dict[str, Any]] = []
    checkpoint = ray.train.get_checkpoint()
    if checkpoint:
        tensors, state = _read_checkpoint(checkpoint)
        learner.load_state(tensors, state["learner"])
        history = state["history"]

    while not is_over(history, config):
        epoch = len(history) + 1
        started = time.perf_counter()
        if train_N is None:
            shard = ray.train.get_dataset_shard("train")
            tables = shard.iter_batches(batch_size=training_data.BUFFER, batch_format="pyarrow")
            batches = training_data.batches(
                tables, task.labels, task.corpora, config.batch_size, device, config.seed * 1_000_003 + epoch
            )
            num_batches = -(-int(task.counts.sum()) // (world * config.batch_size))
        else:
            dealt = deal(train_N, config, epoch, rank, world)
            batches, num_batches = ((rows, index_B) for index_B in dealt), len(dealt)
        train_loss = learner.train_epoch(epoch, batches, num_batches)
        train_s = time.perf_counter() - started
        scores = learner.validate(validation, validation_N) if len(task.validation) else {}
        diverged = not math.isfinite(train_loss + scores.get("validation_loss", 0.0)) or train_loss > MAX_LOSS
        if not diverged:
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
        _report(rank, learner, history, diverged)
        if diverged or (task.should_stop and _all_stop(rank == 0 and task.should_stop(), world, device)):
            return


def _all_stop(stop: bool, world: int, device: torch.device) -> bool:
    """Tell all ranks what the first one decided."""
    decision = torch.tensor(int(stop), device=device)
    if world > 1:
        torch.distributed.broadcast(decision, src=0)
    return bool(decision)


def _report(rank: int, learner: Learner, history: list[dict[str, Any]], diverged: bool) -> None:
    """Report an epoch to Ray Train, which waits for all ranks; rank 0 brings the checkpoint."""
    node = {"node": ray.get_runtime_context().get_node_id()}
    if rank != 0 or diverged:
        ray.train.report({"diverged": diverged, **node})
        return
    tensors, rest = learner.state()
    with tempfile.TemporaryDirectory() as folder:
        safetensors.torch.save_file({k: t.contiguous() for k, t in tensors.items()}, f"{folder}/state.safetensors")
        with open(f"{folder}/state.json", "w") as stream:
            json.dump({"history": history, "learner": rest}, stream)
        place = ray.util.get_current_placement_group()
        metrics = {**history[-1], **node, "placement_group": place.id.hex() if place else ""}
        ray.train.report(metrics, ray.train.Checkpoint.from_directory(folder))


def _read_checkpoint(checkpoint: ray.train.Checkpoint) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the JSON state of a checkpoint."""
    with checkpoint.as_directory() as folder, open(f"{folder}/state.json") as stream:
        return safetensors.torch.load_file(f"{folder}/state.safetensors"), json.load(stream)


class _Relay(ray.train.UserCallback):
    """Runs in Ray Train's controller; passes on what rank 0 reported."""

    def __init__(self, board: ray.actor.ActorHandle) -> None:
        self.board = board

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Pin up the metrics of rank 0, and on how many nodes the ranks are."""
        self.board.add.remote({**metrics[0], "nodes": len({rank["node"] for rank in metrics})})
