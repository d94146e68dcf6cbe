"""The folder of answers: what is in it, and how it is begun, gone on with and finished.

    OUTPUT/asked.json            what was asked for; the identity of the output
    OUTPUT/windows/*.parquet     one row per window (`model.answers.WINDOWS_SCHEMA`)
    OUTPUT/rejects/*.parquet     recordings that could not be used, each with its reason
    OUTPUT/parts/*.parquet       rows of recordings.parquet, until that is written; a task that has one is done
    OUTPUT/shares/*.parquet      answers to some windows of a long recording, until all of it is answered
    OUTPUT/recordings.parquet    one row per recording and channel
    OUTPUT/windows.csv           both for a spreadsheet, where that was asked for
    OUTPUT/recordings.csv
    OUTPUT/predict.json          accounts, and who answered; written last: an output that has it is finished

The files of a task have a name drawn from its recordings, so writing them twice changes nothing.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileType

from ser_ray.base import storage
from ser_ray.base.console import say
from ser_ray.base.errors import UserError
from ser_ray.model.answers import WINDOWS_SCHEMA
from ser_ray.store.shards import COMPRESSION, MEASURES, read_shard, write_parquet
from ser_ray.store.store import differences

RECORDINGS_SCHEMA = pa.schema(
    [
        *(("file", pa.string()), ("channel", pa.int32()), ("start", pa.float64()), ("end", pa.float64())),
        *(("seconds", pa.float64()), ("answered_s", pa.float64()), ("silent_s", pa.float64())),
        *(("windows", pa.int32()), ("silent_windows", pa.int32()), ("abstained_windows", pa.int32())),
        *(("emotion", pa.string()), ("probability", pa.float64()), ("probabilities", pa.list_(pa.float64()))),
        *(("shares", pa.list_(pa.float64())), ("sample_rate", pa.int32())),
        *((name, pa.float64()) for name in MEASURES),
        ("outside", pa.list_(pa.string())),
        ("carried", pa.string()),  # what a table says besides, JSON; columns of their own in recordings.parquet
    ]
)
REJECTS_SCHEMA = pa.schema(
    [("file", pa.string()), ("start", pa.float64()), ("end", pa.float64()), ("reason", pa.string())]
)
ROW_GROUP = 50_000  # rows; each group of a Parquet file costs the writer some kB until the file is closed
_SAID = {"model": "model: another one", "recordings": "recordings: others"}  # instead of two digests


class Output:
    """An output at a path or URI.

    Args:
        root: Its folder.

    Attributes:
        about: What every Parquet file says of itself in its metadata: who answered, and whether that is to be believed.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.about: dict[str, str] = {}

    def refuse_finished(self) -> None:
        """Refuse to overwrite what is finished.

        Raises:
            UserError: The output has its accounts.
        """
        if storage.exists(storage.join(self.root, "predict.json")):
            raise UserError(f"{self.root} holds finished answers; choose another --output")

    def claim(self, identity: dict[str, Any], command: str) -> None:
        """Note what the answers are for, or check that unfinished ones are for the same.

        Raises:
            UserError: The folder holds answers of another model, to other recordings or by other settings, or something
                else.
        """
        path = storage.join(self.root, "asked.json")
        if storage.exists(path):
            if changed := differences(storage.read_json(path)["identity"], identity):
                changed = "; ".join(_SAID.get(part.partition(":")[0], part) for part in changed.split("; "))
                raise UserError(
                    f"{self.root} holds unfinished answers that were asked for otherwise ({changed}); choose another "
                    "--output"
                )
            say(f"Going on with the unfinished answers in {self.root}")
        elif strangers := [
            *(name for name in storage.list_names(self.root) if name != ".lock"),
            *storage.list_names(self.root, FileType.Directory),
        ]:
            raise UserError(f"{self.root} holds {strangers[0]} and no answers; name a new folder as --output")
        storage.write_json(path, {"identity": identity, "command": command})

    def is_begun(self) -> bool:
        """Tell whether there are unfinished answers."""
        begun, ended = (storage.exists(storage.join(self.root, name)) for name in ("asked.json", "predict.json"))
        return begun and not ended

    def claim_part(self, number: int, digest: str) -> None:
        """Note what recordings a part has, or check that it has the same as when it was begun; the first is in `claim`.

        Raises:
            UserError: It has others.
        """
        path = storage.join(self.root, "attempts", f"part-{number}.json")
        if storage.exists(path) and storage.read_json(path) != digest:
            raise UserError(
                f"{self.root} holds unfinished answers to other recordings: those of part {number + 1} changed; choose "
                "another --output"
            )
        storage.write_json(path, digest)

    def has(self, name: str) -> bool:
        """Tell whether a task is done."""
        return storage.exists(self._path("parts", name))

    def done(self) -> set[str]:
        """Return the names of all tasks that are done."""
        return {name.removesuffix(".parquet") for name in storage.list_names(storage.join(self.root, "parts"))}

    def attempts_path(self, name: str) -> str:
        """Return the path of the note that a task began."""
        return storage.join(self.root, "attempts", f"{name}.json")

    def write(self, name: str, windows: pa.Table, recordings: pa.Table, rejects: pa.Table) -> None:
        """Write what became of a task's recordings; that of `recordings`, written last, says that the rest is there."""
        for folder, table in (("windows", windows), ("rejects", rejects)):
            if table.num_rows:
                write_parquet(self._path(folder, name), table.replace_schema_metadata(self.about))
            else:  # of an attempt before
                storage.remove(self._path(folder, name))
        write_parquet(self._path("parts", name), recordings)

    def has_share(self, name: str) -> bool:
        """Tell whether a share of a long recording is answered."""
        return storage.exists(self._path("shares", name))

    def write_share(self, name: str, answers_WC: np.ndarray) -> None:
        """Write the answers to a share of a long recording's windows; they are NaN for the others."""
        lists = [None if np.isnan(answer_C[0]) else answer_C for answer_C in answers_WC]
        write_parquet(self._path("shares", name), pa.table({"answer": pa.array(lists, pa.list_(pa.float64()))}))

    def read_shares(self, names: Sequence[str]) -> np.ndarray | None:
        """Return the answers `[W, C]` to a long recording's windows from all of its shares; None where one is missing.

        They are NaN for windows that no share answers.
        """
        columns = [table["answer"].to_pylist() for table in self.read("shares", names)]
        answers = [next(filter(None, answer), None) for answer in zip(*columns, strict=False)]
        classes = max((len(answer) for answer in answers if answer), default=0)
        if len(columns) < len(names) or len(set(map(len, columns))) > 1 or not classes:
            return None
        return np.array([answer or [np.nan] * classes for answer in answers])

    def read(self, folder: str, names: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the tables of some tasks in a folder, in the tasks' order."""
        there = set(storage.list_names(storage.join(self.root, folder)))
        for name in names:
            if f"{name}.parquet" in there:
                yield read_shard(self._path(folder, name), None)

    def write_recordings(self, names: Sequence[str]) -> None:
        """Write `recordings.parquet`, with what tables say besides in columns of its own."""
        given = self._given(names)
        own = [field for field in RECORDINGS_SCHEMA if field.name != "carried"]
        schema = pa.schema([*own, *((column, pa.string()) for column in given.values())])

        def fill(stream: BinaryIO) -> None:
            with pq.ParquetWriter(stream, schema.with_metadata(self.about), **COMPRESSION) as writer:
                for table in gather(self.read("parts", names), ROW_GROUP):
                    told = [json.loads(text or "{}") for text in table["carried"].to_pylist()] if given else []
                    table = table.drop_columns(["carried"])
                    for name, column in given.items():
                        table = table.append_column(column, pa.array([row.get(name) for row in told], pa.string()))
                    writer.write_table(table)

        storage.write(storage.join(self.root, "recordings.parquet"), fill)

    def _given(self, names: Sequence[str]) -> dict[str, str]:
        """Return the columns that tables say besides, each by the name that it has in `recordings.parquet`."""
        found: dict[str, None] = {}
        for table in self.read("parts", names):
            for text in table["carried"].drop_null().to_pylist():
                found |= dict.fromkeys(json.loads(text))
        taken = set(RECORDINGS_SCHEMA.names)
        return {name: f"{name}_given" if name in taken else name for name in found}

    def write_csv(self, names: Sequence[str], labels: Sequence[str]) -> None:
        """Write `windows.csv` and `recordings.csv`: what is told of each emotion has a column of its own."""
        for name, schema in (("windows", WINDOWS_SCHEMA), ("recordings", RECORDINGS_SCHEMA)):
            tables = self.read("parts" if name == "recordings" else name, names)
            path = storage.join(self.root, f"{name}.csv")
            storage.write(path, partial(_fill_csv, tables=tables, columns=schema.names, labels=labels))

    def finish(self, content: dict[str, Any]) -> None:
        """Write `predict.json` and take away what was needed until then."""
        storage.write_json(storage.join(self.root, "predict.json"), content)
        for folder in ("parts", "shares", "attempts"):
            storage.remove_folder(storage.join(self.root, folder))

    def _path(self, folder: str, name: str) -> str:
        return storage.join(self.root, folder, f"{name}.parquet")


def gather(tables: Iterable[pa.Table], least: int) -> Iterator[pa.Table]:
    """Yield the rows of small tables in tables of so many rows or more, but for the last one."""
    held: list[pa.Table] = []
    rows = 0
    for table in tables:
        held.append(table.replace_schema_metadata(None))
        rows += len(table)
        if rows >= least:
            yield pa.concat_tables(held).combine_chunks()
            held, rows = [], 0
    if held:
        yield pa.concat_tables(held).combine_chunks()


def _fill_csv(stream: BinaryIO, tables: Iterable[pa.Table], columns: Sequence[str], labels: Sequence[str]) -> None:
    """Write the rows of some tables, their lists spread over columns."""
    each = {"probabilities": "", "shares": "share_"}  # what stands before an emotion's name
    plain = [name for name in columns if name not in each and name != "outside"]
    spread = [name for name in each if name in columns]
    last = ["outside"] if "outside" in columns else []
    text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
    writer = csv.writer(text)
    writer.writerow([*plain, *(f"{each[name]}{label}" for name in spread for label in labels), *last])
    for table in tables:
        for row in table.to_pylist():
            cells = [cell for name in spread for cell in row[name] or [None] * len(labels)]
            writer.writerow([*(row[name] for name in plain), *cells, *("; ".join(row[name] or []) for name in last)])
    text.flush()
    text.detach()
