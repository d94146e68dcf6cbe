"""What a worker of Ray Train does: one training after the other, on rows that it brings to its device once.

Each training has a checkpoint of its own, written after every epoch. A worker that takes the place of a lost one, or
that a later command starts, finds by these what is done and goes on.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from torch import Tensor, nn

from ser_ray.model.examples import Examples
from ser_ray.training import worker_rows
from ser_ray.training.checkpoints import read_checkpoint, write_checkpoint
from ser_ray.training.loop import DivergedError, Held, Stream, Work, all_stop, run_epochs
from ser_ray.training.step import Group

EAGER = "Steps are not captured in a CUDA graph, which is slower"


@dataclass(frozen=True)
class Assignment:
    """A training that workers are to do.

    Attributes:
        number: Its place among all tasks.
        work: What to do.
        root: Where its checkpoint lies.
        names: What tells it from others, put before each epoch's metrics.
    """

    number: int
    work: Work
    root: str
    names: dict[str, int]


def train_in_turn(loop: dict[str, Any]) -> None:
    """Run one of Ray Train's workers.

    Args:
        loop: `assignments` in order; `examples`, a reference to the rows of all of them; `board`, where the first
            worker pins up metrics, what is to be said, and each training that ended; `launched`, when they were.
    """
    device, context = ray.train.torch.get_device(), ray.train.get_context()
    group = Group(context.get_world_rank(), context.get_world_size(), _wrap)
    rows = Held.on(device, Examples.from_arrays(ray.get(loop["examples"])))
    place = ray.util.get_current_placement_group()
    facts = {"nodes": _count_nodes(group, device)}
    facts["placement_group"] = place.id.hex() if place else ""
    driver, last = _Driver(loop["board"]), loop["launched"]
    for one in loop["assignments"]:
        if all_stop(driver.is_gone, group.world, device):
            return
        if one.work.compile:
            torch.compiler.reset()  # after some networks of other shapes, compiling is given up
        work = replace(one.work, should_stop=lambda work=one.work: driver.is_gone or _should_stop(work))
        stream = _streamer(work, device) if work.train is None else None
        said = ""
        try:
            for learner, history in run_epochs(work, rows, group, read_checkpoint(one.root), stream):
                if group.rank == 0:
                    write_checkpoint(one.root, learner, history)
                    if learner.refusal != said:
                        said = learner.refusal
                        driver.tell({"said": f"{EAGER}: {said}"})
                    driver.tell({**one.names, **history[-1], **facts})
        except DivergedError:
            if group.rank == 0:
                driver.tell({"diverged": one.number})
            return
        if group.rank == 0:
            now = time.time()
            driver.tell({"ended": one.number, "seconds": now - last})
            last = now


class _Driver:
    """Who follows the training, by a board; it may be gone before the end."""

    def __init__(self, board: ray.actor.ActorHandle) -> None:
        self.board, self.is_gone = board, False

    def tell(self, note: dict[str, Any]) -> None:
        try:
            self.is_gone = not ray.get(self.board.add.remote(note))
        except ray.exceptions.RayActorError:  # the board went with its driver
            self.is_gone = True


def _wrap(network: nn.Module) -> nn.Module:
    # The first worker's batch-norm statistics are those that are validated and kept: the others need not follow.
    return ray.train.torch.prepare_model(network, parallel_strategy_kwargs={"broadcast_buffers": False})


def _should_stop(work: Work) -> bool:
    return bool(work.should_stop and work.should_stop())


def _count_nodes(group: Group, device: torch.device) -> int:
    """Return on how many nodes the workers are; Ray Train's rank of a node goes by address, which nodes may share."""
    if group.world == 1:
        return 1
    own = torch.tensor([int(ray.get_runtime_context().get_node_id()[:15], 16)], device=device)
    nodes = [torch.empty_like(own) for _ in range(group.world)]
    torch.distributed.all_gather(nodes, own)
    return len(torch.cat(nodes).unique())


def _streamer(work: Work, device: torch.device) -> Stream:
    def stream(seed: int) -> Iterable[tuple[Examples, Tensor]]:
        shard = ray.train.get_dataset_shard("train")
        tables = shard.iter_batches(batch_size=worker_rows.BUFFER, batch_format="pyarrow")
        return worker_rows.stream_batches(tables, work, device, seed)

    return stream
