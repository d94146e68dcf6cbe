import random

import librosa
import numpy as np
import pytest
import torch

from ser_ray.base.errors import UserError
from ser_ray.features.augmentation import parse_augmentation
from ser_ray.features.kernels import copies as augment
from ser_ray.features.kernels.copies import PITCH_RATE, STRETCH_RATE, make_generator, phase_vocoder, resample
from ser_ray.features.summary import Summary
from ser_ray.speech.audio import decode

RATE = 22_050


def voice(seconds: float = 2.5) -> np.ndarray:
    time = np.arange(int(seconds * RATE)) / RATE
    phase = 2 * np.pi * (150 * time + 10 * np.sin(4 * time))
    tones = sum(np.sin(k * phase) / k for k in range(1, 30))
    noise = np.random.default_rng(0).standard_normal(len(time))
    return (0.1 * tones * (1 + np.sin(7 * time)) + 0.003 * noise).astype(np.float32)


def click() -> np.ndarray:
    waveform_T = np.zeros(RATE, np.float32)
    waveform_T[12_000] = 0.5
    return waveform_T


def change(waveform_T: np.ndarray, name: str, utterance_id: str = "ravdess/x", seed: int = 0) -> np.ndarray:
    generator = make_generator(seed, utterance_id, name)
    return augment.augment(torch.from_numpy(waveform_T)[None], parse_augmentation(name), generator)[0].numpy()


def by_librosa(waveform_T: np.ndarray, name: str) -> np.ndarray:
    if name == "stretch":
        return librosa.effects.time_stretch(waveform_T, rate=STRETCH_RATE)
    if name == "pitch":
        return librosa.effects.pitch_shift(waveform_T, sr=RATE, n_steps=0.7)
    slowed_T = librosa.effects.time_stretch(waveform_T, rate=STRETCH_RATE * PITCH_RATE)
    resampled_T = librosa.resample(slowed_T, orig_sr=RATE / PITCH_RATE, target_sr=RATE)
    return librosa.util.fix_length(resampled_T, size=round(len(waveform_T) / STRETCH_RATE))


def distance(actual_T: np.ndarray, expected_T: np.ndarray) -> float:
    assert actual_T.shape == expected_T.shape
    return float(np.linalg.norm(actual_T - expected_T) / np.linalg.norm(expected_T))


@pytest.mark.parametrize("n_samples", [100, 3000, 3500, 4100, 55_125])
def test_istft_gives_back_what_stft_was_given(n_samples):
    waveform_BT = torch.randn(2, n_samples, generator=torch.Generator().manual_seed(0))
    back_BT = augment.istft(augment.stft(waveform_BT), n_samples)
    torch.testing.assert_close(back_BT, waveform_BT, rtol=0, atol=1e-5)


def test_names():
    assert parse_augmentation("none") == ()
    assert parse_augmentation("stretch+pitch") == ("stretch", "pitch")
    assert [parse_augmentation(name) for name in Summary.augment]
    for name in ("louder", "", "noise+", "none+noise", "Noise"):
        with pytest.raises(UserError, match="noise, stretch, pitch, shift"):
            parse_augmentation(name)


@pytest.mark.parametrize("name", ["stretch", "pitch", "stretch+pitch"])
@pytest.mark.parametrize(
    "waveform_T", [voice(), voice(0.5), voice(0.03), click()], ids=["voice", "short", "tiny", "click"]
)
@pytest.mark.filterwarnings("ignore:n_fft=")
def test_stretch_and_pitch_are_those_of_librosa(waveform_T, name):
    assert distance(change(waveform_T, name), by_librosa(waveform_T, name)) < 1e-2


@pytest.mark.parametrize("name", ["stretch", "pitch", "stretch+pitch"])
def test_real_clips_stretch_and_pitch_like_librosas(real, name):
    clips = sorted((real / "corpora").rglob("*.flac"))
    # In these two a bin is empty, but for rounding, just where the vocoder takes its phase.
    nulls = [path for path in clips if path.stem in ("03-01-04-01-01-01-18", "03-01-08-02-02-01-03")]
    assert len(nulls) == 2
    for path in nulls + random.Random(2).sample(clips, 10):
        with path.open("rb") as file:
            waveform_T = decode(file, sample_rate=RATE, offset_s=0.6, duration_s=2.5).waveform_T
        changed_T = change(waveform_T, name)
        assert distance(changed_T, by_librosa(waveform_T, name)) < 1e-2, path
        # librosa adds up phases at the precision of its input
        assert distance(changed_T, by_librosa(waveform_T.astype(np.float64), name)) < 2e-3, path


