"""Any other corpus: a CSV or Parquet table with one row per clip.

    path,emotion,speaker_id,gender
    clips/0001.wav,happiness,anna,female
    clips/0002.wav,neutral,001,

Required columns are `path` (relative to the table's folder, absolute, or a URI), `emotion` (a label or one of its
usual synonyms) and `speaker_id`, because who speaks decides who is tested on. `gender`, `intensity`, `sentence_id`
and `channel` (`speech` unless said otherwise) are optional; further columns are ignored. Columns may have other usual
names, such as `file_name`, `label` and `speaker` (`cells`), and paths other spellings (`lookup`). A Parquet table may
hold the sounds themselves (`speech.packed`).

A row's corpus is what its column `corpus` says, else the name given by `--data NAME=table.csv`, else the table's file
name. It stands before speakers and sentences, so that they are unique over corpora. So two tables that name the same
corpus speak of the same people; tables that are merely called alike are refused.

A clip's id is its corpus and its path as written, without the suffix: `lab/clips/0001`. Where several files of a corpus
share that, as `001.wav` and `001.flac` do, all of them have their suffix in the id; where that is not enough, as in two
tables of one corpus in different folders, the whole path. Ids hang on what is listed, not on the order of rows. When a
table grows by a row that shares the id of an older one, both have longer ids from then on: a store takes the older clip
for one that vanished, computes it once more under its new id, and nothing else changes.

One file under two emotions is a label conflict: it has an id for each of them, such as `lab/clips/0001#sad`, is
featurized, and is left out of training and test like two files of the same content.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from sys import intern
from typing import NamedTuple, TypeVar
from urllib.parse import unquote

from ser_ray.base import storage
from ser_ray.base.errors import UserError
from ser_ray.speech.corpora.cells import REQUIRED, read_cells, refuse_missing
from ser_ray.speech.corpora.files import TABLE_SUFFIXES, AudioFile
from ser_ray.speech.corpora.lookup import FileLookup
from ser_ray.speech.corpora.packed_rows import locate
from ser_ray.speech.emotions import parse_emotion
from ser_ray.speech.utterance import Reject, Utterance

_GENDERS = {"f": "female", "female": "female", "woman": "female", "m": "male", "male": "male", "man": "male"}
_Record = TypeVar("_Record", Utterance, Reject)


class TableRoot(NamedTuple):
    """A table that was given to `--data`.

    Attributes:
        path: Absolute local path or URI.
        corpus: The corpus of rows that name none.
        named: Whether the corpus was given with the table, rather than drawn from its file name.
    """

    path: str
    corpus: str
    named: bool = False

    @property
    def label(self) -> str:
        """The table among the roots of a manifest."""
        return f"{self.path}#{self.corpus}" if self.named else self.path


def parse_table_root(text: str) -> TableRoot | None:
    """Read one value of `--data`: a table, or `NAME=table`; None when it is neither. A path that exists wins."""
    name, equals, rest = text.partition("=")
    plain = not {"/", ":"} & set(name) and not os.path.exists(os.path.expanduser(text))
    if equals and plain and _is_table(rest) and _corpus_name(name):
        return TableRoot(storage.normalize(rest), _corpus_name(name), named=True)
    path = storage.normalize(text)
    if not _is_table(path):
        return None
    stem = os.path.splitext(unquote(path).rpartition("/")[2])[0]
    return TableRoot(path, _corpus_name(stem) or "table")


@dataclass
class _Listing:
    """What some tables list.

    Attributes:
        clips: By corpus and path.
        again: Further rows of the same files, with their numbers.
        rejects: Rows that cannot be used.
    """

    clips: dict[tuple[str, str], Utterance] = field(default_factory=dict)
    again: list[tuple[int, Utterance]] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)


def read_tables(tables: Sequence[TableRoot], taken: Mapping[str, str]) -> tuple[list[Utterance], list[Reject]]:
    """Read the clips of some tables.

    Args:
        tables: Which; files that several of them list for one corpus count once.
        taken: Names of corpora that no table may have, each with what has the name.

    Returns:
        The utterances, and the rows that cannot be used: an empty cell, an unknown emotion, a file that is missing, was
        listed before or has several speakers.

    Raises:
        UserError: A table cannot be read, lists no clip that can be used, lacks a required column or has nothing in it,
            or has the name of another corpus.
    """
    listing = _Listing()
    owners = {name: (what, False) for name, what in taken.items()}
    for table in tables:
        usable, unusable = len(listing.clips) + len(listing.again), len(listing.rejects)
        for corpus, named in sorted(_read(table, listing).items()):
            _claim(owners, corpus, table.path, named)
        if len(listing.clips) + len(listing.again) == usable:
            first = listing.rejects[unusable]
            raise UserError(f"{table.path} lists no clip that can be used; {first.path}: {first.reason}")
    clips, conflicting = _settle(listing)
    ids = _tell_apart([*clips, *listing.rejects])
    for place, clip in enumerate(clips):
        if (clip.corpus, clip.path) in conflicting:
            ids[place] += f"#{clip.emotion}"
    return _rename(clips, ids), _rename(listing.rejects, ids[len(clips) :])


def equal_speakers(utterances: Sequence[Utterance]) -> str:
    """Warn in one line of speakers who have one name in several corpora; empty when there are none."""
    holders: dict[str, set[str]] = defaultdict(set)
    for clip in utterances:
        holders[clip.speaker_id.removeprefix(f"{clip.corpus}_")].add(clip.corpus)
    shared = sorted(name for name, corpora in holders.items() if len(corpora) > 1)
    if not shared:
        return ""
    return (
        f"Speakers with the same name in several tables: {len(shared)}, such as {shared[0]} in "
        f"{' and '.join(sorted(holders[shared[0]]))}. They count as different people; if they are the same, name one "
        "corpus for these tables (a column corpus, or --data NAME=table.csv)"
    )


def _is_table(root: str) -> bool:
    return root.lower().endswith(TABLE_SUFFIXES)


def _corpus_name(text: str) -> str:
    """Return a corpus's name: a text in lower case, other than letters and digits as underscores."""
    return re.sub(r"[\W_]+", "_", text).strip("_").lower()


