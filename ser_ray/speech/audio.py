"""Bytes to a mono waveform at one sample rate, or the reason why not.

A file is told by its content, never by its suffix: AIFF data in a file called `.wav` is read as AIFF.
Only the part that is needed is decoded, so that an hour of recording costs no more than its first seconds.

Shapes: T samples, C channels.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import soundfile as sf
import soxr

MIN_REMAINING_S = 0.5
_SAMPLE_RATES = (1_000, 1_000_000)  # Hz; a header that says anything else is damaged
_MAX_CHANNELS = 64
_MAX_PEAK = 1e6  # full scale is 1, and 32,768 in float files that hold 16-bit numbers
_BLOCK = 1 << 20  # samples of all channels together that are decoded at once
_MAGIC = (b"RIFF", b"RIFX", b"FORM", b"fLaC", b"OggS", b"ID3")
_UNKNOWN_SIZE = 0x7FFFF000  # a chunk that claims more was written to a pipe, its size never filled in
_MAX_OGG_PAGE = 27 + 255 + 255 * 255  # bytes
# libsndfile's log of a chunk that holds the samples: what its header says, and what is there
_CHUNK_SIZE = re.compile(r"^ *(?:data|SSND|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)", re.MULTILINE)


class AudioError(Exception):
    """A file that cannot be used; the message is the reason, one line."""


@dataclass(frozen=True)
class Clip:
    """The decoded window of one audio file.

    Attributes:
        waveform_T: float32 mono samples at the rate asked for; full scale is 1.
        sample_rate: Of the file, Hz.
        duration_s: Of the whole file, seconds.
        note: What was done differently from what was asked, or empty.
    """

    waveform_T: np.ndarray
    sample_rate: int
    duration_s: float
    note: str


def decode(file: BinaryIO, *, sample_rate: int, offset_s: float = 0.0, duration_s: float | None = None) -> Clip:
    """Decode a window of an audio file, average its channels and resample it.

    The samples are those of `librosa.load(file, sr=sample_rate, offset=offset_s, duration=duration_s)`, except that MP3
    is decoded from its beginning, since a jump into it gives slightly wrong samples. Where less than 0.5 s would remain
    after the offset, the window slides back until 0.5 s remain, or the whole clip.

    Args:
        file: Seekable binary stream.
        sample_rate: Of the waveform, Hz.
        offset_s: Start of the window, seconds.
        duration_s: Length of the window, seconds; None for all that follows the offset.

    Raises:
        AudioError: The file cannot be used; the message says why.
        OSError: The file cannot be read.
    """
    head = file.read(64)
    if not head:
        raise AudioError("empty file")
    if head.startswith(b"version https://git-lfs"):
        raise AudioError("Git-LFS pointer instead of audio: fetch it with `git lfs pull`")
    if head.startswith(b"OggS"):
        _check_last_ogg_page(file)
    complete = head.startswith((b"ID3", b"\xff")) and _check_mp3_size(file, head)
    file.seek(0)
    stream = _Stream(file)
    try:
        sound = sf.SoundFile(stream)
    except sf.LibsndfileError as error:
        stream.raise_error()
        what = "damaged audio" if head.startswith(_MAGIC) else "not audio"
        raise AudioError(f"{what}: {error.error_string or 'format not recognised.'}") from None
    with sound:
        rate = sound.samplerate
        try:
            _check_header(sound)
            waveform_T, n_frames, note = _read_window(sound, offset_s, duration_s, complete)
        except sf.LibsndfileError:
            raise AudioError(f"truncated or damaged: its {sound.format} data end early") from None
        finally:
            stream.raise_error()
    _check_samples(waveform_T)
    return Clip(_resample(waveform_T, rate, sample_rate), rate, n_frames / rate, note)


class _Stream:
    """What libsndfile reads a file through.

    An error cannot pass through libsndfile, which takes it for the file's end; so it is kept until after. A damaged
    header may ask for a place before the beginning: that is no error of the file.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._error = file, None
        self.tell = file.tell

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError):
            return self._file.tell()

    def read(self, size: int) -> bytes:
        try:
            return self._file.read(size)
        except OSError as error:
            self._error = error
            return b""

    def raise_error(self) -> None:
        if self._error:
            raise self._error


