"""Files by path or URI, local or in object storage, by pyarrow's filesystems.

A path is a plain local path or a URI such as `s3://bucket/key` or `gs://bucket/key`. Writes are atomic: a
reader sees the whole file or none, locally by rename, in object storage because an object appears when its upload ends.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import uuid
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, BinaryIO
from urllib.parse import unquote

from pyarrow import fs

from ser_ray.base.errors import UserError


def is_uri(path: str) -> bool:
    """Tell whether a path names a scheme, such as `s3://`."""
    return "://" in path


def normalize(path: str) -> str:
    """Return an absolute local path, or the URI without a trailing slash.

    Raises:
        UserError: The URI holds a user name or a password, which would go into records and reports.
    """
    scheme, found, rest = path.partition("://")
    if found and "@" in rest.partition("/")[0]:
        raise UserError(
            f"a {scheme}:// address holds what stands before an @: give keys by the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or a role, never in an address"
        )
    return path.rstrip("/") if is_uri(path) else os.path.abspath(os.path.expanduser(path))


def join(root: str, *parts: str) -> str:
    """Join path parts with slashes."""
    return "/".join([root.rstrip("/"), *parts])


def filesystem(path: str) -> tuple[fs.FileSystem, str]:
    """Return the filesystem of a path and the path within it; characters in a URI's key may be percent-encoded.

    Raises:
        UserError: The URI's scheme is unknown.
    """
    if not is_uri(path):
        return fs.LocalFileSystem(), normalize(path)
    scheme, _, rest = path.partition("://")
    bucket, _, key = rest.partition("/")
    if not bucket:  # file:///a/b
        return fs.LocalFileSystem(), f"/{unquote(key)}"
    try:
        files, root = _connect(f"{scheme}://{bucket}")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot open {path}: {error}") from None
    return files, f"{root}/{unquote(key)}" if key else root


@lru_cache(maxsize=16)
def _connect(bucket: str) -> tuple[fs.FileSystem, str]:
    return fs.FileSystem.from_uri(bucket)  # one client per bucket: each new one shakes hands anew


def exists(path: str) -> bool:
    """Tell whether a file or folder is there."""
    files, inner = filesystem(path)
    return files.get_file_info(inner).type != fs.FileType.NotFound


def list_names(folder: str, kind: fs.FileType = fs.FileType.File) -> list[str]:
    """Return the sorted names of files, or of folders, directly in a folder; empty when it is not there."""
    files, inner = filesystem(folder)
    found = files.get_file_info(fs.FileSelector(inner, allow_not_found=True))
    return sorted(info.base_name for info in found if info.type == kind)


def open_read(path: str) -> BinaryIO:
    """Open a file for random-access reading.

    Raises:
        OSError: The file cannot be read.
    """
    files, inner = filesystem(path)
    return files.open_input_file(inner)


def read_json(path: str) -> Any:
    """Read a JSON file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not JSON.
    """
    with open_read(path) as stream:
        return json.loads(stream.read())


def write(path: str, fill: Callable[[BinaryIO], Any]) -> None:
    """Write a file atomically, making its folder first.

    Args:
        path: Where the file shall stand.
        fill: Called with the open binary stream.
    """
    files, inner = filesystem(path)
    if not isinstance(files, fs.LocalFileSystem):
        whole = io.BytesIO()  # closing a stream completes its object, so none is opened before all is there
        fill(whole)
        with files.open_output_stream(inner) as stream:
            stream.write(whole.getbuffer())
        return
    os.makedirs(os.path.dirname(inner), exist_ok=True)
    draft = f"{inner}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with open(draft, "wb") as stream:
            fill(stream)
        os.replace(draft, inner)
    except BaseException:
        if os.path.exists(draft):
            os.remove(draft)
        raise


def write_text(path: str, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    write(path, lambda stream: stream.write(text.encode()))


def write_json(path: str, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def remove(path: str) -> None:
    """Delete a file; one that is gone already is fine."""
    files, inner = filesystem(path)
    with contextlib.suppress(FileNotFoundError):
        files.delete_file(inner)


def remove_folder(path: str) -> None:
    """Delete a folder with all that is in it, if it is there."""
    if exists(path):
        files, inner = filesystem(path)
        files.delete_dir(inner)


@contextlib.contextmanager
def lock(folder: str, on_wait: Callable[[], None]) -> Iterator[None]:
    """Keep other jobs on this machine off a local folder until the context ends or the process does.

    Object storage and some network file systems know no locks; there nothing is locked.

    Args:
        folder: Path, made if it is not there, or URI.
        on_wait: Called before waiting for a job that holds the lock.
    """
    if is_uri(folder):
        yield
        return
    import fcntl  # Unix alone has it

    os.makedirs(folder, exist_ok=True)
    with open(join(folder, ".lock"), "w") as file:
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
