"""Protocols: which rows train, validate and test; and the check that nothing leaks between them.

A protocol keeps *units* apart: speakers, sentences (`text-independent`) or mere rows (`notebook`). Folds are lists of
units to be tested, made from all rows whatever the labels, so that runs with other labels test the same people; the
rows follow their unit. Draws order units by a hash of the seed and the unit's name instead of calling a random
generator: they depend neither on the order of the rows nor on NumPy's version, and one speaker more leaves the others'
order as it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ser_ray.base.errors import UserError
from ser_ray.speech.emotions import LabelSet

_ACTORS = ((1, 11, 20, 21), (4, 10, 12, 14), (8, 9, 19, 23), (3, 5, 7, 24), (2, 15, 16, 18), (6, 13, 17, 22))
EMOBOX = {  # test speakers of each fold, as the EmoBox benchmark publishes them: arXiv 2406.07162
    "ravdess": tuple(tuple(f"ravdess_{actor:02d}" for actor in fold) for fold in _ACTORS),
    "savee": (("savee_je",), ("savee_kl",), ("savee_dc",), ("savee_jk",)),
}


class _Rule(NamedTuple):
    story: str  # the protocol in words
    needs: str  # what it takes to fill train, validation and test
    unit: str = "speaker"  # what is kept apart: speaker, sentence or row
    forbidden: tuple[str, ...] = ("speakers", "hashes", "utterances")  # kinds of leak that stop the run


_RULES = {
    "speaker-independent": _Rule(
        "tested on speakers who are heard in neither training nor validation",
        "at least 3 speakers, 2 of them in one corpus",
    ),
    "emobox": _Rule(
        "EmoBox's fixed folds; only speech is tested, and nothing else of a tested or validating speaker is used",
        "speech of ravdess or savee: the fold's speakers and at least 2 others",
    ),
    "leave-one-speaker-out": _Rule(
        "tested on one speaker, who is heard in neither training nor validation",
        "at least 3 speakers",
    ),
    "leave-one-corpus-out": _Rule(
        "tested on one corpus, trained on the others, with the labels that both sides have",
        "at least 2 corpora, and 2 speakers in those that train",
    ),
    "text-independent": _Rule(
        "tested on sentences that are heard in neither training nor validation; the speakers are shared",
        "at least 3 sentences, 2 of them in one corpus (ravdess by itself has 2)",
        unit="sentence",
        forbidden=("sentences", "hashes", "utterances"),
    ),
    "notebook": _Rule(
        "LEAKY: rows drawn at random after augmentation, so that tested clips have augmented siblings in training, "
        "and speakers and sentences are shared",
        "at least 3 rows",
        unit="row",
        forbidden=(),
    ),
}
PROTOCOLS = tuple(_RULES)
_LEAKS = {"speakers": "speaker_id", "hashes": "sha256", "utterances": "utterance_id", "sentences": "sentence_id"}
_PAIRS = (("train", "validation"), ("train", "test"), ("validation", "test"))


@dataclass(frozen=True)
class SplitConfig:
    """Who is tested on.

    Attributes:
        protocol: What is kept apart between training and test: speaker-independent, emobox, leave-one-speaker-out,
            leave-one-corpus-out, text-independent, or notebook (leaky, for comparison only).
        fold: Which fold is tested, counted from 0.
        num_folds: Into how many folds speaker-independent, text-independent and notebook deal; the other protocols
            have their own number.
        seed: Seed of every draw of speakers, sentences or rows.
    """

    protocol: str = "speaker-independent"
    fold: int = 0
    num_folds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise UserError(f"unknown protocol {self.protocol!r}; choose one of: {', '.join(PROTOCOLS)}")
        if self.fold < 0:
            raise UserError(f"folds are counted from 0, got {self.fold}")
        if self.num_folds < 2:
            raise UserError(f"at least 2 folds are needed, got {self.num_folds}")


@dataclass(frozen=True, eq=False)
class Split:
    """Which rows of a table train, validate and test.

    Attributes:
        train: Row indices, int64, in the order of utterance_id and augmentation; clips and their augmented rows.
        validation: The same, without augmented rows.
        test: The same, without augmented rows (`notebook` validates and tests on augmented rows too).
        labels: The classes; fewer than asked for where the protocol restricts them.
        description: The protocol in words, with the units that are tested.
        excluded: Number of rows by the reason why they are in none of the three.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    labels: LabelSet
    description: str
    excluded: dict[str, int]


