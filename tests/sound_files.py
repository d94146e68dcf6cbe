"""Audio files as recorders, taggers and pipes leave them; what the tests of sound are made from."""

import io
import struct

import numpy as np
import pytest
import soundfile as sf

from ser_ray.speech.audio import AudioError, decode

WINDOW = {"sample_rate": 22_050, "offset_s": 0.6, "duration_s": 2.5}


def voice(seconds: float, rate: int) -> np.ndarray:
    time = np.arange(int(seconds * rate)) / rate
    tone = np.sin(2 * np.pi * (140 * time + 8 * np.sin(5 * time))) + 0.3 * np.sin(2 * np.pi * 1900 * time)
    noise = np.random.default_rng(0).standard_normal(len(time))
    return (0.2 * tone * (1 + np.sin(9 * time)) + 0.01 * noise).astype(np.float32)


def encode(kind: str, subtype: str | None = None, seconds: float = 3.7, rate: int = 24_000, channels: int = 1) -> bytes:
    samples = voice(seconds, rate)
    samples = np.stack([samples * (1 - 0.4 * c) for c in range(channels)], axis=1)
    file = io.BytesIO()
    sf.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def wav(samples: np.ndarray, rate: int = 16_000, subtype: str = "FLOAT") -> bytes:
    file = io.BytesIO()
    sf.write(file, samples, rate, format="WAV", subtype=subtype)
    return file.getvalue()


def reason(data: bytes, **changes) -> str:
    """Return why a file is refused, which is one line."""
    with pytest.raises(AudioError) as error:
        decode(io.BytesIO(data), **{**WINDOW, **changes})
    assert "\n" not in str(error.value)
    return str(error.value)


def replaced(data: bytes, place: int, form: str, *numbers: int) -> bytes:
    """Return the bytes with some numbers written at a place."""
    return data[:place] + struct.pack(form, *numbers) + data[place + struct.calcsize(form) :]


def id3(size: int, version: int = 3, footer: bool = False) -> bytes:
    """Return an ID3v2 tag with so many bytes of padding in it."""
    digits = bytes(size >> shift & 127 for shift in (21, 14, 7, 0))
    head = bytes([version, 0, 16 if footer else 0]) + digits
    return b"ID3" + head + bytes(size) + (b"3DI" + head if footer else b"")


def ogg_pages(data: bytes) -> list[bytes]:
    pages = []
    while data:
        segments = data[26]
        length = 27 + segments + sum(data[27 : 27 + segments])
        pages.append(data[:length])
        data = data[length:]
    return pages


def without_end_flag(page: bytes) -> bytes:
    """Return an Ogg page that is not flagged as the stream's end, its checksum right (RFC 3533)."""
    page = page[:5] + bytes([page[5] & ~4]) + page[6:22] + bytes(4) + page[26:]
    remainder = 0
    for byte in page:
        remainder ^= byte << 24
        for _ in range(8):
            remainder = (remainder << 1) ^ (0x104C11DB7 if remainder & 0x80000000 else 0)
    return page[:22] + struct.pack("<I", remainder) + page[26:]
