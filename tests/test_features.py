import io
import random

import librosa
import numpy as np
import pytest
import scipy.fft
import soundfile as sf
import torch

from ser_ray.base.errors import UserError
from ser_ray.features.banks import chroma_banks, dct_bank, mel_bank
from ser_ray.features.kernels.spectra import LogMelKernel, SummaryKernel
from ser_ray.features.log_mel import LogMel
from ser_ray.features.spec import find_features
from ser_ray.features.summary import Summary
from ser_ray.features.waveform import Waveform
from ser_ray.speech.audio import AudioError, decode

RATE = 22_050
CHROMA, MFCC, MEL = slice(1, 13), slice(13, 33), slice(34, 162)
pytestmark = pytest.mark.filterwarnings("ignore:n_fft=", "ignore:Trying to estimate tuning")


def voice(seconds: float, pitch: float = 150) -> np.ndarray:
    time = np.arange(int(seconds * RATE)) / RATE
    phase = 2 * np.pi * (pitch * time + 10 * np.sin(4 * time))
    tones = sum(np.sin(k * phase) / k for k in range(1, 30))
    noise = np.random.default_rng(0).standard_normal(len(time))
    return (0.1 * tones * (1 + np.sin(7 * time)) + 0.003 * noise).astype(np.float32)


def click() -> np.ndarray:
    waveform_T = np.zeros(RATE, np.float32)
    waveform_T[7_000] = -0.5
    return waveform_T


def sine() -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(30_000) / RATE)).astype(np.float32)


MADE = {
    "voice": voice(2.5),
    "quiet": voice(1.37, 240) * 0.006,
    "short": voice(0.5),
    "tiny": voice(0.01),
    "sine": sine(),
    "noise": np.random.default_rng(1).normal(0, 0.1, 40_000).astype(np.float32),
    "click": click(),
    "ends below zero": np.concatenate([voice(0.7), np.full(1, -0.2, np.float32)]),
    "whole frames": voice(2.5)[: 40 * 512],
}


@pytest.fixture(scope="module")
def summary() -> SummaryKernel:
    return Summary().kernel()


def by_librosa(waveform_T: np.ndarray, tuning: float | None = 0.0) -> np.ndarray:
    magnitude_FN = np.abs(librosa.stft(waveform_T))
    parts = [
        librosa.feature.zero_crossing_rate(y=waveform_T),
        librosa.feature.chroma_stft(S=magnitude_FN, sr=RATE, tuning=tuning),
        librosa.feature.mfcc(y=waveform_T, sr=RATE),
        librosa.feature.rms(y=waveform_T),
        librosa.feature.melspectrogram(y=waveform_T, sr=RATE),
    ]
    return np.concatenate([part.mean(axis=1) for part in parts])


def excess(actual: np.ndarray, expected: np.ndarray) -> float:
    """How far 162 numbers are apart, as a part of what is allowed."""
    floor = np.full(162, 1e-6)
    floor[MFCC], floor[MEL] = 1e-3, 1e-7 * expected[MEL].max()
    return float((np.abs(actual - expected) / (1e-3 * np.abs(expected) + floor)).max())


@pytest.mark.parametrize(
    "changes", [{}, {"chroma_tuning": -0.37, "sample_rate": 16_000, "n_fft": 512, "hop_length": 128, "n_mels": 40}]
)
def test_filter_banks_are_those_of_librosa(changes):
    config = Summary(**changes)
    banks = {"mel": mel_bank(config), "dct": dct_bank(config.n_mels, config.n_mfcc), "chroma": chroma_banks(config)}
    shape = {"sr": config.sample_rate, "n_fft": config.n_fft}
    expected = {
        "mel": librosa.filters.mel(n_mels=config.n_mels, **shape).T,
        "dct": scipy.fft.dct(np.eye(config.n_mels), norm="ortho")[:, : config.n_mfcc],
        "chroma": librosa.filters.chroma(tuning=config.chroma_tuning, **shape).T[None],
    }
    for name, bank in expected.items():
        np.testing.assert_allclose(banks[name], bank, rtol=1e-6, atol=1e-7 * bank.max(), err_msg=name)


