"""Normalization by speaker: by all that is known of each."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from ser_ray.model.speakers import USUAL_FRAMES, Speakers, sums_of
from ser_ray.model.speakers import Heard, hear_speakers  # GONE
from ser_ray.speech.audio import decode

BANDS = 64
USUAL_2F = np.stack([np.linspace(-40, -60, BANDS), np.linspace(12, 18, BANDS)]).astype(np.float32)


class Shards:
    """Stands for a store: gives rows, shard by shard."""

    def __init__(self, *shards):
        self.shards = shards

    def each(self, columns, augmentation):
        for rows in self.shards:
            yield rows.filter(pa.compute.equal(rows["augmentation"], augmentation))


@pytest.fixture(scope="module")
def rows():
    """Forty clips of a loud speaker, three of a quiet one, and a changed copy."""
    draw = np.random.default_rng(0)
    clips = [("loud", f"loud/{i}", -30, 20, "none") for i in range(40)]
    clips += [("quiet", f"quiet/{i}", -70, 8, "none") for i in range(3)] + [("quiet", "quiet/0", -90, 1, "noise")]
    frames = [draw.normal(mean, std, (draw.integers(50, 90), BANDS)).astype(np.float32) for _, _, mean, std, _ in clips]
    columns = {
        "utterance_id": [name for _, name, *_ in clips],
        "speaker_id": [speaker for speaker, *_ in clips],
        "corpus": ["made"] * len(clips),
        "emotion": ["happy"] * len(clips),
        "augmentation": [augmentation for *_, augmentation in clips],
        "features": pa.array([list(clip) for clip in frames], pa.list_(pa.list_(pa.float32(), BANDS))),
    }
    return pa.table(columns)


@pytest.fixture(scope="module")
def speakers(rows):
    return Speakers(USUAL_2F, hear_speakers(Shards(rows.slice(0, 7), rows.slice(7)), {"loud", "quiet"}))


def by_hand(clips):
    """Moments of some clips and of the usual frames beside them."""
    frames = np.concatenate(clips).astype(float) if clips else np.zeros((0, BANDS))
    mean_F, std_F = USUAL_2F.astype(float)
    count = len(frames) + USUAL_FRAMES
    own_F = (frames.sum(0) + USUAL_FRAMES * mean_F) / count
    square_F = (np.square(frames).sum(0) + USUAL_FRAMES * (mean_F**2 + std_F**2)) / count
    return own_F, np.sqrt(square_F - own_F**2)


def test_clips_are_brought_to_the_usual_by_all_that_is_known(rows, speakers):
    raw, offsets = decode(rows["features"])
    before = raw.copy()
    values, same = speakers.normalize(rows)
    assert np.array_equal(offsets, same) and np.array_equal(raw, before)
    clips = [raw[begin:end] for begin, end in pairwise(offsets)]
    for speaker, members in (("loud", range(40)), ("quiet", range(40, 43))):
        own_F, std_F = by_hand([clips[i] for i in members])
        for i in (*members, *([43] if speaker == "quiet" else [])):  # a changed copy is not known, but normalized
            wanted = (clips[i] - own_F) / std_F * USUAL_2F[1] + USUAL_2F[0]
            np.testing.assert_allclose(values[offsets[i] : offsets[i + 1]], wanted, atol=2e-3)
    loud = values[: offsets[40]]
    assert np.abs(loud.mean(0) - USUAL_2F[0]).max() < 2 and np.abs(loud.std(0) / USUAL_2F[1] - 1).max() < 0.1


def test_what_is_known_does_not_depend_on_shards_and_nobody_else_is(rows, speakers):
    turned = Speakers(USUAL_2F, hear_speakers(Shards(rows.take(pa.array(range(43, -1, -1)))), {"loud", "quiet"}))
    np.testing.assert_allclose(turned.normalize(rows)[0], speakers.normalize(rows)[0], atol=1e-4)
    one = Speakers(USUAL_2F, hear_speakers(Shards(rows), {"loud"}))
    assert set(one.heard) == {"loud"}
    raw, offsets = decode(rows["features"])
    left = one.normalize(rows)[0][offsets[40] :]
    np.testing.assert_allclose(left, raw[offsets[40] :], rtol=1e-5)


def test_bands_that_hardly_change_are_not_blown_up():
    frames = np.tile(USUAL_2F[0], (100_000, 1))
    scale_F, _ = Speakers(USUAL_2F, {"flat": Heard(len(frames), sums_of(frames))}).scale_and_shift("flat")
    np.testing.assert_allclose(scale_F, USUAL_2F[1], rtol=1e-3)  # to a standard deviation of 1 dB at least
