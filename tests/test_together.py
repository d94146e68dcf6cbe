"""Runs that answer together: how much each counts, what they are worth, and who must not."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf
from scipy.special import log_softmax, softmax
from training_here import training_here

from ser_ray.experiment.crossval import cross_validate
from ser_ray.experiment.evaluate import evaluate
from ser_ray.experiment.experiment import Experiment
from ser_ray.experiment.protocols import SplitConfig
from ser_ray.model.answers import answer_windows
from ser_ray.model.calibration import fit_weights, pool_answers
from ser_ray.model.files import load_model
from ser_ray.model.together import open_models, weigh_runs
from ser_ray.model.windows import Hearing, WindowConfig
from ser_ray.networks.cnn1d import Cnn1dSpec
from ser_ray.networks.log_mel_resnet import LogMelResNetSpec
from ser_ray.scores.run_folder import RunFolder
from ser_ray.store.rows import open_rows
from ser_ray.training.settings import TrainConfig

LABELS = ("neutral", "happy", "sad")


def some_answers(skills, count=300, seed=0):
    """Return probabilities of answers that are right as often as their skill has it, and what is right."""
    draw = np.random.default_rng(seed)
    targets = draw.integers(4, size=count)
    logits = draw.normal(size=(len(skills), count, 4))
    for skill, one in zip(skills, logits, strict=True):
        one[np.arange(count), targets] += skill
    return list(softmax(logits, axis=2)), targets


def loss(answers, targets, weights):
    return -np.log(pool_answers(answers, weights)[np.arange(len(targets)), targets]).mean()


@pytest.mark.parametrize("skills", [(2, 1), (2, 0.2), (1, 1), (0, 3)])
def test_weights_of_two_answers_are_those_of_the_least_loss(skills):
    answers, targets = some_answers(skills)
    weights = fit_weights(answers, targets)
    assert weights.min() >= 0 and weights.sum() == pytest.approx(1)
    grid = np.linspace(0, 1, 1001)
    best = min(grid, key=lambda share: loss(answers, targets, (share, 1 - share)))
    assert weights[0] == pytest.approx(best, abs=2e-3)


def test_of_three_answers_the_one_that_knows_nothing_has_no_say_and_like_ones_count_alike():
    answers, targets = some_answers((2, 2, 0), count=3000)
    weights = fit_weights(answers, targets)
    assert weights[2] < 0.03 and weights[:2] == pytest.approx([0.5, 0.5], abs=0.06)
    swapped = fit_weights(answers[::-1], targets)
    np.testing.assert_allclose(swapped[::-1], weights, atol=1e-4)
    same = fit_weights([answers[0], answers[0]], targets)
    assert loss([answers[0], answers[0]], targets, same) == pytest.approx(loss(answers[:1], targets, (1,)))


def experiment(network):
    split = SplitConfig(num_folds=2)
    train = TrainConfig.usual(type(network), epochs=2, batch_size=4)
    return Experiment(corpus=("savee",), labels=LABELS, split=split, network=network, train=train)


@pytest.fixture(scope="module")
def runs(made_store, made_frames, tmp_path_factory):
    """Two cross-validated runs of two folds on different features: `cnn` and `resnet`."""
    root = tmp_path_factory.mktemp("runs")
    with training_here():
        cross_validate(made_store, experiment(Cnn1dSpec()), RunFolder(str(root / "cnn")))
        cross_validate(made_frames, experiment(LogMelResNetSpec(width=4)), RunFolder(str(root / "resnet")))
    return root


def table(*path):
    return pq.read_table(Path(*map(str, path)))


def probabilities(answers):
    return np.stack(answers["probabilities"].to_pylist())


def test_a_run_keeps_what_its_first_member_said_of_validation_speakers(runs, made_store):
    for fold in ("fold-0", "fold-1"):
        validation, predictions = (
            table(runs, "cnn", fold, f"{name}.parquet") for name in ("validation", "predictions")
        )
        assert validation.schema.equals(predictions.schema)
        assert not set(validation["speaker_id"].to_pylist()) & set(predictions["speaker_id"].to_pylist())
        model, rows = load_model(str(runs / "cnn" / fold)), open_rows(made_store)
        assert set(validation["speaker_id"].to_pylist()) <= set(model.trained_on)
        rows = rows.take(rows.among("utterance_id", validation["utterance_id"].to_pylist()))
        again = model.predict_rows(rows.take(rows.among("augmentation", ["none"])))  # by its temperature
        np.testing.assert_allclose(probabilities(again), probabilities(validation), atol=1e-6)


def test_cross_validated_runs_of_different_features_answer_together(runs, job, tmp_path):
    code, out, err = job("evaluate", "--run", runs / "cnn", runs / "resnet", "--output", "both", "--verbose")
    assert (code, err) == (0, ""), err
    scores = json.loads(Path("both/metrics.json").read_text())
    weighings, compared = scores["together"]["weighings"], scores["together"]["runs"]
    expected = []
    for fold, weighing in zip(("fold-0", "fold-1"), weighings, strict=True):
        validations = [table(runs, name, fold, "validation.parquet") for name in ("cnn", "resnet")]
        targets = [LABELS.index(emotion) for emotion in validations[0]["emotion"].to_pylist()]
        weights = fit_weights([probabilities(each) for each in validations], np.array(targets))
        np.testing.assert_allclose(weighing["weights"], weights)
        assert (weighing["clips"], weighing["speakers"]) == (len(targets), 1)
        tested = [table(runs, name, fold, "predictions.parquet") for name in ("cnn", "resnet")]
        assert tested[0]["utterance_id"].equals(tested[1]["utterance_id"])
        pooled = sum(w * np.log(probabilities(one)) for w, one in zip(weights, tested, strict=True))
        expected.append(np.exp(log_softmax(pooled, axis=1)))
    both, parts = table("both", "predictions.parquet"), table(runs, "cnn", "predictions.parquet")
    assert both.schema.equals(parts.schema) and both["utterance_id"].equals(parts["utterance_id"])
    np.testing.assert_allclose(probabilities(both), np.concatenate(expected), atol=1e-12)
    assert both["predicted"].to_pylist() == [LABELS[k] for k in np.concatenate(expected).argmax(1)]
    for name, one in zip(("cnn", "resnet"), compared, strict=True):
        alone = json.loads((runs / name / "metrics.json").read_text())
        assert one["run"] == str(runs / name) and one["uar"]["a"] == pytest.approx(alone["uar"])
        assert one["uar"]["b"] == pytest.approx(scores["uar"]) and len(one["uar"]["interval"]) == 2
        assert one["num_speakers"] == 4
    assert (scores["fold"], len(scores["folds"]), scores["num_test"]) == ("all", 2, len(both))
    assert scores["made_speech"] and "Together" in out and 'id="together"' in Path("both/report.html").read_text()
    code, _, err = job("evaluate", "--run", runs / "cnn", runs / "resnet", "--output", "both")
    assert code == 2 and "holds a finished run" in err
    code, out, err = job("evaluate", "--compare", runs / "cnn", "both")
    assert (code, err) == (0, "") and "difference" in out, err


def copy_fold(runs, name, change=None):
    """Copy a run's first fold, and change its validation answers."""
    shutil.copytree(runs / name / "fold-0", name)
    path = Path(name, "validation.parquet")
    validation = pq.read_table(path)
    path.unlink()
    if change:
        pq.write_table(change(validation), path)
    return name


