"""How rows reach the workers of a training.

Those of a node share them in Ray's object store; where they are too many, Ray Data streams them from the store's
shards, by buffers, in every epoch anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from torch import Tensor

from ser_ray.model.examples import COLUMNS, Examples, moments
from ser_ray.model.speakers import LEAST_STD, Speakers, hear_speakers
from ser_ray.networks.models import ModelConfig
from ser_ray.speech.emotions import LabelSet
from ser_ray.store.store import Store, choose_rows, decode, name_rows, read_shard

BUFFER = 2048  # rows that a worker shuffles at a time
CPUS = 0.5  # that reading shards takes


@dataclass(frozen=True)
class Shared:
    """Rows of a store in Ray's object store, where all workers of a node read them in place.

    Attributes:
        rows: What `Examples.arrays` gives.
        indices: Which rows of the store's sorted rows they are, ascending.
        corpora: Those of the store, by whose places the rows' groups are numbered.
        speakers: By whom they are normalized; None where they are not.
    """

    rows: ray.ObjectRef
    indices: np.ndarray
    corpora: list[str]
    speakers: Speakers | None

    def find(self, indices: np.ndarray) -> np.ndarray:
        """Return where some rows of the store stand among these."""
        return np.searchsorted(self.indices, indices)


def share_rows(store: Store, indices: np.ndarray, labels: LabelSet, speakers: Speakers | None = None) -> Shared:
    """Read some rows of a store, once for all workers and trainings, normalized by speakers where these are given."""
    indices, corpora = np.unique(indices), corpora_of(store)
    examples = Examples.from_rows(store.take(indices, COLUMNS), labels, corpora, speakers)
    return Shared(ray.put(examples.arrays()), indices, corpora, speakers)


def corpora_of(store: Store) -> list[str]:
    """Return the corpora of a finished store, in order."""
    return sorted(store.info()["counts"])


def stream_rows(store: Store, indices: np.ndarray, shuffle: bool = True) -> ray.data.Dataset:
    """Return some rows of a store as a dataset that is read anew in every epoch.

    Args:
        store: The feature store.
        indices: Of rows in the sorted rows of the store.
        shuffle: Read shards in another order in each epoch, instead of in theirs.
    """
    paths = store.shards()
    shards = ray.data.from_items([{"path": path} for path in paths], override_num_blocks=len(paths))
    shards.context.execution_options.preserve_order = not shuffle
    if shuffle:
        shards = shards.randomize_block_order()
    wanted = {"wanted": name_rows(store.rows(["utterance_id", "augmentation"]).take(indices))}
    return shards.map_batches(read_chosen, fn_kwargs=wanted, batch_format="pyarrow", batch_size=None, num_cpus=CPUS)


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
    speakers: Speakers | None = None,
) -> Iterator[tuple[Examples, Tensor]]:
    """Yield the batches of one epoch of a worker: examples, and the indices of the batch in them.

    Args:
        tables: The worker's share of the rows, in buffers that are shuffled each by itself.
        labels: The classes.
        corpora: What `Examples.from_rows` takes.
        batch_size: Rows per batch, at most; all batches of a buffer are about equal.
        device: Where to put the examples.
        seed: Of the order within each buffer; None keeps the order of the shards.
        speakers: What `Examples.from_rows` takes.
    """
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    for table in tables:
        examples = Examples.from_rows(table, labels, corpora, speakers).to(device)
        count = len(examples)
        if count < 2:  # batch statistics need several clips
            continue
        order_N = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
        for index_B in order_N.to(device).tensor_split(min(-(-count // batch_size), count // 2)):
            yield examples, index_B


def statistics(store: Store, indices: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each feature over the frames of some rows, reading shard by shard."""
    wanted = name_rows(store.rows(["utterance_id", "augmentation"]).take(indices))
    shards = (choose_rows(rows, wanted) for rows in store.each(COLUMNS))
    parts = (torch.tensor(decode(rows["features"])[0]).double() for rows in shards if rows.num_rows)
    return moments((len(part), part.sum(0), part.square().sum(0)) for part in parts)


def speakers_of(store: Store, model: ModelConfig, train: np.ndarray, wanted: np.ndarray) -> Speakers | None:
    """Return speakers, to normalize by; None for a network that does without.

    Args:
        store: Complete feature store.
        model: The network.
        train: Indices of the rows to whose frames clips shall be brought.
        wanted: Indices of rows whose speakers are wanted.
    """
    if not model.speaker_norm:
        return None
    mean_F, std_F = (moment_F.float().numpy() for moment_F in statistics(store, train))
    usual_2F = np.stack([mean_F, np.maximum(std_F, LEAST_STD)])
    rows = store.rows(["utterance_id", "augmentation", "speaker_id"])
    names = rows["speaker_id"].take(wanted).unique().to_pylist()
    return Speakers(usual_2F, hear_speakers(store, set(names)))
