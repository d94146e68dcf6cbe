"""Copies of log-mel clips that a trained network's answer is averaged over: slower, faster, lower and higher ones.

On frames of mel bands in dB time stretch and pitch shift come close to what they are on sound, for a hundredth of the
price.

Shapes: B clips, T frames, M mel bands, V views, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ser_ray.features.banks import mel_frequencies
from ser_ray.features.log_mel import LogMel


class Views(nn.Module):
    """Answers by the mean of what a network says of a clip and of slower, faster, lower and higher copies of it.

    Args:
        network: Takes log-mel clips and their lengths, gives logits.
        features: How the clips were made.
        views: Speed, and pitch in semitones, of each copy.
    """

    def __init__(self, network: nn.Module, features: LogMel, views: Sequence[tuple[float, float]]) -> None:
        super().__init__()
        self.network, self.views = network, views
        self.register_buffer("centers_M", band_centers(features))

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


def band_centers(features: LogMel) -> Tensor:
    """Return the centre of each mel band, Hz."""
    return torch.tensor(mel_frequencies(features.n_mels, features.sample_rate / 2), dtype=torch.float32)
