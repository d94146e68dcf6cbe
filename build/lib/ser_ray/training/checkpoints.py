"""Checkpoints of a training: tensors as safetensors, the rest as JSON; nothing in them is executed."""

from __future__ import annotations

import json
from typing import Any

import safetensors.torch
from torch import Tensor

from ser_ray.training.learner import Learner


def write_checkpoint(folder: str, learner: Learner, history: list[dict[str, Any]]) -> None:
    """Write all that is needed to go on after an epoch into a local folder."""
    tensors, rest = learner.state()
    safetensors.torch.save_file({k: t.contiguous() for k, t in tensors.items()}, f"{folder}/state.safetensors")
    with open(f"{folder}/state.json", "w") as stream:
        json.dump({"history": history, "learner": rest}, stream)


def read_checkpoint(folder: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the JSON state of a checkpoint in a local folder."""
    with open(f"{folder}/state.json") as stream:
        return safetensors.torch.load_file(f"{folder}/state.safetensors"), json.load(stream)
