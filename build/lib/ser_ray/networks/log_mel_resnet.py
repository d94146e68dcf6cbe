"""`log_mel_resnet`: a residual network on log-mel frames, the default; settings and usual training.

Its training was chosen on validation speakers (docs/results.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ser_ray.base.settings import between, check_settings, choice
from ser_ray.networks.space import Range, Space


@dataclass(frozen=True)
class LogMelResNetSpec:
    """Settings of `log_mel_resnet`.

    Attributes:
        width: Channels of the first stage; the second has twice, the third four times as many.
        depth: Residual blocks in each stage.
        dropout: Dropout after pooling.
        pooling: How it pools over time: by `attention`, or by the plain `mean`; with standard deviations.
        clip_mean: Whether it sees a clip's mean over time: `kept`, `removed`, or `both` in two channels.
    """

    name: ClassVar[str] = "log_mel_resnet"
    features: ClassVar[str] = "log_mel"
    training: ClassVar[dict[str, Any]] = {
        **{"epochs": 80, "batch_size": 32, "learning_rate": 2e-3, "schedule": "one-cycle", "weight_decay": 0.05},
        **{"label_smoothing": 0.1, "balance": 1.0, "ema": 0.995, "monitor": "validation_uar", "patience": 30},
    }
    changes_frames: ClassVar[bool] = True
    views: ClassVar[tuple[tuple[float, float], ...]] = (
        *((1.0, 0.0), (0.85, 0.0), (1 / 0.85, 0.0)),
        *((1.0, -1.5), (1.0, 1.5)),
    )
    takes_speaker_norm: ClassVar[bool] = True
    space: ClassVar[Space] = {
        "learning_rate": Range(5e-4, 8e-3, log=True),
        "weight_decay": Range(1e-3, 0.3, log=True),
        "batch_size": (16, 32, 64),
        "label_smoothing": Range(0.0, 0.2),
        "width": (16, 24, 32, 48),
        "depth": (1, 2),
        "dropout": Range(0.0, 0.6),
        "mixup": Range(0.0, 0.5),
        "stretch": Range(0.0, 0.4),
        "pitch": Range(0.0, 4.0),
        "noise": Range(0.0, 1.0),
        "gain": Range(0.0, 12.0),
        "mask_s": Range(0.0, 0.6),
        "mask_bands": Range(0, 16),
    }

    width: int = between(32, 4, 1024)
    depth: int = between(1, 1, 100)
    dropout: float = between(0.3, 0, 0.95)
    pooling: str = choice("attention", "mean")
    clip_mean: str = choice("both", "kept", "removed")

    def __post_init__(self) -> None:
        check_settings(self)

    def build(self, shape: tuple[int | None, ...], num_classes: int) -> Any:
        """Make an untrained `modules.log_mel_resnet.LogMelResNet`."""
        from ser_ray.networks.modules.log_mel_resnet import LogMelResNet

        return LogMelResNet(shape[-1], num_classes, self)
