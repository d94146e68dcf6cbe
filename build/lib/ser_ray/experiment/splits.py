"""Who trains, who validates and who is tested, and the check that nothing leaks between them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ser_ray.base.errors import UserError
from ser_ray.experiment.protocols import RULES, SplitConfig, draw_validation, folds_of, strata_of, unit_column
from ser_ray.speech.emotions import LabelSet
from ser_ray.store.rows import Rows

_LEAKS = {"speakers": "speaker_id", "hashes": "sha256", "utterances": "utterance_id", "sentences": "sentence_id"}
_PAIRS = (("train", "validation"), ("train", "test"), ("validation", "test"))


@dataclass(frozen=True, eq=False)
class Split:
    """Which rows train, validate and test.

    Attributes:
        train: Clips and their augmented rows, in the order of utterance_id and augmentation.
        validation: The same, without augmented rows.
        test: The same, without augmented rows (`notebook` validates and tests on augmented rows too).
        labels: The classes; fewer than asked for where the protocol restricts them.
        description: The protocol in words, with the units that are tested.
        excluded: Number of rows by the reason why they are in none of the three.
    """

    train: Rows
    validation: Rows
    test: Rows
    labels: LabelSet
    description: str
    excluded: dict[str, int]


def num_folds(rows: Rows, config: SplitConfig) -> int:
    """Return how many folds the protocol has on these rows; `config.fold` is ignored.

    Raises:
        UserError: The rows do not suffice for the protocol.
    """
    return len(folds_of(strata_of(rows, config.protocol), config))


def split(rows: Rows, labels: LabelSet, config: SplitConfig) -> Split:
    """Choose the rows that train, validate and test.

    About a fifth (`notebook`: a tenth) of the units that are not tested validate. Audio that stands under several
    emotions, emotions outside the labels and rows without a unit are left out and counted.

    Args:
        rows: Rows of a feature store; one per clip and augmentation, `none` being the clip itself.
        labels: The classes of the experiment.
        config: Protocol, fold and seed.

    Raises:
        UserError: There is no such fold, or nothing is left to train, validate or test on.
    """
    rule = RULES[config.protocol]
    strata = strata_of(rows, config.protocol)
    folds = folds_of(strata, config)
    if config.fold >= len(folds):
        raise UserError(f"there is no fold {config.fold}: {config.protocol} has folds 0 to {len(folds) - 1} here")
    tested = folds[config.fold]
    validating = draw_validation(strata, tested, config)

    unit = unit_column(rows, rule.unit)
    in_test, in_validation = _is_in(unit, tested), _is_in(unit, validating)
    held_out = in_test | in_validation
    conflicts = _label_conflicts(rows)
    if config.protocol == "leave-one-corpus-out":
        labels = _shared_labels(rows, labels, in_test, ~conflicts)
    not_speech = ~rows.among("channel", ["speech"]) & (config.protocol == "emobox")
    augmented = ~rows.among("augmentation", ["none"]) & (config.protocol != "notebook")
    reasons = {
        "same audio under several emotions": conflicts,
        "emotion not among the labels": ~rows.among("emotion", _emotions_of(rows, labels)),
        f"unknown {rule.unit}": _is_in(unit, [""]),
        "song of validation and test speakers": held_out & not_speech,
        "augmented rows of validation and test clips": held_out & augmented,
    }
    used = np.ones(len(rows), bool)
    excluded = {}
    for reason, applies in reasons.items():
        if count := int((used & applies).sum()):
            excluded[reason] = count
        used &= ~applies

    roles = {"train": ~held_out, "validation": in_validation, "test": in_test}
    chosen = {role: used & mask for role, mask in roles.items()}
    where = f"{config.protocol}, fold {config.fold} of {len(folds)}"
    for role, mask in chosen.items():
        if not mask.any():
            left_out = "; ".join(f"{reason}: {count}" for reason, count in excluded.items()) or "none"
            raise UserError(f"{where} leaves nothing for {role}; it needs {rule.needs} (rows left out: {left_out})")
    description = _describe(f"{where}, seed {config.seed}: {rule.story}", rows, unit, chosen, rule.unit)
    if missing := set(tested) - set(strata):  # emobox on a part of the published corpora
        description += f" Published test speakers that are not here: {', '.join(sorted(missing))}."
    parts = {role: rows.take(mask) for role, mask in chosen.items()}
    return Split(**parts, labels=labels, description=description, excluded=excluded)


def count_leaks(parts: Split) -> dict[str, dict[str, int]]:
    """Count what train, validation and test share, from the rows themselves.

    Returns:
        For `train_validation`, `train_test` and `validation_test` the number of distinct `speakers`, content `hashes`,
        `utterances` (augmented siblings of one clip) and `sentences` that stand on both sides.
    """
    return {f"{one}_{other}": {kind: len(_shared(parts, one, other, kind)) for kind in _LEAKS} for one, other in _PAIRS}


def check_leaks(parts: Split, protocol: str) -> dict[str, Any]:
    """Return `count_leaks`, whether the protocol is `leaky`, and the kinds of leak it has `forbidden`.

    Raises:
        UserError: Something is shared that the protocol forbids.
    """
    forbidden = RULES[protocol].forbidden
    for one, other in _PAIRS:
        for kind in forbidden:
            if shared := _shared(parts, one, other, kind):
                raise UserError(
                    f"leak: {one} and {other} share {len(shared)} {kind}, such as {shared[0]}, which {protocol} "
                    "forbids; remove or rename what stands twice in the corpora"
                )
    return {"leaky": not forbidden, "forbidden": list(forbidden), **count_leaks(parts)}


def _label_conflicts(rows: Rows) -> np.ndarray:
    """Mark rows whose audio stands in the table under several emotions."""
    emotions = rows.table(["sha256", "emotion"]).group_by("sha256").aggregate([("emotion", "count_distinct")])
    several = emotions.filter(pc.greater(emotions["emotion_count_distinct"], 1))
    return rows.among("sha256", several["sha256"].to_pylist())


def _emotions_of(rows: Rows, labels: LabelSet) -> list[str]:
    return [emotion for emotion in rows["emotion"].unique().to_pylist() if labels.index(emotion) is not None]


def _shared_labels(rows: Rows, labels: LabelSet, in_test: np.ndarray, usable: np.ndarray) -> LabelSet:
    """Restrict the labels to those on both sides of a test mask."""
    sides = (rows.take(usable & side) for side in (in_test, ~in_test))
    tested, others = ({labels.index(emotion) for emotion in _emotions_of(side, labels)} for side in sides)
    names = tuple(labels.names[index] for index in sorted(tested & others))
    if len(names) < 2:
        raise UserError(
            f"leave-one-corpus-out needs two labels that the tested corpus shares with the others, got "
            f"{', '.join(names) or 'none'}; choose other corpora or merge labels, such as --labels all calm=neutral"
        )
    return replace(labels, names=names)


def _describe(opening: str, rows: Rows, unit: pa.ChunkedArray, chosen: dict[str, np.ndarray], noun: str) -> str:
    """Name the units that test and validate per corpus, by number where they are many."""
    corpora = {role: rows.take(mask).values("corpus") for role, mask in chosen.items()}
    sentences = [opening]
    for role in ("test", "validation"):
        parts = []
        for corpus in sorted(corpora[role]):
            names = sorted(set(unit.filter(pa.array(chosen[role] & rows.among("corpus", [corpus]))).to_pylist()))
            if noun == "row" or len(names) > 24:
                parts.append(f"{corpus} ({len(names)} {noun}s)")
            else:
                parts.append(f"{corpus} ({', '.join(name.removeprefix(corpus + '_') for name in names)})")
        sentences.append(f"{role.capitalize()}: {', '.join(parts)}")
    if unheard := sorted(corpora["train"] - corpora["test"]):
        sentences.append(f"Only trained on or validated: {', '.join(unheard)}")
    return ". ".join(sentences) + "."


def _shared(parts: Split, one: str, other: str, kind: str) -> list[str]:
    """List the values of one kind on both sides; unknown sentences (empty) are not alike."""
    sides = (getattr(parts, role).values(_LEAKS[kind]) for role in (one, other))
    return sorted(set.intersection(*sides) - {""})


def _is_in(column: pa.ChunkedArray, values: list[str]) -> np.ndarray:
    return pc.is_in(column, value_set=pa.array(values, column.type)).to_numpy(zero_copy_only=False)