def in_a_batch(kernel: SummaryKernel | LogMelKernel, waveforms: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    lengths = [len(waveform_T) for waveform_T in waveforms]
    batch_BT = torch.full((len(waveforms), max(lengths)), 0.7)  # what stands in the padding must not matter
    for row_T, waveform_T in zip(batch_BT, waveforms, strict=True):
        row_T[: len(waveform_T)] = torch.from_numpy(waveform_T)
    features, counts_B = kernel(batch_BT, torch.tensor(lengths))
    return features.numpy(), counts_B.numpy()


@pytest.mark.parametrize("name", MADE)
def test_summary_is_that_of_librosa(summary, name):
    (row,) = summary.rows(MADE[name], name, ("none",), 0)
    assert row.shape == (162,) and row.dtype == np.float32
    assert excess(row, by_librosa(MADE[name])) < 1


def test_a_short_clip_does_not_feel_the_padding_of_its_batch(summary):
    rows, counts_B = in_a_batch(summary, list(MADE.values()))
    for row, count, waveform_T in zip(rows, counts_B, MADE.values(), strict=True):
        assert count == 1 + len(waveform_T) // 512
        assert excess(row, by_librosa(waveform_T)) < 1


def test_summary_of_real_clips_is_that_of_librosa(summary, real):
    clips = random.Random(3).sample(sorted((real / "corpora").rglob("*.flac")), 30)
    waveforms = []
    for path in clips + sorted((real / "oddities").rglob("*.wav")):
        try:
            with path.open("rb") as file:
                waveforms.append(decode(file, sample_rate=RATE, offset_s=0.6, duration_s=2.5).waveform_T)
        except AudioError:
            assert path.stem == "1076_MTI_SAD_XX"
    rows, _ = in_a_batch(summary, waveforms)
    for row, waveform_T in zip(rows, waveforms, strict=True):
        expected = by_librosa(waveform_T)
        assert excess(row, expected) < 1
        assert excess(summary.rows(waveform_T, "x", ("none",), 0)[0], expected) < 1


def test_augmented_rows_are_features_of_augmented_waveforms(summary):
    stretched_T = librosa.effects.time_stretch(MADE["voice"], rate=0.8)
    _, row = summary.rows(MADE["voice"], "x", ("none", "stretch"), 0)
    assert np.abs(row - by_librosa(stretched_T))[:33].max() < 0.2
    np.testing.assert_allclose(row[MEL], by_librosa(stretched_T)[MEL], rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("name", ["voice", "short", "sine", "click", "noise"])
def test_chroma_tuning_is_estimated_as_librosa_does(name):
    kernel = Summary(chroma_tuning=None).kernel()
    (row,) = kernel.rows(MADE[name], name, ("none",), 0)
    assert excess(row, by_librosa(MADE[name], tuning=None)) < 1
    both, _ = in_a_batch(kernel, [MADE["voice"], MADE[name]])
    assert excess(both[1], row) < 1


@pytest.mark.parametrize("shape", [(16_000, 1024, 256, 64), (22_050, 2048, 512, 128), (16_000, 400, 160, 80)])
def test_log_mel_is_that_of_librosa(shape):
    rate, n_fft, hop_length, n_mels = shape
    kernel = LogMel(sample_rate=rate, n_fft=n_fft, hop_length=hop_length, n_mels=n_mels).kernel()
    rows, counts_B = in_a_batch(kernel, list(MADE.values()))
    for row_NM, count, (name, waveform_T) in zip(rows, counts_B, MADE.items(), strict=True):
        mel_MN = librosa.feature.melspectrogram(
            y=waveform_T, sr=rate, n_fft=n_fft, hop_length=hop_length, n_mels=n_mels
        )
        expected_NM = librosa.power_to_db(mel_MN).T
        assert expected_NM.shape == (count, n_mels)
        np.testing.assert_allclose(row_NM[:count], expected_NM, rtol=0, atol=1e-3)
        assert not row_NM[count:].any()
        (alone_NM,) = kernel.rows(waveform_T, name, ("none",), 0)
        np.testing.assert_allclose(alone_NM, expected_NM, rtol=0, atol=1e-3)


def test_waveform_is_16_bit_samples():
    kernel = Waveform().kernel()
    loud_T = voice(1.0) * 20
    plain_T, slow_T = kernel.rows(loud_T, "x", ("none", "stretch"), 0)
    assert plain_T.dtype == slow_T.dtype == np.int16
    assert len(slow_T) == round(len(loud_T) / 0.8)
    np.testing.assert_allclose(plain_T / 32767, loud_T.clip(-1, 1), atol=1e-4)
    assert plain_T.max() == 32767


def test_rows_depend_on_nothing_but_the_clip(summary):
    names = (*Summary.augment, "shift", "pitch")
    first = summary.rows(MADE["voice"], "tess/a", names, 0)
    for other in ("short", "noise"):
        summary.rows(MADE[other], other, names, 0)
    again = Summary().kernel().rows(MADE["voice"], "tess/a", names, 0)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(first[1], summary.rows(MADE["voice"], "tess/b", names, 0)[1])


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"sample_rate": 0}, "--sample-rate must be"),
        ({"offset_s": -1.0}, "--offset-s must be"),
        ({"offset_s": float("nan")}, "--offset-s must be"),
        ({"duration_s": 0.0}, "--duration-s must be"),
        ({"n_fft": 333, "hop_length": 100}, "--n-fft must be"),
        ({"sample_rate": None}, "--sample-rate must be"),
        ({"hop_length": 4096}, "--hop-length must be"),
        ({"n_mels": 0}, "--n-mels must be"),
        ({"n_mfcc": 200}, "--n-mfcc must be"),
        ({"chroma_tuning": 3.0}, "--chroma-tuning must be"),
    ],
)
def test_settings_are_checked(changes, word):
    with pytest.raises(UserError, match=word):
        Summary(**changes)


