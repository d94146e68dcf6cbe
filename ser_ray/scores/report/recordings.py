"""The pictures of a recording of any length, read once, block by block: its waveform, its spectrogram, its sound.

All are drawn at the sample rate of `log_mel`, so that what a model hears is what is seen.

Shapes: T samples, C channels, W columns of a picture, N frames, L samples of a frame, M mel bands.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import matplotlib.image
import numpy as np
import soundfile
import soxr

from ser_ray.base import storage
from ser_ray.base.errors import UserError
from ser_ray.features.banks import mel_bank
from ser_ray.scores.report.sound import FEATURES, SAMPLE_RATE
from ser_ray.speech.audio import AudioError, integer_scale, open_recording

COLUMNS = 800  # of a picture
_MOST_FRAMES = 4  # of a column, whose powers are averaged
_RANGE_DB = 70.0
_MEAN = 0  # number of the mean of all channels, as in the rows of prediction


class Drawing:
    """What is drawn of one channel.

    Args:
        length: Samples at `SAMPLE_RATE` that are to come.
    """

    def __init__(self, length: int) -> None:
        self._length = max(1, length)
        self.low_W, self.high_W = np.zeros(COLUMNS, np.float32), np.zeros(COLUMNS, np.float32)
        self._power_WM = np.zeros((COLUMNS, FEATURES.n_mels))
        each = int(np.clip(self._length / COLUMNS / FEATURES.n_fft, 1, _MOST_FRAMES))
        middle_N = (np.arange(COLUMNS * each) + 0.5) * self._length / (COLUMNS * each)
        self._start_N = np.maximum(0, middle_N.astype(int) - FEATURES.n_fft // 2)  # of frames, in order
        self._column_N = np.repeat(np.arange(COLUMNS), each)
        self._frames, self._at, self._left_T = 0, 0, np.zeros(0, np.float32)
        self._bank_FM, self._window_L = mel_bank(FEATURES), np.hanning(FEATURES.n_fft + 1)[:-1].astype(np.float32)

    def feed(self, signal_T: np.ndarray) -> None:
        """Take the next samples `[T]`."""
        if not len(signal_T):
            return
        column_T = np.minimum((self._at + np.arange(len(signal_T))) * COLUMNS // self._length, COLUMNS - 1)
        column_W, first_W = np.unique(column_T, return_index=True)
        self.low_W[column_W] = np.minimum(self.low_W[column_W], np.minimum.reduceat(signal_T, first_W))
        self.high_W[column_W] = np.maximum(self.high_W[column_W], np.maximum.reduceat(signal_T, first_W))
        held_T = np.concatenate([self._left_T, signal_T])
        base, self._at = self._at - len(self._left_T), self._at + len(signal_T)
        self._draw_frames(held_T, base, self._at)
        self._left_T = held_T[-2 * FEATURES.n_fft :]

    def finish(self) -> None:
        """Draw what lies at the end, as if silence followed."""
        padded_T = np.pad(self._left_T, (0, 2 * FEATURES.n_fft))
        self._draw_frames(padded_T, self._at - len(self._left_T), self._at + 2 * FEATURES.n_fft)

    def _draw_frames(self, held_T: np.ndarray, base: int, end: int) -> None:
        last = int(np.searchsorted(self._start_N, end - FEATURES.n_fft, side="right"))
        if last <= self._frames:
            return
        start_N = self._start_N[self._frames : last] - base
        frame_NL = held_T[np.maximum(start_N, 0)[:, None] + np.arange(FEATURES.n_fft)] * self._window_L
        power_NM = (np.abs(np.fft.rfft(frame_NL)) ** 2) @ self._bank_FM
        np.add.at(self._power_WM, self._column_N[self._frames : last], power_NM)
        self._frames = last

    def spectrogram(self) -> str:
        """Return the log-mel spectrogram as a PNG data URI, black 70 dB below its loudest point."""
        power_MW = self._power_WM.T
        decibel_MW = 10 * np.log10(np.maximum(power_MW, 1e-20) / max(power_MW.max(), 1e-10))
        buffer = io.BytesIO()
        how = {"cmap": "magma", "vmin": -_RANGE_DB, "vmax": 0, "origin": "lower", "format": "png"}
        matplotlib.image.imsave(buffer, decibel_MW, **how)
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

    def waveform(self) -> str:
        """Return the outline of the waveform as an SVG path in a box of `COLUMNS` by 100, as loud as its peak."""
        peak = max(float(-self.low_W.min()), float(self.high_W.max()), 1e-9)
        upper = [f"{x},{50 - 48 * y / peak:.1f}" for x, y in enumerate(self.high_W)]
        lower = [f"{x},{50 - 48 * y / peak:.1f}" for x, y in enumerate(self.low_W)]
        return f"M{' '.join(upper)} {' '.join(reversed(lower))}Z"


def draw_recording(
    path: str, start_s: float, seconds: float, channels: Sequence[int], embed_audio: bool
) -> tuple[list[Drawing], str | None] | None:
    """Read a recording, or a part of one.

    Args:
        path: Local path or URI.
        start_s: Where the part begins, seconds.
        seconds: Its length.
        channels: Those to draw, from 1, or 0 for the mean of all.
        embed_audio: Return its sound as well.

    Returns:
        A drawing for each channel, and the sound as an MP3 data URI where that was asked for, of the same channels if
        they are no more than two, else of their mean; None where the recording cannot be read any more.
    """
    drawings = [Drawing(round(seconds * SAMPLE_RATE)) for _ in channels]
    buffer = io.BytesIO()
    sounds = len(channels) if len(channels) <= 2 else 1
    try:
        with storage.open_read(path) as stream:
            recording = open_recording(stream)
            rate, begin = recording.rate, int(start_s * recording.rate)
            resampler = soxr.ResampleStream(rate, SAMPLE_RATE, len(channels), dtype="float32")
            stop = begin + round(seconds * rate)
            with soundfile.SoundFile(buffer, "w", SAMPLE_RATE, sounds, format="MP3") as sound:
                for position, block_TC in recording.blocks(begin, stop):
                    loudest = float(np.abs(block_TC).max()) if recording.is_float else 0.0
                    heard = [block_TC.mean(axis=1) if k == _MEAN else block_TC[:, k - 1] for k in channels]
                    heard_TC = np.stack(heard, axis=1) / np.float32(integer_scale(loudest))
                    at_rate_TC = resampler.resample_chunk(heard_TC, last=position + len(block_TC) >= stop)
                    for drawing, signal_T in zip(drawings, at_rate_TC.T, strict=True):
                        drawing.feed(np.ascontiguousarray(signal_T))
                    if embed_audio:
                        sound.write(at_rate_TC if sounds == len(channels) else at_rate_TC.mean(axis=1))
            recording.close()
    except (AudioError, OSError, UserError, soundfile.LibsndfileError):
        return None
    for drawing in drawings:
        drawing.finish()
    return drawings, "data:audio/mpeg;base64," + base64.b64encode(buffer.getvalue()).decode() if embed_audio else None
