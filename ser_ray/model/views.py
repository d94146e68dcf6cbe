"""Copies of log-mel clips that a trained network's answer is averaged over: slower, faster, lower and higher ones.

On frames of mel bands in dB time stretch and pitch shift come close to what they are on sound, for a hundredth of the
price.

Shapes: B clips, T frames, M mel bands, V views, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

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
        centers_M = band_centers(features)
        for view, (_, semitones) in enumerate(views):
            upper_1M, part_1M = find_bands(torch.tensor([2 ** (semitones / 12)]), centers_M)
            self.register_buffer(f"upper_{view}", upper_1M[0])
            self.register_buffer(f"part_{view}", part_1M[0])

    def forward(self, x_BTM: Tensor, lengths_B: Tensor) -> Tensor:
        """Return `logits_BC`."""
        logits_VBC = []
        for view, (speed, semitones) in enumerate(self.views):
            view_BTM, view_lengths_B = stretch(x_BTM, lengths_B, speed) if speed != 1 else (x_BTM, lengths_B)
            if semitones:
                upper_M = getattr(self, f"upper_{view}")
                lower_BTM, upper_BTM = (view_BTM.index_select(2, band_M) for band_M in (upper_M - 1, upper_M))
                view_BTM = lower_BTM.lerp(upper_BTM, getattr(self, f"part_{view}"))
            logits_VBC.append(self.network(view_BTM, view_lengths_B))
        return torch.stack(logits_VBC).mean(0)


def stretch(x_BTM: Tensor, lengths_B: Tensor, speed: float) -> tuple[Tensor, Tensor]:
    """Play clips at another speed: linear between frames. Returns them with their new numbers of frames.

    How many frames there are with padding hangs on the shape alone, so that it holds in an exported graph, too.
    """
    lengths_B = ((lengths_B - 1) / speed).long() + 1
    ratio, last = Fraction(speed).limit_denominator(1000), x_BTM.shape[1] - 1
    place_T = torch.arange(last * ratio.denominator // ratio.numerator + 1, device=x_BTM.device) * speed
    here_T = place_T.long().clamp(max=last)
    next_T = (here_T + 1).clamp(max=last)
    return x_BTM[:, here_T].lerp(x_BTM[:, next_T], (place_T - here_T)[:, None]), lengths_B


def shift_pitch(x_BTM: Tensor, ratio_B: Tensor, centers_M: Tensor) -> Tensor:
    """Give each band what stood `ratio` times lower, interpolated between bands, whose centres are given in Hz."""
    upper_BM, part_BM = find_bands(ratio_B, centers_M)
    shape = x_BTM.shape
    lower_BTM, upper_BTM = (x_BTM.gather(2, band[:, None].expand(shape)) for band in (upper_BM - 1, upper_BM))
    return lower_BTM.lerp_(upper_BTM, part_BM[:, None])


def find_bands(ratio_B: Tensor, centers_M: Tensor) -> tuple[Tensor, Tensor]:
    """Return above which band each looks, and how near to it from the one below, for `shift_pitch`; both `[B, M]`."""
    wanted_BM = centers_M / ratio_B[:, None]
    upper_BM = torch.searchsorted(centers_M, wanted_BM).clamp(1, len(centers_M) - 1)
    low_BM, high_BM = centers_M[upper_BM - 1], centers_M[upper_BM]
    return upper_BM, ((wanted_BM - low_BM) / (high_BM - low_BM)).clamp_(0, 1)


def band_centers(features: LogMel) -> Tensor:
    """Return the centre of each mel band, Hz."""
    return torch.tensor(mel_frequencies(features.n_mels, features.sample_rate / 2), dtype=torch.float32)
