"""`probe`: a small network on the states of a pretrained encoder; settings and usual training (docs/encoders.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ser_ray.base.settings import between, check_settings
from ser_ray.networks.space import Range, Space


@dataclass(frozen=True)
class ProbeSpec:
    """Settings of `probe`.

    Attributes:
        hidden: Units of its hidden layer.
        dropout_in: Dropout of what it hears, all states side by side.
        dropout_hidden: Dropout of the hidden layer.
        mixup: Parameter of the Beta distribution by which pairs of clips and their labels are mixed; 0 to mix none.
    """

    name: ClassVar[str] = "probe"
    features: ClassVar[str] = "encoder"
    training: ClassVar[dict[str, Any]] = {
        **{"epochs": 30, "batch_size": 32, "learning_rate": 2e-3, "schedule": "one-cycle", "weight_decay": 0.05},
        **{"label_smoothing": 0.1, "balance": 1.0, "ema": 0.99, "monitor": "validation_uar", "patience": 30},
        **{"refit": True},
    }
    changes_frames: ClassVar[bool] = False
    views: ClassVar[tuple[tuple[float, float], ...]] = ()
    takes_speaker_norm: ClassVar[bool] = True
    space: ClassVar[Space] = {
        "learning_rate": Range(3e-4, 8e-3, log=True),
        "weight_decay": Range(1e-3, 0.3, log=True),
        "batch_size": (16, 32, 64),
        "label_smoothing": Range(0.0, 0.2),
        "hidden": (32, 64, 128, 256),
        "dropout_in": Range(0.0, 0.6),
        "dropout_hidden": Range(0.0, 0.7),
        "mixup": Range(0.0, 0.8),
    }

    hidden: int = between(64, 1, 65_536)
    dropout_in: float = between(0.3, 0, 0.95)
    dropout_hidden: float = between(0.5, 0, 0.95)
    mixup: float = between(0.4, 0, 10)

    def __post_init__(self) -> None:
        check_settings(self)

    def build(self, shape: tuple[int | None, ...], num_classes: int) -> Any:
        """Make an untrained `modules.probe.Probe`."""
        from ser_ray.networks.modules.probe import Probe

        return Probe(shape, num_classes, self)
