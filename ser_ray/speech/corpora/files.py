"""Files below a folder or URI: those that hold sound, and what else is there."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple
from urllib.parse import quote

from pyarrow import fs

from ser_ray.base import storage
from ser_ray.base.errors import UserError

# fmt: off
AUDIO_SUFFIXES = frozenset({
    ".wav", ".wave", ".w64", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf",
    ".m4a", ".aac", ".wma",
})
MEDIA_SUFFIXES = frozenset({  # video, and sound of rare kinds: such a file is a clip where its name says so
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".flv", ".f4v", ".mpg", ".mpeg", ".wmv", ".asf", ".3gp", ".3g2",
    ".ogv", ".mts", ".m2ts", ".vob", ".rm", ".swf",
    ".sph", ".nist", ".amr", ".awb", ".weba", ".mka", ".m4b", ".mp2", ".mpga", ".mpc", ".ape", ".wv", ".tta", ".spx",
    ".ac3", ".eac3", ".dts", ".ra", ".gsm", ".voc", ".vox", ".raw", ".pcm", ".g722", ".dss", ".ds2", ".dsf", ".alac",
})
ARCHIVE_SUFFIXES = frozenset({
    ".zip", ".tar", ".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".7z", ".rar",
})
TABLE_SUFFIXES = (".csv", ".parquet")
# fmt: on


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


class Folder(NamedTuple):
    """One folder, without those in it.

    Attributes:
        path: By which it was reached.
        identity: The same by whatever links the folder is reached.
        files: Sound and video. Those that cannot be used have a problem, and so has a folder that cannot be listed.
        others: The names of all other files.
    """

    path: str
    identity: Hashable
    files: list[AudioFile]
    others: list[str]


def suffix_of(name: str) -> str:
    """Return a file's suffix in lower case, such as `.wav`."""
    return os.path.splitext(name)[1].lower()


def walk(root: str) -> Iterator[Folder]:
    """List the files at any depth below a folder; what a Git repository keeps for itself (`.git`) is passed over.

    Args:
        root: Local folder, whose links are followed, or URI, listed in one go.

    Raises:
        UserError: The root is not there or cannot be listed.
    """
    if suffix_of(root) in ARCHIVE_SUFFIXES and not os.path.isdir(root):
        raise UserError(f"{root} is an archive: unpack it, and name the folder")
    files, inner = storage.filesystem(root)
    if isinstance(files, fs.LocalFileSystem):
        if not os.path.isdir(inner):
            what = "a file, and no folder" if os.path.exists(inner) else "no folder"
            raise UserError(f"{root} is {what}: name one that is there, a CSV or Parquet table, or a URI")
        yield from _walk_local(inner)
        return
    try:
        listed = list_entries(root, recursive=True)
    except FileNotFoundError:
        raise UserError(f"{root} is not there: name a folder, a CSV or Parquet table, or a URI that is") from None
    except OSError as error:
        raise UserError(f"cannot list {root}: {one_line(error)}") from None
    folders: dict[str, Folder] = {}
    for name, file in listed:
        if file is not None and "/.git/" not in f"/{name}":
            path = file.path.rpartition("/")[0]
            folder = folders.setdefault(path, Folder(path, path, [], []))
            if may_hold_sound(name):
                folder.files.append(file)
            else:
                folder.others.append(name)
    yield from folders.values()


def _walk_local(root: str) -> Iterator[Folder]:
    visited = set()  # a link may lead back up
    pending = [root]
    while pending:
        path = pending.pop()
        try:
            status = os.stat(path)
            entries = sorted(os.scandir(path), key=lambda entry: entry.name, reverse=True)  # pop takes the last
        except OSError as error:
            problem = f"folder cannot be listed: {error.strerror}"
            yield Folder(path, path, [AudioFile(printable(path), problem=problem)], [])
            continue
        folder = Folder(path, (status.st_dev, status.st_ino), [], [])
        if folder.identity in visited:
            continue
        visited.add(folder.identity)
        for entry in entries:
            if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path)):
                if entry.name != ".git":
                    pending.append(entry.path)
            elif may_hold_sound(entry.name):
                folder.files.append(describe_file(entry.path))
            else:
                folder.others.append(entry.name)
        yield folder


