"""The notebook recipe's network: convolutions along the axis of the averaged features.

Shape suffixes: B clips, T frames, F features or mel bands, C classes or channels, H a height of 1, D = C · F.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ser_ray.networks.modules.layers import Standardize


class Cnn1d(nn.Module):
    """The notebook recipe's network: convolutions along the axis of the averaged features.

    Four blocks of convolution (kernel 5, "same"), ReLU, max-pooling 5 with stride 2 ("same") and dropout, then two
    dense layers. With 162 features and 8 classes it has 886,504 parameters.
    """

    CHANNELS = (512, 256, 128, 64)
    DROPOUTS = (0.0, 0.1, 0.2, 0.2)

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.standardize = Standardize(num_features)
        # 2-D with a height of 1, since only these run with channels last: half as fast again on a CPU.
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, kernel_size=(1, 5), padding="same")
            for before, after in zip((1, *self.CHANNELS), self.CHANNELS, strict=False)
        ).to(memory_format=torch.channels_last)
        length = num_features
        for _ in self.CHANNELS:
            length = -(-length // 2)
        self.dense = nn.Linear(self.CHANNELS[-1] * length, 32)
        self.classify = nn.Linear(32, num_classes)

    def forward(self, features_BF: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Return `logits_BC`; `lengths_B` is not needed, since averaged features have one length."""
        x = self.standardize(features_BF)[:, None, None].contiguous(memory_format=torch.channels_last)
        for convolve, dropout in zip(self.convolutions, self.DROPOUTS, strict=True):
            x = _max_pool_same(convolve(x)).relu()  # ReLU last: the same numbers from fewer operations
            x = functional.dropout(x, dropout, self.training)  # lengths 162, 81, 41, 21, 11
        x = self.dense(x.flatten(1)).relu()  # [B, 704] to [B, 32]
        return self.classify(functional.dropout(x, 0.3, self.training))


def _max_pool_same(x_BCHF: Tensor, kernel: int = 5, stride: int = 2) -> Tensor:
    """Max-pool the last axis to ceil(length / stride), padding as TensorFlow's "same" does: more on the right."""
    length = x_BCHF.shape[-1]
    padding = max(0, (-(-length // stride) - 1) * stride + kernel - length)
    if padding % 2:
        x_BCHF = functional.pad(x_BCHF, (0, 1), value=-torch.inf)
    return functional.max_pool2d(x_BCHF, (1, kernel), (1, stride), (0, padding // 2))
