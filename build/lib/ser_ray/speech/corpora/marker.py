"""Whether speech was made rather than spoken: a fact of the data, told by a file in their folder or above it."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from typing import Any

from ser_ray.base import storage

MARKER = "made_speech.json"  # written by `ser_ray.speech.made`


def find_made_speech(folders: Iterable[str], without: Collection[str] = ()) -> list[str]:
    """Find the folders of made speech that some folders are or lie in, however far up.

    Each folder is looked into once.

    Args:
        folders: Absolute paths or URIs.
        without: Folders that are known to hold no file of that name.

    Returns:
        Of each folder the topmost that is marked, sorted, each once.
    """
    topmost: dict[str, str] = {}

    def look(folder: str) -> str:
        if folder not in topmost:
            parent = folder.rpartition("/")[0]
            above = look(parent) if parent and not parent.endswith("/") else ""
            topmost[folder] = above or (folder if folder not in without and read_marker(folder) else "")
        return topmost[folder]

    def find(folder: str) -> str:
        # A link may lead into made speech from elsewhere.
        return look(folder) or ("" if storage.is_uri(folder) else look(os.path.realpath(folder)))

    return sorted({find(folder) for folder in folders} - {""})


def read_marker(folder: str) -> dict[str, Any]:
    """Return what made speech says of itself in a folder; empty where it does not, as in a file of another origin."""
    try:
        facts = storage.read_json(storage.join(folder, MARKER))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) and {"version", "seed"} <= facts.keys() else {}
