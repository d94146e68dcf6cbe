"""Features between NumPy and Arrow: nested lists, of which the outermost alone may vary in length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def shape_of(type_: pa.DataType) -> tuple[int | None, ...]:
    """Return the shape of one clip's features, such as `(162,)`, `(None, 64)` for frames, `(None,)` for samples."""
    sizes: list[int | None] = []
    while pa.types.is_list(type_) or pa.types.is_fixed_size_list(type_):
        sizes.append(type_.list_size if pa.types.is_fixed_size_list(type_) else None)
        type_ = type_.value_type
    return tuple(sizes)


def encode_features(values: Sequence[np.ndarray], type_: pa.DataType) -> pa.Array:
    """Turn features of clips, each an array whose first axis may vary, into an Arrow array of `Features.arrow_type`."""
    first, *inner = shape_of(type_)
    leaf = type_
    while pa.types.is_list(leaf) or pa.types.is_fixed_size_list(leaf):
        leaf = leaf.value_type
    flat = pa.array(np.concatenate([np.zeros(0, leaf.to_pandas_dtype()), *(v.ravel() for v in values)]), leaf)
    for size in reversed(inner):
        flat = pa.FixedSizeListArray.from_arrays(flat, size)
    if first is not None:
        return pa.FixedSizeListArray.from_arrays(flat, first)
    return pa.ListArray.from_arrays(pa.array(np.cumsum([0, *map(len, values)]), pa.int32()), flat)


def decode_features(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Turn a `features` column back into NumPy.

    Returns:
        All values in one array and `[rows + 1]` offsets: row i holds `values[offsets[i] : offsets[i + 1]]`. Where
        every clip has one shape, values are `[rows, *shape]` and a row holds one; else they are all frames one after
        the other, `[frames, n_mels]` for `log_mel`, or all samples for `waveform`.
    """
    array = column.combine_chunks()
    first, *inner = shape_of(array.type)
    if first is not None:
        inner, offsets = [first, *inner], np.arange(len(array) + 1)
    else:
        offsets = np.cumsum([0, *array.value_lengths().to_numpy(zero_copy_only=False)])
        array = array.flatten()
    for _ in inner:
        array = array.flatten()
    values = array.to_numpy(zero_copy_only=False)
    return values.reshape(-1, *inner) if inner else values, offsets
