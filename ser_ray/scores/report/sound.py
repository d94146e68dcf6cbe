"""The sounds in a report: a clip as models hear it, its picture in their mel bands, and the clip as a data URI.

Pictures are drawn by NumPy, so that a report needs no torch; the bands are those of `log_mel`.

Shape suffixes: T samples, N frames, K samples of a frame, M mel bands.
"""

from __future__ import annotations

import base64
import io

import numpy as np
import soundfile

from ser_ray.base.errors import UserError
from ser_ray.features.banks import mel_bank, mel_frequencies
from ser_ray.features.log_mel import LogMel
from ser_ray.speech.audio import AudioError, decode
from ser_ray.speech.packed import open_sound

MAX_SECONDS = 10.0
FEATURES = LogMel()
SAMPLE_RATE = FEATURES.sample_rate
_RANGE_DB = 80.0


def read_sound(path: str) -> np.ndarray | None:
    """Read the beginning of a clip.

    Args:
        path: Local path or URI.

    Returns:
        Mono samples at `SAMPLE_RATE`, float32 [T], at most `MAX_SECONDS` of them; None where there is no sound to be
        read.
    """
    try:
        with open_sound(path) as stream:
            return decode(stream, sample_rate=SAMPLE_RATE, duration_s=MAX_SECONDS).waveform_T
    except (AudioError, OSError, UserError):
        return None


def draw_log_mel(waveform_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute what `log_mel` is for a clip, for a picture.

    Args:
        waveform_T: Mono samples at `SAMPLE_RATE`.

    Returns:
        Decibels below the loudest point [M, N], cut at -80 dB, and the M band centres in Hz.
    """
    n_fft = FEATURES.n_fft
    padded_T = np.pad(waveform_T, n_fft // 2)
    frame_NK = np.lib.stride_tricks.sliding_window_view(padded_T, n_fft)[:: FEATURES.hop_length]
    power = np.abs(np.fft.rfft(frame_NK * np.hanning(n_fft + 1)[:-1])) ** 2
    power_MN = (power @ mel_bank(FEATURES)).T
    decibel_MN = 10 * np.log10(np.maximum(power_MN, 1e-20) / max(power_MN.max(), 1e-10))
    return np.maximum(decibel_MN, -_RANGE_DB), mel_frequencies(FEATURES.n_mels, SAMPLE_RATE / 2)


def audio_uri(waveform_T: np.ndarray) -> str:
    """Encode mono samples at `SAMPLE_RATE` as a FLAC data URI."""
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform_T, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return "data:audio/flac;base64," + base64.b64encode(buffer.getvalue()).decode()
