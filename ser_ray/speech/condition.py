"""The condition of a recording: how wide its band is, how loud, clipped, silent and noisy it is.

All is measured at the recording's own rate, block by block, in memory that does not grow with its length. The
definitions are those of docs/features.md; the choices of frame, of what is loud and of what is silent are ours.

Shapes: T samples, N frames, L samples of a frame, H of half a frame, K frequencies, D levels, B bands, R runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import fft

FRAME_S = 0.032  # Frames follow each other without overlap.
LOUD_DB = 20.0  # A frame is loud where it is at most so much below the recording's level.
SILENT_DB = 40.0  # It is silent where it is more than so much below it.
POWER_SHARE = 0.99  # Of a frame's power, below its bandwidth.
LEVEL_PERCENTILE, FLOOR_PERCENTILE = 95, 10
BANDWIDTH_PERCENTILE = 95  # Over loud frames: vowels are narrow, and what follows them shows how wide the band is.
_EACH = 4  # Of one frame in so many the first half is transformed, which costs most: 16 ms of every 128 ms.
_LOWEST_DB, _LEVELS, _STEP_DB = -120.0, 2400, 0.1  # Frame levels are counted in steps, from -120 to 120 dB.
_BANDS = 256  # Bandwidths are counted in so many steps up to half the sample rate.
_CHUNK = 1 << 17  # Samples that are worked on at once, which a core's cache holds.
_RUN = 3  # So many samples in a row at the peak are clipped.


@dataclass(frozen=True)
class Condition:
    """What was measured of a recording, or of a part or a channel of it.

    Attributes:
        bandwidth_hz: Frequency below which 99 % of a loud frame's power lies, the 95th percentile over loud frames.
        level_db: 95th percentile of the frames' root mean square, dB re full scale 1.
        clipped_share: Share of samples in runs of three or more at the largest or the smallest sample, 0 to 1.
        silent_share: Share of frames more than 40 dB below the level, 0 to 1.
        snr_db: Distance of the 95th from the 10th percentile of frame levels, dB.
    """

    bandwidth_hz: float
    level_db: float
    clipped_share: float
    silent_share: float
    snr_db: float


class Meter:
    """Measures a signal that comes in blocks of any size; the result hangs on the samples alone.

    Args:
        rate: Sample rate, Hz.
    """

    def __init__(self, rate: int) -> None:
        self._rate, self._length = rate, max(8, round(FRAME_S * rate))
        self._window_H = np.hanning(self._length // 2 + 1)[:-1].astype(np.float32)
        self._left_T = np.zeros(0, np.float32)
        self._frames, self._samples = 0, 0
        self._level_D = np.zeros(_LEVELS, np.int64)
        self._width_DB = np.zeros((_LEVELS // 10, _BANDS), np.int64)  # of frames that are transformed, by level in dB
        self._ends = _Runs(1), _Runs(-1)

    def feed(self, signal_T: np.ndarray) -> None:
        """Take the next samples, float32 `[T]`."""
        self._samples += len(signal_T)
        for start in range(0, len(signal_T), _CHUNK):
            chunk_T = signal_T[start : start + _CHUNK]
            for end in self._ends:
                end.feed(chunk_T)
            whole_T = np.concatenate([self._left_T, chunk_T])
            count = len(whole_T) // self._length
            self._left_T = whole_T[count * self._length :].copy()
            if count:
                self._count(whole_T[: count * self._length].reshape(count, self._length))

    def read(self, scale: float = 1.0) -> Condition | None:
        """Return what was measured so far; None of a signal that is shorter than a frame or does not sound.

        Args:
            scale: What is full scale in the samples.
        """
        if not self._frames and len(self._left_T) >= 8:  # shorter than a frame
            self._count(np.pad(self._left_T, (0, self._length - len(self._left_T)))[None])
        low, high = self._ends[1].peak, self._ends[0].peak
        if not self._frames or low == high:
            return None
        level, floor = (_percentile(self._level_D, q) for q in (LEVEL_PERCENTILE, FLOOR_PERCENTILE))
        loud_D = np.arange(len(self._width_DB)) >= (level - LOUD_DB / _STEP_DB) // 10
        width_B = self._width_DB[loud_D].sum(0)
        if not width_B.any():  # of so few frames none that is loud was transformed
            width_B = self._width_DB.sum(0)
        silent = int(self._level_D[: max(0, level - round(SILENT_DB / _STEP_DB))].sum())
        return Condition(
            bandwidth_hz=(_percentile(width_B, BANDWIDTH_PERCENTILE) + 1) * self._rate / 2 / _BANDS,
            level_db=round(_LOWEST_DB + level * _STEP_DB - 20 * float(np.log10(scale)), 1),
            clipped_share=sum(end.count for end in self._ends) / self._samples,
            silent_share=silent / self._frames,
            snr_db=round((level - floor) * _STEP_DB, 1),
        )

    @np.errstate(invalid="ignore", over="ignore")  # what is no number is refused by whoever reads the recording
    def _count(self, frames_NL: np.ndarray) -> None:
        """Count the levels of some frames, and the bandwidths of some."""
        power_N = np.vecdot(frames_NL, frames_NL) / self._length
        level_N = (10 * np.log10(np.maximum(power_N, 1e-12)) - _LOWEST_DB) / _STEP_DB
        level_N = np.clip(np.rint(level_N).astype(int), 0, _LEVELS - 1)
        self._level_D += np.bincount(level_N, minlength=_LEVELS)
        chosen = slice(-self._frames % _EACH, None, _EACH)
        self._frames += len(frames_NL)
        half_NH = frames_NL[chosen, : len(self._window_H)] * self._window_H
        spectrum_NK = fft.rfft(half_NH)
        sum_NK = np.cumsum(spectrum_NK.real**2 + spectrum_NK.imag**2, axis=1)
        bin_N = np.argmax(sum_NK >= POWER_SHARE * sum_NK[:, -1:], axis=1)
        band_N = np.minimum(bin_N * _BANDS // (half_NH.shape[1] // 2), _BANDS - 1)
        np.add.at(self._width_DB, (level_N[chosen] // 10, band_N), 1)


class _Runs:
    """Counts the samples in runs at the largest sample of a signal, or at the smallest (`sign` -1)."""

    def __init__(self, sign: int) -> None:
        self._sign, self.peak = sign, -np.inf * sign
        self.count, self._open = 0, 0  # samples in long runs, and the length of the run at the end

    def feed(self, signal_T: np.ndarray) -> None:
        peak = signal_T.max() if self._sign > 0 else signal_T.min()
        if peak * self._sign > self.peak * self._sign:
            self.peak, self.count, self._open = peak, 0, 0
        elif peak != self.peak:
            self._open = 0
            return
        at = np.flatnonzero(signal_T == self.peak)
        breaks = np.flatnonzero(np.diff(at) > 1)
        starts, ends = at[[0, *(breaks + 1)]], at[[*breaks, -1]] + 1
        length_R = ends - starts
        if self._open and starts[0] == 0:
            length_R[0] += self._open
            self.count -= self._open if self._open >= _RUN else 0
        self.count += int(length_R[length_R >= _RUN].sum())
        self._open = int(length_R[-1]) if ends[-1] == len(signal_T) else 0


def measure(signal_T: np.ndarray, rate: int) -> Condition | None:
    """Measure a signal that is in memory, float32 `[T]` at full scale 1, as `Meter` does."""
    meter = Meter(rate)
    meter.feed(signal_T)
    return meter.read()


def _percentile(count_D: np.ndarray, percent: int) -> int:
    """Return the lowest step below or at which so many percent of what was counted lie."""
    total_D = np.cumsum(count_D)
    return int(np.searchsorted(total_D, total_D[-1] * percent / 100))