def test_phase_vocoder_is_that_of_librosa_out_of_digital_silence():
    waveform_T = np.concatenate([np.zeros(9_000, np.float32), voice(1.0), np.zeros(9_000, np.float32)])
    spectrum_FN = librosa.stft(waveform_T)
    actual_1MF = phase_vocoder(torch.from_numpy(spectrum_FN.T.copy())[None], 0.77)
    expected_FM = librosa.phase_vocoder(spectrum_FN, rate=0.77, hop_length=512)
    assert distance(actual_1MF[0].numpy().T, expected_FM) < 1e-2


@pytest.mark.parametrize(
    ("rate_in", "rate_out"),
    [(RATE / PITCH_RATE, RATE), (24_000, RATE), (16_000, RATE), (48_000, 16_000), (24_414, RATE)],
)
def test_resampling_is_that_of_soxr(rate_in, rate_out):
    time = np.arange(2 * int(rate_in)) / rate_in
    waveform_T = sum(np.sin(2 * np.pi * f * time) for f in (90, 500, 2_000, 6_500)).astype(np.float32)
    expected_T = librosa.resample(waveform_T, orig_sr=rate_in, target_sr=rate_out)
    actual_BT = resample(torch.from_numpy(np.stack([waveform_T, -waveform_T])), rate_out / rate_in, len(expected_T))
    assert distance(actual_BT[0].numpy(), expected_T) < 2e-3
    assert torch.equal(actual_BT[1], -actual_BT[0])


def test_noise_has_the_stated_level():
    waveform_T = voice()
    levels = []
    for utterance in range(200):
        noise_T = change(waveform_T, "noise", f"tess/{utterance}") - waveform_T
        levels.append(noise_T.std() / np.abs(waveform_T).max() / augment.NOISE_LEVEL)
    assert 0 <= min(levels) < 0.05 and 0.95 < max(levels) <= 1.02
    assert np.mean(levels) == pytest.approx(0.5, abs=0.08)
    assert abs(np.corrcoef(noise_T[1:], noise_T[:-1])[0, 1]) < 0.02


def test_shift_rolls_by_up_to_5000_samples():
    waveform_T = np.arange(20_000, dtype=np.float32)
    places = [int(-change(waveform_T, "shift", str(utterance))[0] % 20_000) for utterance in range(100)]
    places = [place if place <= 10_000 else place - 20_000 for place in places]
    assert max(map(abs, places)) <= 5_000 and min(places) < -3_000 and max(places) > 3_000
    np.testing.assert_array_equal(np.roll(waveform_T, places[0]), change(waveform_T, "shift", "0"))


def test_randomness_comes_from_seed_utterance_and_name_alone():
    waveform_T = voice(0.6)
    first_T = change(waveform_T, "noise")
    torch.manual_seed(7)
    np.testing.assert_array_equal(first_T, change(waveform_T, "noise"))
    for other_T in (
        change(waveform_T, "noise", utterance_id="ravdess/y"),
        change(waveform_T, "noise", seed=1),
        change(waveform_T, "noise+shift"),
    ):
        assert not np.array_equal(first_T, other_T)


@pytest.mark.parametrize("name", ["noise", "shift", "stretch", "pitch", "noise+pitch", "shift+stretch+pitch+noise"])
@pytest.mark.parametrize("n_samples", [1, 40, 5_000, 11_025])
def test_every_chain_has_its_length_and_no_nan(name, n_samples):
    changed_T = change(voice()[1_000 : 1_000 + n_samples], name)
    assert len(changed_T) == round(n_samples / (STRETCH_RATE if "stretch" in name else 1))
    assert np.isfinite(changed_T).all()


def test_a_batch_is_its_rows():
    rows_BT = torch.from_numpy(np.stack([voice(1.0), voice(2.0)[RATE:]]))
    batch_BT = augment.augment(rows_BT, ("stretch", "pitch"), torch.Generator())
    for row_T, expected_T in zip(rows_BT, batch_BT, strict=True):
        assert distance(change(row_T.numpy(), "stretch+pitch"), expected_T.numpy()) < 1e-5
