"""The cells of a CSV or Parquet table: which column is which, and what stands in each row.

Columns are known by the usual names of this field, in any case and with any separators: `File Name`, `file_name` and
`filename` are the same. A word for nothing is an empty cell.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import parquet

from ser_ray.base import storage
from ser_ray.base.errors import UserError
from ser_ray.speech.corpora.files import one_line
from ser_ray.speech.corpora.lookup import Found
from ser_ray.speech.corpora.packed_rows import list_packed
from ser_ray.speech.packed import find_packed

REQUIRED = ("path", "emotion", "speaker_id")
# Names of columns without separators. Where a table has both ids and texts of sentences, the ids count.
_NAMES = {
    "path": "path file filename filepath audio audiofile audiofilename audiofilepath audiopath wav wavfile wavfilename "
    "wavfilepath wavpath uri",
    "emotion": "emotion emotions emotionlabel emotionname emotionclass label labels labelname class "
    "classname classlabel",
    "speaker_id": "speakerid speaker speakername spk spkid actor actorid subject subjectid client clientid "
    "participant participantid talker talkerid",
    "gender": "gender sex",
    "intensity": "intensity emotionintensity emotionalintensity",
    "sentence_id": "sentenceid textid",
    "sentence": "sentence text transcription transcript",
    "channel": "channel vocalchannel",
    "corpus": "corpus corpusname",
}
_WORDS_FOR_NOTHING = ("nan", "NaN", "None", "NA", "N/A", "#N/A", "<NA>", "null", "Null", "-", "--", "?")
_NOTHING = frozenset(form for word in _WORDS_FOR_NOTHING for form in (word, word.lower(), word.upper()))


@dataclass(frozen=True)
class Columns:
    """What is looked for in a table.

    Attributes:
        names: The usual names of each field's column, without separators, in one text.
        required: Fields that must be there.
        why: What else to say where one is not.
        plain: Fields whose columns are understood whole; all other columns are carried along. None carries none.
    """

    names: Mapping[str, str]
    required: tuple[str, ...]
    why: str = ""
    plain: tuple[str, ...] | None = None

    def field(self, name: str) -> str | None:
        """Return the field that a column's name stands for."""
        bare = re.sub(r"[\W_]+", "", name).lower()
        return next((field for field, names in self.names.items() if bare in names.split()), None)


LABELLED = Columns(_NAMES, REQUIRED, " (without speakers no test could be on people the model has never heard)")
UNLABELLED = Columns(
    {
        "path": _NAMES["path"],
        "start": "start starts starttime startsec startseconds begin onset offset",
        "end": "end ends endtime endsec endseconds stop",
        "speaker": _NAMES["speaker_id"],
    },
    ("path",),
    plain=("path", "start", "end"),
)


def read_cells(path: str, columns: Columns = LABELLED) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table, those with nothing in them too, row by row.

    As a whole, a long table would take more memory than its clips.

    Args:
        path: Absolute local path or URI of a CSV or Parquet file.
        columns: What to look for.

    Yields:
        The texts of the fields, by default `path emotion speaker_id gender intensity sentence_id channel corpus`; empty
        where there is no such column, or nothing in the cell. What is carried along is JSON, in `carried`. In a table
        that holds sounds (`speech.packed`), `path` is where the sound is (`lookup.Found`).

    Raises:
        UserError: The table cannot be read, lacks a required column, or has two for one field.
    """
    nothing = dict.fromkeys((name for name in columns.names if name != "sentence"), "")
    nothing |= {"carried": ""} if columns.plain is not None else {}
    try:
        with storage.open_read(path) as stream:
            for row in (_csv_rows if path.lower().endswith(".csv") else _parquet_rows)(stream, path, columns):
                cells = nothing | {field: _clean(text) for field, text in row.items()}
                if text := cells.pop("sentence", ""):
                    cells["sentence_id"] = cells["sentence_id"] or text
                yield cells
    except FileNotFoundError:
        raise UserError(f"{path} is not there: name a folder, a CSV or Parquet table, or a URI that is") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not in UTF-8, which a CSV must be: save it so") from None
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read as a table: {one_line(error)}") from None


def refuse_missing(path: str, column: str, there: Sequence[str] = (), columns: Columns = LABELLED) -> UserError:
    """Make the error that a required column is missing, or holds nothing; `there` names the columns that it has."""
    needs = f"a table needs {', '.join(columns.required)}{columns.why}"
    has = f"; its columns are {', '.join(there)}" if there else ""
    return UserError(f"{path}: the column {column} is missing or empty; {needs}{has}")


def _clean(text: str | Found | None) -> str | Found:
    if isinstance(text, Found):
        return text
    text = (text or "").strip()
    return "" if text in _NOTHING else text


def _choose_columns(
    path: str, names: Sequence[str], readable: Sequence[bool], columns: Columns, packed: str = ""
) -> dict[str, int]:
    """Return the place of each field's column among those that can be read as text, and that of the sounds."""
    places: dict[str, int] = {"path": list(names).index(packed)} if packed else {}
    for place, name in enumerate(names):
        field = columns.field(name)
        if field is None or not readable[place] or (packed and field == "path"):
            continue
        if field in places:
            twice = f"the columns {names[places[field]]} and {name}"
            raise UserError(f"{path} gives {field} twice, by {twice}: keep one of them")
        places[field] = place
    there = [name if can else f"{name} (not text)" for name, can in zip(names, readable, strict=True) if name]
    for column in columns.required:
        if column not in places:
            raise refuse_missing(path, column, there, columns)
    return places


