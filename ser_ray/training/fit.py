"""Data-parallel training: on Ray Train by as many workers as there are, or, for a trial of a search, where it is.

Rows come as `training_data` brings them; what a worker does with them stands in `worker`. On Ray Train the state goes
into a checkpoint of safetensors and JSON after each epoch, from which a killed run continues.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import safetensors.torch
import torch
from torch import Tensor, nn

from ser_ray.base.cluster import Board, following
from ser_ray.base.console import say
from ser_ray.base.errors import UserError
from ser_ray.base.workers import Workers, plan_workers
from ser_ray.experiment.splits import Split
from ser_ray.features.settings import FeatureConfig
from ser_ray.model.examples import Examples
from ser_ray.model.speakers import Speakers
from ser_ray.networks.models import ModelConfig, build
from ser_ray.speech.emotions import LabelSet
from ser_ray.store.store import Store
from ser_ray.training import worker_rows as training_data
from ser_ray.training.frames import FrameAugmentConfig
from ser_ray.training.learner import Learner, TrainConfig, best_epoch, loss_weights, part
from ser_ray.training.loop import MAX_LOSS, DivergedError, Task, epochs

CXX = "clang++" if sys.platform == "darwin" else "g++"  # what torch.compile calls
MAX_FAILURES = 3  # how often a lost worker is replaced


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
    should_stop: Callable[[], bool] | None = None,
    start: dict[str, Tensor] | None = None,
    here: Workers | None = None,
    speakers: Speakers | None = None,
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
        on_epoch: Called with the metrics of each epoch as it ends, in this process; on Ray Train, in a thread of it.
        share: How many trainings have the cluster at the same time.
        shared: Rows that were read already, with those of training and validation among them.
        should_stop: Asked by the first worker after each epoch whether this shall have been the last.
        start: Weights of a trained network of the same kind to start from, but for its last layer and the statistics
            of its features.
        here: What this process holds of the cluster, to train in it, by one worker on shared rows and without
            checkpoints; None to have workers of Ray Train.
        speakers: By whom to normalize, as `training_data.speakers_of` gives them; rows that are shared are already.

    Raises:
        UserError: The cluster or this machine lacks what was asked for, or the loss exploded.
    """
    info = store.info()
    rows = store.rows(["utterance_id", "augmentation", "corpus", "speaker_id", "emotion"])
    size_gb = store.decoded_gb() * len(split.train) / rows.num_rows
    streamed = size_gb > config.memory_gb and shared is None
    if streamed:
        say(f"Training rows: {size_gb:.3f} GB decoded, more than --memory-gb, so they are streamed")
        shared = training_data.share_rows(store, split.validation, labels, speakers)
    elif shared is None:
        say(f"Training rows: {size_gb:.3f} GB decoded, kept in memory")
        both = np.concatenate([split.train, split.validation])
        shared = training_data.share_rows(store, both, labels, speakers)
    corpora = shared.corpora
    counts = np.zeros((len(corpora), len(labels.names)), np.int64)
    for row in rows.take(split.train).group_by(["corpus", "emotion"]).aggregate([([], "count_all")]).to_pylist():
        counts[corpora.index(row["corpus"]), labels.index(row["emotion"])] += row["count_all"]
    if config.balance:
        _say_weights(corpora, labels, torch.from_numpy(counts), config)
    others = training_data.CPUS if streamed else 0
    workers = here or plan_workers(config.num_workers, config.device, share, others)
    compilers = [os.path.join(folder, os.environ.get("CXX", CXX)) for folder in os.get_exec_path()]
    if config.compile and not workers.gpu and not any(os.access(path, os.X_OK) for path in compilers):
        raise UserError(f"--compile needs a C++ compiler on CPUs; install {CXX}, or name another by CXX")
    speakers = shared.speakers
    moments = training_data.statistics(store, split.train) if streamed and not speakers else None
    if speakers:
        moments = tuple(map(torch.from_numpy, speakers.usual_2F))
        trained = rows["speaker_id"].take(split.train).unique().to_pylist()
        speakers = replace(speakers, heard={name: speakers.heard[name] for name in trained})
    task = Task(
        train=None if streamed else shared.find(split.train),
        validation=shared.find(split.validation),
        counts=counts,
        speakers=speakers if streamed else None,
        statistics=moments,
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
    try:
        if here:
            return _fit_here(task, shared.rows, workers, on_epoch)
        dataset = training_data.stream_rows(store, split.train) if streamed else None
        return _fit_on_ray(task, shared.rows, workers, run_root, on_epoch, dataset)
    except DivergedError:
        kept = "" if here else " (the last good checkpoint is kept)"
        raise UserError(f"the loss became NaN, infinite or above {MAX_LOSS:g}; lower --learning-rate{kept}") from None


def _fit_here(task: Task, rows: ray.ObjectRef, workers: Workers, on_epoch: Callable[[dict[str, Any]], None]) -> Fitted:
    """Train in this process."""
    if task.config.compile:
        torch.compiler.reset()  # after some networks of other shapes, compiling is given up
    kept = None
    device = torch.device("cuda" if workers.gpu else "cpu")
    for learner, history in epochs(task, Examples.from_arrays(ray.get(rows)), device):
        if best_epoch(history, task.config.monitor) == len(history):
            kept = copy.deepcopy(learner.averaged)
        on_epoch(history[-1])
    return Fitted(kept.cpu().eval(), history, best_epoch(history, task.config.monitor), 1)


def _fit_on_ray(
    task: Task,
    rows: ray.ObjectRef,
    workers: Workers,
    run_root: str,
    on_epoch: Callable[[dict[str, Any]], None],
    dataset: ray.data.Dataset | None,
) -> Fitted:
    """Train by workers of Ray Train, from the checkpoint of the folder if there is one."""
    config, board = task.config, Board.remote()
    trainer = ray.train.torch.TorchTrainer(
        _train_worker,
        train_loop_config={"task": task, "rows": rows},
        datasets={"train": dataset} if dataset else None,
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count, use_gpu=workers.gpu, resources_per_worker=workers.resources
        ),
        run_config=ray.train.RunConfig(
            storage_path=run_root,
            name="checkpoints",
            callbacks=[_Relay(board)],
            failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=1,
                checkpoint_score_attribute=config.monitor if len(task.validation) else None,
                checkpoint_score_order="min" if config.monitor == "validation_loss" else "max",
            ),
        ),
    )
    diverged = False

    def show(note: dict[str, Any]) -> None:
        nonlocal diverged
        diverged = diverged or "diverged" in note
        if not diverged:
            on_epoch(note)

    with following(board, show):
        result = trainer.fit()
    if diverged:
        raise DivergedError
    _, state = _read_checkpoint(result.checkpoint)
    history = state["history"]
    checkpoint, kept = result.checkpoint, history[-1]
    if len(task.validation):
        best = min if config.monitor == "validation_loss" else max
        checkpoint, kept = best(result.best_checkpoints, key=lambda pair: pair[1][config.monitor])
    tensors, _ = _read_checkpoint(checkpoint)
    network = build(task.model, task.features.num_features, len(task.labels.names))
    network.load_state_dict(part(tensors, "averaged." if config.ema else "network."))
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
    """Run one of Ray Train's workers."""
    task: Task = loop_config["task"]
    device = ray.train.torch.get_device()
    context, checkpoint = ray.train.get_context(), ray.train.get_checkpoint()
    rank, world = context.get_world_rank(), context.get_world_size()
    node = {"node": ray.get_runtime_context().get_node_id()}

    def wrap(network: nn.Module) -> nn.Module:
        # The first worker's batch-norm statistics are those that are validated and kept: the others need not follow.
        return ray.train.torch.prepare_model(network, parallel_strategy_kwargs={"broadcast_buffers": False})

    def stream(seed: int) -> Iterable[tuple[Examples, Tensor]]:
        shard = ray.train.get_dataset_shard("train")
        tables = shard.iter_batches(batch_size=training_data.BUFFER, batch_format="pyarrow")
        what = task.labels, task.corpora, task.config.batch_size, device, seed, task.speakers
        return training_data.batches(tables, *what)

    try:
        for learner, history in epochs(
            task,
            Examples.from_arrays(ray.get(loop_config["rows"])),
            device,
            rank,
            world,
            wrap,
            _read_checkpoint(checkpoint) if checkpoint else None,
            stream if task.train is None else None,
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
