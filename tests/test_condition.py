"""What is measured of a recording's sound, and what a model says of recordings unlike its training clips."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf
import soxr
from sound_files import voice
from test_predict import a_model

from ser_ray.model.domain import (
    MEASURES,
    PERCENTS,
    Domain,
    describe_domain,
    domain_of,
    join_domains,
    read_domain,
    write_domain,
)
from ser_ray.model.files import load_model, save_model
from ser_ray.model.windows import Hearing, WindowConfig, as_file
from ser_ray.speech.condition import Meter, measure
from ser_ray.store.rows import open_rows
from ser_ray.store.shards import read_shard, write_parquet
from ser_ray.store.store import Store

RATE = 16_000


def noise(seconds, rate=RATE, level=0.1, seed=0):
    return (level * np.random.default_rng(seed).standard_normal(int(seconds * rate))).astype(np.float32)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 96_000])
def test_noise_without_what_is_above_a_frequency_has_that_bandwidth(rate):
    whole = measure(noise(3, rate), rate)
    assert whole.bandwidth_hz > 0.97 * rate / 2
    half = soxr.resample(soxr.resample(noise(3, rate), rate, rate // 2), rate // 2, rate)
    assert measure(half, rate).bandwidth_hz == pytest.approx(rate / 4, rel=0.06)


def test_quiet_hiss_above_a_telephones_voice_does_not_widen_its_band():
    telephone = soxr.resample(soxr.resample(noise(3), RATE, 8_000), 8_000, RATE)
    telephone[RATE:] *= 0.003  # 50 dB: pauses, in which the hiss is heard
    assert measure(telephone + noise(3, level=1e-4, seed=1), RATE).bandwidth_hz < 4_300


def test_level_pauses_and_noise_are_told_in_decibels():
    speech = noise(10)
    speech[: 5 * RATE] *= 10 ** (-30 / 20)
    found = measure(speech, RATE)
    assert found.level_db == pytest.approx(-20, abs=0.6) and found.snr_db == pytest.approx(30, abs=1.5)
    assert found.silent_share == 0
    speech[: 4 * RATE] *= 10 ** (-20 / 20)  # now 50 dB below
    assert measure(speech, RATE).silent_share == pytest.approx(0.4, abs=0.01)
    halved = measure(speech / 2, RATE)
    assert halved.level_db == pytest.approx(measure(speech, RATE).level_db - 6.02, abs=0.11)


def test_samples_in_runs_at_the_peak_are_clipped():
    assert measure(noise(1), RATE).clipped_share == 0
    clipped = np.repeat(noise(1), 2)[:RATE].clip(-0.1, 0.1)  # each sample twice: all that clip are in runs
    edges = np.flatnonzero(np.diff(clipped, prepend=9, append=9))
    lengths, values = np.diff(edges), np.abs(clipped[edges[:-1]])
    expected = lengths[(lengths >= 3) & (values == np.float32(0.1))].sum()
    assert measure(clipped, RATE).clipped_share == pytest.approx(expected / RATE) and expected > 500


@pytest.mark.parametrize("sizes", [(1, 7), (100, 2_000), (40_000, 90_000)])
def test_a_recording_in_blocks_is_measured_as_in_one_piece(sizes):
    sound = np.repeat(noise(2 if sizes[1] < 10 else 20), 3).clip(-0.15, 0.12)[: RATE * (1 if sizes[1] < 10 else 20)]
    meter, place, random = Meter(RATE), 0, np.random.default_rng(0)
    while place < len(sound):
        size = int(random.integers(*sizes))
        meter.feed(sound[place : place + size])
        place += size
    assert meter.read() == measure(sound, RATE) and meter.read().clipped_share > 0.1


def test_silence_is_not_measured_and_a_click_shorter_than_a_frame_is():
    assert measure(np.zeros(RATE, np.float32), RATE) is None and measure(noise(1)[:5], RATE) is None
    assert measure(noise(1)[:100], RATE).bandwidth_hz > 0


def test_each_channel_that_is_heard_is_measured_by_itself():
    call = np.stack([noise(3), noise(3, level=0.01, seed=1)], axis=1)

    def levels(sound, **how):
        hearing = Hearing(as_file(sound, RATE), WindowConfig(**how), a_model().features)
        return {channel: round(condition.level_db) for channel, condition in hearing.conditions.items()}

    assert levels(call, channels="separate") == {1: -20, 2: -40} and levels(call, channels="2") == {2: -40}
    assert levels(np.stack([call[:, 0], -call[:, 0]], axis=1)) == {0: -20}  # their mean is silence
    assert levels(call * 20_000, channels="1") == {1: -24}  # floats at the scale of integers


@pytest.fixture(scope="module")
def domain(made_frames):
    return domain_of(open_rows(made_frames), RATE)


def test_a_store_holds_what_was_measured_and_one_made_before_is_unknown(made_frames, domain, tmp_path):
    rows = open_rows(made_frames)
    assert domain.clips == len(rows) and set(domain.percentiles) == set(MEASURES)
    inside = [not domain.outside(row) for row in rows.measures().to_pylist()]
    assert np.mean(inside) > 0.8  # six measures, each of which has 98 % inside
    assert read_domain(json.loads(json.dumps(write_domain(domain)))) == domain
    assert join_domains([domain, domain]).percentiles == domain.percentiles
    earlier = Store(str(tmp_path / "store"))
    for path in made_frames.shards():
        shard = read_shard(path, None)
        write_parquet(f"{earlier.root}/shards/{Path(path).name}", shard.drop_columns(["snr_db"]))
    earlier.write_info(made_frames.info())
    assert domain_of(open_rows(earlier), RATE) is None and join_domains([domain, None]) is None
    assert "is not known" in describe_domain(None)[-1] and "| bandwidth, kHz |" in "\n".join(describe_domain(domain))


def test_recordings_unlike_all_that_was_heard_are_told_in_one_line(domain, job, tmp_path):
    model = a_model()
    model.domain = domain
    save_model(model, str(tmp_path / "run" / "model"))
    assert load_model(str(tmp_path / "run")).domain == domain
    (tmp_path / "in").mkdir()
    for k in range(3):
        sf.write(tmp_path / "in" / f"phone{k}.wav", voice(3, 8_000), 8_000)
    code, out, err = job("predict", "--run", "run", "--input", "in", "--output", "out")
    assert (code, err) == (0, ""), err
    line = "3 of 3 recordings are sampled at 8 kHz or less, so band-limited to 4 kHz; the model has heard none such"
    assert f"Domain: {line}" in out
    rows = pq.read_table("out/recordings.parquet").to_pylist()
    assert all("sample_rate below" in row["outside"] and row["sample_rate"] == 8_000 for row in rows)
    told = json.loads(Path("out/predict.json").read_text())["domain"]
    assert told["known"] and line in told["outside"] and read_domain(told["heard"]) == domain


def test_what_lies_outside_is_counted_over_all_tables(domain):
    usual = {name: domain.percentiles[name][2] for name in MEASURES}
    rows = [usual, usual | {"snr_db": -3.0}, usual | {"snr_db": -1.0}, usual | {"clipped_share": 0.2}]
    tables = [pa.Table.from_pylist(rows[:2]), pa.Table.from_pylist(rows[2:])]
    lines = domain.tell_outside(tables, "recordings")
    assert lines[0].startswith("2 of 4 recordings are noisier, with -1 dB or less between speech and noise; the model")
    assert lines[1] == "1 of 4 recordings are clipped, 20 % or more of their samples; the model has heard none such"
    assert domain.outside(usual | {"bandwidth_hz": 20_000.0}) == domain.outside(usual | {"bandwidth_hz": 8_000.0})


def test_a_telephones_copy_of_real_speech_is_told_at_any_sample_rate(real):
    paths = sorted((real / "corpora/ravdess").glob("Actor_*/03-01-05-02-01-01-*.*"))
    whole, telephone = [], []
    for path in paths:
        sound, rate = sf.read(path, dtype="float32", always_2d=True)
        narrow = soxr.resample(soxr.resample(sound.mean(1), rate, 8_000), 8_000, rate)
        for found, heard in ((whole, sound.mean(1)), (telephone, narrow)):
            found.append({"sample_rate": rate, **asdict(measure(np.ascontiguousarray(heard), rate))})
    percentiles = {
        name: tuple(np.percentile([row[name] for row in whole], PERCENTS, method="nearest")) for name in MEASURES
    }
    domain = Domain(len(whole), RATE, percentiles)
    assert len(whole) >= 20 and not any(domain.outside(row) for row in whole)
    assert all("bandwidth_hz below" in domain.outside(row) for row in telephone)
