"""Waveforms as 16-bit samples, and changed copies of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ser_ray.features.augmentation import parse_augmentation
from ser_ray.features.kernels import copies


class WaveformKernel:
    """Gives the samples of `waveform`."""

    device = "cpu"

    def to(self, device: str) -> WaveformKernel:
        """Move to `cpu` or `cuda`."""
        torch.zeros(1, device=device)  # raises where torch cannot use it
        self.device = device
        return self

    @torch.inference_mode()
    def rows(
        self, waveform_T: np.ndarray, utterance_id: str, augmentations: Sequence[str], seed: int
    ) -> list[np.ndarray]:
        """Return int16 samples `[T]`, one array per augmentation (`features.spec.Kernel`)."""
        clip_1T, rows = torch.from_numpy(waveform_T)[None].to(self.device), []
        for name in augmentations:
            steps, waveform_1T = parse_augmentation(name), clip_1T
            if steps:
                waveform_1T = copies.augment(clip_1T, steps, copies.make_generator(seed, utterance_id, name))
            rows.append((waveform_1T[0].clamp(-1, 1) * 32767).round_().short().cpu().numpy())
        return rows
