"""Settings of a training: those that decide what comes out, and those that say where and how it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ser_ray.base.errors import UserError
from ser_ray.base.settings import between, check_settings, choice
from ser_ray.networks.spec import NetworkSpec


@dataclass(frozen=True)
class TrainConfig:
    """How to train; each network has usual settings of its own.

    Attributes:
        epochs: Passes over the training rows, at most.
        batch_size: Rows per step and worker.
        learning_rate: Adam's largest step size.
        schedule: `one-cycle` rises to the learning rate and falls to nothing over all epochs; `plateau` begins with it
            and takes it times 0.4 after 2 epochs without a lower validation loss.
        weight_decay: AdamW's; none on biases and normalization.
        label_smoothing: Part of each target that is spread over all classes.
        balance: Exponent of the inverse class frequency that weighs the loss: 0 weighs clips alike, 1 classes.
        balance_by: Where classes are counted for that: in each `corpus` by itself, so that its corpus says nothing of a
            clip's emotion but for emotions that it lacks; or in `all` together.
        ema: Decay per step of the moving average of the weights that is validated and kept; 0 keeps the weights.
        monitor: What decides the best epoch, `validation_uar` or `validation_loss`.
        patience: Epochs without a better one after which training stops.
        refit: Train once more, on validation speakers too and to the last epoch, and keep that network; the one that is
            validated tells the scores on these speakers and the temperature alone.
        precision: `bf16` runs the network in bfloat16 where that is safe (autocast), `float32` does not; `auto` is
            bf16 on GPUs. Some processors gain from it too.
        seed: Seed of weights, shuffling, dropout, augmentation and splits.
    """

    epochs: int = between(50, 1)
    batch_size: int = between(64, 2)
    learning_rate: float = between(1e-3, 0, 1e32, above=True)
    schedule: str = choice("plateau", "one-cycle")
    weight_decay: float = between(0.0, 0, 10)
    label_smoothing: float = between(0.0, 0, 0.9)
    balance: float = between(0.0, 0, 2)
    balance_by: str = choice("corpus", "all")
    ema: float = between(0.0, 0, 0.99999)
    monitor: str = choice("validation_loss", "validation_uar")
    patience: int = between(5, 1)
    refit: bool = False
    precision: str = choice("auto", "bf16", "float32")
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self)

    @classmethod
    def usual(cls, network: NetworkSpec | type[NetworkSpec], **changes: Any) -> TrainConfig:
        """Return the usual settings of a network's training, with changes by field name."""
        return cls(**{**network.training, **changes})


@dataclass(frozen=True)
class Compute:
    """Where and how a training runs, which does not decide what comes out and makes no other run.

    Attributes:
        num_workers: Parallel workers: `auto` is one per GPU, or one using all CPU cores; a number; or `MIN:MAX`.
        device: `auto` takes GPUs where the cluster has them; `cpu`; `cuda`.
        compile: Compile the network by `torch.compile`: a minute at the start, on CPUs by a C++ compiler, then faster.
        memory_gb: Training rows stay decoded in a worker's memory up to this many GB; more are streamed.
    """

    num_workers: str = "auto"
    device: str = choice("auto", "cpu", "cuda")
    compile: bool = False
    memory_gb: float = between(4.0, 0, 1e6)

    def __post_init__(self) -> None:
        check_settings(self)


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

    window_s: float = between(3.0, 0.1, 600)
    stretch: float = between(0.2, 0, 1)
    pitch: float = between(2.0, 0, 12)
    noise: float = between(0.5, 0, 1)
    gain: float = between(6.0, 0, 60)
    mask_s: float = between(0.0, 0)
    mask_bands: int = between(0, 0, 1000)
    mixup: float = between(0.2, 0, 10)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.mask_s > self.window_s / 2:
            raise UserError(f"--mask-s must be 0 to {self.window_s / 2:g}, got {self.mask_s}")
