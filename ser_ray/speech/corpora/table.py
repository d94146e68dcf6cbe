"""Any other corpus: a CSV or Parquet table with one row per clip.

    path,emotion,speaker_id,gender
    clips/0001.wav,happiness,anna,female
    clips/0002.wav,neutral,001,

Required columns are `path` (relative to the table's folder, absolute, or a URI), `emotion` (a label or one of its
usual synonyms) and `speaker_id`, because who speaks decides who is tested on. `gender`, `intensity`, `sentence_id`
and `channel` (`speech` unless said otherwise) are optional; further columns are ignored. The table's file name is the
corpus's name, and stands before its speakers and sentences so that they are unique over corpora.
"""

from __future__ import annotations

import csv
import io
import os
import posixpath
import re
from collections.abc import Iterator
from sys import intern
from typing import BinaryIO
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import parquet

from ser_ray.base import storage
from ser_ray.base.errors import UserError
from ser_ray.speech.corpora.files import AudioFile, FileLookup, encode, one_line
from ser_ray.speech.emotions import parse_emotion
from ser_ray.speech.utterance import Reject, Utterance

REQUIRED = ("path", "emotion", "speaker_id")
OPTIONAL = ("gender", "intensity", "sentence_id", "channel")

_COLUMNS = REQUIRED + OPTIONAL
_GENDERS = {"f": "female", "female": "female", "woman": "female", "m": "male", "male": "male", "man": "male"}


def is_table(root: str) -> bool:
    """Tell by its suffix whether a root is a table."""
    return root.lower().endswith((".csv", ".parquet"))


def corpus_name(root: str) -> str:
    """Return the corpus's name: the table's file name in lower case, other than letters and digits as underscores."""
    stem = os.path.splitext(unquote(root).rpartition("/")[2])[0]
    return re.sub(r"[\W_]+", "_", stem).strip("_").lower() or "table"


def read(root: str) -> tuple[list[Utterance], list[Reject]]:
    """Read a table's clips.

    Args:
        root: Absolute local path or URI of a CSV or Parquet file.

    Returns:
        The utterances, and the rows that cannot be used: an empty cell, an unknown emotion, a file that is missing or
        was listed before.

    Raises:
        UserError: The table cannot be read, or a required column is missing or empty, such as that of the speakers.
    """
    corpus, folder = corpus_name(root), root.rpartition("/")[0]
    describe = FileLookup()
    utterances, rejects, listed, filled = [], [], set(), set()
    for number, row in enumerate(_read_rows(root), start=1):
        file = describe(_resolve(row[0], folder))
        utterance_id = f"{corpus}/{_stem(row[0], folder)}" if row[0] else ""
        filled.update(column for column, cell in zip(REQUIRED, row, strict=False) if cell)
        try:
            blank = [column for column, cell in zip(REQUIRED, row, strict=False) if not cell]
            if blank:
                raise ValueError(f"row {number}: {blank[0]} is empty")
            if file.path in listed:
                raise ValueError(f"row {number}: the file is listed twice")
            listed.add(file.path)
            utterances.append(_utterance(row, file, corpus, utterance_id))
        except ValueError as error:
            rejects.append(Reject(file.path if row[0] else root, corpus, utterance_id, str(error)))
    for column in REQUIRED:
        if column not in filled:
            raise UserError(
                f"{root}: the column {column} is missing or empty; a table needs {', '.join(REQUIRED)} "
                "(without speakers no test could be on people the model has never heard)"
            )
    return utterances, rejects


def _utterance(row: tuple[str, ...], file: AudioFile, corpus: str, utterance_id: str) -> Utterance:
    _, emotion, speaker, gender, intensity, sentence, channel = row
    label = parse_emotion(emotion)
    if file.problem:
        raise ValueError(file.problem)
    return Utterance(
        utterance_id=utterance_id,
        corpus=corpus,
        speaker_id=intern(f"{corpus}_{speaker}"),
        gender=_GENDERS.get(gender.lower(), ""),
        emotion=label,
        intensity=intern(intensity.lower()),
        sentence_id=intern(f"{corpus}_{sentence}") if sentence else "",
        channel=intern(channel.lower()) or "speech",
        path=file.path,
        size=file.size,
        modified_ns=file.modified_ns,
    )


def _read_rows(root: str) -> Iterator[tuple[str, ...]]:
    """Yield the known columns of each row as text, in the order of `_COLUMNS`; a missing one is an empty string.

    Row by row: as a whole, a long table would take more memory than its clips.
    """
    try:
        with storage.open_read(root) as stream:
            for row in (_csv_rows if root.lower().endswith(".csv") else _parquet_rows)(stream):
                yield tuple((row.get(name) or "").strip() for name in _COLUMNS)
    except FileNotFoundError:
        raise UserError(f"{root} is not there: name a folder, a CSV or Parquet table, or a URI that is") from None
    except UnicodeDecodeError:
        raise UserError(f"{root} is not in UTF-8, which a CSV must be: save it so") from None
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        raise UserError(f"{root} cannot be read as a table: {one_line(error)}") from None


def _csv_rows(stream: BinaryIO) -> Iterator[dict[str, str]]:
    lines = csv.reader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""))
    rows = filter(None, lines)  # blank lines say nothing
    header = [name.strip() for name in next(rows, [])]
    if len(header) == 1:
        raise ValueError(f"cells must be separated by commas, its first line is {header[0]!r}")
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"line {lines.line_num} has {len(row)} cells, the header {len(header)}")
        yield dict(zip(header, row, strict=True))


def _parquet_rows(stream: BinaryIO) -> Iterator[dict[str, str]]:
    file = parquet.ParquetFile(stream)
    columns = [name for name in _COLUMNS if name in file.schema_arrow.names]
    for batch in file.iter_batches(1000, columns=columns):
        yield from pa.record_batch([column.cast(pa.string()) for column in batch.columns], columns).to_pylist()


def _resolve(cell: str, folder: str) -> str:
    if storage.is_uri(cell):
        return cell
    if storage.is_uri(folder) and not cell.startswith("/"):
        scheme, _, inner = folder.partition("://")
        return f"{scheme}://{posixpath.normpath(posixpath.join(inner, encode(cell)))}"
    return os.path.normpath(os.path.join(folder, cell))


def _stem(cell: str, folder: str) -> str:
    """Return a path as written in the table, without suffix, the same wherever the table's folder stands."""
    cell = cell.removeprefix(f"{folder}/")
    return os.path.splitext(posixpath.normpath(cell.partition("://")[2] or cell))[0].lstrip("/")
