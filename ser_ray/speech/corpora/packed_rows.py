"""The rows of a Parquet table that holds sounds (`speech.packed`)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from ser_ray.base import storage
from ser_ray.speech.corpora.files import AudioFile
from ser_ray.speech.corpora.lookup import FileLookup, Found

_BATCH = 100  # rows whose sounds are in memory while a table is listed


def list_packed(file: parquet.ParquetFile, path: str, column: str, names: Sequence[str]) -> Iterator[tuple]:
    """Yield for each row of a table what it holds: a sound, or its path where the bytes are elsewhere; and the cells.

    Args:
        file: The table.
        path: Its path or URI.
        column: The one that holds sounds.
        names: Those of which the cells are wanted, as texts.

    Yields:
        Where the sound is (`Found`), or its path as text, empty where there is none; and a text or None for each name.
    """
    files, inner = storage.filesystem(path)
    modified_ns = files.get_file_info(inner).mtime_ns or 0
    labels, row = _class_labels(file.schema_arrow), 0
    for batch in file.iter_batches(_BATCH, columns=list(dict.fromkeys([column, *names]))):
        sounds = batch.column(column)
        sizes = pc.binary_length(pc.struct_field(sounds, "bytes")).to_pylist()
        inside = sounds.type.get_field_index("path") >= 0
        called = pc.struct_field(sounds, "path").to_pylist() if inside else [None] * len(sizes)
        cells = [_texts(batch.column(name), labels.get(name)) for name in names]
        for size, name, *texts in zip(sizes, called, *cells, strict=True):
            packed = f"{path}#{row}"
            found = Found(AudioFile(packed, size, modified_ns), name or packed) if size else name or ""
            yield found, texts
            row += 1


def locate(find: FileLookup, cell: str | Found) -> Found:
    """Return the file of a row, whose cell is a path or, in a table that holds sounds, what it holds."""
    return cell if isinstance(cell, Found) else find(cell)


def _texts(column: pa.Array, labels: Sequence[str] | None) -> list[str | None]:
    if labels is None or not pa.types.is_integer(column.type):
        return column.cast(pa.string()).to_pylist()
    return [labels[k] if k is not None and 0 <= k < len(labels) else None for k in column.to_pylist()]


def _class_labels(schema: pa.Schema) -> dict[str, list[str]]:
    """Return the words that the numbers in some columns stand for, as the library `datasets` notes them."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: list(map(str, one["names"])) for name, one in features.items() if "names" in one}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
