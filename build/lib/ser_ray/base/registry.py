"""What callers add to the kinds of things that ser_ray knows by name: a corpus, features, a network.

    from ser_ray.base.registry import register_spec
    register_spec("corpus", my_corpus.NAME, my_corpus)

A kind's own room says what its specs hold and joins them to those that are built in. Nothing here knows of speech.
"""

from __future__ import annotations

from typing import Any

from ser_ray.base.errors import UserError

_SPECS: dict[str, dict[str, Any]] = {}  # kind → name → spec


def register_spec(kind: str, name: str, spec: Any) -> None:
    """Add a spec of some kind for the rest of this process.

    Args:
        kind: What the spec is, such as `corpus`.
        name: By which it is found; one of a kind has it.
        spec: Whatever the kind's room asks for. The same object may be added again, as a notebook's cell does that
            runs twice.

    Raises:
        UserError: Another spec of the kind has the name.
    """
    specs = _SPECS.setdefault(kind, {})
    if specs.setdefault(name, spec) is not spec:
        raise UserError(f"the {kind} {name} is registered already, as another object: choose another name")


def registered_specs(kind: str) -> tuple[Any, ...]:
    """Return the specs of a kind that callers added, in the order in which they came."""
    return tuple(_SPECS.get(kind, {}).values())
