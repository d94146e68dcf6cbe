"""A probe of a pretrained encoder: what its states tell of emotions.

Shape suffixes: B clips, S states, F features of a state, D those of all states, H hidden units, C classes.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from ser_ray.networks.modules.layers import Standardize
from ser_ray.networks.probe import ProbeSpec


class Probe(nn.Module):
    """One hidden layer on all states side by side, so that each state has weights of its own.

    A mean of the states with one learned weight each (Yang et al., SUPERB, 2021) recognizes validation speakers no
    better (docs/encoders.md).
    """

    def __init__(self, shape: tuple[int | None, ...], num_classes: int, config: ProbeSpec) -> None:
        super().__init__()
        num_states, num_features = shape
        self.dropout_in, self.dropout_hidden = config.dropout_in, config.dropout_hidden
        self.standardize = Standardize(num_states, num_features)
        self.dense = nn.Linear(num_states * num_features, config.hidden)
        self.norm = nn.BatchNorm1d(config.hidden)
        self.classify = nn.Linear(config.hidden, num_classes)

    def forward(self, features_BSF: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Return `logits_BC`; `lengths_B` is not needed, since states are averaged over time already."""
        x_BD = functional.dropout(self.standardize(features_BSF).flatten(1), self.dropout_in, self.training)
        x_BH = self.norm(self.dense(x_BD)).relu()
        return self.classify(functional.dropout(x_BH, self.dropout_hidden, self.training))