def test_unknown_features_are_named():
    with pytest.raises(UserError, match="'mfcc': choose one of summary, log_mel, waveform"):
        find_features("mfcc")


def test_banks_are_plain_arrays():
    banks = mel_bank(Summary()), dct_bank(128, 20), chroma_banks(Summary())
    assert [bank.shape for bank in banks] == [(1025, 128), (128, 20), (1, 1025, 12)]
    assert all(type(bank) is np.ndarray and bank.dtype == np.float32 for bank in (*banks, mel_bank(LogMel())))
    assert not vars(Waveform().kernel())  # which needs none


def encoded() -> list[bytes]:
    files = []
    for kind, subtype in (
        ("WAV", "PCM_16"),
        ("WAV", "FLOAT"),
        ("WAV", "PCM_24"),
        ("AIFF", "PCM_16"),
        ("FLAC", "PCM_16"),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("MP3", None),
    ):
        file = io.BytesIO()
        sf.write(file, voice(0.8)[: 16_000 // 2], 16_000, format=kind, subtype=subtype)
        files.append(file.getvalue())
    return files


def mutate(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 4, 16])):
        place = chance.randrange(min(len(changed), chance.choice([48, 200, len(data)])) or 1)
        match chance.randrange(5):
            case 0:
                changed[place : place + 1] = bytes([chance.randrange(256)])
            case 1:
                changed[place : place + 4] = chance.randbytes(4)
            case 2:
                del changed[place : place + chance.choice([1, 2, 4, 100, len(data)])]
            case 3:
                changed[place:place] = chance.randbytes(chance.choice([1, 4, 64]))
            case 4:
                changed[place : place + 4] = chance.choice([bytes(4), b"\xff" * 4, b"\xff\xff\xff\x7f"])
    return bytes(changed)


def test_a_thousand_damaged_files_are_featurized_or_rejected(summary):
    chance = random.Random(4)
    files = encoded()
    outcomes = {"featurized": 0, "rejected": 0}
    for number in range(1_000):
        data = mutate(files[number % len(files)], chance)
        try:
            clip = decode(io.BytesIO(data), sample_rate=RATE, offset_s=0.1, duration_s=2.5)
        except AudioError as error:
            assert str(error) and "\n" not in str(error)
            outcomes["rejected"] += 1
            continue
        for row in summary.rows(clip.waveform_T, str(number), ("none", "stretch+pitch"), 0):
            assert np.isfinite(row).all()
        outcomes["featurized"] += 1
    assert sum(outcomes.values()) == 1_000 and min(outcomes.values()) > 100
