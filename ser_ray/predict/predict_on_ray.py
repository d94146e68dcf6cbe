"""Tasks of prediction on Ray Data: each answers some recordings and writes its own files; only counts come back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import ray

from ser_ray.base.cluster import carry_registered, connect
from ser_ray.predict.inputs import PIECE_SCHEMA, Piece
from ser_ray.predict.shares import Sharer
from ser_ray.predict.task import Answerer

_ANSWERERS: dict[ray.ObjectRef, Answerer | Sharer] = {}


def answer_on_ray(answerer: Answerer | Sharer, tasks: Mapping[str, Sequence[Piece]]) -> Iterator[dict[str, Any]]:
    """Yield what is returned for each task, in the order in which they end; closing stops the rest.

    Raises:
        UserError: There is no Ray cluster at the address that is given.
    """
    connect()
    carry_registered()
    blocks = [
        pa.table({"name": [name], "pieces": pa.array([_records(pieces)], pa.list_(pa.struct(list(PIECE_SCHEMA))))})
        for name, pieces in tasks.items()
    ]
    work = partial(_answer_in_task, answerer=ray.put(answerer))
    outcomes = ray.data.from_blocks(blocks).map_batches(work, batch_size=1, batch_format="pyarrow")
    for bundle in outcomes.iter_internal_ref_bundles():
        for block in bundle.blocks:
            yield from ray.get(block.ref).to_pylist()


def _records(pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    return [piece._asdict() for piece in pieces]


def _answer_in_task(tasks: pa.Table, answerer: ray.ObjectRef) -> pa.Table:
    """Do some tasks in a worker process, which reads the models once for all that it does."""
    from ser_ray.features.kernels.spectra import use_one_core

    use_one_core()  # Ray runs one task a core
    if answerer not in _ANSWERERS:
        _ANSWERERS.clear()
        _ANSWERERS[answerer] = ray.get(answerer)
    rows = tasks.to_pylist()
    pieces = ([Piece(**record) for record in row["pieces"]] for row in rows)
    return pa.Table.from_pylist(
        [_ANSWERERS[answerer](row["name"], some) for row, some in zip(rows, pieces, strict=True)]
    )
