"""How rows reach the workers of a training.

Those of a node share them in Ray's object store; where they are too many, Ray Data streams them from the store's
shards, by buffers, in every epoch anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from torch import Tensor

from ser_ray.features.arrays import decode_features
from ser_ray.model.examples import COLUMNS, Examples, moments
from ser_ray.model.speakers import LEAST_STD, Speakers, is_framed
from ser_ray.speech.emotions import LabelSet
from ser_ray.store.rows import Rows
from ser_ray.store.shards import read_shard
from ser_ray.training.loop import Work

BUFFER = 2048  # rows that a worker shuffles at a time
CPUS = 0.5  # that reading shards takes


@dataclass(frozen=True)
class Shared:
    """Rows in Ray's object store, where all workers of a node read them in place.

    Attributes:
        examples: The rows as `Examples`, as NumPy arrays by name.
        rows: Which rows they are.
        speakers: By whom they are normalized; None where they are not.
    """

    examples: ray.ObjectRef
    rows: Rows
    speakers: Speakers | None


def share_rows(rows: Rows, labels: LabelSet, speakers: Speakers | None = None) -> Shared:
    """Read rows of a store, once for all workers and trainings, normalized by speakers where these are given."""
    return Shared(ray.put(Examples.from_rows(rows, labels, speakers).arrays()), rows, speakers)


def find_places(rows: Rows) -> list[dict[str, object]]:
    """Return in which shards some rows are, and where in them, for `stream_rows`."""
    return [{"path": path, "places": place_N} for path, place_N, _ in rows.places()]


def stream_rows(places: list[dict[str, object]], shuffle: bool = True) -> ray.data.Dataset:
    """Return some rows of a store as a dataset that is read anew in every epoch.

    Args:
        places: From `find_places`.
        shuffle: Read shards in another order in each epoch, instead of in theirs.
    """
    shards = ray.data.from_items(places, override_num_blocks=len(places))
    shards.context.execution_options.preserve_order = not shuffle
    if shuffle:
        shards = shards.randomize_block_order()
    return shards.map_batches(_read_places, batch_format="pyarrow", batch_size=None, num_cpus=CPUS)


def _read_places(shards: pa.Table) -> pa.Table:
    """Return the rows at some places of some shards."""
    return pa.concat_tables(
        read_shard(shard["path"], [*COLUMNS, "features"]).take(pa.array(shard["places"], pa.int64()))
        for shard in shards.to_pylist()
    )


def stream_batches(
    tables: Iterable[pa.Table], work: Work, device: torch.device, seed: int | None = None
) -> Iterator[tuple[Examples, Tensor]]:
    """Yield the batches of one epoch of a worker: examples, and the indices of the batch in them.

    Args:
        tables: The worker's share of the rows, in buffers that are shuffled each by itself.
        work: What the worker does; all batches of a buffer are about equal, of its batch size at most.
        device: Where to put the examples.
        seed: Of the order within each buffer; None keeps the order of the shards.
    """
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    batch_size = work.method.config.batch_size
    for table in tables:
        examples = Examples.from_table(table, work.method.labels, work.corpora, work.speakers).to(device)
        count = len(examples)
        if count < 2:  # batch statistics need several clips
            continue
        order_N = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
        for index_B in order_N.to(device).tensor_split(min(-(-count // batch_size), count // 2)):
            yield examples, index_B


def measure_rows(rows: Rows) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each feature over the frames of some rows, reading shard by shard."""
    parts = (torch.tensor(decode_features(column)[0]).double() for _, column in rows.each())
    return moments((len(part), part.sum(0), part.square().sum(0)) for part in parts)


def usual_speech(train: Rows) -> np.ndarray:
    """Return mean and standard deviation of each band over training frames, `[2, F]`, to which clips are brought."""
    mean_F, std_F = (moment_F.float().numpy() for moment_F in measure_rows(train))
    if is_framed(train.recipe.features):
        return np.stack([mean_F, np.maximum(std_F, LEAST_STD)])
    return np.stack([mean_F, np.where(std_F > 1e-12, std_F, 1.0)])  # as the network's `Standardize` has it