def num_folds(rows: pa.Table, config: SplitConfig) -> int:
    """Return how many folds the protocol has on these rows; `config.fold` is ignored.

    Raises:
        UserError: The rows do not suffice for the protocol.
    """
    return len(_folds(_strata(rows, config.protocol), config))


def split(rows: pa.Table, labels: LabelSet, config: SplitConfig) -> Split:
    """Choose the rows that train, validate and test.

    About a fifth (`notebook`: a tenth) of the units that are not tested validate. Audio that stands under several
    emotions, emotions outside the labels and rows without a unit are left out and counted.

    Args:
        rows: Rows of a feature store, with the columns `utterance_id corpus speaker_id gender emotion sentence_id
            channel sha256 augmentation`; one per clip and augmentation, `none` being the clip itself.
        labels: The classes of the experiment.
        config: Protocol, fold and seed.

    Raises:
        UserError: There is no such fold, or nothing is left to train, validate or test on.
    """
    rule = _RULES[config.protocol]
    strata = _strata(rows, config.protocol)
    folds = _folds(strata, config)
    if config.fold >= len(folds):
        raise UserError(f"there is no fold {config.fold}: {config.protocol} has folds 0 to {len(folds) - 1} here")
    tested = folds[config.fold]
    validating = _draw_validation(strata, tested, config)

    unit = _unit_column(rows, rule.unit)
    in_test, in_validation = _is_in(unit, tested), _is_in(unit, validating)
    held_out = in_test | in_validation
    conflicts = _label_conflicts(rows)
    if config.protocol == "leave-one-corpus-out":
        labels = _shared_labels(rows, labels, in_test, ~conflicts)
    not_speech = ~_is_in(rows["channel"], ["speech"]) & (config.protocol == "emobox")
    augmented = ~_is_in(rows["augmentation"], ["none"]) & (config.protocol != "notebook")
    reasons = {
        "same audio under several emotions": conflicts,
        "emotion not among the labels": ~_is_in(rows["emotion"], _emotions_of(rows, labels)),
        f"unknown {rule.unit}": _is_in(unit, [""]),
        "song of validation and test speakers": held_out & not_speech,
        "augmented rows of validation and test clips": held_out & augmented,
    }
    used = np.ones(rows.num_rows, bool)
    excluded = {}
    for reason, applies in reasons.items():
        if count := int((used & applies).sum()):
            excluded[reason] = count
        used &= ~applies

    order = pc.sort_indices(rows, [("utterance_id", "ascending"), ("augmentation", "ascending")]).to_numpy()
    roles = {"train": ~held_out, "validation": in_validation, "test": in_test}
    indices = {role: order[(used & chosen)[order]].astype(np.int64) for role, chosen in roles.items()}
    where = f"{config.protocol}, fold {config.fold} of {len(folds)}"
    for role, chosen in indices.items():
        if not len(chosen):
            left_out = "; ".join(f"{reason}: {count}" for reason, count in excluded.items()) or "none"
            raise UserError(f"{where} leaves nothing for {role}; it needs {rule.needs} (rows left out: {left_out})")
    description = _describe(f"{where}, seed {config.seed}: {rule.story}", rows, unit, indices, rule.unit)
    if missing := set(tested) - set(strata):  # emobox on a part of the published corpora
        description += f" Published test speakers that are not here: {', '.join(sorted(missing))}."
    return Split(**indices, labels=labels, description=description, excluded=excluded)


