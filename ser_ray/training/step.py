"""One step of training, from a batch to changed weights: the whole of it, so that it can be read, timed and captured.

Shapes: B batch, C classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ser_ray.training.batches import Batch
from ser_ray.training.optimizer import TensorAdamW
from ser_ray.training.settings import TrainConfig

WARM_UP = 0.25  # Part of all steps in which the one-cycle schedule rises.
START_DIVISOR = 25  # The one-cycle schedule begins with the learning rate over this.
MOMENTUM = (0.95, 0.85)  # At the ends of the one-cycle schedule, and at its peak.
MAX_NORM = 5.0  # Largest norm of the gradient under the one-cycle schedule.
BY_TENSORS = ("cuda",)  # Devices on which what differs from step to step stands in tensors, so that it can be captured.


@dataclass(frozen=True)
class Group:
    """Which of the workers of a training this is.

    Attributes:
        rank: Its number.
        world: How many there are.
        wrap: Makes the network that runs in steps of it: `DistributedDataParallel`, `torch.compile`, or nothing.
    """

    rank: int = 0
    world: int = 1
    wrap: Callable[[nn.Module], nn.Module] = lambda network: network


class Step:
    """Takes steps: holds the network, its averaged copy and the optimizer, and nothing of rows.

    `pace` says where the training is, in this process; calling the step does the rest, on the device alone.

    Args:
        network: The network, on its device; standardization fitted.
        config: How to train.
        group: Which worker this is.

    Attributes:
        network: The network that learns.
        averaged: The moving average of its weights, which is validated and kept; the network itself without `ema`.
        optimizer: AdamW.
        count: Steps taken so far.
    """

    def __init__(self, network: nn.Module, config: TrainConfig, group: Group) -> None:
        self.network, self.config, self.group, self.count, self.decay = network, config, group, 0, 0.0
        self.averaged = copy.deepcopy(network).requires_grad_(False) if config.ema else network
        decayed = [p for p in network.parameters() if p.ndim > 1]
        others = [p for p in network.parameters() if p.ndim <= 1]
        self.device = decayed[0].device
        self.bf16 = config.precision == "bf16" or (config.precision == "auto" and self.device.type == "cuda")
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.by_tensors = self.device.type in BY_TENSORS
        if self.by_tensors:
            self.optimizer = TensorAdamW(groups, config.learning_rate)
        else:
            self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
        self.fade = torch.zeros((), device=self.device)  # 1 - decay, where a captured step reads it
        self.running = group.wrap(network)

    def pace(self, progress: float) -> None:
        """Set what the next step learns by: learning rate, momentum and the decay of the averaged weights.

        Args:
            progress: The part of the training that is done, 0 to 1; it paces the one-cycle schedule.
        """
        self.count += 1
        self.decay = min(self.config.ema, (1 + self.count) / (10 + self.count))  # faster at first
        for group in self.optimizer.param_groups if self.config.schedule == "one-cycle" else ():
            rate, momentum = one_cycle(progress)
            group["lr"], group["betas"] = self.config.learning_rate * rate, (momentum, group["betas"][1])
        if self.by_tensors:
            self.optimizer.pace()
            self.fade.fill_(1 - self.decay)

    def __call__(self, batch: Batch) -> Tensor:
        """Take the step that was paced, and return its loss, which stays on the device."""
        norm = batch.weight_B.sum()  # of all ranks; while the network is at work they add it up
        summed = torch.distributed.all_reduce(norm, async_op=True) if self.group.world > 1 else None
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits_BC = self.running(batch.features, batch.lengths_B).to(batch.target_BC)
        smoothing = self.config.label_smoothing
        losses_B = functional.cross_entropy(logits_BC, batch.target_BC, reduction="none", label_smoothing=smoothing)
        if summed:
            summed.wait()
        # DDP takes the mean of the ranks' gradients.
        loss = (losses_B * batch.weight_B).sum() * self.group.world / norm
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.config.schedule == "one-cycle":
            nn.utils.clip_grad_norm_(self.network.parameters(), MAX_NORM)
        self.optimizer.step()
        if self.config.ema:
            self._average()
        return loss.detach()

    @torch.no_grad()
    def _average(self) -> None:
        """Move the averaged weights towards those of the step."""
        kept, new = self.averaged.state_dict().values(), self.network.state_dict().values()
        floats, counters = [], []
        for pair in zip(kept, new, strict=True):
            (floats if pair[0].dtype.is_floating_point else counters).append(pair)
        kept, new = map(list, zip(*floats, strict=True))
        if self.by_tensors:
            ways = torch._foreach_sub(new, kept)
            torch._foreach_mul_(ways, self.fade)
            torch._foreach_add_(kept, ways)
        else:
            get_ema_multi_avg_fn(self.decay)(kept, new, self.count)
        if counters:
            torch._foreach_copy_(*map(list, zip(*counters, strict=True)))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all that is needed to go on: tensors, and what JSON can hold."""
        optimizer = self.optimizer.state_dict()
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        if self.config.ema:
            tensors |= {f"averaged.{name}": tensor for name, tensor in self.averaged.state_dict().items()}
        for i, slots in optimizer["state"].items():
            tensors |= {f"optimizer.{i}.{name}": tensor for name, tensor in slots.items()}
        return tensors, {"optimizer": optimizer["param_groups"], "steps": self.count}

    def load_state(self, tensors: dict[str, Tensor], rest: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.network.load_state_dict(part_of(tensors, "network."))
        if self.config.ema:
            self.averaged.load_state_dict(part_of(tensors, "averaged."))
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        slots: dict[int, dict[str, Tensor]] = {}
        for key, tensor in part_of(tensors, "optimizer.").items():
            index, _, name = key.partition(".")
            # Laid out as the weights are (channels last): the fused optimizer takes both for lists of numbers.
            like = parameters[int(index)] if tensor.ndim else tensor
            slots.setdefault(int(index), {})[name] = torch.empty_like(like).copy_(tensor)
        self.optimizer.load_state_dict({"state": slots, "param_groups": rest["optimizer"]})
        self.count = rest["steps"]


def one_cycle(progress: float) -> tuple[float, float]:
    """Return learning rate, as a part of the largest, and momentum (Smith and Topin, Super-convergence, 2018).

    Unlike torch's `OneCycleLR` it knows the part of the training that is done instead of the number of steps, which
    changes when workers come and go.
    """
    rising = progress < WARM_UP
    place = progress / WARM_UP if rising else (progress - WARM_UP) / (1 - WARM_UP)
    wave = (1 - math.cos(math.pi * place)) / 2
    height = wave if rising else 1 - wave
    floor = 1 / START_DIVISOR if rising else 0.0
    return floor + (1 - floor) * height, MOMENTUM[0] + (MOMENTUM[1] - MOMENTUM[0]) * height


def part_of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
