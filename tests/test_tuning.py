"""The search: its space, its trials on a small local Ray, and what it leaves behind."""

import io
import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import mlflow
import pyarrow.parquet as pq
import pytest
from local_cluster import ROOT, LocalCluster, descendants, kill_tree
from rich.console import Console

from ser_ray.base import console, storage
from ser_ray.base.errors import UserError
from ser_ray.experiment.experiment import Experiment
from ser_ray.networks.cnn1d import Cnn1dSpec
from ser_ray.networks.log_mel_resnet import LogMelResNetSpec
from ser_ray.networks.space import Range
from ser_ray.networks.spec import NETWORKS
from ser_ray.scores.report import search_page
from ser_ray.search.space import TuneConfig, flags_of, put_in, read_space, usual_values
from ser_ray.search.trials import Recorder, ranked, read_trials
from ser_ray.search.tuning_parts import run_trial
from ser_ray.training.settings import FrameAugmentConfig, TrainConfig

SPACE = """
learning-rate: {low: 1.0e-3, high: 1.0e-2, log: true}
batch_size: [16, 32]
balance: {low: 0, high: 1}
"""


def test_every_default_space_fits_its_model():
    for network in NETWORKS:
        todo = Experiment(network=network(), train=TrainConfig.usual(network))
        for name, domain in network.space.items():
            for value in (domain.low, domain.high) if isinstance(domain, Range) else domain:
                put_in(todo, {name: value})


def test_a_space_is_read(tmp_path):
    (tmp_path / "space.yaml").write_text(SPACE)
    space = read_space(str(tmp_path / "space.yaml"), Experiment())
    assert space == {"learning_rate": Range(1e-3, 1e-2, True), "batch_size": (16, 32), "balance": Range(0.0, 1.0)}
    assert isinstance(space["balance"].high, float)
    (tmp_path / "choices.yaml").write_text("learning_rate: [1e-3, 1e-2]\nwidth: [16.0]\nschedule: [plateau]\n")
    space = read_space(str(tmp_path / "choices.yaml"), Experiment())  # YAML takes 1e-3 for a text
    assert space == {"learning_rate": (1e-3, 1e-2), "width": (16,), "schedule": ("plateau",)}
    assert read_space(None, Experiment()) == LogMelResNetSpec.space


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("learning_rate: 0.1", "learning_rate: give a list of choices, or low and high"),
        ("learning_rate: {low: 1, high: 0.1}", "low must be below high"),
        ("learning_rate: {low: 0, high: 0.1, log: true}", "above 0 for log"),
        ("dropout: {low: 0, high: 1}", "--dropout must be 0 to 0.95"),
        ("batch_size: [16, 1]", "--batch-size must be 2 or more"),
        ("batch_size: [16.5]", "takes whole numbers, got 16.5"),
        ("learning_rate: [fast]", "learning_rate: could not convert string to float: 'fast'"),
        ("schedule: {low: 0, high: 1}", "takes choices"),
        ("epochs: [1, 2]", "no such flag"),
        ("colour: [red]", "colour: no such flag"),
        ("- learning_rate", "give flags with choices or ranges"),
        ("{", "--space"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(tmp_path, text, says):
    (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(UserError, match=says) as refused:
        read_space(str(tmp_path / "space.yaml"), Experiment())
    assert "\n" not in str(refused.value)


def test_the_settings_as_they_are_lie_in_the_space_or_not():
    space = {"learning_rate": Range(1e-5, 1.0), "width": (16, 32), "mask_bands": Range(0, 8)}
    usual_rate = TrainConfig.usual(LogMelResNetSpec).learning_rate
    assert usual_values(Experiment(), space) == {"learning_rate": usual_rate, "width": 32, "mask_bands": 0}
    assert usual_values(Experiment(), space | {"width": (8, 16)}) is None
    assert usual_values(Experiment(), space | {"pitch": Range(0.0, 1.0)}) is None


def test_settings_go_where_they_belong():
    todo = put_in(Experiment(), {"learning_rate": 0.5, "width": 8, "gain": 1.0})
    assert (todo.train.learning_rate, todo.network.width, todo.changes.gain) == (0.5, 8, 1.0)
    assert todo.changes.pitch == FrameAugmentConfig().pitch
    assert put_in(Experiment(), {"speaker_norm": True}).speaker_norm  # as best.json may have it
    with pytest.raises(UserError, match="colour is no flag of a training"):
        put_in(Experiment(), {"colour": "red"})


def test_a_training_is_told_by_the_flags_that_are_not_as_usual():
    todo = put_in(Experiment(), {"learning_rate": 0.5, "width": 8})
    todo = replace(todo, train=replace(todo.train, patience=99))
    assert flags_of(todo) == {
        **{"model": "log_mel_resnet", "epochs": 80, "learning_rate": 0.5, "patience": 99, "width": 8}
    }


def test_the_best_trial_did_not_fail_and_was_judged_on_most_folds(tmp_path):
    def trial(name, status, folds, *curve):
        return {"trial": name, "status": status, "folds": folds, "curve": list(curve), "ended": len(name)}

    some = [trial("diverged", "failed", 1, 0.9), trial("begun", "failed", 0), trial("early", "stopped", 1, 0.7)]
    assert [one["trial"] for one in ranked(some)] == ["early"]
    some += [trial("all", "finished", 3, 0.8, 0.5), trial("other", "finished", 3, 0.5)]
    assert [one["trial"] for one in ranked(some)] == ["all", "other", "early"]
    for one in some:
        storage.write_json(f"{tmp_path}/trials/{one['trial']}.json", one)
    (tmp_path / "trials" / "early.json.1234.tmp").write_text("{")
    assert [one["trial"] for one in read_trials(str(tmp_path))] == ["all", "begun", "early", "other", "diverged"]


def test_a_search_by_tpe_needs_optuna(monkeypatch):
    monkeypatch.setattr("ser_ray.search.space.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--search tpe needs Optuna: pip install .* or --search random"):
        TuneConfig()
    TuneConfig(search="random")


@pytest.mark.parametrize("wrong", [{"num_samples": 0}, {"search": "grid"}, {"time_budget_s": -1}, {"inner_folds": 0}])
def test_senseless_searches_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong)).replace("_", "-")):
        TuneConfig(**wrong)


