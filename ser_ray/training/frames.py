"""Changed copies of log-mel spectrograms, in batched torch on whatever device they are.

Everything acts on frames of mel bands in dB. There noise at a drawn signal-to-noise ratio, time stretch, pitch shift,
shift and gain come close to what they are on sound, for a hundredth of the price. Training draws its copies afresh in
every epoch; a trained network's answer is averaged over a few that are always the same.

Strengths are drawn by hashing the seed, the epoch and the clip's id, so that a clip is changed alike in whichever batch
and on whichever worker it is; the noise itself and the pairs of mixup come from torch's global generator.

Shapes: B clips, T frames of a window, M mel bands, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ser_ray.base.errors import UserError
from ser_ray.features.settings import FeatureConfig, mel_frequencies
from ser_ray.model.examples import Examples

SNR_DB = (5.0, 35.0)
NOISE_SLOPE = 1.0  # exponent of frequency in the noise's power: from blue (+1) to pink (-1)
NUM_MASKS = 2
# Speed, and pitch in semitones, of the copies that a trained network's answer is averaged over.
VIEWS = ((1.0, 0.0), (0.85, 0.0), (1 / 0.85, 0.0), (1.0, -1.5), (1.0, 1.5))


@dataclass(frozen=True)
class FrameAugmentConfig:
    """How strongly log-mel training clips are changed, afresh in every epoch; 0 switches a change off.

    Attributes:
        window_s: What a training step hears of a clip, seconds, from a drawn start; shorter clips are repeated.
        stretch: Largest change of speed: 0.2 draws from 1 / 1.2 to 1.2.
        pitch: Largest pitch shift up or down, semitones.
        noise: Probability of noise, 5 to 35 dB below the clip's mean power.
        gain: Largest gain up or down, dB.
        mask_s: Longest of two blanked stretches of time (SpecAugment), seconds.
        mask_bands: Widest of two blanked ranges of mel bands (SpecAugment).
        mixup: Parameter of the Beta distribution by which pairs of clips and their labels are mixed.
    """

    window_s: float = 3.0
    stretch: float = 0.2
    pitch: float = 2.0
    noise: float = 0.5
    gain: float = 6.0
    mask_s: float = 0.0
    mask_bands: int = 0
    mixup: float = 0.2

    def __post_init__(self) -> None:
        for name, low, high in (
            *(("window_s", 0.1, 600), ("stretch", 0, 1), ("pitch", 0, 12), ("noise", 0, 1), ("gain", 0, 60)),
            *(("mask_s", 0, self.window_s / 2), ("mask_bands", 0, 1000), ("mixup", 0, 10)),
        ):
            if not low <= getattr(self, name) <= high:
                raise UserError(f"--{name.replace('_', '-')} must be {low:g} to {high:g}, got {getattr(self, name)}")


class FrameAugment:
    """Draws windows of log-mel clips and changes them.

    Args:
        config: How strongly.
        features: How the frames were made.
        fill_M: What stands in blanked bands and frames, dB: the mean of the training frames.
        seed: Of the training.
    """

    def __init__(self, config: FrameAugmentConfig, features: FeatureConfig, fill_M: Tensor, seed: int) -> None:
        self.config, self.fill_M, self.seed = config, fill_M, seed
        frames_per_s = features.sample_rate / features.hop_length
        self.num_frames = max(1, round(config.window_s * frames_per_s))
        self.mask_frames = config.mask_s * frames_per_s
        self.centers_M = _centers(features).to(fill_M.device)

    def __call__(self, examples: Examples, index_B: Tensor, epoch: int) -> Tensor:
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


class Views(nn.Module):
    """Answers by the mean of what a network says of a clip and of slower, faster, lower and higher copies of it.

    Args:
        network: Takes log-mel clips and their lengths, gives logits.
        features: How the clips were made.
        views: Speed, and pitch in semitones, of each copy.
    """

    def __init__(
        self, network: nn.Module, features: FeatureConfig, views: Sequence[tuple[float, float]] = VIEWS
    ) -> None:
        super().__init__()
        self.network, self.views = network, views
        self.register_buffer("centers_M", _centers(features))

    def forward(self, x_BTM: Tensor, lengths_B: Tensor) -> Tensor:
        """Return `logits_BC`."""
        logits_VBC = []
        for speed, semitones in self.views:
            view_BTM, view_lengths_B = stretch(x_BTM, lengths_B, speed) if speed != 1 else (x_BTM, lengths_B)
            if semitones:
                ratio_B = x_BTM.new_full((len(x_BTM),), 2 ** (semitones / 12))
                view_BTM = shift_pitch(view_BTM, ratio_B, self.centers_M)
            logits_VBC.append(self.network(view_BTM, view_lengths_B))
        return torch.stack(logits_VBC).mean(0)


def stretch(x_BTM: Tensor, lengths_B: Tensor, speed: float) -> tuple[Tensor, Tensor]:
    """Play clips at another speed: linear between frames. Returns them with their new numbers of frames."""
    lengths_B = ((lengths_B - 1) / speed).long() + 1
    place_T = torch.arange(int(lengths_B.max()), device=x_BTM.device) * speed
    here_T = place_T.long()
    next_T = (here_T + 1).clamp(max=x_BTM.shape[1] - 1)
    return x_BTM[:, here_T].lerp(x_BTM[:, next_T], (place_T - here_T)[:, None]), lengths_B


def shift_pitch(x_BTM: Tensor, ratio_B: Tensor, centers_M: Tensor) -> Tensor:
    """Give each band what stood `ratio` times lower, interpolated between bands, whose centres are given in Hz."""
    wanted_BM = centers_M / ratio_B[:, None]
    upper_BM = torch.searchsorted(centers_M, wanted_BM).clamp(1, len(centers_M) - 1)
    low_BM, high_BM = centers_M[upper_BM - 1], centers_M[upper_BM]
    part_BM = ((wanted_BM - low_BM) / (high_BM - low_BM)).clamp_(0, 1)
    shape = x_BTM.shape
    lower_BTM, upper_BTM = (x_BTM.gather(2, band[:, None].expand(shape)) for band in (upper_BM - 1, upper_BM))
    return lower_BTM.lerp_(upper_BTM, part_BM[:, None])


def _centers(features: FeatureConfig) -> Tensor:
    """Return the centre of each mel band, Hz."""
    return torch.tensor(mel_frequencies(features.n_mels, features.sample_rate / 2), dtype=torch.float32)


def mix(x_BTM: Tensor, target_BC: Tensor, weight_B: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mix each clip, its label and its weight with those of its neighbour in the batch.

    Zhang et al., mixup: Beyond empirical risk minimization, ICLR 2018. Each clip stays the larger part of its mixture.
    """
    concentration_B = torch.full_like(weight_B, alpha)
    part_B = torch.distributions.Beta(concentration_B, concentration_B, validate_args=False).sample()
    part_B = part_B.minimum(1 - part_B)
    return (
        x_BTM.lerp(x_BTM.roll(1, 0), part_B[:, None, None]),
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
