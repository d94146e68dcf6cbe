"""The one record that flows through every stage, and its Arrow schema."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Utterance:
    """One recorded clip and what its corpus says about it.

    Attributes:
        utterance_id: `<corpus>/<canonical file stem>`; unique within a run.
        corpus: `ravdess`, `crema_d`, `tess`, `savee`, or a table's name.
        speaker_id: Such as `ravdess_01`; unique over corpora.
        gender: `female`, `male`, or empty when unknown.
        emotion: One of `ser_ray.speech.emotions.EMOTIONS`.
        intensity: As the corpus grades it (`normal`, `strong`, `low`, `medium`, `high`), or empty.
        sentence_id: Which text was spoken, such as `ravdess_kids`; empty when unknown.
        channel: `speech` or `song`.
        path: Absolute local path or URI of the audio file.
        size: File size in bytes.
        modified_ns: Time of last modification, nanoseconds since 1970; 0 when the storage does not tell.
    """

    utterance_id: str
    corpus: str
    speaker_id: str
    gender: str
    emotion: str
    intensity: str
    sentence_id: str
    channel: str
    path: str
    size: int = 0
    modified_ns: int = 0


@dataclass(frozen=True, slots=True)
class Reject:
    """A file that was found but is not used, and why.

    Attributes:
        path: Absolute local path or URI.
        corpus: The corpus its name belongs to, or `unknown`.
        utterance_id: Empty when the name did not yield one.
        reason: One line for people. Names in it are quoted, so that reasons of one kind are told.
    """

    path: str
    corpus: str
    utterance_id: str
    reason: str


UTTERANCE_SCHEMA = pa.schema(
    [(field.name, pa.int64() if field.type == "int" else pa.string()) for field in fields(Utterance)]
)
REJECT_SCHEMA = pa.schema([(field.name, pa.string()) for field in fields(Reject)])


def to_table(records: Iterable[Utterance] | Iterable[Reject], schema: pa.Schema = UTTERANCE_SCHEMA) -> pa.Table:
    """Turn records into an Arrow table of `schema` (`UTTERANCE_SCHEMA` or `REJECT_SCHEMA`)."""
    rows: list[Utterance | Reject] = list(records)
    return pa.table(
        {field.name: pa.array([getattr(r, field.name) for r in rows], field.type) for field in schema}, schema
    )


def from_table(table: pa.Table) -> list[Utterance]:
    """Turn a table of `UTTERANCE_SCHEMA` (further columns are ignored) back into records."""
    columns = [table.column(field.name).to_pylist() for field in fields(Utterance)]
    return [Utterance(*values) for values in zip(*columns, strict=True)]
