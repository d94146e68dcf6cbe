"""What is computed from a clip: the settings of features and of changed copies, and filter banks.

`Featurizer` computes it. Nothing here needs torch, whose import takes seconds.

Shapes: F frequency bins, M mel bands, E edges of bands, C pitch classes.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ser_ray.base.errors import UserError

KINDS = ("summary", "log_mel", "waveform")
FEATURES_OF = {"log_mel_resnet": "log_mel", "cnn1d": "summary"}  # which kind each model takes
DEFAULT_MODEL = "log_mel_resnet"
N_CHROMA = 12
TUNINGS = np.linspace(-0.5, 0.5, 101)  # semitones; edges of the histogram of estimated tunings
STEPS = ("noise", "stretch", "pitch", "shift")  # of augmentation
DEFAULT_AUGMENTATIONS = ("none", "noise", "stretch+pitch")


@dataclass(frozen=True)
class FeatureConfig:
    """What is computed from a clip.

    Attributes:
        kind: `summary` (162 means over frames), `log_mel` (frames × bands, dB), or `waveform` (16-bit samples).
        sample_rate: Of the analysed waveform, Hz.
        offset_s: Start of the window within the clip, seconds.
        duration_s: Length of the window, seconds; None for the rest of the clip.
        n_fft: Length of a frame and of its Fourier transform, samples.
        hop_length: Distance from frame to frame, samples.
        n_mels: Mel bands, 0 Hz to half the sample rate.
        n_mfcc: Mel-frequency cepstral coefficients of `summary`.
        chroma_tuning: Deviation of the pitch classes of `summary` from A = 440 Hz, semitones; None to estimate it for
            each clip, as librosa does unless told otherwise.
    """

    kind: str = "summary"
    sample_rate: int = 22_050
    offset_s: float = 0.6
    duration_s: float | None = 2.5
    n_fft: int = 2048
    hop_length: int = 512
    n_mels: int = 128
    n_mfcc: int = 20
    chroma_tuning: float | None = 0.0

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            UserError: A value makes no sense; the message names it.
        """
        if self.kind not in KINDS:
            raise UserError(f"unknown features {self.kind!r}: choose one of {', '.join(KINDS)}")
        for name, low, high in (
            ("sample_rate", 1_000, 192_000),
            ("offset_s", 0, 1e6),
            ("duration_s", 0.1, 1e6),
            ("n_fft", 32, 65_536),
            ("hop_length", 1, self.n_fft),
            ("n_mels", 1, self.n_fft // 2),
            ("n_mfcc", 1, self.n_mels if self.kind == "summary" else 65_536),
            ("chroma_tuning", -0.5, 0.5),
        ):
            value = getattr(self, name)
            optional = name in ("duration_s", "chroma_tuning")
            if not (optional if value is None else low <= value <= high):
                raise UserError(f"{name} must be {low:g} to {high:g}, got {value}")
        if self.n_fft % 2:
            raise UserError(f"n_fft must be even, got {self.n_fft}")

    @classmethod
    def for_kind(cls, kind: str, **changes: Any) -> FeatureConfig:
        """Return the usual settings of a kind, with changes by field name.

        `summary` has those of the widely copied notebook. The others take up to 30 s, more than an utterance lasts, at
        16 kHz, the rate of speech models; `log_mel` has 64 bands of 64 ms frames, 16 ms apart.
        """
        speech = dict(sample_rate=16_000, offset_s=0.0, duration_s=30.0, n_fft=1024, hop_length=256, n_mels=64)
        return cls(**{"kind": kind, **({} if kind == "summary" else speech), **changes})

    @property
    def num_features(self) -> int:
        """Length of the last axis of the features: 162 by default for `summary`, `n_mels`, or 1 for `waveform`."""
        return {"summary": 2 + N_CHROMA + self.n_mfcc + self.n_mels, "log_mel": self.n_mels, "waveform": 1}[self.kind]


@dataclass(frozen=True)
class FeaturizeConfig:
    """What to compute from each clip.

    Attributes:
        augment: Rows per clip: `none` is the clip itself; `noise`, `stretch`, `pitch`, `shift`, or chains such as
            `stretch+pitch`. Augmented rows are used in training only. By default none, noise and stretch+pitch for
            `summary`, and none alone for the others, which are changed afresh in every epoch of training.
        seed: Seed of all draws; with it and a clip's id, the clip's rows are always the same.
    """

    features: FeatureConfig = field(default_factory=FeatureConfig)
    augment: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.augment and self.features.kind == "summary":
            object.__setattr__(self, "augment", DEFAULT_AUGMENTATIONS)
        for name in self.augment:
            parse_augmentation(name)
        if len(set(self.augment)) != len(self.augment):
            raise UserError(f"--augment names one augmentation twice: {' '.join(self.augment)}")
        others = sorted(set(self.augment) - {"none"})  # in one order, so that any gives the same store
        object.__setattr__(self, "augment", ("none", *others))

    def settings(self) -> dict[str, Any]:
        """Return what the store's fingerprint covers."""
        return {"features": asdict(self.features), "augmentations": list(self.augment), "seed": self.seed}


def parse_augmentation(name: str) -> tuple[str, ...]:
    """Read an augmentation's name.

    Args:
        name: `none`, one of `STEPS`, or a chain of them such as `stretch+pitch`.

    Returns:
        The steps in their order; none for `none`.

    Raises:
        UserError: A step is unknown; the message names the choices.
    """
    steps = () if name == "none" else tuple(name.split("+"))
    if not set(steps) <= set(STEPS):
        raise UserError(
            f"unknown augmentation {name!r}: choose none, {', '.join(STEPS)}, or a chain like stretch+pitch"
        )
    return steps


def draw_banks(config: FeatureConfig) -> dict[str, np.ndarray]:
    """Draw the filter banks of a configuration.

    They are librosa's, which is not imported, since that takes seconds.

    Returns:
        `mel` [F, M], and for `summary` also `dct` [M, n_mfcc] and `chroma` [tunings, F, C], with one tuning, or one for
        each that can be estimated; nothing for `waveform`.
    """
    if config.kind == "waveform":
        return {}
    banks = {"mel": _mel_bank(config)}
    if config.kind == "summary":
        tunings = TUNINGS[:-1] if config.chroma_tuning is None else [config.chroma_tuning]
        banks["dct"] = _dct_bank(config.n_mels, config.n_mfcc)
        banks["chroma"] = np.stack([_chroma_bank(config, tuning) for tuning in tunings])
    return {name: np.ascontiguousarray(bank, dtype=np.float32) for name, bank in banks.items()}


def _mel_bank(config: FeatureConfig) -> np.ndarray:
    """Return triangles of equal area [F, M], each from the centre of the band below to that of the one above."""
    edges_E = _mel_edges(config.n_mels, config.sample_rate / 2)
    bins_F1 = np.fft.rfftfreq(config.n_fft, 1 / config.sample_rate)[:, None]
    low_M, centre_M, high_M = edges_E[:-2], edges_E[1:-1], edges_E[2:]
    rising_FM = (bins_F1 - low_M) / (centre_M - low_M)
    falling_FM = (high_M - bins_F1) / (high_M - centre_M)
    return np.minimum(rising_FM, falling_FM).clip(min=0) * 2 / (high_M - low_M)


def _dct_bank(n_mels: int, n_mfcc: int) -> np.ndarray:
    """Return the cosines [M, n_mfcc] of the orthonormal DCT-II."""
    cosine_MK = np.cos(np.pi / n_mels * np.outer(np.arange(n_mels) + 0.5, np.arange(n_mfcc)))
    return cosine_MK * np.where(np.arange(n_mfcc) == 0, np.sqrt(1 / n_mels), np.sqrt(2 / n_mels))


def _chroma_bank(config: FeatureConfig, tuning: float) -> np.ndarray:
    """Return what each bin adds to each pitch class [F, C], C first (Ellis, Chroma feature analysis, 2007).

    A bin spreads over pitch classes by a Gaussian as wide as the bin, at least a semitone, and of unit norm; bins count
    less with the distance from the fifth octave, by a Gaussian of two octaves.
    """
    octave_hz = 440 / 16 * 2 ** (tuning / N_CHROMA)
    bins_F = np.fft.rfftfreq(config.n_fft, 1 / config.sample_rate)
    above_F = np.append(bins_F[1:], (config.n_fft // 2 + 1) * config.sample_rate / config.n_fft)
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
