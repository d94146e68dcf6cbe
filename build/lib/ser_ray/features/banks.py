"""Filter banks of spectra, drawn as librosa draws them: mel bands, the cosine transform, pitch classes.

librosa itself is not imported, since that takes seconds; tests compare with it.

Shapes: F frequency bins, M mel bands, E edges of bands, C pitch classes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

N_CHROMA = 12
TUNINGS = np.linspace(-0.5, 0.5, 101)  # semitones; edges of the histogram of estimated tunings


def mel_bank(features: Any) -> np.ndarray:
    """Return triangles of equal area `[F, M]` float32, each from the centre of the band below to that of the one above.

    Args:
        features: Has `n_mels`, `n_fft` and the `sample_rate`.
    """
    edges_E = _mel_edges(features.n_mels, features.sample_rate / 2)
    bins_F1 = np.fft.rfftfreq(features.n_fft, 1 / features.sample_rate)[:, None]
    low_M, centre_M, high_M = edges_E[:-2], edges_E[1:-1], edges_E[2:]
    rising_FM = (bins_F1 - low_M) / (centre_M - low_M)
    falling_FM = (high_M - bins_F1) / (high_M - centre_M)
    return _single(np.minimum(rising_FM, falling_FM).clip(min=0) * 2 / (high_M - low_M))


def dct_bank(n_mels: int, n_mfcc: int) -> np.ndarray:
    """Return the cosines `[M, n_mfcc]` float32 of the orthonormal DCT-II."""
    cosine_MK = np.cos(np.pi / n_mels * np.outer(np.arange(n_mels) + 0.5, np.arange(n_mfcc)))
    return _single(cosine_MK * np.where(np.arange(n_mfcc) == 0, np.sqrt(1 / n_mels), np.sqrt(2 / n_mels)))


def chroma_banks(features: Any) -> np.ndarray:
    """Return the filters of the pitch classes `[tunings, F, C]` float32: for one tuning, or each that can be estimated.

    Args:
        features: Has `chroma_tuning`, `n_fft` and the `sample_rate`.
    """
    tunings = TUNINGS[:-1] if features.chroma_tuning is None else [features.chroma_tuning]
    return _single(np.stack([_chroma_bank(features, tuning) for tuning in tunings]))


def _single(bank: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(bank, dtype=np.float32)


def _chroma_bank(features: Any, tuning: float) -> np.ndarray:
    """Return what each bin adds to each pitch class [F, C], C first (Ellis, Chroma feature analysis, 2007).

    A bin spreads over pitch classes by a Gaussian as wide as the bin, at least a semitone, and of unit norm; bins count
    less with the distance from the fifth octave, by a Gaussian of two octaves.
    """
    octave_hz = 440 / 16 * 2 ** (tuning / N_CHROMA)
    bins_F = np.fft.rfftfreq(features.n_fft, 1 / features.sample_rate)
    above_F = np.append(bins_F[1:], (features.n_fft // 2 + 1) * features.sample_rate / features.n_fft)
    semitone_F, above_F = (N_CHROMA * np.log2(np.maximum(hz, 1e-9) / octave_hz) for hz in (bins_F, above_F))
    semitone_F[0] = semitone_F[1] - 1.5 * N_CHROMA  # 0 Hz lies in no octave
    width_F1 = np.maximum(above_F - semitone_F, 1)[:, None]
    half = N_CHROMA // 2
    distance_FC = (semitone_F[:, None] - np.arange(N_CHROMA) + half) % N_CHROMA - half
    weight_FC = np.exp(-0.5 * (2 * distance_FC / width_F1) ** 2)
    weight_FC /= np.linalg.norm(weight_FC, axis=1, keepdims=True)
    weight_FC *= np.exp(-0.5 * ((semitone_F / N_CHROMA - 5) / 2) ** 2)[:, None]
    return np.roll(weight_FC, -3, axis=1)  # octaves are counted from A


def mel_frequencies(n_mels: int, highest_hz: float) -> np.ndarray:
    """Return the centre of each mel band from 0 Hz up, Hz, on the scale of Slaney's Auditory Toolbox (1998)."""
    return _mel_edges(n_mels, highest_hz)[1:-1]


def _mel_edges(n_mels: int, highest_hz: float) -> np.ndarray:
    """Return the centres of mel bands, and what bounds the first and the last one.

    The scale is linear below 1000 Hz, at 200 / 3 Hz a mel, and logarithmic above, 27 mels to a factor of 6.4.
    """
    highest = 15 + 27 * math.log(highest_hz / 1000, 6.4) if highest_hz > 1000 else highest_hz * 3 / 200
    mel_E = np.linspace(0, highest, n_mels + 2)
    return np.where(mel_E < 15, mel_E * 200 / 3, 1000 * 6.4 ** ((mel_E - 15) / 27))
