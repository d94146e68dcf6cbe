"""One task of prediction: some recordings in, the rows of their windows out."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ser_ray.base.errors import UserError
from ser_ray.base.settings import between, check_settings
from ser_ray.features.spec import Features
from ser_ray.model.answers import WINDOWS_SCHEMA, answer_windows, tell_windows
from ser_ray.model.calibration import pool_answers
from ser_ray.model.domain import join_domains
from ser_ray.model.together import Together
from ser_ray.model.windows import Hearing, WindowConfig
from ser_ray.predict.ahead import Ahead
from ser_ray.predict.inputs import Piece
from ser_ray.predict.output import RECORDINGS_SCHEMA, REJECTS_SCHEMA, Output
from ser_ray.predict.voices import LEAST_S, Voice, by_features, by_speaker, hear_voices
from ser_ray.speech.audio import AudioError, count_notes
from ser_ray.store.crashes import Attempts

CRASHED = "internal error: it kills the worker that takes it; please report it"


@dataclass(frozen=True)
class PredictConfig:
    """How recordings are answered.

    Attributes:
        windows: Into which windows they are cut.
        abstain_below: A window whose most probable emotion is less probable than this is answered by none.
        trust_short_speakers: With a model that normalizes by speaker, answer windows of people of whom less than 30 s
            are heard, too.
    """

    windows: WindowConfig = field(default_factory=WindowConfig)
    abstain_below: float = between(0.0, 0, 1)
    trust_short_speakers: bool = False

    def __post_init__(self) -> None:
        check_settings(self)

    def settings(self, features: Features) -> dict[str, Any]:
        """Return what decides over the answers to recordings, with the lengths that windows of some features have."""
        window_s, hop_s = self.windows.lengths_s(features)
        lengths = {"window_s": window_s, "hop_s": hop_s}
        how = {"channels": self.windows.channels, "silence": self.windows.silence}
        trust = {"trust_short_speakers": self.trust_short_speakers}
        return {**lengths, **how, "abstain_below": self.abstain_below, **trust}


def start_outcome(recordings: int, error: str = "") -> dict[str, Any]:
    """Return what a task of some recordings starts from, or, by an error, ends with (`Answerer.__call__`)."""
    return {"recordings": recordings, "rejected": 0, "notes": count_notes([]), "error": error, "short": 0}


class Answerer:
    """Answers recordings and writes what became of them.

    Args:
        together: Models that answer together.
        config: How they answer.
        output: Where to write.
        shares: Names of the shares in which a long recording was answered before, by the name of its task.
    """

    def __init__(
        self,
        together: Together,
        config: PredictConfig,
        output: Output,
        shares: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.together, self.config, self.output, self.shares = together, config, output, shares or {}

    def __call__(self, name: str, pieces: Sequence[Piece]) -> dict[str, Any]:
        """Answer the recordings of one task, unless that was done before.

        Args:
            name: Of the task.
            pieces: Its recordings.

        Returns:
            The numbers of `recordings` and of those `rejected`, of `notes` by kind, and the `error` that stopped the
            task, or an empty text; and of how many recordings people were heard too `short` to be answered.
        """
        outcome = start_outcome(len(pieces))
        try:
            if not self.output.has(name):
                outcome["rejected"], notes, outcome["short"] = self._answer(name, pieces)
                outcome["notes"] = count_notes(notes)
        except UserError as error:
            outcome["error"] = str(error)
        except OSError as error:
            outcome["error"] = tell_unwritable(self.output, error)
        return outcome

    def _answer(self, name: str, pieces: Sequence[Piece]) -> tuple[int, list[str], int]:
        attempts = Attempts(self.output.attempts_path(name))
        windows, recordings, rejects, notes, short = [], [], [], [], 0
        kept_WC = self.output.read_shares(self.shares[name]) if name in self.shares else None
        one_by_one = attempts.again or self._wants_voices  # in one's turn it shows who kills a worker
        ahead = Ahead(self.together, self.config.windows, [] if one_by_one else pieces)
        for piece, voices in self._with_voices(pieces, attempts):
            try:
                if not attempts.take(piece.name):
                    raise AudioError(CRASHED)
                if piece.problem:
                    raise AudioError(piece.problem)
                opened = ahead.open(piece)
                answered = answer_piece(self.together, piece, opened, self.config, voices, kept_WC)
                of_windows, of_recordings, of_notes = answered
            except Exception as error:  # whatever is wrong with a recording, it costs that one only
                reject = {"file": piece.path, "start": piece.start_s, "end": piece.end_s, "reason": _reason(error)}
                rejects.append(reject)
                continue
            windows.append(of_windows)
            recordings += of_recordings
            short += voices is not None and bool(_too_short(voices, self.config))
            notes += of_notes
        self.output.write(
            name,
            pa.concat_tables([WINDOWS_SCHEMA.empty_table(), *windows]),
            pa.Table.from_pylist(recordings, RECORDINGS_SCHEMA),
            pa.Table.from_pylist(rejects, REJECTS_SCHEMA),
        )
        attempts.end()
        return len(rejects), notes, short

    @property
    def _wants_voices(self) -> bool:
        return any(model.speaker_norm for model in self.together.models)

    def _with_voices(
        self, pieces: Sequence[Piece], attempts: Attempts
    ) -> Iterator[tuple[Piece, dict[int, Voice] | None]]:
        """Yield recordings with what is known of the people in them, where a model wants to know."""
        if not self._wants_voices:
            yield from ((piece, None) for piece in pieces)
            return
        for group in by_speaker(pieces):
            usable = (piece for piece in group if not piece.problem and attempts.take(piece.name))
            voices = hear_voices(self.together.models, usable, self.config.windows)
            yield from ((piece, voices) for piece in group)


def tell_unwritable(output: Output, error: OSError) -> str:
    """Say in one line that an output cannot be written, and what to do."""
    what = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
    return f"{output.root} cannot be written: {what}; put that right, and the same command goes on from here"


def answer_piece(
    together: Together,
    piece: Piece,
    opened: tuple[Hearing, io.IOBase],
    config: PredictConfig,
    voices: dict[int, Voice] | None = None,
    kept_WC: np.ndarray | None = None,
) -> tuple[pa.Table, list[dict[str, Any]], tuple[str, ...]]:
    """Answer one recording.

    Args:
        together: Who answers.
        piece: The recording.
        opened: What `open_hearing` gives of it, which is closed here.
        config: How to answer.
        voices: What is known of the people in it, by channel, where the models ask for that.
        kept_WC: Answers to all of its windows that were given before, NaN for silent ones; others are not used.

    Returns:
        The rows of its windows, those of its channels (`RECORDINGS_SCHEMA`), and what is to be noted.

    Raises:
        AudioError: It cannot be used.
        OSError: It cannot be read.
    """
    labels = together.labels.names
    unsure = _too_short(voices or {}, config)
    hearing, file = opened
    with file:
        try:
            known = None if voices is None else by_features(voices)
            answers_WC = kept_WC
            if kept_WC is None or not _fits(kept_WC, hearing):
                answers_WC = answer_windows(together.models, hearing, together.weights, known)
        finally:
            hearing.close()
    table = tell_windows(piece.path, hearing, answers_WC, labels, config.abstain_below, unsure)
    rows = table.select(["channel", "emotion"]).to_pylist()
    recordings = []
    for channel in dict.fromkeys(row["channel"] for row in rows):
        least = math.inf if channel in unsure else config.abstain_below
        recordings.append(_sum_up(together, piece, hearing, answers_WC, least, channel))
    return table, recordings, hearing.notes


def _fits(answers_WC: np.ndarray, hearing: Hearing) -> bool:
    """Tell whether some answers are those to all windows of a recording that are not silent."""
    return np.array_equal(np.isnan(answers_WC[:, 0]), [window.silent for window in hearing.windows])


def _too_short(voices: dict[int, Voice], config: PredictConfig) -> set[int]:
    """Return the channels on which too little of somebody was heard to be answered."""
    few = {channel for channel, voice in voices.items() if voice.seconds < LEAST_S}
    return set() if config.trust_short_speakers else few


def _sum_up(
    together: Together, piece: Piece, hearing: Hearing, answers_WC: np.ndarray, least: float, channel: int
) -> dict[str, Any]:
    """Return the row of one channel of a recording; what is less probable than `least` has no emotion."""
    labels = together.labels.names
    pairs = [pair for pair in zip(hearing.windows, answers_WC, strict=True) if pair[0].channel == channel]
    heard = [(window, answer_C) for window, answer_C in pairs if not window.silent]
    begin_s, domain = piece.start_s or 0.0, join_domains([model.domain for model in together.models])
    condition = hearing.conditions[channel]
    measured = {"sample_rate": hearing.sample_rate, **(asdict(condition) if condition else {})}
    row = measured | {
        "outside": domain.outside(measured) if domain else None,
        **{"file": piece.path, "channel": channel, "start": begin_s, "end": begin_s + hearing.seconds},
        "seconds": hearing.seconds,
        "answered_s": sum((window.speaks_s for window, _ in heard), 0.0),
        "silent_s": sum((window.speaks_s for window, _ in pairs if window.silent), 0.0),
        "carried": piece.carried or None,
        "windows": len(pairs),
        "silent_windows": len(pairs) - len(heard),
        "abstained_windows": sum(answer_C.max() < least for _, answer_C in heard),
    }
    if heard:
        whole_C = pool_answers([answer_C[None] for _, answer_C in heard])[0]
        share_C = np.zeros(len(labels))
        for window, answer_C in heard:
            if answer_C.max() >= least:
                share_C[answer_C.argmax()] += window.speaks_s / row["answered_s"]
        row |= {
            "emotion": labels[int(whole_C.argmax())] if whole_C.max() >= least else None,
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
