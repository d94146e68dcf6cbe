"""Windows, channels and scales that are not as they should be: the clip is used, and a note says how."""

import io

import numpy as np
import pytest
import soundfile as sf
from sound_files import WINDOW, encode, reason, voice, wav

from ser_ray.speech.audio import NOTES, count_notes, decode

RATE = 16_000


def read(data: bytes, **changes):
    return decode(io.BytesIO(data), **{"sample_rate": RATE, "offset_s": 0.6, "duration_s": 2.5, **changes})


def stored(samples: np.ndarray, kind: str, subtype: str) -> bytes:
    file = io.BytesIO()
    sf.write(file, samples, RATE, format=kind, subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize("level", [0.02, 0.3, 1.2])
def test_floats_at_the_scale_of_integers_are_brought_to_full_scale_one(subtype, level):
    samples = voice(3, RATE) * (level / np.abs(voice(3, RATE)).max())
    clip = read(wav(samples * 32_768, subtype=subtype))
    np.testing.assert_array_equal(clip.waveform_T, read(wav(samples)).waveform_T)
    assert clip.notes == ("floats at 16-bit scale: divided by 32768",)


@pytest.mark.parametrize("peak", [0.9, 1.0, 1.4, 8.0, 40.0])
def test_hot_floats_stay_as_they_are(peak):
    samples = voice(3, RATE) * np.float32(peak / np.abs(voice(3, RATE)).max())
    clip = read(wav(samples))
    np.testing.assert_array_equal(clip.waveform_T, samples[9_600:])
    assert clip.notes == ()


def test_a_quiet_window_has_the_scale_of_its_file():
    samples = voice(6, RATE)
    samples[: 4 * RATE] *= 0.001
    quiet = read(wav(samples * 32_768))
    assert 1 < 32_768 * np.abs(quiet.waveform_T).max() < 64
    np.testing.assert_array_equal(quiet.waveform_T, read(wav(samples)).waveform_T)


def test_integers_are_no_floats():
    assert read(encode("WAV", "PCM_16", rate=RATE)).notes == ()


@pytest.mark.parametrize(
    ("kind", "subtype"), [("WAV", "FLOAT"), ("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("MP3", None), ("OGG", "OPUS")]
)
def test_channels_that_cancel_are_not_averaged(kind, subtype):
    samples = voice(3, RATE)
    data = stored(np.stack([samples, -samples], axis=1), kind, subtype)
    clip = read(data)
    assert clip.notes == ("channels cancel: their mean is silence, so channel 1 is used",)
    expected_TC, _ = sf.read(io.BytesIO(data), dtype="float32")
    np.testing.assert_allclose(clip.waveform_T, expected_TC[9_600:, 0], atol=1e-5)
    assert np.abs(clip.waveform_T).max() > 0.2


def test_the_channel_that_is_used_has_sound():
    samples = voice(3, RATE)
    clip = read(wav(np.stack([0 * samples, samples, -samples], axis=1)))
    np.testing.assert_array_equal(clip.waveform_T, samples[9_600:])
    assert clip.notes == ("channels cancel: their mean is silence, so channel 2 is used",)


@pytest.mark.parametrize("second", [-0.9, 0.0, 0.5, 1.0])
def test_channels_that_leave_something_of_each_other_are_averaged(second):
    samples_TC = voice(3, RATE)[:, None] * np.array([1, second], np.float32)
    clip = read(wav(samples_TC))
    np.testing.assert_array_equal(clip.waveform_T, samples_TC.mean(axis=1)[9_600:])
    assert clip.notes == ()


def test_one_microphone_of_many_is_averaged_as_it_was():
    samples_TC = np.zeros((3 * RATE, 64), np.float32)
    samples_TC[:, 9] = voice(3, RATE)
    np.testing.assert_array_equal(read(wav(samples_TC)).waveform_T, samples_TC.mean(axis=1)[9_600:])


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_window_of_silence_moves_to_the_sound(kind, channels):
    speech = voice(3, RATE)
    samples = np.concatenate([np.zeros(4 * RATE, np.float32), speech])
    clip = read(stored(np.stack([samples] * channels, axis=1), kind, "PCM_16"))
    first = 4 * RATE + int(np.flatnonzero(np.round(speech * 32_768))[0])
    np.testing.assert_allclose(clip.waveform_T, samples[first : first + 40_000], atol=1e-4)
    assert clip.notes == ("window moved to the sound at 4.00 s: silent from 0.6 to 3.1 s",)
    assert clip.duration_s == 7


def test_a_window_after_the_last_sound_moves_back_to_it():
    samples = np.concatenate([voice(0.5, RATE), np.zeros(4 * RATE, np.float32)])
    clip = read(wav(samples))
    np.testing.assert_array_equal(clip.waveform_T, samples[:40_000])
    assert clip.notes == ("window moved to the sound at 0.00 s: silent from 0.6 to 3.1 s",)


def test_a_moved_window_keeps_half_a_second():
    samples = np.zeros(7 * RATE, np.float32)
    samples[-100:] = voice(1, RATE)[:100]
    clip = read(wav(samples))
    assert len(clip.waveform_T) == RATE // 2 and clip.waveform_T.any()


def test_a_window_of_silence_in_mp3_moves_too():
    samples = np.concatenate([np.zeros(4 * RATE, np.float32), voice(3, RATE)])
    clip = read(stored(samples, "MP3", None))
    whole_T = read(stored(samples, "MP3", None), offset_s=0, duration_s=None).waveform_T
    start = round(float(clip.notes[0].split()[6]) * RATE)
    assert clip.notes[0].startswith("window moved to the sound at ")
    near = [place for place in range(start - 200, start + 200) if whole_T[place] == clip.waveform_T[0]]
    assert any(np.array_equal(whole_T[place : place + 40_000], clip.waveform_T) for place in near)


def test_silence_everywhere_is_refused_by_name():
    assert reason(wav(np.zeros(4 * RATE))) == "digital silence: all samples are the same"
    assert reason(wav(np.full((4 * RATE, 2), 0.1))) == "digital silence: all samples are the same"
    step = np.repeat(np.array([0, 0.1], np.float32), 4 * RATE)
    assert reason(wav(step)).startswith("digital silence: silent from 0.6 to 3.1 s")


def test_silent_then_cancelling_then_loud_by_integers_is_read_with_all_notes():
    speech = voice(3, RATE)
    samples = np.concatenate([np.zeros(4 * RATE, np.float32), speech]) * 32_768
    clip = decode(io.BytesIO(wav(np.stack([samples, -samples], axis=1))), **WINDOW)
    assert len(clip.notes) == 3
    assert sum(count_notes(clip.notes).values()) == 3
    assert list(count_notes(())) == list(NOTES) and not any(count_notes(()).values())
    assert np.abs(clip.waveform_T).max() < 1
