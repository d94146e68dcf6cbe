"""Clips of nearly one length through an encoder together: padded, and yet each as it is alone.

Attention, means and deviations leave padding out by a mask. Convolutions pad with zeros themselves, so that zeros after
a clip are what it meets alone. What is left is the normalization over time of wav2vec 2.0 base and its kin, for which
there is one here that counts a clip's own frames alone.

Shapes: B clips, T samples, N frames, C channels, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

PADDED = 1 / 8  # of a batch may be padding, at most


def own_mask(counts_B: Tensor, frames: int) -> Tensor:
    """Return which of some frames are a clip's own, `[B, frames]`."""
    return torch.arange(frames, device=counts_B.device) < counts_B[:, None]


def mean_and_deviation(x_BNW: Tensor, own_BN: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation over time, each `[B, W]`.

    Args:
        x_BNW: Frames.
        own_BN: Which of them count; None for all.
    """
    if own_BN is None:
        return x_BNW.mean(1), x_BNW.std(1, correction=0)
    own_BN1 = own_BN[..., None]
    count_B1 = own_BN1.sum(1)
    mean_BW = torch.where(own_BN1, x_BNW, 0.0).sum(1) / count_B1
    apart_BNW = torch.where(own_BN1, x_BNW - mean_BW[:, None], 0.0)
    return mean_BW, (apart_BNW.square().sum(1) / count_B1).sqrt()


class OwnGroupNorm(nn.GroupNorm):
    """Normalization of each channel over time, of which padding is no part.

    Attributes:
        frames_B: Frames of each clip; None where none is padded.
    """

    frames_B: Tensor | None = None

    @classmethod
    def like(cls, other: nn.GroupNorm) -> OwnGroupNorm:
        """Return one with the weights of another, whose groups are channels."""
        norm = cls(other.num_groups, other.num_channels, other.eps)
        norm.load_state_dict(other.state_dict())
        return norm

    def forward(self, x_BCN: Tensor) -> Tensor:
        """Return the normalized channels, `[B, C, N]`."""
        if self.frames_B is None:
            return super().forward(x_BCN)
        x_BNC = x_BCN.float().mT
        mean_BC, std_BC = mean_and_deviation(x_BNC, own_mask(self.frames_B, x_BNC.shape[1]))
        normed_BNC = (x_BNC - mean_BC[:, None]) / (std_BC.square() + self.eps).sqrt()[:, None]
        return (normed_BNC * self.weight + self.bias).mT


def count_alike(lengths: Sequence[int], most: int, padded: float) -> int:
    """Return how many of some clips make a batch, one at least.

    Args:
        lengths: Samples of each, the longest first.
        most: Samples of a batch, padding included.
        padded: How much of it may be padding; with 0 all its clips are of one length.
    """
    own = 0
    for count, length in enumerate(lengths):
        own, whole = own + length, (count + 1) * lengths[0]
        if count and (whole > most or own < (1 - padded) * whole):
            return count
    return len(lengths)
