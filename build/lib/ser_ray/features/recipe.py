"""What a feature store is made by: the features of each clip, and the changed copies of it beside them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from ser_ray.base.errors import UserError
from ser_ray.features.augmentation import DRAWN, parse_augmentation
from ser_ray.features.spec import Features, features_identity, read_features, write_features
from ser_ray.features.summary import Summary


@dataclass(frozen=True)
class FeaturizeConfig:
    """What to compute from each clip.

    Attributes:
        augment: Rows per clip: `none` is the clip itself; `noise`, `stretch`, `pitch`, `shift`, or chains such as
            `stretch+pitch`. Augmented rows are used in training only. By default none, noise and stretch+pitch for
            `summary`, and none alone for the others, which are changed afresh in every epoch of training.
        seed: Seed of all draws; with it and a clip's id, the clip's rows are always the same.
    """

    features: Features = field(default_factory=Summary)
    augment: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.augment:
            object.__setattr__(self, "augment", self.features.augment)
        for name in self.augment:
            parse_augmentation(name)
        if len(set(self.augment)) != len(self.augment):
            raise UserError(f"--augment names one augmentation twice: {' '.join(self.augment)}")
        others = sorted(set(self.augment) - {"none"})  # in one order, so that any gives the same store
        object.__setattr__(self, "augment", ("none", *others))

    def settings(self) -> dict[str, Any]:
        """Return what `store.json` holds of it."""
        return {"features": write_features(self.features), "augmentations": list(self.augment), "seed": self.seed}

    def identity(self) -> dict[str, Any]:
        """Return what decides over the rows of a store: the seed only where something is drawn."""
        drawn = any(DRAWN & set(parse_augmentation(name)) for name in self.augment)
        seed = {"seed": self.seed} if drawn else {}
        return {"features": features_identity(self.features), "augmentations": list(self.augment), **seed}

    def fingerprint(self) -> str:
        """Return 12 hex digits that stand for `identity`."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:12]


def read_recipe(settings: dict[str, Any]) -> FeaturizeConfig:
    """Return what `FeaturizeConfig.settings` wrote, now or in earlier versions of ser_ray.

    Raises:
        UserError: It names features that are unknown here.
    """
    return FeaturizeConfig(read_features(settings["features"]), tuple(settings["augmentations"]), settings["seed"])
