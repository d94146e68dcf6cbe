"""`log_mel`: frames of mel bands in dB, which networks hear as a picture (docs/features.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from ser_ray.base.settings import between
from ser_ray.features.summary import check_frames


@dataclass(frozen=True)
class LogMel:
    """Settings of log-mel frames: up to 30 s at 16 kHz, the rate of speech models; 64 ms frames, 16 ms apart.

    Attributes:
        sample_rate: Of the analysed waveform, Hz.
        offset_s: Start of the window within the clip, seconds.
        duration_s: Length of the window, seconds; None for the rest of the clip.
        n_fft: Length of a frame and of its Fourier transform, samples.
        hop_length: Distance from frame to frame, samples.
        n_mels: Mel bands, 0 Hz to half the sample rate.
    """

    name: ClassVar[str] = "log_mel"
    version: ClassVar[int] = 1
    cpu_only: ClassVar[bool] = True
    augment: ClassVar[tuple[str, ...]] = ("none",)  # frames are changed afresh in every epoch of training

    sample_rate: int = between(16_000, 1_000, 192_000)
    offset_s: float = between(0.0, 0, 1e6)
    duration_s: float | None = between(30.0, 0.1, 1e6, optional=True)
    n_fft: int = between(1024, 32, 65_536)
    hop_length: int = between(256, 1)
    n_mels: int = between(64, 1)

    def __post_init__(self) -> None:
        check_frames(self)

    def arrow_type(self) -> pa.DataType:
        """Return a list of frames, each of `n_mels` float32 numbers, dB."""
        return pa.list_(pa.list_(pa.float32(), self.n_mels))

    def kernel(self) -> Any:
        """Make what computes them."""
        from ser_ray.features.kernels.spectra import LogMelKernel

        return LogMelKernel(self)
