"""What is known of the people in recordings, for models that normalize by speaker.

A table's column `speaker` says which recordings are of one person; without it each recording, and each channel of it,
is a person's own. Recordings of one person stand in one task, which hears all of them before it answers any.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from ser_ray.features.spec import Features
from ser_ray.model.answers import listen_windows
from ser_ray.model.model import Model
from ser_ray.model.speakers import Known
from ser_ray.model.windows import Hearing, WindowConfig
from ser_ray.predict.inputs import Piece
from ser_ray.speech.audio import AudioError
from ser_ray.speech.packed import open_sound

WHOLE_FILE_BYTES = 32 << 20  # a smaller file is fetched once, though it is heard twice
LEAST_S = 30.0  # Of less speech of a person, normalization takes the mood for the voice.


@dataclass
class Voice:
    """One person.

    Attributes:
        seconds: How much was heard, without silence.
        known: What is known, by the features that it was heard by.
    """

    seconds: float = 0.0
    known: dict[Features, Known] = field(default_factory=dict)


def by_speaker(pieces: Iterable[Piece]) -> list[list[Piece]]:
    """Group recordings of one person, which a list of their own has; those of nobody named stand alone."""
    ordered = sorted(pieces, key=lambda piece: piece.speaker)
    groups = (list(group) for _, group in groupby(ordered, key=lambda piece: piece.speaker or piece))
    return list(groups)


def open_hearing(piece: Piece, windows: WindowConfig, features: Features) -> tuple[Hearing, io.IOBase]:
    """Open a recording and hear through it once; its file is to be closed after it.

    Raises:
        AudioError: It cannot be used.
        OSError: It cannot be read.
    """
    file = open_sound(piece.path)
    try:
        if piece.size <= WHOLE_FILE_BYTES:
            with file:
                file = io.BytesIO(file.read())
        return Hearing(file, windows, features, piece.start_s, piece.end_s), file
    except BaseException:
        file.close()
        raise


def by_features(voices: Mapping[int, Voice]) -> dict[Features, dict[int, Known]]:
    """Return what is known of some people by features, then by channel."""
    known: dict[Features, dict[int, Known]] = {}
    for channel, voice in voices.items():
        for features, told in voice.known.items():
            known.setdefault(features, {})[channel] = told
    return known


def hear_voices(models: Sequence[Model], pieces: Iterable[Piece], windows: WindowConfig) -> dict[int, Voice]:
    """Hear all recordings of one person; those that cannot be used tell nothing.

    Returns:
        By channel, since each of several is a person's own.
    """
    voices: dict[int, Voice] = {}
    for piece in pieces:
        try:
            hearing, file = open_hearing(piece, windows, models[0].features)
        except (AudioError, OSError):
            continue
        with file:
            for window in hearing.windows:
                voice = voices.setdefault(window.channel, Voice())
                voice.seconds += 0.0 if window.silent else window.speaks_s
            for features in dict.fromkeys(model.features for model in models if model.speaker_norm):
                for channel, more in listen_windows(features, hearing, models[0].place.type).items():
                    known = voices[channel].known
                    before = known.get(features, Known())
                    known[features] = Known(before.frames + more.frames, before.sums_2F + more.sums_2F)
            hearing.close()
    return voices
