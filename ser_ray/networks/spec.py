"""What a network is to the rest of the house, and the networks there are, found by name. Nothing here needs torch.

A network is a frozen dataclass: its fields are its settings, and so its flags; what else there is to know of it stands
in class variables and in `build`, which makes the torch module. To add one, write such a dataclass and name it in
`NETWORKS`, or, from outside, call `ser_ray.register`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, ClassVar, Protocol

from ser_ray.base.errors import UserError
from ser_ray.base.registry import registered_specs
from ser_ray.networks.cnn1d import Cnn1dSpec
from ser_ray.networks.log_mel_resnet import LogMelResNetSpec
from ser_ray.networks.probe import ProbeSpec
from ser_ray.networks.space import Space

NETWORKS: tuple[Any, ...] = (LogMelResNetSpec, Cnn1dSpec, ProbeSpec)
DEFAULT_NETWORK = "log_mel_resnet"


class NetworkSpec(Protocol):
    """A network with its settings.

    One whose features have one shape may have among these a `mixup`, by which training clips are mixed then.

    Attributes:
        name: As `--model` has it.
        features: The kind of features it takes, by name.
        training: Its usual training: fields of `training.settings.TrainConfig` that are not at their default.
        space: What a search changes unless told otherwise.
        changes_frames: Whether its training clips, which must be log-mel frames, are changed afresh in every epoch.
        views: Speed, and pitch in semitones, of the copies of a log-mel clip that its answer is averaged over; none to
            answer clips as they are.
        takes_speaker_norm: Whether its features may be normalized by speaker.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    name: ClassVar[str]
    features: ClassVar[str]
    training: ClassVar[dict[str, Any]]
    space: ClassVar[Space]
    changes_frames: ClassVar[bool]
    views: ClassVar[tuple[tuple[float, float], ...]]
    takes_speaker_norm: ClassVar[bool]

    def build(self, shape: tuple[int | None, ...], num_classes: int) -> Any:
        """Make an untrained network; here torch may be imported.

        Args:
            shape: Of one clip's features, as `features.arrays.shape_of` gives it; None where lengths vary.
            num_classes: Number of emotions to tell apart.

        Returns:
            A `torch.nn.Module` called with features `[B, *shape]`, padded where lengths vary, and `lengths_B`, or None
            where all are whole; it returns `logits_BC`. Its part `standardize` is a `modules.layers.Standardize`; its
            last layer, which another set of emotions does not share, is named `classify`.
        """


def find_network(name: str) -> Any:
    """Return the network of a name.

    Raises:
        UserError: There is none; the message names those there are.
    """
    known = {spec.name: spec for spec in (*NETWORKS, *registered_specs("network"))}
    if name not in known:
        raise UserError(f"--model {name}: no such model; choose from {', '.join(known)}")
    return known[name]


def write_network(network: NetworkSpec) -> dict[str, Any]:
    """Return name and settings of a network as JSON holds them."""
    return {"model": network.name, **asdict(network)}


def read_network(settings: dict[str, Any]) -> NetworkSpec:
    """Return the network that `write_network` wrote.

    Raises:
        UserError: There is no such network, or a setting makes no sense.
    """
    return find_network(settings["model"])(**{name: value for name, value in settings.items() if name != "model"})
