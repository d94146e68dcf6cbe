import io
import random
import struct

import librosa
import numpy as np
import pytest
import soundfile as sf
from pyarrow import fs
from sound_files import WINDOW, encode, reason, voice, wav

from ser_ray.speech.audio import decode


@pytest.mark.parametrize(
    "form",
    [
        {"kind": "WAV", "subtype": "PCM_U8"},
        {"kind": "WAV", "subtype": "PCM_16", "channels": 2},
        {"kind": "WAV", "subtype": "PCM_24", "rate": 96_000},
        {"kind": "WAV", "subtype": "FLOAT", "rate": 44_100},
        {"kind": "WAVEX", "subtype": "PCM_16", "rate": 22_050, "channels": 6},
        {"kind": "AIFF", "subtype": "PCM_16", "rate": 16_000},
        {"kind": "FLAC", "subtype": "PCM_16"},
        {"kind": "OGG", "subtype": "VORBIS", "rate": 48_000},
        {"kind": "OGG", "subtype": "OPUS"},
    ],
)
def test_samples_are_those_of_librosa_load(form):
    data = encode(**form)
    clip = decode(io.BytesIO(data), **WINDOW)
    expected_T, _ = librosa.load(io.BytesIO(data), sr=22_050, offset=0.6, duration=2.5)
    assert clip.waveform_T.dtype == np.float32
    np.testing.assert_array_equal(clip.waveform_T, expected_T)
    assert clip.sample_rate == form.get("rate", 24_000)
    assert clip.duration_s == pytest.approx(3.7, abs=0.01)
    assert clip.notes == ()


def test_mp3_is_exact_where_a_seek_is_not():
    data = encode("MP3")
    whole_T, rate = sf.read(io.BytesIO(data), dtype="float32")
    start = int(0.6 * rate)
    expected_T = librosa.resample(whole_T[start : start + int(2.5 * rate)], orig_sr=rate, target_sr=22_050)
    np.testing.assert_allclose(decode(io.BytesIO(data), **WINDOW).waveform_T, expected_T, atol=1e-6)


def test_mp3_without_a_length_in_its_header():
    file = io.BytesIO()
    sf.write(file, voice(1.0, 24_000), 24_000, format="MP3", bitrate_mode="CONSTANT", compression_level=0.5)
    data = file.getvalue()
    second_frame = data.index(data[:2], 4)
    assert b"Xing" in data[:second_frame] or b"Info" in data[:second_frame]
    clip = decode(io.BytesIO(data[second_frame:]), **WINDOW)
    assert clip.duration_s == pytest.approx(1.0, abs=0.1)
    assert len(clip.waveform_T) == pytest.approx(11_025, abs=1)
    assert [note[:23] for note in clip.notes] == ["window slid back to 0.5"]


def test_content_counts_not_the_suffix(tmp_path):
    path = tmp_path / "clip.wav"
    path.write_bytes(encode("AIFF"))
    with path.open("rb") as plain, fs.LocalFileSystem().open_input_file(str(path)) as arrow:
        np.testing.assert_array_equal(decode(plain, **WINDOW).waveform_T, decode(arrow, **WINDOW).waveform_T)
    path = path.rename(tmp_path / "clip.raw")
    with path.open("rb") as file:
        assert decode(file, **WINDOW).duration_s == pytest.approx(3.7, abs=0.01)


