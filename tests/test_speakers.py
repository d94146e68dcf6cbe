"""Normalization by speaker: by all clips, by some, by none."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch

from ser_ray.emotions import LabelSet
from ser_ray.features import FeatureConfig
from ser_ray.frame_augment import FrameAugment, FrameAugmentConfig
from ser_ray.inference import Examples
from ser_ray.speakers import COUNTS, USUAL_FRAMES, Speakers, digest_of, hear_speakers, sums_of
from ser_ray.store import decode

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


def test_any_number_of_clips_may_be_known(rows, speakers):
    raw, offsets = decode(rows["features"])
    clips = [raw[begin:end] for begin, end in pairwise(offsets)]
    values, _ = speakers.normalize(rows)
    known = speakers.know_less(rows)
    assert known.shape == (44, len(COUNTS), 2, BANDS)

    def as_known(i, count):
        scale_F, shift_F = known[i, COUNTS.index(count)]
        return values[offsets[i] : offsets[i + 1]] * scale_F + shift_F

    def is_by(frames, i, others):
        own_F, std_F = by_hand([clips[i], *(clips[j] for j in others)])
        return np.allclose(frames, (clips[i] - own_F) / std_F * USUAL_2F[1] + USUAL_2F[0], atol=2e-3)

    for i in (0, 41):
        np.testing.assert_allclose(as_known(i, 0), clips[i], atol=1e-3)
        assert is_by(as_known(i, 1), i, [])
    assert sum(is_by(as_known(41, 2), 41, [other]) for other in (40, 42)) == 1
    assert sum(is_by(as_known(0, 2), 0, [other]) for other in range(1, 40)) == 1
    ring = sorted(range(40), key=lambda j: digest_of(f"loud/{j}"))[:32]  # that are kept of the loud speaker
    first = int.from_bytes(digest_of("loud/0")[:4], "little") % 32
    others = [j for j in ring[first:] + ring[:first] if j != 0]
    for count in COUNTS[3:]:  # of the quiet speaker, there are no more than are known anyway
        assert np.allclose(known[41, COUNTS.index(count)], [[1], [0]]) and is_by(as_known(41, count), 41, [40, 42])
        assert is_by(as_known(0, count), 0, others[: count - 1])


def test_what_is_known_does_not_depend_on_shards(rows, speakers):
    turned = Speakers(USUAL_2F, hear_speakers(Shards(rows.take(pa.array(range(43, -1, -1)))), {"loud", "quiet"}))
    np.testing.assert_allclose(turned.know_less(rows), speakers.know_less(rows), atol=1e-4)
    assert set(hear_speakers(Shards(rows), {"loud"})) == {"loud"}
    raw, _ = decode(rows["features"])
    np.testing.assert_allclose(Speakers(USUAL_2F, {}).normalize(rows)[0], raw, rtol=1e-6)


def test_training_hears_a_clip_as_if_fewer_were_known(rows, speakers):
    examples = Examples.from_rows(rows, LabelSet(), speakers=speakers)
    examples.known = torch.from_numpy(speakers.know_less(rows))
    nothing = dict(window_s=1.0, stretch=0, pitch=0, noise=0, gain=0, mask_s=0, mask_bands=0, mixup=0)
    augment = FrameAugment(FrameAugmentConfig(**nothing), FeatureConfig.for_kind("log_mel"), torch.zeros(BANDS), 0)
    index_B = torch.arange(44)
    bare = Examples.from_rows(rows, LabelSet(), speakers=speakers)
    met = set()
    for epoch in range(1, 30):
        there, plain = augment(examples, index_B, epoch), augment(bare, index_B, epoch)
        for k in range(len(COUNTS)):
            wanted = plain[0] * examples.known[0, k, 0] + examples.known[0, k, 1]
            met |= {COUNTS[k]} if torch.allclose(there[0], wanted, atol=1e-4) else set()
        met |= {"all"} if torch.equal(there[0], plain[0]) else set()
    assert met == {*COUNTS, "all"}


def test_bands_that_hardly_change_are_not_blown_up():
    frames = np.tile(USUAL_2F[0], (100_000, 1))
    scale_F, _ = Speakers(USUAL_2F, {}).scale_and_shift(sums_of(frames), len(frames))
    np.testing.assert_allclose(scale_F, USUAL_2F[1], rtol=1e-3)  # to a standard deviation of 1 dB at least
