"""Where the encoders of models are now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ser_ray.base.errors import UserError
from ser_ray.model.model import Model


def locate_encoders(models: Sequence[Model], places: Sequence[str] = ()) -> list[Model]:
    """Return models with the encoders of their features where these are now, each told by its content.

    Args:
        models: Of any features; those without an encoder stay as they are.
        places: Where to look before the places that they name (`features.encoder_files.find_encoder`).

    Raises:
        UserError: An encoder is nowhere, or a place is given and no model has an encoder.
    """
    if places and not any(hasattr(model.features, "locate") for model in models):
        raise UserError(f"--encoder {' '.join(places)}: no encoder makes the features of these models; leave it out")
    return [
        replace(model, features=model.features.locate(places)) if hasattr(model.features, "locate") else model
        for model in models
    ]