def _claim(owners: dict[str, tuple[str, bool]], corpus: str, path: str, named: bool) -> None:
    """Refuse a table whose speakers could be taken for those of another corpus."""
    owner, owner_named = owners.setdefault(corpus, (path, named))
    if owner != path and not (named and owner_named):
        raise UserError(
            f"{path} would be the corpus {corpus}, but that is {owner}: rename the table, or name its corpus by a "
            "column corpus or by --data NAME=table.csv"
        )


def _read(table: TableRoot, listing: _Listing) -> dict[str, bool]:
    """Add what a table lists; return its corpora, each with whether all of its rows were told so."""
    folder = table.path.rpartition("/")[0]
    find = FileLookup(folder)
    corpora: dict[str, bool] = {}
    filled: set[str] = set()
    for number, row in enumerate(read_cells(table.path), start=1):
        if not any(row.values()):
            continue
        named = row["corpus"] and _corpus_name(row["corpus"])
        corpus = intern(named or table.corpus)
        corpora[corpus] = corpora.get(corpus, True) and bool(named or table.named)
        file, name = locate(find, row["path"]) if row["path"] else (AudioFile(table.path), "")
        utterance_id = f"{corpus}/{_stem(name, folder)}" if name else ""
        filled.update(column for column in REQUIRED if row[column])
        try:
            for column in REQUIRED:
                if not row[column]:
                    raise ValueError(f"row {number}: {column} is empty")
            clip = _utterance(row, file, corpus, utterance_id)
            if listing.clips.setdefault((corpus, clip.path), clip) is not clip:
                listing.again.append((number, clip))
        except ValueError as error:
            listing.rejects.append(Reject(file.path, corpus, utterance_id, str(error)))
    for column in REQUIRED:
        if column not in filled:
            raise refuse_missing(table.path, column)
    return corpora


