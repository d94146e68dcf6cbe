"""The files that a table's cells name, however they are written there.

A cell may be quoted as in a URI or not, written with the backslashes of Windows, or with accents in another form than
on disk (Unicode NFC and NFD). What exists as it is written wins.
"""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import unquote

from ser_ray.base import storage
from ser_ray.base.errors import UserError
from ser_ray.speech.corpora.files import AudioFile, describe_file, list_entries, one_line, quote_key

NOT_FOUND = "file not found"
_WINDOWS = f"{NOT_FOUND}: a path as Windows writes it; write it with / and relative to the table"
_OF_WINDOWS = re.compile(r"\\|^[A-Za-z]:/")


class Found(NamedTuple):
    """What a cell names.

    Attributes:
        file: The file; one that is missing has a problem.
        name: The cell in the spelling that was found: for a URI the file's path, else relative or absolute as written.
    """

    file: AudioFile
    name: str


class _Place(NamedTuple):
    """Where a file may be: `scheme://bucket`, or an empty text for this machine, and the path there, not encoded."""

    bucket: str
    key: str

    @property
    def path(self) -> str:
        return f"{self.bucket}/{quote_key(self.key)}" if self.bucket else self.key


class FileLookup:
    """Finds the files of one table.

    Folders in object storage are listed once each, for a request per file would take hours.
    """

    def __init__(self, folder: str) -> None:
        """Begin a lookup.

        Args:
            folder: The table's, an absolute path or a URI.
        """
        self._folder = folder
        self._bucket, key = _split(folder) if storage.is_uri(folder) else ("", "")
        self._key = unquote(key)
        self._objects: dict[str, dict[str, AudioFile | None]] = {}  # folder's URI → name → file, None for a folder
        self._spellings: dict[tuple[str, str], dict[str, str]] = {}  # folder → name in NFC → name as it is there

    def __call__(self, cell: str) -> Found:
        """Find the file that a cell names.

        Raises:
            UserError: A folder in object storage cannot be listed.
        """
        readings = self._readings(cell)
        first = next(readings)
        found = self._describe(*first)
        if found.file.problem != NOT_FOUND:
            return found
        others = list(readings)
        for place, text in others:
            other = self._describe(place, text)
            if not other.file.problem:
                return other
        if not cell.isascii():
            for place, text in (first, *others):
                key = self._respell(place)
                other = self._describe(_Place(place.bucket, key), text) if key is not None else found
                if not other.file.problem:
                    return other
        return found._replace(file=found.file._replace(problem=_WINDOWS)) if _OF_WINDOWS.search(cell) else found

    def _readings(self, cell: str) -> Iterator[tuple[_Place, str]]:
        """Yield what a cell may mean, the likeliest first, each with the cell in that spelling."""
        if storage.is_uri(cell):  # quoted, as a URI shall be; or not, though it holds # ? % and the like
            bucket, key = _split(cell)
            for text in _variants(unquote(key), key):
                yield _Place(bucket, text), ""
            return
        for text in _variants(cell):
            if self._bucket and not text.startswith("/"):
                yield _Place(self._bucket, posixpath.normpath(posixpath.join(self._key, text))), text
            else:
                yield _Place("", os.path.normpath(os.path.join(self._folder, text))), text

    def _describe(self, place: _Place, text: str) -> Found:
        path = place.path
        if not place.bucket:
            return Found(describe_file(path), text)
        folder, name = posixpath.split(place.key)
        file = self._list(place.bucket, folder).get(name) or AudioFile(path, problem=NOT_FOUND)
        return Found(file, text or path)

    def _list(self, bucket: str, key: str) -> dict[str, AudioFile | None]:
        folder = _Place(bucket, key).path.rstrip("/") if key else bucket
        if folder not in self._objects:
            try:
                self._objects[folder] = dict(list_entries(folder or bucket, recursive=False))
            except FileNotFoundError:
                self._objects[folder] = {}
            except OSError as error:
                raise UserError(f"cannot list {folder}: {one_line(error)}") from None
        return self._objects[folder]

    def _respell(self, place: _Place) -> str | None:
        """Return the path of something that differs from a place by the form of its accents alone, or None."""
        folder, name = posixpath.split(place.key)
        if not name:
            return place.key
        names = self._names(place.bucket, folder)
        if not names:
            folder = self._respell(_Place(place.bucket, folder))
            names = self._names(place.bucket, folder) if folder is not None else {}
        spelled = names.get(unicodedata.normalize("NFC", name))
        return posixpath.join(folder, spelled) if spelled else None

    def _names(self, bucket: str, folder: str) -> dict[str, str]:
        if (bucket, folder) not in self._spellings:
            try:
                names = self._list(bucket, folder) if bucket else os.listdir(folder)
            except (OSError, UserError):  # a folder above what the table may read
                names = []
            self._spellings[bucket, folder] = {unicodedata.normalize("NFC", name): name for name in names}
        return self._spellings[bucket, folder]


def _split(uri: str) -> tuple[str, str]:
    """Split a URI into `scheme://bucket` and the key, as it is written."""
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    return f"{scheme}://{bucket}", key


def _variants(*texts: str) -> Iterator[str]:
    """Yield texts, then unquoted, then both with the slashes of other systems; each once."""
    seen = set()
    for change in (str, unquote, _turn_slashes, lambda text: _turn_slashes(unquote(text))):
        for text in map(change, texts):
            if text not in seen:
                seen.add(text)
                yield text


def _turn_slashes(text: str) -> str:
    return text.replace("\\", "/")
