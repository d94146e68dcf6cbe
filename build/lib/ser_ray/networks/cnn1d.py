"""`cnn1d`: the network of the widely copied notebook recipe, for comparison; it has no settings of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ser_ray.networks.space import Range, Space


@dataclass(frozen=True)
class Cnn1dSpec:
    """Settings of `cnn1d`: none, since it is as its recipe has it."""

    name: ClassVar[str] = "cnn1d"
    features: ClassVar[str] = "summary"
    training: ClassVar[dict[str, Any]] = {}
    changes_frames: ClassVar[bool] = False
    views: ClassVar[tuple[tuple[float, float], ...]] = ()
    takes_speaker_norm: ClassVar[bool] = False
    space: ClassVar[Space] = {
        "learning_rate": Range(1e-4, 1e-2, log=True),
        "weight_decay": Range(1e-4, 0.1, log=True),
        "batch_size": (32, 64, 128),
        "label_smoothing": Range(0.0, 0.2),
        "balance": (0.0, 0.5, 1.0),
    }

    def build(self, shape: tuple[int | None, ...], num_classes: int) -> Any:
        """Make an untrained `modules.cnn1d.Cnn1d`."""
        from ser_ray.networks.modules.cnn1d import Cnn1d

        return Cnn1d(shape[-1], num_classes)
