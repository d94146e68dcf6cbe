"""Waveforms to features: the 162 averaged numbers of the common recipe, log-mel spectrograms, or samples.

`draw_banks` draws the filter banks of a `Featurizer`.

Shapes: B waveforms, T samples, N frames, K samples of a frame, F frequency bins, M mel bands, C pitch classes,
V values of a frame.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from ser_ray import augment
from ser_ray.errors import UserError

KINDS = ("summary", "log_mel", "waveform")
N_CHROMA = 12
_TUNINGS = np.linspace(-0.5, 0.5, 101)  # semitones; edges of the histogram of estimated tunings
_TOP_DB = 80.0
_MIN_POWER = 1e-10
_MIN_CROSSING = 1e-10
_MEL_PARTS = 4


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
        tunings = _TUNINGS[:-1] if config.chroma_tuning is None else [config.chroma_tuning]
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


class Featurizer(nn.Module):
    """Features of waveforms, on whatever device the module is.

    Args:
        config: What to compute.
        banks: From `draw_banks(config)`.
    """

    def __init__(self, config: FeatureConfig, banks: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.config = config
        # Bands 80 dB below the loudest one count in log_mel: a transform in float32 would blur them by 0.001 dB.
        precision = torch.float64 if config.kind == "log_mel" else torch.float32
        self.register_buffer("window_K", torch.hann_window(config.n_fft, dtype=precision))
        self.mel_bins: list[slice] = []
        for name, bank in banks.items():
            if name != "mel":
                self.register_buffer(name, torch.tensor(bank))
                continue
            # Triangles are narrow: a group of neighbouring bands needs only some of the bins.
            for part, part_FM in enumerate(np.array_split(bank, _MEL_PARTS, axis=1)):
                bins = part_FM.any(1).nonzero()[0]
                self.mel_bins.append(slice(int(bins[0]), int(bins[-1]) + 1) if len(bins) else slice(0, 1))
                self.register_buffer(f"mel_{part}", torch.tensor(part_FM[self.mel_bins[-1]]))

    @torch.inference_mode()
    def clip_rows(
        self, waveform_T: np.ndarray, utterance_id: str, augmentations: Sequence[str], seed: int
    ) -> list[np.ndarray]:
        """Compute the rows of one clip, one per augmentation.

        On one thread of a CPU the rows depend on the arguments alone, to the last bit: nothing else is in the batch.

        Args:
            waveform_T: float32 samples at `config.sample_rate`.
            utterance_id: Together with the seed and the augmentation's name the source of random numbers.
            augmentations: Names as `augment.parse_augmentation` reads them.
            seed: Of the run.

        Returns:
            Arrays: `summary` [162] float32, `log_mel` [N, M] float32, `waveform` [T] int16.
        """
        clip_1T = torch.from_numpy(waveform_T)[None].to(self.window_K.device)
        # The clip's own spectrum serves its features and the phase vocoder alike where both cut the same frames.
        frames = self.config.n_fft, self.config.hop_length
        shared = self.config.kind == "summary" and frames == (augment.N_FFT, augment.HOP_LENGTH)
        spectrum_1NF = augment.stft(clip_1T) if shared else None
        samples, values = [], []
        for name in augmentations:
            steps, waveform_1T = augment.parse_augmentation(name), clip_1T
            if steps:
                generator = augment.make_generator(seed, utterance_id, name)
                waveform_1T = augment.augment(clip_1T, steps, generator, spectrum_1NF)
            if self.config.kind == "waveform":
                samples.append((waveform_1T[0].clamp(-1, 1) * 32767).round_().short().cpu().numpy())
            else:
                values.append(self._frame_values(waveform_1T, None, None if steps else spectrum_1NF)[0])
        if self.config.kind == "waveform":
            return samples
        counts_B = torch.tensor([len(value_NV) for value_NV in values], device=clip_1T.device)
        features = self._finish(pad_sequence(values, batch_first=True), counts_B).cpu().numpy()
        if self.config.kind == "log_mel":
            return [row_NM[: len(value_NV)] for row_NM, value_NV in zip(features, values, strict=True)]
        return list(features)

    def forward(self, waveform_BT: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the features of a batch.

        Args:
            waveform_BT: Waveforms, padded to equal length.
            lengths_B: Samples of each without the padding.

        Returns:
            `summary` [B, 162], or `log_mel` [B, N, M] with zeros after a waveform's own frames; and the number of
            frames of each waveform [B].
        """
        lengths_B = lengths_B.to(waveform_BT.device)
        counts_B = 1 + lengths_B // self.config.hop_length
        waveform_BT = waveform_BT.where(_first(lengths_B, waveform_BT.shape[1]), 0)
        return self._finish(self._frame_values(waveform_BT, lengths_B), counts_B), counts_B

    def _frame_values(
        self, waveform_BT: torch.Tensor, lengths_B: torch.Tensor | None, spectrum_BNF: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Compute what each frame yields by itself [B, N, V]: mel bands, and for `summary` the rest before them.

        Args:
            waveform_BT: Waveforms, zero after their own samples.
            lengths_B: Samples of each; None where nothing is padded.
            spectrum_BNF: The waveforms' STFT if it is there already.
        """
        n_fft, hop_length = self.config.n_fft, self.config.hop_length
        padded_BP = functional.pad(waveform_BT, (n_fft // 2, n_fft // 2))
        frame_BNK = padded_BP.unfold(-1, n_fft, hop_length)
        if spectrum_BNF is None:
            spectrum_BNF = torch.fft.rfft(frame_BNK * self.window_K)
        magnitude_BNF = augment.magnitude(spectrum_BNF).float()
        power_BNF = magnitude_BNF.square()
        mel = [power_BNF[..., bins] @ getattr(self, f"mel_{part}") for part, bins in enumerate(self.mel_bins)]
        if self.config.kind == "log_mel":
            return torch.cat(mel, -1)
        chroma_BNC = magnitude_BNF @ self._chroma_bank(magnitude_BNF, lengths_B)
        chroma_BNC = chroma_BNC / chroma_BNC.amax(-1, keepdim=True).clamp(min=torch.finfo().tiny)

        sign_BP = (padded_BP + _MIN_CROSSING).sign_()
        change_BP = (sign_BP[:, 1:] - sign_BP[:, :-1]).abs_()  # 2 at a crossing
        # To the padding and from it is no crossing.
        change_BP[:, n_fft // 2 - 1] = 0
        if lengths_B is None:
            change_BP[:, -(n_fft // 2)] = 0
        else:
            change_BP.scatter_(1, n_fft // 2 - 1 + lengths_B[:, None], 0)
        crossings_BN = change_BP.unfold(-1, n_fft - 1, hop_length).sum(-1) / (2 * n_fft)
        rms_BN = torch.linalg.vector_norm(frame_BNK, dim=-1) / n_fft**0.5
        return torch.cat([crossings_BN[..., None], chroma_BNC, rms_BN[..., None], *mel], -1)

    def _finish(self, value_BNV: torch.Tensor, counts_B: torch.Tensor) -> torch.Tensor:
        """Make features of the values of frames, of which each waveform has its own count."""
        own_BN1 = _first(counts_B, value_BNV.shape[1])[..., None].float()
        value_BNV = value_BNV * own_BN1
        mel_BNM = value_BNV[..., -self.config.n_mels :]
        decibel_BNM = mel_BNM.clamp(min=_MIN_POWER).log10_().mul_(10)
        decibel_BNM = decibel_BNM.maximum(decibel_BNM.amax((1, 2), keepdim=True) - _TOP_DB)
        if self.config.kind == "log_mel":
            return decibel_BNM * own_BN1
        # The cosine transform is linear: that of the mean is the mean of those of the frames.
        mean_BV, decibel_BM = ((own_BN1.mT @ x)[:, 0] / counts_B[:, None] for x in (value_BNV, decibel_BNM))
        return torch.cat([mean_BV[:, : 1 + N_CHROMA], decibel_BM @ self.dct, mean_BV[:, 1 + N_CHROMA :]], -1)

    def _chroma_bank(self, magnitude_BNF: torch.Tensor, lengths_B: torch.Tensor | None) -> torch.Tensor:
        """Return the pitch classes' filters of each waveform [B or 1, F, C]."""
        if self.config.chroma_tuning is not None:
            return self.chroma
        counts = [None] * len(magnitude_BNF)
        if lengths_B is not None:
            counts = (1 + lengths_B // self.config.hop_length).tolist()
        bin_hz = self.config.sample_rate / self.config.n_fft
        tunings = [_tuning(own_NF[:count], bin_hz) for own_NF, count in zip(magnitude_BNF, counts, strict=True)]
        return self.chroma[tunings]


def use_one_core() -> None:
    """Keep torch to one thread, and freed memory in the process.

    A clip needs some 10 MB for a few milliseconds. By default glibc hands them back after each clip and asks for them
    again, which costs 2 ms a clip.
    """
    torch.set_num_threads(1)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        trim_threshold, mmap_threshold = -1, -3  # from malloc.h
        mallopt(trim_threshold, 256 << 20)
        mallopt(mmap_threshold, 32 << 20)


def _first(count_B: torch.Tensor, size: int) -> torch.Tensor:
    return torch.arange(size, device=count_B.device) < count_B[:, None]


def _tuning(magnitude_NF: torch.Tensor, bin_hz: float) -> int:
    """Return the index in `_TUNINGS` of a clip's deviation from A = 440 Hz, as `librosa.estimate_tuning` finds it.

    It is the most frequent deviation of spectral peaks from the nearest semitone. Peaks lie between 150 and 4000 Hz,
    reach a tenth of their frame's maximum, and are interpolated by a parabola; the louder half of them counts.
    """
    low, high = max(1, math.ceil(150 / bin_hz)), min(magnitude_NF.shape[1] - 1, math.ceil(4000 / bin_hz))
    loud_NF = magnitude_NF.where(magnitude_NF > 0.1 * magnitude_NF.amax(1, keepdim=True), 0)
    before, here, after = (slice(low + step, high + step) for step in (-1, 0, 1))
    peak_NF = (loud_NF[:, here] > loud_NF[:, before]) & (loud_NF[:, here] >= loud_NF[:, after])
    if not peak_NF.any():
        return len(_TUNINGS) // 2
    left_P, middle_P, right_P = (magnitude_NF[:, part][peak_NF] for part in (before, here, after))
    curve_P, slope_P = right_P + left_P - 2 * middle_P, (right_P - left_P) / 2
    shift_P = torch.where(slope_P.abs() >= curve_P.abs(), 0, -slope_P / curve_P)
    height_P = middle_P + slope_P * shift_P / 2
    pitch_P = (peak_NF.nonzero()[:, 1] + low + shift_P.double()) * bin_hz
    pitch_P = pitch_P[height_P >= height_P.quantile(0.5)]
    deviation_P = 12 * (pitch_P / 440).log2()
    deviation_P -= (deviation_P + 0.5).floor()
    edges = torch.from_numpy(_TUNINGS).to(deviation_P.device)
    return int(torch.bucketize(deviation_P, edges, right=True).bincount().argmax()) - 1
