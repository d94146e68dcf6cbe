"""Tasks of prediction on Ray Data: each answers some recordings and writes its own files; only counts come back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy

from ser_ray.base.cluster import carry_registered, connect
from ser_ray.base.workers import await_resource, count_resources
from ser_ray.features.kernels.spectra import use_one_core
from ser_ray.model.together import Together
from ser_ray.predict.inputs import PIECE_SCHEMA, Piece
from ser_ray.predict.shares import Sharer
from ser_ray.predict.task import Answerer, start_outcome

MOST_ACTORS, MOST_ENCODERS = 16, 2  # On one GPU; an encoder takes more of its memory and time.
GROUP_BYTES, MAX_GROUPED = 128 << 20, 400  # Largest group of tasks, in bytes of sound and in recordings.
PARTS = 10_000  # Ray deals GPUs in ten thousandths.

_ANSWERERS: dict[ray.ObjectRef, Answerer | Sharer] = {}


def answer_on_ray(answerer: Answerer | Sharer, tasks: Mapping[str, Sequence[Piece]]) -> Iterator[dict[str, Any]]:
    """Yield what is returned for each task, in the order in which they end; closing stops the rest.

    Raises:
        UserError: There is no Ray cluster at the address that is given, or no GPU in it that was asked for.
    """
    connect()
    carry_registered()
    actors = plan_actors(answerer.together, len(tasks))
    workers = actors["compute"].max_size if actors else count_resources()[0] or 1
    blocks = [_block({name: tasks[name] for name in names}) for names in group_tasks(tasks, workers)]
    dataset, how = ray.data.from_blocks(blocks), {"batch_size": 1, "batch_format": "pyarrow"}
    if actors:
        outcomes = dataset.map_batches(Actor, fn_constructor_args=(ray.put(answerer),), **how, **actors)
    else:
        outcomes = dataset.map_batches(partial(_answer_in_task, answerer=ray.put(answerer)), **how)
    for bundle in outcomes.iter_internal_ref_bundles():
        for block in bundle.blocks:
            yield from ray.get(block.ref).to_pylist()


def plan_actors(together: Together, tasks: int) -> dict[str, Any]:
    """Say what actors answer on GPUs, in `map_batches`' words; nothing where cores answer.

    Each decodes on a core of its own and has a part of a GPU, which one alone would leave idle most of the time.

    Raises:
        UserError: A GPU was asked for, and there is none.
    """
    device = together.models[0].device
    if device == "cuda":
        await_resource("GPU", 1, "use --device cpu")
    cpus, gpus = count_resources()
    if device == "cpu" or not gpus:
        return {}
    most = MOST_ENCODERS if together.have_encoder else MOST_ACTORS
    per_gpu = min(most, max(1, cpus // gpus))
    part = int(PARTS / per_gpu) / PARTS
    return {"compute": ActorPoolStrategy(size=min(tasks, gpus * per_gpu)), "num_gpus": part, "num_cpus": 0}


class Actor:
    """Answers on a GPU: an actor of Ray Data, since tasks on GPUs would get a process each.

    Args:
        answerer: Reference to what answers.
    """

    def __init__(self, answerer: ray.ObjectRef) -> None:
        use_one_core()
        self.answerer = ray.get(answerer)
        self.answerer.together.settle()
        usable = torch.cuda.is_available()
        self.problem = "" if usable else "torch cannot use the GPU that Ray gave it; use --device cpu"

    def __call__(self, tasks: pa.Table) -> pa.Table:
        """Do some tasks."""
        if self.problem:
            return pa.Table.from_pylist([start_outcome(0, self.problem)])
        return _answer_all(self.answerer, tasks)


def group_tasks(tasks: Mapping[str, Sequence[Piece]], workers: int) -> list[list[str]]:
    """Deal tasks into groups that a worker is given at a time, fewer in each towards the end, so that none waits long.

    Between two groups a worker waits for Ray Data, which looks every 0.1 s what is done; so long half a minute of sound
    takes.
    """
    names = list(tasks)
    sizes = [sum(piece.size for piece in tasks[name]) for name in names]
    groups, start = [], 0
    while start < len(names):
        stop, most, size, recordings = start, -(-(len(names) - start) // (2 * workers)), 0, 0
        while stop == start or (stop < len(names) and stop - start < most):
            size, recordings = size + sizes[stop], recordings + len(tasks[names[stop]])
            if stop > start and (size > GROUP_BYTES or recordings > MAX_GROUPED):
                break
            stop += 1
        groups.append(names[start:stop])
        start = stop
    return groups


def _block(tasks: Mapping[str, Sequence[Piece]]) -> pa.Table:
    records = [[piece._asdict() for piece in pieces] for pieces in tasks.values()]
    return pa.table({"name": list(tasks), "pieces": pa.array(records, pa.list_(pa.struct(list(PIECE_SCHEMA))))})


def _answer_in_task(tasks: pa.Table, answerer: ray.ObjectRef) -> pa.Table:
    """Do some tasks in a worker process, which reads the models once for all that it does."""
    use_one_core()  # Ray runs one task a core
    if answerer not in _ANSWERERS:
        _ANSWERERS.clear()
        _ANSWERERS[answerer] = ray.get(answerer)
    return _answer_all(_ANSWERERS[answerer], tasks)


def _answer_all(answerer: Answerer | Sharer, tasks: pa.Table) -> pa.Table:
    rows = tasks.to_pylist()
    pieces = ([Piece(**record) for record in row["pieces"]] for row in rows)
    return pa.Table.from_pylist([answerer(row["name"], some) for row, some in zip(rows, pieces, strict=True)])
