"""`Rows`: some rows of a store, as splits choose them, training learns from them and models answer them.

The keys and metadata of a store are read once, by `open_rows`. From then on rows are numbered by their place in the
order of utterance_id and augmentation, and every `Rows` made from others keeps that numbering.

Shape suffixes: N rows, R all rows of the store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ser_ray.base.errors import UserError
from ser_ray.features.recipe import FeaturizeConfig
from ser_ray.store.shards import MEASURES, METADATA, decoded_bytes, read_shard
from ser_ray.store.store import Store

TOLD = ("corpus", "speaker_id", "gender", "emotion", "sentence_id", "channel")  # what splits and scores go by


@dataclass(frozen=True, eq=False)
class Source:
    """All rows of a store.

    Attributes:
        store: Where they are; None for rows that are in no store.
        info: The content of `store.json`.
        table: Their metadata, in the order of utterance_id and augmentation.
        shards: Paths of the shards.
        shard_R: Which of them each row is in.
        place_R: Where in it.
    """

    store: Store | None
    info: dict[str, Any]
    table: pa.Table
    shards: tuple[str, ...] = ()
    shard_R: np.ndarray | None = None
    place_R: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a store, in the order of utterance_id and augmentation unless they were taken in another.

    Attributes:
        source: All rows of the store.
        index_N: Which of those these are, int64.
    """

    source: Source
    index_N: np.ndarray

    def __len__(self) -> int:
        return len(self.index_N)

    def __getitem__(self, column: str) -> pa.ChunkedArray:
        """Return a column of the metadata (`shards.METADATA`)."""
        return self.source.table[column].take(pa.array(self.index_N))

    def table(self, columns: Sequence[str]) -> pa.Table:
        """Return some columns of the metadata."""
        return self.source.table.select(columns).take(pa.array(self.index_N))

    def values(self, column: str) -> set[str]:
        """Return the distinct values of a column."""
        return set(self[column].unique().to_pylist())

    def take(self, index: np.ndarray) -> Rows:
        """Return those of some places among these, or those that a mask marks."""
        return replace(self, index_N=self.index_N[index])

    def among(self, column: str, values: Iterable[str]) -> np.ndarray:
        """Return a mask of the rows whose column holds one of some values."""
        table = self[column]
        return pc.is_in(table, value_set=pa.array(list(values), table.type)).to_numpy(zero_copy_only=False)

    def union(self, other: Rows) -> Rows:
        """Return these and those of others, each once, in the numbering's order."""
        return replace(self, index_N=np.union1d(self.index_N, other.index_N))

    def find(self, others: Rows) -> np.ndarray:
        """Return where some of these rows stand among these, which are in the numbering's order."""
        return np.searchsorted(self.index_N, others.index_N)

    @property
    def recipe(self) -> FeaturizeConfig:
        """What the store was made by."""
        return self.source.store.recipe()

    @property
    def corpora(self) -> list[str]:
        """All corpora of the store, in order, by whose places rows are grouped."""
        return sorted(self.source.info["counts"])

    @property
    def decoded_gb(self) -> float:
        """About how many GB the features of these rows take in memory."""
        whole = sum(map(decoded_bytes, self.source.shards))
        return whole / 1e9 * len(self) / max(1, self.source.table.num_rows)

    @property
    def made_speech(self) -> bool:
        """Whether any of the clips is known to be made speech; of stores of older versions nothing is known."""
        folders = tuple(f"{folder}/" for folder in self.source.info.get("made_speech", ()))
        return bool(folders) and any(path.startswith(folders) for path in self["path"].to_pylist())

    def digests(self) -> np.ndarray:
        """Return the first 8 bytes of the SHA-256 of each row's file, each once, sorted, as int64.

        They tell identical files, not copies in another format.
        """
        return np.array(sorted(map(digest_of, self.values("sha256"))), np.int64)

    def told(self) -> dict[str, str]:
        """Return a digest of each column that says who speaks what and how, by which people are split and scored."""
        rows = self.take(self.among("augmentation", ["none"]))
        names = rows["utterance_id"].to_pylist()
        digests = {}
        for column in TOLD:
            pairs = zip(names, rows[column].to_pylist(), strict=True)
            digest = hashlib.sha256("".join(f"{name} {value}\n" for name, value in pairs).encode())
            digests[column] = digest.hexdigest()[:12]
        return digests

    def places(self) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Yield each shard that holds any of these rows: its path, where they are in it, and where among these."""
        shard_N, place_N = self.source.shard_R[self.index_N], self.source.place_R[self.index_N]
        for shard in np.unique(shard_N):
            here = np.flatnonzero(shard_N == shard)
            yield self.source.shards[shard], place_N[here], here

    def each(self) -> Iterator[tuple[Rows, pa.ChunkedArray]]:
        """Yield these rows and their features, shard by shard, for what is too large to be in memory at once."""
        for path, place_N, here in self.places():
            yield self.take(here), read_shard(path, ["features"])["features"].take(pa.array(place_N))

    def measures(self) -> pa.Table | None:
        """Return what was measured of the rows' clips (`sample_rate` and `shards.MEASURES`), in no order.

        None where some were featurized by an earlier version, which did not measure.
        """
        tables = []
        for path, place_N, _ in self.places():
            table = read_shard(path, ["sample_rate", *MEASURES])
            if table.num_columns <= len(MEASURES):
                return None
            tables.append(table.take(pa.array(place_N)))
        return pa.concat_tables(tables) if tables else None

    def features(self) -> pa.ChunkedArray:
        """Return the features of these rows, in their order, reading only the shards that hold any."""
        parts, order = [], []
        for path, place_N, here in self.places():
            parts += read_shard(path, ["features"])["features"].take(pa.array(place_N)).chunks
            order.append(here)
        if not parts:
            return pa.chunked_array([], self.recipe.features.arrow_type())
        return pa.chunked_array(parts).take(pa.array(np.argsort(np.concatenate(order), kind="stable")))


def open_rows(store: Store) -> Rows:
    """Read the keys and metadata of a finished store, once.

    Raises:
        UserError: The store is not finished, holds no rows or was made by features that are unknown here.
    """
    info = store.info()
    if info is None or not info["complete"]:
        raise UserError(f"{store.root} is not a finished feature store; run jobs/featurize.py --data ... first")
    store.recipe()
    shards = store.shards()
    if not shards:
        raise UserError(f"the store {store.root} holds no rows; run jobs/featurize.py --data ... first")
    tables = [read_shard(path, METADATA) for path in shards]
    counts = [table.num_rows for table in tables]
    shard_R = np.repeat(np.arange(len(shards)), counts)
    place_R = np.concatenate([np.arange(count) for count in counts])
    table = pa.concat_tables(tables).combine_chunks()
    order_R = pc.sort_indices(table, [("utterance_id", "ascending"), ("augmentation", "ascending")]).to_numpy()
    source = Source(store, info, table.take(pa.array(order_R)), tuple(shards), shard_R[order_R], place_R[order_R])
    return Rows(source, np.arange(table.num_rows))


def digest_of(sha256: str) -> int:
    """Return the first 8 bytes of a SHA-256, given in hex digits, as a signed number."""
    return int.from_bytes(bytes.fromhex(sha256[:16]), "big", signed=True)


def rows_of(table: pa.Table) -> Rows:
    """Return the rows of a table of metadata that is in no store, in the order of utterance_id and augmentation."""
    order = pc.sort_indices(table, [("utterance_id", "ascending"), ("augmentation", "ascending")])
    return Rows(Source(None, {}, table.take(order)), np.arange(table.num_rows))
