"""Normalization by speaker: by all that is known of each."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from ser_ray.features.arrays import decode_features
from ser_ray.features.log_mel import LogMel
from ser_ray.features.recipe import FeaturizeConfig
from ser_ray.model.speakers import USUAL_FRAMES, Known, Speakers, listen, sums_of
from ser_ray.store.rows import open_rows
from ser_ray.store.shards import row_schema
from ser_ray.store.store import Store

BANDS = 64
USUAL_2F = np.stack([np.linspace(-40, -60, BANDS), np.linspace(12, 18, BANDS)]).astype(np.float32)


def stored(folder, *shards):
    """All rows of a store of some shards."""
    store, recipe = Store(str(folder)), FeaturizeConfig(LogMel())
    store.claim(recipe)
    store.write_info({**store.info(), "complete": True, "counts": {"made": {}}})
    schema = row_schema(recipe.features.arrow_type())
    for shard in shards:
        columns = {name: shard[name] if name in shard.column_names else [None] * len(shard) for name in schema.names}
        store.write_shard(pa.table(columns, schema), [])
    return open_rows(store)


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
def speakers(rows, tmp_path_factory):
    known = listen(stored(tmp_path_factory.mktemp("two"), rows.slice(0, 7), rows.slice(7)))
    return Speakers(USUAL_2F, known, framed=True)


def normalize(speakers, rows):
    """The rows' values as speakers would have them."""
    return speakers.normalize(*decode_features(rows["features"]), rows["speaker_id"].to_pylist())


def by_hand(clips):
    """Moments of some clips and of the usual frames beside them."""
    frames = np.concatenate(clips).astype(float) if clips else np.zeros((0, BANDS))
    mean_F, std_F = USUAL_2F.astype(float)
    count = len(frames) + USUAL_FRAMES
    own_F = (frames.sum(0) + USUAL_FRAMES * mean_F) / count
    square_F = (np.square(frames).sum(0) + USUAL_FRAMES * (mean_F**2 + std_F**2)) / count
    return own_F, np.sqrt(square_F - own_F**2)


def test_clips_are_brought_to_the_usual_by_all_that_is_known(rows, speakers):
    raw, offsets = decode_features(rows["features"])
    before, again = raw.copy(), offsets.copy()
    values = speakers.normalize(raw, offsets, rows["speaker_id"].to_pylist())
    assert np.array_equal(offsets, again) and np.array_equal(raw, before)
    clips = [raw[begin:end] for begin, end in pairwise(offsets)]
    for speaker, members in (("loud", range(40)), ("quiet", range(40, 43))):
        own_F, std_F = by_hand([clips[i] for i in members])
        for i in (*members, *([43] if speaker == "quiet" else [])):  # a changed copy is not known, but normalized
            wanted = (clips[i] - own_F) / std_F * USUAL_2F[1] + USUAL_2F[0]
            np.testing.assert_allclose(values[offsets[i] : offsets[i + 1]], wanted, atol=2e-3)
    loud = values[: offsets[40]]
    assert np.abs(loud.mean(0) - USUAL_2F[0]).max() < 2 and np.abs(loud.std(0) / USUAL_2F[1] - 1).max() < 0.1


def test_what_is_known_does_not_depend_on_shards_and_nobody_else_is(rows, speakers, tmp_path):
    everything = stored(tmp_path, rows.take(pa.array(range(43, -1, -1))))
    turned = Speakers(USUAL_2F, listen(everything), framed=True)
    np.testing.assert_allclose(normalize(turned, rows), normalize(speakers, rows), atol=1e-4)
    one = Speakers(USUAL_2F, listen(everything.take(everything.among("speaker_id", ["loud"]))), framed=True)
    assert set(one.known) == {"loud"}
    raw, offsets = decode_features(rows["features"])
    left = normalize(one, rows)[offsets[40] :]
    np.testing.assert_allclose(left, raw[offsets[40] :], rtol=1e-5)


def test_bands_that_hardly_change_are_not_blown_up():
    frames = np.tile(USUAL_2F[0], (100_000, 1))
    scale_F, _ = Speakers(USUAL_2F, {"flat": Known(len(frames), sums_of(frames))}, framed=True).scale_and_shift("flat")
    np.testing.assert_allclose(scale_F, USUAL_2F[1], rtol=1e-3)  # to a standard deviation of 1 dB at least
