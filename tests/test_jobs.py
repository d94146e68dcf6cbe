"""The jobs as people run them: most in this process on the tests' Ray, one from a shell with its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile as sf
from training_here import training_here

from ser_ray.experiment.crossval import cross_validate
from ser_ray.experiment.experiment import Experiment
from ser_ray.experiment.protocols import SplitConfig
from ser_ray.networks.cnn1d import Cnn1dSpec
from ser_ray.scores.run_folder import RunFolder
from ser_ray.speech import made as synthetic
from ser_ray.training.settings import TrainConfig

JOBS = Path(__file__).parent.parent / "jobs"


def test_the_main_job_in_its_own_process_on_made_speech(tmp_path):
    command = [sys.executable, JOBS / "train.py", "--clips", "48", "--epochs", "1"]
    first = subprocess.run([*command, "--output", "runs/one"], cwd=tmp_path, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert "made speech" in first.stdout and "say nothing about people" in first.stdout
    assert "epoch   1/1" in first.stdout and "UAR" in first.stdout
    assert first.stderr == "", "the terminal is the user's"
    assert "ray" not in first.stdout.lower().replace(str(tmp_path).lower(), "")
    run = tmp_path / "runs/one"
    for name in ("metrics.json", "predictions.parquet", "history.csv", "report.html"):
        assert (run / name).stat().st_size > 0
    for name in ("model.safetensors", "config.json", "README.md"):
        assert (run / "model" / name).stat().st_size > 0
    metrics = json.loads((run / "metrics.json").read_text())
    contract = "accuracy uar macro_f1 num_test labels confusion_matrix per_class per_corpus protocol fold leaks config"
    assert not {*contract.split(), "versions", "timing"} - set(metrics)
    columns = ["utterance_id", "corpus", "speaker_id", "gender", "emotion", "predicted", "probabilities"]
    assert not set(columns) - set(pq.read_schema(run / "predictions.parquet").names)


def test_uv_runs_a_job_as_it_is(tmp_path):
    """Ray takes note of `uv run` and starts workers by it too."""
    folder = Path(sys.executable).parent
    env = os.environ | {"VIRTUAL_ENV": str(folder.parent), "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    speech = synthetic.write_speech(str(tmp_path / "speech"), clips=16, processes=1)
    command = ["uv", "run", "--no-project", JOBS / "featurize.py", "--data", *speech, "--store", "store"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Featurizing: 16/16" in done.stdout


@pytest.mark.usefixtures("local_ray", "train_here")
def test_a_run_reuses_the_store_and_a_finished_one_is_kept(job, made):
    code, out, err = job("featurize", "--data", *made)
    assert (code, err) == (0, "") and "Featurizing" in out
    wish = ("--data", *made, "--width", "4", "--epochs", "1", "--output", "runs/one")
    code, out, err = job("train", *wish)
    assert (code, err) == (0, "") and "96 of 96 clips are there already" in out and "Featurizing" not in out
    code, _, err = job("train", *wish)
    assert code == 2 and "finished run" in err


LABELS = ("neutral", "happy", "sad")  # which all four speakers show


@pytest.fixture(scope="module")
def cross_validated(made_store, tmp_path_factory):
    """A cross-validation of two folds."""
    root = tmp_path_factory.mktemp("cross-validated") / "cv"
    wish = Experiment(
        **{"corpus": ("savee",), "labels": LABELS, "network": Cnn1dSpec()},
        **{"train": TrainConfig.usual(Cnn1dSpec, epochs=1), "split": SplitConfig(num_folds=2)},
    )
    with training_here():
        cross_validate(made_store, wish, RunFolder(str(root)))
    return root


@pytest.fixture
def cv(cross_validated, tmp_path):
    """The cross-validation, as `runs/cv` of this test, and the flags by which it was made."""
    shutil.copytree(cross_validated, tmp_path / "runs" / "cv")

    def wish(store):
        flags = ("--store", store.root, "--corpus", "savee", "--epochs", "1", "--num-folds", "2")
        return ("train", *flags, "--model", "cnn1d", "--labels", *LABELS, "--fold", "all", "--output", "runs/cv")

    return wish


@pytest.mark.usefixtures("local_ray", "train_here")
def test_a_cross_validation_tests_all_speakers(job, made_store):
    wish = ("--store", made_store.root, "--corpus", "savee", "--epochs", "1", "--num-folds", "2", "--model", "cnn1d")
    code, out, err = job("train", *wish, "--labels", *LABELS, "--fold", "all", "--output", "runs/cv")
    assert (code, err) == (0, ""), err
    assert "2 folds, 2 to do" in out and "±" in out
    metrics = json.loads(Path("runs/cv/metrics.json").read_text())
    assert metrics["num_test"] == 12 and len(metrics["folds"]) == 2 and metrics["fold"] == "all"
    assert sorted(metrics["per_speaker"]) == ["savee_dc", "savee_je", "savee_jk", "savee_kl"]


@pytest.mark.usefixtures("local_ray", "train_here")
def test_a_cross_validation_that_was_cut_short_goes_on_and_does_no_fold_again(job, cv, made_store):
    Path("runs/cv/metrics.json").unlink()
    code, out, _ = job("evaluate", "--run", "runs/cv")
    assert code == 0 and "Folds 0, 1 of a cross-validation that is not finished" in out
    Path("runs/cv/fold-1/metrics.json").unlink()
    code, out, err = job(*cv(made_store))
    assert code == 0 and "2 folds, 1 to do" in out, err


@pytest.mark.usefixtures("local_ray")
def test_a_fold_of_other_settings_is_not_pooled(job, cv, made_store):
    Path("runs/cv/metrics.json").unlink()
    Path("runs/cv/run.json").unlink()  # which is asked first
    code, _, err = job(*cv(made_store), "--patience", "9")
    assert code == 2 and "fold-0 was run with other settings (patience: 5, wanted 9)" in err


@pytest.mark.usefixtures("local_ray", "cv")
def test_an_evaluation_leaves_out_all_clips_of_speakers_who_were_heard(job, made, made_plain):
    flags = ("--data", *made, "--store", made_plain.root, "--output", "runs/elsewhere")
    code, out, err = job("evaluate", "--run", "runs/cv/fold-0", *flags)
    assert (code, err) == (0, ""), err
    assert "left out: 6 clips, trained on" in out
    scores = json.loads(Path("runs/elsewhere/metrics.json").read_text())
    assert scores["per_corpus"].keys() == {"crema_d", "ravdess", "tess", "savee"}
    config = json.loads(Path("runs/cv/fold-0/model/config.json").read_text())
    assert (
        config["domain"]["clips"] > 0
        and "| signal-to-noise, dB |" in Path("runs/cv/fold-0/model/README.md").read_text()
    )
    heard = config["trained_on"]["speakers"]
    assert len(heard) == 2 and set(scores["per_speaker"]).isdisjoint(heard)


@pytest.mark.usefixtures("local_ray", "cv")
def test_several_models_answer_by_their_product_for_speakers_whom_none_has_heard(job, made, made_plain):
    for name, folds in (("first", (0,)), ("second", (1,)), ("together", (0, 1))):
        models = [f"runs/cv/fold-{fold}" for fold in folds]
        flags = ("--data", *made, "--store", made_plain.root, "--output", f"runs/{name}")
        code, _, err = job("evaluate", "--run", *models, *flags)
        assert (code, err) == (0, ""), err
    scores = json.loads(Path("runs/together/metrics.json").read_text())
    assert scores["per_corpus"].keys() == {"crema_d", "ravdess", "tess"}  # each of savee was heard by one of them
    first, second, both = (
        {row["utterance_id"]: row for row in pq.read_table(f"runs/{name}/predictions.parquet").to_pylist()}
        for name in ("first", "second", "together")
    )
    assert set(both) == set(first) & set(second)
    for clip, row in both.items():
        product = np.sqrt(np.multiply(first[clip]["probabilities"], second[clip]["probabilities"]))
        np.testing.assert_allclose(row["probabilities"], product / product.sum(), rtol=1e-9)
        assert row["predicted"] == scores["labels"][product.argmax()]


@pytest.mark.usefixtures("local_ray", "cv")
def test_models_that_do_not_go_together_are_refused(job, made):
    shutil.copytree("runs/cv/fold-1/model", "runs/other")
    config = Path("runs/other/config.json")
    config.write_text(config.read_text().replace('"merged": []', '"merged": [["calm", "neutral"]]'))
    code, _, err = job("evaluate", "--run", "runs/cv/fold-0", "runs/other", "--data", *made)
    assert code == 2 and "runs/other has other labels than" in err


@pytest.mark.usefixtures("local_ray", "cv")
def test_two_runs_are_compared_on_the_clips_that_both_tested(job):
    code, out, err = job("evaluate", "--compare", "runs/cv", "runs/cv/fold-0", "--output", "runs/both")
    assert (code, err) == (0, ""), err
    assert "tested by both" in out and Path("runs/both/report.html").stat().st_size > 1000
    code, out, _ = job("evaluate", "--run", "runs/cv")
    assert code == 0 and "UAR" in out


@pytest.mark.usefixtures("local_ray")
def test_a_store_of_another_fingerprint_is_refused(job, made, made_store):
    code, _, err = job("train", "--data", *made, "--store", made_store.root, "--offset-s", "0.5")
    assert code == 2 and err.count("\n") == 1 and "offset_s: 0.6, wanted 0.5" in err


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("train", "--data", "nowhere"), "nowhere"),
        (("train", "--data", "empty"), "no audio"),
        (("train", "--data", "texts"), "texts"),
        (("train", "--data", "hollow"), "none of the clips could be read"),
        (("train", "--data", "empty", "--data", "texts"), "--data is given twice"),
        (("train", "--model", "resnet99"), "resnet99"),
        (("train", "--protocol", "random"), "random"),
        (("train", "--labels", "bored"), "bored"),
        (("train", "--fold", "first"), "--fold first"),
        (("train", "--epochs", "0"), "--epochs"),
        (("train", "--store", "nowhere"), "not a finished feature store"),
        (("train", "--epoch", "3"), "--epoch"),
        (("train", "--config", "nowhere.yaml"), "nowhere.yaml"),
        (("train", "--num-workers", "two", "--clips", "48"), "--num-workers two"),
        (("train", "--device", "cuda", "--clips", "48"), "GPU"),
        (("featurize",), "--data"),
        (("featurize", "--data", "empty", "--features", "wavelets"), "wavelets"),
        (("featurize", "--data", "empty", "--augment", "echo"), "echo"),
        (("evaluate",), "--run"),
        (("evaluate", "--run", "nowhere"), "nowhere"),
        (("evaluate", "--run", "nowhere", "--data", "empty"), "nowhere"),
        (("evaluate", "--compare", "a"), "two runs"),
    ],
)
def test_a_mistake_costs_one_line(job, tmp_path, argv, says):
    hollow = [f"100{actor}_DFA_{emotion}_XX.wav" for actor in range(1, 6) for emotion in ("SAD", "HAP")]
    for folder, names in (("empty", []), ("texts", ["a.wav"]), ("hollow", hollow)):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_text("not a sound")
    code, _, err = job(*argv)
    assert code == 2
    assert says in err and "Traceback" not in err
    if not err.startswith("╭"):  # tyro draws a box around what it refuses
        assert err.count("\n") == 1, err


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(
    ("speakers", "says"),
    [
        (("anna",), "speaker-independent needs"),
        (("anna", "bert", "cleo", "dave"), "which is tested; add clips of more speakers"),
    ],
)
def test_corpora_that_cannot_be_tested_on_are_refused(job, tmp_path, speakers, says):
    """One speaker; and emotions that one speaker alone shows, whoever that is."""
    rows = ["path,emotion,speaker_id"]
    for speaker, own in zip(speakers, ("angry", "sad", "fearful", "disgust"), strict=False):
        for emotion in ("happy", own):
            noise = np.random.default_rng(len(rows)).normal(0, 0.1, 16_000)
            sf.write(tmp_path / f"{speaker}_{emotion}.wav", noise, 16_000)
            rows.append(f"{speaker}_{emotion}.wav,{emotion},{speaker}")
    (tmp_path / "own.csv").write_text("\n".join(rows))
    code, _, err = job("train", "--data", "own.csv", "--epochs", "1")
    assert code == 2 and says in err and err.count("\n") == 1 and "Traceback" not in err