@pytest.mark.timeout(600)  # on a cluster of few CPUs it must not wait for ever
@pytest.mark.usefixtures("local_ray", "train_here")
def test_a_search_from_end_to_end(job, made_plain, tmp_path, monkeypatch):
    Path("space.yaml").write_text(SPACE.replace("16, 32", "32, 64"))  # the usual settings of cnn1d among them
    wish = ("--store", made_plain.root, "--model", "cnn1d", "--epochs", "2", "--space", "space.yaml")
    wish = (*wish, "--max-concurrent", "2")
    there = tmp_path / "begun"
    there.mkdir()

    def try_beside_another(values, common, root, trial=run_trial):
        """Each of the first two waits for the other: they are at it at the same time."""
        (there / uuid4().hex).touch()
        while len(list(there.iterdir())) < 2:
            time.sleep(0.05)
        trial(values, common, root)

    monkeypatch.setattr("ser_ray.search.search.run_trial", try_beside_another)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    address = (tmp_path / "mlflow").as_uri()
    code, out, err = job("tune", *wish, "--num-samples", "3", "--output", "runs/search", "--mlflow", address)
    assert code == 0, err
    assert "trial 3/3" in out and "Best: validation UAR" in out
    trials = [json.loads(path.read_text()) for path in Path("runs/search/trials").glob("*.json")]
    assert len(trials) == 3 and {trial["status"] for trial in trials} <= {"finished", "stopped"}
    trials.sort(key=lambda trial: trial["began"])  # two at a time
    first = [trial["values"] for trial in trials[:2]]
    assert trials[0]["began"] < trials[1]["ended"] and trials[1]["began"] < trials[0]["ended"]
    as_is = TrainConfig.usual(Cnn1dSpec)
    assert {name: getattr(as_is, name) for name in ("learning_rate", "batch_size", "balance")} in first
    trials.sort(key=lambda trial: trial["ended"])  # of equally good ones the first counts
    best = max(trials, key=lambda trial: trial["curve"][-1])
    flags = json.loads(Path("runs/search/best.json").read_text())
    assert flags == {"model": "cnn1d", "epochs": 2, **best["values"]}
    run = json.loads(Path("runs/search/best/metrics.json").read_text())
    assert run["config"]["train"]["learning_rate"] == best["values"]["learning_rate"]
    table = pq.read_table("runs/search/trials.parquet")
    assert table.num_rows == 3 and {"learning_rate", "batch_size", "curve", "status"} <= set(table.column_names)
    assert "Parallel coordinates" in Path("runs/search/report.html").read_text()
    assert list(Path("runs/search/ray").rglob("events.out.tfevents*"))
    assert not Path("runs/search/checkpoints").exists()
    client = mlflow.MlflowClient(address)
    logged = client.search_runs([client.get_experiment_by_name(str(tmp_path / "runs" / "search")).experiment_id])
    assert sorted(run.data.params["learning_rate"] for run in logged) == sorted(
        str(trial["values"]["learning_rate"]) for trial in trials
    )
    assert all(run.data.metrics["objective"] > 0 and run.info.status == "FINISHED" for run in logged)

    code, _, err = job("tune", *wish, "--num-samples", "3", "--output", "runs/search")
    assert code == 2 and "--resume" in err
    code, _, err = job("train", "--store", made_plain.root, "--config", "runs/search/best.json", "--epochs", "1")
    assert code == 0, err