class Unplugged(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        if self.tell() > 20_000:
            raise OSError("connection lost")
        return super().read(size)


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_a_failing_stream_is_not_taken_for_a_truncated_file(kind):
    with pytest.raises(OSError, match="connection lost"):
        decode(Unplugged(encode(kind)), **WINDOW)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize(
    ("seconds", "start", "notes"),
    [
        (3.7, 0.6, ()),
        (1.1, 0.6, ()),
        (1.0, 0.5, ("window slid back to 0.50 s",)),
        (0.3, 0.0, ("window slid back to 0.00 s",)),
    ],
)
def test_window_slides_back(kind, seconds, start, notes):
    clip = decode(io.BytesIO(encode(kind, seconds=seconds)), **WINDOW)
    assert clip.notes == notes
    assert len(clip.waveform_T) == pytest.approx(min(2.5, seconds - start) * 22_050, abs=1)


def test_whole_clips_and_the_rate_of_the_file():
    clip = decode(io.BytesIO(encode("WAV")), sample_rate=24_000)
    assert len(clip.waveform_T) == int(3.7 * 24_000)
    assert np.abs(clip.waveform_T - voice(3.7, 24_000)).max() < 1e-4


class Counting(io.BytesIO):
    count = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data


@pytest.mark.parametrize(("kind", "subtype"), [("WAV", "PCM_16"), ("FLAC", "PCM_16")])
def test_a_long_recording_is_not_read_whole(kind, subtype):
    file = Counting(encode(kind, subtype, seconds=600, rate=8_000))
    clip = decode(file, **WINDOW)
    assert clip.duration_s == 600
    assert len(clip.waveform_T) == 55_125
    assert file.count < 0.05 * len(file.getvalue())


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.99])
@pytest.mark.parametrize(
    ("kind", "subtype"),
    [(k, None) for k in ("WAV", "RF64", "W64", "AIFF", "AU", "FLAC", "MP3", "OGG")] + [("OGG", "OPUS")],
)
def test_truncated_files_are_rejected(kind, subtype, kept):
    data = encode(kind, subtype)
    assert reason(data[: int(kept * len(data))]).startswith("truncated")


def test_truncated_after_the_window_is_rejected_too():
    data = encode("FLAC", seconds=60)
    assert reason(data[: len(data) // 2]).startswith("truncated")


def test_size_never_filled_in_is_no_truncation():
    data = bytearray(encode("WAV", "PCM_16"))
    position = data.index(b"data") + 4
    data[position : position + 4] = struct.pack("<I", 0xFFFFFFFF)
    np.testing.assert_array_equal(
        decode(io.BytesIO(bytes(data)), **WINDOW).waveform_T, decode(io.BytesIO(encode("WAV")), **WINDOW).waveform_T
    )


def with_header(field: int, value: int) -> bytes:
    data = bytearray(encode("WAV", "PCM_16"))
    data[field : field + 4] = struct.pack("<I", value)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "Git-LFS pointer"),
        (b"This folder holds no audio.\n" * 50, "not audio"),
        (bytes(2000), "not audio"),
        (wav(np.zeros(40_000)), "digital silence"),
        (wav(np.full(40_000, 0.25)), "digital silence"),
        (wav(np.full(40_000, np.nan)), "samples that are no numbers"),
        (wav(np.where(np.arange(40_000) == 20_000, np.inf, voice(2.5, 16_000))), "samples that are no numbers"),
        (wav(np.where(np.arange(40_000) == 20_000, 1e30, voice(2.5, 16_000))), "samples out of range"),
        (wav(np.zeros(0)), "no samples"),
        (with_header(24, 3_000_000_00), "damaged header"),
        (with_header(24, 0), "damaged"),
    ],
    ids=lambda part: part if isinstance(part, str) else str(len(part)),  # headers of float WAVs tell the time
)
def test_unusable_files_are_rejected_with_the_reason(data, expected):
    assert reason(data).startswith(expected)


def test_silence_outside_the_window_is_no_reason():
    samples = voice(3.5, 16_000)
    samples[: int(0.6 * 16_000)] = 0
    assert decode(io.BytesIO(wav(samples)), **WINDOW).waveform_T.any()


def test_real_clips_are_those_of_librosa_load(real):
    clips = sorted((real / "corpora").rglob("*.flac"))
    for path in random.Random(1).sample(clips, 30):
        with path.open("rb") as file:
            clip = decode(file, **WINDOW)
        expected_T, _ = librosa.load(path, sr=22_050, offset=0.6, duration=2.5)
        np.testing.assert_array_equal(clip.waveform_T, expected_T, err_msg=str(path))


def test_odd_real_files(real):
    odd = {path.stem: path for path in sorted((real / "oddities").rglob("*.wav"))}
    silent = odd.pop("1076_MTI_SAD_XX")
    assert reason(silent.read_bytes()).startswith("digital silence")
    for path in odd.values():
        with path.open("rb") as file:
            clip = decode(file, **WINDOW)
        expected_T, _ = librosa.load(path, sr=22_050, offset=0.6, duration=2.5)
        np.testing.assert_array_equal(clip.waveform_T, expected_T, err_msg=str(path))
    with odd["OAF_food_fear"].open("rb") as file:
        assert decode(file, **WINDOW).sample_rate == 96_000
