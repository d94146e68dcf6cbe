import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from ser_ray.base.errors import UserError
from ser_ray.model.calibration import TEMPERATURE_RANGE, fit_temperature
from ser_ray.scores import metrics
from ser_ray.speech.emotions import EMOTIONS

LABELS = ("neutral", "happy", "sad")


def table(emotions, predicted, probabilities=None, speakers=None, corpora=None, **columns):
    count = len(emotions)
    if probabilities is None:
        probabilities = [[0.6 if label == name else 0.2 for label in LABELS] for name in predicted]
    return pa.table(
        {
            "utterance_id": [f"c/{index:06d}" for index in range(count)],
            "corpus": corpora or ["c"] * count,
            "speaker_id": speakers or [f"s{index % 4}" for index in range(count)],
            "gender": ["female" if index % 2 else "" for index in range(count)],
            "emotion": pa.array(emotions, pa.string()),
            "predicted": pa.array(predicted, pa.string()),
            "probabilities": pa.array(list(probabilities), pa.list_(pa.float64())),
            **columns,
        }
    )


def made(count=600, skill=1.0, seed=0, num_speakers=12, noise=0):
    """Predictions of a model of some skill, which differs between speakers; `noise` picks one of equal models."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(len(EMOTIONS), size=count)
    speaker = rng.integers(num_speakers, size=count)
    ease = rng.normal(size=num_speakers)[speaker] / 2
    logits = np.random.default_rng([seed, noise]).normal(size=(count, len(EMOTIONS)))
    logits[np.arange(count), targets] += skill + ease
    names = np.array(EMOTIONS)
    return table(
        names[targets], names[logits.argmax(1)], softmax(logits, axis=1),
        [f"s{each}" for each in speaker], [("a", "b")[each % 2] for each in speaker],
        intensity=["strong" if each % 3 else "" for each in range(count)],
    )  # fmt: skip


def test_scores_by_hand():
    # sad is never true, so it counts in neither mean, but calling a clip sad is a mistake
    scores = metrics.score(
        table(["neutral"] * 4 + ["happy"] * 2, ["neutral"] * 3 + ["sad", "happy", "neutral"]), LABELS
    )
    assert scores["accuracy"] == pytest.approx(4 / 6)
    assert scores["uar"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert scores["macro_f1"] == pytest.approx((2 * 3 / (4 + 4) + 2 * 1 / (2 + 1)) / 2)
    assert scores["confusion_matrix"] == [[3, 0, 1], [1, 1, 0], [0, 0, 0]]
    assert scores["per_class"]["neutral"] == {"precision": 0.75, "recall": 0.75, "f1": 0.75, "support": 4}
    assert scores["per_class"]["sad"]["support"] == 0
    assert scores["per_gender"].keys() == {"female", "unknown"}
    assert scores["per_intensity"] == {}


def test_metrics_can_be_recomputed_from_the_file(tmp_path):
    predictions = made()
    scores = metrics.score(predictions, EMOTIONS)
    pq.write_table(predictions, tmp_path / "predictions.parquet")
    frame = pq.read_table(tmp_path / "predictions.parquet").to_pandas()
    for group, part in [(scores, frame)] + [
        (scores[f"per_{name}"][value or "unknown"], frame[frame[column] == value])
        for name, column in (("corpus", "corpus"), ("speaker", "speaker_id"), ("intensity", "intensity"))
        for value in frame[column].unique()
    ]:
        assert group["num_test"] == len(part)
        assert group["accuracy"] == pytest.approx(accuracy_score(part.emotion, part.predicted), abs=1e-9)
        assert group["uar"] == pytest.approx(balanced_accuracy_score(part.emotion, part.predicted), abs=1e-9)
        f1 = f1_score(part.emotion, part.predicted, labels=part.emotion.unique(), average="macro", zero_division=0)
        assert group["macro_f1"] == pytest.approx(f1, abs=1e-9)
    assert sum(each["num_test"] for each in scores["per_speaker"].values()) == len(frame)
    json.dumps(scores, allow_nan=False)


def test_the_order_of_rows_does_not_matter():
    predictions = made()
    shuffled = predictions.take(np.random.default_rng(1).permutation(predictions.num_rows))
    assert metrics.score(shuffled, EMOTIONS) == metrics.score(predictions, EMOTIONS)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS), st.sampled_from("abc")), min_size=1))
def test_any_predictions_have_scores(rows):
    emotions, predicted, speakers = map(list, zip(*rows, strict=True))
    scores = metrics.score(table(emotions, predicted, speakers=speakers), LABELS, resamples=50)
    recalls = [np.mean([p == label for e, p in zip(emotions, predicted, strict=True) if e == label])
               for label in set(emotions)]  # fmt: skip
    assert scores["uar"] == pytest.approx(np.mean(recalls), abs=1e-9)
    assert np.sum(scores["confusion_matrix"]) == len(rows)
    assert scores["coverage"][-1]["accuracy"] == scores["accuracy"]
    interval = scores["interval"]["uar"]
    assert interval is None if len(set(speakers)) == 1 else 0 <= interval[0] <= interval[1] <= 1
    json.dumps(scores, allow_nan=False)


def test_a_corpus_with_fewer_labels_is_scored_open_and_restricted():
    probabilities = [[0.1, 0.2, 0.7], [0.4, 0.1, 0.5], [0.3, 0.6, 0.1], [0.1, 0.1, 0.8]]
    predicted = ["sad", "sad", "happy", "sad"]
    predictions = table(
        ["happy", "neutral", "neutral", "sad"], predicted, probabilities, corpora=["two", "two", "two", "one"]
    )
    two = metrics.score(predictions, LABELS)["per_corpus"]["two"]
    assert two["accuracy"] == 0
    assert two["restricted"]["labels"] == ["neutral", "happy"]
    assert two["restricted"]["accuracy"] == pytest.approx(2 / 3)
    assert two["restricted"]["uar"] == pytest.approx((1 / 2 + 1) / 2)


def test_calibration_agrees_with_scikit_learn():
    predictions = made()
    calibration = metrics.score(predictions, EMOTIONS)["calibration"]
    confidence = np.array([max(row) for row in predictions["probabilities"].to_pylist()])
    correct = np.array(predictions["emotion"]) == np.array(predictions["predicted"])
    accuracy, mean_confidence = calibration_curve(correct, confidence, n_bins=15, strategy="uniform")
    bins = calibration["bins"]
    np.testing.assert_allclose([each["accuracy"] for each in bins], accuracy)
    np.testing.assert_allclose([each["confidence"] for each in bins], mean_confidence)
    counts = np.array([each["count"] for each in bins])
    assert counts.sum() == len(correct)
    assert calibration["ece"] == pytest.approx((counts * abs(accuracy - mean_confidence)).sum() / len(correct))
    sure = table(["happy", "sad"], ["happy", "happy"], [[0, 1, 0], [0, 1, 0]])
    assert metrics.score(sure, LABELS)["calibration"]["ece"] == pytest.approx(0.5)


def test_coverage_keeps_the_most_certain_clips():
    confidence = np.linspace(0.4, 0.99, 100)
    probabilities = np.stack([confidence, 1 - confidence, np.zeros(100)], axis=1)
    probabilities[:17] = [0.35, 0.33, 0.32]
    emotions = ["happy"] * 50 + ["neutral"] * 50  # the model says neutral and is right where it is certain
    points = metrics.score(table(emotions, ["neutral"] * 100, probabilities), LABELS)["coverage"]
    assert [point["num_kept"] for point in points] == list(range(5, 101, 5))
    half = points[9]
    assert (half["share"], half["accuracy"], half["uar"]) == (0.5, 1, 1)
    assert half["threshold"] == pytest.approx(confidence[50])
    assert points[-1]["accuracy"] == 0.5


def test_the_interval_is_a_bootstrap_of_speakers():
    predictions = made(count=200, num_speakers=5)
    interval = metrics.score(predictions, EMOTIONS, resamples=300, seed=7)["interval"]
    frame = predictions.to_pandas()
    speakers = sorted(frame.speaker_id.unique())
    drawn = []
    for weights in np.random.default_rng(7).multinomial(len(speakers), np.full(len(speakers), 0.2), 300):
        rows = frame.loc[np.repeat(frame.index, [weights[speakers.index(each)] for each in frame.speaker_id])]
        drawn.append((balanced_accuracy_score(rows.emotion, rows.predicted), np.mean(rows.emotion == rows.predicted)))
    uar, accuracy = np.quantile(drawn, [0.025, 0.975], axis=0).T
    np.testing.assert_allclose(interval["uar"], uar)
    np.testing.assert_allclose(interval["accuracy"], accuracy)
    assert interval["num_speakers"] == 5


def test_one_speaker_has_no_interval():
    interval = metrics.score(table(["happy"] * 3, ["happy", "sad", "happy"], speakers=["s"] * 3), LABELS)["interval"]
    assert interval["uar"] is None and interval["accuracy"] is None


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(UserError, match="no clips to score"):
        metrics.score(made().slice(0, 0), EMOTIONS)
    with pytest.raises(ValueError, match="emotion 'calm' is not among"):
        metrics.score(table(["calm"], ["happy"]), LABELS)
    with pytest.raises(ValueError, match="3 probabilities"):
        metrics.score(table(["happy"], ["happy"], [[0.5, 0.5]]), LABELS)


def test_temperature_is_recovered():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 8)) * 3
    targets = (softmax(logits / 2.5, axis=1).cumsum(axis=1) > rng.random((20_000, 1))).argmax(axis=1)
    assert fit_temperature(logits, targets) == pytest.approx(2.5, rel=0.05)
    low, high = TEMPERATURE_RANGE
    assert fit_temperature(logits, logits.argmax(axis=1)) == pytest.approx(low, rel=0.01)
    assert fit_temperature(logits, logits.argmin(axis=1)) == pytest.approx(high, rel=0.01)


def test_folds_are_pooled():
    folds = [made(seed=seed, skill=seed) for seed in (1, 2, 3)]
    pooled = metrics.pool(folds, EMOTIONS)
    each = [metrics.score(fold, EMOTIONS) for fold in folds]
    assert [fold["uar"] for fold in pooled["folds"]] == [scores["uar"] for scores in each]
    assert pooled["mean"]["uar"] == pytest.approx(np.mean([scores["uar"] for scores in each]))
    assert pooled["std"]["accuracy"] == pytest.approx(np.std([scores["accuracy"] for scores in each], ddof=1))
    together = metrics.score(pa.concat_tables(folds), EMOTIONS)
    assert {name: pooled[name] for name in together} == together


def test_a_run_equals_itself():
    result = metrics.compare(made(), made(), EMOTIONS)
    for name in ("uar", "accuracy"):
        assert result[name]["difference"] == 0
        assert result[name]["interval"] == [0, 0]
        assert result[name]["p_value"] == 1


def test_a_better_run_is_told():
    worse, better = made(skill=0.5), made(skill=1.5)
    result = metrics.compare(worse.slice(100), better.slice(0, 500), EMOTIONS)
    assert (result["num_common"], result["num_a"], result["num_b"]) == (400, 500, 500)
    uar = result["uar"]
    common = [metrics.score(run.slice(100, 400), EMOTIONS)["uar"] for run in (worse, better)]
    assert [uar["a"], uar["b"]] == pytest.approx(common)
    assert 0 < uar["interval"][0] < uar["difference"] < uar["interval"][1]
    assert uar["p_value"] == pytest.approx(2 / 10_001)
    swapped = metrics.compare(better.slice(0, 500), worse.slice(100), EMOTIONS)["uar"]
    assert swapped["interval"] == pytest.approx([-uar["interval"][1], -uar["interval"][0]])
    json.dumps(result, allow_nan=False)


def test_equal_runs_are_seldom_called_different():
    found = 0
    for trial in range(100):
        one, other = (made(count=300, num_speakers=25, seed=trial, noise=noise) for noise in (0, 1))
        found += metrics.compare(one, other, EMOTIONS, resamples=400)["accuracy"]["p_value"] < 0.05
    assert 1 <= found <= 13  # 5 % are expected, a little more as 25 speakers are few


def test_runs_that_cannot_be_compared_are_refused():
    run = made()
    with pytest.raises(UserError, match="share no tested clips"):
        metrics.compare(run.slice(0, 10), run.slice(10), EMOTIONS)
    merged = run.set_column(4, "emotion", pa.array(["sad"] * run.num_rows))
    with pytest.raises(UserError, match="by different labels"):
        metrics.compare(run, merged, EMOTIONS)
    with pytest.raises(UserError, match="have different labels"):
        metrics.compare(run, run, EMOTIONS[:7])


def test_one_shared_speaker_gives_no_p_value():
    run = table(["happy", "sad"], ["happy", "happy"], speakers=["s", "s"])
    result = metrics.compare(run, run, LABELS)
    assert result["uar"]["p_value"] is None and result["uar"]["interval"] is None
