"""Normalization by speaker: what is the voice's and the room's is taken from spectra, what is the emotion's is left.

Each mel band of a clip is brought from its mean and standard deviation over the known clips of its speaker to those of
all training frames. As few clips tell a mood rather than a voice, `USUAL_FRAMES` frames of the training's usual speech
count beside a speaker's own (a maximum a posteriori estimate: Gauvain and Lee, IEEE Transactions on Speech and Audio
Processing 2 (2), 1994). A speaker of whom nothing is known stays as he is. Where a clip is one row of numbers, such as
an encoder's states, it counts as one frame.

Shape suffix: F mel bands.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ser_ray.base.console import say
from ser_ray.features.arrays import decode_features, shape_of
from ser_ray.features.spec import Features
from ser_ray.store.rows import Rows

USUAL_FRAMES = 200  # Frames of usual speech that count beside a speaker's own: 3.2 s, where they are 16 ms apart.
LEAST_STD = 1.0  # Least deviation of a speaker's band, dB: what hardly changes is not blown up.
USUAL_CLIPS = 2  # The same where a clip is one row.
LEAST_PART = 0.01  # Least deviation there, as a part of the usual one: such numbers have units of their own.
TOLD = "Features are normalized by speaker, those of tested speakers too: by all their clips, but not their emotions."
FEW = 10  # With fewer known clips of a speaker, networks that do without normalization are better (docs/results.md).


class Known(NamedTuple):
    """What is known of one speaker.

    Attributes:
        frames: Number of frames of all known clips.
        sums_2F: Their sums (`sums_of`).
    """

    frames: int = 0
    sums_2F: np.ndarray | float = 0.0


@dataclass(frozen=True)
class Speakers:
    """What is known of speakers, to normalize by.

    Attributes:
        usual_2F: Mean and standard deviation of each band over the training frames, dB, to which clips are brought.
        known: What is known of each speaker; of any other nothing is.
        framed: Whether clips are frames, dB; else each is one row of numbers.
    """

    usual_2F: np.ndarray
    known: dict[str, Known]
    framed: bool

    @classmethod
    def of(cls, features: Features, usual_2F: np.ndarray, known: dict[str, Known]) -> Speakers:
        """Return what is known of speakers whose clips have some kind of features."""
        return cls(usual_2F, known, is_framed(features))

    def scale_and_shift(self, speaker: str) -> np.ndarray:
        """Return by what to multiply the bands of a speaker and what to add then, `[2, F]` float32."""
        frames, sums_2F = self.known.get(speaker, Known())
        mean_F, std_F = self.usual_2F.astype(np.float64)
        usual_2F = np.stack([mean_F, std_F**2 + mean_F**2])
        count, least = (USUAL_FRAMES, LEAST_STD) if self.framed else (USUAL_CLIPS, LEAST_PART * std_F)
        own_F, square_F = (sums_2F + count * usual_2F) / (frames + count)
        scale_F = std_F / np.sqrt(np.maximum(square_F - own_F**2, least**2))
        return np.stack([scale_F, mean_F - scale_F * own_F]).astype(np.float32)

    def normalize(self, values: np.ndarray, offsets: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Normalize features by all that is known of their speakers.

        Args:
            values: Of all clips, and
            offsets: where each begins, as `features.arrays.decode_features` gives them.
            names: The speaker of each clip.

        Returns:
            Values as they were given, in memory of their own.
        """
        values = values.copy()
        changes = {name: self.scale_and_shift(name) for name in set(names)}
        for name, (begin, end) in zip(names, pairwise(offsets), strict=True):
            scale_F, shift_F = changes[name]
            values[begin:end] *= scale_F
            values[begin:end] += shift_F
        return values


def is_framed(features: Features) -> bool:
    """Tell whether a clip's features are frames, of which each clip has its own number."""
    return shape_of(features.arrow_type())[0] is None


def listen(rows: Rows) -> dict[str, Known]:
    """Listen to the clips of some speakers, shard by shard; changed copies among the rows are left out.

    Speakers of few clips are counted on the screen.
    """
    known: dict[str, Known] = {}
    clips_of: Counter[str] = Counter()
    for some, column in rows.take(rows.among("augmentation", ["none"])).each():
        values, offsets = decode_features(column)
        for name, (begin, end) in zip(some["speaker_id"].to_pylist(), pairwise(offsets), strict=True):
            frames, sums_2F = known.get(name, Known())
            known[name] = Known(frames + int(end - begin), sums_2F + sums_of(values[begin:end]))
            clips_of[name] += 1
    if few := sorted(name for name, count in clips_of.items() if count < FEW):
        words = f"Speakers with fewer than {FEW} clips, too few to gain by normalization: {len(few)} of {len(known)}"
        say(f"{words}, such as {few[0]}")
    return known


def sums_of(frames: np.ndarray) -> np.ndarray:
    """Return the sums of each band's values and of their squares, `[2, F]` float64."""
    frames = frames.astype(np.float64)
    return np.stack([frames.sum(0), np.square(frames).sum(0)])
