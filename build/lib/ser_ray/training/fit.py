"""Data-parallel training: on Ray Train by as many workers as there are, or, for a trial of a search, where it is.

Rows come as `worker_rows` brings them; what a worker does with them stands in `loop`. On Ray Train the state goes into
a checkpoint after each epoch, from which a killed run continues.
"""

from __future__ import annotations

import copy
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from torch import Tensor, nn

from ser_ray.base.cluster import Board, carry_registered, following, quiet
from ser_ray.base.console import say
from ser_ray.base.errors import UserError
from ser_ray.base.workers import Workers, plan_workers
from ser_ray.features.arrays import shape_of
from ser_ray.model.examples import Examples
from ser_ray.training import worker_rows
from ser_ray.training.batches import loss_weights
from ser_ray.training.checkpoints import read_checkpoint, write_checkpoint
from ser_ray.training.learner import Learner, best_epoch
from ser_ray.training.loop import MAX_LOSS, DivergedError, Work, run_epochs
from ser_ray.training.step import Group, part_of
from ser_ray.training.task import Fitted, Place, Task, Tell

CXX = "clang++" if sys.platform == "darwin" else "g++"  # what torch.compile calls
MAX_FAILURES = 3  # how often a lost worker is replaced


@dataclass(frozen=True)
class _Prepared:
    """A task that needs only workers.

    Attributes:
        work: What each worker does.
        examples: Rows that they share.
        workers: How many, and what each takes.
        root: Where checkpoints lie.
        names: What tells this training from others.
        here: Whether this process is the worker.
        stream: Where the rows are that are streamed; None where they are shared.
    """

    work: Work
    examples: ray.ObjectRef
    workers: Workers
    root: str
    names: dict[str, int]
    here: bool
    stream: list[dict[str, object]] | None


def train(task: Task, place: Place, tell: Tell, shared: worker_rows.Shared | None = None) -> Fitted:
    """Train a network; a training under the same root that was cut short goes on where it was.

    Args:
        task: What to train.
        place: Where.
        tell: Called with the metrics of each epoch as it ends, in this process; on Ray Train, in a thread of it.
        shared: Rows that were read already, with those of the task among them, normalized by its speakers.

    Raises:
        UserError: The cluster or this machine lacks what was asked for, or the loss exploded.
    """
    ((_, fitted),) = train_many([task], place, tell, shared)
    return fitted


def train_many(
    tasks: Sequence[Task],
    place: Place,
    tell: Tell,
    shared: worker_rows.Shared | None = None,
    at_once: int = 1,
) -> Iterator[tuple[int, Fitted]]:
    """Train several networks on rows that they share, such as members, folds, or what a trial is judged on.

    Args:
        tasks: What to train, begun in this order. Those that normalize by the same speakers share their rows.
        place: Where each of them trains.
        tell: Called with the metrics of each epoch of any of them.
        shared: Rows that were read already, with those of all tasks among them, normalized by the speakers of all.
        at_once: How many train at a time, by workers of Ray Train.

    Yields:
        The place of a task among the tasks and what its training gave, in the order in which they end.

    Raises:
        UserError: As `train` does, for the first that fails.
    """
    _say_weights(tasks[0])
    groups: dict[int, list[Task]] = {}
    for task in tasks:
        groups.setdefault(id(task.speakers), []).append(task)
    read: dict[int, worker_rows.Shared | None] = {}

    def prepare(task: Task) -> _Prepared:
        key = id(task.speakers)
        if shared is None and key not in read:
            read[key] = _share(groups[key], place)
        prepared = _prepare(task, place, shared or read[key])
        groups[key] = [other for other in groups[key] if other is not task]
        if not groups[key]:
            read.pop(key, None)  # what no task needs any more leaves memory as soon as its last training ends
        return prepared

    if at_once == 1 or len(tasks) == 1:
        for k, task in enumerate(tasks):
            yield k, _fit(prepare(task), tell)
        return
    board = Board.remote()
    with following(board, tell):
        running: dict[Any, int] = {}
        todo = list(enumerate(tasks))
        while todo or running:
            while todo and len(running) < at_once:
                k, task = todo.pop(0)
                running[_fit_elsewhere.remote(prepare(task), board)] = k
            (done, *_), _ = ray.wait(list(running))
            try:
                fitted = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                for other in running:
                    ray.cancel(other)
                raise error.cause from None
            yield running.pop(done), fitted


