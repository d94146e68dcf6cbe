"""That speech is made is a fact of the data: it reaches whoever sees a score of it, whichever flags were given."""

import json
import shutil
from pathlib import Path

import pytest

from ser_ray.features.summary import Summary
from ser_ray.model.files import save_model
from ser_ray.model.model import Model
from ser_ray.networks.cnn1d import Cnn1dSpec
from ser_ray.scores.scores import MADE_SPEECH
from ser_ray.speech.emotions import LabelSet
from ser_ray.speech.made import MARKER, write_speech
from ser_ray.store.rows import open_rows
from ser_ray.store.store import Store

pytestmark = pytest.mark.usefixtures("local_ray", "train_here")
QUICK = ("--model", "cnn1d", "--epochs", "1")


def told(root):
    """Say where a run tells that its speech is made."""
    places = {"metrics.json": "metrics.json", "report": "report.html", "model card": "model/README.md"}
    return {name for name, path in places.items() if MADE_SPEECH in Path(root, path).read_text()}


def test_a_run_of_made_speech_says_so_whatever_the_flags(job, made, made_store):
    assert made_store.info()["made_speech"] == made
    for root, data in (("by-data", ("--data", *made)), ("by-store", ())):
        code, out, err = job("train", *data, "--store", made_store.root, *QUICK, "--output", root)
        assert (code, err) == (0, "") and MADE_SPEECH in out, err
        assert told(root) == {"metrics.json", "report", "model card"}
        assert json.loads(Path(root, "metrics.json").read_text())["made_speech"] is True


def test_a_corpus_of_made_speech_that_was_copied_keeps_the_fact(job, made, tmp_path):
    shutil.copytree(Path(made[0], "savee"), tmp_path / "copied")
    code, out, err = job("train", "--data", tmp_path / "copied", *QUICK, "--output", "copied")
    assert (code, err) == (0, "") and MADE_SPEECH in out, err


def test_an_evaluation_on_made_speech_says_so(job, tmp_path):
    network = Cnn1dSpec().build((162,), 8).eval()
    save_model(Model([network], Cnn1dSpec(), Summary(), LabelSet()), str(tmp_path / "run" / "model"))
    speech = write_speech(str(tmp_path / "speech"), clips=16, seed=3, processes=1)
    code, out, err = job("evaluate", "--run", "run", "--data", *speech, "--output", "evaluated")
    assert (code, err) == (0, "") and MADE_SPEECH in out, err
    assert MADE_SPEECH in Path("evaluated/report.html").read_text()
    assert json.loads(Path("evaluated/metrics.json").read_text())["made_speech"] is True


def test_a_cross_validation_of_made_speech_says_so_once(job, made_store):
    wish = ("--store", made_store.root, *QUICK, "--num-folds", "2", "--fold", "all", "--output", "all")
    code, out, err = job("train", *wish)
    assert (code, err) == (0, "") and out.count(MADE_SPEECH) == 1, err
    assert json.loads(Path("all/metrics.json").read_text())["notes"] == [MADE_SPEECH]


def test_of_real_recordings_nothing_is_said(job, made, tmp_path):
    shutil.copytree(made[0], tmp_path / "real", ignore=lambda folder, names: [MARKER])
    code, out, err = job("train", "--data", tmp_path / "real", "--store", "store", *QUICK, "--output", "run")
    assert (code, err) == (0, "") and MADE_SPEECH not in out, err
    assert not open_rows(Store("store")).made_speech and told("run") == set()
