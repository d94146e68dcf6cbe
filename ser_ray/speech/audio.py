"""Bytes to a mono waveform at one sample rate, or the reason why not.

A file is told by its content, never by its suffix: AIFF data in a file called `.wav` is read as AIFF.
Only the part that is needed is decoded, so that an hour of recording costs no more than its first seconds.

Shapes: T samples, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import soxr

from ser_ray.speech.condition import Condition, measure
from ser_ray.speech.containers import AudioError
from ser_ray.speech.media import MediaRecording
from ser_ray.speech.recording import UNWRITTEN, Recording, open_recording

DECODER = 3  # Version of what is read: what an older one refused is tried again.
MIN_REMAINING_S = 0.5
SLID = "window slid back"
MOVED = "window moved to the sound"
CANCEL = "channels cancel"
SCALED = "floats at 16-bit scale"
NOTES = {  # each kind of note that a clip can bear, and what that means of the clips that do
    SLID: "they are too short for a window where it should begin",
    MOVED: "they are silent where it should be",
    UNWRITTEN: "they are read to the end of their file",
    CANCEL: "one is used of each, since the mean is silence",
    SCALED: "they are divided by 32768",
}
_MAX_HOT = 64.0  # 36 dB above full scale; a louder float file is at the scale of integers
_INTEGER_SCALE = 32_768
_MAX_PEAK = 1e6  # full scale is 1
_MAX_CANCELLED = 0.01  # of the louder channel's range; a mean of two that has no more is what cancelling left
NOTE_SCALED = f"{SCALED}: divided by {_INTEGER_SCALE}"


@dataclass(frozen=True)
class Clip:
    """The decoded window of one audio file.

    Attributes:
        waveform_T: float32 mono samples at the rate asked for; full scale is 1.
        sample_rate: Of the file, Hz.
        duration_s: Of the whole file, seconds.
        notes: What was done differently from what was asked; each begins with its kind, a key of `NOTES`.
        condition: What was measured of the window at the file's own rate; None where it is shorter than 8 samples.
    """

    waveform_T: np.ndarray
    sample_rate: int
    duration_s: float
    notes: tuple[str, ...] = ()
    condition: Condition | None = None


def decode(file: BinaryIO, *, sample_rate: int, offset_s: float = 0.0, duration_s: float | None = None) -> Clip:
    """Decode a window of an audio file, average its channels and resample it.

    The samples are those of `librosa.load(file, sr=sample_rate, offset=offset_s, duration=duration_s)`, except that MP3
    is decoded from its beginning, since a jump into it gives slightly wrong samples. Where less than 0.5 s would remain
    after the offset, the window slides back until 0.5 s remain, or the whole clip; where the window is silent to the
    last bit and the file is not, it moves to the sound. Channels that cancel each other are not averaged, and floats at
    the scale of 16-bit integers are brought to full scale 1.

    Args:
        file: Seekable binary stream.
        sample_rate: Of the waveform, Hz.
        offset_s: Start of the window, seconds.
        duration_s: Length of the window, seconds; None for all that follows the offset.

    Raises:
        AudioError: The file cannot be used; the message says why.
        OSError: The file cannot be read.
    """
    recording = open_recording(file)
    try:
        recording.check_header()
        waveform_T, notes = _read_window(recording, offset_s, duration_s)
        if recording.is_float and _is_at_integer_scale(recording, waveform_T):
            waveform_T = waveform_T / np.float32(_INTEGER_SCALE)
            notes.append(NOTE_SCALED)
    finally:
        recording.close()
    rate, condition = recording.rate, measure(waveform_T, recording.rate)
    return Clip(to_rate(waveform_T, rate, sample_rate), rate, recording.n_frames / rate, tuple(notes), condition)


def count_notes(notes: Iterable[str]) -> dict[str, int]:
    """Return how many notes of each kind there are, the kinds being those of `NOTES`."""
    counts = dict.fromkeys(NOTES, 0)
    for note in notes:
        counts[next(kind for kind in NOTES if note.startswith(kind))] += 1
    return counts


def _read_window(
    recording: Recording | MediaRecording, offset_s: float, duration_s: float | None
) -> tuple[np.ndarray, list[str]]:
    """Return the window's samples and what is to be noted of them; n_frames of the recording is no guess after it."""
    notes = recording.notes()
    start, length = _place(recording, offset_s, duration_s)
    waveform_T, cancel = _read_mono(recording, start, start + length)
    if len(waveform_T) < length and not recording.is_exact:
        recording.n_frames, recording.is_exact = recording.reached, True
        start, length = _place(recording, offset_s, duration_s)
        waveform_T, cancel = _read_mono(recording, start, start + length)
    recording.check_end()
    slid = [f"{SLID} to {start / recording.rate:.2f} s"] if start < int(offset_s * recording.rate) else []
    _check_samples(waveform_T, length, recording)
    if waveform_T.min() == waveform_T.max():
        silent = f"silent from {start / recording.rate:.1f} to {(start + length) / recording.rate:.1f} s"
        start = _find_sound(recording, start, length)
        length = min(length, recording.n_frames - start)
        waveform_T, cancel = _read_mono(recording, start, start + length)
        _check_samples(waveform_T, length, recording)
        if waveform_T.min() == waveform_T.max():
            raise AudioError(f"digital silence: {silent}, and where another sample is")
        slid = [f"{MOVED} at {start / recording.rate:.2f} s: {silent}"]
    return waveform_T, notes + slid + cancel


def _place(recording: Recording | MediaRecording, offset_s: float, duration_s: float | None) -> tuple[int, int]:
    """Return the window's first sample and length; it begins before the offset where too little would remain."""
    start = min(int(offset_s * recording.rate), _latest(recording))
    remaining = recording.n_frames - start
    return start, remaining if duration_s is None else min(remaining, int(duration_s * recording.rate))


