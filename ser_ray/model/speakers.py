"""Normalization by speaker: what is the voice's and the room's is taken from spectra, what is the emotion's is left.

Each mel band of a clip is brought from its mean and standard deviation over the known clips of its speaker to those of
all training frames. As few clips tell a mood rather than a voice, `USUAL_FRAMES` frames of the training's usual speech
count beside a speaker's own (a maximum a posteriori estimate: Gauvain and Lee, IEEE Transactions on Speech and Audio
Processing 2 (2), 1994). A speaker of whom nothing is known stays as he is.

Shape suffix: F mel bands.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ser_ray.base.console import say
from ser_ray.store.store import Store, decode

USUAL_FRAMES = 200  # 3.2 s, where frames are 16 ms apart
LEAST_STD = 1.0  # dB, of a speaker's band: what hardly changes is not blown up
FEW = 10  # clips of a speaker; with fewer, networks that do not normalize by speaker are better (docs/results.md)


class Heard(NamedTuple):
    """What is known of one speaker.

    Attributes:
        frames: Of all clips.
        sums_2F: Of all frames (`sums_of`).
    """

    frames: int = 0
    sums_2F: np.ndarray | float = 0.0


@dataclass(frozen=True)
class Speakers:
    """What is known of speakers, to normalize by.

    Attributes:
        usual_2F: Mean and standard deviation of each band over the training frames, dB, to which clips are brought.
        heard: Of each speaker; of any other nothing is known.
    """

    usual_2F: np.ndarray
    heard: dict[str, Heard]

    def scale_and_shift(self, speaker: str) -> np.ndarray:
        """Return by what to multiply the bands of a speaker and what to add then, `[2, F]` float32."""
        frames, sums_2F = self.heard.get(speaker, Heard())
        mean_F, std_F = self.usual_2F.astype(np.float64)
        usual_2F = np.stack([mean_F, std_F**2 + mean_F**2])
        own_F, square_F = (sums_2F + USUAL_FRAMES * usual_2F) / (frames + USUAL_FRAMES)
        scale_F = std_F / np.sqrt(np.maximum(square_F - own_F**2, LEAST_STD**2))
        return np.stack([scale_F, mean_F - scale_F * own_F]).astype(np.float32)

    def normalize(self, rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """Decode the features of store rows, and normalize them by all that is known of their speakers.

        Args:
            rows: With the columns `features` and `speaker_id`.

        Returns:
            What `decode` does.
        """
        values, offsets = decode(rows.column("features"))
        values = values.copy()
        names = rows.column("speaker_id").to_pylist()
        changes = {name: self.scale_and_shift(name) for name in set(names)}
        for name, (begin, end) in zip(names, pairwise(offsets), strict=True):
            scale_F, shift_F = changes[name]
            values[begin:end] *= scale_F
            values[begin:end] += shift_F
        return values, offsets


def hear_speakers(store: Store, wanted: Container[str]) -> dict[str, Heard]:
    """Hear speakers of a store, reading shard by shard; changed copies of clips are left out.

    Those of few clips are counted on the screen.

    Args:
        store: Complete feature store.
        wanted: Their ids.
    """
    heard: dict[str, Heard] = {}
    clips_of: Counter[str] = Counter()
    for rows in store.each(["speaker_id", "augmentation", "features"], "none"):
        values, offsets = decode(rows.column("features"))
        for name, (begin, end) in zip(rows.column("speaker_id").to_pylist(), pairwise(offsets), strict=True):
            if name in wanted:
                frames, sums_2F = heard.get(name, Heard())
                heard[name] = Heard(frames + int(end - begin), sums_2F + sums_of(values[begin:end]))
                clips_of[name] += 1
    if few := sorted(name for name, count in clips_of.items() if count < FEW):
        words = f"Speakers with fewer than {FEW} clips, too few to gain by normalization: {len(few)} of {len(heard)}"
        say(f"{words}, such as {few[0]}")
    return heard


def sums_of(frames: np.ndarray) -> np.ndarray:
    """Return the sums of each band's values and of their squares, `[2, F]` float64."""
    frames = frames.astype(np.float64)
    return np.stack([frames.sum(0), np.square(frames).sum(0)])
