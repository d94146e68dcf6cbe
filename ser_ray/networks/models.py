"""The networks: features of clips in, one logit per emotion out.

Shape suffixes: B clips, T frames, F features or mel bands, C classes or channels, H a height of 1, D = C · F.
Every network takes `(features, lengths_B)`, standardizes its input by statistics of the training rows, which are
buffers and so travel with the weights, and returns `logits_BC`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ser_ray.base.errors import UserError
from ser_ray.features.settings import DEFAULT_MODEL, FEATURES_OF

STRIDES = ((2, 2), (2, 2), (1, 2))  # of the three stages, in time and frequency
ATTENTION = 64  # hidden units of the attention
_EPSILON = 1e-5


@dataclass(frozen=True)
class ModelConfig:
    """Which network.

    Attributes:
        model: Name of the network: `log_mel_resnet`, or `cnn1d`, the one of the widely copied notebook recipe.
        width: Channels of the first stage of `log_mel_resnet`; the second has twice, the third four times as many.
        depth: Residual blocks in each stage of `log_mel_resnet`.
        dropout: Dropout of `log_mel_resnet` after pooling.
        pooling: How `log_mel_resnet` pools over time: by `attention`, or by the plain `mean`; with standard deviations.
        clip_mean: Whether `log_mel_resnet` sees a clip's mean over time: `kept`, `removed`, or `both` in two channels.
        speaker_norm: Normalize the bands of `log_mel_resnet` by their mean and standard deviation over all clips of the
            same speaker, tested ones too, without a look at emotions; best with many clips of each.
    """

    model: str = DEFAULT_MODEL
    width: int = 32
    depth: int = 1
    dropout: float = 0.3
    pooling: str = "attention"
    clip_mean: str = "both"
    speaker_norm: bool = False

    def __post_init__(self) -> None:
        if self.model not in FEATURES_OF:
            raise UserError(f"--model {self.model}: no such model; choose from {', '.join(FEATURES_OF)}")
        if self.pooling not in ("attention", "mean"):
            raise UserError(f"--pooling {self.pooling}: choose attention or mean")
        if self.clip_mean not in ("kept", "removed", "both"):
            raise UserError(f"--clip-mean {self.clip_mean}: choose kept, removed or both")
        for name, low, high in (("width", 4, 1024), ("depth", 1, 100), ("dropout", 0, 0.95)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(f"--{name} must be {low} to {high}, got {value}")
        for name in ("width", "depth", "dropout", "pooling", "clip_mean", "speaker_norm"):
            if self.model == "cnn1d" and getattr(self, name) != getattr(ModelConfig, name):
                flag = name.replace("_", "-")
                raise UserError(f"--{flag} is for --model log_mel_resnet; cnn1d is as its recipe has it")


class Standardize(nn.Module):
    """Shift and scale each feature by statistics of the training rows."""

    mean_F: Tensor
    std_F: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.register_buffer("mean_F", torch.zeros(num_features))
        self.register_buffer("std_F", torch.ones(num_features))

    def set(self, mean_F: Tensor, std_F: Tensor) -> None:
        """Take mean and standard deviation over training rows or frames; a constant feature keeps scale 1."""
        self.mean_F.copy_(mean_F)
        self.std_F.copy_(torch.where(std_F > 1e-12, std_F, 1.0))

    def forward(self, features: Tensor) -> Tensor:
        """Standardize the last axis."""
        return (features - self.mean_F) / self.std_F


class Cnn1d(nn.Module):
    """The notebook recipe's network: convolutions along the axis of the averaged features.

    Four blocks of convolution (kernel 5, "same"), ReLU, max-pooling 5 with stride 2 ("same") and dropout, then two
    dense layers. With 162 features and 8 classes it has 886,504 parameters.
    """

    CHANNELS = (512, 256, 128, 64)
    DROPOUTS = (0.0, 0.1, 0.2, 0.2)

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
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


class LogMelResNet(nn.Module):
    """Residual network on log-mel spectrograms with attentive statistics pooling over time.

    A convolution and three stages of residual blocks (He et al., Deep residual learning, 2016); then mean and standard
    deviation over time, weighted by attention (Okabe et al., Attentive statistics pooling, 2018). Bands are not
    averaged, so that the pooled statistics know their pitch. A second input channel lacks the clip's mean over time,
    and so most of what the voice, the microphone and the room do to all of it alike: a normalization by clip.

    Clips of any length share a batch: all that lies beyond a clip's own frames is kept at zero, as beyond its edges.
    """

    def __init__(self, num_bands: int, num_classes: int, config: ModelConfig) -> None:
        super().__init__()
        width, depth = config.width, config.depth
        self.num_classes, self.dropout, self.clip_mean = num_classes, config.dropout, config.clip_mean
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
        own = _own_frames(lengths_B, x_BCTF)
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
        own = _own_frames(lengths_B, x_BCTF)
        x_BCTF = x_BCTF if own is None else x_BCTF * own
        for block in self.blocks:
            if lengths_B is not None:
                lengths_B = -(-lengths_B // block.stride[0])
            x_BCTF = block(x_BCTF, lengths_B)
        x_BTD = x_BCTF.permute(0, 2, 1, 3).flatten(2)
        score_BT1 = self.attention(x_BTD) if self.attention else torch.zeros_like(x_BTD[..., :1])
        own = _own_frames(lengths_B, x_BCTF)
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
        own = _own_frames(lengths_B, y_BCTF)
        y_BCTF = self.norm2(self.convolve2(y_BCTF if own is None else y_BCTF * own))
        # Strided by slicing: oneDNN's strided 1 x 1 convolution with few channels corrupts memory in its backward pass.
        kept_BCTF = x_BCTF[:, :, :: self.stride[0], :: self.stride[1]]
        y_BCTF = (y_BCTF + self.shortcut(kept_BCTF)).relu()
        return y_BCTF if own is None else y_BCTF * own


def _own_frames(lengths_B: Tensor | None, x_BCTF: Tensor) -> Tensor | None:
    """Return 1 for frames of the clips' own and 0 for padding, `[B, 1, T, 1]`; None where there is no padding."""
    if lengths_B is None:
        return None
    own_BT = torch.arange(x_BCTF.shape[2], device=x_BCTF.device) < lengths_B[:, None]
    return own_BT[:, None, :, None].to(x_BCTF.dtype)


class Ensemble(nn.Module):
    """Networks of one kind that answer together: by the mean of their logits."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(networks)

    def forward(self, features: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Return `logits_BC`."""
        return torch.stack([network(features, lengths_B) for network in self.members]).mean(0)


def build(config: ModelConfig, num_features: int, num_classes: int) -> nn.Module:
    """Make an untrained network.

    Args:
        config: Which network.
        num_features: Length of the last axis of its input.
        num_classes: Number of emotions to tell apart.
    """
    if config.model == "cnn1d":
        return Cnn1d(num_features, num_classes)
    return LogMelResNet(num_features, num_classes, config)


def adopt(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give a network the weights of a trained one of the same kind.

    Its last layer, which may know other emotions, and the statistics of its input stay as they are.
    """
    own = network.state_dict()
    kept = {name: own[name] for name in own if name.startswith(("classify.", "standardize."))}
    network.load_state_dict({**weights, **kept})
