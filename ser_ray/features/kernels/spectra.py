"""Waveforms to spectra: the 162 averaged numbers of the common recipe, and log-mel frames.

Shapes: B waveforms, T samples, N frames, K samples of a frame, F frequency bins, M mel bands, C pitch classes,
V values of a frame.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from ser_ray.features.augmentation import parse_augmentation
from ser_ray.features.banks import N_CHROMA, TUNINGS, chroma_banks, dct_bank, mel_bank
from ser_ray.features.kernels import copies

if TYPE_CHECKING:
    from ser_ray.features.log_mel import LogMel
    from ser_ray.features.summary import Summary

_TOP_DB = 80.0
_MIN_POWER = 1e-10
_MIN_CROSSING = 1e-10
_MEL_PARTS = 4


class _Spectra(nn.Module):
    """What both kernels share: frames, their power in mel bands, decibels; on whatever device the module is.

    Args:
        config: What to compute.
        precision: Of the transform.
    """

    def __init__(self, config: Summary | LogMel, precision: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("window_K", torch.hann_window(config.n_fft, dtype=precision))
        self.mel_bins: list[slice] = []
        # Triangles are narrow: a group of neighbouring bands needs only some of the bins.
        for part, part_FM in enumerate(np.array_split(mel_bank(config), _MEL_PARTS, axis=1)):
            bins = part_FM.any(1).nonzero()[0]
            self.mel_bins.append(slice(int(bins[0]), int(bins[-1]) + 1) if len(bins) else slice(0, 1))
            self.register_buffer(f"mel_{part}", torch.tensor(part_FM[self.mel_bins[-1]]))

    @torch.inference_mode()
    def rows(
        self, waveform_T: np.ndarray, utterance_id: str, augmentations: Sequence[str], seed: int
    ) -> list[np.ndarray]:
        """Compute the rows of one clip, one per augmentation (`features.spec.Kernel`).

        On one thread of a CPU the rows depend on the arguments alone, to the last bit: nothing else is in the batch.
        """
        clip_1T = torch.from_numpy(waveform_T)[None].to(self.window_K.device)
        spectrum_1NF = self._shared_spectrum(clip_1T)
        values = []
        for name in augmentations:
            steps, waveform_1T = parse_augmentation(name), clip_1T
            if steps:
                generator = copies.make_generator(seed, utterance_id, name)
                waveform_1T = copies.augment(clip_1T, steps, generator, spectrum_1NF)
            values.append(self._frame_values(waveform_1T, None, None if steps else spectrum_1NF)[0])
        counts_B = torch.tensor([len(value_NV) for value_NV in values], device=clip_1T.device)
        features = self._finish(pad_sequence(values, batch_first=True), counts_B).cpu().numpy()
        return self._cut(features, counts_B.tolist())

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

    def _shared_spectrum(self, clip_1T: torch.Tensor) -> torch.Tensor | None:
        """Return the clip's own spectrum, if it serves its features and the phase vocoder alike."""
        return None

    def _frames(
        self, waveform_BT: torch.Tensor, spectrum_BNF: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Return the padded waveforms, the magnitudes of their frames, and the power in groups of mel bands."""
        n_fft = self.config.n_fft
        padded_BP = functional.pad(waveform_BT, (n_fft // 2, n_fft // 2))
        magnitude_BNF = self._magnitude(padded_BP, spectrum_BNF)
        power_BNF = magnitude_BNF.square()
        mel = [power_BNF[..., bins] @ getattr(self, f"mel_{part}") for part, bins in enumerate(self.mel_bins)]
        return padded_BP, magnitude_BNF, mel

    def _magnitude(self, padded_BP: torch.Tensor, spectrum_BNF: torch.Tensor | None) -> torch.Tensor:
        """Return the magnitudes of frames, from their spectrum where that is there already."""
        if spectrum_BNF is None:
            frame_BNK = padded_BP.unfold(-1, self.config.n_fft, self.config.hop_length)
            spectrum_BNF = torch.fft.rfft(frame_BNK * self.window_K)
        return copies.magnitude(spectrum_BNF).float()

    def _decibels(self, mel_BNM: torch.Tensor) -> torch.Tensor:
        """Return mel bands in dB, those below the loudest of their clip less 80 dB raised to that."""
        decibel_BNM = mel_BNM.clamp(min=_MIN_POWER).log10_().mul_(10)
        return decibel_BNM.maximum(decibel_BNM.amax((1, 2), keepdim=True) - _TOP_DB)


class LogMelKernel(_Spectra):
    """Computes `log_mel`."""

    def __init__(self, config: LogMel) -> None:
        # Bands 80 dB below the loudest one count: a transform in float32 would blur them by 0.001 dB.
        super().__init__(config, torch.float64)

    def _frame_values(
        self, waveform_BT: torch.Tensor, lengths_B: torch.Tensor | None, spectrum_BNF: torch.Tensor | None = None
    ) -> torch.Tensor:
        return torch.cat(self._frames(waveform_BT, spectrum_BNF)[2], -1)

    def _finish(self, value_BNV: torch.Tensor, counts_B: torch.Tensor) -> torch.Tensor:
        own_BN1 = _first(counts_B, value_BNV.shape[1])[..., None].float()
        return self._decibels(value_BNV * own_BN1) * own_BN1

    def _cut(self, features_BNM: np.ndarray, counts: list[int]) -> list[np.ndarray]:
        return [row_NM[:count] for row_NM, count in zip(features_BNM, counts, strict=True)]


class SummaryKernel(_Spectra):
    """Computes `summary`."""

    def __init__(self, config: Summary) -> None:
        super().__init__(config, torch.float32)
        self.register_buffer("dct", torch.tensor(dct_bank(config.n_mels, config.n_mfcc)))
        self.register_buffer("chroma", torch.tensor(chroma_banks(config)))

    def _shared_spectrum(self, clip_1T: torch.Tensor) -> torch.Tensor | None:
        same = (self.config.n_fft, self.config.hop_length) == (copies.N_FFT, copies.HOP_LENGTH)
        return copies.stft(clip_1T) if same else None

    def _frame_values(
        self, waveform_BT: torch.Tensor, lengths_B: torch.Tensor | None, spectrum_BNF: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Compute what each frame yields by itself [B, N, V], mel bands last.

        Args:
            waveform_BT: Waveforms, zero after their own samples.
            lengths_B: Samples of each; None where nothing is padded.
            spectrum_BNF: The waveforms' STFT if it is there already.
        """
        n_fft, hop_length = self.config.n_fft, self.config.hop_length
        padded_BP, magnitude_BNF, mel = self._frames(waveform_BT, spectrum_BNF)
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
        rms_BN = torch.linalg.vector_norm(padded_BP.unfold(-1, n_fft, hop_length), dim=-1) / n_fft**0.5
        return torch.cat([crossings_BN[..., None], chroma_BNC, rms_BN[..., None], *mel], -1)

    def _finish(self, value_BNV: torch.Tensor, counts_B: torch.Tensor) -> torch.Tensor:
        """Average the values of frames, of which each waveform has its own count."""
        own_BN1 = _first(counts_B, value_BNV.shape[1])[..., None].float()
        value_BNV = value_BNV * own_BN1
        decibel_BNM = self._decibels(value_BNV[..., -self.config.n_mels :])
        # The cosine transform is linear: that of the mean is the mean of those of the frames.
        mean_BV, decibel_BM = ((own_BN1.mT @ x)[:, 0] / counts_B[:, None] for x in (value_BNV, decibel_BNM))
        return torch.cat([mean_BV[:, : 1 + N_CHROMA], decibel_BM @ self.dct, mean_BV[:, 1 + N_CHROMA :]], -1)

    def _cut(self, features_BV: np.ndarray, counts: list[int]) -> list[np.ndarray]:
        return list(features_BV)

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
    """Return the index in `TUNINGS` of a clip's deviation from A = 440 Hz, as `librosa.estimate_tuning` finds it.

    It is the most frequent deviation of spectral peaks from the nearest semitone. Peaks lie between 150 and 4000 Hz,
    reach a tenth of their frame's maximum, and are interpolated by a parabola; the louder half of them counts.
    """
    low, high = max(1, math.ceil(150 / bin_hz)), min(magnitude_NF.shape[1] - 1, math.ceil(4000 / bin_hz))
    loud_NF = magnitude_NF.where(magnitude_NF > 0.1 * magnitude_NF.amax(1, keepdim=True), 0)
    before, here, after = (slice(low + step, high + step) for step in (-1, 0, 1))
    peak_NF = (loud_NF[:, here] > loud_NF[:, before]) & (loud_NF[:, here] >= loud_NF[:, after])
    if not peak_NF.any():
        return len(TUNINGS) // 2
    left_P, middle_P, right_P = (magnitude_NF[:, part][peak_NF] for part in (before, here, after))
    curve_P, slope_P = right_P + left_P - 2 * middle_P, (right_P - left_P) / 2
    shift_P = torch.where(slope_P.abs() >= curve_P.abs(), 0, -slope_P / curve_P)
    height_P = middle_P + slope_P * shift_P / 2
    pitch_P = (peak_NF.nonzero()[:, 1] + low + shift_P.double()) * bin_hz
    pitch_P = pitch_P[height_P >= height_P.quantile(0.5)]
    deviation_P = 12 * (pitch_P / 440).log2()
    deviation_P -= (deviation_P + 0.5).floor()
    edges = torch.from_numpy(TUNINGS).to(deviation_P.device)
    return int(torch.bucketize(deviation_P, edges, right=True).bincount().argmax()) - 1
