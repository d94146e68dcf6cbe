"""What the search for clips finds, and its count per corpus."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

from ser_ray.speech.corpora import ravdess
from ser_ray.speech.corpora.known import UNKNOWN, known_corpora
from ser_ray.speech.utterance import Reject, Utterance


@dataclass
class Manifest:
    """What was found below the roots, each list sorted by path.

    Attributes:
        roots: Where was looked, normalized and sorted; a table that was given with a name of its corpus has it at the
            end, as in `/data/table.csv#lab`.
        utterances: The clips to use, one per utterance_id and, but for `conflicts`, one per content.
        rejects: Files that are not used, with the reason.
        duplicates: Copies of one of `utterances`, with the reason `copy of <its path>`.
        conflicts: The utterance_ids of clips that are the same audio under different labels; all are in `utterances`.
        made_speech: Folders of made speech, absolute paths or URIs, that hold any of the clips or their copies.
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


def audit(manifest: Manifest) -> list[AuditRow]:
    """Count per corpus what was found; RAVDESS song is a row of its own, files of no corpus are the row `unknown`."""
    published = {row: count for corpus in known_corpora() for row, count in corpus.PUBLISHED_CLIPS.items()}
    used = Counter(_row(u.corpus, u.utterance_id) for u in manifest.utterances)
    rejects = Counter(_row(r.corpus, r.utterance_id) for r in manifest.rejects)
    duplicates = Counter(_row(r.corpus, r.utterance_id) for r in manifest.duplicates)
    conflicts = Counter(row for ids in manifest.conflicts for row in {_row(i.partition("/")[0], i) for i in ids})
    speakers = defaultdict(set)
    for u in manifest.utterances:
        speakers[_row(u.corpus, u.utterance_id)].add(u.speaker_id)
    found = used + rejects + duplicates
    others = sorted(set(found) - set(published) - {UNKNOWN})
    return [
        AuditRow(
            corpus=name,
            found=found[name],
            published=published.get(name),
            speakers=len(speakers[name]),
            duplicates=duplicates[name],
            conflicts=conflicts[name],
            rejects=rejects[name],
        )
        for name in [*published, *others, UNKNOWN]
        if found[name]
    ]


def _row(corpus: str, utterance_id: str) -> str:
    return ravdess.SONG if utterance_id.startswith("ravdess/03-02-") else corpus
