"""From roots to a manifest: every clip below them once, and a reason for every file left out.

    roots ─▶ files (files.walk, table.read) ─▶ classify ─▶ drop copies ─▶ Manifest ─▶ audit

Copies are found by content, because the usual downloads of RAVDESS and TESS hold every clip twice and the same audio
stands under two labels in CREMA-D. Whatever the order of the roots and the machine, the result is the same.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import NamedTuple

from ser_ray.base import storage
from ser_ray.base.errors import UserError
from ser_ray.speech.corpora import crema_d, ravdess, savee, table, tess
from ser_ray.speech.corpora.files import AudioFile, find_copies, walk
from ser_ray.speech.utterance import Reject, Utterance

CORPORA = (ravdess, crema_d, tess, savee)
PUBLISHED_CLIPS = {row: count for corpus in CORPORA for row, count in corpus.PUBLISHED_CLIPS.items()}
UNKNOWN = "unknown"

# Smaller files hold no speech but may well be alike: empty ones, Git-LFS pointers.
_MIN_COPY_BYTES = 512


@dataclass
class Manifest:
    """What was found below the roots, each list sorted by path.

    Attributes:
        roots: Where was looked, normalized and sorted.
        utterances: The clips to use, one per utterance_id and, but for `conflicts`, one per content.
        rejects: Files that are not used, with the reason.
        duplicates: Copies of one of `utterances`, with the reason `copy of <its path>`.
        conflicts: The utterance_ids of clips that are the same audio under different labels; all are in `utterances`.
        made_speech: Folders of made speech that hold any of the clips.
    """

    roots: list[str] = field(default_factory=list)
    utterances: list[Utterance] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    duplicates: list[Reject] = field(default_factory=list)
    conflicts: list[tuple[str, ...]] = field(default_factory=list)
    made_speech: list[str] = field(default_factory=list)


class AuditRow(NamedTuple):
    """One line of the audit table.

    Attributes:
        corpus: A corpus's name, `ravdess song`, or `unknown`.
        found: Clips found: those used, duplicates and rejects together.
        published: How many the corpus was published with; None for tables and unknown files.
        speakers: Number of speakers of the clips used.
        duplicates: Copies dropped.
        conflicts: Contents that stand under different labels.
        rejects: Files rejected so far.
    """

    corpus: str
    found: int
    published: int | None
    speakers: int
    duplicates: int
    conflicts: int
    rejects: int


def discover(
    roots: Sequence[str], hash_files: Callable[[Sequence[Utterance]], dict[str, bytes]] = find_copies
) -> Manifest:
    """Find every clip of every known corpus below the roots.

    Args:
        roots: Local folders, URIs such as `s3://bucket/corpora`, and CSV or Parquet tables.
        hash_files: Finds the digests of files that may be copies, by path.

    Returns:
        The manifest. A file that several roots lead to counts once; a table's row beats the file's name.

    Raises:
        UserError: A root is not there, cannot be read, or holds no clip that can be used.
    """
    roots = sorted({storage.normalize(root) for root in roots})
    found: list[Utterance] = []
    manifest = Manifest(roots)
    tables = [root for root in roots if table.is_table(root)]
    _check_names(tables)
    for root in tables:
        utterances, rejects = table.read(root)
        if not utterances:
            raise UserError(f"{root} lists no clip that can be used; {rejects[0].path}: {rejects[0].reason}")
        found += utterances
        manifest.rejects += rejects
    listed = {record.path for record in found + manifest.rejects}
    visited = set()
    for root in roots:
        if root in tables:
            continue
        usable, rejects = False, []
        for folder, files in walk(root):
            known = folder in visited
            visited.add(folder)
            for file in files:
                record = None if known or file.path in listed else classify(file)
                if isinstance(record, Reject):
                    rejects.append(record)
                    continue
                usable = True
                if record:
                    found.append(record)
        if not usable:
            raise UserError(_nothing_usable(root, rejects))
        manifest.rejects += rejects
    found.sort(key=attrgetter("path"))
    _drop_copies(found, hash_files(found), manifest)
    manifest.rejects.sort(key=attrgetter("path"))
    return manifest


def classify(file: AudioFile) -> Utterance | Reject:
    """Tell by its name which clip of which corpus a file is, or why it is none."""
    if file.problem:
        return Reject(file.path, UNKNOWN, "", file.problem)
    if file.path.rpartition("/")[2].startswith("._"):
        return Reject(file.path, UNKNOWN, "", "macOS sidecar file (AppleDouble), not audio")
    for corpus in CORPORA:
        try:
            utterance = corpus.parse(file.path)
        except ValueError as error:
            return Reject(file.path, corpus.NAME, "", str(error))
        if utterance is not None:
            return replace(utterance, size=file.size, modified_ns=file.modified_ns)
    return Reject(file.path, UNKNOWN, "", "name fits no known corpus")


def audit(manifest: Manifest) -> list[AuditRow]:
    """Count per corpus what was found; RAVDESS song is a row of its own, files of no corpus are the row `unknown`."""
    used = Counter(_row(u.corpus, u.utterance_id) for u in manifest.utterances)
    rejects = Counter(_row(r.corpus, r.utterance_id) for r in manifest.rejects)
    duplicates = Counter(_row(r.corpus, r.utterance_id) for r in manifest.duplicates)
    conflicts = Counter(row for ids in manifest.conflicts for row in {_row(i.partition("/")[0], i) for i in ids})
    speakers = defaultdict(set)
    for u in manifest.utterances:
        speakers[_row(u.corpus, u.utterance_id)].add(u.speaker_id)
    found = used + rejects + duplicates
    tables = sorted(set(found) - set(PUBLISHED_CLIPS) - {UNKNOWN})
    return [
        AuditRow(
            corpus=name,
            found=found[name],
            published=PUBLISHED_CLIPS.get(name),
            speakers=len(speakers[name]),
            duplicates=duplicates[name],
            conflicts=conflicts[name],
            rejects=rejects[name],
        )
        for name in [*PUBLISHED_CLIPS, *tables, UNKNOWN]
        if found[name]
    ]


def _row(corpus: str, utterance_id: str) -> str:
    return ravdess.SONG if utterance_id.startswith("ravdess/03-02-") else corpus


def _drop_copies(found: Sequence[Utterance], digests: dict[str, bytes], manifest: Manifest) -> None:
    """Sort clips into used ones, duplicates and rejects; the first by path is kept, of those that may hold speech."""
    by_id: dict[str, Utterance] = {}
    by_content: dict[object, dict[str, Utterance]] = defaultdict(dict)  # content → emotion → clip
    for u in sorted(found, key=lambda u: u.size < _MIN_COPY_BYTES):
        digest = digests.get(u.path)
        first = by_id.get(u.utterance_id)
        if first:
            alike = digest is not None and digest == digests.get(first.path)
            left_out, reason = (
                (manifest.duplicates, f"copy of {first.path}")
                if alike
                else (manifest.rejects, f"same id as {first.path}, other audio")
            )
            left_out.append(Reject(u.path, u.corpus, u.utterance_id, reason))
            continue
        if digest is not None and u.size >= _MIN_COPY_BYTES:
            kept = by_content[digest].setdefault(u.emotion, u)
            if kept is not u:
                manifest.duplicates.append(Reject(u.path, u.corpus, u.utterance_id, f"copy of {kept.path}"))
                continue
        by_id[u.utterance_id] = u
        manifest.utterances.append(u)
    for kept_or_not in (manifest.utterances, manifest.duplicates):
        kept_or_not.sort(key=attrgetter("path"))
    manifest.conflicts += sorted(
        tuple(sorted(u.utterance_id for u in clips.values())) for clips in by_content.values() if len(clips) > 1
    )


def _check_names(tables: Sequence[str]) -> None:
    """Refuse tables whose speakers could be taken for those of another corpus."""
    taken = {corpus.NAME: "a corpus known here" for corpus in CORPORA} | {UNKNOWN: "the name of stray files"}
    for root in tables:
        name = table.corpus_name(root)
        if name in taken:
            raise UserError(f"{root} would be the corpus {name}, but that is {taken[name]}: rename the table")
        taken[name] = root


def _nothing_usable(root: str, rejects: Sequence[Reject]) -> str:
    if not rejects:
        return f"{root} holds no audio file: name the folder of a corpus, or a CSV or Parquet table of clips"
    return (
        f"{root} holds no clip of {', '.join(corpus.NAME for corpus in CORPORA)} among {len(rejects)} audio files "
        f"({rejects[0].path}: {rejects[0].reason}): name such a folder, or list the clips in a CSV or Parquet table "
        f"with columns {', '.join(table.REQUIRED)}"
    )