@pytest.mark.usefixtures("local_ray")
def test_a_search_that_cannot_go_on_or_tell_leaves_no_trace(job, made_plain):
    wish = ("--store", made_plain.root, "--model", "cnn1d", "--epochs", "1")
    code, _, err = job("tune", *wish, "--output", "runs/other", "--resume")
    assert code == 2 and "no search in" in err
    code, _, err = job("tune", *wish, "--output", "runs/other", "--mlflow", "http://127.0.0.1:9")
    assert code == 2 and "--mlflow http://127.0.0.1:9: " in err and not Path("runs/other/run.json").exists()


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("local_ray", "train_here")
def test_a_search_goes_on_with_what_had_ended_and_survives_bad_trials(job, made_plain, tmp_path):
    Path("space.yaml").write_text("learning_rate: [1.0e+30, 2.0e+30]\n")  # all of them diverge
    wish = ("--store", made_plain.root, "--model", "cnn1d", "--epochs", "1", "--space", "space.yaml")
    wish = (*wish, "--search", "random")
    code, out, err = job("tune", *wish, "--num-samples", "1", "--output", "runs/search")
    assert code == 2 and "no trial succeeded" in err and "NaN, infinite or above 100" in err
    (bad,) = Path("runs/search/trials").glob("*.json")
    good = {**json.loads(bad.read_text()), "trial": "good", "status": "finished", "curve": [0.5]}
    good["values"] = {"learning_rate": 1e-3}
    bad.with_name("good.json").write_text(json.dumps(good))
    Path("runs/search/best").mkdir()  # of the same search with fewer trials, killed in its last training
    Path("runs/search/best/run.json").write_text(json.dumps({"identity": {"members": 9}, "command": ""}))
    code, out, err = job("tune", *wish, "--num-samples", "2", "--output", "runs/search", "--resume")
    assert code == 0, err
    assert "2 of 2 trials have ended already" in out and "Best: validation UAR 50.0%" in out


@pytest.mark.timeout(420)
@pytest.mark.usefixtures("local_ray", "train_here")
@pytest.mark.parametrize(("how", "workers", "at_once"), [("random", "2", "1"), ("tpe", "1", "2")])
def test_a_search_whose_time_is_up_ends_and_its_best_is_trained(job, made_plain, how, workers, at_once):
    wish = ("--store", made_plain.root, "--model", "cnn1d", "--epochs", "6", "--patience", "6")
    wish += ("--search", how, "--no-early-stopping", "--max-concurrent", at_once, "--workers-per-trial", workers)
    code, _, err = job("tune", *wish, "--num-samples", "50", "--time-budget-s", "0.01", "--output", "runs/search")
    assert code == 0, err
    trials = [json.loads(path.read_text()) for path in Path("runs/search/trials").glob("*.json")]
    assert 1 <= len(trials) <= 2 and {trial["status"] for trial in trials} == {"stopped"}
    assert all(len(trial["curve"]) < 6 for trial in trials)
    assert Path("runs/search/best/metrics.json").exists()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