def _csv_rows(stream: BinaryIO, path: str, columns: Columns) -> Iterator[dict[str, str]]:
    lines = csv.reader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""))
    rows = filter(None, lines)  # blank lines say nothing
    header = [name.strip() for name in next(filter(any, rows), [])]
    if len(header) == 1 and columns.field(header[0]) is None:
        raise ValueError(f"cells must be separated by commas, its first line is {header[0]!r}")
    places = _choose_columns(path, header, [True] * len(header), columns)
    others = _others(header, places, columns)
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"line {lines.line_num} has {len(row)} cells, the header {len(header)}")
        carried = _carry(others, [row[place] for place in others.values()])
        yield {field: row[place] for field, place in places.items()} | carried


def _parquet_rows(stream: BinaryIO, path: str, columns: Columns) -> Iterator[dict[str, Any]]:
    file = parquet.ParquetFile(stream)
    schema = file.schema_arrow
    packed = find_packed(schema)
    places = _choose_columns(path, schema.names, [_is_plain(field.type) for field in schema], columns, packed)
    names = [schema.names[place] for place in places.values()]
    readable = [name if _is_plain(field.type) else "" for name, field in zip(schema.names, schema, strict=True)]
    others = _others(readable, places, columns)
    if packed:
        elsewhere = [name for name in readable if name and columns.field(name) == "path"][:1]
        for sound, texts in list_packed(file, path, packed, [*elsewhere, *names[1:], *others]):
            if elsewhere and not isinstance(sound, Found):  # nothing is inside, and a column says where it is
                sound = texts[0] or sound
            own, rest = texts[len(elsewhere) :][: len(names) - 1], texts[len(elsewhere) + len(names) - 1 :]
            yield dict(zip(places, [sound, *own], strict=True)) | _carry(others, rest)
        return
    for batch in file.iter_batches(1000, columns=list(dict.fromkeys([*names, *others]))):
        texts = [batch.column(name).cast(pa.string()) for name in names]
        rest = [batch.column(name).cast(pa.string()).to_pylist() for name in others]
        for row, *cells in zip(pa.record_batch(texts, list(places)).to_pylist(), *rest, strict=True):
            yield row | _carry(others, cells)


def _others(names: Sequence[str], places: Mapping[str, int], columns: Columns) -> dict[str, int]:
    """Return the columns that are carried along, with their places; those without a name are not."""
    if columns.plain is None:
        return {}
    used = {place for field, place in places.items() if field in columns.plain}
    return {name: place for place, name in enumerate(names) if name and place not in used}


def _carry(names: Iterable[str], cells: Sequence[str | None]) -> dict[str, str]:
    told = {name: cell for name, cell in zip(names, cells, strict=True) if _clean(cell)}
    return {"carried": json.dumps(told, ensure_ascii=False)} if told else {}


def _is_plain(type_: pa.DataType) -> bool:
    return not pa.types.is_nested(type_)
