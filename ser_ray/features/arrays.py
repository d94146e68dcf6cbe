"""Features between NumPy and Arrow: nested lists, of which the outermost alone may vary in length.

Shapes: V values of all clips.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

HALF = pa.float16()


def shape_of(type_: pa.DataType) -> tuple[int | None, ...]:
    """Return the shape of one clip's features, such as `(162,)`, `(None, 64)` for frames, `(None,)` for samples."""
    sizes: list[int | None] = []
    while pa.types.is_list(type_) or pa.types.is_fixed_size_list(type_):
        sizes.append(type_.list_size if pa.types.is_fixed_size_list(type_) else None)
        type_ = type_.value_type
    return tuple(sizes)


def number_of(type_: pa.DataType) -> pa.DataType:
    """Return the type of the numbers in nested lists."""
    while pa.types.is_list(type_) or pa.types.is_fixed_size_list(type_):
        type_ = type_.value_type
    return type_


def widened(type_: pa.DataType) -> pa.DataType:
    """Return a type of nested lists with float32 in the place of half precision."""
    if pa.types.is_fixed_size_list(type_):
        return pa.list_(widened(type_.value_type), type_.list_size)
    if pa.types.is_list(type_):
        return pa.list_(widened(type_.value_type))
    return pa.float32() if type_ == HALF else type_


def encode_features(values: Sequence[np.ndarray], type_: pa.DataType) -> pa.Array:
    """Turn features of clips, each an array whose first axis may vary, into an Arrow array of `Features.arrow_type`.

    Where that is of half precision and a value is beyond its range, all become float32.
    """
    first, *inner = shape_of(type_)
    number = number_of(widened(type_))
    flat_V = np.concatenate([np.zeros(0, number.to_pandas_dtype()), *map(np.ravel, values)])
    if number_of(type_) == HALF:
        with np.errstate(over="ignore"):
            half_V = flat_V.astype(np.float16)
        if np.isfinite(half_V).all():
            flat_V, number = half_V, HALF
    flat = pa.array(flat_V, number)
    for size in reversed(inner):
        flat = pa.FixedSizeListArray.from_arrays(flat, size)
    if first is not None:
        return pa.FixedSizeListArray.from_arrays(flat, first)
    return pa.ListArray.from_arrays(pa.array(np.cumsum([0, *map(len, values)]), pa.int32()), flat)


def decode_features(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Turn a `features` column back into NumPy.

    Returns:
        All values, those of half precision as float32, in one array and `[rows + 1]` offsets: row i holds
        `values[offsets[i] : offsets[i + 1]]`. Where every clip has one shape, values are `[rows, *shape]` and a row
        holds one; else they are all frames one after the other, `[frames, n_mels]` for `log_mel`, or all samples for
        `waveform`.
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
    values = values.astype(np.float32) if values.dtype == np.float16 else values
    return values.reshape(-1, *inner) if inner else values, offsets
