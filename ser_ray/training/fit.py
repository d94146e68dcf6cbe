"""Data-parallel training: on Ray Train by as many workers as there are, or, for a trial of a search, where it is.

Rows come as `worker_rows` brings them. Trainings that share rows share workers, too: these are started once, and do one
after the other, as `worker` says; what is done for each stands in `loop`.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from torch import Tensor

from ser_ray.base.cluster import Board, carry_registered
from ser_ray.base.console import say
from ser_ray.base.errors import UserError
from ser_ray.base.workers import Workers, plan_workers
from ser_ray.features.arrays import shape_of
from ser_ray.model.examples import Examples
from ser_ray.training import worker_rows
from ser_ray.training.batches import loss_weights
from ser_ray.training.checkpoints import best_weights, read_checkpoint
from ser_ray.training.learner import best_epoch
from ser_ray.training.loop import MAX_LOSS, DivergedError, Held, Work, run_epochs
from ser_ray.training.settings import Compute
from ser_ray.training.task import Fitted, Method, Place, Task, Tell
from ser_ray.training.worker import Assignment, train_in_turn

CXX = "clang++" if sys.platform == "darwin" else "g++"  # what torch.compile calls
MAX_FAILURES = 3  # how often a lost worker is replaced
POLL_S = 0.25  # how often the driver looks what workers have pinned up
LEAVE_S = 30.0  # how long it waits for them to end where it leaves before they are done


@dataclass(frozen=True)
class _Start:
    """Trainings that need only workers, who do one after the other.

    Attributes:
        assignments: The trainings.
        examples: Rows that they share.
        workers: How many, and what each takes.
        stream: Where the rows are that are streamed; None where they are shared.
    """

    assignments: list[Assignment]
    examples: ray.ObjectRef
    workers: Workers
    stream: list[dict[str, object]] | None


def train(task: Task, place: Place, tell: Tell, shared: worker_rows.Shared | None = None) -> Fitted:
    """Train a network; a training under the same root that was cut short goes on where it was.

    Args:
        task: What to train.
        place: Where.
        tell: Called with the metrics of each epoch as it ends, in this process.
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
        tasks: What to train. Those of the same labels that normalize by the same speakers share rows and workers.
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
    todo = _deal(tasks, place, shared, at_once)
    if place.here:
        yield from (_fit_here(one, start, tell) for start in todo for one in start.assignments)
        return
    board, seen, more = Board.remote(), 0, True
    running, ended = set(), set()
    try:
        while more or running:
            while more and len(running) < at_once:
                start = next(todo, None)
                more = start is not None
                running |= {_launch(start, board)} if more else set()
            done, _ = wait(running, POLL_S, FIRST_COMPLETED)
            notes = ray.get(board.since.remote(seen))
            seen += len(notes)
            for note in notes:
                if "ended" not in note:
                    _show(note, tell)
                elif note["ended"] not in ended:  # workers that take the place of lost ones say so again
                    ended.add(note["ended"])
                    yield note["ended"], _take_best(tasks[note["ended"]], note["seconds"])
            running -= done
            for one in done:
                one.result()
    finally:
        board.leave.remote()
        wait(running, LEAVE_S)


def _deal(tasks: Sequence[Task], place: Place, shared: worker_rows.Shared | None, at_once: int) -> Iterator[_Start]:
    """Deal trainings to workers that share their rows; rows that no later ones need leave memory."""
    groups: dict[Any, list[tuple[int, Task]]] = {}
    for number, task in enumerate(tasks):
        alike = None if shared else (id(task.speakers), task.method.labels)
        groups.setdefault(alike, []).append((number, task))
    for group in groups.values():
        rows = shared or _share([task for _, task in group], place)
        if rows is None:  # streamed
            turns = [[one] for one in group]
        else:
            turns = [group[k::at_once] for k in range(min(at_once, len(group)))] if len(groups) == 1 else [group]
        yield from (_prepare(turn, place, rows) for turn in turns)


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


def _prepare(turn: Sequence[tuple[int, Task]], place: Place, shared: worker_rows.Shared | None) -> _Start:
    """Bring the rows of some tasks to where workers find them, and plan these."""
    compute, first, streamed = place.compute, turn[0][1], shared is None
    if streamed:
        shared = worker_rows.share_rows(first.validation, first.method.labels, first.speakers)
    others = worker_rows.CPUS if streamed else 0
    workers = place.here or plan_workers(compute.num_workers, compute.device, place.share, others)
    compilers = [os.path.join(folder, os.environ.get("CXX", CXX)) for folder in os.get_exec_path()]
    if compute.compile and not workers.gpu and not any(os.access(path, os.X_OK) for path in compilers):
        raise UserError(f"--compile needs a C++ compiler on CPUs; install {CXX}, or name another by CXX")
    threads = max(1, int(workers.resources["CPU"]))
    assignments = [
        Assignment(number, _plan_work(task, compute, threads, shared, streamed), task.root, task.names)
        for number, task in turn
    ]
    carry_registered()
    return _Start(assignments, shared.examples, workers, worker_rows.find_places(first.train) if streamed else None)


