"""Sound of phones and videos, which FFmpeg decodes: read like any other, or refused in one line."""

import io
import sys

import numpy as np
import pytest
from sound_files import encode, voice

from ser_ray.speech.audio import AudioError, decode
from ser_ray.speech.corpora import discover
from ser_ray.speech.recording import open_recording

av = pytest.importorskip("av")
RATE, SECONDS = 16_000, 3.0


def encode_media(
    kind: str, codec: str = "", *, video: bool = False, channels: int = 1, seconds: float = SECONDS
) -> bytes:
    """Return a file of FFmpeg's container `kind`: a voice by `codec`, where one is named, and black pictures."""
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        if video:
            film = container.add_stream("mpeg4", rate=10)
            film.width = film.height = 64
            film.pix_fmt = "yuv420p"
        if codec:
            rate = {"libopus": 48_000, "libopencore_amrnb": 8_000, "g726": 8_000}.get(codec, RATE)
            sound = container.add_stream(codec, rate=rate)
            sound.layout = "stereo" if channels == 2 else "mono"
            if codec == "wmav2":  # has no usual one
                sound.bit_rate = 64_000
            samples = np.round(voice(seconds, rate) * 32_767).astype(np.int16)
            samples_TC = np.stack([samples, samples // 2][:channels], axis=1)
            frame = av.AudioFrame.from_ndarray(samples_TC.reshape(1, -1), "s16", sound.layout.name)
            frame.rate = rate
            container.mux([*sound.encode(frame), *sound.encode(None)])
        if video:
            for _ in range(int(10 * seconds)):
                container.mux(film.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")))
            container.mux(film.encode(None))
    return file.getvalue()


def likeness(waveform_T: np.ndarray, rate: int) -> float:
    """Return the correlation of decoded samples with the voice, wherever the codec's delay has put it."""
    true_T = voice(SECONDS, rate)
    size = len(waveform_T) + len(true_T)
    spectrum = np.fft.rfft(waveform_T, size) * np.conj(np.fft.rfft(true_T, size))
    return float(np.fft.irfft(spectrum, size).max() / np.linalg.norm(waveform_T) / np.linalg.norm(true_T))


@pytest.mark.parametrize(
    ("kind", "codec", "video"),
    [
        ("ipod", "aac", False),  # M4A
        ("ipod", "alac", False),
        ("adts", "aac", False),
        ("amr", "libopencore_amrnb", False),
        ("mp4", "aac", True),
        ("webm", "libopus", False),
        ("matroska", "aac", True),
        ("asf", "wmav2", False),
        ("wav", "g726", False),  # as telephone systems pack it
    ],
)
def test_what_phones_and_videos_hold_is_read_in_full(kind, codec, video):
    data = encode_media(kind, codec, video=video)
    recording = open_recording(io.BytesIO(data))
    rate = recording.rate
    recording.close()
    clip = decode(io.BytesIO(data), sample_rate=rate)
    assert clip.duration_s == pytest.approx(SECONDS, abs=0.15)  # codecs pad
    assert len(clip.waveform_T) == round(clip.duration_s * rate)
    assert likeness(clip.waveform_T, rate) > (0.8 if kind in ("amr", "asf") else 0.95)
    window = decode(io.BytesIO(data), sample_rate=rate, offset_s=1.0, duration_s=0.5)
    np.testing.assert_array_equal(window.waveform_T, clip.waveform_T[rate : rate + rate // 2])
    end = decode(io.BytesIO(data), sample_rate=rate, offset_s=2.0)
    np.testing.assert_array_equal(end.waveform_T, clip.waveform_T[2 * rate :])


def test_the_channels_of_a_video_stay_apart():
    recording = open_recording(io.BytesIO(encode_media("mp4", "aac", video=True, channels=2)))
    sound_TC = np.concatenate([block_TC for _, block_TC in recording.blocks(0, 1 << 40)])
    again_TC = np.concatenate([block_TC for _, block_TC in recording.blocks(RATE, 2 * RATE)])
    recording.close()
    assert sound_TC.shape[1] == 2 and sound_TC.std(0)[0] == pytest.approx(2 * sound_TC.std(0)[1], rel=0.02)
    np.testing.assert_array_equal(again_TC, sound_TC[RATE : 2 * RATE])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (encode_media("mp4", video=True), "MPEG-4 media (M4A, MP4, MOV or 3GP) without sound"),
        (encode_media("ipod", "aac")[:9_000], "which FFmpeg cannot decode"),  # its table of contents stood at the end
        (encode_media("webm", "libopus")[:9_000], "truncated: its header promises 3.0"),
        (encode_media("adts", "aac")[:9_001], "truncated or damaged"),
        (b"\0\0\0\x1cftypM4A \0\0\2\0M4A isomiso2" + bytes(5_000), "fetch it again, or convert it"),
        (b"\x1a\x45\xdf\xa3\x9fB\x86\x81\x01" + bytes(5_000), "fetch it again, or convert it"),
        (
            b"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:9,\nfile:///etc/hostname\n" * 3,
            "not audio: text",
        ),  # FFmpeg would open it
        (b"ffconcat version 1.0\nfile /etc/hostname\n" * 3, "not audio: text"),
    ],
)
def test_what_cannot_be_decoded_is_refused_in_one_line(data, said):
    with pytest.raises(AudioError) as error:
        decode(io.BytesIO(data), sample_rate=RATE)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_disk_that_fails_is_no_fault_of_the_file():
    class Failing(io.BytesIO):
        def read(self, size=-1):
            if self.tell() > 4_000:
                raise OSError(5, "Input/output error")
            return super().read(size)

    with pytest.raises(OSError, match="Input/output"):
        decode(Failing(encode_media("adts", "aac")), sample_rate=RATE)


def test_clips_of_a_corpus_may_be_videos_by_their_names_or_by_a_table(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1001_DFA_ANG_XX.flv").write_bytes(b"FLV\x01")
    (tmp_path / "a" / "1001_DFA_SAD_XX.mp4").write_bytes(encode_media("mp4", "aac", video=True))
    (tmp_path / "lab.csv").write_text("path,emotion,speaker\na/1001_DFA_SAD_XX.mp4,sad,x\n")
    by_name = [clip.utterance_id for clip in discover([str(tmp_path / "a")]).utterances]
    by_table = discover([str(tmp_path / "lab.csv")]).utterances
    assert by_name == ["crema_d/1001_DFA_ANG_XX", "crema_d/1001_DFA_SAD_XX"]
    assert [clip.utterance_id for clip in by_table] == ["lab/a/1001_DFA_SAD_XX"]


def test_pyav_is_imported_for_what_libsndfile_refuses_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)  # importing it fails
    with pytest.raises(AudioError, match=r"PyAV is missing to read AAC sound: pip install .*'.\[media\]'"):
        decode(io.BytesIO(b"\xff\xf1\x50\x80" + bytes(range(256))), sample_rate=RATE)
    assert len(decode(io.BytesIO(encode("FLAC", seconds=1, rate=RATE)), sample_rate=RATE).waveform_T) == RATE
