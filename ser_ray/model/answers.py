"""What models say of the windows of a recording, alone or together.

Shapes: T samples, W windows, C classes, F features.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from scipy.special import entr

from ser_ray.features.arrays import encode_features
from ser_ray.features.encoder import Encoder
from ser_ray.features.spec import Features, Kernel
from ser_ray.model.calibration import pool_answers
from ser_ray.model.examples import Examples
from ser_ray.model.speakers import Known, is_framed, sums_of
from ser_ray.model.windows import Hearing
from ser_ray.speech.audio import AudioError

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


def answer_windows(
    models: Sequence[Model],
    hearing: Hearing,
    weights: Sequence[float] | None = None,
    voices: Mapping[Features, Mapping[int, Known]] | None = None,
    share: tuple[int, int] = (0, 1),
) -> np.ndarray:
    """Return what models of the same labels say together of each window, by `calibration.pool_answers`.

    Models of different features hear the same windows, each at the rate of its own. For models that normalize by
    speaker, all windows of a channel are one speaker's.

    Args:
        models: The models.
        hearing: The recording.
        weights: How much each model counts; None for alike.
        voices: What is known of the speakers, by features and channel; None for what the recording itself tells.
        share: Which share of the windows is answered, from 0, of how many. Shares are whole batches, since what a
            network says hangs, in the last bit, on what stands beside a window in its batch.

    Returns:
        Probabilities `[W, C]`, float64; NaN where a window is silent, or in another share.
    """
    where = models[0].place.type
    number, of = share
    batches = -(-sum(not window.silent for window in hearing.windows) // BATCH)
    first, stop = (BATCH * (batches * k // of) for k in (number, number + 1))
    answers = [np.full((len(hearing.windows), len(model.labels.names)), np.nan) for model in models]
    for features in dict.fromkeys(model.features for model in models):
        own = [pair for pair in zip(models, answers, strict=True) if pair[0].features == features]
        known: Mapping[int, Known] = {}
        if any(model.speaker_norm for model, _ in own):
            known = listen_windows(features, hearing, where) if voices is None else voices.get(features, {})
        by_name = {str(channel): told for channel, told in known.items()}
        heard = _features(features, hearing, where, first, stop)
        while batch := list(islice(heard, BATCH)):
            places = [place for place, _ in batch]
            table = _tabulate(batch, hearing, features)
            for model, answers_WC in own:
                examples = Examples.from_table(table, model.labels, [""], model.normalizer(by_name))
                answers_WC[places] = model.answer(examples)
    return pool_answers(answers, weights) if len(answers) > 1 else answers[0]


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


def listen_windows(features: Features, hearing: Hearing, where: str) -> dict[int, Known]:
    """Return what all windows of each channel tell of its speaker, on `cpu` or `cuda`."""
    known: dict[int, Known] = {}
    framed = is_framed(features)
    for place, values in _features(features, hearing, where):
        channel, frames_NF = hearing.windows[place].channel, values if framed else values[None]
        frames, sums_2F = known.get(channel, Known())
        known[channel] = Known(frames + len(frames_NF), sums_2F + sums_of(frames_NF))
    return known


def _tabulate(batch: Sequence[tuple[int, np.ndarray]], hearing: Hearing, features: Features) -> pa.Table:
    """Return windows with their features as a table that `Examples` takes; their emotions are not known."""
    return pa.table(
        {
            "utterance_id": [str(place) for place, _ in batch],
            "corpus": [""] * len(batch),
            "speaker_id": [str(hearing.windows[place].channel) for place, _ in batch],
            "emotion": [""] * len(batch),
            "features": encode_features([values for _, values in batch], features.arrow_type()),
        }
    )


def hear_together(features: Encoder, hearings: Sequence[Hearing], where: str) -> None:
    """Have an encoder hear all windows of some short recordings at once, for `answer_windows` to take what it heard.

    Args:
        features: Of the encoder.
        hearings: The recordings; one that cannot be read is left out.
        where: `cpu` or `cuda`.
    """
    sounds: list[tuple[tuple[Hearing, int], np.ndarray]] = []
    for hearing in hearings:
        with suppress(AudioError, OSError):
            sounds += [((hearing, place), sound_T) for place, sound_T in list(hearing.sounds(features.sample_rate))]
    for (hearing, place), row in _hear_at_once(_kernel(features, where), sounds):
        hearing.heard.setdefault(features, {})[place] = row


def _features(
    features: Features, hearing: Hearing, where: str, first: int = 0, stop: int | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the places of the windows that are not silent, or of some of them, with their features."""
    if features in hearing.heard:
        heard = islice(hearing.heard[features].items(), first, stop)
    else:
        heard = _hear(_kernel(features, where), hearing.sounds(features.sample_rate, first, stop), where)
    for place, row in heard:
        if isinstance(row, Exception):
            raise row
        yield place, row


def _hear(
    kernel: Kernel, sounds: Iterator[tuple[int, np.ndarray]], where: str
) -> Iterator[tuple[int, np.ndarray | Exception]]:
    """Yield the rows of some windows, which on a GPU are computed in batches: one leaves it idle."""
    if where == "cpu" or not hasattr(kernel, "rows_of_clips"):
        yield from ((place, kernel.rows(sound_T, str(place), ("none",), 0)[0]) for place, sound_T in sounds)
        return
    while batch := list(islice(sounds, BATCH)):
        yield from _hear_at_once(kernel, batch)


def _hear_at_once(kernel: Kernel, sounds: Sequence[tuple[Any, np.ndarray]]) -> Iterator[tuple[Any, Any]]:
    """Yield the row of each of some windows, or what is wrong with it, each behind what stood before its sound."""
    rows = kernel.rows_of_clips([(sound_T, "") for _, sound_T in sounds], ("none",), 0)
    for (place, _), row in zip(sounds, rows, strict=True):
        yield place, row if isinstance(row, Exception) else row[0]


@lru_cache(maxsize=4)
def _kernel(features: Features, where: str) -> Kernel:
    kernel = features.kernel()
    if not getattr(features, "cpu_only", False):
        kernel.to(where)
    return kernel