def _share(tasks: Sequence[Task], place: Place) -> worker_rows.Shared | None:
    """Read the rows of some tasks into shared memory; None where they are more than it may hold."""
    rows = tasks[0].rows
    for task in tasks[1:]:
        rows = rows.union(task.rows)
    size_gb = rows.decoded_gb
    if size_gb > place.compute.memory_gb and place.here is None:  # this process streams nothing
        say(f"Training rows: {size_gb:.3f} GB decoded, more than --memory-gb, so they are streamed")
        return None
    say(f"Training rows: {size_gb:.3f} GB decoded, kept in memory")
    return worker_rows.share_rows(rows, tasks[0].method.labels, tasks[0].speakers)


def _prepare(task: Task, place: Place, shared: worker_rows.Shared | None) -> _Prepared:
    """Bring a task's rows to where workers find them, and plan these."""
    compute, streamed = place.compute, shared is None
    if streamed:
        shared = worker_rows.share_rows(task.validation, task.method.labels, task.speakers)
    counts = task.counts()
    others = worker_rows.CPUS if streamed else 0
    workers = place.here or plan_workers(compute.num_workers, compute.device, place.share, others)
    compilers = [os.path.join(folder, os.environ.get("CXX", CXX)) for folder in os.get_exec_path()]
    if compute.compile and not workers.gpu and not any(os.access(path, os.X_OK) for path in compilers):
        raise UserError(f"--compile needs a C++ compiler on CPUs; install {CXX}, or name another by CXX")
    moments, speakers = None, task.speakers
    if speakers:  # the statistics are those before normalization, which brings clips to them
        moments = tuple(map(torch.from_numpy, speakers.usual_2F))
        speakers = replace(speakers, known={name: speakers.known[name] for name in task.train.values("speaker_id")})
    elif streamed:
        moments = worker_rows.measure_rows(task.train)
    work = Work(
        method=task.method,
        train=None if streamed else shared.rows.find(task.train),
        validation=shared.rows.find(task.validation),
        counts=counts,
        corpora=task.train.corpora,
        statistics=moments,
        speakers=speakers if streamed else None,
        start=task.start,
        threads=max(1, int(workers.resources["CPU"])),
        compile=compute.compile,
        should_stop=task.should_stop,
    )
    stream = worker_rows.find_places(task.train) if streamed else None
    carry_registered()
    return _Prepared(work, shared.examples, workers, task.root, task.names, place.here is not None, stream)


@ray.remote(num_cpus=0, max_retries=0)
def _fit_elsewhere(prepared: _Prepared, board: ray.actor.ActorHandle) -> Fitted:
    quiet()
    return _fit(prepared, lambda epoch: board.add.remote(epoch))


def _fit(prepared: _Prepared, tell: Tell) -> Fitted:
    """Train what is prepared."""

    def name(epoch: dict[str, Any]) -> None:
        tell(prepared.names | epoch)

    started = time.perf_counter()
    try:
        fitted = (_fit_here if prepared.here else _fit_on_ray)(prepared, name)
        return replace(fitted, seconds=time.perf_counter() - started)
    except DivergedError:
        kept = "" if prepared.here else " (the last good checkpoint is kept)"
        raise UserError(f"the loss became NaN, infinite or above {MAX_LOSS:g}; lower --learning-rate{kept}") from None


def _fit_here(prepared: _Prepared, tell: Tell) -> Fitted:
    """Train in this process."""
    work, config = prepared.work, prepared.work.method.config
    if work.compile:
        torch.compiler.reset()  # after some networks of other shapes, compiling is given up
    kept = None
    device = torch.device("cuda" if prepared.workers.gpu else "cpu")
    for learner, history in run_epochs(work, Examples.from_arrays(ray.get(prepared.examples)), device):
        if best_epoch(history, config.monitor) == len(history):
            kept = copy.deepcopy(learner.averaged)
        tell(history[-1])
    return Fitted(kept.cpu().eval(), history, best_epoch(history, config.monitor), 1)


def _fit_on_ray(prepared: _Prepared, tell: Tell) -> Fitted:
    """Train by workers of Ray Train, from the checkpoint under the root if there is one."""
    work, workers, board = prepared.work, prepared.workers, Board.remote()
    config = work.method.config
    streamed = prepared.stream is not None
    trainer = ray.train.torch.TorchTrainer(
        _train_worker,
        train_loop_config={"work": work, "examples": prepared.examples},
        datasets={"train": worker_rows.stream_rows(prepared.stream)} if streamed else None,
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count, use_gpu=workers.gpu, resources_per_worker=workers.resources
        ),
        run_config=ray.train.RunConfig(
            storage_path=prepared.root,
            name="checkpoints",
            callbacks=[_Relay(board)],
            failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=1,
                checkpoint_score_attribute=config.monitor if len(work.validation) else None,
                checkpoint_score_order="min" if config.monitor == "validation_loss" else "max",
            ),
        ),
    )
    diverged = False

    def show(note: dict[str, Any]) -> None:
        nonlocal diverged
        diverged = diverged or "diverged" in note
        if not diverged:
            tell(note)

    with following(board, show):
        result = trainer.fit()
    if diverged:
        raise DivergedError
    return _take_best(work, result)


