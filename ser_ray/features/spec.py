"""What a kind of features is, and the kinds there are, found by name. Nothing here needs torch.

A kind is a frozen dataclass: its fields are its settings, and so its flags; what else there is to know of it stands in
class variables and two methods. To add one, write such a dataclass and name it in `FEATURES`, or, from outside, call
`ser_ray.register`.

Shapes: T samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa

from ser_ray.base.errors import UserError
from ser_ray.base.registry import registered_specs
from ser_ray.features.encoder import Encoder
from ser_ray.features.log_mel import LogMel
from ser_ray.features.summary import Summary
from ser_ray.features.waveform import Waveform

FEATURES: tuple[Any, ...] = (Summary, LogMel, Waveform, Encoder)
_OF_ALL_KINDS = {"n_fft", "hop_length", "n_mels", "n_mfcc", "chroma_tuning"}  # which stores once named, used or not


class Kernel(Protocol):
    """What computes features of a clip, on one device."""

    def rows(
        self, waveform_T: np.ndarray, utterance_id: str, augmentations: Sequence[str], seed: int
    ) -> list[np.ndarray]:
        """Compute the rows of one clip, one per augmentation.

        Args:
            waveform_T: float32 samples at the rate of the settings.
            utterance_id: Together with the seed and the augmentation's name the source of random numbers.
            augmentations: Names as `parse_augmentation` reads them.
            seed: Of the run.

        Returns:
            C-contiguous arrays that fit `Features.arrow_type`.
        """

    def to(self, device: str) -> Any:
        """Move to `cpu` or `cuda`."""


class Features(Protocol):
    """A kind of features with its settings.

    One that a GPU makes no faster than the CPUs beside it may say so by `cpu_only`; `--device cuda` is refused then.

    Attributes:
        name: As `--features` has it.
        version: Of what the kernel computes: rows of another version never mix with these. It goes up when the same
            settings give other rows, and when a setting's default changes.
        augment: The augmentations that are usual.
        sample_rate: Of the analysed waveform, Hz.
        offset_s: Start of the window within the clip, seconds.
        duration_s: Length of the window, seconds; None for the rest of the clip.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    name: ClassVar[str]
    version: ClassVar[int]
    augment: ClassVar[tuple[str, ...]]
    sample_rate: int
    offset_s: float
    duration_s: float | None

    def arrow_type(self) -> pa.DataType:
        """Return the Arrow type of one clip's features: nested lists, of which the outermost alone may vary."""

    def kernel(self) -> Kernel:
        """Make what computes them; here torch may be imported."""


def find_features(name: str) -> Any:
    """Return the kind of features of a name.

    Raises:
        UserError: There is none; the message names those there are.
    """
    known = {spec.name: spec for spec in (*FEATURES, *registered_specs("features"))}
    if name not in known:
        raise UserError(f"unknown features {name!r}: choose one of {', '.join(known)}")
    return known[name]


def write_features(features: Features) -> dict[str, Any]:
    """Return the kind, its version beyond 1, and the settings, as JSON holds them."""
    version = {"version": features.version} if features.version > 1 else {}
    return {"kind": features.name, **version, **asdict(features)}


def read_features(settings: dict[str, Any]) -> Features:
    """Return the features that `write_features` wrote, now or in earlier versions of ser_ray.

    Raises:
        UserError: The kind is unknown or of another version, or a setting makes no sense.
    """
    spec = find_features(settings["kind"])
    if settings.get("version", 1) != spec.version:
        raise UserError(f"{spec.name} features are at version {spec.version}, got {settings.get('version', 1)}")
    own = {field.name for field in fields(spec)}
    given = {name: value for name, value in settings.items() if name not in ("kind", "version")}
    if strange := sorted(given.keys() - own - _OF_ALL_KINDS):
        raise UserError(f"{spec.name} features have no setting {strange[0]}")
    return spec(**{name: value for name, value in given.items() if name in own})


def features_identity(features: Features) -> dict[str, Any]:
    """Return what decides over the rows: the kind, its version, and the settings that are not at their default.

    So a setting that is added later changes the identity of no store that does without. A kind whose settings say less
    than its rows depend on, such as where weights lie, has an `identity` of its own.
    """
    if own := getattr(features, "identity", None):
        return {"kind": features.name, "version": features.version, **own()}
    usual = {field.name: field.default for field in fields(features) if field.default is not MISSING}
    changed = {name: value for name, value in asdict(features).items() if (name, value) not in usual.items()}
    return {"kind": features.name, "version": features.version, **changed}