def leaks(rows: pa.Table, split: Split) -> dict[str, dict[str, int]]:
    """Count what train, validation and test share, from the rows themselves.

    Returns:
        For `train_validation`, `train_test` and `validation_test` the number of distinct `speakers`, content `hashes`,
        `utterances` (augmented siblings of one clip) and `sentences` that stand on both sides.
    """
    return {
        f"{one}_{other}": {kind: len(_shared(rows, split, one, other, kind)) for kind in _LEAKS}
        for one, other in _PAIRS
    }


def check(rows: pa.Table, split: Split, protocol: str) -> dict[str, Any]:
    """Return `leaks`, whether the protocol is `leaky`, and the kinds of leak it has `forbidden`.

    Raises:
        UserError: Something is shared that the protocol forbids.
    """
    forbidden = _RULES[protocol].forbidden
    for one, other in _PAIRS:
        for kind in forbidden:
            if shared := _shared(rows, split, one, other, kind):
                raise UserError(
                    f"leak: {one} and {other} share {len(shared)} {kind}, such as {shared[0]}, which {protocol} "
                    "forbids; remove or rename what stands twice in the corpora"
                )
    return {"leaky": not forbidden, "forbidden": list(forbidden), **leaks(rows, split)}


def _unit_column(rows: pa.Table, unit: str) -> pa.ChunkedArray:
    if unit == "row":
        return pc.binary_join_element_wise(rows["utterance_id"], rows["augmentation"], "#")
    return rows[f"{unit}_id"]


def _strata(rows: pa.Table, protocol: str) -> dict[str, tuple[str, str]]:
    """Map each unit to its corpus and sex, the first by name if it has several; sentences have no sex, rows neither."""
    if protocol == "emobox":
        rows = rows.filter(_is_in(rows["channel"], ["speech"]) & _is_in(rows["corpus"], EMOBOX))
    unit = _RULES[protocol].unit
    units = _unit_column(rows, unit).to_pylist()
    corpora = rows["corpus"].to_pylist() if unit != "row" else [""] * len(units)
    genders = rows["gender"].to_pylist() if unit == "speaker" else [""] * len(units)
    found = sorted(set(zip(units, corpora, genders, strict=True)), reverse=True)
    return {name: (corpus, gender) for name, corpus, gender in found if name}


