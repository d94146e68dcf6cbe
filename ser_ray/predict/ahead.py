"""Short recordings opened before their turn, so that an encoder on a GPU hears the windows of many at a time.

One window leaves a GPU idle. Answers stay each recording's own: only what encoders hear is computed together.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from ser_ray.model.answers import hear_together
from ser_ray.model.together import Together
from ser_ray.model.windows import Hearing, WindowConfig
from ser_ray.predict.inputs import Piece
from ser_ray.predict.voices import open_hearing

WINDOWS = 64  # That are heard at a time.
SHORT_BYTES = 4 << 20  # A larger file has windows enough of its own.


class Ahead:
    """Opens the recordings of a task in their order.

    Args:
        together: Who answers.
        windows: Into which windows recordings are cut.
        pieces: The recordings; none to open each by itself.
    """

    def __init__(self, together: Together, windows: WindowConfig, pieces: Sequence[Piece]) -> None:
        self.windows, self.features, self.where = windows, together.features[0], together.models[0].place.type
        self.encoders = [features for features in together.features if getattr(features, "wants_gpu", False)]
        worth_it = self.where != "cpu" and self.encoders
        self.left = deque(piece for piece in pieces if not piece.problem) if worth_it else deque()
        self.opened: dict[str, tuple[Hearing, io.IOBase]] = {}

    def open(self, piece: Piece) -> tuple[Hearing, io.IOBase]:
        """Open a recording and hear through it once; its file is to be closed after it.

        Raises:
            AudioError: It cannot be used.
            OSError: It cannot be read.
        """
        if piece.name not in self.opened:
            self.opened[piece.name] = open_hearing(piece, self.windows, self.features)
            self._open_more(piece)
        return self.opened.pop(piece.name)

    def _open_more(self, piece: Piece) -> None:
        """Open the recordings after one, and have the encoders hear all of their windows."""
        while self.left and self.left[0].name != piece.name:  # those before it had their turn
            self.left.popleft()
        count = len(self.opened[piece.name][0].windows)
        while self.left and count < WINDOWS and self.left[0].size <= SHORT_BYTES:
            other = self.left.popleft()
            if other.name == piece.name:
                continue
            try:
                self.opened[other.name] = open_hearing(other, self.windows, self.features)
                count += len(self.opened[other.name][0].windows)
            except Exception:  # which it meets again when its turn comes
                continue
        for features in self.encoders if len(self.opened) > 1 else ():
            with suppress(Exception):  # whose fault it is shows when each is heard by itself
                hear_together(features, [hearing for hearing, _ in self.opened.values()], self.where)
