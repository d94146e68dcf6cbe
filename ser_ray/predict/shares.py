"""Long recordings whose windows are answered by several workers at once, each a share of them.

What is said of a recording hangs on all of it: which windows are silent, its scale, its condition. So each share hears
the whole recording through once, which costs little beside the network, and answers its own windows. The task of the
recording then runs as it does for a short one, except that it finds the answers. So the rows are the same to the
last bit, and where a share is missing, the task answers by itself.

Shapes: W windows, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ser_ray.base.errors import UserError
from ser_ray.model.answers import answer_windows
from ser_ray.model.together import Together
from ser_ray.predict.inputs import Piece
from ser_ray.predict.task import Answerer, PredictConfig, start_outcome, tell_unwritable
from ser_ray.predict.voices import open_hearing
from ser_ray.store.crashes import Attempts

SHARE_S = 300.0  # Least length of a share; a recording twice as long is shared.
MOST_SHARES = 8  # Of one recording: each hears all of it, so that more would cost more than they bring.
SPREAD_BELOW = 64  # So many recordings or more keep the workers busy without shares.


class Share(NamedTuple):
    """A share of a long recording's windows.

    Attributes:
        piece: The recording.
        number: Of the share, from 0.
        of: How many shares the recording has.
    """

    piece: Piece
    number: int
    of: int


def can_share(together: Together, config: PredictConfig) -> bool:
    """Tell whether windows can be answered apart: a speaker's voice, or speech itself, is told by hearing all."""
    return config.windows.silence == "energy" and not any(model.speaker_norm for model in together.models)


def count_shares(length_s: float) -> int:
    """Return into how many shares a recording of some seconds is dealt."""
    return min(MOST_SHARES, max(1, int(length_s // SHARE_S)))


def name_shares(name: str, of: int) -> list[str]:
    """Return the names of the shares of a task's recording."""
    return [f"{name}-{number}-{of}" for number in range(of)]


class Sharer:
    """Answers shares of long recordings, and whole tasks of all others.

    Args:
        answerer: Answers the others.
        shares: The shares, by name.
    """

    def __init__(self, answerer: Answerer, shares: Mapping[str, Share]) -> None:
        self.answerer, self.shares, self.together = answerer, shares, answerer.together

    def __call__(self, name: str, pieces: Sequence[Piece]) -> dict[str, Any]:
        """Answer a share, or a task, unless that was done before; return what `Answerer` does.

        A share of a recording that cannot be used is left to the recording's own task, which tells why.
        """
        if name not in self.shares:
            return self.answerer(name, pieces)
        outcome = start_outcome(0)
        output, share = self.answerer.output, self.shares[name]
        try:
            if not output.has_share(name):
                attempts = Attempts(output.attempts_path(name))
                answers_WC = None
                if attempts.take(share.piece.name):
                    answers_WC = answer_share(self.answerer.together, share, self.answerer.config)
                if answers_WC is not None:
                    output.write_share(name, answers_WC)
                attempts.end()
        except UserError as error:
            outcome["error"] = str(error)
        except OSError as error:
            outcome["error"] = tell_unwritable(output, error)
        return outcome


def answer_share(together: Together, share: Share, config: PredictConfig) -> np.ndarray | None:
    """Answer a share of a recording's windows.

    Returns:
        Probabilities `[W, C]` of all its windows, NaN for silent ones and those of other shares; None where the
        recording cannot be used.
    """
    try:
        hearing, file = open_hearing(share.piece, config.windows, together.features[0])
        with file:
            try:
                return answer_windows(together.models, hearing, together.weights, share=(share.number, share.of))
            finally:
                hearing.close()
    except Exception:  # whatever is wrong, the recording's own task meets it, too, and says so
        return None