def _by_corpus(strata: dict[str, tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, (corpus, _) in sorted(strata.items(), key=lambda item: (item[1][0], item[0])):
        groups.setdefault(corpus, []).append(name)
    return groups


def _deal(names: Iterable[str], strata: dict[str, tuple[str, str]], parts: int, salt: str) -> list[list[str]]:
    """Deal units like cards, stratum by stratum, so that the parts differ by one at most; none is empty."""
    dealt = sorted(names, key=lambda name: (strata[name], hashlib.sha256(f"{salt}/{name}".encode()).digest()))
    return [dealt[part::parts] for part in range(min(parts, len(dealt)))]


def _folds(strata: dict[str, tuple[str, str]], config: SplitConfig) -> list[list[str]]:
    """Return the units that each fold tests.

    A corpus with fewer units than folds is tested only in the first ones; one with a single unit only trains.
    """
    groups = _by_corpus(strata)
    if config.protocol == "leave-one-speaker-out":
        folds = [[name] for name in sorted(strata)]
    elif config.protocol == "leave-one-corpus-out":
        folds = list(groups.values()) if len(groups) > 1 else []
    else:
        if config.protocol == "emobox":
            parts = [EMOBOX[corpus] for corpus in groups]
        else:
            parts = [_deal(g, strata, config.num_folds, f"{config.seed}/test") for g in groups.values() if len(g) > 1]
        folds = [list(chain(*names)) for names in zip_longest(*parts, fillvalue=())]
    if not folds:
        raise UserError(f"{config.protocol} needs {_RULES[config.protocol].needs}")
    return folds


def _draw_validation(strata: dict[str, tuple[str, str]], tested: list[str], config: SplitConfig) -> list[str]:
    """Draw about a fifth of the units that are left of each corpus with 3 or more; at least one if two are left.

    So EmoBox validates on 4 of the 20 other actors of RAVDESS and on 1 of the 3 other speakers of SAVEE.
    """
    if config.protocol == "emobox":  # corpora that are not tested all train
        corpora = {strata[name][0] for name in tested if name in strata}
        strata = {name: stratum for name, stratum in strata.items() if stratum[0] in corpora}
    gone = set(tested)
    parts = 10 if config.protocol == "notebook" else 5  # the notebook trains on 75 % of the rows: stay near it
    salt = f"{config.seed}/validation/{config.fold}"
    drawn = []
    for group in _by_corpus(strata).values():
        left = [name for name in group if name not in gone]
        if len(group) >= 3 and len(left) >= 2:
            drawn += _deal(left, strata, parts, salt)[0]
    left = [name for name in strata if name not in gone]
    return drawn if drawn or len(left) < 2 else _deal(left, strata, parts, salt)[0]


def _is_in(column: pa.ChunkedArray, values: Iterable[str]) -> np.ndarray:
    return pc.is_in(column, value_set=pa.array(list(values), column.type)).to_numpy()


def _label_conflicts(rows: pa.Table) -> np.ndarray:
    """Mark rows whose audio stands in the table under several emotions."""
    emotions = rows.group_by("sha256").aggregate([("emotion", "count_distinct")])
    several = emotions.filter(pc.greater(emotions["emotion_count_distinct"], 1))
    return _is_in(rows["sha256"], several["sha256"].to_pylist())


def _emotions_of(rows: pa.Table, labels: LabelSet) -> list[str]:
    return [emotion for emotion in rows["emotion"].unique().to_pylist() if labels.index(emotion) is not None]


def _shared_labels(rows: pa.Table, labels: LabelSet, in_test: np.ndarray, usable: np.ndarray) -> LabelSet:
    """Restrict the labels to those on both sides of a test mask."""
    sides = (rows.filter(usable & side) for side in (in_test, ~in_test))
    tested, others = ({labels.index(emotion) for emotion in _emotions_of(side, labels)} for side in sides)
    names = tuple(labels.names[index] for index in sorted(tested & others))
    if len(names) < 2:
        raise UserError(
            f"leave-one-corpus-out needs two labels that the tested corpus shares with the others, got "
            f"{', '.join(names) or 'none'}; choose other corpora or merge labels, such as --labels all calm=neutral"
        )
    return replace(labels, names=names)


def _describe(opening: str, rows: pa.Table, unit: pa.ChunkedArray, indices: dict[str, np.ndarray], noun: str) -> str:
    """Name the units that test and validate per corpus, by number where they are many."""
    corpora = {role: set(rows["corpus"].take(chosen).to_pylist()) for role, chosen in indices.items()}
    sentences = [opening]
    for role in ("test", "validation"):
        parts = []
        for corpus in sorted(corpora[role]):
            members = indices[role][_is_in(rows["corpus"].take(indices[role]), [corpus])]
            names = sorted(set(unit.take(members).to_pylist()))
            if noun == "row" or len(names) > 24:
                parts.append(f"{corpus} ({len(names)} {noun}s)")
            else:
                parts.append(f"{corpus} ({', '.join(name.removeprefix(corpus + '_') for name in names)})")
        sentences.append(f"{role.capitalize()}: {', '.join(parts)}")
    if unheard := sorted(corpora["train"] - corpora["test"]):
        sentences.append(f"Only trained on or validated: {', '.join(unheard)}")
    return ". ".join(sentences) + "."


def _shared(rows: pa.Table, split: Split, one: str, other: str, kind: str) -> list[str]:
    """List the values of one kind on both sides; unknown sentences (empty) are not alike."""
    column = rows[_LEAKS[kind]]
    sides = (set(column.take(getattr(split, role)).unique().to_pylist()) for role in (one, other))
    return sorted(set.intersection(*sides) - {""})
