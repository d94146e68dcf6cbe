"""From roots to a manifest: every clip below them once, and a reason for every file left out.

    roots ─▶ files (files.walk, table.read_tables) ─▶ classify ─▶ drop copies ─▶ Manifest ─▶ audit

Copies are found by content, because the usual downloads of RAVDESS and TESS hold every clip twice and the same audio
stands under two labels in CREMA-D. Whatever the order of the roots and the machine, the result is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter

from ser_ray.base import storage
from ser_ray.base.console import say
from ser_ray.base.errors import UserError
from ser_ray.speech.corpora.cells import REQUIRED
from ser_ray.speech.corpora.copies import drop_copies, find_copies
from ser_ray.speech.corpora.files import MEDIA_SUFFIXES, AudioFile, suffix_of, tell_contents, walk
from ser_ray.speech.corpora.known import UNKNOWN, Corpus, known_corpora
from ser_ray.speech.corpora.manifest import Manifest
from ser_ray.speech.corpora.marker import MARKER, find_made_speech
from ser_ray.speech.corpora.table import equal_speakers, parse_table_root, read_tables
from ser_ray.speech.utterance import Reject, Utterance


def discover(
    roots: Sequence[str], hash_files: Callable[[Sequence[Utterance]], dict[str, bytes]] = find_copies
) -> Manifest:
    """Find every clip of every known corpus below the roots.

    Known are the corpora built in and those that a caller registered (`known`). Speakers with the same name in several
    tables are warned of on the terminal.

    Args:
        roots: Local folders, URIs such as `s3://bucket/corpora`, and CSV or Parquet tables, which may name their corpus
            as in `lab=table.csv`.
        hash_files: Finds the digests of files that may be copies, by path.

    Returns:
        The manifest. A file that several roots lead to counts once; a table's row beats the file's name.

    Raises:
        UserError: A root is not there, cannot be read, or holds no clip that can be used.
    """
    corpora = known_corpora()
    parsed = {root: parse_table_root(root) for root in roots}
    tables = sorted({table for table in parsed.values() if table})
    folders = sorted({storage.normalize(root) for root, table in parsed.items() if not table})
    manifest = Manifest(sorted([*folders, *(table.label for table in tables)]))
    taken = {corpus.NAME: "a corpus known here" for corpus in corpora} | {UNKNOWN: "the name of stray files"}
    found, manifest.rejects = read_tables(tables, taken)
    if len(tables) > 1 and (warning := equal_speakers(found)):
        say(warning)
    seen = {clip.path for clip in found} | {reject.path for reject in manifest.rejects}
    search = _Search(corpora, seen)
    for root in folders:
        utterances, rejects = search.look_below(root)
        found += utterances
        manifest.rejects += rejects
    found.sort(key=attrgetter("path"))
    drop_copies(found, hash_files(found), manifest)
    manifest.rejects.sort(key=attrgetter("path"))
    kept = [clip.path for clip in manifest.utterances] + [copy.path for copy in manifest.duplicates]
    holders = {path.rpartition("/")[0] for path in kept}
    manifest.made_speech = find_made_speech(holders, search.unmarked)
    return manifest


def classify(file: AudioFile, corpora: Sequence[Corpus]) -> Utterance | Reject | None:
    """Tell by its name which clip of which corpus a file is, or why it is none.

    Returns:
        None for video, and sound of rare kinds, whose name fits no corpus: nothing says that it is speech.
    """
    media = suffix_of(file.path) in MEDIA_SUFFIXES
    if not media:
        if file.problem:
            return Reject(file.path, UNKNOWN, "", file.problem)
        if file.path.rpartition("/")[2].startswith("._"):
            return Reject(file.path, UNKNOWN, "", "macOS sidecar file (AppleDouble), not audio")
    for corpus in corpora:
        try:
            clip = corpus.parse(file.path)
        except ValueError as error:
            return Reject(file.path, corpus.NAME, "", str(error))
        if clip is not None and file.problem:
            return Reject(file.path, corpus.NAME, clip.utterance_id, file.problem)
        if clip is not None:
            return replace(clip, size=file.size, modified_ns=file.modified_ns)
    return None if media else Reject(file.path, UNKNOWN, "", "name fits no known corpus")


@dataclass
class _Search:
    """A search for clips below folders, where a folder that several roots lead to is looked through once.

    Attributes:
        corpora: What a file's name may belong to.
        listed: Paths of files that tables list, whatever their names.
        visited: Identities of folders that were looked through.
        unmarked: Paths of folders without the mark of made speech.
    """

    corpora: Sequence[Corpus]
    listed: set[str]
    visited: set[Hashable] = field(default_factory=set)
    unmarked: set[str] = field(default_factory=set)

    def look_below(self, root: str) -> tuple[list[Utterance], list[Reject]]:
        """Return the clips below a root and the files that are none.

        Raises:
            UserError: The root is not there, cannot be listed, or holds no clip that can be used.
        """
        utterances: list[Utterance] = []
        rejects: list[Reject] = []
        usable, others = False, []
        for folder in walk(root):
            if MARKER not in folder.others:
                self.unmarked.add(folder.path)
            others += folder.others
            known = folder.identity in self.visited
            self.visited.add(folder.identity)
            for file in folder.files:
                if known or file.path in self.listed:
                    usable = True
                    continue
                record = classify(file, self.corpora)
                if isinstance(record, Utterance):
                    usable = True
                    utterances.append(record)
                elif record:
                    rejects.append(record)
                else:
                    others.append(file.path)
        if not usable:
            raise UserError(self._nothing_usable(root, rejects, others))
        return utterances, rejects

    def _nothing_usable(self, root: str, rejects: Sequence[Reject], others: Sequence[str]) -> str:
        contents = tell_contents(others)
        if not rejects:
            what = f"{root} holds no audio file{f' but {contents}' if contents else ''}"
            return f"{what}; name the folder of a corpus, or a CSV or Parquet table of clips"
        return (
            f"{root} holds no clip of {', '.join(corpus.NAME for corpus in self.corpora)} among {len(rejects)} audio "
            f"files ({rejects[0].path}: {rejects[0].reason}){f', but {contents}' if contents else ''}: name such a "
            f"folder, or list the clips in a CSV or Parquet table with columns {', '.join(REQUIRED)}"
        )
