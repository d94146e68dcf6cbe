"""Files whose header is wrong although their samples are there: read; those whose samples are not: refused by name."""

import io
import struct

import numpy as np
import pytest
import soundfile as sf
from sound_files import encode, id3, ogg_pages, reason, replaced, without_end_flag

from ser_ray.speech.audio import UNWRITTEN, decode

RATE = 24_000
CHUNKED = ["WAV", "RF64", "W64", "AIFF", "CAF", "AU"]
FIELDS = {  # where each container says how many bytes of samples it holds, in which form, what that counts besides
    "WAV": (b"data", 4, "<I", 0),
    "RF64": (b"ds64", 16, "<Q", 0),
    "W64": (b"data\xf3", 16, "<Q", 24),
    "AIFF": (b"SSND", 4, ">I", 8),
    "CAF": (b"data\0", 4, ">Q", 4),
    "AU": (b".snd", 8, ">I", 0),
}


def read(data: bytes):
    return decode(io.BytesIO(data), sample_rate=RATE)


def with_size(kind: str, data: bytes, size: int) -> bytes:
    """Write a size of the samples into a header; it counts what the container counts besides."""
    name, place, form, more = FIELDS[kind]
    return replaced(data, data.index(name) + place, form, size + more)


def size_of(kind: str, data: bytes) -> int:
    name, place, form, more = FIELDS[kind]
    return struct.unpack_from(form, data, data.index(name) + place)[0] - more


@pytest.mark.parametrize("more", [1, 2, 44, 400])
@pytest.mark.parametrize("kind", CHUNKED)
def test_a_recorder_that_promises_some_bytes_too_many_loses_nothing(kind, more):
    data = encode(kind, "PCM_16")
    clip = read(with_size(kind, data, size_of(kind, data) + more))
    np.testing.assert_array_equal(clip.waveform_T, read(data).waveform_T)
    assert clip.notes == ()


@pytest.mark.parametrize("kind", CHUNKED)
def test_what_lacks_more_than_ten_milliseconds_is_named_as_truncated(kind):
    data = encode(kind, "PCM_16")
    assert read(data[: -int(0.009 * RATE) * 2]).duration_s == pytest.approx(3.7, abs=0.01)
    assert reason(data[: -int(0.011 * RATE) * 2]).startswith("truncated: its header promises")


@pytest.mark.parametrize("less", [0, 8])
def test_the_size_of_the_file_is_no_promise_however_long_its_header(less):
    data = encode("WAV", "PCM_16")
    place = data.index(b"data")
    data = data[:place] + b"bext" + struct.pack("<I", 4_000) + bytes(4_000) + data[place:]
    clip = read(with_size("WAV", data, len(data) - less))
    np.testing.assert_array_equal(clip.waveform_T, read(encode("WAV", "PCM_16")).waveform_T)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "ULAW", "IMA_ADPCM"])
@pytest.mark.parametrize("outer", [0, 36, 0xFFFFFFFF])
def test_a_recorder_that_lost_power_wrote_no_length_and_all_is_read(subtype, outer):
    data = encode("WAV", subtype, channels=2)
    lost = with_size("WAV", replaced(data, 4, "<I", outer), 0)
    clip = read(lost)
    np.testing.assert_array_equal(clip.waveform_T, read(data).waveform_T)
    assert clip.notes == ("length never written: read to the end of the file",)


@pytest.mark.parametrize("kind", CHUNKED)
def test_no_container_needs_its_length(kind):
    data = encode(kind, "PCM_16")
    clip = read(with_size(kind, data, 0))
    np.testing.assert_array_equal(clip.waveform_T, read(data).waveform_T)
    assert [note.startswith(UNWRITTEN) for note in clip.notes] == [True]
    bare = struct.calcsize(FIELDS[kind][2])
    name, place, form, _ = FIELDS[kind]
    unknown = replaced(data, data.index(name) + place, form, 256**bare - 1)  # as pipes write it
    if kind != "W64":
        assert read(unknown).notes == ()
        np.testing.assert_array_equal(read(unknown).waveform_T, read(data).waveform_T)


