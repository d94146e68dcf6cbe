"""One task of prediction: some recordings in, the rows of their windows out."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ser_ray.base import storage
from ser_ray.base.errors import UserError
from ser_ray.base.settings import between, check_settings
from ser_ray.model.answers import WINDOWS_SCHEMA, answer_windows, tell_windows
from ser_ray.model.calibration import pool_answers
from ser_ray.model.together import Together
from ser_ray.model.windows import Hearing, WindowConfig
from ser_ray.predict.inputs import Piece
from ser_ray.predict.output import RECORDINGS_SCHEMA, REJECTS_SCHEMA, Output
from ser_ray.speech.audio import AudioError, count_notes
from ser_ray.store.crashes import Attempts

WHOLE_FILE_BYTES = 32 << 20  # a smaller file is fetched once, though it is heard twice
CRASHED = "internal error: it kills the worker that takes it; please report it"


@dataclass(frozen=True)
class PredictConfig:
    """How recordings are answered.

    Attributes:
        windows: Into which windows they are cut.
        abstain_below: A window whose most probable emotion is less probable than this is answered by none.
    """

    windows: WindowConfig = field(default_factory=WindowConfig)
    abstain_below: float = between(0.0, 0, 1)

    def __post_init__(self) -> None:
        check_settings(self)


class Answerer:
    """Answers recordings and writes what became of them.

    Args:
        together: Models that answer together.
        config: How they answer.
        output: Where to write.
    """

    def __init__(self, together: Together, config: PredictConfig, output: Output) -> None:
        self.together, self.config, self.output = together, config, output

    def __call__(self, name: str, pieces: Sequence[Piece]) -> dict[str, Any]:
        """Answer the recordings of one task, unless that was done before.

        Args:
            name: Of the task.
            pieces: Its recordings.

        Returns:
            The numbers of `recordings` and of those `rejected`, of `notes` by kind, and the `error` that stopped the
            task, or an empty text.
        """
        outcome = {"recordings": len(pieces), "rejected": 0, "notes": count_notes([]), "error": ""}
        try:
            if not self.output.has(name):
                outcome["rejected"], notes = self._answer(name, pieces)
                outcome["notes"] = count_notes(notes)
        except UserError as error:
            outcome["error"] = str(error)
        except OSError as error:
            what = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
            outcome["error"] = (
                f"{self.output.root} cannot be written: {what}; put that right, and the same command goes on from here"
            )
        return outcome

    def _answer(self, name: str, pieces: Sequence[Piece]) -> tuple[int, list[str]]:
        attempts = Attempts(self.output.attempts_path(name))
        windows, recordings, rejects, notes = [], [], [], []
        for piece in pieces:
            try:
                if not attempts.take(piece.name):
                    raise AudioError(CRASHED)
                if piece.problem:
                    raise AudioError(piece.problem)
                of_windows, of_recordings, of_notes = answer_piece(self.together, piece, self.config)
            except Exception as error:  # whatever is wrong with a recording, it costs that one only
                reject = {"file": piece.path, "start": piece.start_s, "end": piece.end_s, "reason": _reason(error)}
                rejects.append(reject)
                continue
            windows.append(of_windows)
            recordings += of_recordings
            notes += of_notes
        self.output.write(
            name,
            pa.concat_tables([WINDOWS_SCHEMA.empty_table(), *windows]),
            pa.Table.from_pylist(recordings, RECORDINGS_SCHEMA),
            pa.Table.from_pylist(rejects, REJECTS_SCHEMA),
        )
        attempts.end()
        return len(rejects), notes


def answer_piece(
    together: Together, piece: Piece, config: PredictConfig
) -> tuple[pa.Table, list[dict[str, Any]], tuple[str, ...]]:
    """Answer one recording.

    Returns:
        The rows of its windows, those of its channels (`RECORDINGS_SCHEMA`), and what is to be noted.

    Raises:
        AudioError: It cannot be used.
        OSError: It cannot be read.
    """
    labels = together.labels.names
    with storage.open_read(piece.path) as stream:
        file = io.BytesIO(stream.read()) if piece.size <= WHOLE_FILE_BYTES else stream
        hearing = Hearing(file, config.windows, together.features[0], piece.start_s, piece.end_s)
        try:
            answers_WC = answer_windows(together.models, hearing, together.weights)
        finally:
            hearing.close()
    table = tell_windows(piece.path, hearing, answers_WC, labels, config.abstain_below)
    rows = table.select(["channel", "emotion"]).to_pylist()
    channels = dict.fromkeys(row["channel"] for row in rows)
    return table, [_sum_up(piece, hearing, answers_WC, labels, config, channel) for channel in channels], hearing.notes


def _sum_up(
    piece: Piece, hearing: Hearing, answers_WC: np.ndarray, labels: Sequence[str], config: PredictConfig, channel: int
) -> dict[str, Any]:
    """Return the row of one channel of a recording."""
    pairs = [pair for pair in zip(hearing.windows, answers_WC, strict=True) if pair[0].channel == channel]
    heard = [(window, answer_C) for window, answer_C in pairs if not window.silent]
    begin_s = piece.start_s or 0.0
    row = {
        **{"file": piece.path, "channel": channel, "start": begin_s, "end": begin_s + hearing.seconds},
        "seconds": hearing.seconds,
        "answered_s": sum((window.speaks_s for window, _ in heard), 0.0),
        "silent_s": sum((window.speaks_s for window, _ in pairs if window.silent), 0.0),
        "windows": len(pairs),
        "silent_windows": len(pairs) - len(heard),
        "abstained_windows": sum(answer_C.max() < config.abstain_below for _, answer_C in heard),
    }
    if heard:
        whole_C = pool_answers([answer_C[None] for _, answer_C in heard])[0]
        share_C = np.zeros(len(labels))
        for window, answer_C in heard:
            if answer_C.max() >= config.abstain_below:
                share_C[answer_C.argmax()] += window.speaks_s / row["answered_s"]
        row |= {
            "emotion": labels[int(whole_C.argmax())] if whole_C.max() >= config.abstain_below else None,
            "probability": float(whole_C.max()),
            "probabilities": whole_C,
            "shares": share_C,
        }
    return row


def _reason(error: Exception) -> str:
    """Say in one line why a recording could not be used."""
    if isinstance(error, AudioError):
        return str(error)
    text = " ".join(str(error).split())
    if isinstance(error, OSError):
        return f"cannot be read: {os.strerror(error.errno) if error.errno else text}"
    return f"internal error: {type(error).__name__}: {text}; please report it"