def _plan_work(task: Task, compute: Compute, threads: int, shared: worker_rows.Shared, streamed: bool) -> Work:
    """Say what each worker does for a task."""
    moments, speakers = None, task.speakers
    if speakers:  # the statistics are those before normalization, which brings clips to them
        moments = tuple(map(torch.from_numpy, speakers.usual_2F))
        speakers = replace(speakers, known={name: speakers.known[name] for name in task.train.values("speaker_id")})
    elif streamed:
        moments = worker_rows.measure_rows(task.train)
    return Work(
        method=task.method,
        train=None if streamed else shared.rows.find(task.train),
        validation=shared.rows.find(task.validation),
        counts=task.counts(),
        corpora=task.train.corpora,
        statistics=moments,
        speakers=speakers if streamed else None,
        start=task.start,
        threads=threads,
        compile=compute.compile,
        should_stop=task.should_stop,
    )


@lru_cache(maxsize=1)
def _hold(examples: ray.ObjectRef, device: str) -> Held:
    """Bring rows to this process's device, for all trainings on them."""
    return Held.on(torch.device(device), Examples.from_arrays(ray.get(examples)))


def _fit_here(one: Assignment, start: _Start, tell: Tell) -> tuple[int, Fitted]:
    """Train in this process, without a checkpoint."""
    started, work = time.perf_counter(), one.work
    if work.compile:
        torch.compiler.reset()  # after some networks of other shapes, compiling is given up
    rows, learner, history = _hold(start.examples, "cuda" if start.workers.gpu else "cpu"), None, []
    try:
        for learner, history in run_epochs(work, rows):  # noqa: B007
            tell(one.names | history[-1])
    except DivergedError:
        raise UserError(_diverged()) from None
    return one.number, _make_fitted(work.method, learner.kept, history, time.perf_counter() - started)


def _launch(start: _Start, board: ray.actor.ActorHandle) -> Future[None]:
    """Train by workers of Ray Train, which a thread of this process waits for."""
    over: Future[None] = Future()
    streamed = start.stream is not None
    loop = {"assignments": start.assignments, "examples": start.examples, "board": board, "launched": time.time()}
    trainer = ray.train.torch.TorchTrainer(
        train_in_turn,
        train_loop_config=loop,
        datasets={"train": worker_rows.stream_rows(start.stream)} if streamed else None,
        scaling_config=ray.train.ScalingConfig(
            num_workers=start.workers.count, use_gpu=start.workers.gpu, resources_per_worker=start.workers.resources
        ),
        run_config=ray.train.RunConfig(
            storage_path=start.assignments[0].root,
            name="checkpoints",
            failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
        ),
    )

    def run() -> None:
        try:
            trainer.fit()
            over.set_result(None)
        except BaseException as error:
            over.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return over


def _show(note: dict[str, Any], tell: Tell) -> None:
    """Pass on what workers pinned up."""
    if "diverged" in note:
        raise UserError(_diverged(" (the last good checkpoint is kept)"))
    if "said" in note:
        say(note["said"])
    else:
        tell(note)


def _diverged(kept: str = "") -> str:
    return f"the loss became NaN, infinite or above {MAX_LOSS:g}; lower --learning-rate{kept}"


def _take_best(task: Task, seconds: float) -> Fitted:
    """Return the network of the best epoch from a training's checkpoint."""
    kept = read_checkpoint(task.root)
    if kept is None:
        raise UserError(
            f"what workers on other nodes wrote is not in {task.root} as this one sees it: name an --output that all "
            "share, such as s3://bucket/runs/first"
        )
    tensors, state = kept
    return _make_fitted(task.method, best_weights(tensors), state["history"], seconds)


def _make_fitted(method: Method, weights: dict[str, Tensor], history: list[dict[str, Any]], seconds: float) -> Fitted:
    network = method.network.build(shape_of(method.features.arrow_type()), len(method.labels.names))
    network.load_state_dict(weights)
    best = best_epoch(history, method.config.monitor)
    return Fitted(network.eval(), history, best, history[-1]["num_workers"], seconds)


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
