"""What networks share: the standardization of their input, the frames that are a clip's own, and weights taken over.

Shape suffixes: B clips, T frames, F features or mel bands, C classes or channels, H a height of 1, D = C · F.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ser_ray.features.kernels.padding import own_mask


class Standardize(nn.Module):
    """Shift and scale each feature by statistics of the training rows, which travel with the weights.

    Args:
        shape: Of what has statistics of its own: the number of features or bands, or all of a clip's shape.
    """

    mean_F: Tensor
    std_F: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("mean_F", torch.zeros(shape))
        self.register_buffer("std_F", torch.ones(shape))

    def set(self, mean_F: Tensor, std_F: Tensor) -> None:
        """Take mean and standard deviation over training rows or frames; a constant feature keeps scale 1."""
        self.mean_F.copy_(mean_F)
        self.std_F.copy_(torch.where(std_F > 1e-12, std_F, 1.0))

    def forward(self, features: Tensor) -> Tensor:
        """Standardize the last axes."""
        return (features - self.mean_F) / self.std_F


def own_frames(lengths_B: Tensor | None, x_BCTF: Tensor) -> Tensor | None:
    """Return 1 for frames of the clips' own and 0 for padding, `[B, 1, T, 1]`; None where there is no padding."""
    if lengths_B is None:
        return None
    return own_mask(lengths_B, x_BCTF.shape[2])[:, None, :, None].to(x_BCTF.dtype)


def adopt(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give a network the weights of a trained one of the same kind.

    Its last layer, which may know other emotions, and the statistics of its input stay as they are.
    """
    own = network.state_dict()
    kept = {name: own[name] for name in own if name.startswith(("classify.", "standardize."))}
    network.load_state_dict({**weights, **kept})