def _latest(recording: Recording | MediaRecording) -> int:
    """Return the last sample at which a window may begin."""
    return max(0, recording.n_frames - math.ceil(MIN_REMAINING_S * recording.rate))


def _read_mono(recording: Recording | MediaRecording, start: int, stop: int) -> tuple[np.ndarray, list[str]]:
    """Average the channels, or take the first that has sound where they cancel; return samples and a note of that.

    Two channels cancel where their mean is nothing beside the louder: one is the other inverted, as where the two wires
    of a balanced line were taken for two channels. More channels do where their mean is silent to the last bit.
    """
    parts, extremes = [np.zeros(0, np.float32)], []
    for _, part_TC in recording.blocks(start, stop):
        parts.append(average_channels(part_TC))
        if recording.n_channels > 1:
            extremes += [part_TC.min(), part_TC.max()]
    waveform_T = parts[-1] if len(parts) == 2 else np.concatenate(parts)
    if not extremes:
        return waveform_T, []
    share = _MAX_CANCELLED if recording.n_channels == 2 else 0
    left, of_all = float(waveform_T.max()) - float(waveform_T.min()), float(max(extremes)) - float(min(extremes))
    if not left <= share * of_all:  # no channel's range is larger than that of all
        return waveform_T, []
    parts = [part_TC for _, part_TC in recording.blocks(start, stop)]
    range_C = np.ptp(np.concatenate(parts), axis=0)
    channel = sounding_channel(range_C, left)
    if channel is None:
        return waveform_T, []
    first_T = np.concatenate([part_TC[:, channel] for part_TC in parts])
    return first_T, [note_cancelled(channel)]


def average_channels(sound_TC: np.ndarray) -> np.ndarray:
    """Return the mean [T] of all channels: that of numpy to the bit, which takes long over rows of two."""
    if sound_TC.shape[1] == 1:
        return sound_TC[:, 0]
    if sound_TC.shape[1] == 2:
        return (sound_TC[:, 0] + sound_TC[:, 1]) / np.float32(2)
    return sound_TC.mean(axis=1)


def sounding_channel(range_C: np.ndarray, left: float) -> int | None:
    """Return which channel to use, counted from 0, where the channels cancel each other; None where they do not.

    Args:
        range_C: The largest sample of each channel less the smallest.
        left: That of their mean.
    """
    share = _MAX_CANCELLED if len(range_C) == 2 else 0
    if len(range_C) == 1 or not range_C.any() or not left <= share * range_C.max():
        return None
    return int(np.argmax(range_C > _MAX_CANCELLED * range_C.max()))


def note_cancelled(channel: int) -> str:
    """Return the note that a channel, counted from 0, is used for all."""
    return f"{CANCEL}: their mean is silence, so channel {channel + 1} is used"


def _find_sound(recording: Recording | MediaRecording, start: int, length: int) -> int:
    """Return where a window that is silent has sound: from the next sound on, or else up to the last one before.

    Raises:
        AudioError: There is none.
    """
    _, silent_TC = next(recording.blocks(start, start + 1))
    for position, part_TC in recording.blocks(start + length, recording.n_frames):
        sounds_T = (part_TC != silent_TC).any(axis=1)
        if sounds_T.any():
            return min(position + int(sounds_T.argmax()), _latest(recording))
    last = None
    for position, part_TC in recording.blocks(0, start):
        sounds_T = (part_TC != silent_TC).any(axis=1)
        if sounds_T.any():
            last = position + len(sounds_T) - 1 - int(sounds_T[::-1].argmax())
    if last is None:
        raise AudioError("digital silence: all samples are the same")
    return max(0, last + 1 - length)


def _check_samples(waveform_T: np.ndarray, length: int, recording: Recording | MediaRecording) -> None:
    """Raise AudioError unless the window's samples are all there and can be sound."""
    if len(waveform_T) < length or not length:
        raise AudioError(f"truncated: its header promises {recording.n_frames / recording.rate:.2f} s")
    check_range(float(waveform_T.min()), float(waveform_T.max()))


def check_range(low: float, high: float) -> None:
    """Raise AudioError unless the smallest and the largest sample can be sound."""
    if not math.isfinite(low + high):  # minimum and maximum hand on a NaN
        raise AudioError("samples that are no numbers (NaN or infinite)")
    if max(-low, high) > _MAX_PEAK:
        raise AudioError(f"samples out of range: a peak of {max(-low, high):.0e} times full scale")


def _is_at_integer_scale(recording: Recording | MediaRecording, waveform_T: np.ndarray) -> bool:
    """Tell whether floats are at the scale of 16-bit integers; where the window leaves it open, the file decides."""
    peak = float(np.abs(waveform_T).max())
    if 1 < peak <= _MAX_HOT:
        peak = max(float(np.abs(part_TC).max()) for _, part_TC in recording.blocks(0, recording.n_frames))
    return integer_scale(peak) > 1


def integer_scale(peak: float) -> int:
    """Return by what to divide floats of a peak: more than 1 where they are at the scale of 16-bit integers."""
    return _INTEGER_SCALE if _MAX_HOT < peak <= _MAX_PEAK else 1


def to_rate(waveform_T: np.ndarray, rate_in: int, rate_out: int) -> np.ndarray:
    """Resample mono samples; there are as many as librosa would give."""
    if rate_in == rate_out:
        return waveform_T
    n_out = math.ceil(len(waveform_T) * (rate_out / rate_in))
    resampled_T = soxr.resample(waveform_T, rate_in, rate_out, quality="HQ")[:n_out]
    return np.pad(resampled_T, (0, n_out - len(resampled_T)))
