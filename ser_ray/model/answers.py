"""What models say of the windows of a recording, alone or together.

Shapes: T samples, W windows, C classes, F features.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from scipy.special import entr

from ser_ray.features.arrays import encode_features, shape_of
from ser_ray.features.spec import Features, Kernel
from ser_ray.model.calibration import pool_answers
from ser_ray.model.examples import Examples
from ser_ray.model.speakers import Known, sums_of
from ser_ray.model.windows import Hearing

if TYPE_CHECKING:
    from ser_ray.model.model import Model

BATCH = 16  # Windows that are in memory at a time.
WINDOWS_SCHEMA = pa.schema(
    [
        *(("file", pa.string()), ("channel", pa.int32()), ("start", pa.float64()), ("end", pa.float64())),
        *(("emotion", pa.string()), ("probability", pa.float64()), ("probabilities", pa.list_(pa.float64()))),
        ("entropy", pa.float64()),
    ]
)


def listen_windows(features: Features, hearing: Hearing) -> dict[int, Known]:
    """Return what all windows of each channel tell of its speaker."""
    known: dict[int, Known] = {}
    framed = shape_of(features.arrow_type())[0] is None
    for place, values in _features(features, hearing):
        channel, frames_NF = hearing.windows[place].channel, values if framed else values[None]
        frames, sums_2F = known.get(channel, Known())
        known[channel] = Known(frames + len(frames_NF), sums_2F + sums_of(frames_NF))
    return known


def answer_windows(
    models: Sequence[Model], hearing: Hearing, voices: Mapping[Features, Mapping[int, Known]] | None = None
) -> np.ndarray:
    """Return what models of the same features and labels say of each window, by `pool_answers`.

    For models that normalize by speaker, all windows of a channel are one speaker's.

    Args:
        models: The models.
        hearing: The recording.
        voices: What is known of the speakers, by features and channel; None for what the recording itself tells.

    Returns:
        Probabilities `[W, C]`, float64; NaN where a window is silent.
    """
    labels = models[0].labels
    known: dict[str, Known] = {}
    if any(model.speaker_norm for model in models):
        features = models[0].features
        own = listen_windows(features, hearing) if voices is None else voices.get(features, {})
        known = {str(channel): told for channel, told in own.items()}
    answers_WC = np.full((len(hearing.windows), len(labels.names)), np.nan)
    heard = _features(models[0].features, hearing)
    while batch := list(islice(heard, BATCH)):
        places = [place for place, _ in batch]
        table = pa.table(
            {
                "utterance_id": list(map(str, places)),
                "corpus": [""] * len(batch),
                "speaker_id": [str(hearing.windows[place].channel) for place in places],
                "emotion": [labels.names[0]] * len(batch),
                "features": encode_features([values for _, values in batch], models[0].features.arrow_type()),
            }
        )
        each = [model.answer(Examples.from_table(table, labels, [""], model.normalizer(known))) for model in models]
        answers_WC[places] = pool_answers(each) if len(each) > 1 else each[0]
    return answers_WC


def tell_windows(
    name: str,
    hearing: Hearing,
    answers_WC: np.ndarray,
    labels: Sequence[str],
    abstain_below: float = 0.0,
    unsure: Collection[int] = (),
) -> pa.Table:
    """Return one row for each window, of `WINDOWS_SCHEMA`.

    Args:
        name: The recording's path or URI.
        hearing: Its windows.
        answers_WC: What `answer_windows` gives.
        labels: The class names.
        abstain_below: A window whose most probable emotion is less probable is answered without one.
        unsure: Channels of which all windows are answered so.
    """
    rows = []
    for window, answer_C in zip(hearing.windows, answers_WC, strict=True):
        row = {"file": name, "channel": window.channel, "start": window.start_s, "end": window.end_s}
        sure = window.channel not in unsure
        if not window.silent:
            row |= {
                "emotion": labels[int(answer_C.argmax())] if answer_C.max() >= abstain_below and sure else None,
                "probability": float(answer_C.max()),
                "probabilities": answer_C,
                "entropy": float(entr(answer_C).sum()),
            }
        rows.append(row)
    return pa.Table.from_pylist(rows, WINDOWS_SCHEMA)


def _features(features: Features, hearing: Hearing) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the places of the windows that are not silent with their features."""
    kernel = _kernel(features)
    for place, sound_T in hearing.sounds():
        yield place, kernel.rows(sound_T, str(place), ("none",), 0)[0]


@lru_cache(maxsize=4)
def _kernel(features: Features) -> Kernel:
    return features.kernel()
