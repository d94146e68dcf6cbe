"""What one worker does in training: epochs, validation, and a state that can be kept and continued.

Nothing here needs Ray.

Shapes: N rows, B batch, G corpora, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ser_ray.model.examples import Examples, accuracy_and_uar, predict_logits
from ser_ray.training.batches import Batcher, epoch_seed, loss_weights
from ser_ray.training.capture import Captured, Take
from ser_ray.training.frames import FrameAugment
from ser_ray.training.settings import TrainConfig
from ser_ray.training.step import Group, Step, part_of

PLATEAU_FACTOR, PLATEAU_PATIENCE = 0.4, 2  # The notebook recipe's learning-rate schedule.


class Learner:
    """A network in training.

    Args:
        network: The network, on its device; standardization fitted.
        config: How to train.
        counts_GC: How many training rows there are of each corpus and class, on all workers.
        augment: Changes training clips; None leaves them as they are.
        group: Which worker this is.
        mixup: What `Batcher` takes.

    Attributes:
        take: Takes a step, from rows, indices of the batch and epoch to the loss; `Captured` may stand in for it.
        refusal: Why it does not, on a GPU; empty where it does, and on the CPU.
        kept: Weights of the best epoch so far, on the CPU.
    """

    def __init__(
        self,
        network: nn.Module,
        config: TrainConfig,
        counts_GC: Tensor,
        augment: FrameAugment | None = None,
        group: Group | None = None,
        mixup: float = 0.0,
    ) -> None:
        self.config, self.group = config, group or Group()
        self.step = Step(network, config, self.group)
        weight_GC = loss_weights(counts_GC.to(next(network.parameters())), config.balance, config.balance_by)
        self.batcher = Batcher(weight_GC, augment, mixup)
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.step.optimizer, factor=PLATEAU_FACTOR, patience=PLATEAU_PATIENCE
        )
        self.take: Take = self._take
        self.refusal = ""
        self.kept: dict[str, Tensor] = {}

    @property
    def averaged(self) -> nn.Module:
        """The network that is validated and kept."""
        return self.step.averaged

    def train_epoch(self, epoch: int, batches: Iterable[tuple[Examples, Tensor]], num_batches: int) -> float:
        """Take one pass over the rows.

        Args:
            epoch: Its number, from 1.
            batches: This worker's batches: examples, and the indices of the batch in them.
            num_batches: How many there will be, about; it paces the schedule.

        Returns:
            The mean training loss over all ranks.
        """
        # Dropout, noise and mixtures are drawn as if the training had never been resumed.
        torch.manual_seed(epoch_seed(self.config.seed, epoch) * 1009 + self.group.rank)
        self.step.running.train()
        total_2 = torch.zeros(2, device=self.step.device)
        for i, (examples, index_B) in enumerate(batches):
            self.step.pace((epoch - 1 + min(1.0, i / num_batches)) / self.config.epochs)
            loss, count = self.take(examples, index_B, epoch), len(index_B)
            total_2 += torch.stack([loss.float() * count, torch.ones_like(total_2[0]) * count])
        if isinstance(self.take, Captured):
            self.refusal = self.take.refusal
        if self.group.world > 1:
            torch.distributed.all_reduce(total_2)
        return (total_2[0] / total_2[1]).item()

    def _take(self, examples: Examples, index_B: Tensor, epoch: Tensor | int) -> Tensor:
        return self.step(self.batcher(examples, index_B, epoch))

    def validate(self, examples: Examples, index_N: Tensor | None = None) -> dict[str, float]:
        """Score the averaged network, each rank on its part of the clips; all know the scores.

        Args:
            examples: Clips, among them those that validate.
            index_N: Which they are; None for all.
        """
        rank, world = self.group.rank, self.group.world
        if index_N is None:
            index_N = torch.arange(len(examples), device=examples.targets.device)
        mine_N, targets_N = index_N[rank::world], examples.targets[index_N]
        logits_NC = torch.zeros(len(index_N), self.batcher.weight_GC.shape[1], device=targets_N.device)
        if world > 1:  # statistics of batch normalization are each rank's own: the first's are those that are kept
            for buffer in self.averaged.buffers():
                torch.distributed.broadcast(buffer, src=0)
        if len(mine_N):
            logits_NC[rank::world] = predict_logits(self.averaged, examples, mine_N)
        if world > 1:
            torch.distributed.all_reduce(logits_NC)
        loss = functional.cross_entropy(logits_NC.double(), targets_N)
        scores_3 = torch.stack([loss, *accuracy_and_uar(logits_NC, targets_N)])
        scores = dict(zip(("validation_loss", "validation_accuracy", "validation_uar"), scores_3.tolist(), strict=True))
        if self.config.schedule == "plateau" and math.isfinite(scores["validation_loss"]):
            self.plateau.step(scores["validation_loss"])
        return scores

    def keep(self) -> None:
        """Keep the averaged weights as they are now: those of the best epoch so far."""
        self.kept = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.averaged.state_dict().items()}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all that is needed to go on after an epoch: tensors, and what JSON can hold."""
        tensors, rest = self.step.state()
        tensors |= {f"kept.{name}": tensor for name, tensor in self.kept.items()}
        return tensors, {**rest, "plateau": self.plateau.state_dict()}

    def load_state(self, tensors: dict[str, Tensor], rest: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.step.load_state(tensors, rest)
        self.kept = part_of(tensors, "kept.")
        self.plateau.load_state_dict(rest["plateau"])


def best_epoch(history: list[dict[str, Any]], monitor: str) -> int:
    """Return the number of the epoch with the lowest validation loss, or the first with the highest UAR; 0 for none.

    Where nothing was validated, the last epoch is the best.
    """
    if not history or monitor not in history[-1]:
        return len(history)
    best = min if monitor == "validation_loss" else max
    return 1 + history.index(best(history, key=lambda epoch: epoch[monitor]))


def is_over(history: list[dict[str, Any]], config: TrainConfig) -> bool:
    """Tell whether all epochs are done, or too many since the best one."""
    return len(history) >= min(config.epochs, best_epoch(history, config.monitor) + config.patience)