def _take_best(work: Work, result: ray.train.Result) -> Fitted:
    """Return the network of the best epoch that Ray Train kept."""
    method, config = work.method, work.method.config
    _, state = _open_checkpoint(result.checkpoint)
    history = state["history"]
    checkpoint, kept = result.checkpoint, history[-1]
    if len(work.validation):
        best = min if config.monitor == "validation_loss" else max
        checkpoint, kept = best(result.best_checkpoints, key=lambda pair: pair[1][config.monitor])
    tensors, _ = _open_checkpoint(checkpoint)
    network = method.network.build(shape_of(method.features.arrow_type()), len(method.labels.names))
    network.load_state_dict(part_of(tensors, "averaged." if config.ema else "network."))
    return Fitted(network.eval(), history, kept["epoch"], history[-1]["num_workers"])


def _say_weights(task: Task) -> None:
    config, labels, counts_GC = task.method.config, task.method.labels, torch.from_numpy(task.counts())
    if not config.balance:
        return
    weights_GC = loss_weights(counts_GC, config.balance, config.balance_by)
    trained_G = counts_GC.sum(1).nonzero()[:, 0].tolist()
    alike = (weights_GC[trained_G] == weights_GC[trained_G[0]]).all()
    for group in trained_G[:1] if alike else trained_G:
        weights = zip(labels.names, weights_GC[group].tolist(), counts_GC[group].tolist(), strict=True)
        text = ", ".join(f"{name} {weight:.2f}" for name, weight, count in weights if count or alike)
        say(f"Weight of a clip{'' if alike else f' of {task.train.corpora[group]}'} in the loss: {text}")


def _train_worker(loop_config: dict[str, Any]) -> None:
    """Run one of Ray Train's workers."""
    work: Work = loop_config["work"]
    device = ray.train.torch.get_device()
    context, checkpoint = ray.train.get_context(), ray.train.get_checkpoint()
    node = {"node": ray.get_runtime_context().get_node_id()}

    def wrap(network: nn.Module) -> nn.Module:
        # The first worker's batch-norm statistics are those that are validated and kept: the others need not follow.
        return ray.train.torch.prepare_model(network, parallel_strategy_kwargs={"broadcast_buffers": False})

    def stream(seed: int) -> Iterable[tuple[Examples, Tensor]]:
        shard = ray.train.get_dataset_shard("train")
        tables = shard.iter_batches(batch_size=worker_rows.BUFFER, batch_format="pyarrow")
        return worker_rows.stream_batches(tables, work, device, seed)

    group = Group(context.get_world_rank(), context.get_world_size(), wrap)
    rows = Examples.from_arrays(ray.get(loop_config["examples"]))
    kept = _open_checkpoint(checkpoint) if checkpoint else None
    try:
        for learner, history in run_epochs(work, rows, device, group, kept, stream if work.train is None else None):
            _report(group.rank, learner, history, node)
    except DivergedError:  # raised, it would be tried again
        ray.train.report({"diverged": True, **node})


def _report(rank: int, learner: Learner, history: list[dict[str, Any]], node: dict[str, str]) -> None:
    """Report an epoch to Ray Train, which waits for all ranks; rank 0 brings the checkpoint."""
    if rank != 0:
        ray.train.report(node)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(folder, learner, history)
        place = ray.util.get_current_placement_group()
        metrics = {**history[-1], **node, "placement_group": place.id.hex() if place else ""}
        ray.train.report(metrics, ray.train.Checkpoint.from_directory(folder))


def _open_checkpoint(checkpoint: ray.train.Checkpoint) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with checkpoint.as_directory() as folder:
        return read_checkpoint(folder)


class _Relay(ray.train.UserCallback):
    """Runs in Ray Train's controller; passes on what rank 0 reported."""

    def __init__(self, board: ray.actor.ActorHandle) -> None:
        self.board = board

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Pin up the metrics of rank 0, and on how many nodes the ranks are."""
        self.board.add.remote({**metrics[0], "nodes": len({rank["node"] for rank in metrics})})
