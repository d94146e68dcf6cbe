"""What predictions are worth: scores, calibration, coverage, intervals by speaker, and two runs compared.

All of it is computed from one table, a row per tested clip, with the columns `utterance_id corpus speaker_id gender
emotion predicted probabilities` and, where known, `intensity`. Every result is ready for JSON.

UAR (unweighted average recall) and macro-F1 are means over the labels that the scored clips have. Intervals come from
a bootstrap by speaker: clips of one voice fall together, so voices, not clips, are drawn again with replacement.

Shape suffixes: N clips, C labels, S speakers, B bootstrap resamples.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from ser_ray.base.errors import UserError

CALIBRATION_BINS = 15  # as Guo et al., "On Calibration of Modern Neural Networks", 2017
LEVEL = 0.95  # of every interval


def score(predictions: pa.Table, labels: Sequence[str], *, resamples: int = 2000, seed: int = 0) -> dict:
    """Score the predictions of a run.

    Args:
        predictions: One row per tested clip; `probabilities` holds C numbers in the order of `labels`. The order of
            rows does not matter.
        labels: The C class names of the run.
        resamples: Bootstrap resamples behind `interval`.
        seed: Seed of the bootstrap.

    Returns:
        `accuracy uar macro_f1 num_test labels confusion_matrix` (rows are true labels) `per_class per_corpus
        per_speaker per_gender per_intensity calibration coverage interval`. Each corpus has an `interval` of
        its own, and besides its open scores `restricted` ones: the most probable of only those labels that its tested
        clips have.

    Raises:
        UserError: There are no clips to score.
        ValueError: An emotion, a prediction, or a row of probabilities does not fit the labels.
    """
    # A job that is refused need not wait for this import.
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    if not predictions.num_rows:
        raise UserError("no clips to score: choose test data that has some of the labels " + ", ".join(labels))
    predictions = predictions.sort_by("utterance_id")
    targets_N, predicted_N = _indices(predictions, "emotion", labels), _indices(predictions, "predicted", labels)
    probabilities_NC = _probabilities(predictions, labels)
    precision_C, recall_C, f1_C, support_C = precision_recall_fscore_support(
        targets_N, predicted_N, labels=range(len(labels)), zero_division=0
    )

    def grouped(column: str) -> dict[str, dict]:
        return {name: _scores(targets_N[rows], predicted_N[rows]) for name, rows in _groups(predictions, column)}

    per_corpus, speakers_N = grouped("corpus"), _strings(predictions, "speaker_id")
    for corpus, rows in _groups(predictions, "corpus"):
        present = np.unique(targets_N[rows])
        restricted_N = present[probabilities_NC[rows][:, present].argmax(axis=1)]
        per_corpus[corpus]["restricted"] = {
            **_scores(targets_N[rows], restricted_N),
            "labels": [labels[index] for index in present],
        }
        per_corpus[corpus]["interval"] = _interval(
            targets_N[rows], predicted_N[rows], speakers_N[rows], len(labels), resamples, seed
        )
    confidence_N = probabilities_NC.max(axis=1)
    return {
        **_scores(targets_N, predicted_N),
        "labels": list(labels),
        "confusion_matrix": confusion_matrix(targets_N, predicted_N, labels=range(len(labels))).tolist(),
        "per_class": {
            label: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
            for label, p, r, f, n in zip(labels, precision_C, recall_C, f1_C, support_C, strict=True)
        },
        "per_corpus": per_corpus,
        "per_speaker": grouped("speaker_id"),
        "per_gender": grouped("gender"),
        "per_intensity": grouped("intensity") if "intensity" in predictions.column_names else {},
        "calibration": _calibration(targets_N == predicted_N, confidence_N),
        "coverage": _coverage(targets_N, predicted_N, confidence_N),
        "interval": _interval(targets_N, predicted_N, speakers_N, len(labels), resamples, seed),
    }


def pool(folds: Sequence[pa.Table], labels: Sequence[str], *, resamples: int = 2000, seed: int = 0) -> dict:
    """Score a cross-validation.

    Args:
        folds: The predictions of each fold, two folds or more.
        labels: The class names, the same for all.
        resamples: Bootstrap resamples behind `interval`.
        seed: Seed of the bootstrap.

    Returns:
        What `score` gives for all folds' clips together, and `folds` (the scores of each), `mean` and `std` (sample
        standard deviation) of accuracy, UAR and macro-F1 over folds.
    """
    pooled = score(pa.concat_tables(folds, promote_options="default"), labels, resamples=resamples, seed=seed)
    each = [_scores(_indices(fold, "emotion", labels), _indices(fold, "predicted", labels)) for fold in folds]
    names = ("accuracy", "uar", "macro_f1")
    return {
        **pooled,
        "folds": each,
        "mean": {name: statistics.mean(scores[name] for scores in each) for name in names},
        "std": {name: statistics.stdev(scores[name] for scores in each) for name in names},
    }


def compare(
    predictions_a: pa.Table, predictions_b: pa.Table, labels: Sequence[str], *, resamples: int = 10_000, seed: int = 0
) -> dict:
    """Compare two runs on the clips that both tested, by a paired bootstrap by speaker.

    Args:
        predictions_a: The predictions of the first run.
        predictions_b: The predictions of the second run.
        labels: The class names of both.
        resamples: Bootstrap resamples; the smallest p-value that they can tell is 2 / (resamples + 1).
        seed: Seed of the bootstrap.

    Returns:
        `num_common num_a num_b num_speakers resamples level` and, for `uar` and `accuracy`, `a b difference` (b - a)
        `interval p_value`. The two-sided p-value is twice the share of resamples on the rarer side of zero. Interval
        and p-value are None where only one speaker is shared.

    Raises:
        UserError: The runs share no clips, or do not have the same labels.
    """
    ids_a, ids_b = _strings(predictions_a, "utterance_id"), _strings(predictions_b, "utterance_id")
    common, rows_a, rows_b = np.intersect1d(ids_a, ids_b, return_indices=True)
    if not len(common):
        raise UserError("the two runs share no tested clips: compare runs with the same data, protocol and fold")
    table_a, table_b = predictions_a.take(rows_a), predictions_b.take(rows_b)
    if table_a["emotion"].to_pylist() != table_b["emotion"].to_pylist():
        raise UserError("the two runs call the same clips by different labels: compare runs with the same --labels")
    try:
        targets_N = _indices(table_a, "emotion", labels)
        predicted_a_N, predicted_b_N = (_indices(table, "predicted", labels) for table in (table_a, table_b))
        for table in (table_a, table_b):
            _probabilities(table, labels)  # refuses those of other labels
    except ValueError as error:
        raise UserError(f"the two runs have different labels ({error}): compare runs with the same --labels") from None
    speakers_N = _strings(table_a, "speaker_id")
    weights_BS = _resample_speakers(speakers_N, resamples, seed)
    whole_a, whole_b = _scores(targets_N, predicted_a_N), _scores(targets_N, predicted_b_N)
    drawn_a, drawn_b = (
        _resampled_scores(targets_N, predicted_N, speakers_N, len(labels), weights_BS)
        for predicted_N in (predicted_a_N, predicted_b_N)
    )
    result = {
        "num_common": len(common),
        "num_a": predictions_a.num_rows,
        "num_b": predictions_b.num_rows,
        "num_speakers": weights_BS.shape[1],
        "resamples": resamples,
        "level": LEVEL,
    }
    for name in ("uar", "accuracy"):
        differences_B = drawn_b[name] - drawn_a[name]
        rarer_side = min((differences_B <= 1e-12).sum(), (differences_B >= -1e-12).sum())
        single = weights_BS.shape[1] == 1
        result[name] = {
            "a": whole_a[name],
            "b": whole_b[name],
            "difference": whole_b[name] - whole_a[name],
            "interval": None if single else _percentiles(differences_B),
            "p_value": None if single else float(min(1.0, 2 * (rarer_side + 1) / (resamples + 1))),
        }
    return result


def _strings(table: pa.Table, column: str) -> np.ndarray:
    return np.array([value or "unknown" for value in table[column].to_pylist()])


def _groups(table: pa.Table, column: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each value of a column, sorted, and the rows that have it."""
    names, group_N = np.unique(_strings(table, column), return_inverse=True)
    starts = np.cumsum(np.bincount(group_N))[:-1]
    yield from zip(names.tolist(), np.split(np.argsort(group_N, kind="stable"), starts), strict=True)


