"""Whether what makes the features has heard the corpora that are tested."""

from __future__ import annotations

from ser_ray.features.spec import Features
from ser_ray.store.rows import Rows


def warn_of_encoder(features: Features, tested: Rows) -> str:
    """Return a warning where the encoder of some features was trained on corpora that are tested, or an empty text."""
    heard = sorted(set(getattr(features, "heard", ())) & tested.values("corpus"))
    if not heard:
        return ""
    return (
        f"The encoder {features.model} was trained on {' and '.join(heard)}, tested here ({features.heard_by}): these "
        "scores say nothing about speech that it has not heard."
    )


def add_warning(leaks: dict, warning: str) -> dict:
    """Return what `check_leaks` found with a warning of `warn_of_encoder`, which makes it leaky."""
    return leaks | {"leaky": True, "encoder": warning} if warning else leaks
