"""`register`: how a caller adds a corpus, a kind of features or a network of his own, without changing ser_ray."""

from __future__ import annotations

from typing import Any

from ser_ray.base.errors import UserError
from ser_ray.base.registry import register_spec
from ser_ray.features.spec import FEATURES
from ser_ray.networks.spec import NETWORKS
from ser_ray.speech.corpora import CORPORA

_KINDS = (  # what only such a specification has, what it is called, its built-in ones, and where its name is
    ("parse", "corpus", CORPORA, "NAME"),
    ("build", "network", NETWORKS, "name"),
    ("kernel", "features", FEATURES, "name"),
)


def register(spec: Any) -> Any:
    """Add a corpus, a kind of features or a network to those that ser_ray knows, until the process ends.

    Features and networks reach workers by value, with the module that defines them. A model that was trained with them
    can be loaded where they are registered again, and is refused elsewhere.

    Args:
        spec: A corpus (`NAME`, `PUBLISHED_CLIPS`, `parse(path)`, as `speech.corpora.ravdess` has them), a class as
            `networks.spec.NetworkSpec` says, or one as `features.spec.Features` says.

    Returns:
        The specification, so that this serves as a decorator too.

    Raises:
        UserError: It is none of these, or its name is taken.
    """
    for mark, kind, built_in, attribute in _KINDS:
        if hasattr(spec, mark):
            name = getattr(spec, attribute)
            if name in (getattr(known, attribute) for known in built_in):
                raise UserError(f"there is a {kind} {name} already: register yours under another name")
            register_spec(kind, name, spec)
            return spec
    raise UserError(f"{spec!r} is no corpus (parse), no network (build) and no kind of features (kernel)")