def test_an_aiff_size_of_zero_counts_not_even_its_own_fields():
    data = encode("AIFF", "PCM_16")
    lost = replaced(replaced(data, data.index(b"SSND") + 4, ">I", 0), data.index(b"COMM") + 10, ">I", 0)
    np.testing.assert_array_equal(read(lost).waveform_T, read(data).waveform_T)


def test_a_recording_without_samples_is_not_filled_with_the_chunks_that_follow():
    data = encode("WAV", "PCM_16")
    head = with_size("WAV", data[: data.index(b"data") + 8], 0)
    listed = b"LIST" + struct.pack("<I", 2_000) + b"INFO" + bytes(1_996)
    assert reason(head) == "no samples"
    assert reason(head + listed) == "no samples"


@pytest.mark.parametrize("tag", [id3(2_000), id3(90_000, 4, footer=True), id3(10) + id3(500, 4), id3(300) + bytes(77)])
@pytest.mark.parametrize("kind", [*CHUNKED, "FLAC", "OGG", "MP3"])
def test_a_tag_before_the_container_is_skipped(kind, tag):
    data = encode(kind)
    clip = read(tag + data)
    np.testing.assert_array_equal(clip.waveform_T, read(data).waveform_T)
    assert clip.notes == () and clip.duration_s == read(data).duration_s
    if kind != "MP3":
        assert reason((tag + data)[: -len(data) // 2]).startswith("truncated")


@pytest.mark.parametrize("zeros", [1, 100, 4_096, 300_000])
@pytest.mark.parametrize("kind", ["MP3", "WAV", "FLAC"])
def test_zeros_before_the_first_frame_are_skipped(kind, zeros):
    data = encode(kind)
    np.testing.assert_array_equal(read(bytes(zeros) + data).waveform_T, read(data).waveform_T)


def test_an_mp3_that_was_truncated_is_named_behind_zeros_too():
    data = encode("MP3")
    assert reason(bytes(500) + data[: len(data) // 2]).startswith("truncated: its header promises")


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("after", [b"", bytes(3_000), b"TAG" + bytes(125)])
def test_a_stream_that_nobody_ended_is_read(subtype, after):
    data = encode("OGG", subtype, rate=RATE)
    pages = ogg_pages(data)
    clip = read(b"".join([*pages[:-1], without_end_flag(pages[-1])]) + after)
    np.testing.assert_array_equal(clip.waveform_T, read(data).waveform_T)
    assert clip.notes == ()
    shorter = read(b"".join(pages[:-1]))
    np.testing.assert_array_equal(shorter.waveform_T, read(data).waveform_T[: len(shorter.waveform_T)])


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_a_stream_that_ends_within_a_page_or_a_packet_is_refused(subtype):
    *pages, last = ogg_pages(encode("OGG", subtype))
    begun = b"".join(pages)
    for cut in (1, 3, 4, 26, 100, len(last) - 1):
        assert reason(begun + last[:cut]) == "truncated: the end of its Ogg stream is missing"
    segments = last[26]
    unfinished = last[: 26 + segments] + b"\xff" + last[27 + segments :]
    unfinished += bytes(27 + segments + sum(unfinished[27 : 27 + segments]) - len(unfinished))
    assert reason(begun + without_end_flag(unfinished)) == "truncated: the end of its Ogg stream is missing"


def test_a_large_file_is_mended_by_reading_its_headers_alone():
    class Counting(io.BytesIO):
        count = 0

        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            self.count += len(data)
            return data

    data = encode("WAV", "PCM_16", seconds=300, rate=8_000)
    file = Counting(with_size("WAV", id3(500) + data, 0))
    clip = decode(file, sample_rate=8_000, offset_s=0.6, duration_s=2.5)
    assert clip.duration_s == 300 and len(clip.waveform_T) == 20_000
    assert file.count < 0.05 * len(data)


def test_what_libsndfile_reads_by_itself_is_not_touched():
    for kind in sf.available_formats():
        if kind in ("RAW", "SD2", "FLAC", "OGG", "MP3", "MPC2K", "XI", "SDS"):
            continue
        data = encode(kind, "PCM_16" if sf.check_format(kind, "PCM_16") else None, rate=8_000)
        expected_T, rate = sf.read(io.BytesIO(data), dtype="float32")
        np.testing.assert_array_equal(decode(io.BytesIO(data), sample_rate=rate).waveform_T, expected_T, err_msg=kind)
