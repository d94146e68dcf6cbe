"""Sounds that stand within a Parquet table, as data sets of the Hugging Face kind hold them.

Such a table has a column, usually `audio`, of the type `struct<bytes, path>`: a whole file, and what it was called. The
sound in row 12, counted from 0, goes by the path `/data/train.parquet#12`. Bytes are read by the row group.
"""

from __future__ import annotations

import bisect
import io
import os
import re
from functools import lru_cache
from itertools import accumulate
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from ser_ray.base import storage

_PACKED = re.compile(r"(.+\.parquet)#(\d+)", re.IGNORECASE)


def open_sound(path: str) -> BinaryIO:
    """Open a sound for random-access reading: a file, or what stands in a row of a Parquet table.

    Raises:
        OSError: It cannot be read.
    """
    packed = _PACKED.fullmatch(path)
    if not packed or (not storage.is_uri(path) and os.path.exists(path)):
        return storage.open_read(path)
    row = int(packed[2])
    try:
        ends, column = _index(packed[1])
        group = bisect.bisect_right(ends, row)
        if group < len(ends):
            sound = _read_group(packed[1], group, column)[row - (ends[group - 1] if group else 0)].as_py()
            return io.BytesIO(sound or b"")
    except pa.ArrowException as error:
        raise OSError(" ".join(str(error).split())) from None
    raise OSError("the table has no such row any more")


def find_packed(schema: pa.Schema) -> str:
    """Return the name of the column that holds sounds, or an empty text."""
    for field in schema:
        if pa.types.is_struct(field.type) and (place := field.type.get_field_index("bytes")) >= 0:
            kind = field.type.field(place).type
            if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                return field.name
    return ""


@lru_cache(maxsize=16)
def _index(path: str) -> tuple[list[int], str]:
    """Return up to which row each row group goes, and the column that holds sounds."""
    with storage.open_read(path) as stream:
        file = parquet.ParquetFile(stream)
        sizes = (file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))
        return list(accumulate(sizes)), find_packed(file.schema_arrow)


@lru_cache(maxsize=1)  # rows are asked for one after the other
def _read_group(path: str, group: int, column: str) -> pa.ChunkedArray:
    with storage.open_read(path) as stream:
        table = parquet.ParquetFile(stream).read_row_group(group, columns=[f"{column}.bytes"])
    return pc.struct_field(table.column(column), "bytes")
