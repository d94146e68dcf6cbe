"""Protocols: which units (speakers, sentences, rows) each fold tests, and which validate.

A protocol keeps *units* apart: speakers, sentences (`text-independent`) or mere rows (`notebook`). Folds are lists of
units to be tested, made from all rows whatever the labels, so that runs with other labels test the same people; the
rows follow their unit. Draws order units by a hash of the seed and the unit's name instead of calling a random
generator: they depend neither on the order of the rows nor on NumPy's version, and one speaker more leaves the others'
order as it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ser_ray.base.errors import UserError
from ser_ray.base.settings import between, check_settings
from ser_ray.store.rows import Rows

_ACTORS = ((1, 11, 20, 21), (4, 10, 12, 14), (8, 9, 19, 23), (3, 5, 7, 24), (2, 15, 16, 18), (6, 13, 17, 22))
EMOBOX = {  # test speakers of each fold, as the EmoBox benchmark publishes them: arXiv 2406.07162
    "ravdess": tuple(tuple(f"ravdess_{actor:02d}" for actor in fold) for fold in _ACTORS),
    "savee": (("savee_je",), ("savee_kl",), ("savee_dc",), ("savee_jk",)),
}


class Rule(NamedTuple):
    """What a protocol is.

    Attributes:
        story: The protocol in words.
        needs: What it takes to fill train, validation and test.
        unit: What is kept apart: speaker, sentence or row.
        forbidden: Kinds of leak that stop the run.
    """

    story: str
    needs: str
    unit: str = "speaker"
    forbidden: tuple[str, ...] = ("speakers", "hashes", "utterances")


RULES = {
    "speaker-independent": Rule(
        "tested on speakers who are heard in neither training nor validation",
        "at least 3 speakers, 2 of them in one corpus",
    ),
    "emobox": Rule(
        "EmoBox's fixed folds; only speech is tested, and nothing else of a tested or validating speaker is used",
        "speech of ravdess or savee: the fold's speakers and at least 2 others",
    ),
    "leave-one-speaker-out": Rule(
        "tested on one speaker, who is heard in neither training nor validation",
        "at least 3 speakers",
    ),
    "leave-one-corpus-out": Rule(
        "tested on one corpus, trained on the others, with the labels that both sides have",
        "at least 2 corpora, and 2 speakers in those that train",
    ),
    "text-independent": Rule(
        "tested on sentences that are heard in neither training nor validation; the speakers are shared",
        "at least 3 sentences, 2 of them in one corpus (ravdess by itself has 2)",
        unit="sentence",
        forbidden=("sentences", "hashes", "utterances"),
    ),
    "notebook": Rule(
        "LEAKY: rows drawn at random after augmentation, so that tested clips have augmented siblings in training, "
        "and speakers and sentences are shared",
        "at least 3 rows",
        unit="row",
        forbidden=(),
    ),
}
PROTOCOLS = tuple(RULES)


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
    fold: int = between(0, 0)
    num_folds: int = between(5, 2)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise UserError(f"unknown protocol {self.protocol!r}; choose one of: {', '.join(PROTOCOLS)}")
        check_settings(self)


def unit_column(rows: Rows, unit: str) -> pa.ChunkedArray:
    """Return the unit of each row, by name; empty where it is unknown."""
    if unit == "row":
        return pc.binary_join_element_wise(rows["utterance_id"], rows["augmentation"], "#")
    return rows[f"{unit}_id"]


def strata_of(rows: Rows, protocol: str) -> dict[str, tuple[str, str]]:
    """Map each unit to its corpus and sex, the first by name if it has several; sentences have no sex, rows neither."""
    if protocol == "emobox":
        rows = rows.take(rows.among("channel", ["speech"]) & rows.among("corpus", EMOBOX))
    unit = RULES[protocol].unit
    units = unit_column(rows, unit).to_pylist()
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


def folds_of(strata: dict[str, tuple[str, str]], config: SplitConfig) -> list[list[str]]:
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
        raise UserError(f"{config.protocol} needs {RULES[config.protocol].needs}")
    return folds


def draw_validation(strata: dict[str, tuple[str, str]], tested: list[str], config: SplitConfig) -> list[str]:
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
