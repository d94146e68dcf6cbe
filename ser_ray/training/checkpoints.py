"""The checkpoint of a training: one file of tensors, which holds the rest as JSON; nothing in it is executed."""

from __future__ import annotations

import json
from typing import Any

import safetensors.torch
from torch import Tensor

from ser_ray.base import storage
from ser_ray.training.learner import Learner
from ser_ray.training.loop import Kept


def checkpoint_path(root: str) -> str:
    """Return where the checkpoint of a training lies, from `Task.root`."""
    return storage.join(root, "checkpoints", "training.safetensors")


def write_checkpoint(root: str, learner: Learner, history: list[dict[str, Any]]) -> None:
    """Write all that is needed to go on after an epoch, and the weights of the best one, in place of what was there."""
    tensors, rest = learner.state()
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    data = safetensors.torch.save(tensors, {"state": json.dumps({"history": history, "learner": rest})})
    storage.write(checkpoint_path(root), lambda stream: stream.write(data))


def read_checkpoint(root: str) -> Kept | None:
    """Return the tensors and the JSON state of a training's checkpoint; None where there is none."""
    if not storage.exists(checkpoint_path(root)):
        return None
    with storage.open_read(checkpoint_path(root)) as stream:
        data = stream.read()
    size = int.from_bytes(data[:8], "little")  # of the header: https://github.com/huggingface/safetensors
    state = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["state"])
    return safetensors.torch.load(data), state


def best_weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the best epoch from the tensors of a checkpoint."""
    return {name.removeprefix("kept."): tensor for name, tensor in tensors.items() if name.startswith("kept.")}
