"""The recordings that are to be answered: files, folders, patterns and tables, here or at URIs.

A table, CSV or Parquet, needs a column `path`, or one that holds the sounds (`speech.packed`); `start` and `end`, in
seconds or as `H:MM:SS.f`, ask for a part of the file, and `speaker` tells who speaks; other columns are carried along.
The columns are known by their usual names (`speech.corpora.cells`), and what a path may look like is told in
`speech.corpora.lookup`. A row or a file that cannot be used costs itself alone and is rejected with its reason.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
from pyarrow import fs

from ser_ray.base import storage
from ser_ray.base.errors import UserError
from ser_ray.speech.corpora.cells import UNLABELLED, read_cells
from ser_ray.speech.corpora.files import (
    TABLE_SUFFIXES,
    AudioFile,
    Folder,
    describe_file,
    list_entries,
    may_hold_sound,
    one_line,
    quote_key,
    tell_contents,
    walk,
)
from ser_ray.speech.corpora.lookup import FileLookup
from ser_ray.speech.corpora.packed_rows import locate

MAX_PART = 1_000_000  # recordings that the driver holds at a time
_PATTERN = re.compile(r"[*?\[]")
_CLOCK = re.compile(r"(?:(\d+) days? )?(?:(\d+):)?(\d+):(\d+(?:\.\d*)?)")  # as tables write spans of time


class Piece(NamedTuple):
    """A recording, or a part of one.

    Attributes:
        path: Absolute local path or URI.
        size: Of the file, bytes.
        modified_ns: Nanoseconds since 1970; 0 when the storage does not tell.
        start_s: Where the part begins, seconds; None for the recording's beginning.
        end_s: Where it ends; None for the recording's end.
        problem: Why it cannot be used, or empty.
        speaker: Who speaks, as a table says; empty where that is not told.
        carried: What else the table says of it, JSON by column, or empty.
    """

    path: str
    size: int = 0
    modified_ns: int = 0
    start_s: float | None = None
    end_s: float | None = None
    problem: str = ""
    speaker: str = ""
    carried: str = ""

    @property
    def name(self) -> str:
        """The path, with the part where it is one."""
        if self.start_s is None and self.end_s is None:
            return self.path
        return f"{self.path}#{self.start_s or 0:g}-{'' if self.end_s is None else f'{self.end_s:g}'}"


PIECE_SCHEMA = pa.schema(
    [
        *(("path", pa.string()), ("size", pa.int64()), ("modified_ns", pa.int64())),
        *(("start_s", pa.float64()), ("end_s", pa.float64()), ("problem", pa.string())),
        *(("speaker", pa.string()), ("carried", pa.string())),
    ]
)


def find_parts(inputs: Sequence[str], most: int = MAX_PART) -> Iterator[list[Piece]]:
    """Find the recordings that some words of the command line name, each once, in their order, some at a time.

    Each yielded list is all that is in memory, but for 8 bytes that tell each recording from those before.

    Args:
        inputs: Files, folders, patterns and tables, here or at URIs.
        most: Recordings in a list.

    Raises:
        UserError: One of the words names nothing that could be a recording, or a table cannot be read.
    """
    part: list[Piece] = []
    keys: list[int] = []
    before: list[np.ndarray] = []
    for text in inputs:
        count = 0
        for count, piece in enumerate(_find(text), start=1):  # noqa: B007
            part.append(piece)
            keys.append(_key(piece))
            if len(part) == most:
                yield from _once(part, keys, before)
                part, keys = [], []
        if not count:
            raise UserError(f"--input {text}: the table lists no recording")
    yield from _once(part, keys, before)


def find_pieces(inputs: Sequence[str]) -> list[Piece]:
    """Find all recordings that some words of the command line name, as `find_parts` does."""
    return [piece for part in find_parts(inputs) for piece in part]


def _key(piece: Piece) -> int:
    """Return 64 bits that tell a recording from others: of ten million, two are alike by a chance of 3 in a million."""
    text = f"{piece.path}\0{piece.start_s}\0{piece.end_s}".encode(errors="surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())


def _once(part: Sequence[Piece], keys: Sequence[int], before: list[np.ndarray]) -> Iterator[list[Piece]]:
    """Yield those recordings of a part that were not there before; their keys are added to those before."""
    key_N, first_N = np.unique(np.array(keys, np.uint64), return_index=True)
    new_N = np.ones(len(key_N), bool)
    for earlier_N in before:
        new_N &= ~np.isin(key_N, earlier_N, assume_unique=True)
    before.append(key_N[new_N])
    if new_N.any():
        yield [part[place] for place in np.sort(first_N[new_N])]


def digest_pieces(pieces: Iterable[Piece]) -> str:
    """Return 16 hex digits that stand for some recordings, their contents as far as size and time tell."""
    digest = hashlib.sha256()
    for piece in pieces:
        told = piece[6:] if piece.speaker or piece.carried else ()
        digest.update(repr((*piece[:5], *told)).encode())
    return digest.hexdigest()[:16]


def _find(text: str) -> Iterator[Piece]:
    """Yield the recordings that one word names."""
    path = storage.normalize(text)
    try:
        kind = _kind(path)
        if kind is fs.FileType.Directory:
            yield from _of_files(_below(text, path))
        elif kind is fs.FileType.NotFound and _PATTERN.search(text):
            yield from _of_files(_matching(text, path))
        elif kind is fs.FileType.NotFound:
            raise UserError(f"--input {text}: nothing is there: name a recording, a folder, a pattern or a table")
        elif path.lower().endswith(TABLE_SUFFIXES):
            yield from _listed(path)
        else:
            yield from _of_files([_describe(path)])
    except OSError as error:
        raise UserError(f"--input {text} cannot be read: {one_line(error)}") from None


def _kind(path: str) -> fs.FileType:
    if not storage.is_uri(path):
        if os.path.isdir(path):
            return fs.FileType.Directory
        return fs.FileType.File if os.path.lexists(path) else fs.FileType.NotFound
    files, inner = storage.filesystem(path)
    return files.get_file_info(inner).type


def _describe(path: str) -> AudioFile:
    """Describe one file that is there."""
    if not storage.is_uri(path):
        return describe_file(path)
    files, inner = storage.filesystem(path)
    info = files.get_file_info(inner)
    return AudioFile(path, info.size or 0, info.mtime_ns or 0)


def _of_files(files: Iterable[AudioFile]) -> Iterator[Piece]:
    for file in files:
        yield Piece(file.path, file.size, file.modified_ns, problem=file.problem)


def _below(text: str, path: str) -> Iterator[AudioFile]:
    """Yield the files at any depth below a folder that may hold sound, folder by folder."""
    others, count = [], 0
    for folder in _folders(path):
        yield from sorted(folder.files)
        count += len(folder.files)
        others += () if count else folder.others
    if not count:
        what = tell_contents(others) or "it is empty"
        raise UserError(f"--input {text}: no recording is in this folder: {what}")


def _folders(path: str) -> Iterator[Folder]:
    """Yield a folder and all below it; object storage is listed by the folders of the first level where it branches.

    A list of all would take more memory than the driver may have, one of each folder more requests than there is time.
    """
    if not storage.is_uri(path):
        yield from walk(path)
        return
    entries = list_entries(path, recursive=False)
    files = [file for name, file in entries if file is not None and may_hold_sound(name)]
    others = [name for name, file in entries if file is not None and not may_hold_sound(name)]
    below = [storage.join(path, quote_key(name)) for name, file in entries if file is None and name != ".git"]
    yield Folder(path, path, files, others)
    for folder in below:
        yield from _folders(folder) if len(below) == 1 else walk(folder)


def _matching(text: str, path: str) -> Iterator[AudioFile]:
    """Yield the files that a pattern names and that may hold sound, and those below folders that it names."""
    names = _matching_objects(path) if storage.is_uri(path) else sorted(glob.glob(path, recursive=True))
    others, count = [], 0
    for name in names:
        if not storage.is_uri(name) and os.path.isdir(name):
            files = sorted(file for folder in walk(name) for file in folder.files)
        elif may_hold_sound(name):
            files = [_describe(name)]
        else:
            others.append(name)
            continue
        count += len(files)
        yield from files
    if not count:
        what = f"of what it names none is a recording: {tell_contents(others)}" if others else "it matches nothing"
        raise UserError(f"--input {text}: {what}; in a shell, put a pattern into quotes")


def _matching_objects(path: str) -> list[str]:
    """Return the objects in storage that a pattern names, of which `**` spans folders and `*` does not."""
    scheme, _, rest = path.partition("://")
    bucket, *parts = rest.split("/")
    fixed = next((place for place, part in enumerate(parts) if _PATTERN.search(part)), len(parts))
    root = f"{scheme}://{'/'.join([bucket, *parts[:fixed]])}"
    wanted = [unquote(part) for part in parts[fixed:]]
    try:
        entries = list_entries(root, recursive=True)
    except FileNotFoundError:
        return []
    return [file.path for name, file in entries if file is not None and _matches(name.split("/"), wanted)]


def _matches(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    if not wanted:
        return not parts
    if wanted[0] == "**":
        return any(_matches(parts[place:], wanted[1:]) for place in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], wanted[0]) and _matches(parts[1:], wanted[1:])


def _listed(path: str) -> Iterator[Piece]:
    """Yield what a table lists."""
    find = FileLookup(path.rpartition("/")[0])
    for number, row in enumerate(read_cells(path, UNLABELLED), start=1):
        if not any(row.values()):
            continue
        if not row["path"]:
            yield Piece(f"{path}#row-{number}", problem=f"row {number}: path is empty")
            continue
        file = locate(find, row["path"]).file
        problem = file.problem
        try:
            start_s, end_s = _seconds(row["start"]), _seconds(row["end"])
            if end_s is not None and end_s <= (start_s or 0):
                raise ValueError(f"row {number}: the part ends at {end_s:g} s, before it begins")
        except ValueError as error:
            start_s = end_s = None
            yield Piece(f"{file.path}#row-{number}", file.size, file.modified_ns, problem=str(error))
            continue
        yield Piece(file.path, file.size, file.modified_ns, start_s, end_s, problem, row["speaker"], row["carried"])


def _seconds(text: str) -> float | None:
    """Read a cell that holds a time in seconds, or as `H:MM:SS.f`; None where it is empty."""
    if not text:
        return None
    if clock := _CLOCK.fullmatch(text):
        days, hours, minutes, seconds = (float(part or 0) for part in clock.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:
        raise ValueError(f"'{text}' is no time within a recording: give seconds, such as 12.5")
    return seconds
