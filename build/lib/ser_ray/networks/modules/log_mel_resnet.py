"""A residual network on log-mel frames.

Shape suffixes: B clips, T frames, F features or mel bands, C classes or channels, H a height of 1, D = C · F.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from ser_ray.networks.modules.layers import Standardize, own_frames

if TYPE_CHECKING:
    from ser_ray.networks.log_mel_resnet import LogMelResNetSpec

STRIDES = ((2, 2), (2, 2), (1, 2))  # of the three stages, in time and frequency
ATTENTION = 64  # hidden units of the attention
_EPSILON = 1e-5


class LogMelResNet(nn.Module):
    """Residual network on log-mel spectrograms with attentive statistics pooling over time.

    A convolution and three stages of residual blocks (He et al., Deep residual learning, 2016); then mean and standard
    deviation over time, weighted by attention (Okabe et al., Attentive statistics pooling, 2018). Bands are not
    averaged, so that the pooled statistics know their pitch. A second input channel lacks the clip's mean over time,
    and so most of what the voice, the microphone and the room do to all of it alike: a normalization by clip.

    Clips of any length share a batch: all that lies beyond a clip's own frames is kept at zero, as beyond its edges.
    """

    def __init__(self, num_bands: int, num_classes: int, config: LogMelResNetSpec) -> None:
        super().__init__()
        width, depth = config.width, config.depth
        self.dropout, self.clip_mean = config.dropout, config.clip_mean
        self.standardize = Standardize(num_bands)
        self.stem = nn.Conv2d(2 if config.clip_mean == "both" else 1, width, 5, stride=2, padding=2, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.blocks = nn.ModuleList()
        bands, channels = -(-num_bands // 2), width
        for stage, stride in enumerate(STRIDES):
            for block in range(depth):
                self.blocks.append(ResidualBlock(channels, width << stage, stride if block == 0 else (1, 1)))
                channels = width << stage
            bands = -(-bands // stride[1])
        size = channels * bands
        self.attention = None
        if config.pooling == "attention":
            self.attention = nn.Sequential(nn.Linear(size, ATTENTION), nn.Tanh(), nn.Linear(ATTENTION, 1))
        self.pooled_norm = nn.BatchNorm1d(2 * size)
        self.classify = nn.Linear(2 * size, num_classes)
        self.to(memory_format=torch.channels_last)

    def forward(self, features_BTF: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Return `logits_BC`; without `lengths_B` all clips have all T frames."""
        x_BCTF = self.standardize(features_BTF)[:, None]
        own = own_frames(lengths_B, x_BCTF)
        if own is not None:
            x_BCTF = x_BCTF * own
        if self.clip_mean != "kept":
            total_BCTF = x_BCTF.sum(2, keepdim=True)
            mean_BCTF = total_BCTF / (x_BCTF.shape[2] if own is None else own.sum(2, keepdim=True))
            varying_BCTF = x_BCTF - (mean_BCTF if own is None else mean_BCTF * own)
            x_BCTF = varying_BCTF if self.clip_mean == "removed" else torch.cat([x_BCTF, varying_BCTF], 1)
        x_BCTF = x_BCTF.contiguous(memory_format=torch.channels_last)
        x_BCTF = self.norm(self.stem(x_BCTF)).relu()
        lengths_B = None if lengths_B is None else (lengths_B + 1) // 2
        own = own_frames(lengths_B, x_BCTF)
        x_BCTF = x_BCTF if own is None else x_BCTF * own
        for block in self.blocks:
            if lengths_B is not None:
                lengths_B = -(-lengths_B // block.stride[0])
            x_BCTF = block(x_BCTF, lengths_B)
        x_BTD = x_BCTF.permute(0, 2, 1, 3).flatten(2)
        score_BT1 = self.attention(x_BTD) if self.attention else torch.zeros_like(x_BTD[..., :1])
        own = own_frames(lengths_B, x_BCTF)
        if own is not None:
            score_BT1 = score_BT1.masked_fill(own[:, 0] == 0, -torch.inf)
        weight_BT1 = score_BT1.softmax(1)
        mean_BD = (weight_BT1 * x_BTD).sum(1)
        variance_BD = (weight_BT1 * (x_BTD - mean_BD[:, None]).square()).sum(1)
        pooled_B2D = self.pooled_norm(torch.cat([mean_BD, (variance_BD + _EPSILON).sqrt()], 1))
        return self.classify(functional.dropout(pooled_B2D, self.dropout, self.training))


class ResidualBlock(nn.Module):
    """Two convolutions with batch normalization, and a shortcut."""

    def __init__(self, before: int, after: int, stride: tuple[int, int]) -> None:
        super().__init__()
        self.stride = stride
        self.convolve1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.convolve2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Identity()
        if stride != (1, 1) or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after))

    def forward(self, x_BCTF: Tensor, lengths_B: Tensor | None) -> Tensor:
        """Apply the block; `lengths_B` are the clips' frames after its stride."""
        y_BCTF = self.norm1(self.convolve1(x_BCTF)).relu()
        own = own_frames(lengths_B, y_BCTF)
        y_BCTF = self.norm2(self.convolve2(y_BCTF if own is None else y_BCTF * own))
        # Strided by slicing: oneDNN's strided 1 x 1 convolution with few channels corrupts memory in its backward pass.
        kept_BCTF = x_BCTF[:, :, :: self.stride[0], :: self.stride[1]]
        y_BCTF = (y_BCTF + self.shortcut(kept_BCTF)).relu()
        return y_BCTF if own is None else y_BCTF * own
