"""Headers with sizes and tags as recorders, taggers, pipes and power cuts leave them, many of each format.

A few are tried every time. `SER_RAY_FUZZ=1000 pytest -n 0 tests/test_audio_fuzz.py` tries so many of each format.
"""

import io
import os
import random
import struct
from functools import cache

import numpy as np
import pytest
import soundfile as sf
from sound_files import encode, id3, ogg_pages, replaced, without_end_flag

from ser_ray.speech.audio import UNWRITTEN, AudioError, decode

COUNT = int(os.environ.get("SER_RAY_FUZZ", "12"))
RATE = 16_000
SECONDS = 1.3


@cache
def sound(kind: str, subtype: str, channels: int) -> bytes:
    return encode(kind, subtype, seconds=SECONDS, rate=RATE, channels=channels)


@cache
def samples_of(kind: str, subtype: str, channels: int) -> np.ndarray:
    samples_TC, _ = sf.read(io.BytesIO(sound(kind, subtype, channels)), dtype="float32", always_2d=True)
    return samples_TC[:, 0] if channels == 1 else samples_TC.mean(axis=1)


def wrong_size(chance: random.Random, right: int, file_size: int, width: int = 4) -> int:
    """Return a size as headers hold it: most are right, some are not."""
    small = chance.choice([-3, -2, -1, 1, 2, 4, 8, 36, 44, 58, 100, 700])
    wrong = [0, 1, right + small, file_size, file_size - 8, 2 * right, right // 2, right + chance.randrange(5_000)]
    wrong += [256**width - 1, 256**width // 2 - 1, 256**width // 2, 0x7FFFF000 + 36]
    return max(0, chance.choice([right] * len(wrong) + wrong))


def before(chance: random.Random) -> bytes:
    tag = id3(chance.choice([0, 1, 10, 500, 3_000, 70_000]), chance.choice([2, 3, 4]), chance.random() < 0.2)
    return chance.choice(
        [b"", b"", b"", tag, tag + tag[:10] + tag[10:], bytes(chance.randrange(1, 3_000)), tag + bytes(99)]
    )


def after(chance: random.Random) -> bytes:
    listed = b"LIST" + struct.pack("<I", 26) + b"INFOISFT" + struct.pack("<I", 14) + b"Lavf58.29.100\0"
    lyrics = b"LYRICSBEGININD0000200" + b"000029LYRICS200"
    ape = b"APETAGEX" + struct.pack("<IIII", 2_000, 32, 0, 1 << 31) + bytes(8)
    return chance.choice([b"", b"", b"", listed, bytes(chance.randrange(1, 5_000)), b"TAG" + bytes(125), lyrics, ape])


def cut(data: bytes, chance: random.Random) -> bytes:
    missing = chance.choice([0, 0, 0, 0, 1, 2, 3, 100, 319, 321, 2_000, len(data) // 2, chance.randrange(len(data))])
    return data[: len(data) - missing]


def chunk(name: bytes, content: bytes, form: str, padded: bool = True) -> bytes:
    return name + struct.pack(form, len(content)) + content + bytes(len(content) % 2 if padded else 0)


def extra(chance: random.Random, form: str) -> bytes:
    names = [b"LIST", b"bext", b"JUNK", b"iXML", b"cue ", b"id3 ", b"PAD ", b"ANNO", b"(c) "]
    contents = [bytes(chance.choice([0, 1, 4, 28, 602, 4_000])) for _ in range(chance.choice([0, 0, 1, 2]))]
    return b"".join(chunk(chance.choice(names), content, form, chance.random() < 0.8) for content in contents)


def riff(chance: random.Random) -> tuple[bytes, tuple]:
    key = (
        "WAV",
        chance.choice(["PCM_16", "PCM_16", "PCM_24", "PCM_U8", "FLOAT", "ULAW", "IMA_ADPCM"]),
        chance.choice([1, 2]),
    )
    data = sound(*key)
    place = data.index(b"data")
    samples = data[place + 8 :]
    head = data[12:place] + extra(chance, "<I")
    size = wrong_size(chance, len(samples), 12 + len(head) + 8 + len(samples))
    body = b"WAVE" + head + b"data" + struct.pack("<I", size) + samples + after(chance)
    return b"RIFF" + struct.pack("<I", wrong_size(chance, len(body), len(body) + 8)) + body, key


def aiff(chance: random.Random) -> tuple[bytes, tuple]:
    key = ("AIFF", chance.choice(["PCM_16", "PCM_16", "PCM_24", "PCM_S8", "FLOAT", "ULAW"]), chance.choice([1, 2]))
    data = sound(*key)
    place = data.index(b"SSND")
    samples = data[place + 16 :]
    head = data[12:place]
    frames = head.index(b"COMM") + 10
    head = replaced(head, frames, ">I", wrong_size(chance, *struct.unpack(">I", head[frames : frames + 4]), len(data)))
    head += extra(chance, ">I")
    size = wrong_size(chance, len(samples) + 8, 12 + len(head) + 16 + len(samples))
    body = data[8:12] + head + b"SSND" + struct.pack(">III", size, 0, 0) + samples + after(chance)
    return b"FORM" + struct.pack(">I", wrong_size(chance, len(body), len(body) + 8)) + body, key


def flac(chance: random.Random) -> tuple[bytes, tuple]:
    key = ("FLAC", chance.choice(["PCM_16", "PCM_24"]), chance.choice([1, 2]))
    data = sound(*key)
    right = int.from_bytes(data[22:26], "big")
    data = replaced(data, 22, ">I", wrong_size(chance, right, len(data)))
    if chance.random() < 0.3:
        data = data[:26] + bytes(16) + data[42:]  # no MD5
    if chance.random() < 0.3:
        data = data[:12] + bytes(6) + data[18:]  # no frame sizes
    blocks = [(1, bytes(5_000)), (2, b"riff" + bytes(44)), (4, struct.pack("<II", 0, 0)), (6, bytes(32))]
    for kind, content in chance.sample(blocks, chance.choice([0, 0, 1, 2])):
        data = data[:42] + bytes([kind]) + len(content).to_bytes(3, "big") + content + data[42:]
    return data + after(chance), key


def ogg(chance: random.Random) -> tuple[bytes, tuple]:
    key = ("OGG", chance.choice(["VORBIS", "OPUS"]), chance.choice([1, 2]))
    pages = ogg_pages(sound(*key))
    if chance.random() < 0.5:
        pages[-1] = without_end_flag(pages[-1])
    if chance.random() < 0.2:
        pages.pop()
    return b"".join(pages) + after(chance), key


def mp3(chance: random.Random) -> tuple[bytes, tuple]:
    key = ("MP3", "MPEG_LAYER_III", chance.choice([1, 2]))
    data = sound(*key)
    field = max(data.find(b"Xing"), data.find(b"Info"))
    data = replaced(data, field + 12, ">I", wrong_size(chance, len(data), len(data)))
    if chance.random() < 0.2:
        data = data[data.index(data[:2], 4) :]  # without the frame that holds the sizes
    return data + after(chance), key


FORMATS = {"WAV": riff, "AIFF": aiff, "FLAC": flac, "OGG": ogg, "MP3": mp3}


def read_by_path(path) -> np.ndarray | None:
    """Return what soundfile reads from a path, averaged; nothing where it fails or ends early."""
    try:
        with sf.SoundFile(path) as file:
            samples_TC = file.read(dtype="float32", always_2d=True)
            if len(samples_TC) != file.frames or not file.frames:
                return None
    except (sf.LibsndfileError, ValueError, MemoryError):
        return None
    return samples_TC[:, 0] if samples_TC.shape[1] == 1 else samples_TC.mean(axis=1)


def outcome(data: bytes) -> np.ndarray | str:
    """Return the samples that are read, or the reason why none are."""
    try:
        clip = decode(io.BytesIO(data), sample_rate=RATE)
    except AudioError as error:
        assert str(error) and "\n" not in str(error)
        return str(error)
    return (
        np.append(clip.waveform_T, np.nan)
        if any(note.startswith(UNWRITTEN) for note in clip.notes)
        else clip.waveform_T
    )


def check(kind: str, data: bytes, tags: bytes, key: tuple, path) -> str:
    """Check one file; return `read` or `refused`."""
    path.write_bytes(tags + data)
    by_path_T, ours, true_T = read_by_path(path), outcome(tags + data), samples_of(*key)
    if kind != "MP3":  # whose length libsndfile guesses from all bytes, those of tags too
        without = outcome(data)
        assert without == ours if isinstance(ours, str) else np.array_equal(without, ours, equal_nan=True)
    if isinstance(ours, str):
        same = by_path_T is not None and np.array_equal(by_path_T, true_T)
        assert not same or ours.startswith("truncated: its header promises"), ours
        return "refused"
    unwritten = np.isnan(ours[-1])
    ours_T = ours[:-1] if unwritten else ours
    shared = min(len(ours_T), len(true_T))
    if kind != "MP3" and key[1] != "IMA_ADPCM":
        np.testing.assert_array_equal(ours_T[:shared], true_T[:shared])
    if by_path_T is not None and not unwritten and not tags:  # libsndfile takes the bytes of a tag off the file's end
        np.testing.assert_array_equal(ours_T, by_path_T)
    return "read"


@pytest.mark.parametrize("kind", FORMATS)
def test_headers_as_recorders_write_them_are_read_as_soundfile_does_or_refused_in_one_line(kind, tmp_path):
    outcomes = {"read": 0, "refused": 0}
    for number in range(COUNT):
        chance = random.Random(f"{kind} {number}")
        data, key = FORMATS[kind](chance)
        tags, data = before(chance), cut(data, chance)
        try:
            outcomes[check(kind, data, tags, key, tmp_path / "clip.wav")] += 1
        except Exception as error:
            raise AssertionError(f"{kind} {number}: {error}") from error
    print(kind, outcomes)
    assert outcomes["read"] > 0
