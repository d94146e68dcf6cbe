"""What one worker does in training: steps, epochs, validation, and a state that can be kept and continued.

Nothing here needs Ray.

Shapes: N rows, B batch, G corpora, C classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ser_ray.base.errors import UserError
from ser_ray.model.examples import Examples, accuracy_and_uar, predict_logits
from ser_ray.training.frames import FrameAugment, mix

PLATEAU_FACTOR, PLATEAU_PATIENCE = 0.4, 2  # the notebook recipe's learning-rate schedule
WARM_UP = 0.25  # part of all steps in which the one-cycle schedule rises
START_DIVISOR = 25  # the one-cycle schedule begins with the learning rate over this
MOMENTUM = (0.95, 0.85)  # at the ends of the one-cycle schedule, and at its peak
MAX_NORM = 5.0  # of the gradient, under the one-cycle schedule
MAX_RARITY = 10  # times rarer than the most frequent class: a rarer one weighs no more, or a stray clip would be all


@dataclass(frozen=True)
class TrainConfig:
    """How to train; each model has defaults of its own.

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
        precision: `bf16` runs the network in bfloat16 where that is safe (autocast), `float32` does not; `auto` is
            bf16 on GPUs. Some processors gain from it too.
        compile: Compile the network by `torch.compile`: a minute at the start, on CPUs by a C++ compiler, then faster.
        memory_gb: Training rows stay decoded in a worker's memory up to this many GB; more are streamed.
        num_workers: Parallel workers: `auto` is one per GPU, or one using all CPU cores; a number; or `MIN:MAX`.
        device: `auto` takes GPUs where the cluster has them; `cpu`; `cuda`.
        seed: Seed of weights, shuffling, dropout, augmentation and splits.
    """

    epochs: int = 50
    batch_size: int = 64
    learning_rate: float = 1e-3
    schedule: str = "plateau"
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    balance: float = 0.0
    balance_by: str = "corpus"
    ema: float = 0.0
    monitor: str = "validation_loss"
    patience: int = 5
    precision: str = "auto"
    compile: bool = False
    memory_gb: float = 4.0
    num_workers: str = "auto"
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 2), ("patience", 1)):
            if getattr(self, name) < least:
                raise UserError(f"--{name.replace('_', '-')} must be {least} or more, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise UserError(f"--learning-rate must be above 0, got {self.learning_rate}")
        for name, most in (
            ("memory_gb", 1e6),
            ("weight_decay", 10),
            ("label_smoothing", 0.9),
            ("balance", 2),
            ("ema", 0.99999),
        ):
            if not 0 <= getattr(self, name) <= most:
                raise UserError(f"--{name.replace('_', '-')} must be 0 to {most}, got {getattr(self, name)}")
        for name, choices in (
            ("device", ("auto", "cpu", "cuda")),
            ("precision", ("auto", "bf16", "float32")),
            ("schedule", ("one-cycle", "plateau")),
            ("balance_by", ("corpus", "all")),
            ("monitor", ("validation_uar", "validation_loss")),
        ):
            if getattr(self, name) not in choices:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: choose {' or '.join(choices)}")

    @classmethod
    def for_model(cls, model: str, **changes: Any) -> TrainConfig:
        """Return the usual settings of a model, with changes by field name.

        `cnn1d` has those of the widely copied notebook; those of `log_mel_resnet` were chosen on validation speakers.
        """
        chosen = dict(
            **dict(epochs=80, batch_size=32, learning_rate=2e-3, schedule="one-cycle", weight_decay=0.05),
            **dict(label_smoothing=0.1, balance=1.0, ema=0.995, monitor="validation_uar", patience=30),
        )
        return cls(**{**(chosen if model == "log_mel_resnet" else {}), **changes})


class Learner:
    """A network in training, on one of `world` workers.

    Args:
        network: The network, on its device; standardization fitted.
        config: How to train.
        counts_GC: How many training rows there are of each corpus and class, on all workers.
        augment: Changes training clips; None leaves them as they are.
        mixup: Parameter of mixup; 0 for none.
        rank: Which worker this is.
        world: How many there are.
        wrap: Makes the network that runs in steps of it: `DistributedDataParallel`, or nothing.
    """

    def __init__(
        self,
        network: nn.Module,
        config: TrainConfig,
        counts_GC: Tensor,
        augment: FrameAugment | None = None,
        mixup: float = 0.0,
        rank: int = 0,
        world: int = 1,
        wrap: Callable[[nn.Module], nn.Module] = lambda network: network,
    ) -> None:
        self.network, self.config, self.augment, self.mixup = network, config, augment, mixup
        self.rank, self.world = rank, world
        self.averaged = copy.deepcopy(network).requires_grad_(False) if config.ema else network
        decayed = [p for p in network.parameters() if p.ndim > 1]
        others = [p for p in network.parameters() if p.ndim <= 1]
        self.device = decayed[0].device
        self.bf16 = config.precision == "bf16" or (config.precision == "auto" and self.device.type == "cuda")
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=config.learning_rate,
            fused=True,
        )
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer, factor=PLATEAU_FACTOR, patience=PLATEAU_PATIENCE
        )
        self.weight_GC = loss_weights(counts_GC.to(decayed[0]), config.balance, config.balance_by)
        self.steps = 0
        self.model = wrap(network)

    def train_epoch(self, epoch: int, batches: Iterable[tuple[Examples, Tensor]], num_batches: int) -> float:
        """Take one pass over the rows.

        Args:
            epoch: Its number, from 1.
            batches: This worker's batches: examples, and the indices of the batch in them.
            num_batches: How many there will be, about; it paces the schedule.

        Returns:
            The mean training loss over all ranks.
        """
        torch.manual_seed(_seed(self.config.seed, epoch) * 1009 + self.rank)  # dropout, noise, mixup: as if not resumed
        self.model.train()
        total_2 = torch.zeros(2, device=self.device)
        for i, (examples, index_B) in enumerate(batches):
            if self.config.schedule == "one-cycle":
                self._one_cycle((epoch - 1 + min(1.0, i / num_batches)) / self.config.epochs)
            loss = self._step(examples, index_B, epoch)
            total_2 += torch.stack([loss.float() * len(index_B), torch.ones_like(total_2[0]) * len(index_B)])
        if self.world > 1:
            torch.distributed.all_reduce(total_2)
        return (total_2[0] / total_2[1]).item()

    def _step(self, examples: Examples, index_B: Tensor, epoch: int) -> Tensor:
        """Take one step and return its loss, which stays on the device."""
        target_BC = functional.one_hot(examples.targets[index_B], self.network.num_classes).to(self.weight_GC)
        weight_B = self.weight_GC[examples.groups[index_B], examples.targets[index_B]]
        if self.augment:
            features, lengths_B = self.augment(examples, index_B, epoch), None  # windows are full
        else:
            features, lengths_B = examples.batch(index_B)
        if self.mixup:
            features, target_BC, weight_B = mix(features, target_BC, weight_B, self.mixup)
        norm = weight_B.sum()  # of all ranks; while the network is at work they add it up
        summed = torch.distributed.all_reduce(norm, async_op=True) if self.world > 1 else None
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits_BC = self.model(features, lengths_B).to(target_BC)
        smoothing = self.config.label_smoothing
        losses_B = functional.cross_entropy(logits_BC, target_BC, reduction="none", label_smoothing=smoothing)
        if summed:
            summed.wait()
        loss = (losses_B * weight_B).sum() * self.world / norm  # DDP takes the mean of the ranks' gradients
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.config.schedule == "one-cycle":
            nn.utils.clip_grad_norm_(self.network.parameters(), MAX_NORM)
        self.optimizer.step()
        self.steps += 1
        if self.config.ema:
            self._average()
        return loss.detach()

    def _one_cycle(self, progress: float) -> None:
        """Set learning rate and momentum (Smith and Topin, Super-convergence, 2018).

        Unlike torch's `OneCycleLR` it knows the part of the training that is done instead of the number of steps, which
        changes when workers come and go.
        """
        rising = progress < WARM_UP
        place = progress / WARM_UP if rising else (progress - WARM_UP) / (1 - WARM_UP)
        wave = (1 - math.cos(math.pi * place)) / 2
        height = wave if rising else 1 - wave
        floor = 1 / START_DIVISOR if rising else 0.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * (floor + (1 - floor) * height)
            group["betas"] = (MOMENTUM[0] + (MOMENTUM[1] - MOMENTUM[0]) * height, group["betas"][1])

    def _average(self) -> None:
        """Move the averaged weights towards those of the step, faster at first."""
        decay = min(self.config.ema, (1 + self.steps) / (10 + self.steps))
        kept, new = self.averaged.state_dict().values(), self.network.state_dict().values()
        floats, counters = [], []
        for pair in zip(kept, new, strict=True):
            (floats if pair[0].dtype.is_floating_point else counters).append(pair)
        get_ema_multi_avg_fn(decay)(*map(list, zip(*floats, strict=True)), self.steps)
        for kept, new in counters:
            kept.copy_(new)

    def validate(self, examples: Examples, index_N: Tensor | None = None) -> dict[str, float]:
        """Score the averaged network, each rank on its part of the clips; all know the scores.

        Args:
            examples: Clips, among them those that validate.
            index_N: Which they are; None for all.
        """
        if index_N is None:
            index_N = torch.arange(len(examples), device=examples.targets.device)
        mine_N, targets_N = index_N[self.rank :: self.world], examples.targets[index_N]
        logits_NC = torch.zeros(len(index_N), self.network.num_classes, device=targets_N.device)
        if self.world > 1:  # statistics of batch normalization are each rank's own: the first's are those that are kept
            for buffer in self.averaged.buffers():
                torch.distributed.broadcast(buffer, src=0)
        if len(mine_N):
            logits_NC[self.rank :: self.world] = predict_logits(self.averaged, examples, mine_N)
        if self.world > 1:
            torch.distributed.all_reduce(logits_NC)
        loss = functional.cross_entropy(logits_NC.double(), targets_N)
        scores_3 = torch.stack([loss, *accuracy_and_uar(logits_NC, targets_N)])
        scores = dict(zip(("validation_loss", "validation_accuracy", "validation_uar"), scores_3.tolist(), strict=True))
        if self.config.schedule == "plateau" and math.isfinite(scores["validation_loss"]):
            self.plateau.step(scores["validation_loss"])
        return scores

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all that is needed to go on after an epoch: tensors, and what JSON can hold."""
        optimizer = self.optimizer.state_dict()
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        if self.config.ema:
            tensors |= {f"averaged.{name}": tensor for name, tensor in self.averaged.state_dict().items()}
        for i, slots in optimizer["state"].items():
            tensors |= {f"optimizer.{i}.{name}": tensor for name, tensor in slots.items()}
        rest = {"optimizer": optimizer["param_groups"], "plateau": self.plateau.state_dict(), "steps": self.steps}
        return tensors, rest

    def load_state(self, tensors: dict[str, Tensor], rest: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.network.load_state_dict(part(tensors, "network."))
        if self.config.ema:
            self.averaged.load_state_dict(part(tensors, "averaged."))
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        slots: dict[int, dict[str, Tensor]] = {}
        for key, tensor in part(tensors, "optimizer.").items():
            index, _, name = key.partition(".")
            # Laid out as the weights are (channels last): the fused optimizer takes both for lists of numbers.
            like = parameters[int(index)] if tensor.ndim else tensor
            slots.setdefault(int(index), {})[name] = torch.empty_like(like).copy_(tensor)
        self.optimizer.load_state_dict({"state": slots, "param_groups": rest["optimizer"]})
        self.plateau.load_state_dict(rest["plateau"])
        self.steps = rest["steps"]


def loss_weights(counts_GC: Tensor, balance: float, by: str) -> Tensor:
    """Return how much a clip of each corpus and class counts in the loss: 1 on average over the clips of each corpus.

    Args:
        counts_GC: Training rows of each.
        balance: What `TrainConfig.balance` says.
        by: What `TrainConfig.balance_by` says; by `all`, 1 is the average over all clips.
    """
    if by == "all":
        counts_GC = counts_GC.sum(0, keepdim=True).expand_as(counts_GC)
    total_G1 = counts_GC.sum(1, keepdim=True).clamp(min=1)
    few_G1 = (counts_GC.amax(1, keepdim=True) / MAX_RARITY).clamp(min=1)
    rarity_GC = (total_G1 / counts_GC.maximum(few_G1)) ** balance
    return rarity_GC * total_G1 / (rarity_GC * counts_GC).sum(1, keepdim=True).clamp(min=1)


def deal(rows_N: Tensor, config: TrainConfig, epoch: int, rank: int = 0, world: int = 1) -> list[Tensor]:
    """Return the batches of one worker in one epoch.

    An epoch is one seeded permutation of the rows, dealt to the ranks in turn, so that it is the same however many
    there are. All ranks take as many steps; the last rows may be met twice. Batches are even, and none is of a
    single clip: batch statistics need several.

    Args:
        rows_N: Indices of all training rows.
        config: How to train.
        epoch: Its number.
        rank: Which worker.
        world: How many there are.
    """
    generator = torch.Generator().manual_seed(_seed(config.seed, epoch))
    order_N = rows_N[torch.randperm(len(rows_N), generator=generator).to(rows_N.device)]
    share = -(-len(order_N) // world)
    mine = order_N.repeat(2)[rank : share * world : world]
    return list(mine.tensor_split(max(1, min(-(-share // config.batch_size), share // 2))))


def _seed(seed: int, epoch: int) -> int:
    return seed * 1_000_003 + epoch


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def best_epoch(history: list[dict[str, Any]], monitor: str) -> int:
    """Return the number of the epoch with the lowest validation loss, or the first with the highest UAR; 0 for none.

    Where nothing was validated, the last epoch is the best.
    """
    if not history or monitor not in history[-1]:
        return len(history)
    sign = 1 if monitor == "validation_loss" else -1
    return 1 + int(np.argmin([sign * epoch[monitor] for epoch in history]))


def is_over(history: list[dict[str, Any]], config: TrainConfig) -> bool:
    """Tell whether all epochs are done, or too many since the best one."""
    return len(history) >= min(config.epochs, best_epoch(history, config.monitor) + config.patience)
