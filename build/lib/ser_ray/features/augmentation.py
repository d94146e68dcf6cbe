"""The names of augmentations: changed copies of sound, alone or in chains."""

from __future__ import annotations

from ser_ray.base.errors import UserError

STEPS = ("noise", "stretch", "pitch", "shift")
DRAWN = {"noise", "shift"}  # those that draw random numbers


def parse_augmentation(name: str) -> tuple[str, ...]:
    """Read an augmentation's name.

    Args:
        name: `none`, one of `STEPS`, or a chain of them such as `stretch+pitch`.

    Returns:
        The steps in their order; none for `none`.

    Raises:
        UserError: A step is unknown; the message names the choices.
    """
    steps = () if name == "none" else tuple(name.split("+"))
    if not set(steps) <= set(STEPS):
        raise UserError(
            f"unknown augmentation {name!r}: choose none, {', '.join(STEPS)}, or a chain like stretch+pitch"
        )
    return steps
