"""Changed windows of log-mel clips, in batched torch on whatever device they are.

Everything acts on frames of mel bands in dB. There noise at a drawn signal-to-noise ratio, time stretch, pitch shift,
shift and gain come close to what they are on sound, for a hundredth of the price. Training draws them afresh in every
epoch.

Strengths are drawn by hashing the seed, the epoch and the clip's id, so that a clip is changed alike in whichever batch
and on whichever worker it is; the noise itself and the pairs of mixup come from torch's global generator.

Shapes: B clips, T frames of a window, M mel bands, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ser_ray.features.log_mel import LogMel
from ser_ray.model.examples import Examples
from ser_ray.model.views import band_centers, shift_pitch
from ser_ray.training.settings import FrameAugmentConfig

SNR_DB = (5.0, 35.0)
NOISE_SLOPE = 1.0  # exponent of frequency in the noise's power: from blue (+1) to pink (-1)
NUM_MASKS = 2


class FrameAugment:
    """Draws windows of log-mel clips and changes them.

    Args:
        config: How strongly.
        features: How the frames were made.
        fill_M: What stands in blanked bands and frames, dB: the mean of the training frames.
        seed: Of the training.
    """

    def __init__(self, config: FrameAugmentConfig, features: LogMel, fill_M: Tensor, seed: int) -> None:
        self.config, self.fill_M, self.seed = config, fill_M, seed
        frames_per_s = features.sample_rate / features.hop_length
        self.num_frames = max(1, round(config.window_s * frames_per_s))
        self.mask_frames = config.mask_s * frames_per_s
        self.centers_M = band_centers(features).to(fill_M.device)

    def __call__(self, examples: Examples, index_B: Tensor, epoch: Tensor | int) -> Tensor:
        """Draw a changed window of each of some clips.

        Args:
            examples: Log-mel clips, in any floating type.
            index_B: Which of them.
            epoch: Each gives other draws.

        Returns:
            `[B, T, M]` float32, dB.
        """
        config, key_B = self.config, examples.keys[index_B]
        drawn_BK = uniform(key_B[:, None], self.seed, epoch, torch.arange(16, device=key_B.device))
        sign_BK = 2 * drawn_BK - 1
        speed_B = (1 + config.stretch) ** sign_BK[:, 0]
        bounds = examples.offsets[index_B], examples.offsets[index_B + 1]
        x_BTM = self._window(examples.values, *bounds, drawn_BK[:, 1], speed_B)
        if config.pitch:
            x_BTM = shift_pitch(x_BTM, 2 ** (config.pitch / 12 * sign_BK[:, 2]), self.centers_M)
        if config.noise:
            snr_B = SNR_DB[0] + (SNR_DB[1] - SNR_DB[0]) * drawn_BK[:, 3]
            snr_B = snr_B.where(drawn_BK[:, 4] < config.noise, torch.inf)
            x_BTM = self._add_noise(x_BTM, snr_B, NOISE_SLOPE * sign_BK[:, 5])
        x_BTM = x_BTM + config.gain * sign_BK[:, 6, None, None]
        for axis, longest, first in ((1, self.mask_frames, 8), (2, config.mask_bands, 12)):
            for k in range(first, first + 2 * NUM_MASKS, 2) if longest else ():
                x_BTM = self._blank(x_BTM, axis, longest * drawn_BK[:, k], drawn_BK[:, k + 1])
        return x_BTM

    def _window(self, values: Tensor, begin_B: Tensor, end_B: Tensor, start_B: Tensor, speed_B: Tensor) -> Tensor:
        """Read frames from a drawn start on at a drawn speed; after its last frame a clip begins again.

        Between frames it is linear, as a phase vocoder's magnitudes are.
        """
        length_B1 = (end_B - begin_B)[:, None]
        step_T = torch.arange(self.num_frames, device=values.device)
        place_BT = (start_B[:, None] * length_B1 + speed_B[:, None] * step_T) % length_B1
        here_BT = place_BT.long().minimum(length_B1 - 1)
        next_BT = (here_BT + 1) % length_B1
        here_BTM, next_BTM = (values[begin_B[:, None] + frame_BT].float() for frame_BT in (here_BT, next_BT))
        return here_BTM.lerp_(next_BTM, (place_BT - here_BT)[..., None])

    def _add_noise(self, x_BTM: Tensor, snr_B: Tensor, slope_B: Tensor) -> Tensor:
        """Add the power of coloured noise: a smooth spectrum times the exponential scatter of a periodogram."""
        power_BTM = 10 ** (x_BTM / 10)
        spectrum_BM = (self.centers_M / 1000).clamp(min=0.05) ** slope_B[:, None]
        level_B = power_BTM.mean((1, 2)) * 10 ** (-snr_B / 10) / spectrum_BM.mean(1)
        noise_BTM = torch.empty_like(power_BTM).exponential_()
        noise_BTM *= (spectrum_BM * level_B[:, None])[:, None]
        return (power_BTM + noise_BTM).log10_().mul_(10)

    def _blank(self, x_BTM: Tensor, axis: int, length_B: Tensor, start_B: Tensor) -> Tensor:
        size = x_BTM.shape[axis]
        place = torch.arange(size, device=x_BTM.device)
        first_B1 = (start_B * (size - length_B))[:, None]
        blank = (place >= first_B1) & (place < first_B1 + length_B[:, None])
        return x_BTM.where(~blank.unsqueeze(3 - axis), self.fill_M)


def mix(features: Tensor, target_BC: Tensor, weight_B: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mix each clip, its label and its weight with those of its neighbour in the batch.

    Zhang et al., mixup: Beyond empirical risk minimization, ICLR 2018. Each clip stays the larger part of its mixture.

    Args:
        features: `[B, ...]`.
        target_BC: How much of each class a clip is.
        weight_B: How much each clip counts in the loss.
        alpha: Parameter of the Beta distribution that parts are drawn from.
    """
    concentration_B = torch.full_like(weight_B, alpha)
    part_B = torch.distributions.Beta(concentration_B, concentration_B, validate_args=False).sample()
    part_B = part_B.minimum(1 - part_B)
    return (
        features.lerp(features.roll(1, 0), part_B.view(-1, *[1] * (features.ndim - 1)).to(features.dtype)),
        target_BC.lerp(target_BC.roll(1, 0), part_B[:, None]),
        weight_B.lerp(weight_B.roll(1, 0), part_B),
    )


def uniform(key: Tensor, *counters: Tensor | int) -> Tensor:
    """Return a number in [0, 1) for each int64 key and counters that broadcast with it.

    Each counter is hashed in by the finalizer of SplitMix64: Steele, Lea and Flood, Fast splittable pseudorandom number
    generators, OOPSLA 2014.
    """
    for counter in counters:
        key = key + counter - 0x61C8864680B583EB  # int64 wraps around, as the hash wants it
        key = (key ^ key >> 30 & 0x3FFFFFFFF) * -0x40A7B892E31B1A47
        key = (key ^ key >> 27 & 0x1FFFFFFFFF) * -0x6B2FB644ECCEEE15
        key = key ^ key >> 31 & 0x1FFFFFFFF
    return (key >> 40 & 0xFFFFFF).float() / 2**24
