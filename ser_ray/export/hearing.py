"""From a waveform to features, in operations that a graph can hold at any batch and length.

Shapes: B waveforms, T samples, P samples with padding, K samples of a frame, N frames, F frequency bins.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional

from ser_ray.base.errors import UserError
from ser_ray.features.encoder import Encoder
from ser_ray.features.encoder_files import HOP
from ser_ray.features.kernels.spectra import LogMelKernel, SummaryKernel
from ser_ray.features.log_mel import LogMel
from ser_ray.features.spec import Features
from ser_ray.features.summary import Summary
from ser_ray.speech.audio import MIN_REMAINING_S

# The resampler's filter: zero crossings on each side, cutoff as a part of the lower Nyquist frequency, and the Kaiser
# window's beta. Of those tried these come nearest to soxr's high quality, whose transition band has the cutoff in its
# middle: 64 to 80 dB below the sound.
SINC_WIDTH, SINC_CUTOFF, SINC_BETA = 64, (0.913 + 1) / 2, 6.0


class Ears(nn.Module):
    """Takes the window that the model hears, at its rate, and makes features of it.

    Args:
        features: What is made.
        input_rate: Sample rate of the waveforms, Hz.
        window: Features whose window is heard, where several kinds hear the same one.

    Raises:
        UserError: Such features have no graph; the message says why.
    """

    def __init__(self, features: Features, input_rate: int, window: Features | None = None) -> None:
        super().__init__()
        self.window = _Window(window or features, input_rate)
        self.resample = nn.Identity() if input_rate == features.sample_rate else _Resample(input_rate, features)
        self.features = build_features(features)

    def forward(self, waveform_BT: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return features of waveforms, padded where their lengths vary, and each one's number of frames.

        Args:
            waveform_BT: float32 samples, full scale 1.
            lengths_B: Samples of each without padding, int64.
        """
        waveform_BT, lengths_B = self.window(waveform_BT, lengths_B)
        waveform_BT = waveform_BT.where(torch.arange(waveform_BT.shape[1]) < lengths_B[:, None], 0)
        if isinstance(self.resample, _Resample):
            waveform_BT, lengths_B = self.resample(waveform_BT, lengths_B)
        return self.features(waveform_BT, lengths_B)


class _Window(nn.Module):
    """The first window of a recording, as `model.windows` cuts it: it slides back where too little would be left."""

    def __init__(self, features: Features, rate: int) -> None:
        super().__init__()
        self.most = int(features.duration_s * rate) if features.duration_s else None
        self.offset, self.least = int(features.offset_s * rate), math.ceil(MIN_REMAINING_S * rate)

    def forward(self, waveform_BT: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        count = torch.sym_min(waveform_BT.shape[1], self.most) if self.most else waveform_BT.shape[1]
        if self.offset:
            start_B = (lengths_B - self.least).clamp(0, self.offset)
            place_BT = (start_B[:, None] + torch.arange(count)).clamp(max=waveform_BT.shape[1] - 1)
            waveform_BT, lengths_B = waveform_BT.gather(1, place_BT), lengths_B - start_B
        elif self.most:
            waveform_BT = waveform_BT[:, :count]
        return waveform_BT, lengths_B.clamp(max=self.most) if self.most else lengths_B


class _Resample(nn.Module):
    """torchaudio's windowed sinc, as one strided convolution."""

    def __init__(self, rate_in: int, features: Features) -> None:
        super().__init__()
        filters = torchaudio.transforms.Resample(
            rate_in,
            features.sample_rate,
            "sinc_interp_kaiser",
            lowpass_filter_width=SINC_WIDTH,
            rolloff=SINC_CUTOFF,
            beta=SINC_BETA,
        )
        common = math.gcd(rate_in, features.sample_rate)
        self.period_in, self.period_out = rate_in // common, features.sample_rate // common
        self.width = filters.width
        self.register_buffer("filters_P1K", filters.kernel)

    def forward(self, waveform_BT: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        lengths_B = (lengths_B * self.period_out + self.period_in - 1) // self.period_in
        padded_BP = functional.pad(waveform_BT, (self.width, self.width + self.period_in))
        periods_BPN = functional.conv1d(padded_BP[:, None], self.filters_P1K, stride=self.period_in)
        resampled_BT = periods_BPN.mT.flatten(1)
        return resampled_BT.where(torch.arange(resampled_BT.shape[1]) < lengths_B[:, None], 0), lengths_B


class _Waves:
    """A Fourier transform as one strided convolution with windowed cosines and sines.

    In onnxruntime that is three times as fast as its transform, which has no fast path (docs/export.md).
    """

    def draw_waves(self) -> None:
        n_fft = self.config.n_fft
        turn_FK = np.outer(np.arange(n_fft // 2 + 1), np.arange(n_fft)) % n_fft * (2 * np.pi / n_fft)
        waves_FK = np.concatenate([np.cos(turn_FK), np.sin(turn_FK)]) * self.window_K.double().numpy()
        self.register_buffer("waves_F1K", torch.tensor(waves_FK, dtype=torch.float32)[:, None])

    def _magnitude(self, padded_BP: Tensor, spectrum_BNF: Tensor | None) -> Tensor:
        waves_BFN = functional.conv1d(padded_BP[:, None], self.waves_F1K, stride=self.config.hop_length)
        return waves_BFN.square().unflatten(1, (2, -1)).sum(1).sqrt().mT


class _LogMelGraph(_Waves, LogMelKernel):
    def __init__(self, config: LogMel) -> None:
        super().__init__(config)
        self.draw_waves()


class _SummaryGraph(_Waves, SummaryKernel):
    def __init__(self, config: Summary) -> None:
        super().__init__(config)
        self.draw_waves()


class _EncoderGraph(nn.Module):
    """A pretrained encoder, which hears whole frames of one clip at a time; rows are rounded as stores hold them."""

    def __init__(self, config: Encoder) -> None:
        super().__init__()
        self.kernel = config.kernel()
        self.network, self.first = self.kernel.network, self.kernel.found.first_samples

    def forward(self, waveform_1T: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        count = self.first + (waveform_1T.shape[1] - self.first) // HOP * HOP
        row_1SD = self.kernel.pool(waveform_1T[:, :count])
        half_1SD = row_1SD.half().float()
        return torch.where(half_1SD.isfinite().all(), half_1SD, row_1SD), lengths_B


def build_features(features: Features) -> nn.Module:
    """Return what makes features of waveforms and their lengths in a graph.

    Raises:
        UserError: Such features have no graph; the message says why.
    """
    if isinstance(features, LogMel):
        return _LogMelGraph(features)
    if isinstance(features, Encoder):
        return _EncoderGraph(features)
    if isinstance(features, Summary):
        if features.chroma_tuning is None:
            raise UserError(
                "a model whose pitch classes are tuned to each clip (--chroma-tuning None) cannot be exported: the "
                "estimate hangs on how many peaks a clip has; train with --chroma-tuning 0"
            )
        return _SummaryGraph(features)
    raise UserError(f"features of the kind {features.name} cannot be exported; choose log_mel, summary or encoder")
