"""`waveform`: the samples themselves, for features that are computed on the training device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from ser_ray.base.settings import between, check_settings


@dataclass(frozen=True)
class Waveform:
    """Settings of stored samples: up to 30 s at 16 kHz.

    Attributes:
        sample_rate: Of the waveform, Hz.
        offset_s: Start of the window within the clip, seconds.
        duration_s: Length of the window, seconds; None for the rest of the clip.
    """

    name: ClassVar[str] = "waveform"
    version: ClassVar[int] = 1
    cpu_only: ClassVar[bool] = True
    augment: ClassVar[tuple[str, ...]] = ("none",)

    sample_rate: int = between(16_000, 1_000, 192_000)
    offset_s: float = between(0.0, 0, 1e6)
    duration_s: float | None = between(30.0, 0.1, 1e6, optional=True)

    def __post_init__(self) -> None:
        check_settings(self)

    def arrow_type(self) -> pa.DataType:
        """Return a list of 16-bit samples; full scale is 32,767."""
        return pa.list_(pa.int16())

    def kernel(self) -> Any:
        """Make what computes them."""
        from ser_ray.features.kernels.samples import WaveformKernel

        return WaveformKernel()
