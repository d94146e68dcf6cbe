"""Training rows that do not fit in memory: read by shards and buffers, in every epoch anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ser_ray.emotions import LabelSet
from ser_ray.inference import COLUMNS, Examples, moments
from ser_ray.store import Store, choose_rows, decode, name_rows, read_shard

BUFFER = 2048  # rows that a worker shuffles at a time
CPUS = 0.5  # that reading shards takes


def read_chosen(paths: pa.Table, wanted: pa.Array) -> pa.Table:
    """Return the rows with the wanted names of the shards in the column `path`."""
    return pa.concat_tables(choose_rows(read_shard(path, COLUMNS), wanted) for path in paths["path"].to_pylist())


def batches(
    tables: Iterable[pa.Table],
    labels: LabelSet,
    corpora: Sequence[str],
    batch_size: int,
    device: torch.device,
    seed: int | None = None,
) -> Iterator[tuple[Examples, Tensor]]:
    """Yield the batches of one epoch of a worker: examples, and the indices of the batch in them.

    Args:
        tables: The worker's share of the rows, in buffers that are shuffled each by itself.
        labels: The classes.
        corpora: What `Examples.from_rows` takes.
        batch_size: Rows per batch, at most; all batches of a buffer are about equal.
        device: Where to put the examples.
        seed: Of the order within each buffer; None keeps the order of the shards.
    """
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    for table in tables:
        examples = Examples.from_rows(table, labels, corpora).to(device)
        count = len(examples)
        if count < 2:  # batch statistics need several clips
            continue
        order_N = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
        for index_B in order_N.to(device).tensor_split(min(-(-count // batch_size), count // 2)):
            yield examples, index_B


def statistics(store: Store, indices: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each feature over the frames of some rows, reading shard by shard."""
    wanted = name_rows(store.rows(["utterance_id", "augmentation"]).take(indices))
    shards = (choose_rows(rows, wanted) for rows in store.each(["utterance_id", "augmentation", "features"]))
    parts = (torch.tensor(decode(rows.column("features"))[0]).double() for rows in shards if rows.num_rows)
    return moments((len(part), part.sum(0), part.square().sum(0)) for part in parts)
