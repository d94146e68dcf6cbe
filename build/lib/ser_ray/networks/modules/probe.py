"""A probe of a pretrained encoder: which of its states tell emotions, and how.

Shape suffixes: B clips, S states, F features of a state, H hidden units, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ser_ray.networks.modules.layers import Standardize
from ser_ray.networks.probe import ProbeSpec


class Probe(nn.Module):
    """A mean of the states, weighted by softmax (Yang et al., SUPERB, 2021), and one hidden layer."""

    def __init__(self, shape: tuple[int | None, ...], num_classes: int, config: ProbeSpec) -> None:
        super().__init__()
        num_states, num_features = shape
        self.dropout_in, self.dropout_hidden = config.dropout_in, config.dropout_hidden
        self.standardize = Standardize(num_states, num_features)
        self.weigh_S = nn.Parameter(torch.zeros(num_states))
        self.dense = nn.Linear(num_features, config.hidden)
        self.norm = nn.BatchNorm1d(config.hidden)
        self.classify = nn.Linear(config.hidden, num_classes)

    def forward(self, features_BSF: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Return `logits_BC`; `lengths_B` is not needed, since states are averaged over time already."""
        x_BF = torch.einsum("bsf,s->bf", self.standardize(features_BSF), self.weigh_S.softmax(0))
        x_BF = functional.dropout(x_BF, self.dropout_in, self.training)
        x_BH = self.norm(self.dense(x_BF)).relu()
        return self.classify(functional.dropout(x_BH, self.dropout_hidden, self.training))