def other_speakers(validation):
    names = pa.array(["savee_xx"] * len(validation))
    return validation.set_column(validation.column_names.index("speaker_id"), "speaker_id", names)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (None, "not all of them keep what they said of validation speakers"),
        (other_speakers, "they validated on different speakers"),
    ],
)
def test_runs_that_cannot_be_weighed_count_alike_and_it_is_said(runs, job, tmp_path, change, reason):
    copied = copy_fold(runs, "cnn", change)
    code, out, err = job("evaluate", "--run", copied, runs / "resnet" / "fold-0", "--output", "both")
    assert (code, err) == (0, "") and out.count(f"The runs count alike, since {reason}.") == 1, err
    scores = json.loads(Path("both/metrics.json").read_text())
    assert (
        scores["together"]["weighings"][0] | {"weights": [0.5, 0.5], "clips": 0} == scores["together"]["weighings"][0]
    )
    assert any(reason in note for note in scores["notes"]) and scores["fold"] == 0
    pooled = pool_answers(
        [probabilities(table(root, "predictions.parquet")) for root in (copied, runs / "resnet/fold-0")]
    )
    np.testing.assert_allclose(probabilities(table("both", "predictions.parquet")), pooled)


def test_weights_are_fitted_to_clips_that_all_runs_validated_on(runs):
    validations = [[table(runs, name, "fold-0", "validation.parquet")] for name in ("cnn", "resnet")]
    (one,), (other,) = validations
    shuffled = other.take(list(reversed(range(len(other) - 1))))
    weighing = weigh_runs([[one], [shuffled]], LABELS)
    assert weighing == weigh_runs([[one.slice(0, len(one) - 1)], [other.slice(0, len(one) - 1)]], LABELS)
    assert weighing.clips == len(one) - 1
    assert "different folds" in weigh_runs([[one, one], [other]], LABELS).why
    renamed = other.set_column(0, "utterance_id", pa.array([f"x/{k}" for k in range(len(other))]))
    assert "different clips" in weigh_runs([[one], [renamed]], LABELS).why


