"""Normalization by speaker: what is the voice's and the room's is taken from spectra, what is the emotion's is left.

Each mel band of a clip is brought from its mean and standard deviation over the known clips of its speaker to those of
all training frames. As few clips tell a mood rather than a voice, `USUAL_FRAMES` frames of the training's usual speech
count beside a speaker's own (a maximum a posteriori estimate: Gauvain and Lee, IEEE Transactions on Speech and Audio
Processing 2 (2), 1994). A speaker of whom nothing is known stays as he is.

Training hears each clip as if another number of clips of its speaker were known in each epoch, so that the network
bears any.

Shape suffixes: N clips, K numbers of known clips, F mel bands.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ser_ray.store import Store, decode

COUNTS = (0, 1, 2, 4, 8, 16, 32)  # clips of a speaker that are known in half of training, each as often; else all are
USUAL_FRAMES = 200  # 3.2 s
LEAST_STD = 1.0  # dB, of a speaker's band: what hardly changes is not blown up


@dataclass
class Heard:
    """What is known of one speaker.

    Attributes:
        frames: Of all clips.
        sums_2F: Of all frames (`sums_of`).
        some: Digest of the id, frames and sums of some clips, always the same ones, `max(COUNTS)` at most.
        clips: How many there are.
    """

    frames: int = 0
    sums_2F: np.ndarray | float = 0.0
    some: list[tuple[bytes, int, np.ndarray]] = field(default_factory=list)
    clips: int = 0

    def add(self, digest: bytes, frames: np.ndarray) -> None:
        """Hear one more clip."""
        sums_2F = sums_of(frames)
        self.frames, self.sums_2F, self.clips = self.frames + len(frames), self.sums_2F + sums_2F, self.clips + 1
        self.some.append((digest, len(frames), sums_2F.astype(np.float32)))
        if len(self.some) > 2 * max(COUNTS):
            self.settle()

    def settle(self) -> None:
        """Keep those clips that shall be kept."""
        self.some = sorted(self.some, key=lambda clip: clip[0])[: max(COUNTS)]


@dataclass(frozen=True)
class Speakers:
    """What is known of the speakers of a store, to normalize by.

    Attributes:
        usual_2F: Mean and standard deviation of each band over the training frames, dB, to which clips are brought.
        heard: Of each speaker.
    """

    usual_2F: np.ndarray
    heard: dict[str, Heard]

    def scale_and_shift(self, sums_2F: np.ndarray | float, frames: np.ndarray | int) -> np.ndarray:
        """Return by what to multiply bands and what to add then, `[..., 2, F]`.

        Args:
            sums_2F: `[..., 2, F]` sums (`sums_of`) over the known frames of a speaker; 0 where none is known.
            frames: `[...]` how many these are.
        """
        mean_F, std_F = self.usual_2F.astype(np.float64)
        usual_2F = np.stack([mean_F, std_F**2 + mean_F**2])
        count = np.asarray(frames)[..., None, None] + USUAL_FRAMES
        moments_2F = (sums_2F + USUAL_FRAMES * usual_2F) / count
        own_F = moments_2F[..., 0, :]
        scale_F = std_F / np.sqrt(np.maximum(moments_2F[..., 1, :] - own_F**2, LEAST_STD**2))
        return np.stack([scale_F, mean_F - scale_F * own_F], axis=-2)

    def normalize(self, rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """Decode the features of store rows, and normalize them by all that is known of their speakers.

        Args:
            rows: With the columns `features` and `speaker_id`.

        Returns:
            What `decode` does.
        """
        values, offsets = decode(rows.column("features"))
        values = values.copy()
        for speaker, (begin, end) in zip(rows.column("speaker_id").to_pylist(), pairwise(offsets), strict=True):
            scale_F, shift_F = self.scale_and_shift(self.heard[speaker].sums_2F, self.heard[speaker].frames)
            values[begin:end] *= scale_F.astype(np.float32)
            values[begin:end] += shift_F.astype(np.float32)
        return values, offsets

    def know_less(self, rows: pa.Table) -> np.ndarray:
        """Return what makes of normalized clips those that they were if fewer clips of their speakers were known.

        Known are the clip itself and others, drawn by its id; and nothing at all for the count 0.

        Args:
            rows: What `normalize` took, with the column `utterance_id`.

        Returns:
            `[N, K, 2, F]` float32: by what to multiply bands and what to add then, for each of `COUNTS`.
        """
        values, offsets = decode(rows.column("features"))
        names = zip(rows.column("speaker_id").to_pylist(), rows.column("utterance_id").to_pylist(), strict=True)
        known = np.empty((rows.num_rows, len(COUNTS), 2, values.shape[1]), np.float32)
        for i, ((speaker, name), (begin, end)) in enumerate(zip(names, pairwise(offsets), strict=True)):
            heard, own_2F = self.heard[speaker], sums_of(values[begin:end])
            digest = digest_of(name)
            place = int.from_bytes(digest[:4], "little") % len(heard.some)
            others = [clip for clip in heard.some[place:] + heard.some[:place] if clip[0] != digest]
            frames, sums = np.zeros(len(COUNTS)), np.zeros((len(COUNTS), *own_2F.shape))
            for k, count in enumerate(COUNTS):
                if count >= heard.clips:
                    frames[k], sums[k] = heard.frames, heard.sums_2F
                elif count:
                    frames[k] = end - begin + sum(other[1] for other in others[: count - 1])
                    sums[k] = own_2F + sum(other[2] for other in others[: count - 1])
            less_K2F, all_2F = self.scale_and_shift(sums, frames), self.scale_and_shift(heard.sums_2F, heard.frames)
            scale_KF = less_K2F[:, 0] / all_2F[0]
            known[i] = np.stack([scale_KF, less_K2F[:, 1] - scale_KF * all_2F[1]], axis=1)
        return known


def hear_speakers(store: Store, usual_2F: np.ndarray, corpora: Sequence[str] = ()) -> Speakers:
    """Hear all speakers of a store, reading shard by shard; changed copies of clips are left out.

    Args:
        store: Complete feature store.
        usual_2F: What `Speakers` takes.
        corpora: Those whose speakers are wanted; all when empty.
    """
    heard: dict[str, Heard] = {}
    for rows in store.each(["utterance_id", "corpus", "speaker_id", "augmentation", "features"], "none"):
        if corpora:
            rows = rows.filter(pc.is_in(rows["corpus"], pa.array(corpora)))
        values, offsets = decode(rows.column("features"))
        names = zip(rows.column("speaker_id").to_pylist(), rows.column("utterance_id").to_pylist(), strict=True)
        for (speaker, name), (begin, end) in zip(names, pairwise(offsets), strict=True):
            heard.setdefault(speaker, Heard()).add(digest_of(name), values[begin:end])
    for one in heard.values():
        one.settle()
    return Speakers(usual_2F, heard)


def sums_of(frames: np.ndarray) -> np.ndarray:
    """Return the sums of each band's values and of their squares, `[2, F]` float64."""
    frames = frames.astype(np.float64)
    return np.stack([frames.sum(0), np.square(frames).sum(0)])


def digest_of(name: str) -> bytes:
    """Return what stands for a clip's id wherever something is drawn by it."""
    return hashlib.sha256(name.encode()).digest()
