"""What a step of training is fed: which rows, changed how, weighed how.

Shapes: N rows, B batch, G corpora, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ser_ray.model.examples import Examples
from ser_ray.training.frames import FrameAugment, mix
from ser_ray.training.settings import TrainConfig

MAX_RARITY = (
    10  # A class this many times rarer than the most frequent one weighs the most, or a stray clip would be all.
)


@dataclass(frozen=True)
class Batch:
    """What one step learns from; all batches of an epoch have one size, give or take one.

    Attributes:
        features: `[B, *shape]`: windows of one length, or clips padded to one, on the device of the network.
        lengths_B: Frames of each clip without the padding; None where nothing is padded.
        target_BC: How much of each class a clip is.
        weight_B: How much each clip counts in the loss.
    """

    features: Tensor
    lengths_B: Tensor | None
    target_BC: Tensor
    weight_B: Tensor

    def __len__(self) -> int:
        return len(self.weight_B)


class Batcher:
    """Makes batches of examples.

    Args:
        weight_GC: How much a clip of each corpus and class counts (`loss_weights`).
        augment: Changes training clips; None leaves them as they are.
        mixup: Mixes clips of one shape that are not changed (`NetworkSpec`); 0 mixes none.
    """

    def __init__(self, weight_GC: Tensor, augment: FrameAugment | None, mixup: float = 0.0) -> None:
        self.weight_GC, self.augment = weight_GC, augment
        self.mixup = augment.config.mixup if augment else mixup

    def __call__(self, examples: Examples, index_B: Tensor, epoch: Tensor | int) -> Batch:
        """Make the batch of some examples in an epoch, whose number decides over the draws of changes.

        Noise and mixtures come from torch's global generator.
        """
        targets_B = examples.targets[index_B]
        classes_C = torch.arange(self.weight_GC.shape[1], device=targets_B.device)
        target_BC = (targets_B[:, None] == classes_C).to(self.weight_GC)
        weight_B = self.weight_GC[examples.groups[index_B], targets_B]
        if self.augment:
            features, lengths_B = self.augment(examples, index_B, epoch), None  # windows are full
        else:
            features, lengths_B = examples.batch(index_B)
        if self.mixup and lengths_B is None:
            features, target_BC, weight_B = mix(features, target_BC, weight_B, self.mixup)
        return Batch(features, lengths_B, target_BC, weight_B)


def loss_weights(counts_GC: Tensor, balance: float, by: str) -> Tensor:
    """Return how much a clip of each corpus and class counts in the loss: 1 on average over the clips of each corpus.

    Args:
        counts_GC: Training rows of each.
        balance: Exponent of the inverse class frequency: 0 weighs clips alike, 1 classes.
        by: `corpus` to count classes in each corpus by itself; `all` to count them together, where 1 is the average
            over all clips.
    """
    if by == "all":
        counts_GC = counts_GC.sum(0, keepdim=True).expand_as(counts_GC)
    total_G1 = counts_GC.sum(1, keepdim=True).clamp(min=1)
    few_G1 = (counts_GC.amax(1, keepdim=True) / MAX_RARITY).clamp(min=1)
    rarity_GC = (total_G1 / counts_GC.maximum(few_G1)) ** balance
    return rarity_GC * total_G1 / (rarity_GC * counts_GC).sum(1, keepdim=True).clamp(min=1)


def deal_batches(rows_N: Tensor, config: TrainConfig, epoch: int, rank: int = 0, world: int = 1) -> list[Tensor]:
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
    generator = torch.Generator().manual_seed(epoch_seed(config.seed, epoch))
    order_N = rows_N[torch.randperm(len(rows_N), generator=generator).to(rows_N.device)]
    share = -(-len(order_N) // world)
    mine = order_N.repeat(2)[rank : share * world : world]
    return list(mine.tensor_split(max(1, min(-(-share // config.batch_size), share // 2))))


def epoch_seed(seed: int, epoch: int) -> int:
    """Return the seed of what is drawn in an epoch of a training."""
    return seed * 1_000_003 + epoch