def test_runs_that_tested_something_else_are_refused_in_one_line(runs, job, tmp_path):
    first = runs / "cnn" / "fold-0"
    shutil.copytree(first, "fewer")
    pq.write_table(table("fewer", "predictions.parquet").slice(1), "fewer/predictions.parquet")
    for name, edit in (("labels", {"labels": ["calm", "happy", "sad"]}), ("protocol", {"protocol": "emobox"})):
        shutil.copytree(first, name)
        scores = json.loads((first / "metrics.json").read_text())
        Path(name, "metrics.json").write_text(json.dumps(scores | edit))
    for others, says in (
        ([runs / "resnet" / "fold-1"], "fold-1 has not the fold of"),
        ([runs / "resnet"], "resnet has not the fold of"),
        (["fewer"], "did not test the same clips: 1 were tested by one of them alone, such as savee/"),
        (["labels"], "has not the labels of"),
        (["protocol"], "has not the protocol of"),
        ([first], "twice"),
        (["nowhere"], "holds no finished run"),
    ):
        code, _, err = job("evaluate", "--run", first, *others, "--output", "both")
        assert code == 2 and says in err and err.count("\n") == 1, err
        assert not Path("both").exists()


def test_new_recordings_are_answered_together_by_the_same_weights(runs, job, tmp_path):
    sound = np.random.default_rng(0).normal(0, 0.1, 3 * 16_000)
    sf.write("a.wav", sound, 16_000)
    roots = [str(runs / name / "fold-0") for name in ("resnet", "cnn")]
    code, out, err = job("predict", "--run", *roots, "--input", "a.wav", "--output", "out")
    assert (code, err) == (0, "") and "2 runs answer together: weights fitted to" in out, err
    together = open_models(roots)
    job("evaluate", "--run", *roots, "--output", "both")
    (weighing,) = json.loads(Path("both/metrics.json").read_text())["together"]["weighings"]
    assert together.weighing.weights == tuple(weighing["weights"])
    assert json.loads(Path("out/predict.json").read_text())["model"]["weights"] == dict(
        zip(roots, weighing["weights"], strict=True)
    )
    with open("a.wav", "rb") as file:
        hearing = Hearing(file, WindowConfig(), together.features[0])
        each = [answer_windows([model], hearing) for model in together.models]
    np.testing.assert_allclose(probabilities(table("out/windows")), pool_answers(each, weighing["weights"]), atol=1e-9)


def test_a_cross_validated_run_answers_by_the_models_of_all_its_folds(runs, made_store, made_frames, tmp_path):
    roots = [str(runs / name) for name in ("cnn", "resnet")]
    alone, both = open_models(roots[:1]), open_models(roots)
    assert alone.weights == [0.5, 0.5] and len(both.models) == 4 and both.weighing.clips > 0
    assert sum(both.weights) == pytest.approx(1) and both.weights[0] == both.weights[1] == both.weighing.weights[0] / 2
    scores = evaluate(both, [made_store, made_frames], RunFolder(str(tmp_path / "both")))
    assert set(scores["per_corpus"]) == {"crema_d", "ravdess", "tess"}  # every speaker of savee was heard by one
    evaluate(alone, made_store, RunFolder(str(tmp_path / "alone")))
    assert "together" not in json.loads((tmp_path / "alone" / "metrics.json").read_text())
    answers = table(tmp_path, "alone", "predictions.parquet")
    rows = open_rows(made_store)
    rows = rows.take(rows.among("utterance_id", answers["utterance_id"].to_pylist()))
    rows = rows.take(rows.among("augmentation", ["none"]))
    folds = [probabilities(model.predict_rows(rows)) for model in alone.models]
    np.testing.assert_allclose(probabilities(answers), pool_answers(folds), atol=1e-9)
    evaluate(open_models(roots[1:]), made_frames, RunFolder(str(tmp_path / "other")))
    other = probabilities(table(tmp_path, "other", "predictions.parquet"))
    pooled = pool_answers([probabilities(answers), other], both.weighing.weights)
    np.testing.assert_allclose(probabilities(table(tmp_path, "both", "predictions.parquet")), pooled, atol=1e-9)
    assert [one["run"] for one in scores["together"]["runs"]] == roots


def test_models_of_different_features_are_evaluated_on_other_corpora_by_the_job(runs, made, job, tmp_path):
    roots = [runs / name / "fold-0" for name in ("cnn", "resnet")]
    wish = ("evaluate", "--run", *roots, "--data", *made, "--output", "elsewhere")
    code, _, err = job(*wish, "--store", "store")
    assert code == 2 and "--store names one store" in err and err.count("\n") == 1
    code, out, err = job(*wish)
    assert (code, err) == (0, "") and "Together" in out, err
    assert len(list(Path("stores").iterdir())) == 2
    scores = json.loads(Path("elsewhere/metrics.json").read_text())
    assert scores["together"]["weighings"][0]["clips"] > 0 and len(scores["temperature"]) == 2