def may_hold_sound(name: str) -> bool:
    """Tell by a file's suffix whether it may be sound or video."""
    suffix = suffix_of(name)
    return suffix in AUDIO_SUFFIXES or suffix in MEDIA_SUFFIXES


def describe_file(path: str) -> AudioFile:
    """Describe a local file, whatever its suffix; one that is missing gets the problem `file not found`."""
    if printable(path) != path:
        return AudioFile(printable(path), problem="path is not valid UTF-8: rename it")
    if "\0" in path:
        return AudioFile(path, problem="path holds a null character")
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return AudioFile(path, problem=_why_missing(path))
    except OSError as error:
        return AudioFile(path, problem=f"cannot be read: {error.strerror}")
    if not stat.S_ISREG(status.st_mode):
        return AudioFile(path, problem="not a regular file")
    return AudioFile(path, status.st_size, status.st_mtime_ns)


def _why_missing(path: str) -> str:
    if os.path.islink(path) and "annex/objects/" in os.readlink(path).replace(os.sep, "/"):
        return "git-annex link whose content is not here: fetch it with `git annex get` (or `datalad get`)"
    return "file not found"


def list_entries(folder: str, recursive: bool) -> list[tuple[str, AudioFile | None]]:
    """List what is in a folder in object storage, sorted by name.

    Returns:
        Each one's path relative to the folder, not encoded, and its description, which is None for a folder.

    Raises:
        OSError: The folder cannot be listed; FileNotFoundError when it is not there.
    """
    files, inner = storage.filesystem(folder)
    found = files.get_file_info(fs.FileSelector(inner, recursive=recursive))
    entries: list[tuple[str, AudioFile | None]] = []
    for info in sorted(found, key=lambda info: info.path):
        name = info.path[len(inner) :].lstrip("/")
        path = f"{folder}/{quote_key(name)}"
        if info.type == fs.FileType.File:
            entries.append((name, AudioFile(path, info.size, info.mtime_ns or 0)))
        elif info.type == fs.FileType.Directory:
            entries.append((name, None))
    return entries


def tell_contents(names: Sequence[str]) -> str:
    """Say in one clause per kind what files are, and what to do with them; empty when there are none."""
    suffixes = Counter(map(suffix_of, names))
    clauses, rest = [], 0
    for suffix, count in sorted(suffixes.items(), key=lambda item: (-item[1], item[0])):
        kind, plural = suffix.lstrip("."), "" if count == 1 else "s"
        if suffix in ARCHIVE_SUFFIXES:
            clauses.append(f"{count} {kind} archive{plural}: unpack {'it' if count == 1 else 'them'}")
        elif suffix in MEDIA_SUFFIXES:
            which = "whose name is" if count == 1 else "whose names are"
            clauses.append(
                f"{count} {kind} file{plural} {which} of no corpus: list {'it' if count == 1 else 'them'} in a table"
            )
        elif suffix in TABLE_SUFFIXES:
            clauses.append(f"{count} {kind} table{plural}: name the table itself if it lists clips")
        else:
            rest += count
    if rest:
        what = "other file" if clauses else "file"
        clauses.append(f"1 {what} that holds no sound" if rest == 1 else f"{rest} {what}s that hold no sound")
    return "; ".join(clauses)


def quote_key(path: str) -> str:
    """Percent-encode a path so that it can stand in a URI."""
    return quote(path, safe="/!$&'()*+,;=:@~")


def printable(path: str) -> str:
    """Return a path with bytes that are not UTF-8 written as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def one_line(error: Exception) -> str:
    """Return an error's message without line breaks."""
    return " ".join(str(error).split())
