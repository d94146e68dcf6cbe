"""AdamW whose learning rate and momentum are read from the device, so that a captured step follows them."""

from __future__ import annotations

from typing import Any

import torch


class TensorAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter, Decoupled weight decay regularization, 2019) with numbers kept in tensors.

    torch's fused AdamW takes momentum as a number, which a CUDA graph keeps as it was when it was captured; with
    momentum as a tensor it takes a dozen kernels for each weight. This takes a dozen for all. Its state is that of
    torch's fused AdamW, so that a training may go on elsewhere with that one.

    Args:
        groups: Parameter groups, all on one device.
        learning_rate: The first one; `pace` takes over what stands in `param_groups` since.
    """

    def __init__(self, groups: list[dict[str, Any]], learning_rate: float) -> None:
        super().__init__(groups, lr=learning_rate, fused=True)
        device = self.param_groups[0]["params"][0].device
        self.rate, self.momentum = torch.zeros((), device=device), torch.zeros((), device=device)
        for parameter in (p for group in self.param_groups for p in group["params"]):
            zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            self.state[parameter] = {"step": torch.zeros((), device=device), **zeros}
        self.pace()

    def pace(self) -> None:
        """Bring learning rate and momentum of the next steps, which all groups share, to the device."""
        self.rate.fill_(self.param_groups[0]["lr"])
        self.momentum.fill_(self.param_groups[0]["betas"][0])

    @torch.no_grad()
    def step(self) -> None:
        """Change the weights by their gradients; nothing waits for the device."""
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            gradients = [p.grad for p in weights]
            counts, means, squares = (
                [self.state[p][name] for p in weights] for name in ("step", "exp_avg", "exp_avg_sq")
            )
            torch._foreach_add_(counts, 1)
            count, beta = counts[0], group["betas"][1]
            torch._foreach_mul_(weights, 1 - self.rate * group["weight_decay"])
            torch._foreach_mul_(means, self.momentum)
            torch._foreach_add_(means, torch._foreach_mul(gradients, 1 - self.momentum))
            torch._foreach_mul_(squares, beta)
            torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta)
            roots = torch._foreach_sqrt(squares)
            torch._foreach_div_(roots, (1 - beta**count).sqrt())
            torch._foreach_add_(roots, group["eps"])
            changes = torch._foreach_div(means, roots)
            torch._foreach_mul_(changes, self.rate / (1 - self.momentum**count))
            torch._foreach_sub_(weights, changes)
