"""Normalization by speaker: what is the voice's and the room's is taken from spectra, what is the emotion's is left.

Each mel band of a clip is brought from its mean and standard deviation over the known clips of its speaker to those of
all training frames. As few clips tell a mood rather than a voice, `USUAL_FRAMES` frames of the training's usual speech
count beside a speaker's own (a maximum a posteriori estimate: Gauvain and Lee, IEEE Transactions on Speech and Audio
Processing 2 (2), 1994). A speaker of whom nothing is known stays as he is.

In half of its draws training hears a clip as if fewer clips of its speaker were known, so that the network bears any
number of them.

Shape suffixes: N clips, K numbers of known clips, S kept clips of a speaker, F mel bands.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pyarrow as pa

from ser_ray.store import Store, decode

COUNTS = (0, 1, 2, 4, 8, 16, 32)  # clips of a speaker that training takes for known in half of its draws
USUAL_FRAMES = 200  # 3.2 s, where frames are 16 ms apart
LEAST_STD = 1.0  # dB, of a speaker's band: what hardly changes is not blown up


@dataclass
class Heard:
    """What is known of one speaker.

    Attributes:
        clips: How many there are.
        frames: Of all clips.
        sums_2F: Of all frames (`sums_of`).
        digests: Of the ids of some clips, always the same ones.
        frames_S: Of each of these.
        sums_S2F: Of each of these, float32.
    """

    clips: int = 0
    frames: int = 0
    sums_2F: np.ndarray | float = 0.0
    digests: list[bytes] = field(default_factory=list)
    frames_S: np.ndarray | None = None
    sums_S2F: np.ndarray | None = None


@dataclass(frozen=True)
class Speakers:
    """What is known of speakers, to normalize by.

    Attributes:
        usual_2F: Mean and standard deviation of each band over the training frames, dB, to which clips are brought.
        heard: Of each speaker; of any other nothing is known.
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
        values, by_all = values.copy(), self._by_all(rows)
        for speaker, (begin, end) in zip(rows.column("speaker_id").to_pylist(), pairwise(offsets), strict=True):
            scale_F, shift_F = by_all[speaker].astype(np.float32)
            values[begin:end] *= scale_F
            values[begin:end] += shift_F
        return values, offsets

    def know_less(self, rows: pa.Table) -> np.ndarray:
        """Return how to change normalized clips into what they were if fewer clips of their speakers were known.

        Known are the clip itself and others, always the same for one clip and count; nothing at all for the count 0.
        Where a speaker has no more clips than that, nothing changes.

        Args:
            rows: What `normalize` took, with the column `utterance_id`.

        Returns:
            `[N, K, 2, F]` float32: by what to multiply bands and what to add then, for each of `COUNTS`.
        """
        values, offsets = decode(rows.column("features"))
        names = zip(rows.column("speaker_id").to_pylist(), rows.column("utterance_id").to_pylist(), strict=True)
        known, by_all = np.empty((rows.num_rows, len(COUNTS), 2, values.shape[1]), np.float32), self._by_all(rows)
        for i, ((speaker, name), (begin, end)) in enumerate(zip(names, pairwise(offsets), strict=True)):
            heard, digest, own_2F = self.heard[speaker], digest_of(name), sums_of(values[begin:end])
            first = int.from_bytes(digest[:4], "little")
            places = [(first + k) % len(heard.digests) for k in range(len(heard.digests))]
            places = [place for place in places if heard.digests[place] != digest]
            frames_S, sums_S2F = heard.frames_S[places].cumsum(), heard.sums_S2F[places].cumsum(0, np.float64)
            frames, sums_K2F = np.zeros(len(COUNTS)), np.zeros((len(COUNTS), *own_2F.shape))
            for k, count in enumerate(COUNTS):
                if count >= heard.clips:
                    frames[k], sums_K2F[k] = heard.frames, heard.sums_2F
                elif count:
                    frames[k] = end - begin + (frames_S[count - 2] if count > 1 else 0)
                    sums_K2F[k] = own_2F + (sums_S2F[count - 2] if count > 1 else 0)
            less_K2F = self.scale_and_shift(sums_K2F, frames)
            scale_KF = less_K2F[:, 0] / by_all[speaker][0]
            known[i] = np.stack([scale_KF, less_K2F[:, 1] - scale_KF * by_all[speaker][1]], axis=1)
        return known

    def _by_all(self, rows: pa.Table) -> dict[str, np.ndarray]:
        """Return what `scale_and_shift` makes of all that is known of each speaker of some rows."""
        heard = {name: self.heard.get(name, Heard()) for name in rows.column("speaker_id").unique().to_pylist()}
        return {name: self.scale_and_shift(one.sums_2F, one.frames) for name, one in heard.items()}


def hear_speakers(store: Store, wanted: Container[str]) -> dict[str, Heard]:
    """Hear speakers of a store, reading shard by shard; changed copies of clips are left out.

    Args:
        store: Complete feature store.
        wanted: Their ids.
    """
    heard: dict[str, Heard] = {}
    some: dict[str, list[tuple[bytes, int, np.ndarray]]] = {}
    for rows in store.each(["utterance_id", "speaker_id", "augmentation", "features"], "none"):
        values, offsets = decode(rows.column("features"))
        names = zip(rows.column("speaker_id").to_pylist(), rows.column("utterance_id").to_pylist(), strict=True)
        for (speaker, name), (begin, end) in zip(names, pairwise(offsets), strict=True):
            if speaker not in wanted:
                continue
            one, sums_2F = heard.setdefault(speaker, Heard()), sums_of(values[begin:end])
            one.clips, one.frames, one.sums_2F = one.clips + 1, one.frames + int(end - begin), one.sums_2F + sums_2F
            clips = some.setdefault(speaker, [])
            clips.append((digest_of(name), int(end - begin), sums_2F.astype(np.float32)))
            if len(clips) > 2 * max(COUNTS):
                some[speaker] = _first(clips)
    for speaker, clips in some.items():
        digests, frames, sums = zip(*_first(clips), strict=True)
        one = heard[speaker]
        one.digests, one.frames_S, one.sums_S2F = list(digests), np.array(frames), np.stack(sums)
    return heard


def _first(clips: list[tuple[bytes, int, np.ndarray]]) -> list[tuple[bytes, int, np.ndarray]]:
    """Return those clips of a speaker that are kept, whatever shards they came in."""
    return sorted(clips, key=lambda clip: clip[0])[: max(COUNTS)]


def sums_of(frames: np.ndarray) -> np.ndarray:
    """Return the sums of each band's values and of their squares, `[2, F]` float64."""
    frames = frames.astype(np.float64)
    return np.stack([frames.sum(0), np.square(frames).sum(0)])


def digest_of(name: str) -> bytes:
    """Return what stands for a clip's id wherever something is drawn by it."""
    return hashlib.sha256(name.encode()).digest()
