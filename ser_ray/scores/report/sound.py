"""The sounds in a report: a clip's samples, its log-mel picture, and the clip as a data URI.

Pictures only: the features that models hear are made elsewhere, in batches.

Shape suffixes: T samples, F frames, K frequency bins, M mel bands.
"""

from __future__ import annotations

import base64
import io

import numpy as np
import soundfile

from ser_ray.base.errors import UserError
from ser_ray.base.storage import open_read

MAX_SECONDS = 10.0
N_MELS = 64
HIGHEST_HZ = 8000


def read_clip(path: str) -> tuple[np.ndarray, int] | None:
    """Read the beginning of a clip.

    Args:
        path: Local path or URI.

    Returns:
        Mono samples, float32 [T], at most `MAX_SECONDS` of them, and the sample rate in Hz; None where there is no
        sound to be read.
    """
    try:
        with open_read(path) as stream, soundfile.SoundFile(stream) as clip:
            samples = clip.read(int(MAX_SECONDS * clip.samplerate), dtype="float32", always_2d=True)
            return (samples.mean(axis=1), clip.samplerate) if len(samples) else None
    except (OSError, RuntimeError, ValueError, UserError):
        return None


def log_mel(waveform_T: np.ndarray, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute a log-mel spectrogram: Hann windows of 32 ms every 8 ms, triangular bands on the HTK mel scale.

    Args:
        waveform_T: Mono samples.
        sample_rate: In Hz.

    Returns:
        Decibels below the loudest point [M, F], cut at -80 dB, and the M band centres in Hz.
    """
    window = max(16, int(0.032 * sample_rate))
    padded_T = np.pad(waveform_T, window // 2)
    frames_FT = np.lib.stride_tricks.sliding_window_view(padded_T, window)[:: window // 4]
    n_fft = 4 * window  # bins close enough together for the lowest bands
    power_FK = np.abs(np.fft.rfft(frames_FT * np.hanning(window), n_fft, axis=1)) ** 2
    top_mel = 2595 * np.log10(1 + min(sample_rate / 2, HIGHEST_HZ) / 700)
    edges = 700 * (10 ** (np.linspace(0, top_mel, N_MELS + 2) / 2595) - 1)
    below, centre, above = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bins_K = np.fft.rfftfreq(n_fft, 1 / sample_rate)
    bands_MK = np.minimum((bins_K - below) / (centre - below), (above - bins_K) / (above - centre)).clip(min=0)
    power_MF = bands_MK @ power_FK.T
    decibels_MF = 10 * np.log10(np.maximum(power_MF, 1e-20) / max(power_MF.max(), 1e-10))
    return np.maximum(decibels_MF, -80), edges[1:-1]


def audio_uri(waveform_T: np.ndarray, sample_rate: int) -> str:
    """Encode mono samples as a FLAC data URI."""
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform_T, sample_rate, format="FLAC", subtype="PCM_16")
    return "data:audio/flac;base64," + base64.b64encode(buffer.getvalue()).decode()
