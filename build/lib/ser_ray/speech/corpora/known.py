"""The corpora whose file names tell the labels: those built in, and those that a caller added.

A corpus is any object with the three members of `Corpus`; the modules `ravdess`, `crema_d`, `tess` and `savee` are
such objects. A caller adds one by `ser_ray.base.registry.register_spec("corpus", my_corpus.NAME, my_corpus)`.
"""

from __future__ import annotations

from typing import Protocol

from ser_ray.base.errors import UserError
from ser_ray.base.registry import registered_specs
from ser_ray.speech.corpora import crema_d, ravdess, savee, tess
from ser_ray.speech.utterance import Utterance


class Corpus(Protocol):
    """What the search for clips asks of a corpus.

    Attributes:
        NAME: In lower case, letters, digits and underscores; stands before ids of clips, speakers and sentences.
        PUBLISHED_CLIPS: How many clips were published, by row of the audit table; may be empty.
    """

    NAME: str
    PUBLISHED_CLIPS: dict[str, int]

    def parse(self, path: str) -> Utterance | None:
        """Read a clip's labels off its path.

        Returns:
            The utterance, or None when the name does not have the shape of the corpus's names.

        Raises:
            ValueError: The name has the shape but a field holds what the corpus does not have.
        """


CORPORA: tuple[Corpus, ...] = (ravdess, crema_d, tess, savee)
UNKNOWN = "unknown"  # the corpus of stray files


def known_corpora() -> tuple[Corpus, ...]:
    """Return the corpora built in and those that a caller added.

    Raises:
        UserError: An added corpus has the name of another one.
    """
    corpora = (*CORPORA, *registered_specs("corpus"))
    names = [*(corpus.NAME for corpus in corpora), UNKNOWN]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"a registered corpus is called {name}, which is taken: give it another NAME")
    return corpora
