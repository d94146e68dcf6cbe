"""`summary`: the 162 numbers of the widely copied notebook, means over the frames of a clip (docs/features.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from ser_ray.base.errors import UserError
from ser_ray.base.settings import between, check_settings
from ser_ray.features.banks import N_CHROMA


@dataclass(frozen=True)
class Summary:
    """Settings of the averaged numbers; the defaults are those of the notebook.

    Attributes:
        sample_rate: Of the analysed waveform, Hz.
        offset_s: Start of the window within the clip, seconds.
        duration_s: Length of the window, seconds; None for the rest of the clip.
        n_fft: Length of a frame and of its Fourier transform, samples.
        hop_length: Distance from frame to frame, samples.
        n_mels: Mel bands, 0 Hz to half the sample rate.
        n_mfcc: Mel-frequency cepstral coefficients.
        chroma_tuning: Deviation of the pitch classes from A = 440 Hz, semitones; None to estimate it for each clip, as
            librosa does unless told otherwise.
    """

    name: ClassVar[str] = "summary"
    version: ClassVar[int] = 1
    cpu_only: ClassVar[bool] = True
    augment: ClassVar[tuple[str, ...]] = ("none", "noise", "stretch+pitch")

    sample_rate: int = between(22_050, 1_000, 192_000)
    offset_s: float = between(0.6, 0, 1e6)
    duration_s: float | None = between(2.5, 0.1, 1e6, optional=True)
    n_fft: int = between(2048, 32, 65_536)
    hop_length: int = between(512, 1)
    n_mels: int = between(128, 1)
    n_mfcc: int = between(20, 1)
    chroma_tuning: float | None = between(0.0, -0.5, 0.5, optional=True)

    def __post_init__(self) -> None:
        check_frames(self)
        if self.n_mfcc > self.n_mels:
            raise UserError(f"--n-mfcc must be 1 to {self.n_mels}, got {self.n_mfcc}")

    def arrow_type(self) -> pa.DataType:
        """Return a list of 162 float32 numbers, or as many as the settings make."""
        return pa.list_(pa.float32(), 2 + N_CHROMA + self.n_mfcc + self.n_mels)

    def kernel(self) -> Any:
        """Make what computes them."""
        from ser_ray.features.kernels.spectra import SummaryKernel

        return SummaryKernel(self)


def check_frames(features: Any) -> None:
    """Check the settings of features that are made from frames of a spectrum.

    Raises:
        UserError: A value makes no sense; the message names it.
    """
    check_settings(features)
    for name, high in (("hop_length", features.n_fft), ("n_mels", features.n_fft // 2)):
        if getattr(features, name) > high:
            raise UserError(f"--{name.replace('_', '-')} must be 1 to {high}, got {getattr(features, name)}")
    if features.n_fft % 2:
        raise UserError(f"--n-fft must be even, got {features.n_fft}")
