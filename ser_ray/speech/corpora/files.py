"""Audio files below a folder or URI: listed, looked up one by one, and compared by content."""

from __future__ import annotations

import hashlib
import os
import posixpath
import stat
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar
from urllib.parse import quote

from pyarrow import fs

from ser_ray.base import storage
from ser_ray.base.errors import UserError
from ser_ray.speech.utterance import Utterance

# fmt: off
AUDIO_SUFFIXES = frozenset({
    ".wav", ".wave", ".w64", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf",
    ".m4a", ".aac", ".wma",
})
# fmt: on
_SAMPLE_BYTES = 4096
_THREADS = 16
_BATCH = 64
_T = TypeVar("_T")


class AudioFile(NamedTuple):
    """A file as the storage lists it.

    Attributes:
        path: Absolute local path or URI (percent-encoded).
        size: Bytes.
        modified_ns: Nanoseconds since 1970; 0 when the storage does not tell.
        problem: Why the file cannot be used, or empty.
    """

    path: str
    size: int = 0
    modified_ns: int = 0
    problem: str = ""


def is_audio(name: str) -> bool:
    """Tell by its suffix whether a file is meant to hold audio."""
    return os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES


def walk(root: str) -> Iterator[tuple[Hashable, list[AudioFile]]]:
    """List the audio files at any depth below a folder.

    Args:
        root: Local folder, whose links are followed, or URI, listed in one go.

    Yields:
        For each folder an identity, the same by whatever links the folder is reached, and its audio files. Those that
        cannot be used, and folders that cannot be listed, come as files with a problem.

    Raises:
        UserError: The root is not there or cannot be listed.
    """
    files, inner = storage.filesystem(root)
    if isinstance(files, fs.LocalFileSystem):
        if not os.path.isdir(inner):
            raise UserError(f"{root} is no folder: name one that is there, a CSV or Parquet table, or a URI")
        yield from _walk_local(inner)
        return
    try:
        listed = _list(root, recursive=True)
    except FileNotFoundError:
        raise UserError(f"{root} is not there: name a folder, a CSV or Parquet table, or a URI that is") from None
    except OSError as error:
        raise UserError(f"cannot list {root}: {one_line(error)}") from None
    folders = defaultdict(list)
    for file in listed:
        folders[file.path.rpartition("/")[0]].append(file)
    yield from folders.items()


def _walk_local(root: str) -> Iterator[tuple[Hashable, list[AudioFile]]]:
    visited = set()  # a link may lead back up
    pending = [root]
    while pending:
        folder = pending.pop()
        try:
            status = os.stat(folder)
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name, reverse=True)  # pop takes the last
        except OSError as error:
            yield folder, [AudioFile(printable(folder), problem=f"folder cannot be listed: {error.strerror}")]
            continue
        identity = (status.st_dev, status.st_ino)
        if identity in visited:
            continue
        visited.add(identity)
        audio = []
        for entry in entries:
            if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path)):
                pending.append(entry.path)
            elif is_audio(entry.name):
                audio.append(_local_file(entry.path))
        yield identity, audio


def _local_file(path: str) -> AudioFile:
    if printable(path) != path:
        return AudioFile(printable(path), problem="path is not valid UTF-8: rename it")
    if "\0" in path:
        return AudioFile(path, problem="path holds a null character")
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return AudioFile(path, problem="file not found")
    except OSError as error:
        return AudioFile(path, problem=f"cannot be read: {error.strerror}")
    if not stat.S_ISREG(status.st_mode):
        return AudioFile(path, problem="not a regular file")
    return AudioFile(path, status.st_size, status.st_mtime_ns)


def _list(folder: str, recursive: bool) -> list[AudioFile]:
    files, inner = storage.filesystem(folder)
    found = files.get_file_info(fs.FileSelector(inner, recursive=recursive))
    return [
        AudioFile(folder + encode(info.path[len(inner) :]), info.size, info.mtime_ns or 0)
        for info in sorted(found, key=lambda info: info.path)
        if info.type == fs.FileType.File and is_audio(info.base_name)
    ]


class FileLookup:
    """Describes files by path.

    Folders in object storage are listed once each, for a request per file would take hours.
    """

    def __init__(self) -> None:
        self._folders: dict[str, dict[str, AudioFile]] = {}

    def __call__(self, path: str) -> AudioFile:
        """Describe a file; one that is missing gets the problem `file not found`.

        Raises:
            UserError: A folder in object storage cannot be listed.
        """
        if not storage.is_uri(path):
            return _local_file(path)
        folder = posixpath.dirname(path)
        if folder not in self._folders:
            try:
                self._folders[folder] = {file.path: file for file in _list(folder, recursive=False)}
            except FileNotFoundError:
                self._folders[folder] = {}
            except OSError as error:
                raise UserError(f"cannot list {folder}: {one_line(error)}") from None
        return self._folders[folder].get(path) or AudioFile(path, problem="file not found")


def find_copies(utterances: Sequence[Utterance]) -> dict[str, bytes]:
    """Find files that may have the same content and hash them.

    Only files of equal size are opened, and only those that also agree in a sample from their middle are read whole.

    Args:
        utterances: Files with their sizes.

    Returns:
        SHA-256 digest by path, of at least those readable files that have the content of another.
    """
    same_size = _groups(utterances, [u.size for u in utterances])
    same_sample = _groups(same_size, _in_threads(_sample, same_size))
    digests = hash_files(same_sample)
    return {u.path: digest for u, digest in zip(same_sample, digests, strict=True) if digest}


def hash_files(utterances: Sequence[Utterance]) -> list[bytes]:
    """Return the SHA-256 digest of each file, empty for one that cannot be read."""
    return _in_threads(_sha256, utterances)


def _groups(utterances: Sequence[Utterance], keys: Sequence[Hashable]) -> list[Utterance]:
    """Keep the utterances that share their key with another; an empty key is shared by none."""
    count: dict[Hashable, int] = defaultdict(int)
    for key in keys:
        count[key] += 1
    return [u for u, key in zip(utterances, keys, strict=True) if count[key] > 1 and key != b""]


def _in_threads(function: Callable[[Utterance], _T], items: Sequence[Utterance]) -> list[_T]:
    batches = [items[start : start + _BATCH] for start in range(0, len(items), _BATCH)]
    with ThreadPoolExecutor(_THREADS) as pool:
        results = pool.map(lambda batch: [function(item) for item in batch], batches)
        return [result for batch in results for result in batch]


def _sample(utterance: Utterance) -> bytes:
    try:
        with storage.open_read(utterance.path) as stream:
            stream.seek(max(0, utterance.size - _SAMPLE_BYTES) // 2)
            content = stream.read(_SAMPLE_BYTES)
    except OSError:
        return b""  # decoding will say why
    return utterance.size.to_bytes(8, "little") + hashlib.sha256(content).digest()


def _sha256(utterance: Utterance) -> bytes:
    digest = hashlib.sha256()
    try:
        with storage.open_read(utterance.path) as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError:
        return b""
    return digest.digest()


def encode(path: str) -> str:
    """Percent-encode a path so that it can stand in a URI."""
    return quote(path, safe="/!$&'()*+,;=:@~")


def printable(path: str) -> str:
    """Return a path with bytes that are not UTF-8 written as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def one_line(error: Exception) -> str:
    """Return an error's message without line breaks."""
    return " ".join(str(error).split())