def _check_last_ogg_page(file: BinaryIO) -> None:
    """Raise AudioError unless the last page is whole and flagged as the stream's end (RFC 3533, section 6)."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _MAX_OGG_PAGE))
    tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    segments = page[26] if len(page) > 26 else 255
    if len(page) < 27 + segments or len(page) < 27 + segments + sum(page[27 : 27 + segments]) or not page[5] & 4:
        raise AudioError("truncated: the end of its Ogg stream is missing")


def _check_mp3_size(file: BinaryIO, head: bytes) -> bool:
    """Tell whether an MP3 file says in its Xing header how long it is.

    Raises:
        AudioError: It is shorter than that.
    """
    # An ID3v2 tag may stand before the first frame: 10 bytes and a size of four times 7 bits.
    start = 10 + sum((byte & 127) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=False))
    start = start if head.startswith(b"ID3") else 0
    size = file.seek(0, os.SEEK_END)
    file.seek(min(start, size))
    frame = file.read(64)
    found = re.search(rb"Xing|Info", frame)
    if (
        not frame.startswith((b"\xff\xfb", b"\xff\xfa", b"\xff\xf3", b"\xff\xf2", b"\xff\xe3", b"\xff\xe2"))
        or not found
    ):
        return False
    flags = int.from_bytes(frame[found.end() : found.end() + 4], "big")
    field = found.end() + (8 if flags & 1 else 4)
    promised = int.from_bytes(frame[field : field + 4], "big") if flags & 2 else 0
    if size - start < 0.99 * promised:
        raise AudioError(f"truncated: its header promises {promised} bytes, {size - start} are there")
    return bool(flags & 1)


def _check_header(sound: sf.SoundFile) -> None:
    low, high = _SAMPLE_RATES
    if not low <= sound.samplerate <= high:
        raise AudioError(f"damaged header: a sample rate of {sound.samplerate} Hz")
    if sound.channels > _MAX_CHANNELS:
        raise AudioError(f"damaged header: {sound.channels} channels")
    if sound.frames <= 0:
        raise AudioError("no samples")
    if sound.frames > 2**62:
        raise AudioError(f"its {sound.format} header tells no length (written to a pipe): encode it again")
    for promised, present in _CHUNK_SIZE.findall(sound.extra_info):
        if int(present) < int(promised) < _UNKNOWN_SIZE:
            raise AudioError(f"truncated: its header promises {promised} bytes, {present} are there")


def _read_window(
    sound: sf.SoundFile, offset_s: float, duration_s: float | None, complete: bool
) -> tuple[np.ndarray, int, str]:
    """Return the window's samples, the number of samples in the whole file, and a note."""
    n_frames = sound.frames
    start, length, note = _place(n_frames, sound.samplerate, offset_s, duration_s)
    if sound.format == "MP3" or not sound.seekable():
        decoded_T = _read_mono(sound, start + length)
        if len(decoded_T) < start + length and not complete:  # the length was libsndfile's guess
            n_frames = len(decoded_T)
            start, length, note = _place(n_frames, sound.samplerate, offset_s, duration_s)
        waveform_T = decoded_T[start : start + length]
    else:
        sound.seek(start)
        waveform_T = _read_mono(sound, length)
        if sound.format == "FLAC":
            sound.seek(n_frames - 1)  # fails where the end is missing
    if len(waveform_T) < length or not length:
        raise AudioError(f"truncated: its header promises {n_frames / sound.samplerate:.2f} s")
    return waveform_T, n_frames, note


def _place(n_frames: int, rate: int, offset_s: float, duration_s: float | None) -> tuple[int, int, str]:
    """Return the window's first sample and length, and a note where it had to move."""
    start, note = int(offset_s * rate), ""
    latest = max(0, n_frames - math.ceil(MIN_REMAINING_S * rate))
    if start > latest:
        start, note = latest, f"window slid back to {latest / rate:.2f} s"
    remaining = n_frames - start
    return start, remaining if duration_s is None else min(remaining, int(duration_s * rate)), note


def _read_mono(sound: sf.SoundFile, n_frames: int) -> np.ndarray:
    """Read the next samples, fewer where the file ends, and average their channels."""
    block = _BLOCK // sound.channels
    parts = [np.zeros(0, np.float32)]
    while n_frames > 0 and (part_TC := sound.read(min(block, n_frames), dtype="float32", always_2d=True)).size:
        parts.append(part_TC[:, 0] if sound.channels == 1 else part_TC.mean(axis=1))
        n_frames -= len(part_TC)
    return parts[-1] if len(parts) == 2 else np.concatenate(parts)


def _check_samples(waveform_T: np.ndarray) -> None:
    low, high = float(waveform_T.min()), float(waveform_T.max())
    if not math.isfinite(low + high):  # minimum and maximum hand on a NaN
        raise AudioError("samples that are no numbers (NaN or infinite)")
    if max(-low, high) > _MAX_PEAK:
        raise AudioError(f"samples out of range: a peak of {max(-low, high):.0e} times full scale")
    if low == high:
        raise AudioError("digital silence: all samples are the same")


def _resample(waveform_T: np.ndarray, rate_in: int, rate_out: int) -> np.ndarray:
    if rate_in == rate_out:
        return waveform_T
    n_out = math.ceil(len(waveform_T) * (rate_out / rate_in))
    resampled_T = soxr.resample(waveform_T, rate_in, rate_out, quality="HQ")[:n_out]
    return np.pad(resampled_T, (0, n_out - len(resampled_T)))