def _indices(table: pa.Table, column: str, labels: Sequence[str]) -> np.ndarray:
    place = {label: index for index, label in enumerate(labels)}
    values = table[column].to_pylist()
    stray = set(values) - set(place)
    if stray:
        raise ValueError(f"{column} {sorted(map(str, stray))[0]!r} is not among the labels {', '.join(labels)}")
    return np.array([place[value] for value in values], dtype=np.int64)


def _probabilities(table: pa.Table, labels: Sequence[str]) -> np.ndarray:
    flat = table["probabilities"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    if len(flat) != table.num_rows * len(labels):
        raise ValueError(f"the rows do not have {len(labels)} probabilities each, one per label")
    return flat.reshape(table.num_rows, len(labels)).astype(np.float64)


def _scores(targets_N: np.ndarray, predicted_N: np.ndarray) -> dict:
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    _, recall, f1, _ = precision_recall_fscore_support(
        targets_N, predicted_N, labels=np.unique(targets_N), average="macro", zero_division=0
    )
    accuracy = accuracy_score(targets_N, predicted_N)
    return {"num_test": len(targets_N), "accuracy": float(accuracy), "uar": float(recall), "macro_f1": float(f1)}


def _calibration(correct_N: np.ndarray, confidence_N: np.ndarray) -> dict:
    """Expected calibration error over equal-width bins of confidence, and the bins that hold clips."""
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    bins_N = np.searchsorted(edges[1:-1], confidence_N)
    bins = [
        {
            "lower": float(edges[index]),
            "upper": float(edges[index + 1]),
            "count": int((bins_N == index).sum()),
            "confidence": float(confidence_N[bins_N == index].mean()),
            "accuracy": float(correct_N[bins_N == index].mean()),
        }
        for index in np.unique(bins_N)
    ]
    gaps = [each["count"] * abs(each["accuracy"] - each["confidence"]) for each in bins]
    return {"ece": sum(gaps) / len(correct_N), "bins": bins}


def _coverage(targets_N: np.ndarray, predicted_N: np.ndarray, confidence_N: np.ndarray) -> list[dict]:
    """Scores of the most certain clips, from 5 % of them to all, and the lowest confidence among those kept."""
    order_N = np.argsort(-confidence_N, kind="stable")
    points = {}
    for percent in range(5, 101, 5):
        kept = order_N[: -(-len(order_N) * percent // 100)]
        scores = _scores(targets_N[kept], predicted_N[kept])
        points[len(kept)] = {
            "share": len(kept) / len(order_N),
            "num_kept": len(kept),
            "threshold": float(confidence_N[kept[-1]]),
            "accuracy": scores["accuracy"],
            "uar": scores["uar"],
        }
    return list(points.values())


def _interval(
    targets_N: np.ndarray, predicted_N: np.ndarray, speakers_N: np.ndarray, num_labels: int, resamples: int, seed: int
) -> dict:
    weights_BS = _resample_speakers(speakers_N, resamples, seed)
    drawn = _resampled_scores(targets_N, predicted_N, speakers_N, num_labels, weights_BS)
    single = weights_BS.shape[1] == 1  # one voice tells nothing about others
    return {
        "level": LEVEL,
        "resamples": resamples,
        "num_speakers": weights_BS.shape[1],
        **{name: None if single else _percentiles(values_B) for name, values_B in drawn.items()},
    }


def _resample_speakers(speakers_N: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """How often each speaker is drawn in each resample, [B, S], speakers in sorted order."""
    num_speakers = len(np.unique(speakers_N))
    return np.random.default_rng(seed).multinomial(num_speakers, np.full(num_speakers, 1 / num_speakers), resamples)


def _resampled_scores(
    targets_N: np.ndarray, predicted_N: np.ndarray, speakers_N: np.ndarray, num_labels: int, weights_BS: np.ndarray
) -> dict[str, np.ndarray]:
    """UAR and accuracy of each resample: summed hits and clips per label give both exactly."""
    speaker_ids, speaker_N = np.unique(speakers_N, return_inverse=True)
    clips_SC = np.zeros((len(speaker_ids), num_labels))
    hits_SC = np.zeros_like(clips_SC)
    np.add.at(clips_SC, (speaker_N, targets_N), 1)
    np.add.at(hits_SC, (speaker_N, targets_N), targets_N == predicted_N)
    clips_BC, hits_BC = weights_BS @ clips_SC, weights_BS @ hits_SC
    recall_BC = hits_BC / np.maximum(clips_BC, 1)
    return {
        "uar": recall_BC.sum(axis=1) / (clips_BC > 0).sum(axis=1),
        "accuracy": hits_BC.sum(axis=1) / clips_BC.sum(axis=1),
    }


def _percentiles(values_B: np.ndarray) -> list[float]:
    return np.quantile(values_B, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
