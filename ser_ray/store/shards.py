"""Shards: the Parquet files that hold a store's rows, metadata and features, read and written one at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from ser_ray.base import storage
from ser_ray.features.arrays import widened

COMPRESSION = {"compression": "zstd", "compression_level": 1}
METADATA = (
    *("utterance_id", "corpus", "speaker_id", "gender", "emotion", "intensity", "sentence_id", "channel"),
    *("path", "sha256", "duration_s", "sample_rate", "augmentation"),
)


def row_schema(feature_type: pa.DataType) -> pa.Schema:
    """Return the schema of a shard whose `features` column has the given native Arrow type."""
    types = {"duration_s": pa.float64(), "sample_rate": pa.int32()}
    return pa.schema([(name, types.get(name, pa.string())) for name in METADATA] + [("features", feature_type)])


def read_shard(path: str, columns: Sequence[str] | None) -> pa.Table:
    """Read the rows of one shard, or of another Parquet file of a store, with all columns or some."""
    files, inner = storage.filesystem(path)
    return pq.ParquetFile(inner, filesystem=files).read(columns=None if columns is None else list(columns))


def write_parquet(path: str, table: pa.Table) -> None:
    """Write a Parquet file of a store, whole or not at all."""
    # No two features are alike: a dictionary of them would only be in the way.
    how = {"use_dictionary": [name for name in table.column_names if name != "features"]}
    storage.write(path, lambda stream: pq.write_table(table, stream, **COMPRESSION, **how))


def widen_shards(paths: Sequence[str]) -> None:
    """Write those of a store's shards that are in half precision anew as float32, where not all are.

    So whoever reads the store finds one type in all of it.
    """
    types = {path: _schema(path).field("features").type for path in paths}
    halves = [path for path, type_ in types.items() if widened(type_) != type_]
    for path in halves if len(halves) < len(paths) else ():
        rows = read_shard(path, None)
        wide = rows["features"].cast(widened(types[path]))
        write_parquet(path, rows.set_column(rows.column_names.index("features"), "features", wide))


def _schema(path: str) -> pa.Schema:
    files, inner = storage.filesystem(path)
    return pq.read_schema(inner, filesystem=files)


def is_damaged(path: str) -> bool:
    """Tell whether a Parquet file was cut off or overwritten.

    Raises:
        OSError: The file cannot be read now, which says nothing about what is in it.
    """
    files, inner = storage.filesystem(path)
    try:
        file = pq.ParquetFile(inner, filesystem=files)
        file.read(columns=file.schema_arrow.names[:1])
    except (pa.ArrowInvalid, OSError) as error:
        if getattr(error, "errno", None):
            raise
        return True
    return False


def decoded_bytes(path: str) -> int:
    """Return about how many bytes the features of a shard take in memory."""
    files, inner = storage.filesystem(path)
    shard, size = pq.read_metadata(inner, filesystem=files), 0
    for group in (shard.row_group(i) for i in range(shard.num_row_groups)):
        columns = (group.column(i) for i in range(group.num_columns))
        size += sum(c.total_uncompressed_size for c in columns if c.path_in_schema.startswith("features"))
    return size


def name_clips(ids: Iterable[str]) -> str:
    """Return the name of a task, and of its shard, drawn from the utterance_ids of its clips."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]
