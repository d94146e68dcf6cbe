"""What callers add to what is built in: corpora, kinds of features and networks, each found by its name.

A registry is a dictionary of this process. Nothing on disk can add to it: a file that names what nobody registered is
refused, and no file makes Python import anything.
"""

from __future__ import annotations

from typing import Any

from ser_ray.base.errors import UserError

_REGISTERED: dict[str, dict[str, Any]] = {}


def register_spec(kind: str, name: str, spec: Any) -> None:
    """Add a specification under a name; the same one may be added again.

    Args:
        kind: What it specifies, such as `network`.
        name: By which it is found.
        spec: Whatever that kind asks for.

    Raises:
        UserError: The name is taken by another one.
    """
    known = _REGISTERED.setdefault(kind, {})
    if known.get(name, spec) is not spec:
        raise UserError(f"there is a {kind} {name} already: register yours under another name")
    known[name] = spec


def registered_specs(kind: str) -> tuple[Any, ...]:
    """Return what callers added of a kind, in their order."""
    return tuple(_REGISTERED.get(kind, {}).values())