def _utterance(row: dict[str, str], file: AudioFile, corpus: str, utterance_id: str) -> Utterance:
    emotion = parse_emotion(row["emotion"])
    if file.problem:
        raise ValueError(file.problem)
    return Utterance(
        utterance_id=utterance_id,
        corpus=corpus,
        speaker_id=intern(f"{corpus}_{row['speaker_id']}"),
        gender=_GENDERS.get(row["gender"].lower(), ""),
        emotion=emotion,
        intensity=intern(row["intensity"].lower()),
        sentence_id=intern(f"{corpus}_{row['sentence_id']}") if row["sentence_id"] else "",
        channel=intern(row["channel"].lower()) or "speech",
        path=file.path,
        size=file.size,
        modified_ns=file.modified_ns,
    )


def _stem(name: str, folder: str) -> str:
    """Return a path as written in the table, without suffix, the same wherever the table's folder stands."""
    name = name.removeprefix(f"{folder}/")
    return os.path.splitext(posixpath.normpath(name.partition("://")[2] or name))[0].lstrip("/")


def _settle(listing: _Listing) -> tuple[list[Utterance], set[tuple[str, str]]]:
    """Decide on files that several rows list, whatever the rows' order, and add to the rejects.

    Returns:
        All clips, one per file, but one per emotion of a file that has several; and the corpora and paths of these.
    """
    rows: dict[tuple[str, str], list[tuple[int, Utterance]]] = defaultdict(list)
    for number, clip in listing.again:
        rows[clip.corpus, clip.path].append((number, clip))
    extra: list[Utterance] = []
    conflicting: set[tuple[str, str]] = set()
    for key, more in rows.items():
        first = listing.clips[key]
        speakers = sorted({first.speaker_id, *(clip.speaker_id for _, clip in more)})
        emotions = {first.emotion}
        for number, clip in more:
            if clip.emotion not in emotions:
                emotions.add(clip.emotion)
                extra.append(clip)
            else:
                _reject(listing, clip, f"row {number}: the file is listed twice")
        if len(emotions) > 1:
            conflicting.add(key)
        elif len(speakers) > 1:
            names = " and ".join(repr(name.removeprefix(f"{first.corpus}_")) for name in speakers)
            _reject(listing, first, f"listed with several speakers, {names}: name the one who speaks")
            del listing.clips[key]
    return [*listing.clips.values(), *extra], conflicting


def _reject(listing: _Listing, clip: Utterance, reason: str) -> None:
    listing.rejects.append(Reject(clip.path, clip.corpus, clip.utterance_id, reason))


def _rename(records: Sequence[_Record], ids: Sequence[str]) -> list[_Record]:
    """Return records by other ids; those whose id stays are the same objects."""
    pairs = zip(records, ids, strict=False)
    return [r if r.utterance_id == name else replace(r, utterance_id=name) for r, name in pairs]


def _tell_apart(records: Sequence[Utterance | Reject]) -> list[str]:
    """Return the ids of records, as much longer as it takes for different files to have different ones."""
    ids = [record.utterance_id for record in records]
    longer: dict[int, Iterator[str]] = {}
    while clashes := _clashing(ids, records):
        for place, record in enumerate(records):
            if ids[place] in clashes:
                ids[place] = next(longer.setdefault(place, _longer_ids(record)))
    return ids


def _clashing(ids: Sequence[str], records: Sequence[Utterance | Reject]) -> set[str]:
    """Return the ids that stand for several files."""
    paths: dict[str, str] = {}
    pairs = ((name, record.path) for name, record in zip(ids, records, strict=True) if name)
    return {name for name, path in pairs if paths.setdefault(name, path) != path}


def _longer_ids(record: Utterance | Reject) -> Iterator[str]:
    """Yield the id with the file's suffix, then again and again with its whole path, which no other file has."""
    path = unquote(record.path) if storage.is_uri(record.path) else record.path
    yield record.utterance_id + os.path.splitext(path)[1]
    yield from repeat(f"{record.corpus}/{record.path.removeprefix('/')}")