@pytest.mark.timeout(420)
@pytest.mark.usefixtures("local_ray", "train_here")
def test_a_trial_whose_process_dies_is_begun_anew_and_fails_in_the_end(job, made_plain):
    killed = []

    def kill_the_first_two():
        while len(killed) < 2:
            time.sleep(0.02)
            there = {pid for pid, name in descendants(os.getpid()).items() if name.startswith("ray::ImplicitFunc")}
            for pid in there.difference(killed):
                killed.append(pid)
                os.kill(pid, signal.SIGKILL)

    threading.Thread(target=kill_the_first_two, daemon=True).start()
    wish = ("--store", made_plain.root, "--model", "cnn1d", "--epochs", "1", "--search", "random")
    code, out, err = job("tune", *wish, "--num-samples", "2", "--max-concurrent", "1", "--output", "runs/search")
    assert code == 0, err
    trials = [json.loads(path.read_text()) for path in Path("runs/search/trials").glob("*.json")]
    assert sorted(trial["status"] for trial in trials) == ["failed", "finished"]
    assert "trial 1/2 failed after 0 epochs: " in out and "died" in next(t["error"] for t in trials if t["error"])


@pytest.fixture(scope="module")
def killed_search(made_plain, tmp_path_factory):
    """A search on a cluster of one CPU, killed after its first trial and gone on with.

    Returns:
        Its trials' files at the kill and at its end, and what it said before and after the kill.
    """
    trials = tmp_path_factory.mktemp("killed") / "search" / "trials"
    wish = ("--store", made_plain.root, "--model", "cnn1d", "--epochs", "1", "--inner-folds", "2")
    wish = (ROOT / "jobs" / "tune.py", *wish, "--num-samples", "2", "--output", trials.parent)
    with LocalCluster(1) as single_core:
        job = single_core.start(*wish)
        while not list(trials.glob("*.json")):
            assert job.poll() is None, job.communicate()[0]
            time.sleep(0.05)
        kill_tree(job)
        first, _ = job.communicate()
        before = {path.name: path.read_text() for path in trials.glob("*.json")}
        job = single_core.start(*wish, "--resume")
        second, _ = job.communicate()
    assert job.returncode == 0, second
    return before, {path.name: path.read_text() for path in trials.glob("*.json")}, first, second


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
@pytest.mark.timeout(420)  # it must not wait for ever for a CPU that a trial of its own holds
def test_a_search_on_a_single_core_comes_to_its_end(killed_search):
    _, after, first, second = killed_search
    assert "2 trials of up to 2 epochs, 1 at a time" in first and "trial 2/2" in second
    trials = list(map(json.loads, after.values()))
    began, ended = max(trial["began"] for trial in trials), min(trial["ended"] for trial in trials)
    assert began >= ended


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
@pytest.mark.timeout(420)
def test_a_killed_search_goes_on_without_losing_trials(killed_search):
    before, after, _, said = killed_search
    assert f"{len(before)} of 2 trials have ended already" in said
    assert len(after) == 2 and before.items() <= after.items()
    finished = [trial for trial in map(json.loads, after.values()) if trial["status"] == "finished"]
    assert finished and all((trial["folds"], len(trial["curve"])) == (2, 2) for trial in finished)


def test_running_and_best_trials_are_shown_on_a_terminal(tmp_path, monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=out, force_terminal=True, width=100))
    with console.watch() as screen:
        recorder = Recorder(str(tmp_path), screen, 3, [])
        for trial, score in (("one", 0.25), ("two", 0.5)):
            recorder.begin(trial, {"learning_rate": 0.00123})
            recorder.epoch(trial, 1, score)
        recorder.end("one", "stopped")
    shown = out.getvalue().rpartition("1 of 3 trials ended")[2]
    for words in (("two", "running", "0.500", "0.00123"), ("one", "stopped", "0.250")):
        assert any(all(word in line for word in words) for line in shown.splitlines()), shown


def test_the_page_of_a_search_shows_it():
    space = {"learning_rate": Range(1e-3, 1e-2, True), "batch_size": (16, 32)}
    trials = [
        {
            "trial": f"t{i}",
            "values": {"learning_rate": 0.001 * (i + 1), "batch_size": (16, 32)[i % 2]},
            "curve": [0.1, 0.1 + 0.05 * i][: 1 + i % 2],
            "status": ("stopped", "finished")[i % 2],
            "error": "",
            "began": 0.0,
            "ended": float(i),
        }
        for i in range(9)
    ]
    trials.append({**trials[0], "trial": "<b>", "curve": [], "status": "failed", "error": "<script>"})
    page = search_page(title="a", trials=trials, space=space, best=trials[7], command="python jobs/tune.py")
    assert page.count("<img") == 4 and "Importance of parameters" in page
    assert "&lt;script&gt;" in page and "<script>" not in page
    assert "10 trials" in page.replace("\n", " ")
